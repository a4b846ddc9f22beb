"""Judges of known quality behind a real server, measured on a real Ray cluster."""

import json
from pathlib import Path
from typing import Any

from demo_data import demo_examples
import numpy as np
import pyarrow.parquet as pq
import pytest

from dualview.config.judge import JudgeConfig
from dualview.errors import InputError, Interruption
from dualview.pipelines.judge import PAIRS_SCHEMA, judge, print_judged, threshold_sentences
from dualview.synthesis.judge_validation import as_floats, measure

NUM_CLAIMS = 6


def config_of(folder: Path, **changes: Any) -> JudgeConfig:
    settings = {
        "output": str(folder / "run"),
        "engine": {"kind": "scripted", "seed": 1},
        "judge": {
            "kind": "llm",
            "prompt": "judge-v1",
            "query_prompt": None,
            "min_margin": 0.0,
            "validation": {"num_pairs": 20, "min_auc": 0.8, "seed": 1, "gold": None},
        },
        "gold": [
            demo_examples(40),
            claims(folder),
        ],
        "wanted_precision": 0.9,
        "bootstrap_samples": 20,
        "actors": {"num": 2, "cpus": 1.0, "gpus": 0.0},
    }
    return JudgeConfig.model_validate({**settings, **changes})


def claims(folder: Path) -> dict[str, Any]:
    """A folder in the flips layout; every passage says which instruction it obeys."""
    (folder / "claims").mkdir(exist_ok=True)
    sides = ("support", "oppose")
    passages = [
        {"_id": f"{claim}-{side}-{i}", "title": "", "text": f"Texts that {side} claim {claim}, number {i}."}
        for claim in range(NUM_CLAIMS)
        for side in sides
        for i in range(2)
    ]
    queries = [
        {
            "_id": str(claim),
            "query": f"claim {claim}",
            "instructions": {side: f"Only texts that {side} it." for side in sides},
            "relevant": {side: [f"{claim}-{side}-{i}" for i in range(2)] for side in sides},
        }
        for claim in range(NUM_CLAIMS)
    ]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / "claims" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "kind": "flips",
        "name": "claims",
        "path": str(folder / "claims"),
        "original": "support",
        "changed": "oppose",
    }


@pytest.fixture
def http(chat_server: Any) -> dict[str, Any]:
    return {
        "kind": "http",
        "base_url": f"http://{chat_server.host}/v1",
        "model": "small",
        "api_key_env": None,
        "num_logprobs": 20,
        "max_concurrency": 8,
        "timeout_seconds": 300.0,
        "max_tries": 1,
        "max_pause_seconds": 1.0,
        "chat_template_kwargs": {},
    }


def answer_of(chat_server: Any, margin: float) -> Any:
    listed = [{"token": "yes", "logprob": margin - 9}, {"token": "no", "logprob": -9.0}]
    logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
    return 200, {}, chat_server.completion("yes", logprobs=logprobs)


