"""`dualview evaluate` as a file, for `ray job submit -- python jobs/evaluate.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("evaluate")
