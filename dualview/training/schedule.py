"""How a run spends its budget: number of steps, learning-rate schedule, and floating-point operations."""

from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.retrieval.encoder import num_dense_parameters
from dualview.training.batches import Sampler
from dualview.training.model import untouched_encoder
from dualview.training.prepared import Prepared


def sampler_of(config: TrainConfig, prepared: Prepared) -> Sampler:
    return Sampler(prepared, config.batch, homogeneous=config.mixture.homogeneous, seed=config.seed)


def num_steps_of(config: TrainConfig, sampler: Sampler) -> int:
    """Number of steps that the budget allows."""
    budget = config.budget.model_dump(exclude={"petaflop"})
    if (petaflop := config.budget.petaflop) is not None:
        budget["tokens"] = tokens_of(petaflop, config)
    return sampler.num_steps(**budget)


def use_of_parts(
    config: TrainConfig, prepared: Prepared, sampler: Sampler, num_steps: int
) -> list[dict[str, int]]:
    """For each part: its groups, its groups that no step uses, and its instances over all steps.

    Raises InputError if the steps use no group of a part.
    """
    uses = sampler.uses(num_steps)
    use = []
    for number, part in enumerate(config.mixture.parts):
        of_part = prepared.part == number
        unused = int((uses[of_part] == 0).sum())
        if unused == of_part.sum():
            raise InputError(
                f"budget: {num_steps} steps use nothing of mixture.parts.{number} ({part.data}); expected more steps"
            )
        instances = int((uses[of_part] * prepared.num_views[of_part]).sum())
        use.append({"groups": int(of_part.sum()), "groups_unused": unused, "instances_used": instances})
    return use


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up over the first `warmup_share` of the steps, then linear decay to 0."""
    warmup = max(1, round(num_steps * warmup_share))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))


def operations(config: TrainConfig, num_parameters: int, num_tokens: int) -> float:
    """Floating-point operations for num_tokens tokens, without attention scores (arXiv 2001.08361, section 2.1).

    Per weight and token: two forward, four backward, and two for each repeated forward pass.
    num_parameters: those that every token passes through.
    """
    repeats = config.batch.gradient_cache + (
        config.encoder.activation_checkpointing and not config.encoder.compile
    )
    return float((6 + 2 * repeats) * num_parameters * num_tokens)


def tokens_of(petaflop: float, config: TrainConfig) -> int:
    """Number of tokens that this many operations pay for; at least 1."""
    num_parameters = num_dense_parameters(untouched_encoder(config))
    return max(1, int(petaflop * 1e15 / operations(config, num_parameters, 1)))
