"""How a run spends its budget: its steps, the learning rate over them, and the operations that they take."""

from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.retrieval.encoder import num_dense_parameters
from dualview.training.batches import Sampler
from dualview.training.model import untouched_encoder
from dualview.training.prepared import Prepared


def sampler_of(config: TrainConfig, prepared: Prepared) -> Sampler:
    return Sampler(prepared, config.batch, homogeneous=config.mixture.homogeneous, seed=config.seed)


def num_steps_of(config: TrainConfig, sampler: Sampler) -> int:
    """How many steps the budget pays for."""
    budget = config.budget.model_dump(exclude={"petaflop"})
    if (petaflop := config.budget.petaflop) is not None:
        budget["tokens"] = tokens_of(petaflop, config)
    return sampler.num_steps(**budget)


def use_of_parts(
    config: TrainConfig, prepared: Prepared, sampler: Sampler, num_steps: int
) -> list[dict[str, int]]:
    """What the steps take of each part: its groups, those that are in no step, and the instances of all steps.

    Raises InputError where they take nothing of a part.
    """
    uses = sampler.uses(num_steps)
    use = []
    for number, part in enumerate(config.mixture.parts):
        of_part = prepared.part == number
        unused = int((uses[of_part] == 0).sum())
        if unused == of_part.sum():
            raise InputError(
                f"budget: {num_steps} steps take nothing of mixture.parts.{number} ({part.data}); expected more steps"
            )
        instances = int((uses[of_part] * prepared.num_views[of_part]).sum())
        use.append({"groups": int(of_part.sum()), "groups_unused": unused, "instances_used": instances})
    return use


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up over the first share of the steps, then linear decay to 0."""
    warmup = max(1, round(num_steps * warmup_share))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))


def operations(config: TrainConfig, num_parameters: int, num_tokens: int) -> float:
    """Floating-point operations of so many tokens, attention's own left out (arXiv 2001.08361, section 2.1).

    Two a weight and token forward, four backward, two more for each time that forward is done again.
    num_parameters: those that every token passes through.
    """
    repeats = config.batch.gradient_cache + config.encoder.activation_checkpointing
    return float((6 + 2 * repeats) * num_parameters * num_tokens)


def tokens_of(petaflop: float, config: TrainConfig) -> int:
    """For how many tokens so many operations are enough."""
    num_parameters = num_dense_parameters(untouched_encoder(config))
    return max(1, int(petaflop * 1e15 / operations(config, num_parameters, 1)))
