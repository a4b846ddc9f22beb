"""Writes and verifies complementary instructions: python jobs/generate.py --config configs/demo/facets.yaml"""

import json

from dualview.config import GenerateConfig, from_command_line
from dualview.errors import one_sentence


def main() -> None:
    config = from_command_line(GenerateConfig, __doc__)

    # After the config, because they take seconds to import: a mistake in it shows at once.
    from dualview.on_ray.generate import exam_sentences, generate

    summary = generate(config)
    for sentence in exam_sentences(config, summary["exam"]):
        print(sentence)
    print(f"{config.output}: {json.dumps({key: summary[key] for key in summary if key != 'exam'})}")


if __name__ == "__main__":
    with one_sentence():
        main()
