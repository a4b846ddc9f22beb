"""From a plain retrieval collection to dual views: mined, given instructions, judged."""

import json
from pathlib import Path
import random

from demo_data import demo_examples
import factbook
from generate_runs import LLM, config_of, rows_of
import pytest

from dualview.errors import InputError
from dualview.pipelines.generate.dry_run import dry_run
from dualview.pipelines.generate.run import generate
from dualview.records import ACCEPTED
from dualview.storage import open_store

NUM_QUERIES = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sections of the Factbook, and a query for each of some of them."""
    by_topic = factbook.passages("development").values()
    passages = [passage for by_country in by_topic for passage in by_country.values()]
    judged = random.Random(0).sample(passages, NUM_QUERIES)
    queries = [" ".join(passage.text.split()[-6:]) for passage in judged]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": passage.id, "text": passage.text}) + "\n" for passage in passages)
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{number}", "text": text}) + "\n" for number, text in enumerate(queries))
    )
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"q{number}\t{passage.id}\t1\n" for number, passage in enumerate(judged))
    )
    return tmp_path


@pytest.mark.usefixtures("cluster")
def test_a_plain_collection_becomes_dual_views(folder: Path, s3: str) -> None:
    source = {
        "kind": "beir",
        "path": str(folder),
        "qrels": "qrels.tsv",
        "min_grade": 1,
        "max_positives": 1,
        "mining": {
            "bm25": {"k1": 0.9, "b": 0.4, "stopwords": "english"},
            "dense": None,
            "first_rank": 1,
            "last_rank": 30,
            "relative_margin": 0.0,
            "num_negatives": 6,
            "passages_per_shard": 128,
            "queries_per_shard": 128,
            "actors": {"num": 1, "cpus": 1.0, "gpus": 0.0},
        },
    }
    (judge, _), sampling = LLM["judges"], ("temperature", "top_p", "max_tokens", "seed")
    config = config_of(
        LLM,
        f"{s3}/plain/run",
        source=source,
        bootstrap={
            **{name: LLM["writer"][name] for name in sampling},
            "prompt": "original-v1",
            "lengths": ["short"],
            "styles": ["plain", "negated"],
            "max_instruction_negatives": 2,
        },
        judges=[{**judge, "validation": {**judge["validation"], "gold": demo_examples(40)}}],
        judgements={"conditions": ["query", "original", "new"], "hard_negatives": True},
    )
    with pytest.raises(InputError, match="mines the negatives of a beir collection"):
        dry_run(config)

    summary = generate(config)
    rows = rows_of(open_store(config.output))
    assert summary["planned"] == len(rows)
    assert NUM_QUERIES / 2 < len(rows) <= NUM_QUERIES  # a query whose positive it ranks low has no negative
    # The scripted judge tosses a coin for every cell, so every end of a plain example comes about.
    assert {"no_original", "no_instruction_negative", "not_flipped"} <= {row.status for row in rows}
    found = [row for row in rows if row.target_id]
    assert found
    for row in found:
        assert row.example.instruction
        assert 1 <= len(row.example.instruction_negatives) <= 2
        assert row.target_id == row.example.instruction_negatives[0].id
        assert [draft.condition for draft in row.drafts] == ["original", "new"]
        if row.status == ACCEPTED:
            labelled = {verdict.passage_id for verdict in row.verdicts if verdict.expected is None}
            assert labelled == {passage.id for passage in row.example.hard_negatives}
    assert generate(config) == summary
