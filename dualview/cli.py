"""The command line: dualview VERB --config FILE [--set KEY=VALUE] [--describe] [--dry-run]

jobs/VERB.py is the same command as a file, for `ray job submit`.
"""

# Each verb imports what it needs when it runs: pydantic takes a moment, Ray and torch take seconds. The config is read
# before them, so that a mistake in it is reported at once.

from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import json
import os
import sys
from typing import Any

from dualview.errors import InputError, one_sentence
from dualview.extras import needs
from dualview.logs import show_logs


def main(arguments: Sequence[str] | None = None) -> None:
    """`dualview ...`: exits with 2 on a user error and with 3 if something outside the run failed."""
    try:
        try:
            with one_sentence():
                show_logs()
                parsed = _parser().parse_args(arguments)
                parsed.run(parsed)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(verb: str) -> None:
    """`python jobs/VERB.py ...`"""
    main([verb, *sys.argv[1:]])


# --- verbs ----------------------------------------------------------------------------------------


def _generate(arguments: Namespace) -> None:
    from dualview.config.generate import GenerateConfig
    from dualview.config.loading import load

    config = load(GenerateConfig, arguments.config, arguments.set)
    with needs("generate", "generation"):
        if arguments.dry_run:
            from dualview.pipelines.generate.dry_run import dry_run

            dry_run(config)
            return
        from dualview.pipelines.generate.judge_gate import validation_sentences
        from dualview.pipelines.generate.run import generate

    summary = generate(config)
    for sentence in validation_sentences(config, summary["judge_validation"]):
        print(sentence)
    print(
        f"{config.output}: {json.dumps({key: summary[key] for key in summary if key != 'judge_validation'})}"
    )


def _train(arguments: Namespace) -> None:
    from dualview.config.loading import load
    from dualview.config.train import TrainConfig

    config = load(TrainConfig, arguments.config, arguments.set)
    with needs("train", "training"):
        from dualview.pipelines.train.run import train

    result = train(config)
    print(
        f"{config.output}/encoder: {result['steps']} steps, {result['instances']:,} instances,"
        f" final loss {result['losses'][-1]:.3f}, {result['groups_per_second']:.1f} groups/s"
    )


def _evaluate(arguments: Namespace) -> None:
    from dualview.config.evaluate import EvaluateConfig
    from dualview.config.loading import load

    config = load(EvaluateConfig, arguments.config, arguments.set)
    with needs("evaluate", "evaluation"):
        from dualview.evaluation.report import print_table
        from dualview.pipelines.evaluate import evaluate

    print_table(evaluate(config))


def _adapt(arguments: Namespace) -> None:
    from dualview.config.adapt import AdaptConfig
    from dualview.config.loading import load

    config = load(AdaptConfig, arguments.config, arguments.set)
    with needs("adapt", "adapting an index"):
        from dualview.catalog.report import print_adapted
        from dualview.pipelines.adapt.run import adapt

    print_adapted(config, adapt(config))


def _judge(arguments: Namespace) -> None:
    from dualview.config.judge import JudgeConfig
    from dualview.config.loading import load

    config = load(JudgeConfig, arguments.config, arguments.set)
    with needs("generate", "judging"):
        from dualview.pipelines.judge import judge, print_judged

    print_judged(config, judge(config))


def _study(arguments: Namespace) -> None:
    from dualview.config.loading import load
    from dualview.config.study import StudyConfig
    from dualview.studies.plans import plan_study

    study = load(StudyConfig, arguments.config, arguments.set)
    plan = plan_study(study)
    with needs("all", "a study"):
        from dualview.studies.render import grid_table
    print(grid_table(plan))
    with needs("all", "a study"):
        from dualview.pipelines.study import estimate_study, report_study, run_study

    if arguments.dry_run:
        print(estimate_study(study, plan))
        return
    runs, failed = run_study(study)
    print(report_study(study, runs, failed))
    if failed:
        sys.exit(3)


def _search(arguments: Namespace) -> None:
    if arguments.instruction and arguments.query is None:
        raise InputError('--instruction: needs a query, for example --query "main exports"')
    if (arguments.evaluation is None) == (arguments.run_url is None):
        raise InputError("expected --evaluation or --run, the output of dualview evaluate or dualview adapt")
    with needs("evaluate", "search"):
        from dualview.evaluation.side_by_side import print_found
        from dualview.pipelines.search import search
    if arguments.evaluation is not None:
        print_found(search(arguments.evaluation, arguments.query, arguments.instruction))
        return
    if arguments.query is None:
        raise InputError('--run: needs a query, for example --query "prison escape"')
    with needs("adapt", "search"):
        from dualview.pipelines.adapt.search import search_adapted

    print_found(search_adapted(arguments.run_url, arguments.query, arguments.instruction, arguments.strength))


