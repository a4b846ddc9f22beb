"""Runs a grid of trainings and reports it: python jobs/study.py --config configs/studies/study.yaml [--dry-run]"""

import sys

from dualview.config.loading import from_command_line
from dualview.config.study import StudyConfig
from dualview.errors import one_sentence
from dualview.logs import show_logs


def main() -> None:
    show_logs()
    study, arguments = from_command_line(
        StudyConfig, __doc__, dry_run="print the grid, its budgets and what they will take, and run nothing"
    )

    from dualview.studies.plans import plan_study
    from dualview.studies.report import grid_table

    plan = plan_study(study)
    print(grid_table(plan))

    from dualview.pipelines.study import estimate_study, report_study, run_study  # seconds to import

    if arguments.dry_run:
        print(estimate_study(study, plan))
        return

    runs, failed = run_study(study)
    print(report_study(study, runs, failed))
    if failed:
        sys.exit(3)


if __name__ == "__main__":
    with one_sentence():
        main()
