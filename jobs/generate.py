"""Writes and verifies complementary instructions: python jobs/generate.py --config configs/demo/facets.yaml"""

import json

from dualview.config.generate import GenerateConfig
from dualview.config.loading import from_command_line
from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    show_logs()
    config, arguments = from_command_line(
        GenerateConfig, __doc__, dry_run="print the plan, the prompts and what it would cost; write nothing"
    )

    # After the config, because they take seconds to import: a mistake in it shows at once.
    if arguments.dry_run:
        from dualview.pipelines.generate.dry_run import dry_run

        dry_run(config)
        return
    from dualview.pipelines.generate.judge_gate import exam_sentences
    from dualview.pipelines.generate.run import generate

    summary = generate(config)
    for sentence in exam_sentences(config, summary["exam"]):
        print(sentence)
    print(f"{config.output}: {json.dumps({key: summary[key] for key in summary if key != 'exam'})}")


if __name__ == "__main__":
    with one_sentence():
        main()
