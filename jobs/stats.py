"""Figures of a generate run, and its data set card: python jobs/stats.py --data s3://bucket/run"""

from argparse import ArgumentParser

from dualview.errors import one_sentence
from dualview.runs.run import open_run
from dualview.storage import check_reachable, open_store
from dualview.synthesis.card import put_card
from dualview.synthesis.stats import print_stats, run_stats


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, metavar="URL", help="the output of a generate run")
    parser.add_argument(
        "--card",
        action="store_true",
        help="also put the card beside the data of a finished run: README.md, or README-0001.md after it has grown",
    )
    arguments = parser.parse_args()
    store = open_store(arguments.data)
    check_reachable(store)
    run = open_run(store)
    if arguments.card:
        key, new = put_card(run)
        print(f"{store.url}/{key}: {'the card is put' if new else 'stands already, and stays as it is'}")
    print_stats(run_stats(run))


if __name__ == "__main__":
    with one_sentence():
        main()
