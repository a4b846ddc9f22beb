"""Benchmarks from the Hugging Face hub, in mteb's format or their authors'."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dualview.beir import Row, by_id, whole_grade
from dualview.config.evaluate import FollowIR, HubBenchmark, Mair
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.evaluation.benchmarks.mirrors import Mirror, rows_of_json, rows_of_mirrored
from dualview.models import local_data
from dualview.records import Passage


def _hub_id(row: Row, key: str) -> str:
    """Parquet may hold ids as numbers; like mteb, read them as texts."""
    value = row.columns.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else row.id(key)


def _by_id(rows: Iterable[Row], key: str = "_id") -> dict[str, Row]:
    return by_id(rows, key, _hub_id)


class _MtebData:
    """The tables of a retrieval task in mteb's format."""

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

    def view(self, id: str) -> QueryView:
        if self.candidates is not None and id not in self.candidates:
            raise InputError(f"the query {id!r} has no candidates in top_ranked")
        return QueryView(
            id,
            self.queries[id],
            self.instructions.get(id, ""),
            self.qrels[id],
            None if self.candidates is None else self.candidates[id],
        )

    def pairs(self, separator: str) -> dict[str, list[str]]:
        """Prefix before the separator -> ids of the judged queries with this prefix."""
        keys: dict[str, list[str]] = defaultdict(list)
        for id in self.queries:
            if id in self.qrels:
                keys[id.rpartition(separator)[0] if separator == "-" else id.split(separator)[0]].append(id)
        return keys


def _with_id(rows: Iterable[Row]) -> list[Row]:
    """Like mteb, accept `id` for `_id`."""
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
    """Keeps judged passages that are not in the corpus; mteb counts them as missed."""
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        query_id, score = _hub_id(row, "query-id"), row.columns.get("score")
        if query_id not in queries:
            raise InputError(f"{row.where}: the query {query_id!r} is not among the queries")
        if (grade := whole_grade(score)) is None:
            raise InputError(f"{row.where}: `score` must be a whole number, found {score!r}")
        qrels[query_id][_hub_id(row, "corpus-id")] = grade
    return qrels


def read_followir(settings: FollowIR) -> Collection:
    """Every query twice, as ID-og and ID-changed, over exactly its listed candidates. [2403.15246]"""
    data = _MtebData(settings.path, "mteb/Core17InstructionRetrieval", settings.subset)
    cases = []
    if not data.dropped:
        raise InputError(
            f"benchmark {settings.name}: has no qrel_diff; expected the passages whose relevance changed"
        )
    for key, ids in data.pairs("-").items():
        if sorted(ids) != [f"{key}-changed", f"{key}-og"]:
            raise InputError(
                f"benchmark {settings.name}: expected the judged queries {key}-og and {key}-changed,"
                f" found {', '.join(ids)}"
            )
        views = {"original": data.view(f"{key}-og"), "changed": data.view(f"{key}-changed")}
        cases.append(Case(key, views, frozenset(data.dropped.get(key, ()))))
    return Collection(settings.name, data.passages, tuple(cases))


def _read_instructir(settings: HubBenchmark) -> Collection:
    """Every query with ten instructions, as KEY_N. [2402.14334]"""
    data = _MtebData(settings.path, "mteb/InstructIR-mteb")
    cases = (Case(key, {id: data.view(id) for id in ids}) for key, ids in data.pairs("_").items())
    return Collection(settings.name, data.passages, tuple(cases))


def _read_nevir(settings: HubBenchmark) -> Collection:
    """Two queries for two passages that differ by a negation, as KEY_q1 and KEY_q2. [2305.07614]

    Most passages of CondaQA were edited twice and occur in two pairs under different ids: 3,838 of mteb's 5,112
    texts are distinct. Such pairs belong to one topic.
    """
    data = _MtebData(settings.path, "orionweller/NevIR-mteb")
    cases = []
    for key, ids in data.pairs("_").items():
        views = {id: data.view(id) for id in ids}
        judged = {passage for view in views.values() for passage in view.grades} & data.passages.keys()
        texts = frozenset(data.passages[passage].full_text for passage in judged)
        cases.append(Case(key, views, about=texts))
    return Collection(settings.name, data.passages, tuple(cases))


