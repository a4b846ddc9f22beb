"""`dualview judge` as a file, for `ray job submit -- python jobs/judge.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("judge")
