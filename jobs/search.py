"""One query under two instructions, side by side: python jobs/search.py --evaluation out/demo/evaluation"""

from argparse import ArgumentParser

from dualview.errors import InputError, one_sentence


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--evaluation", required=True, metavar="URL", help="the output of jobs/evaluate.py")
    parser.add_argument("--query", metavar="TEXT", help="yours; without it, one of the benchmark's")
    parser.add_argument(
        "--instruction",
        action="append",
        default=[],
        metavar="TEXT",
        help="beside the query; repeat it to compare several",
    )
    arguments = parser.parse_args()
    if arguments.instruction and arguments.query is None:
        raise InputError('--instruction: stands beside a query, for example --query "main exports"')

    # After the arguments, because they take seconds to import: a mistake in them shows at once.
    from dualview.evaluation.side_by_side import print_found
    from dualview.pipelines.search import search

    print_found(search(arguments.evaluation, arguments.query, arguments.instruction))


if __name__ == "__main__":
    with one_sentence():
        main()
