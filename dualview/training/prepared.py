"""Tokenized groups: written once to Arrow files, memory-mapped by every rank.

A piece is an Arrow file with one row per group, in PIECE_SCHEMA. Passages are identified by 64 bits of the SHA-256 of
their content, so that pieces can be made independently, and are numbered by the order of these keys. Ids will not do:
they are unique only within a data set. A passage in several pieces is read from the first. Groups share a query if
they have the same query id or the same query text.
"""

# E = embedding size

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
import heapq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dualview.config.train import EncoderConfig
from dualview.errors import InputError
from dualview.records import Requirement
from dualview.retrieval.embeddings import text_key
from dualview.training.groups import Group, View, key_of, passage_key

Tokenize = Callable[[list[str], int], list[list[int]]]  # texts, most tokens -> ids
NO_LIMIT = 2**30  # tokens

# The texts of base distillation are spans of this many words: short, like queries.
RETAINED_WORDS = 14
RETAINED_TEXTS = 400

_TOKENS = pa.list_(pa.int32())
_VIEW = pa.struct(
    [
        ("wordings", pa.list_(_TOKENS)),
        ("passages", pa.list_(pa.uint64())),
        ("labels", pa.list_(pa.int8())),
        ("margins", pa.list_(pa.float32())),  # null if the judge gave none
        (
            "requirements",
            pa.list_(pa.struct([("include", pa.bool_()), ("facet", pa.string()), ("value", pa.string())])),
        ),
    ]
)
_PASSAGE = pa.struct(
    [
        ("key", pa.uint64()),
        ("text_key", pa.uint64()),  # its key in the embedding cache
        ("tokens", _TOKENS),
        ("cut", pa.bool_()),  # whether it was truncated
        ("attributes", pa.list_(pa.struct([("facet", pa.string()), ("value", pa.string())]))),
    ]
)
PIECE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("query_id_key", pa.uint64()),
        ("query_text_key", pa.uint64()),
        ("part", pa.int16()),
        ("section", pa.int16()),  # differs between groups of one example that must not share a batch
        ("times", pa.int32()),  # per epoch
        ("num_hard_negatives", pa.int32()),
        ("passages", pa.list_(_PASSAGE)),
        ("views", pa.list_(_VIEW)),
        ("spans", pa.list_(pa.struct([("rank", pa.uint64()), ("tokens", _TOKENS)]))),  # for base distillation
    ]
)


def view_text(template: str, query: str, instruction: str) -> str:
    """Query and instruction joined into the text that the encoder reads."""
    return template.format(query=query, instruction=instruction) if instruction else query


@dataclass(frozen=True)
class Placed:
    """A group and its place in the mixture."""

    group: Group
    part: int
    section: int
    times: int


def make_piece(placed: Sequence[Placed], encoder: EncoderConfig, tokenize: Tokenize, seed: int) -> pa.Table:
    """A table in PIECE_SCHEMA. Texts are truncated at the encoder's limits.

    Raises InputError if a passage has only special tokens: the encoder would see an empty text.
    """
    groups = [item.group for item in placed]
    tokens_of_passage, cut = _passage_tokens(groups, encoder, tokenize)
    wordings = iter(_wording_tokens(groups, encoder, tokenize))
    spans = _spans(groups, encoder, tokenize, seed)
    rows = []
    for item in placed:
        group = item.group
        keys = {passage.id: passage_key(passage) for passage in group.passages}
        rows.append(
            {
                "id": group.id,
                "query_id_key": key_of(group.query_id),
                "query_text_key": key_of(group.views[0].query),
                "part": item.part,
                "section": item.section,
                "times": item.times,
                "num_hard_negatives": group.num_hard_negatives,
                "passages": [
                    {
                        "key": keys[passage.id],
                        "text_key": text_key(passage.full_text),
                        "tokens": tokens_of_passage[keys[passage.id]],
                        "cut": keys[passage.id] in cut,
                        "attributes": [
                            {"facet": facet, "value": value} for facet, value in passage.attributes.items()
                        ],
                    }
                    for passage in group.passages
                ],
                "views": [
                    _view_columns(view, keys, [next(wordings) for _ in view.wordings]) for view in group.views
                ],
                "spans": [spans[group.passages[0].text]],
            }
        )
    return pa.Table.from_pylist(rows, schema=PIECE_SCHEMA)


def _passage_tokens(
    groups: Sequence[Group], encoder: EncoderConfig, tokenize: Tokenize
) -> tuple[dict[int, list[int]], set[int]]:
    """Passage key -> tokens, and the keys of truncated passages."""
    passages = {passage_key(passage): passage for group in groups for passage in group.passages}
    texts = [encoder.prompts.document + passage.full_text for passage in passages.values()]
    tokens_of = dict(zip(passages, tokenize(texts, encoder.max_passage_tokens), strict=True))
    num_special = len(tokenize([""], encoder.max_passage_tokens)[0])
    for key, tokens in tokens_of.items():
        if len(tokens) <= num_special:
            raise InputError(f"passage {passages[key].id}: its text has no token of the encoder's vocabulary")
    cut = _cut(dict(zip(passages, texts, strict=True)), tokens_of, encoder.max_passage_tokens, tokenize)
    return tokens_of, cut


