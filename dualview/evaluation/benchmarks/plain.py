"""Plain retrieval: BEIR folders and TREC files."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
import re

from dualview.beir import Row, by_id, check_qrels, fields_of, read_lines, read_qrels, read_rows
from dualview.config.evaluate import Beir, Trec
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Case, Collection, Grades, QueryView
from dualview.models import open_data
from dualview.records import Passage
from dualview.storage import holds


def read_beir(settings: Beir) -> Collection:
    """The folder's corpus, and the queries that its qrels judge (queries.jsonl may also hold other splits).

    Raises InputError if a file is missing or a row is malformed.
    """
    folder = open_data(settings.path)
    passages = read_corpus(f"{folder.url}/corpus.jsonl")
    texts = {id: row.text("text") for id, row in rows_by_id(f"{folder.url}/queries.jsonl").items()}
    is_plain = holds(folder, "qrels.tsv") or not holds(folder, "qrels/test.tsv")
    qrels_url = f"{folder.url}/qrels.tsv" if is_plain else f"{folder.url}/qrels/test.tsv"
    qrels = read_qrels(qrels_url)
    check_qrels(qrels_url, texts, passages)
    return _plain(settings.name, passages, texts, qrels, qrels_url)


def read_trec(settings: Trec) -> Collection:
    """The corpus and the judged topics. Raises InputError if a file is missing or a line is malformed."""
    passages = read_corpus(settings.corpus)
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
    cases = (
        Case(id, {"original": QueryView(id, text, "", qrels[id])})
        for id, text in texts.items()
        if id in qrels
    )
    return Collection(name, passages, tuple(cases))


def _trec_topics(url: str) -> dict[str, str]:
    """id -> title, from `<top>` elements or from lines of id and title separated by a tab."""
    text = "\n".join(line for _, line in read_lines(url))
    if "<top>" in text:
        found = re.findall(r"<num>\s*(?:Number:)?\s*(\S+).*?<title>\s*(?:Topic:)?\s*([^<]+)", text, re.DOTALL)
        topics = {id: " ".join(title.split()) for id, title in found}
        if len(topics) == text.count("<top>"):
            return topics
        raise InputError(
            f"{url}: {len(topics)} of {text.count('<top>')} topics have a unique <num> and a <title>; expected all"
        )
    return {id: title for _, (id, title) in _fields(url, 2, "301<tab>international organized crime", "\t")}


def _fields(
    url: str, num: int, example: str, separator: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Location and fields of each line that is not blank."""
    for where, line in read_lines(url):
        fields = line.split(separator) if separator else fields_of(line)
        if fields and len(fields) != num:
            raise InputError(f"{where}: has {len(fields)} fields, not {num}, for example: {example}")
        if fields:
            yield where, fields


def read_corpus(url: str) -> dict[str, Passage]:
    """corpus.jsonl: id -> passage."""
    return {id: row.passage() for id, row in rows_by_id(url).items()}


def rows_by_id(url: str) -> dict[str, Row]:
    return by_id(read_rows(url))
