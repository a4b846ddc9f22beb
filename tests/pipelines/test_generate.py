"""Generation on a real Ray cluster and a real S3 server, and what stands after deaths at any moment."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
import multiprocessing
from pathlib import Path
import re
from typing import Any
from urllib.request import urlopen

import factbook
from faulty_s3 import FaultyS3
from generate_runs import (
    FACETS,
    LLM,
    Job,
    config_of,
    finish_without_ray,
    planned,
    rows_of,
    small,
    undisturbed,
    wait_until,
)
import numpy as np
from prompted import inside
import pytest
import ray
from ray_processes import workers_of

from dualview.config.generate import GenerateConfig
from dualview.engines import Completion, EngineDied, EngineUnavailable, Request, Turn
from dualview.engines.scripted import Scripted, seeded_answers
from dualview.errors import InputError, Interruption
from dualview.pipelines.generate.actor import ShardActor
from dualview.pipelines.generate.dry_run import dry_run
from dualview.pipelines.generate.judge_gate import gold_pairs_of, validation_sentences
from dualview.pipelines.generate.run import check_accepted_share, generate, run_settings
from dualview.pipelines.study import spent_on
from dualview.provenance import code
from dualview.records import ACCEPTED, DualView, SourceExample
from dualview.runs.run import open_run
from dualview.sources import vocabulary_of
from dualview.storage import Entry, Store, open_store
from dualview.synthesis import prompts
from dualview.synthesis.recipe import vocabulary_version

# --- one process, no Ray --------------------------------------------------------------------------


Call = Callable[..., Any]


class PowerCut(Exception):
    """Nothing in the product knows it, so nothing is tidied up."""


class FaultyStore:
    """A store of which each call is handed to `make`, which makes it or raises."""

    def __init__(self, store: Store, make: Call) -> None:
        self._store, self._make = store, make
        self.url = store.url

    def get(self, key: str) -> bytes:
        content: bytes = self._make(self._store.get, key)
        return content

    def download(self, key: str, path: Path) -> None:
        self._make(self._store.download, key, path)

    def list(self, prefix: str = "") -> Sequence[Entry]:
        entries: Sequence[Entry] = self._make(self._store.list, prefix)
        return entries

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        created: bool = self._make(self._store.put_new, key, data, attempt)
        return created


@pytest.mark.parametrize("last_takes_effect", [False, True])
def test_a_death_at_any_call_of_the_store_changes_no_row(tmp_path: Path, last_takes_effect: bool) -> None:
    config = small(LLM, tmp_path)
    expected = undisturbed(config, tmp_path / "undisturbed")

    def dies_at(last: int) -> Call:
        calls = count(1)

        def make(function: Call, *arguments: Any) -> Any:
            number = next(calls)
            if number < last:
                return function(*arguments)
            if number == last and last_takes_effect:
                function(*arguments)
            raise PowerCut

        return make

    for last in count(1):
        store = open_store(str(tmp_path / f"died-at-{last}"))
        try:
            finish_without_ray(config, FaultyStore(store, dies_at(last)))
            break
        except PowerCut:
            finish_without_ray(config, store)
        assert rows_of(store) == expected
    assert last > 3 * 3  # a shard lists its attempts, notes one, and commits


def test_deaths_while_committing_are_laid_to_no_row(tmp_path: Path) -> None:
    config = small(LLM, tmp_path)
    store = open_store(str(tmp_path / "run"))

    def refuses_data(function: Call, *arguments: Any) -> Any:
        if function == store.put_new and arguments[0].startswith("data/"):
            raise PowerCut
        return function(*arguments)

    for _ in range(6):
        with pytest.raises(PowerCut):
            finish_without_ray(config, FaultyStore(store, refuses_data))
    finish_without_ray(config, store)
    assert rows_of(store) == undisturbed(config, tmp_path / "undisturbed")


def attempt_all(config: GenerateConfig, deadly: tuple[Turn, ...]) -> None:
    """A process of its own: an actor with all shards in flight, whose engine dies when asked the deadly prompt."""
    answers = seeded_answers(1)

    def answer(request: Request) -> Completion:
        if request.prompt == deadly:
            raise EngineDied("killed by a row")
        return answers(request)

    store = open_store(config.output)
    run = planned(config, store)
    actor = ShardActor(config, run, gold_pairs_of(config), vocabulary_of(config.source), None)
    actor.engine = Scripted("scripted@1", answer)

    async def all_at_once() -> None:
        await asyncio.gather(*(actor({"shard": np.array([shard.index])}) for shard in run.missing()))

    asyncio.run(all_at_once())


def test_a_row_that_kills_every_engine_becomes_poison_and_harms_no_other(tmp_path: Path) -> None:
    config = small(LLM, tmp_path / "run")
    store = open_store(config.output)
    examples = factbook.seeds("train", 12, 1)
    killer = examples[6]
    deadly = prompts.writing_prompt(prompts.load("write-v1"), killer, killer.instruction_negatives[0])

    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["dualview.pipelines.generate.run"])
    exit_codes = []
    while exit_codes[-1:] != [0]:
        process = processes.Process(target=attempt_all, args=(config, deadly))
        process.start()
        process.join()
        exit_codes.append(process.exitcode)
        assert len(exit_codes) <= 5

    # Two attempts with all rows at once, two with one after the other, and one that leaves the killer out.
    assert exit_codes == [1, 1, 1, 1, 0]
    expected = undisturbed(config, tmp_path / "undisturbed")
    found = rows_of(store)
    assert [row.example.id for row in found if row.status == "poison"] == [killer.id]
    assert [row for row in found if row.example != killer] == [
        row for row in expected if row.example != killer
    ]
    assert [row.example for row in found] == list(examples)


def test_an_engine_that_dies_in_the_exam_ends_the_run(tmp_path: Path) -> None:
    """And does not end its process, for Ray would start it again for ever."""

    def answer(_: Request) -> Completion:
        raise EngineDied

    config = small(LLM, tmp_path / "run")
    with pytest.raises(Interruption, match=r"engine died .* judge"):
        finish_without_ray(config, open_store(config.output), answer)


def test_a_row_that_meets_an_engine_which_is_away_time_and_again_is_not_to_blame(tmp_path: Path) -> None:
    config = small(LLM, tmp_path / "run")
    store = open_store(config.output)
    example = factbook.seeds("train", 12, 1)[6]
    unlucky = prompts.writing_prompt(prompts.load("write-v1"), example, example.instruction_negatives[0])
    answers = seeded_answers(1)

    def answer(request: Request) -> Completion:
        if request.prompt == unlucky:
            raise EngineUnavailable("the server is away")
        return answers(request)

    for _ in range(6):
        with pytest.raises(Interruption, match="the server is away; wait until it answers"):
            finish_without_ray(config, store, answer)
        assert [shard.index for shard in planned(config, store).missing()] == [1, 2]
    finish_without_ray(config, store)
    assert rows_of(store) == undisturbed(config, tmp_path / "undisturbed")


@pytest.mark.parametrize("knows_the_gold", [False, True])
def test_rows_are_for_training_only_if_the_judge_passes_its_exam(
    tmp_path: Path, knows_the_gold: bool
) -> None:
    config = small(LLM, tmp_path / "run")
    judge = prompts.load("judge-v1")
    (pairs,) = gold_pairs_of(config).values()
    gold = {prompts.judging_prompt(judge, p.query, p.instruction, p.passage): p.gold for p in pairs}
    targets = {
        (example.query, example.instruction_negatives[0].full_text)
        for example in factbook.seeds("train", 12, 1)
    }
    answers = seeded_answers(1)

    def answer(request: Request) -> Completion:
        if not request.num_logprobs:
            return answers(request)
        if request.prompt in gold:
            yes = gold[request.prompt] == knows_the_gold
        else:
            question = request.prompt[-1].text
            yes = (inside(question, "query"), inside(question, "passage")) in targets
        return Completion("", "length", 1, 1, {"yes": -0.1 if yes else -3.0, "no": -3.0 if yes else -0.1})

    store = open_store(config.output)
    finish_without_ray(config, store, answer)

    accepted = [row for row in rows_of(store) if row.status == ACCEPTED]
    assert accepted
    assert {row.trainable for row in accepted} == {knows_the_gold}
    (sentence,) = validation_sentences(config, open_run(store).validation)
    assert f"AUC {float(knows_the_gold):.2f} on 20 gold pairs, the config requires 0.9" in sentence
    effect = "its verdicts count" if knows_the_gold else "none is marked for training"
    assert sentence.endswith(effect)


def test_several_targets_are_several_rows_of_a_shard(tmp_path: Path) -> None:
    config = small({**FACETS, "targets": "all"}, tmp_path / "run")
    finish_without_ray(config, open_store(config.output))
    expected = [
        (example.id, passage.id)
        for example in factbook.seeds("train", 12, 1)
        for passage in example.instruction_negatives
    ]
    assert len(expected) > 12
    assert [(row.example.id, row.target_id) for row in rows_of(open_store(config.output))] == expected


def test_one_run_writes_and_another_judges(tmp_path: Path) -> None:
    writes = small({**LLM, "judges": [], "accept": None}, tmp_path / "written")
    judges = config_of(
        {
            **LLM,
            "source": {"kind": "drafts", "run": str(tmp_path / "written")},
            "writer": {"kind": "precomputed"},
        },
        tmp_path / "judged",
    )
    with pytest.raises(InputError, match="no generate run at"):
        finish_without_ray(judges, open_store(judges.output))
    finish_without_ray(writes, open_store(writes.output))
    finish_without_ray(judges, open_store(judges.output))

    written, judged = rows_of(open_store(writes.output)), rows_of(open_store(judges.output))
    assert {row.status for row in written} == {"written"}
    expected = undisturbed(small(LLM, tmp_path), tmp_path / "undisturbed")
    assert [(row.example, row.new_instruction, row.status, row.verdicts) for row in judged] == [
        (row.example, row.new_instruction, row.status, row.verdicts) for row in expected
    ]
    of_writing, of_judging = (open_run(run.output).spent() for run in (writes, judges))
    assert min(of_writing.completion_tokens, of_judging.completion_tokens) > 0
    assert spent_on(open_run(judges.output)) == of_writing + of_judging
    assert {row.lineage.written_in for row in judged} == {
        planned(writes, open_store(writes.output)).plan.fingerprint
    }


BOOTSTRAPPED = {
    **LLM,
    "bootstrap": {
        "prompt": "original-v1",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 1,
        "lengths": ["short"],
        "styles": ["plain"],
        "max_instruction_negatives": 3,
    },
    "rewording": {"kind": "llm", "prompt": "reword-v1", "temperature": 0.7, "top_p": 0.9}
    | {"max_tokens": 64, "seed": 1, "num": 1},
}


@pytest.mark.parametrize(
    ("words", "decides"),
    [
        ({"LENGTHS": {**prompts.LENGTHS, "short": "one word"}}, True),
        ({"LENGTHS": {**prompts.LENGTHS, "long": "a book"}}, False),  # which this run never asks for
        ({"STYLES": {**prompts.STYLES, "plain": "as you like"}}, True),
        ({"FORMS": (*prompts.FORMS[:-1], "a song")}, True),
    ],
)
def test_a_run_goes_on_only_with_the_words_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], decides: bool
) -> None:
    config = small(BOOTSTRAPPED, tmp_path / "run")
    store = open_store(config.output)
    planned(config, store)
    for name, value in words.items():
        monkeypatch.setattr(prompts, name, value)
    with pytest.raises(InputError, match=r"settings\.prompt_versions") if decides else nullcontext():
        planned(config, store)


def test_the_words_by_which_drafts_are_read_are_part_of_a_run_whoever_writes(tmp_path: Path) -> None:
    settings = run_settings(small(LLM, tmp_path))
    assert settings["vocabulary"] == vocabulary_version(factbook.vocabulary("train"))
    fewer = factbook.vocabulary("train")
    fewer = replace(fewer, names={key: names[:1] for key, names in fewer.names.items()})
    assert vocabulary_version(fewer) != settings["vocabulary"]
    assert settings["language_model"].startswith("py3langid@")


def test_rows_name_the_code_that_made_them(tmp_path: Path) -> None:
    config = small(LLM, tmp_path / "run")
    finish_without_ray(config, open_store(config.output))
    assert {row.lineage.code_version for row in rows_of(open_store(config.output))} == {str(code())}


def test_a_plain_seed_without_a_bootstrap_is_refused(tmp_path: Path) -> None:
    config = small(LLM, tmp_path / "run")
    store = open_store(config.output)
    actor = ShardActor(config, planned(config, store), {}, None, None)
    actor.source = PlainExamples()
    with pytest.raises(InputError, match=r"example plain of .*parquet: has no instruction"):
        asyncio.run(actor({"shard": np.array([0])}))


class PlainExamples:
    def read(self, *_: object) -> list[SourceExample]:
        example = factbook.seeds("train", 1, 1)[0]
        return [replace(example, id="plain", instruction="", instruction_negatives=())]


@pytest.mark.parametrize(
    ("shards", "min_share", "stops"),
    [
        ([(100, 0)] * 4, 0.1, False),  # too few rows to judge
        ([(100, 0)] * 5, 0.1, True),
        ([(100, 10)] * 5, 0.1, False),
        ([(100, 9)] * 5, 0.1, True),
        ([(100, 0)] * 50, 0.0, False),
        ([(100, 90)] * 50 + [(100, 0)] * 4, 0.1, False),
        ([(100, 90)] * 50 + [(100, 0)] * 5, 0.1, True),  # it was well for hours
        ([(1000, 99)], 0.1, True),
    ],
)
def test_a_run_stops_where_too_few_rows_are_accepted(
    tmp_path: Path, shards: list[tuple[int, int]], min_share: float, stops: bool
) -> None:
    config = config_of(LLM, tmp_path, min_accepted_share=min_share)
    recent: deque[tuple[int, int]] = deque()

    def watch() -> None:
        for shard in shards:
            recent.append(shard)
            check_accepted_share(config, recent)

    with pytest.raises(Interruption, match=r"than min_accepted_share 0\.1;") if stops else nullcontext():
        watch()


# --- Ray and S3 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[DualView]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(config_of(LLM, folder), folder)


@pytest.fixture(scope="module")
def finished(cluster: str, s3: str) -> tuple[GenerateConfig, dict[str, Any]]:
    """A run that stands, and its summary."""
    config = config_of(
        LLM, f"{s3}/generate/finished", actors={"num": 2, "cpus": 1.0, "gpus": 0.0, "max_num": None}
    )
    return config, generate(config)


def test_ray_writes_the_rows_that_a_loop_writes(
    finished: tuple[GenerateConfig, dict[str, Any]], expected: list[DualView]
) -> None:
    config, summary = finished
    assert rows_of(open_store(config.output)) == expected
    assert [row.example for row in expected] == list(factbook.seeds("train", 60, 1))

    statuses = Counter(row.status for row in expected)
    assert summary["planned"] == 60
    assert {ACCEPTED: summary["accepted"], **summary["rejected"]} == statuses
    assert summary["trainable"] == 0  # the judge's margins are drawn by lot
    assert summary["tokens"] == {
        "prompt_tokens": sum(row.prompt_tokens for row in expected),
        "completion_tokens": sum(row.completion_tokens for row in expected),
    }
    assert summary["gpu_hours"] == 0


def test_a_finished_run_is_only_read(finished: tuple[GenerateConfig, dict[str, Any]]) -> None:
    config, summary = finished
    store = open_store(config.output)
    standing = store.list()
    assert generate(config) == summary
    assert store.list() == standing


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"writer": {**LLM["writer"], "temperature": 0.9}},
            "settings.writer.temperature: stored 0.7, given 0.9",
        ),
        ({"rows_per_shard": 5}, "rows_per_shard: stored 4, given 5"),
    ],
)
def test_another_plan_is_refused_with_what_differs(
    finished: tuple[GenerateConfig, dict[str, Any]], changes: dict[str, Any], difference: str
) -> None:
    config, _ = finished
    with pytest.raises(InputError, match=re.escape(difference)):
        generate(config_of(LLM, config.output, **changes))


@pytest.mark.usefixtures("cluster")
def test_a_budget_ends_the_run_and_a_larger_one_finishes_it(
    s3: str, expected: list[DualView], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in expected)
    budget = {"tokens": tokens // 3, "dollars": None, "gpu_hours": None}
    config = config_of(LLM, f"{s3}/generate/budget", budget=budget)
    summary = generate(config)
    store = open_store(config.output)
    num_done = len(store.list("data/"))
    assert 0 < num_done < 15
    assert f"the budget is used up ({sum(summary['tokens'].values()):,}" in caplog.text
    assert summary["planned"] == 4 * num_done

    assert generate(config) == summary  # nothing is begun while it is used up
    generate(config_of(LLM, config.output, budget={**budget, "tokens": 2 * tokens}))
    assert rows_of(store) == expected


@pytest.mark.usefixtures("finished")
def test_rows_and_tokens_are_counted_for_prometheus(cluster: str) -> None:
    node = next(node for node in ray.nodes() if node["Alive"])
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def exported() -> str:
        with urlopen(address) as answer:
            return answer.read().decode()

    wait_until(lambda: "dualview_rows" in exported() and "dualview_tokens" in exported())
    assert 'status="accepted"' in exported()


def test_a_dry_run_shows_prompts_and_counts_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    price = {"per_million_prompt_tokens": 1e6, "per_million_completion_tokens": 0.0, "per_gpu_hour": 0.0}
    config = config_of(LLM, tmp_path / "run", price=price)
    dry_run(config)
    shown = " ".join(capsys.readouterr().out.split())
    assert "60 examples in 15 shards" in shown
    for words in ("write: user", "judge: user", "dollars at most", "1.4 a word"):
        assert words in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("cluster")
def test_too_few_cpus_are_told(s3: str) -> None:
    config = config_of(
        LLM, f"{s3}/generate/crowded", actors={"num": 3, "cpus": 1.0, "gpus": 0.0, "max_num": None}
    )
    with pytest.raises(InputError, match="has 2 CPUs, but 3 actors of 1 CPUs each need 3"):
        generate(config)


@pytest.mark.usefixtures("cluster")
def test_after_the_death_of_the_driver_the_same_command_finishes_the_run(
    s3: str, faulty_s3: FaultyS3, expected: list[DualView], tmp_path: Path
) -> None:
    config = config_of(LLM, f"{s3}/generate/driver")
    store = open_store(config.output)
    with faulty_s3.hold_after(5):
        job = Job(config, tmp_path)
        faulty_s3.holds.wait()
        job.process.kill()
        job.process.wait()
    assert not open_run(store).is_complete

    generate(config)
    assert rows_of(store) == expected


@pytest.mark.usefixtures("cluster")
def test_a_run_survives_the_death_of_its_engine(
    s3: str, faulty_s3: FaultyS3, expected: list[DualView], tmp_path: Path
) -> None:
    config = config_of(LLM, f"{s3}/generate/engine")
    store = open_store(config.output)
    with faulty_s3.hold_after(5):
        job = Job(config, tmp_path)
        faulty_s3.holds.wait()
        (engine,) = workers_of("ShardActor")
        engine.kill()
        engine.wait()

    job.must_succeed()
    assert rows_of(store) == expected
    num_shards, num_attempts = (len(store.list(prefix)) for prefix in ("data/", "attempts/"))
    assert num_attempts > num_shards


@pytest.mark.usefixtures("cluster")
def test_two_drivers_of_one_run_write_each_shard_once(s3: str, faulty_s3: FaultyS3, tmp_path: Path) -> None:
    config = config_of(FACETS, f"{s3}/generate/twice")
    store = open_store(config.output)
    with faulty_s3.hold_after(0):
        jobs = [Job(config, tmp_path / name) for name in ("one", "other")]
        wait_until(lambda: len(store.list("attempts/000000/")) == 2)

    for job in jobs:
        job.must_succeed()
    assert rows_of(store) == undisturbed(config, tmp_path / "undisturbed")


@pytest.mark.usefixtures("cluster")
def test_a_server_that_goes_down_ends_the_run_and_costs_no_row(tmp_path: Path, chat_server: Any) -> None:
    """And the same command goes on when it is up again."""
    answers = seeded_answers(1)
    num_answered = count(1)

    def answer(body: dict[str, Any]) -> Any:
        if next(num_answered) > 100 and is_down:  # after the exam and some rows
            return 503, {}, {"error": {"message": "closed for an hour"}}
        request = Request(
            prompt=tuple(Turn(message["role"], message["content"]) for message in body["messages"]),
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            seed=body["seed"],
            num_logprobs=body.get("top_logprobs", 0),
        )
        said = answers(request)
        listed = [{"token": token, "logprob": value} for token, value in said.first_token_logprobs.items()]
        answered = chat_server.completion(
            said.text,
            logprobs={"content": [{"token": said.text, "logprob": 0.0, "top_logprobs": listed}]},
        )
        usage = {"prompt_tokens": said.prompt_tokens, "completion_tokens": said.completion_tokens}
        return 200, {}, {**answered, "usage": usage}

    chat_server.answer = answer
    engine = {
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
    config = config_of(LLM, tmp_path / "run", engine=engine)
    store = open_store(config.output)

    is_down = True
    assert Job(config, tmp_path).interruption() == (
        f"stopped: {config.output}: the server at {chat_server.host} answers 503: closed for an hour (tries: 1);"
        " wait until it answers, then run the same command again; finished work is kept"
    )
    assert not open_run(store).is_complete

    is_down = False
    slower = config.model_copy(update={"engine": config.engine.model_copy(update={"max_concurrency": 2})})
    generate(slower)
    found = rows_of(store)
    assert {row.lineage.writer for row in found} == {f"small@{chat_server.host}"}
    scripted = undisturbed(config_of(LLM, tmp_path / "scripted"), tmp_path / "undisturbed")

    def without_origin(rows: list[DualView]) -> list[DualView]:
        return [replace(row, lineage=scripted[0].lineage) for row in rows]

    assert without_origin(found) == without_origin(scripted)