def _wording_tokens(groups: Sequence[Group], encoder: EncoderConfig, tokenize: Tokenize) -> list[list[int]]:
    """Tokens of all wordings of all views, in order."""
    texts = [
        encoder.prompts.query + view_text(encoder.query_template, view.query, wording)
        for group in groups
        for view in group.views
        for wording in view.wordings
    ]
    return tokenize(texts, encoder.max_query_tokens)


def _view_columns(view: View, keys: Mapping[str, int], wordings: Sequence[list[int]]) -> dict[str, Any]:
    return {
        "wordings": wordings,
        "passages": [keys[label.passage_id] for label in view.labels],
        "labels": [label.label for label in view.labels],
        "margins": [label.margin for label in view.labels],
        "requirements": [
            {"include": requirement.include, "facet": requirement.facet, "value": requirement.value}
            for requirement in view.requirements
        ],
    }


def _spans(
    groups: Sequence[Group], encoder: EncoderConfig, tokenize: Tokenize, seed: int
) -> dict[str, dict[str, Any]]:
    """Text of each group's first passage -> its span, with rank and tokens."""
    spans = {text: _span(text, f"{seed}:{text}") for text in (group.passages[0].text for group in groups)}
    tokens = tokenize([span for _, span in spans.values()], encoder.max_query_tokens)
    return {
        text: {"rank": rank, "tokens": of_span}
        for (text, (rank, _)), of_span in zip(spans.items(), tokens, strict=True)
    }


def _cut(
    texts: Mapping[int, str], tokens: Mapping[int, Sequence[int]], limit: int, tokenize: Tokenize
) -> set[int]:
    """Keys of the texts that have more tokens than the limit at which `tokens` were truncated."""
    at_limit = [key for key, ids in tokens.items() if len(ids) == limit]
    whole = tokenize([texts[key] for key in at_limit], NO_LIMIT)
    return {key for key, ids in zip(at_limit, whole, strict=True) if len(ids) > limit}


def _span(text: str, name: str) -> tuple[int, str]:
    """The rank of a name, by hash, and a span of the text from a position drawn by it."""
    rank = key_of(name)
    words = text.split()
    start = rank % max(1, len(words) - RETAINED_WORDS + 1)
    return rank, " ".join(words[start : start + RETAINED_WORDS])


@dataclass(frozen=True, slots=True)
class TokenView:
    """A tokenized view."""

    wordings: tuple[NDArray[np.int32], ...]
    labels: Mapping[int, int]  # passage number -> POSITIVE or NEGATIVE
    margins: Mapping[int, float]
    requirements: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    index: int
    id: str
    query: int
    passages: tuple[int, ...]  # those that every batch shows
    hard_negatives: tuple[int, ...]
    views: tuple[TokenView, ...]


