"""From generate runs to tokenised groups on the store, by Ray tasks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import groupby
import json
from pathlib import Path
import tempfile
from typing import Any

import pyarrow as pa

from dualview.arrow import dual_views_from_table
from dualview.config.base import fingerprint
from dualview.config.train import EncoderConfig, TrainConfig
from dualview.distributed.cluster import map_in_order
from dualview.progress import Progress
from dualview.retrieval.encoder import (
    check_lengths,
    load_tokenizer,
    tokenize_with,
)
from dualview.runs.run import open_run
from dualview.runs.shards import read_shard, trainable_rows
from dualview.storage import LocalStore, Store, download_tree, open_store
from dualview.training.groups import groups_of, key_of
from dualview.training.mixtures import Draw, draw, instances_of_parts, num_views
from dualview.training.prepared import Placed, Prepared, make_piece, view_text
from dualview.training.schedule import tokens_of

INDEX_KEY = "prepared.json"
ROWS_LOOKED_AT = 64  # for an estimate


@dataclass(frozen=True)
class ShardDraw:
    """One shard of one part, and what is drawn from it."""

    part: int
    data: str
    key: str
    left_out: frozenset[tuple[str, str]]
    draws: dict[str, Draw]
    num_sections: int  # of the part: the most groups that an example gives, which must not share a batch
    piece: str  # named by all of this: where the data has grown, another piece is made


def plan_mixture(config: TrainConfig) -> tuple[list[ShardDraw], list[dict[str, Any]]]:
    """Which rows of which shards the mixture takes, and for people the counts of each part.

    Raises InputError where a part's data is not a finished generate run or holds too little.
    """
    sources, counts = [], []
    for number, (part, num_instances) in enumerate(
        zip(config.mixture.parts, instances_of_parts(config), strict=True)
    ):
        run = open_run(part.data)
        left_out = run.left_out_of_training()
        keys = [shard.key for shard in run.plan.shards]
        of_shards = list(map_in_order(partial(_num_rows_of_examples, part.data, left_out), keys))
        num_rows_of = {id: num for of_shard in of_shards for id, num in of_shard.items()}
        drawn = draw(part, num_rows_of, num_instances, config.seed)
        most = max(each.num_rows for each in drawn.values())
        num_sections = num_views(part, most) if part.views == "apart" else 1
        for key, of_shard in zip(keys, of_shards, strict=True):
            if own := {id: drawn[id] for id in of_shard if id in drawn}:
                decides = [
                    run.plan.fingerprint,
                    len(run.plan.extensions),  # with it, what is left out
                    num_sections,
                    {id: asdict(of_example) for id, of_example in own.items()},
                ]
                piece = f"prepared/part-{number:02d}-{Path(key).stem}-{fingerprint(decides)}.arrow"
                sources.append(ShardDraw(number, part.data, key, left_out, own, num_sections, piece))
        counts.append(
            {
                "data": part.data,
                "views": part.views,
                "seeds": len(drawn),
                "seeds_available": len(num_rows_of),
                "instances": num_instances,
            }
        )
    return sources, counts


def _num_rows_of_examples(data: str, left_out: frozenset[tuple[str, str]], key: str) -> dict[str, int]:
    table = read_shard(open_store(data), key, ["id", "target_id", "trainable"])
    ids = trainable_rows(table, left_out)["id"].to_pylist()
    return {id: len(list(same)) for id, same in groupby(ids)}  # the rows of an example follow each other


def prepare(config: TrainConfig, sources: Sequence[ShardDraw], counts: Sequence[dict[str, Any]]) -> None:
    """Puts a piece of groups for each source, where it does not stand yet, and last their list with the counts."""
    store = open_store(config.output)
    if store.list(INDEX_KEY):
        return
    standing = {entry.key for entry in store.list("prepared/")}
    to_do = [source for source in sources if source.piece not in standing]
    with Progress("tokenizing", len(to_do), "shards", trail=None) as progress:
        for _ in map_in_order(partial(_prepare_one, config), to_do):
            progress.advance(1)
    index = json.dumps({"parts": counts, "pieces": [source.piece for source in sources]}, indent=1).encode()
    store.put_new(INDEX_KEY, index, attempt="driver")


def expected_tokens(config: TrainConfig) -> int:
    """About how many tokens a run will read, retained texts left out, from the first groups of each part.

    Needs no cluster. Raises InputError where a part's data is not a finished generate run.
    """
    if config.budget.tokens is not None:
        return config.budget.tokens
    if config.budget.petaflop is not None:
        return tokens_of(config.budget.petaflop, config)
    settings = config.encoder
    tokenizer = _tokenizer(settings)

    def num_tokens(texts: Sequence[str], most: int) -> int:
        return sum(map(len, tokenize_with(tokenizer, texts, most)))

    instances, tokens = 0, 0.0
    for part, num_instances in zip(config.mixture.parts, instances_of_parts(config), strict=True):
        rows = next(open_run(part.data).trainable_tables())
        examples = groupby(
            dual_views_from_table(rows.slice(0, ROWS_LOOKED_AT)), key=lambda row: row.example.id
        )
        groups = [group for _, of_example in examples for group in groups_of(list(of_example), part)]
        seen = 0.0
        for group in groups:
            always = len(group.passages) - group.num_hard_negatives
            shown = [passage.full_text for passage in group.passages]
            if config.train == "both_encoders":
                seen += num_tokens(shown[:always], settings.max_passage_tokens)
                share = min(1.0, part.num_hard_negatives / max(1, group.num_hard_negatives))
                seen += share * num_tokens(shown[always:], settings.max_passage_tokens)
            views = [view_text(settings.query_template, view.query, view.wordings[0]) for view in group.views]
            seen += num_tokens(views, settings.max_query_tokens)
        instances += num_instances
        tokens += num_instances * seen / max(1, sum(len(group.views) for group in groups))
    asked = config.budget.instances or (config.budget.steps or 0) * config.batch.instances
    return round(tokens * asked / max(1, instances))


@cache  # once a worker: it takes longer than a small shard
def _tokenizer(settings: EncoderConfig) -> Any:
    """The encoder's. Raises InputError where the encoder cannot read texts as long as the settings say."""
    limits = {
        "encoder.max_query_tokens": settings.max_query_tokens,
        "encoder.max_passage_tokens": settings.max_passage_tokens,
    }
    check_lengths(settings.model, limits, trust_remote_code=settings.trust_remote_code)
    return load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)


