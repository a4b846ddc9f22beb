"""Training with the real parts: Ray Train, DeepSpeed on gloo, a BERT, checkpoints on a real S3 server."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import random
import subprocess
import sys
from threading import Event, Thread
import time

from demo_data import demo_flips
from finished_run import SETTINGS, extend_run, finish_run, put_shard, row
import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_processes import workers_of
from sentence_transformers import SentenceTransformer
from tiny import save_small_encoder, save_tiny_encoder, train_config
import yaml

from dualview.arrow import dual_views_from_table
from dualview.config.loading import load
from dualview.config.train import TrainConfig
from dualview.errors import InputError, Interruption
from dualview.models import local_model
from dualview.pipelines.train.checkpoints import whole_checkpoints
from dualview.pipelines.train.frozen import keep_vectors, look_up_vectors
from dualview.pipelines.train.prepare import (
    expected_tokens,
    open_prepared,
    plan_mixture,
    prepare,
)
from dualview.pipelines.train.run import train
from dualview.retrieval.encoder import (
    encode_texts,
    encode_tokens,
    load_encoder,
    new_encoder,
    num_dense_parameters,
    tokenize,
)
from dualview.runs.plan import Input, plan_run
from dualview.runs.run import open_run
from dualview.storage import download_tree, open_store
from dualview.training.model import untouched_encoder
from dualview.training.prepared import Prepared
from dualview.training.schedule import num_steps_of, operations, sampler_of

STEPS = 8
DEMO = Path("configs/demo").absolute()
SLOW = {"monitor.hook": "slow_hook:slow_step"}


@pytest.fixture(scope="module")
def config(facets_data: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    model = str(save_small_encoder(tmp_path_factory.mktemp("model")))

    def make(name: str, **changes: object) -> TrainConfig:
        settings = {
            "output": f"{s3}/train/{name}",
            "encoder.model": model,
            "mixture.parts.0.data": facets_data,
            "mixture.parts.0.num_instances": 16 * STEPS,
            "budget.instances": 16 * STEPS,
            "encoder.max_passage_tokens": 32,
            "precision": "fp32",
            "checkpoint_every_steps": 2,
            **changes,
        }
        assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        return load(TrainConfig, str(DEMO / "train-dual.yaml"), assignments)

    return make


@pytest.fixture(scope="module")
def uninterrupted(config: Callable[..., TrainConfig]) -> TrainConfig:
    own = config("two-ranks")
    train(own)
    return own


def weights(output: str) -> bytes:
    return open_store(output).get("encoder/model.safetensors")


@pytest.mark.slow
def test_one_rank_and_two_take_the_same_steps(config, uninterrupted):
    alone = config("one-rank", **{"workers.num": 1, "deepspeed.stage": 0})
    train(alone)
    of_two, of_one = (
        json.loads(open_store(run.output).get("result.json"))["losses"] for run in (uninterrupted, alone)
    )
    assert len(of_one) == STEPS
    # float32 sums in another order; Adam makes the most of it over the steps. A wrong gradient shows at once.
    np.testing.assert_allclose(of_two, of_one, rtol=5e-3)


def test_a_killed_worker_costs_nothing_but_time(config, uninterrupted, s3):
    """Kill -9 of a rank after the first checkpoint: the weights are those of the uninterrupted run, bit for bit."""
    killed = config("killed", **SLOW)
    victims: list[int] = []
    killer = Thread(target=_kill_a_worker_after_a_checkpoint, args=(killed.output, victims))
    killer.start()
    result = train(killed)
    killer.join()
    assert victims
    losses = json.loads(open_store(uninterrupted.output).get("result.json"))["losses"]
    assert result["losses"] == losses
    assert weights(killed.output) == weights(uninterrupted.output)


def _kill_a_worker_after_a_checkpoint(output: str, victims: list[int]) -> None:
    _wait_for_a_checkpoint(output)
    victim = workers_of("RayTrainWorker")[0]
    victim.kill()
    victims.append(victim.pid)


def _wait_for_a_checkpoint(output: str) -> None:
    store = open_store(output)
    while not whole_checkpoints(store):
        time.sleep(0.1)


def _driver(own: TrainConfig, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(own.model_dump(mode="json")))
    command = [sys.executable, "jobs/train.py", "--config", str(path)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, **environment}, **quiet)


def _kill_a_driver_after_a_checkpoint(own: TrainConfig, folder: Path) -> None:
    with _driver(own, folder) as driver:
        _wait_for_a_checkpoint(own.output)
        assert driver.poll() is None  # it has not finished
        driver.kill()


@pytest.mark.slow
def test_a_killed_driver_is_started_again_and_goes_on(config, uninterrupted, tmp_path):
    own = config("driver-killed", **SLOW)
    _kill_a_driver_after_a_checkpoint(own, tmp_path)
    before = {entry.key for entry in open_store(own.output).list()}
    assert "result.json" not in before
    result = train(own)
    assert result["steps_since_resume"] < STEPS  # it did not begin anew
    assert weights(own.output) == weights(uninterrupted.output)


def test_views_apart_are_in_sections_that_each_hold_original_and_complementary_ones(config):
    own = config("apart", **{"mixture.parts.0.views": "apart"})
    prepare(own, *plan_mixture(own))
    prepared = open_prepared(own)
    ids = [prepared.group(index).id for index in range(prepared.num_groups)]
    assert ids[::2] == ids[1::2]  # the original view of a seed, then its complementary one
    original, complementary = prepared.section[::2], prepared.section[1::2]
    assert (original + complementary == 1).all()
    assert 0.3 < original.mean() < 0.7


def test_pieces_of_a_plan_before_the_data_grew_are_not_used(cluster, tmp_path):
    """Ten seeds of ten; a kill between the pieces and their list; ten of twenty."""
    data = open_store(str(tmp_path / "data"))
    finish_run(data, [[row(f"{shard}-{number}") for number in range(5)] for shard in range(2)], SETTINGS)

    def ids_of(name: str) -> list[str]:
        own = train_config(
            output=str(tmp_path / name),
            encoder__model=str(save_tiny_encoder(tmp_path / "model")),
            mixture__parts__0__data=data.url,
            mixture__parts__0__views="original",
            mixture__parts__0__num_instances=10,
        )
        prepare(own, *plan_mixture(own))
        prepared = open_prepared(own)
        return [prepared.group(index).id for index in range(prepared.num_groups)]

    assert len(ids_of("run")) == 10
    open_store(str(tmp_path / "run")).remove("prepared.json")
    later = [row(f"later-{number}") for number in range(10)]
    for shard in extend_run(data, later).missing():
        put_shard(data, shard, later[shard.start : shard.stop])
    assert ids_of("run") == ids_of("fresh")


def test_a_budget_of_operations_is_one_of_tokens(config, uninterrupted):
    prepared = open_prepared(uninterrupted)
    encoder = new_encoder(uninterrupted.encoder.model, pooling="mean", trust_remote_code=False)
    petaflop = operations(uninterrupted, num_dense_parameters(encoder), 5000) / 1e15
    nothing = {"instances": None, "tokens": None, "steps": None, "petaflop": None}
    steps = []
    for budget in ({"petaflop": petaflop}, {"tokens": 5000}):
        own = config("budget", budget=nothing | budget)
        steps.append(num_steps_of(own, sampler_of(own, prepared)))
        assert abs(expected_tokens(own) - 5000) <= 1
    assert steps[0] == steps[1] > 1


def test_what_a_run_will_read_is_foretold(uninterrupted):
    """About: retained texts are not in it, and it looks at the first rows only."""
    result = json.loads(open_store(uninterrupted.output).get("result.json"))
    assert expected_tokens(uninterrupted) == pytest.approx(result["tokens"], rel=0.3)
    assert result["operations"] > 6 * result["tokens"]


def test_a_finished_run_is_only_read(uninterrupted, caplog):
    caplog.set_level("INFO", "dualview")
    before = open_store(uninterrupted.output).list()
    train(uninterrupted)
    assert "nothing to do" in caplog.text
    assert open_store(uninterrupted.output).list() == before


def test_how_the_work_is_done_may_change(uninterrupted):
    how = {
        "output": "elsewhere",
        "checkpoint_every_steps": 7,
        "batch": uninterrupted.batch.model_copy(update={"chunk_tokens": 77, "gradient_cache": True}),
        "deepspeed": uninterrupted.deepspeed.model_copy(update={"stage": 3}),
        "workers": uninterrupted.workers.model_copy(update={"num": 3}),
    }
    assert uninterrupted.model_copy(update=how).deciding() == uninterrupted.deciding()
    alone = uninterrupted.batch.model_copy(update={"negatives": "worker"})  # the number of workers decides
    two, three = (
        uninterrupted.model_copy(update={"batch": alone, **changes})
        for changes in ({}, {"workers": how["workers"]})
    )
    assert two.deciding() != three.deciding()
    changed = {name: value for name, value in how.items() if name != "output"}
    train(uninterrupted.model_copy(update=changed))  # finished, and not refused


def test_the_same_output_with_other_settings_is_refused(uninterrupted):
    other = uninterrupted.model_copy(update={"seed": 7})
    with pytest.raises(InputError, match=r"seed: stored 0, given 7"):
        train(other)


def test_sentence_transformers_reads_the_export_and_embeds_alike(uninterrupted):
    texts = ["main ports", "Chad: Central Africa; landlocked", "x " * 40]
    folder = local_model(f"{uninterrupted.output}/encoder")
    theirs = SentenceTransformer(folder, device="cpu").encode(texts)
    ours = encode_texts(
        load_encoder(folder, trust_remote_code=False), texts, side="query", max_tokens=128, precision="fp32"
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    untouched = encode_texts(
        new_encoder(uninterrupted.encoder.model, pooling="mean", trust_remote_code=False),
        texts,
        side="query",
        max_tokens=128,
        precision="fp32",
    )
    assert float((ours - untouched).abs().max()) > 1e-3


@pytest.mark.slow
def test_with_frozen_documents_an_existing_index_stays_valid(config):
    settings = {"batch.candidates": "queries", "weight_interpolation": 0.25, "workers.num": 1}
    frozen = config("frozen", train="query_encoder", **settings)
    train(frozen)
    texts = ["main ports", "Chad: Central Africa; landlocked"]
    exported = SentenceTransformer(local_model(f"{frozen.output}/encoder"), device="cpu")
    untouched = new_encoder(frozen.encoder.model, pooling="mean", trust_remote_code=False)
    np.testing.assert_allclose(exported.encode_document(texts), untouched.encode(texts), atol=1e-6)
    np.testing.assert_allclose(exported.encode_query(texts), untouched.encode(texts), atol=1e-6)
    instructed = exported.encode(texts, task="instructed_query")
    assert np.abs(instructed - untouched.encode(texts)).max() > 1e-3


def test_an_index_that_exists_is_taken_over_and_the_rest_encoded(config, facets_data, tmp_path):
    def run_of(name: str, **changes: object) -> TrainConfig:
        return config(f"index-{name}", train="query_encoder", **{"workers.num": 1, **changes})

    def vectors_of(run: TrainConfig) -> NDArray[np.float32]:
        prepare(run, *plan_mixture(run))
        prepared = open_prepared(run)
        keep_vectors(run, prepared)
        return look_up_vectors(run, prepared)(range(prepared.num_passages))

    encoded = vectors_of(run_of("none"))
    tables = open_run(facets_data).trainable_tables()
    examples = [row.example for table in tables for row in dual_views_from_table(table)]
    texts = sorted({example.positive.full_text for example in examples})
    encoder = untouched_encoder(config("index"))
    tokens = tokenize(encoder, texts, 32)
    vectors = encode_tokens(encoder, tokens, side="document", precision="fp32").numpy() + np.float32(1e-4)
    path = str(tmp_path / "index.parquet")
    pq.write_table(pa.table({"text": texts, "vector": list(vectors)}), path)
    taken = vectors_of(run_of("some", index={"vectors": path}))
    changed = np.abs(taken - encoded).max(axis=1) > 2e-5  # the index's own, which are a little off
    assert 0 < changed.sum() < len(changed)
    np.testing.assert_allclose(taken, encoded, atol=1e-3)

    pq.write_table(pa.table({"text": texts, "vector": list(vectors[::-1])}), path)
    with pytest.raises(InputError, match=r"index\.parquet was not made by this model"):
        vectors_of(run_of("other", index={"vectors": path}))


def test_runs_share_the_vectors_of_frozen_passages(config, s3, faulty_s3, monkeypatch):
    shelf = f"{s3}/shared-vectors"

    def units() -> set[str]:
        return {entry.key for entry in open_store(shelf).list() if entry.key.endswith(".arrow")}

    def run_of(name: str, num_instances: int) -> TrainConfig:
        sizes = {"mixture.parts.0.num_instances": num_instances, "budget.instances": num_instances}
        sizes["workers.num"] = 1  # which encodes, too
        return config(f"shares-{name}", train="query_encoder", embeddings=shelf, **sizes)

    def kept_by(run: TrainConfig) -> tuple[Prepared, NDArray[np.float32]]:
        prepare(run, *plan_mixture(run))
        prepared = open_prepared(run)
        keep_vectors(run, prepared)
        return prepared, look_up_vectors(run, prepared)(range(prepared.num_passages))

    few, vectors_of_few = kept_by(run_of("few", 16))
    after_few = units()
    many, vectors_of_many = kept_by(run_of("many", 160))
    new = units() - after_few
    _, again = kept_by(run_of("again", 160))
    assert units() == after_few | new  # another run over the same passages encodes none
    np.testing.assert_array_equal(again, vectors_of_many)

    encoder = untouched_encoder(config("shares"))
    for prepared, vectors in ((few, vectors_of_few), (many, vectors_of_many)):
        tokens = [prepared.tokens(number) for number in range(prepared.num_passages)]
        expected = encode_tokens(encoder, tokens, side="document", precision="fp32").numpy()
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    texts_of_few, texts_of_many = (set(prepared.text_keys.tolist()) for prepared in (few, many))
    assert texts_of_few & texts_of_many  # or nothing is shown
    tables = [pa.ipc.open_file(open_store(shelf).get(key)).read_all() for key in new]
    assert sum(table.num_rows for table in tables) == len(texts_of_many - texts_of_few)

    # A run that has begun does not find its vectors elsewhere, nor does another take what is broken.
    elsewhere = run_of("many", 160).model_copy(update={"embeddings": f"{s3}/other-vectors"})
    with pytest.raises(InputError, match=r"the vectors that .*shares-many began with"):
        keep_vectors(elsewhere, many)
    [space] = {key.partition("/")[0] for key in units()}
    open_store(shelf).put_new(f"{space}/broken.arrow", b"ARROW1", attempt="test")
    with pytest.raises(InputError, match=r"broken\.arrow: is not a complete Arrow file"):
        kept_by(run_of("broken", 160))
    monkeypatch.setattr(faulty_s3, "ignores_conditions", True)
    with pytest.raises(InputError, match=r"shared-vectors: this store replaces .*If-None-Match"):
        keep_vectors(run_of("many", 160), many)


@pytest.mark.slow
def test_everything_at_once(config, facets_data, tmp_path):
    """ZeRO 3, adapters, gradient cache, a learned temperature, two parts by weight, bf16, and what is seen of it."""
    own = config(
        "everything",
        **{
            "deepspeed.stage": 3,
            "encoder.lora": {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"},
            "encoder.prompts": {"query": "query: ", "document": "passage: "},
            "encoder.activation_checkpointing": True,
            "encoder.dropout": True,
            "batch": {
                "instances": 16,
                "queries": None,
                "candidates": "groups",
                "negatives": "batch",
                "chunk_tokens": 512,
                "gradient_cache": True,
            },
            "loss.temperature.learned": True,
            "mixture": {
                "homogeneous": True,
                "parts": [
                    {
                        "data": facets_data,
                        "views": views,
                        "num_instances": None,
                        "weight": weight,
                        "num_hard_negatives": 1,
                        "rewordings": True,
                        "min_judged_margin": 0.0,
                    }
                    for views, weight in (("both", 3.0), ("plain", 1.0))
                ],
            },
            "budget": {"instances": None, "tokens": None, "steps": 4, "petaflop": None},
            "precision": "bf16",
            "monitor": {
                "logs": str(tmp_path / "logs"),
                "hook": "slow_hook:slow_step",
                "peak_tflops": 0.1,
                "evaluate_every_steps": 2,
                "benchmark": demo_flips(5),
            },
        },
    )
    result = train(own)
    assert [part["instances"] for part in result["mixture"]] == [48, 16]
    assert result["steps"] == 4
    assert result["temperature"] != pytest.approx(own.loss.temperature.value, rel=1e-6)
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [2, 4]
    assert all("p-MRR" in evaluation["scores"] for evaluation in result["evaluations"])
    trail = [json.loads(line) for line in (tmp_path / "logs" / "trail.jsonl").read_text().splitlines()]
    steps = [line for line in trail if "loss" in line]
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert all(
        line["mfu"] > 0 and line["gradient_norm"] > 0 and 0 <= line["padding_share"] < 1 for line in steps
    )
    assert list((tmp_path / "logs").glob("events.out.tfevents*"))
    folder = local_model(f"{own.output}/encoder")
    assert "adapter_model" not in {path.name for path in Path(folder).rglob("*")}  # merged
    exported = SentenceTransformer(folder, device="cpu")
    assert exported.prompts == {"query": "query: ", "document": "passage: "}
    card = (Path(folder) / "README.md").read_text()
    assert "64 instances in 4 steps of 16" in card
    assert "p-MRR" in card
    theirs = exported.encode_query(["main ports"])
    ours = encode_texts(
        load_encoder(folder, trust_remote_code=False),
        ["query: main ports"],
        side="query",
        max_tokens=96,
        precision="fp32",
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_weights(config, uninterrupted, tmp_path):
    own = config("other-ranks", **SLOW)
    _kill_a_driver_after_a_checkpoint(own, tmp_path)
    alone = own.model_copy(update={"workers": own.workers.model_copy(update={"num": 1})})
    result = train(alone)
    assert result["world_size"] == 1
    assert len(result["losses"]) == STEPS
    first = STEPS - result["steps_since_resume"]
    assert 0 < first < STEPS
    # The first loss after the change is one of the old weights on the old data; other weights would show at once.
    expected = json.loads(open_store(uninterrupted.output).get("result.json"))["losses"]
    assert result["losses"][first] == pytest.approx(expected[first], rel=5e-3)
    assert result["losses"][first] != pytest.approx(expected[0], rel=5e-3)


def _exported_by_one_attempt(output: str) -> bool:
    """Weights, card and result are of one training: the card has the result's last loss, and nothing else is left."""
    store = open_store(output)
    result = json.loads(store.get("result.json"))
    assert {entry.key.partition("/")[0] for entry in store.list()} == {
        "config.json",
        "encoder",
        "exported.json",
        "prepared",
        "prepared.json",
        "result.json",
    }
    load_encoder(f"{output}/encoder", trust_remote_code=False)
    return f"Last loss: {result['losses'][-1]:.4f}." in store.get("encoder/README.md").decode()