@pytest.mark.usefixtures("cluster")
def test_a_judge_that_knows_one_collection_and_not_the_other(
    tmp_path: Path, chat_server: Any, http: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(body: dict[str, Any]) -> Any:
        question = body["messages"][0]["content"]
        if "claim" not in question:
            return answer_of(chat_server, 1.5)  # everything is relevant
        obeys = any(question.count(f"exts that {side}") == 2 for side in ("support", "oppose"))
        return answer_of(chat_server, 3.0 if obeys else -3.0)

    config = config_of(tmp_path, engine=http)

    # A server that is down measures nothing, and leaves nothing that could be taken for a measurement.
    chat_server.answer = lambda _: (503, {}, {"error": "closed"})
    alone = config.model_copy(update={"actors": config.actors.model_copy(update={"num": 1})})
    with pytest.raises(Interruption, match=rf"the server at {chat_server.host} answers 503: closed"):
        judge(alone)
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"code", "config.json"}

    chat_server.answer = answer
    chat_server.bodies.clear()
    judged = judge(config)
    assert len(chat_server.bodies) == 40
    knows, guesses = judged.measurements["claims"], judged.measurements["tuples"]
    assert (knows.result.auc, knows.result.agreement, knows.result.num_pairs) == (1.0, 1.0, 20)
    assert knows.min_margin is not None
    assert knows.min_margin.threshold == pytest.approx(3.0)
    assert (guesses.result.auc, guesses.result.agreement, guesses.min_margin) == (0.5, 0.5, None)
    assert [bin.num_pairs for bin in guesses.bins] == [20]

    table = pq.read_table(tmp_path / "run" / "pairs.parquet")
    assert table.schema == PAIRS_SCHEMA
    for row in table.to_pylist():
        expected = 1.5 if row["gold"] == "tuples" else 3.0 if row["relevant"] else -3.0
        assert row["margin"] == pytest.approx(expected)
        assert row["engine"] == f"small@{chat_server.host}"
    assert json.loads((tmp_path / "run" / "measures.json").read_text())["measurements"]["claims"][
        "result"
    ] == {
        "auc": 1.0,
        "agreement": 1.0,
        "ece": pytest.approx(0.047, abs=0.001),
        "num_pairs": 20,
        "num_undecided": 0,
    }

    print_judged(config, judged)
    shown = capsys.readouterr().out
    assert f"answered by small@{chat_server.host}" in shown
    assert "claims: min_margin 3, the smallest that reaches a precision of 0.9, keeps 20 of 20 pairs" in shown
    assert "tuples: no min_margin reaches a precision of 0.9" in shown

    # Again: nobody is asked, and it says the same. With other settings: refused.
    assert judge(config) == judged
    assert len(chat_server.bodies) == 40
    with pytest.raises(InputError, match="holds a run with other settings"):
        judge(config.model_copy(update={"wanted_precision": 0.8}))
    corpus = tmp_path / "claims" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("number 1", "number one"))
    with pytest.raises(InputError, match=r'other settings \(pairs.claims: stored "\w+", given "\w+"\)'):
        judge(config)


def test_thresholds_in_words(tmp_path: Path) -> None:
    golds = np.array([True, False] * 50)
    margins = np.where(golds, 2.0, -2.0)
    margins[:60] *= -0.5  # wrong, and less sure of it
    margins[0] = 5.0

    def sentences(margins: Any, **changes: Any) -> list[str]:
        config = config_of(tmp_path, **changes)
        measured = measure(
            [str(i) for i in range(100)],
            golds,
            as_floats(margins),
            min_margin=config.judge.min_margin,
            wanted_precision=config.wanted_precision,
            samples=2,
            seed=1,
        )
        return threshold_sentences(config, measured)

    assert sentences(margins) == [
        "min_margin 0, as configured, keeps 100 of 100 pairs (100%); 0.410 [0.319, 0.508] of them are right",
        "min_margin 2, the smallest that reaches a precision of 0.9, keeps 41 of 100 pairs (41%);"
        " 1.000 [0.914, 1.000] of them are right",
        "margin 2, the smallest that reaches a precision of 0.9 for a yes, keeps 21 of 100 pairs (21%);"
        " 1.000 [0.845, 1.000] of them are relevant",
    ]
    few = [None] * 98 + [4.0, -4.0]
    assert sentences(few)[1].endswith(
        "keeps 2 of 100 pairs (2%); 1.000 [0.342, 1.000] of them are right; too few to distinguish it from chance"
    )
    assert sentences(np.where(golds, -1.0, 1.0))[1:] == [
        "no min_margin reaches a precision of 0.9",
        "no margin reaches a precision of 0.9 for a yes",
    ]


# --- a user's mistakes, before Ray starts ---------------------------------------------------------


def test_a_prompt_that_is_no_judges(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(InputError, match=r"prompt write-v1@.* has no value for"):
        judge(config.model_copy(update={"judge": config.judge.model_copy(update={"prompt": "write-v1"})}))


def test_two_collections_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gold: two collections .*`claims`"):
        judge(config_of(tmp_path, gold=[claims(tmp_path), claims(tmp_path)]))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    gold = {**claims(tmp_path), "path": str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match=r"nowhere/.*jsonl: cannot be read"):
        judge(config_of(tmp_path, gold=[gold]))


def test_more_pairs_than_there_are(tmp_path: Path) -> None:
    config = config_of(tmp_path, gold=[claims(tmp_path)])
    validation = config.judge.validation.model_copy(update={"num_pairs": 50})
    with pytest.raises(InputError, match=r"validation.num_pairs: 50 .* but claims has 24 and 24; try 48"):
        judge(config.model_copy(update={"judge": config.judge.model_copy(update={"validation": validation})}))
