"""The whole pipeline on real input, on this machine: S3, Ray, vLLM, DeepSpeed, evaluation, a page to read."""

from argparse import ArgumentParser
from pathlib import Path

from dualview.demo import DUAL_VIEWS, FROZEN_DOCUMENTS, run_demo
from dualview.errors import one_sentence


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument(
        "--general", type=Path, metavar="FOLDER", help="a BEIR folder, to watch general retrieval"
    )
    parser.add_argument("--frozen", action="store_true", help="the demo of frozen documents instead")
    arguments = parser.parse_args()
    story = FROZEN_DOCUMENTS if arguments.frozen else DUAL_VIEWS
    run_demo(story, arguments.out, arguments.general)


if __name__ == "__main__":
    with one_sentence():
        main()
