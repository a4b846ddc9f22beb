"""What is searched and what is relevant: collections of all benchmarks, in one shape, from their makers' files.

A topic is what the bootstrap draws; its views are the searches that are scored together: one of plain retrieval,
two of a pair of instructions, ten of ten instructions for one query.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
import re
from typing import Any

from dualview.beir import Row, check_qrels, read_lines, read_qrels, read_rows
from dualview.config.evaluate import Beir, Flips, FollowIR, HubBenchmark, Mair, Trec
from dualview.errors import InputError
from dualview.evaluation.mirrors import Mirror, rows_of_json, rows_of_mirrored
from dualview.models import local_data
from dualview.records import FlipCollection, FlipQuery, Passage
from dualview.storage import open_store

Grades = Mapping[str, int]  # passage -> relevance, as judged


@dataclass(frozen=True, slots=True)
class View:
    """One search."""

    id: str  # the query's name in run files
    query: str
    instruction: str  # "": none
    grades: Grades
    candidates: tuple[str, ...] | None = None  # exactly these are ranked; None: every passage


@dataclass(frozen=True, slots=True)
class Topic:
    id: str
    views: Mapping[str, View]
    dropped: frozenset[str] = frozenset()  # passages that the instruction takes away: p-MRR is over them
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also reported apart by these


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    passages: Mapping[str, Passage]
    topics: tuple[Topic, ...]

    @property
    def views(self) -> list[View]:
        return [view for topic in self.topics for view in topic.views.values()]


Benchmark = Beir | Trec | Flips | FollowIR | HubBenchmark | Mair


def read_benchmark(settings: Benchmark) -> list[Collection]:
    """The benchmark's collections; one, but for MAIR's tasks of several parts.

    Raises InputError where something is missing, saying how to get it, or a row is wrong.
    """
    match settings:
        case Flips():
            collections = [from_flips(read_flips(settings))]
        case Beir():
            collections = [read_beir(settings)]
        case Trec():
            collections = [read_trec(settings)]
        case FollowIR():
            collections = [read_followir(settings)]
        case HubBenchmark():
            collections = [_HUB_READERS[settings.kind](settings)]
        case Mair():
            collections = read_mair(settings)
    for collection in collections:
        _check(collection)
    return collections


def _check(collection: Collection) -> None:
    name = collection.name
    if not collection.passages or not collection.topics:
        what = "topic" if collection.passages else "passage"
        raise InputError(f"benchmark {name}: has no {what}; expected a corpus and queries that are judged")
    if twice := [id for id, count in Counter(view.id for view in collection.views).items() if count > 1]:
        raise InputError(f"benchmark {name}: the query id {twice[0]!r} stands there twice")
    for view in collection.views:
        if view.candidates is not None and not view.candidates:
            raise InputError(f"benchmark {name}: the query {view.id!r} has no candidate")
        for id in view.candidates or ():
            if id not in collection.passages:
                raise InputError(
                    f"benchmark {name}: the candidate {id!r} of {view.id!r} is not in the corpus"
                )


# --- flips ----------------------------------------------------------------------------------------


def from_flips(flips: FlipCollection) -> Collection:
    return Collection(
        flips.name,
        flips.passages,
        tuple(
            Topic(
                query.id,
                {
                    name: View(
                        f"{query.id}-{name}",
                        query.query,
                        query.instructions[name],
                        dict.fromkeys(query.relevant[name], 1),
                        query.candidates,
                    )
                    for name in ("original", "changed")
                },
                frozenset(query.relevant["original"]) - frozenset(query.relevant["changed"]),
                query.labels,
            )
            for query in flips.queries
        ),
    )


def read_flips(settings: Flips) -> FlipCollection:
    """The folder's queries under the two named instructions.

    corpus.jsonl stands in the folder or in its parent, which several splits may share. Candidates of
    every query are all passages that are relevant to some query; the rest of the corpus is left out.
    Raises InputError where a file is missing or a row is wrong.
    """
    folder = Path(settings.path)
    own, shared = folder / "corpus.jsonl", folder.parent / "corpus.jsonl"
    corpus_path = own if own.exists() or not shared.exists() else shared
    corpus = _read_corpus(str(corpus_path))
    names = {"original": settings.original, "changed": settings.changed}
    rows = _rows_by_id(str(folder / "queries.jsonl"))
    relevant = {id: _flip(row, names, corpus) for id, row in rows.items()}
    candidates = tuple(sorted({id for views in relevant.values() for ids in views.values() for id in ids}))
    return FlipCollection(
        name=settings.name,
        passages={id: corpus[id] for id in candidates},
        queries=tuple(
            FlipQuery(
                id=id,
                query=row.text("query"),
                instructions={view: _instruction(row, name) for view, name in names.items()},
                relevant=relevant[id],
                candidates=candidates,
            )
            for id, row in rows.items()
        ),
    )


def _instruction(row: Row, name: str) -> str:
    instructions = row.columns.get("instructions")
    if not isinstance(instructions, dict) or not isinstance(instructions.get(name), str):
        raise InputError(f"{row.where}: `instructions` must map {name!r} to a text, found {instructions!r}")
    return str(instructions[name])


def _flip(row: Row, names: Mapping[str, str], corpus: Mapping[str, Passage]) -> dict[str, tuple[str, ...]]:
    """view -> ids of the relevant passages, each once."""
    relevant = {view: _relevant(row, name, corpus) for view, name in names.items()}
    if set(relevant["original"]) == set(relevant["changed"]):
        first, second = names.values()
        raise InputError(
            f"{row.where}: {first!r} and {second!r} have the same relevant passages; "
            "expected that some passage changes its label"
        )
    return relevant


def _relevant(row: Row, name: str, corpus: Mapping[str, Passage]) -> tuple[str, ...]:
    relevant = row.columns.get("relevant")
    ids = relevant.get(name) if isinstance(relevant, dict) else None
    if not isinstance(ids, list) or not ids:
        raise InputError(
            f"{row.where}: `relevant` must map {name!r} to a list of at least one passage id, found {ids!r}"
        )
    for id in ids:
        if not isinstance(id, str) or id not in corpus:
            raise InputError(f"{row.where}: the relevant passage {id!r} is not in corpus.jsonl")
    return tuple(dict.fromkeys(ids))  # people's label files name a passage twice now and then


# --- plain retrieval ------------------------------------------------------------------------------


def read_beir(settings: Beir) -> Collection:
    """The folder's corpus, and the queries that its qrels judge (queries.jsonl may hold other splits too).

    Raises InputError where a file is missing or a row is wrong.
    """
    folder = settings.path.rstrip("/")
    passages = _read_corpus(f"{folder}/corpus.jsonl")
    texts = {id: row.text("text") for id, row in _rows_by_id(f"{folder}/queries.jsonl").items()}
    is_plain = bool(open_store(folder).list("qrels.tsv")) or not open_store(folder).list("qrels/test.tsv")
    qrels_url = f"{folder}/qrels.tsv" if is_plain else f"{folder}/qrels/test.tsv"
    qrels = read_qrels(qrels_url)
    check_qrels(qrels_url, texts, passages)
    return _plain(settings.name, passages, texts, qrels, qrels_url)


def read_trec(settings: Trec) -> Collection:
    """The corpus, and the topics that are judged. Raises InputError where a file is missing or a line is wrong."""
    passages = _read_corpus(settings.corpus)
    topics = _trec_topics(settings.topics)
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for where, fields in _fields(settings.qrels, 4, "301 0 FBIS3-10082 1"):
        topic, _, passage, grade = fields
        if topic not in topics:
            raise InputError(f"{where}: the topic {topic!r} is not in {settings.topics}")
        if passage not in passages:
            raise InputError(f"{where}: the passage {passage!r} is not in {settings.corpus}")
        if passage in qrels[topic] or not grade.removeprefix("-").isdecimal():
            raise InputError(f"{where}: {passage!r} is judged twice, or {grade!r} is not a whole number")
        qrels[topic][passage] = int(grade)
    return _plain(settings.name, passages, topics, qrels, settings.qrels)


def _plain(
    name: str,
    passages: Mapping[str, Passage],
    texts: Mapping[str, str],
    qrels: Mapping[str, Grades],
    url: str,
) -> Collection:
    for query_id, grades in qrels.items():
        if max(grades.values()) <= 0:
            raise InputError(f"{url}: the query {query_id!r} has no relevant passage")
    topics = (
        Topic(id, {"original": View(id, text, "", qrels[id])}) for id, text in texts.items() if id in qrels
    )
    return Collection(name, passages, tuple(topics))


def _trec_topics(url: str) -> dict[str, str]:
    """id -> title, from `<top>` elements or lines of id and title with a tab between."""
    text = "\n".join(line for _, line in read_lines(url))
    if "<top>" in text:
        found = re.findall(r"<num>\s*(?:Number:)?\s*(\S+).*?<title>\s*(?:Topic:)?\s*([^<]+)", text, re.DOTALL)
        topics = {id: " ".join(title.split()) for id, title in found}
        if len(topics) == text.count("<top>"):
            return topics
        raise InputError(
            f"{url}: of {text.count('<top>')} topics {len(topics)} have a <num> of their own and a <title>"
        )
    return {id: title for _, (id, title) in _fields(url, 2, "301<tab>international organized crime", "\t")}


def _fields(
    url: str, num: int, example: str, separator: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and the fields of each line that is not blank."""
    for where, line in read_lines(url):
        fields = line.split(separator)
        if fields and len(fields) != num:
            raise InputError(f"{where}: has {len(fields)} fields, not {num}, for example: {example}")
        if fields:
            yield where, fields


