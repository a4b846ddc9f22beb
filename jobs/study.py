"""Runs a grid of trainings and reports it: python jobs/study.py --config configs/smoke/study.yaml [--dry-run]"""

import sys

from dualview.config import StudyConfig, from_command_line
from dualview.errors import one_sentence


def main() -> None:
    study, arguments = from_command_line(
        StudyConfig, __doc__, dry_run="print the grid and its budgets, and run nothing"
    )

    from dualview.studies.plans import plan_study
    from dualview.studies.report import grid_table

    print(grid_table(plan_study(study)))
    if arguments.dry_run:
        return

    from dualview.on_ray.study import report_study, run_study  # seconds to import

    runs, failed = run_study(study)
    print(report_study(study, runs, failed))
    if failed:
        sys.exit(3)


if __name__ == "__main__":
    with one_sentence():
        main()