@pytest.mark.slow
def test_a_kill_during_the_export_costs_nothing_but_time(config, faulty_s3, tmp_path):
    """The weights are put already when the driver is killed; another number of ranks makes others, in the last bits."""
    own = config("export-killed")
    reached, killed = Event(), Event()

    def hang(answer, environ):
        reached.set()
        killed.wait()
        return answer(environ)

    faulty_s3.faults.append(("tokenizer.json", hang, 1))
    with _driver(own, tmp_path) as driver:
        assert reached.wait(600)
        driver.kill()
    killed.set()
    alone = own.model_copy(update={"workers": own.workers.model_copy(update={"num": 1})})
    result = train(alone)
    assert result["world_size"] == 1
    assert result["steps_since_resume"] < STEPS
    assert _exported_by_one_attempt(own.output)


@pytest.mark.slow
def test_two_drivers_at_once_leave_what_one_of_them_made(config, tmp_path):
    own = config("overlap", **SLOW)
    with _driver(own, tmp_path, RAY_ADDRESS="local") as driver:  # a cluster that is being given up
        _wait_for_a_checkpoint(own.output)
        assert driver.poll() is None
        alone = own.model_copy(update={"workers": own.workers.model_copy(update={"num": 1})})
        train(alone)
        assert driver.wait(600) == 0
    assert _exported_by_one_attempt(own.output)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_its_groups(config):
    own = config("not-finite", max_failures=1)
    hot = own.loss.temperature.model_copy(update={"value": 1e-40})  # scores divided by it are infinite
    own = own.model_copy(update={"loss": own.loss.model_copy(update={"temperature": hot})})
    with pytest.raises(Interruption, match=r"the loss of step \d+ was (nan|inf) on groups"):
        train(own)
    [dump] = open_store(own.output).list("not-finite-")
    assert len(json.loads(open_store(own.output).get(dump.key))["groups"]) == 8
    with pytest.raises(Interruption, match="choose another output"):  # at once: it would be that again
        train(own)