def _read_corpus(url: str) -> dict[str, Passage]:
    return {id: row.passage() for id, row in _rows_by_id(url).items()}


def _rows_by_id(url: str) -> dict[str, Row]:
    return _by_id(read_rows(url), "_id", Row.text)


def _hub_id(row: Row, key: str) -> str:
    """Parquet may hold ids as numbers; mteb reads them as texts, too."""
    value = row.columns.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else row.text(key)


def _by_id(
    rows: Iterable[Row], key: str = "_id", read: Callable[[Row, str], str] = _hub_id
) -> dict[str, Row]:
    by_id: dict[str, Row] = {}
    for row in rows:
        id = read(row, key)
        if id in by_id:
            raise InputError(f"{row.where}: the id {id!r} stands there a second time")
        by_id[id] = row
    return by_id


# --- benchmarks of the hub ------------------------------------------------------------------------


class _MtebData:
    """The tables of a retrieval task in mteb's layout."""

    def __init__(self, path: str, hub_name: str, subset: str | None = None) -> None:
        mirror = Mirror(path, hub_name)

        def rows(*names: str) -> list[Row]:
            return mirror.rows(*(f"{name}-{subset}" if subset else name for name in names))

        def has(name: str) -> bool:
            return mirror.has(f"{name}-{subset}" if subset else name)

        self.passages = {id: _passage(id, row) for id, row in _by_id(_with_id(rows("corpus"))).items()}
        self.queries = {
            id: row.text("text") for id, row in _by_id(_with_id(rows("queries", "query"))).items()
        }
        self.qrels = _hub_qrels(rows("default", "qrels"), self.queries)
        instructions = _by_id(rows("instruction"), "query-id") if has("instruction") else {}
        self.instructions = {id: row.text("instruction") for id, row in instructions.items()}
        listed = _by_id(rows("top_ranked"), "query-id") if has("top_ranked") else None
        self.candidates = (
            None if listed is None else {id: _ids(row, "corpus-ids") for id, row in listed.items()}
        )
        self.dropped = (
            {id: _ids(row, "corpus-ids") for id, row in _by_id(rows("qrel_diff"), "query-id").items()}
            if has("qrel_diff")
            else {}
        )

    def view(self, id: str) -> View:
        if self.candidates is not None and id not in self.candidates:
            raise InputError(f"the query {id!r} has no candidate in top_ranked")
        return View(
            id,
            self.queries[id],
            self.instructions.get(id, ""),
            self.qrels[id],
            None if self.candidates is None else self.candidates[id],
        )

    def pairs(self, separator: str) -> dict[str, list[str]]:
        """What stands before the separator in judged queries' ids -> these ids."""
        keys: dict[str, list[str]] = defaultdict(list)
        for id in self.queries:
            if id in self.qrels:
                keys[id.rpartition(separator)[0] if separator == "-" else id.split(separator)[0]].append(id)
        return keys


