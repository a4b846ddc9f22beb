"""Trains an encoder on dual views: python jobs/train.py --config configs/demo/train-dual.yaml"""

from dualview.config.loading import from_command_line
from dualview.config.train import TrainConfig
from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    show_logs()
    config, _ = from_command_line(TrainConfig, __doc__)

    # After the config, because they take seconds to import: a mistake in it shows at once.
    from dualview.pipelines.train.run import train

    result = train(config)
    print(
        f"{config.output}/encoder: {result['steps']} steps, {result['instances']:,} instances,"
        f" final loss {result['losses'][-1]:.3f}, {result['groups_per_second']:.1f} groups/s"
    )


if __name__ == "__main__":
    with one_sentence():
        main()