def _stats(arguments: Namespace) -> None:
    from dualview.runs.run import open_run
    from dualview.storage import check_reachable, open_store
    from dualview.synthesis.card import put_card
    from dualview.synthesis.stats import print_stats, run_stats

    store = open_store(arguments.data)
    check_reachable(store)
    run = open_run(store)
    if arguments.card:
        key, new = put_card(run)
        print(f"{store.url}/{key}: {'card written' if new else 'already exists, left unchanged'}")
    print_stats(run_stats(run))


@dataclass(frozen=True)
class Verb:
    """A command that takes a config, or only flags of its own."""

    run: Callable[[Namespace], None]
    summary: str  # one line, for --help
    example: str
    has_config: bool = True
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


VERBS = {
    "generate": Verb(
        _generate,
        "write and verify complementary instructions",
        "--config configs/demo/facets.yaml",
        flags={
            "--dry-run": {
                "action": "store_true",
                "help": "print the plan, the prompts and the estimated cost; write nothing",
            }
        },
    ),
    "train": Verb(_train, "train an encoder on dual views", "--config configs/demo/train-dual.yaml"),
    "evaluate": Verb(
        _evaluate,
        "evaluate encoders on instruction-following benchmarks",
        "--config configs/demo/evaluate.yaml",
    ),
    "adapt": Verb(
        _adapt,
        "teach an index to follow instructions, from metadata",
        "--config configs/adapt.yaml --set corpus=corpus.jsonl --set noun=movies",
    ),
    "judge": Verb(_judge, "measure an LLM judge against gold labels", "--config configs/demo/judge.yaml"),
    "search": Verb(
        _search,
        "search one query under two instructions, side by side",
        "--evaluation out/demo/evaluation",
        has_config=False,
        flags={
            "--evaluation": {"metavar": "URL", "help": "output of dualview evaluate"},
            "--run": {"metavar": "URL", "dest": "run_url", "help": "output of dualview adapt"},
            "--strength": {
                "type": float,
                "metavar": "NUMBER",
                "help": "with --run: how much the instruction counts; by default, as the run has chosen",
            },
            "--query": {"metavar": "TEXT", "help": "query to search for; by default, one from the benchmark"},
            "--instruction": {
                "action": "append",
                "default": [],
                "metavar": "TEXT",
                "help": "instruction for the query; repeat to compare several",
            },
        },
    ),
    "study": Verb(
        _study,
        "run a grid of trainings and report the results",
        "--config configs/studies/study.yaml",
        flags={
            "--dry-run": {
                "action": "store_true",
                "help": "print the grid, its budgets and the estimated cost; run nothing",
            }
        },
    ),
    "stats": Verb(
        _stats,
        "show the statistics of a generate run",
        "--data s3://bucket/run",
        has_config=False,
        flags={
            "--data": {"required": True, "metavar": "URL", "help": "output of a generate run"},
            "--card": {
                "action": "store_true",
                "help": "also write a data set card beside the data of a finished run: README.md, or README-0001.md if the"
                " run has grown",
            },
        },
    ),
}


# --- arguments ------------------------------------------------------------------------------------


class _Describe(Action):
    """Prints every key of the verb's config and exits."""

    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        from dualview.config.reference import SCHEMAS, describe

        print(describe(SCHEMAS[str(self.const)]))
        parser.exit()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="dualview",
        description="Instruction-following retrieval: dual-view data, training and evaluation on Ray.",
        epilog="dualview VERB --help shows the options of a verb, dualview VERB --describe every key of its config.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        command = verbs.add_parser(
            name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}: dualview {name} {verb.example}",
        )
        command.set_defaults(run=verb.run)
        if verb.has_config:
            command.add_argument("--config", required=True, metavar="FILE", help="a YAML file, see configs/")
            command.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="override one key of the file, for example --set actors.num=2; repeatable",
            )
            command.add_argument(
                "--describe",
                action=_Describe,
                nargs=0,
                const=name,
                help="print every key of the config with its type and meaning, and exit",
            )
        for flag, options in verb.flags.items():
            command.add_argument(flag, **options)
    return parser


if __name__ == "__main__":
    main()