class Prepared:
    """All groups of a run over memory-mapped pieces. Groups, passages and queries are identified by number."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._pieces = [_open(file) for file in files]
        tables = self._pieces
        self._first_group = np.cumsum([0, *(table.num_rows for table in tables)])
        self.num_groups = int(self._first_group[-1])
        self.num_views = _lengths(tables, "views")
        self.part, self.section, self.times = (
            np.concatenate([table[name].to_numpy() for table in tables])
            for name in ("part", "section", "times")
        )
        self.query = _queries(
            *(
                np.concatenate([table[name].to_numpy() for table in tables])
                for name in ("query_id_key", "query_text_key")
            )
        )

        lists = [table["passages"].chunk(0) for table in tables]
        self._offsets = [column.offsets.to_numpy() for column in lists]
        first = np.cumsum([0, *(len(column.values) for column in lists)])
        self._first_passage = first
        keys = np.concatenate([column.values.field("key").to_numpy() for column in lists])
        self._keys, self._place, self._number = np.unique(keys, return_index=True, return_inverse=True)
        self.num_passages = len(self._keys)
        tokens = [column.values.field("tokens") for column in lists]
        self._tokens = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in tokens]
        self._attributes = [column.values.field("attributes") for column in lists]
        self.text_keys, self.cut = (
            np.concatenate([column.values.field(name).to_numpy(zero_copy_only=False) for column in lists])[
                self._place
            ]
            for name in ("text_key", "cut")
        )
        self._of_query: Mapping[int, list[int]] | None = None

    def group(self, index: int) -> TokenGroup:
        piece = int(np.searchsorted(self._first_group, index, side="right")) - 1
        row = index - int(self._first_group[piece])
        columns = (
            self._pieces[piece].select(["id", "num_hard_negatives", "views"]).slice(row, 1).to_pylist()[0]
        )
        start, stop = self._first_passage[piece] + self._offsets[piece][row : row + 2]
        passages = self._number[start:stop].tolist()
        num_shown = len(passages) - columns["num_hard_negatives"]
        return TokenGroup(
            index,
            columns["id"],
            int(self.query[index]),
            tuple(passages[:num_shown]),
            tuple(passages[num_shown:]),
            tuple(self._view(view) for view in columns["views"]),
        )

    def _view(self, columns: Mapping[str, Any]) -> TokenView:
        numbers = np.searchsorted(self._keys, np.array(columns["passages"], dtype=np.uint64)).tolist()
        return TokenView(
            tuple(np.array(wording, dtype=np.int32) for wording in columns["wordings"]),
            dict(zip(numbers, columns["labels"], strict=True)),
            {n: margin for n, margin in zip(numbers, columns["margins"], strict=True) if margin is not None},
            tuple(Requirement(**requirement) for requirement in columns["requirements"]),
        )

    def _locate(self, passage: int) -> tuple[int, int]:
        place = int(self._place[passage])
        piece = int(np.searchsorted(self._first_passage, place, side="right")) - 1
        return piece, place - int(self._first_passage[piece])

    def tokens(self, passage: int) -> NDArray[np.int32]:
        piece, row = self._locate(passage)
        offsets, values = self._tokens[piece]
        tokens: NDArray[np.int32] = values[offsets[row] : offsets[row + 1]]
        return tokens

    def attributes(self, passage: int) -> dict[str, str]:
        piece, row = self._locate(passage)
        return {item["facet"]: item["value"] for item in self._attributes[piece][row].as_py()}

    def passages_of(self, query: int) -> list[int]:
        """All passages of a query's groups, in ascending order."""
        if self._of_query is None:
            found: dict[int, set[int]] = {}
            for piece, offsets in enumerate(self._offsets):
                start = int(self._first_group[piece])
                for row in range(len(offsets) - 1):
                    first = self._first_passage[piece]
                    numbers = self._number[first + offsets[row] : first + offsets[row + 1]]
                    found.setdefault(int(self.query[start + row]), set()).update(numbers.tolist())
            self._of_query = {number: sorted(passages) for number, passages in found.items()}
        return self._of_query[query]

    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each group: its passages, and its views in their first wording; (groups,)."""
        totals = []
        for table in self._pieces:
            passages = table["passages"].chunk(0)
            of_passage = np.diff(passages.values.field("tokens").offsets.to_numpy())
            sums = np.add.reduceat(of_passage, passages.offsets.to_numpy()[:-1])
            wordings = table["views"].chunk(0).values.field("wordings")
            of_wording = np.diff(wordings.values.offsets.to_numpy())
            of_view = of_wording[wordings.offsets.to_numpy()[:-1]]
            totals.append(sums + np.add.reduceat(of_view, table["views"].chunk(0).offsets.to_numpy()[:-1]))
        tokens: NDArray[np.int64] = np.concatenate(totals).astype(np.int64)
        return tokens

    def num_cut(self, encoder: EncoderConfig) -> tuple[int, int]:
        """Numbers of truncated wordings and passages. Wordings that exactly fit the limit count as truncated."""
        wordings = 0
        for table in self._pieces:
            of_views = table["views"].chunk(0).values.field("wordings").values.offsets.to_numpy()
            wordings += int((np.diff(of_views) >= encoder.max_query_tokens).sum())
        return wordings, int(self.cut.sum())

    def retained(self) -> list[list[int]]:
        """Tokens of the base-distillation texts: the spans with the lowest ranks, one per passage."""
        spans: dict[int, list[int]] = {}
        for table in self._pieces:
            values = table["spans"].chunk(0).values
            ranks = values.field("rank").to_numpy()
            for row in heapq.nsmallest(RETAINED_TEXTS, range(len(ranks)), key=lambda row: ranks[row]):
                spans[int(ranks[row])] = values.field("tokens")[row].as_py()
        return [spans[rank] for rank in sorted(spans)[:RETAINED_TEXTS]]


def _queries(ids_G: NDArray[np.uint64], texts_G: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Query number of each group, (G,). Groups connected by a query id or a query text share one.

    Queries are numbered by their smallest text key, so the numbers do not depend on the order of the data.
    """
    _, id_of = np.unique(ids_G, return_inverse=True)
    texts, text_of = np.unique(texts_G, return_inverse=True)
    num_ids = int(id_of.max()) + 1
    edges = coo_array(
        (np.ones(len(id_of), np.int8), (id_of, num_ids + text_of)), shape=(num_ids + len(texts),) * 2
    )
    _, component = connected_components(edges, directed=False)
    _, first_text = np.unique(component[num_ids:], return_index=True)  # texts are sorted by key
    numbers: NDArray[np.int64] = np.argsort(np.argsort(first_text))[component[:num_ids][id_of]]
    return numbers


def _open(file: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file}: is not a complete Arrow file of prepared groups ({reason}); remove it"
        ) from None
    if not table.schema.equals(PIECE_SCHEMA) or table.num_rows == 0 or table["id"].num_chunks != 1:
        raise InputError(
            f"{file}: is not a file of prepared groups in this version's format; choose another output"
        )
    return table


def _lengths(tables: Iterable[pa.Table], column: str) -> NDArray[np.int64]:
    return np.concatenate([np.diff(table[column].chunk(0).offsets.to_numpy()) for table in tables])
