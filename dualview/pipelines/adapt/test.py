"""The last stage: the encoder of instructions beside its rivals, on queries and wordings that training never had."""

# C = cases, V = values, E = embedding size

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from dualview.catalog import rivals
from dualview.catalog.instructions import VIEWS
from dualview.catalog.page import OURS
from dualview.catalog.scoring import METRICS, score
from dualview.catalog.wordings import Split
from dualview.config.adapt import AdaptConfig
from dualview.config.base import plain_json
from dualview.evaluation.significance import bootstrap_interval, paired_difference
from dualview.pipelines.adapt.state import SCORES_KEY, AdaptRun, Drawn, best_strength, curve_of, device
from dualview.retrieval.encoder import load_encoder
from dualview.training.instruction_encoder import encode_instructions


def test(run: AdaptRun) -> Iterator[str]:
    """Puts scores.json: every row's metrics on the test cases, each at the strength that the development cases choose."""
    config, drawn, catalog = run.config, run.drawn, run.catalog
    encoder = load_encoder(f"{run.store.url}/encoder", trust_remote_code=config.encoder.trust_remote_code).to(
        device()
    )
    phrases_VE = rivals.phrase_vectors(run.values, run.encode_queries)
    rows = {split: _rows(run, split, phrases_VE, encoder) for split in _EVALUATED}
    report: dict[str, Any] = {"rows": {}, "num_cases": len(drawn.cases["test"])}
    per_case: dict[str, Metrics] = {}
    for name in rows["test"]["original"]:
        of_name = {split: {view: rows[split][view][name] for view in VIEWS} for split in _EVALUATED}
        curves = {
            split: curve_of(catalog, drawn.cases[split], of_name[split], config.strengths)
            for split in _EVALUATED
        }
        strength = 0.0 if name in _WITHOUT_STRENGTH else best_strength(curves["development"])
        vectors = {view: row.at(strength) for view, row in of_name["test"].items()}
        per_case[name] = score(catalog, drawn.cases["test"], vectors)
        report["rows"][name] = {"strength": strength, "curve": curves["test"]}
    added_alone = {view: rows["test"][view]["probe"].added_CE for view in VIEWS}
    per_case["ceiling"] = score(catalog, drawn.cases["test"], added_alone)
    queries = {view: rows["test"][view]["query alone"].base_CE for view in VIEWS}
    per_case["filter"] = score(catalog, drawn.cases["test"], queries, filtered=True)
    for name in ("ceiling", "filter"):
        report["rows"][name] = {"strength": None, "curve": {}}
    for name, metrics in per_case.items():
        report["rows"][name]["metrics"] = _intervals(config, drawn, metrics)
    report["differences"] = _differences(config, drawn, per_case)
    run.store.put_new(SCORES_KEY, plain_json(report, indent=1).encode(), attempt=uuid4().hex)
    yield f"tested on {len(drawn.cases['test'])} pairs of instructions"


Metrics = Mapping[str, NDArray[np.float64]]  # metric -> its value for each case
_EVALUATED: tuple[Split, ...] = ("development", "test")
_WITHOUT_STRENGTH = ("query alone", "untouched")


def _rows(
    run: AdaptRun, split: Split, phrases_VE: NDArray[np.float32], encoder: SentenceTransformer
) -> dict[str, dict[str, rivals.QueryVectors]]:
    """View -> name -> row."""
    cases, directions_VE = run.drawn.cases[split], np.nan_to_num(run.directions_VE)
    found = {}
    for view in VIEWS:
        rows = rivals.rows_of(
            view, cases, run.drawn.queries, run.values, phrases_VE, directions_VE, run.encode_queries
        )
        added_CE = encode_instructions(encoder, [case.instructions[view] for case in cases])
        found[view] = {**rows, OURS: rivals.QueryVectors(rows["query alone"].base_CE, added_CE)}
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


def _intervals(config: AdaptConfig, drawn: Drawn, metrics: Metrics) -> dict[str, dict[str, Any]]:
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
    config: AdaptConfig, drawn: Drawn, per_case: Mapping[str, Metrics]
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
