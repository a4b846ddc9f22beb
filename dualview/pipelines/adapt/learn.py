"""What runs on one worker: the probe, the cases, training and the test. Files under the output:

vocabulary.yaml   what instructions may ask for, and how it is said; may be edited until cases.json exists
probe.json        how well the vectors know each value
cases.json        queries, and pairs of instructions on them, for training, development and test
encoder/          the encoder, with a side for documents, for queries and for instructions
result.json       training: steps, losses, development scores; the default strength
scores.json       the test: each row's metrics, with intervals, at each strength
"""

# D = documents, V = values, E = embedding size, C = cases, K = documents on topic

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import json
from pathlib import Path
import random
import tempfile
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
import ray
import torch

from dualview.beir import read_rows
from dualview.catalog import rivals
from dualview.catalog.attributes import Attribute
from dualview.catalog.instructions import (
    VIEWS,
    Case,
    Requirement,
    draw_cases,
    draw_requirements,
    from_json,
    to_json,
    word,
)
from dualview.catalog.page import OURS, card
from dualview.catalog.probe import Probed, directions, probe, usable
from dualview.catalog.queries import candidate_phrases, choose
from dualview.catalog.scoring import METRICS, Catalog, score
from dualview.catalog.terms import terms_of
from dualview.catalog.vocabulary import Value, draft, parse, to_yaml, values_of
from dualview.catalog.wordings import Split
from dualview.config.adapt import AdaptConfig
from dualview.config.base import fingerprint, plain_json
from dualview.errors import InputError
from dualview.evaluation.significance import bootstrap_interval, paired_difference
from dualview.pipelines.adapt.documents import Documents, read_documents, spec_of
from dualview.retrieval.encoder import encode, encoder_of, load_encoder
from dualview.runs.publishing import LAST_KEY, offer, publish
from dualview.storage import Store, open_store
from dualview.training.instruction_encoder import (
    Batch,
    encode_instructions,
    export,
    instruction_encoder,
    metric_of,
    train,
)

VOCABULARY_KEY, PROBE_KEY, CASES_KEY, SCORES_KEY = (
    "vocabulary.yaml",
    "probe.json",
    "cases.json",
    "scores.json",
)
_TOPIC_SHARE = 50  # at most one document in so many is on a query's topic


@dataclass(frozen=True)
class Work:
    """A worker's view of a run."""

    config: AdaptConfig
    store: Store

    @cached_property
    def documents(self) -> Documents:
        return read_documents(self.config, self.store)

    @cached_property
    def attributes(self) -> list[Attribute]:
        return self.documents.attributes[0]

    @cached_property
    def vocabulary_text(self) -> str:
        return self.store.get(VOCABULARY_KEY).decode()

    @cached_property
    def values(self) -> list[Value]:
        where = f"{self.store.url}/{VOCABULARY_KEY}"
        return values_of(parse(self.vocabulary_text, where, self.attributes), self.attributes)

    @cached_property
    def labels_DV(self) -> NDArray[np.int8]:
        known = {attribute.name: attribute for attribute in self.attributes}
        return np.stack([known[value.attribute].labels(value.value) for value in self.values], axis=1)

    @cached_property
    def probes(self) -> list[Probed]:
        rows = json.loads(self.store.get(PROBE_KEY))["values"]
        figures = (tuple(_nan_for_none(row[key]) for key in ("auc", "low", "high")) for row in rows)
        return [
            Probed(row["num_having"], row["num_lacking"], auc, low, high)
            for row, (auc, low, high) in zip(rows, figures, strict=True)
        ]

    @cached_property
    def usable(self) -> list[int]:
        numbers: list[int] = np.flatnonzero(usable(self.probes, self.config.draft.min_auc)).tolist()
        return numbers

    @cached_property
    def encoder(self) -> Any:
        trust = self.config.encoder.trust_remote_code
        spec = spec_of(self.config, "query")
        return encoder_of(self.config.encoder.model, spec.pooling, trust_remote_code=trust).to(device())

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return encode(self.encoder, spec_of(self.config, "query"), list(texts)).vectors_NE


def _nan_for_none(value: float | None) -> float:
    return np.nan if value is None else value


def device() -> str:
    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"


# --- probe ----------------------------------------------------------------------------------------


