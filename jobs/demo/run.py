"""Runs the whole pipeline on real input on this machine: Ray, DeepSpeed, evaluation, a search and an HTML report."""

from argparse import ArgumentParser
from pathlib import Path
import sys

from quiet import run_quietly

from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument(
        "--general", type=Path, metavar="FOLDER", help="a BEIR folder, to measure general retrieval"
    )
    parser.add_argument(
        "--story",
        choices=("first", "frozen", "dual"),
        default="first",
        help="first: an index learns to follow instructions, in minutes; frozen: in full; dual: one view against both",
    )
    parser.add_argument("--loud", action="store_true", help="also show library output")
    arguments = parser.parse_args()

    if arguments.loud:
        from stories import STORIES, run_demo  # takes seconds to import

        show_logs()
        run_demo(STORIES[arguments.story], arguments.out, arguments.general)
    else:
        sys.exit(run_quietly([sys.executable, *sys.argv, "--loud"], arguments.out / "log.txt"))


if __name__ == "__main__":
    with one_sentence():
        main()
