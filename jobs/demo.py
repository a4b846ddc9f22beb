"""The whole pipeline on real input, on this machine: S3, Ray, vLLM, DeepSpeed, evaluation, a page to read."""

from argparse import ArgumentParser
from pathlib import Path

from dualview.demo import run_demo
from dualview.errors import one_sentence


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where everything goes")
    parser.add_argument("--general", type=Path, help="a BEIR folder, to watch general retrieval")
    arguments = parser.parse_args()
    run_demo(arguments.out, arguments.general)


if __name__ == "__main__":
    with one_sentence():
        main()
