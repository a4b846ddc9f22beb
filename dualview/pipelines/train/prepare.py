"""Turns generate runs into tokenized groups in the store, with Ray tasks."""

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
from dualview.errors import InputError
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
ROWS_LOOKED_AT = 64  # by expected_tokens


@dataclass(frozen=True)
class ShardDraw:
    """One shard of one part of the mixture, and the rows drawn from it."""

    part: int
    data: str
    key: str
    left_out: frozenset[tuple[str, str]]
    draws: dict[str, Draw]
    num_sections: int  # of the part: the most groups of one example; these must not share a batch
    piece: str  # key, named by all of the above: if the data grows, there is a new piece


def plan_mixture(config: TrainConfig) -> tuple[list[ShardDraw], list[dict[str, Any]]]:
    """The rows that the mixture draws from each shard, and the counts of each part, for human readers.

    Raises InputError if a part's data is not a finished generate run or is too small.
    """
    sources, counts = [], []
    for number, (part, num_instances) in enumerate(
        zip(config.mixture.parts, instances_of_parts(config), strict=True)
    ):
        run = open_run(part.data)
        if part.min_judged_margin is not None and (failed := run.failed_judges):
            raise InputError(
                f"mixture.parts.{number}.min_judged_margin: {part.min_judged_margin:g} labels by verdicts, but the judge"
                f" {failed[0]} of {part.data} failed its validation; expected null"
            )
        left_out = run.left_out_of_training()
        keys = [shard.key for shard in run.plan.shards]
        of_shards = list(map_in_order(partial(_num_rows_of_examples, part.data, left_out), keys))
        num_rows_of = {id: num for of_shard in of_shards for id, num in of_shard.items()}
        drawn = draw(part, num_rows_of, num_instances, config.seed)
        most = max(of_example.num_rows for of_example in drawn.values())
        num_sections = num_views(part, most) if part.views == "apart" else 1
        for key, of_shard in zip(keys, of_shards, strict=True):
            if draws := {id: drawn[id] for id in of_shard if id in drawn}:
                deciding = [
                    run.plan.fingerprint,
                    len(run.plan.extensions),  # determines left_out
                    num_sections,
                    {id: asdict(of_example) for id, of_example in draws.items()},
                ]
                piece = f"prepared/part-{number:02d}-{Path(key).stem}-{fingerprint(deciding)}.arrow"
                sources.append(ShardDraw(number, part.data, key, left_out, draws, num_sections, piece))
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
    return {id: len(list(same)) for id, same in groupby(ids)}  # the rows of an example are consecutive


def prepare(config: TrainConfig, sources: Sequence[ShardDraw], counts: Sequence[dict[str, Any]]) -> None:
    """Puts the missing pieces of groups, one per source, and finally their list with the counts."""
    store = open_store(config.output)
    if store.list(INDEX_KEY):
        return
    existing = {entry.key for entry in store.list("prepared/")}
    to_do = [source for source in sources if source.piece not in existing]
    with Progress("tokenizing", len(to_do), "shards", trail=None) as progress:
        for _ in map_in_order(partial(_prepare_one, config), to_do):
            progress.advance(1)
    index = json.dumps({"parts": counts, "pieces": [source.piece for source in sources]}, indent=1).encode()
    store.put_new(INDEX_KEY, index, attempt="driver")


def expected_tokens(config: TrainConfig) -> int:
    """Estimates how many tokens a run will read, without retained texts, from the first groups of each part.

    Needs no cluster. Raises InputError if a part's data is not a finished generate run.
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
        num_read = 0.0
        for group in groups:
            num_always = len(group.passages) - group.num_hard_negatives
            shown = [passage.full_text for passage in group.passages]
            if config.train == "both_encoders":
                num_read += num_tokens(shown[:num_always], settings.max_passage_tokens)
                share = min(1.0, part.num_hard_negatives / max(1, group.num_hard_negatives))
                num_read += share * num_tokens(shown[num_always:], settings.max_passage_tokens)
            views = [view_text(settings.query_template, view.query, view.wordings[0]) for view in group.views]
            num_read += num_tokens(views, settings.max_query_tokens)
        instances += num_instances
        tokens += num_instances * num_read / max(1, sum(len(group.views) for group in groups))
    asked = config.budget.instances or (config.budget.steps or 0) * config.batch.instances
    return round(tokens * asked / max(1, instances))


@cache  # once per worker: loading takes longer than a small shard
def _tokenizer(settings: EncoderConfig) -> Any:
    """The encoder's tokenizer. Raises InputError if the encoder cannot read texts as long as the settings allow."""
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
        # Each example starts at another section, so that all sections get original and complementary views.
        for section, group in enumerate(groups_of(list(rows)[: drawn.num_rows], part), start=key_of(id)):
            placed.append(Placed(group, source.part, section % source.num_sections, drawn.times))
    tokenizer = _tokenizer(settings)
    piece = make_piece(placed, settings, partial(tokenize_with, tokenizer), config.seed)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, piece.schema) as writer:
        writer.write_table(piece.combine_chunks())
    open_store(config.output).put_new(source.piece, sink.getvalue().to_pybytes(), attempt="driver")


def read_counts(config: TrainConfig) -> list[dict[str, Any]]:
    """The counts of each part of the mixture, see plan_mixture."""
    counts: list[dict[str, Any]] = json.loads(open_store(config.output).get(INDEX_KEY))["parts"]
    return counts


def open_prepared(config: TrainConfig) -> Prepared:
    """The run's groups, memory-mapped. From a bucket they are first copied to this node, once for all ranks."""
    store = open_store(config.output)
    pieces = json.loads(store.get(INDEX_KEY))["pieces"]
    folder = on_this_node(store, pieces, under="prepared/")
    return Prepared([folder / piece for piece in pieces])


def on_this_node(store: Store, keys: Sequence[str], under: str = "") -> Path:
    """A local folder with these objects, all `under` one prefix. From a bucket it is a copy, shared by all callers."""
    if isinstance(store, LocalStore):
        return Path(store.url)
    stamps = {entry.key: entry.stamp for entry in store.list(under)}
    # Named by content: another run may have used the same URL before.
    copy = Path(tempfile.gettempdir()) / f"dualview-{fingerprint([[key, stamps[key]] for key in keys])}"
    return download_tree(store, copy, keys)
