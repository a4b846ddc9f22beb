"""`dualview study` as a file, for `ray job submit -- python jobs/study.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("study")