def find_out(work: Work) -> Iterator[str]:
    """Puts vocabulary.yaml, unless there is one, and probe.json."""
    config, draft_settings = work.config, work.config.draft
    if not work.store.list(VOCABULARY_KEY):
        if config.vocabulary is None:
            drafted = draft(
                config.noun, work.attributes, draft_settings.min_documents, draft_settings.max_values
            )
            text = to_yaml(drafted)
        else:
            text = _read_text(config.vocabulary)
            parse(text, config.vocabulary, work.attributes)
        work.store.put_new(VOCABULARY_KEY, text.encode(), attempt=uuid4().hex)
    probes = probe(work.documents.vectors_DE, work.labels_DV, config.seed)
    known = usable(probes, draft_settings.min_auc)
    report = {
        "num_documents": len(work.documents.passages),
        "unusable": {found.name: found.reason for found in work.documents.attributes[1]},
        "odd": {attribute.name: attribute.num_odd for attribute in work.attributes if attribute.num_odd},
        "known": {attribute.name: attribute.num_known for attribute in work.attributes},
        "vocabulary": fingerprint(work.vocabulary_text),
        "values": [
            {"attribute": value.attribute, "value": value.value, **found._asdict()}
            for value, found in zip(work.values, probes, strict=True)
        ],
    }
    if not known.any():
        best = max(probes, key=lambda found: (found.auc >= 0, found.auc))
        value = work.values[probes.index(best)]
        raise InputError(
            f"{config.corpus}: the vectors know no value of the metadata well enough; the best is {value.attribute} ="
            f" {value.value} with an AUC of {best.auc:.2f}, and draft.min_auc is {draft_settings.min_auc}. Instructions"
            " can work only on what the documents' texts say"
        )
    work.store.put_new(PROBE_KEY, plain_json(report, indent=1).encode(), attempt=uuid4().hex)
    yield f"the vectors know {known.sum()} of {len(known)} values well enough for instructions"


def _read_text(url: str) -> str:
    folder, slash, name = url.rpartition("/")
    try:
        return open_store(folder + slash or ".").get(name).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{url}: cannot be read ({type(error).__name__}); expected a vocabulary.yaml"
        ) from None


# --- cases ----------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The queries and cases of a run."""

    queries: list[str]
    splits: dict[Split, list[int]]  # numbers of queries
    unseen: frozenset[int]  # values that training does not name
    cases: dict[Split, list[Case]]
    on_topic: dict[int, NDArray[np.int64]]


def draw(work: Work) -> Iterator[str]:
    """Puts cases.json: queries, and pairs of instructions on them for development and test."""
    config, settings = work.config, work.config.draft
    if config.queries is None:
        given = False
        names = [text for value in work.values for text in (value.attribute, value.value)]
        found = candidate_phrases(work.documents.texts, names)
        if not found:
            raise InputError(
                f"{config.corpus}: no phrase occurs in several documents, so no query can be drafted; expected `queries`, a"
                ' file of your own, for example {"text": "prison escape"}'
            )
        chosen = choose(work.encode_queries(found), work.documents.vectors_DE, settings.num_queries)
        queries = [found[place] for place in chosen]
    else:
        given = True
        queries = list(dict.fromkeys(row.text("text") for row in read_rows(config.queries)))
    shuffled = random.Random(config.seed).sample(range(len(queries)), len(queries))
    on_topic = _on_topic(work, queries)
    num_test = _num_for_test([on_topic[number] for number in shuffled], len(work.documents.passages))
    splits: dict[Split, list[int]] = {"test": shuffled[:num_test], "development": shuffled[num_test:]}
    unseen = _unseen(work)
    cases: dict[Split, list[Case]] = {}
    for split, numbers in splits.items():
        cases[split] = draw_cases(
            work.values,
            work.usable if split == "test" else [value for value in work.usable if value not in unseen],
            unseen,
            work.labels_DV,
            {number: on_topic[number] for number in numbers},
            settings.cases_per_query,
            split,
            config.seed,
        )
        if len(cases[split]) < _MIN_CASES:
            raise InputError(
                f"{config.corpus}: only {len(cases[split])} pairs of instructions can be made for {split}, of {len(numbers)}"
                f" queries; expected {_MIN_CASES}: give more `queries`, or values that more documents"
                " have (draft.min_documents)"
            )
    content = {
        "vocabulary": fingerprint(work.vocabulary_text),
        "queries": queries,
        "splits": splits,
        "unseen": sorted(unseen),
        "cases": {split: [to_json(case) for case in of_split] for split, of_split in cases.items()},
        "on_topic": {number: documents.tolist() for number, documents in on_topic.items()},
    }
    work.store.put_new(CASES_KEY, json.dumps(content, indent=1).encode(), attempt=uuid4().hex)
    yield (
        f"{len(queries)} {'given' if given else 'drafted'} queries, for example {queries[0]!r};"
        f" {len(cases['development'])} pairs of instructions for development and {len(cases['test'])} for the test"
    )