def _prepare_one(config: TrainConfig, source: ShardDraw) -> None:
    part, settings = config.mixture.parts[source.part], config.encoder
    table = trainable_rows(read_shard(open_store(source.data), source.key), source.left_out)
    table = table.filter(pa.array([id in source.draws for id in table["id"].to_pylist()], pa.bool_()))
    placed = []
    for id, rows in groupby(dual_views_from_table(table), key=lambda row: row.example.id):
        drawn = source.draws[id]
        # From another section on for each example: all sections get original views and complementary ones.
        for section, group in enumerate(groups_of(list(rows)[: drawn.num_rows], part), start=key_of(id)):
            placed.append(Placed(group, source.part, section % source.num_sections, drawn.times))
    tokenizer = _tokenizer(settings)
    piece = make_piece(placed, settings, partial(tokenize_with, tokenizer), config.seed)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, piece.schema) as writer:
        writer.write_table(piece.combine_chunks())
    open_store(config.output).put_new(source.piece, sink.getvalue().to_pybytes(), attempt="driver")


def read_counts(config: TrainConfig) -> list[dict[str, Any]]:
    """What each part of the mixture gave."""
    counts: list[dict[str, Any]] = json.loads(open_store(config.output).get(INDEX_KEY))["parts"]
    return counts


def open_prepared(config: TrainConfig) -> Prepared:
    """The run's groups, memory-mapped; from a bucket they are first copied to this node, once for all ranks."""
    store = open_store(config.output)
    pieces = json.loads(store.get(INDEX_KEY))["pieces"]
    folder = on_this_node(store, pieces, under="prepared/")
    return Prepared([folder / piece for piece in pieces])


def on_this_node(store: Store, keys: Sequence[str], under: str = "") -> Path:
    """A folder of this node with these objects, all `under` one prefix; of a bucket a copy, once for all who ask."""
    if isinstance(store, LocalStore):
        return Path(store.url)
    stamps = {entry.key: entry.stamp for entry in store.list(under)}
    # Named by content: another run may have had this place before.
    copy = Path(tempfile.gettempdir()) / f"dualview-{fingerprint([[key, stamps[key]] for key in keys])}"
    return download_tree(store, copy, keys)