def _with_id(rows: Iterable[Row]) -> list[Row]:
    """mteb takes `id` for `_id`."""
    return [
        row
        if "_id" in row.columns
        else Row(row.where, row.start, {**row.columns, "_id": row.columns.get("id")})
        for row in rows
    ]


def _passage(id: str, row: Row) -> Passage:
    return Passage(id, text=row.text("text"), title=row.text("title") if row.columns.get("title") else "")


def _ids(row: Row, key: str) -> tuple[str, ...]:
    ids = row.columns.get(key)
    if not isinstance(ids, list):
        raise InputError(f"{row.where}: `{key}` must be a list of passage ids, found {ids!r:.60}")
    return tuple(map(str, ids))


def _hub_qrels(rows: Iterable[Row], queries: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Judged passages that are not in the corpus stay: mteb counts them as missed."""
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        query_id, grade = _hub_id(row, "query-id"), row.columns.get("score")
        if query_id not in queries:
            raise InputError(f"{row.where}: the query {query_id!r} is not among the queries")
        if not isinstance(grade, int | float) or grade != int(grade):
            raise InputError(f"{row.where}: `score` must be a whole number, found {grade!r}")
        qrels[query_id][_hub_id(row, "corpus-id")] = int(grade)
    return qrels


def read_followir(settings: FollowIR) -> Collection:
    """Every query twice, as ID-og and ID-changed, over exactly its listed candidates. [2403.15246]"""
    data = _MtebData(settings.path, "mteb/Core17InstructionRetrieval", settings.subset)
    topics = []
    if not data.dropped:
        raise InputError(f"benchmark {settings.name}: has no qrel_diff, which says whose relevance changed")
    for key, ids in data.pairs("-").items():
        if sorted(ids) != [f"{key}-changed", f"{key}-og"]:
            raise InputError(
                f"benchmark {settings.name}: expected the judged queries {key}-og and {key}-changed,"
                f" found {', '.join(ids)}"
            )
        views = {"original": data.view(f"{key}-og"), "changed": data.view(f"{key}-changed")}
        topics.append(Topic(key, views, frozenset(data.dropped.get(key, ()))))
    return Collection(settings.name, data.passages, tuple(topics))


def _read_grouped(hub_name: str) -> Callable[[HubBenchmark], Collection]:
    """InstructIR (ten instructions a query, KEY_N) and NevIR (two queries a pair, KEY_q1 and KEY_q2)."""

    def read(settings: HubBenchmark) -> Collection:
        data = _MtebData(settings.path, hub_name)
        topics = (Topic(key, {id: data.view(id) for id in ids}) for key, ids in data.pairs("_").items())
        return Collection(settings.name, data.passages, tuple(topics))

    return read


def _read_infosearch(settings: HubBenchmark) -> Collection:
    """Every query in three modes over the whole corpus. [2410.23841]

    `dropped` are the passages that are relevant to the original and not to the instructed query.
    """
    mirror = Mirror(settings.path, "jianqunZ/Length-v1")
    queries = _by_id(_with_id(mirror.rows("queries")))
    modes = {"original": "og", "instructed": "changed", "reversed": "reversed"}
    qrels = {mode: _hub_qrels(mirror.rows(f"qrels_{name}"), queries) for mode, name in modes.items()}
    topics = []
    for id, row in queries.items():
        if id in qrels["original"]:
            before, after = qrels["original"][id], qrels["instructed"].get(id, {})
            views = {
                mode: View(
                    f"{id}-{mode}", row.text("text"), row.text(f"instruction_{name}"), qrels[mode].get(id, {})
                )
                for mode, name in modes.items()
            }
            dropped = {passage for passage in before if before[passage] > 0 and after.get(passage, 0) <= 0}
            topics.append(Topic(id, views, frozenset(dropped)))
    passages = {id: _passage(id, row) for id, row in _by_id(_with_id(mirror.rows("corpus"))).items()}
    return Collection(settings.name, passages, tuple(topics))


def _read_excluir(settings: HubBenchmark) -> Collection:
    """Queries that name what they do not want: corpus.json and test_manual_final.json. [2404.17288]

    A query's two passages are by their places in the corpus, the unwanted one first; it is what is `dropped`.
    """
    folder = local_data(settings.path, "zwh-sdu/ExcluIR")
    texts, file = rows_of_json(folder / "corpus.json"), folder / "test_manual_final.json"
    topics = []
    for number, item in enumerate(rows_of_json(file)):
        where = f"{file} item {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: expected an object, found {item!r:.60}")
        # The makers' README and their script call the two keys by different names.
        query, places = (
            item.get(one, item.get(other))
            for one, other in (("ExcluQ", "RQ_rewrite"), ("index", "corpus_sub_index"))
        )
        match places:
            case [int(unwanted), int(wanted)] if isinstance(query, str) and max(places) < len(texts):
                view = View(str(number), query, "", {str(wanted): 1})
                topics.append(Topic(str(number), {"original": view}, frozenset([str(unwanted)])))
            case _:
                raise InputError(
                    f"{where}: expected a text `ExcluQ` and `index`, two places in corpus.json, found {item!r:.80}"
                )
    passages = {str(place): Passage(str(place), text=str(text)) for place, text in enumerate(texts)}
    return Collection(settings.name, passages, tuple(topics))


def read_mair(settings: Mair) -> list[Collection]:
    """A collection a part of the task: TASK/PART_queries.jsonl and TASK/PART_docs.jsonl. [2410.10127]"""
    folders = [
        local_data(path, name) / settings.task
        for path, name in (
            (settings.queries, "MAIR-Bench/MAIR-Queries"),
            (settings.docs, "MAIR-Bench/MAIR-Docs"),
        )
    ]
    parts = sorted(file for file in folders[0].glob("*queries.*"))
    if not parts:
        raise InputError(
            f"{folders[0]}: has no file *queries.jsonl; expected the task {settings.task} of MAIR"
        )
    collections = []
    for file in parts:
        docs_file = folders[1] / file.name.replace("queries.", "docs.")
        passages = {
            id: Passage(id, text=row.text("doc"))
            for id, row in _by_id(rows_of_mirrored(docs_file), "id").items()
        }
        prefix = "" if len(parts) == 1 else f"{file.name.partition('_queries')[0]}/"
        topics = []
        for id, row in _by_id(rows_of_mirrored(file), "qid").items():
            try:
                grades = {str(label["id"]): int(label["score"]) for label in row.columns["labels"]}
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{row.where}: `labels` must be a list of objects with an id and a score"
                ) from None
            view = View(prefix + id, row.text("query"), row.text("instruction"), grades)
            topics.append(
                Topic(prefix + id, {"original": view}, labels={"part": prefix[:-1]} if prefix else {})
            )
        collections.append(Collection(settings.name, passages, tuple(topics)))
    return collections


_HUB_READERS: Mapping[str, Callable[[HubBenchmark], Collection]] = {
    "infosearch": _read_infosearch,
    "instructir": _read_grouped("mteb/InstructIR-mteb"),
    "nevir": _read_grouped("orionweller/NevIR-mteb"),
    "excluir": _read_excluir,
}