@pytest.mark.slow
def test_five_kills_cost_nothing_but_time(config):
    settings = {
        "budget": {"instances": None, "tokens": None, "steps": 40, "petaflop": None},  # five epochs
        "checkpoint_every_steps": 2,
        "max_failures": 8,
    }
    calm, killed = config("calm", **settings), config("killed-five-times", **settings, **SLOW)
    train(calm)
    victims: list[int] = []

    def kill() -> None:
        rng = random.Random(7)
        known: set[str] = set()
        while len(victims) < 5:
            if not (new := set(whole_checkpoints(open_store(killed.output))) - known):
                time.sleep(0.1)
                continue
            known |= new
            time.sleep(rng.uniform(0, 1.5))  # at any of the next steps, or while the checkpoint is put
            victim = rng.choice(workers_of("RayTrainWorker"))
            victim.kill()
            victims.append(victim.pid)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    result = train(killed)
    killer.join()
    assert len(victims) == 5
    assert result["losses"] == json.loads(open_store(calm.output).get("result.json"))["losses"]
    assert weights(killed.output) == weights(calm.output)


@pytest.mark.slow
def test_relative_paths_mean_the_same_in_driver_and_workers(config, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download_tree(open_store(uninterrupted.mixture.parts[0].data), tmp_path / "data")
    train(config("relative", output="run", **{"mixture.parts.0.data": "data"}))
    assert weights("run") == weights(uninterrupted.output)


def test_a_budget_that_the_data_cannot_meet_is_one_sentence(config):
    asked = config("too-much", **{"mixture.parts.0.num_instances": 16000, "budget.instances": 16000})
    with pytest.raises(InputError, match="mixture: 16000 instances"):
        train(asked)
    assert open_store(asked.output).list() == []  # the mended config may go there


def test_more_tokens_than_the_model_has_positions_is_one_sentence(config):
    with pytest.raises(InputError, match=r"^encoder\.max_passage_tokens: 600, .* expected at most 512$"):
        train(config("too-long", **{"encoder.max_passage_tokens": 600}))


def test_data_that_is_not_finished_is_one_sentence(config, tmp_path):
    plan_run(open_store(str(tmp_path)), {}, [Input("seeds", 2, "checksum")], rows_per_shard=1)
    with pytest.raises(InputError, match="is not finished"):
        train(config("unfinished-data", **{"mixture.parts.0.data": str(tmp_path)}))


def test_data_that_is_not_there_is_one_sentence(config, s3):
    with pytest.raises(InputError, match="no generate run at"):
        train(config("no-data", **{"mixture.parts.0.data": f"{s3}/nowhere"}))
