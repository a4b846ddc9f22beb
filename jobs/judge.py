"""Measures an LLM judge against gold labels: python jobs/judge.py --config configs/demo/judge.yaml"""

from dualview.config.judge import JudgeConfig
from dualview.config.loading import from_command_line
from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    show_logs()
    config, _ = from_command_line(JudgeConfig, __doc__)

    # After the config, because they take seconds to import: a mistake in it shows at once.
    from dualview.pipelines.judge import judge, print_judged

    print_judged(config, judge(config))


if __name__ == "__main__":
    with one_sentence():
        main()