_MIN_CASES = 20
_TEST_SHARE_OF_QUERIES = 0.6
_TEST_SHARE_OF_DOCUMENTS = 0.25


def _num_for_test(on_topic: Sequence[NDArray[np.int64]], num_documents: int) -> int:
    """How many of the first queries are for the test: their documents are not trained on, so not too many."""
    held: set[int] = set()
    for number, documents in enumerate(on_topic):
        held.update(documents.tolist())
        if number >= _TEST_SHARE_OF_QUERIES * len(on_topic) or (
            len(held) > _TEST_SHARE_OF_DOCUMENTS * num_documents
        ):
            return number
    return len(on_topic)


def _on_topic(work: Work, queries: Sequence[str]) -> dict[int, NDArray[np.int64]]:
    """The documents that the untouched encoder ranks first for each query."""
    num_documents = len(work.documents.passages)
    num = max(10, min(work.config.draft.documents_on_topic, num_documents // _TOPIC_SHARE))
    queries_QE = work.encode_queries(queries)
    return {
        number: np.argsort(-(work.documents.vectors_DE @ query_E), kind="stable")[:num]
        for number, query_E in enumerate(queries_QE)
    }


def _unseen(work: Work) -> frozenset[int]:
    """A share of the values of categories, which training does not name."""
    of_categories = [number for number in work.usable if work.values[number].kind in ("category", "several")]
    num = int(work.config.draft.unseen_share * len(of_categories))
    return frozenset(random.Random(work.config.seed).sample(of_categories, num))


def read_drawn(work: Work) -> Drawn:
    """Raises InputError if vocabulary.yaml has changed since."""
    content = json.loads(work.store.get(CASES_KEY))
    if content["vocabulary"] != fingerprint(work.vocabulary_text):
        raise InputError(
            f"{work.store.url}/{VOCABULARY_KEY}: was changed after {CASES_KEY} was made from it; give it as `vocabulary` of a"
            " run with another output"
        )
    return Drawn(
        content["queries"],
        content["splits"],
        frozenset(content["unseen"]),
        {split: [from_json(row) for row in rows] for split, rows in content["cases"].items()},
        {int(number): np.array(documents) for number, documents in content["on_topic"].items()},
    )


# --- training -------------------------------------------------------------------------------------


def learn(work: Work) -> Iterator[str]:
    """Trains the instruction encoder and publishes it with result.json."""
    if publish(work.store):
        return
    config, settings = work.config, work.config.training
    drawn = read_drawn(work)
    used_D = _not_in_test(work, drawn)
    named = [number for number in work.usable if number not in drawn.unseen]
    directions_VE = directions(work.documents.vectors_DE, work.labels_DV, used_D)
    terms, terms_TE = terms_of(
        [text for text, is_used in zip(work.documents.texts, used_D, strict=True) if is_used],
        work.documents.vectors_DE[used_D],
        config.noun,
        [work.values[number].value for number in sorted(drawn.unseen)],
        settings.num_terms,
    )
    all_values = [*work.values, *terms]
    all_directions = np.concatenate([directions_VE, terms_TE])
    encoder = instruction_encoder(
        config.encoder.model,
        pooling=config.encoder.pooling,
        trust_remote_code=config.encoder.trust_remote_code,
    ).to(device())
    development = _Development(work, drawn)
    losses: list[float] = []
    evaluations: list[dict[str, Any]] = []
    best: dict[str, torch.Tensor] = {}
    for loss in train(
        encoder,
        _batches(config, all_values, named, len(work.values), all_directions),
        metric_of(work.documents.vectors_DE[used_D]),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    ):
        losses.append(loss)
        step = len(losses)
        if step % settings.evaluate_every_steps and step != settings.steps:
            continue
        curve = development.curve(encoder)
        strength = best_strength(curve)
        found = {"step": step, "strength": strength, "curve": curve}
        if all(_worth(found) > _worth(earlier) for earlier in evaluations):
            best = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        evaluations.append(found)
        yield (
            f"step {step} of {settings.steps}: loss {loss:.2f}; on development p-MRR"
            f" {100 * curve[strength]['p-MRR']:.1f}, nDCG@10 {100 * curve[strength]['nDCG@10']:.1f} at strength"
            f" {strength:g}"
        )
    encoder.load_state_dict(best)
    chosen = max(evaluations, key=_worth)
    result = {
        "steps": settings.steps,
        "kept_step": chosen["step"],
        "strength": chosen["strength"],
        "evaluations": evaluations,
        "losses": losses,
        "num_values": len(named),
        "num_terms": len(terms),
    }
    with tempfile.TemporaryDirectory() as folder:
        export(encoder, work.encoder, Path(folder) / "encoder", card(config, result))
        (Path(folder) / LAST_KEY).write_text(plain_json(result))
        offer(work.store, uuid4().hex, Path(folder))
    publish(work.store)


def _not_in_test(work: Work, drawn: Drawn) -> NDArray[np.bool_]:
    """The documents that are on no test query's topic: training and the probe's rows learn from these alone."""
    used_D = np.ones(len(work.documents.passages), bool)
    for number in drawn.splits["test"]:
        used_D[drawn.on_topic[number]] = False
    return used_D


def _batches(
    config: AdaptConfig,
    values: Sequence[Value],
    named: Sequence[int],
    num_values: int,
    directions_VE: NDArray[np.floating],
) -> Iterator[Batch]:
    """Instructions on the named values, some of them with a term in a value's place, and the directions they ask for."""
    settings, rng = config.training, random.Random(config.seed)
    known = [number for number in named if np.isfinite(directions_VE[number]).all()]
    terms = range(num_values, len(values))
    while True:
        drawn = []
        for _ in range(settings.batch):
            needs = draw_requirements(values, known, settings.compound_share, rng)
            drawn.append(
                tuple(
                    Requirement(needed.include, rng.choice(terms))
                    if terms and rng.random() < settings.term_share
                    else needed
                    for needed in needs
                )
            )
        yield Batch(
            [word(values, needs, "train", rng) for needs in drawn], rivals.signed_sums(drawn, directions_VE)
        )


class _Development:
    """The development cases, for choosing the step and the strength."""

    def __init__(self, work: Work, drawn: Drawn) -> None:
        self.work, self.cases = work, drawn.cases["development"]
        self.catalog = Catalog(work.documents.vectors_DE, work.labels_DV, drawn.on_topic)
        self.queries_CE = work.encode_queries([drawn.queries[case.query] for case in self.cases])

    def curve(self, encoder: Any) -> dict[float, dict[str, float]]:
        """The mean of each metric at each strength."""
        added = {
            view: encode_instructions(encoder, [case.instructions[view] for case in self.cases])
            for view in VIEWS
        }
        rows = {view: rivals.Row(self.queries_CE, added[view]) for view in VIEWS}
        return curve_of(self.catalog, self.cases, rows, self.work.config.strengths)


def curve_of(
    catalog: Catalog,
    cases: Sequence[Case],
    rows: Mapping[str, rivals.Row],
    strengths: Sequence[float],
) -> dict[float, dict[str, float]]:
    return {
        strength: {
            metric: float(values.mean())
            for metric, values in score(
                catalog, cases, {view: row.at(strength) for view, row in rows.items()}
            ).items()
        }
        for strength in strengths
    }


_KEPT_NDCG = 0.95


def best_strength(curve: Mapping[float, Mapping[str, float]]) -> float:
    """The largest strength that keeps 95% of the best nDCG@10: beyond it, obedience costs the topic too much."""
    best = max(scores["nDCG@10"] for scores in curve.values())
    return max(strength for strength, scores in curve.items() if scores["nDCG@10"] >= _KEPT_NDCG * best)


def _worth(evaluation: Mapping[str, Any]) -> float:
    scores = evaluation["curve"][evaluation["strength"]]
    return float(scores["p-MRR"] + scores["nDCG@10"])


# --- test -----------------------------------------------------------------------------------------


def test(work: Work) -> Iterator[str]:
    """Puts scores.json: every row's metrics on the test cases, each at the strength that the development cases choose."""
    config, drawn = work.config, read_drawn(work)
    catalog = Catalog(work.documents.vectors_DE, work.labels_DV, drawn.on_topic)
    used_D = _not_in_test(work, drawn)
    directions_VE = np.nan_to_num(directions(work.documents.vectors_DE, work.labels_DV, used_D))
    phrases_VE = rivals.phrase_vectors(work.values, work.encode_queries)
    encoder = load_encoder(
        f"{work.store.url}/encoder", trust_remote_code=config.encoder.trust_remote_code
    ).to(device())
    rows = {split: _rows(work, drawn, split, phrases_VE, directions_VE, encoder) for split in _EVALUATED}
    report: dict[str, Any] = {"rows": {}, "num_cases": len(drawn.cases["test"])}
    per_case: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in rows["test"]["original"]:
        curves = {
            split: curve_of(
                catalog,
                drawn.cases[split],
                {view: rows[split][view][name] for view in VIEWS},
                config.strengths,
            )
            for split in _EVALUATED
        }
        strength = 0.0 if name in _WITHOUT_STRENGTH else best_strength(curves["development"])
        vectors = {view: rows["test"][view][name].at(strength) for view in VIEWS}
        per_case[name] = score(catalog, drawn.cases["test"], vectors)
        report["rows"][name] = {"strength": strength, "curve": curves["test"]}
    added_only = {view: rows["test"][view]["probe"].added_CE for view in VIEWS}
    per_case["ceiling"] = score(catalog, drawn.cases["test"], added_only)
    report["rows"]["ceiling"] = {"strength": None, "curve": {}}
    for name, metrics in per_case.items():
        report["rows"][name]["metrics"] = _intervals(config, drawn, metrics)
    report["differences"] = _differences(config, drawn, per_case)
    work.store.put_new(SCORES_KEY, plain_json(report, indent=1).encode(), attempt=uuid4().hex)
    yield f"tested on {len(drawn.cases['test'])} pairs of instructions"


_EVALUATED: tuple[Split, ...] = ("development", "test")
_WITHOUT_STRENGTH = ("query alone", "untouched")


def _rows(
    work: Work,
    drawn: Drawn,
    split: Split,
    phrases_VE: NDArray[np.float32],
    directions_VE: NDArray[np.floating],
    encoder: Any,
) -> dict[str, dict[str, rivals.Row]]:
    cases = drawn.cases[split]
    found = {}
    for view in VIEWS:
        rows = rivals.rows_of(
            view, cases, drawn.queries, work.values, phrases_VE, directions_VE, work.encode_queries
        )
        added = encode_instructions(encoder, [case.instructions[view] for case in cases])
        found[view] = {**rows, OURS: rivals.Row(rows["query alone"].base_CE, added)}
    return found


def _groups(drawn: Drawn) -> dict[str, NDArray[np.bool_]]:
    """The cases behind each figure: all, and those with a label."""
    cases = drawn.cases["test"]
    groups = {"": np.ones(len(cases), bool)}
    for label in ("polarity", "kind", "range", "value"):
        for name in sorted({case.labels[label] for case in cases}):
            groups[f"{label}={name}"] = np.array([case.labels[label] == name for case in cases])
    return groups


def _keyed(
    drawn: Drawn, values_C: NDArray[np.float64], is_in_C: NDArray[np.bool_]
) -> dict[tuple[str, str], float]:
    return {
        (str(case.query), str(number)): float(value)
        for number, (case, value, is_in) in enumerate(
            zip(drawn.cases["test"], values_C, is_in_C, strict=True)
        )
        if is_in
    }


def _intervals(
    config: AdaptConfig, drawn: Drawn, metrics: Mapping[str, NDArray[np.float64]]
) -> dict[str, dict[str, Any]]:
    """Means with intervals over queries; p-MRR and the pairs also for each group of cases."""
    found: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        for group, is_in_C in _groups(drawn).items():
            if group and metric not in ("p-MRR", "pair accuracy", "both right"):
                continue
            values = _keyed(drawn, metrics[metric], is_in_C)
            interval = bootstrap_interval(values, config.bootstrap_samples, config.seed)
            found[f"{metric} {group}".strip()] = {**interval._asdict(), "num_cases": len(values)}
    return found


def _differences(
    config: AdaptConfig, drawn: Drawn, per_case: Mapping[str, Mapping[str, NDArray[np.float64]]]
) -> dict[str, dict[str, Any]]:
    """The instruction encoder minus each other row, paired."""
    return {
        name: {
            metric: paired_difference(
                _keyed(drawn, per_case[OURS][metric], everything),
                _keyed(drawn, metrics[metric], everything),
                config.bootstrap_samples,
                config.seed,
            )._asdict()
            for metric in METRICS
        }
        for name, metrics in per_case.items()
        if name != OURS
        for everything in [_groups(drawn)[""]]
    }
