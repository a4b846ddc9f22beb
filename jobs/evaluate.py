"""Measures encoders that read instructions: python jobs/evaluate.py --config configs/demo/evaluate.yaml"""

from dualview.config.evaluate import EvaluateConfig
from dualview.config.loading import from_command_line
from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    show_logs()
    config, _ = from_command_line(EvaluateConfig, __doc__)

    # After the config, because they take seconds to import: a mistake in it shows at once.
    from dualview.evaluation.report import print_table
    from dualview.pipelines.evaluate import evaluate

    print_table(evaluate(config))


if __name__ == "__main__":
    with one_sentence():
        main()