def _read_infosearch(settings: HubBenchmark) -> Collection:
    """Every query in three modes over the whole corpus. [2410.23841]

    A query has one row per condition (sentence, paragraph, article); these rows belong to one topic. `dropped` are
    the passages that are relevant to the original but not to the instructed query.
    """
    mirror = Mirror(settings.path, "jianqunZ/Length-v1")
    queries = _by_id(_with_id(mirror.rows("queries")))
    modes = {"original": "og", "instructed": "changed", "reversed": "reversed"}
    qrels = {mode: _hub_qrels(mirror.rows(f"qrels_{name}"), queries) for mode, name in modes.items()}
    cases = []
    for id, row in queries.items():
        if id in qrels["original"]:
            before, after = qrels["original"][id], qrels["instructed"].get(id, {})
            views = {
                mode: QueryView(
                    f"{id}-{mode}", row.text("text"), row.text(f"instruction_{name}"), qrels[mode].get(id, {})
                )
                for mode, name in modes.items()
            }
            dropped = {passage for passage in before if before[passage] > 0 and after.get(passage, 0) <= 0}
            cases.append(Case(id, views, frozenset(dropped)))
    passages = {id: _passage(id, row) for id, row in _by_id(_with_id(mirror.rows("corpus"))).items()}
    return Collection(settings.name, passages, tuple(cases))


def _read_excluir(settings: HubBenchmark) -> Collection:
    """Queries that exclude something, from corpus.json and test_manual_final.json. [2404.17288]

    A query gives its two passages as indices into the corpus, first the unwanted one, which is `dropped`.
    """
    folder = local_data(settings.path, "zwh-sdu/ExcluIR")
    texts, file = rows_of_json(folder / "corpus.json"), folder / "test_manual_final.json"
    cases = []
    for number, item in enumerate(rows_of_json(file)):
        where = f"{file} item {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: expected an object, found {item!r:.60}")
        # The authors' README and script use different names for the two keys.
        query, places = (
            item.get(in_readme, item.get(in_script))
            for in_readme, in_script in (("ExcluQ", "RQ_rewrite"), ("index", "corpus_sub_index"))
        )
        match places:
            case [int(unwanted), int(wanted)] if isinstance(query, str) and max(places) < len(texts):
                view = QueryView(str(number), query, "", {str(wanted): 1})
                cases.append(Case(str(number), {"original": view}, frozenset([str(unwanted)])))
            case _:
                raise InputError(
                    f"{where}: expected a text `ExcluQ` and `index`, two indices into corpus.json, found {item!r:.80}"
                )
    passages = {str(place): Passage(str(place), text=str(text)) for place, text in enumerate(texts)}
    return Collection(settings.name, passages, tuple(cases))


def read_mair(settings: Mair) -> list[Collection]:
    """One collection per part of the task: TASK/PART_queries.jsonl and TASK/PART_docs.jsonl. [2410.10127]

    A query with several instructions has several rows, in one or more parts; they belong to one topic.
    """
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
        cases = []
        for id, row in _by_id(rows_of_mirrored(file), "qid").items():
            try:
                grades = {str(label["id"]): int(label["score"]) for label in row.columns["labels"]}
            except (KeyError, TypeError, ValueError, OverflowError):  # the last two: NaN and infinity
                raise InputError(
                    f"{row.where}: `labels` must be a list of objects with an id and a score"
                ) from None
            view = QueryView(prefix + id, row.text("query"), row.text("instruction"), grades)
            cases.append(
                Case(prefix + id, {"original": view}, labels={"part": prefix[:-1]} if prefix else {})
            )
        collections.append(Collection(settings.name, passages, tuple(cases)))
    return collections


HUB_READERS: Mapping[str, Callable[[HubBenchmark], Collection]] = {
    "infosearch": _read_infosearch,
    "instructir": _read_instructir,
    "nevir": _read_nevir,
    "excluir": _read_excluir,
}
