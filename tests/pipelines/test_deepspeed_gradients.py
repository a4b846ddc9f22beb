"""What DeepSpeed makes of a step on two ranks is the gradient of one process, at every stage, with and without cache."""

import os

import deepspeed
import pytest
from tiny import (
    EVERYTHING,
    learner_in,
    plainly,
    prepared_of,
    random_groups,
    retained_by,
    train_config,
    work_for,
)
import torch
import torch.multiprocessing

from dualview.pipelines.train.engine import deepspeed_engine, mean_over_ranks, step_of
from dualview.retrieval.encoder import inputs_of, new_encoder
from dualview.training.model import Learner, check_precision

COMBINATIONS = [(stage, cache) for stage in range(4) for cache in (False, True)]
GROUPS = random_groups(5, num_hard_negatives=2)


@pytest.fixture(scope="module")
def over_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(2, folder), nprocs=2)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Loss and gradients of one process in float64, to which stage and cache mean nothing."""
    folder, config = tmp_path_factory.mktemp("plain"), train_config(**EVERYTHING)
    learner = learner_in(folder, config, torch.float64)
    prepared = prepared_of(GROUPS, config, learner.encoder, folder)
    return plainly(learner, config, prepared, retained_by(learner.encoder, prepared))


@pytest.mark.parametrize(("stage", "cache"), COMBINATIONS)
def test_loss_and_gradients_equal_one_process_in_float64(over_ranks, plain, stage, cache):
    loss, gradients = plain
    found = over_ranks[f"{stage} {cache}"]
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-5)
    for name in (
        found.keys() - gradients.keys() - {"loss"}
    ):  # BERT's pooler, which no embedding passes through
        assert not found[name].any()
    for name, gradient in gradients.items():
        # DeepSpeed's are float32 sums of 1e2 terms of order 1; a wrong scale or a missing term is off by far more
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=2e-5)


def _join(rank, world_size, folder):
    """A folder of this rank's own with the tiny encoder, and the process group."""
    torch.set_num_threads(1)
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
    }
    own = folder / f"rank-{rank}"
    own.mkdir()
    learner_in(own / "first", train_config())  # before the group: save_pretrained writes on rank 0 alone
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    return own


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_linear_layers_are_computed_in_the_configs_precision_as_on_a_gpu(over_ranks, precision):
    """DeepSpeed's forward pass switches an autocast off that it sees around it, which it can only of a GPU's."""
    assert over_ranks[precision] == {"bf16": ["torch.bfloat16"], "fp32": ["torch.float32"]}[precision]


def test_a_step_in_another_precision_than_the_configs_is_an_error(tmp_path):
    encoder = learner_in(tmp_path, train_config()).encoder
    features = inputs_of(encoder, [[2, 7, 3]])
    with (
        pytest.raises(RuntimeError, match=r"precision: bf16, .* torch\.float32"),
        check_precision(encoder, "bf16"),
    ):
        encoder(features)


def _rank(rank, world_size, folder):
    own = _join(rank, world_size, folder)
    results = {}
    for stage, cache in COMBINATIONS:
        config = train_config(deepspeed__stage=stage, batch__gradient_cache=cache, **EVERYTHING)
        learner = learner_of(own / "first", config)
        engine, loss = _learn_a_step(learner, config, own, rank, world_size)
        found = {"loss": torch.tensor(mean_over_ranks(loss))}
        for name, weight in learner.named_parameters():
            gradient = deepspeed.utils.safe_get_full_grad(weight)
            if gradient is not None:
                found[name] = gradient.clone()
        results[f"{stage} {cache}"] = found
        engine.destroy()
    for precision in ("bf16", "fp32"):
        results[precision] = _precisions_as_on_a_gpu(precision, own, rank, world_size)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


def _learn_a_step(learner, config, own, rank, world_size):
    prepared = prepared_of(GROUPS, config, learner.encoder, own)
    retained = retained_by(learner.encoder, prepared)
    engine = deepspeed_engine(learner, config, num_steps=1)
    with check_precision(learner.encoder, config.precision):
        loss = step_of(engine, config, retained, world_size).forward_backward(
            work_for(config, prepared, retained, rank, world_size)
        )
    return engine, loss


def _precisions_as_on_a_gpu(precision, own, rank, world_size):
    """The precisions of linear layers in one step."""
    config = train_config(precision=precision)
    learner = learner_of(own / "first", config)
    seen = set()

    def note(_module, _inputs, output):
        if torch.is_grad_enabled():  # else these are the texts of the base distillation, encoded before
            seen.add(str(output.dtype))

    for module in learner.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note)
    is_enabled = torch.is_autocast_enabled
    with pytest.MonkeyPatch.context() as patch:
        # Without a name: of a GPU.
        patch.setattr(torch, "is_autocast_enabled", lambda device_type="cpu": is_enabled(device_type))
        engine, _ = _learn_a_step(learner, config, own, rank, world_size)
    engine.destroy()
    return sorted(seen)


def learner_of(folder, config):
    encoder = new_encoder(str(folder), pooling="mean", trust_remote_code=False).eval()
    temperature = config.loss.temperature
    return Learner(encoder, temperature.value, learned=temperature.learned, precision=config.precision).eval()
