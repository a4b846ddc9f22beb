"""`dualview stats` as a file, for `ray job submit -- python jobs/stats.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("stats")
