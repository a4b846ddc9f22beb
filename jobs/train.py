"""`dualview train` as a file, for `ray job submit -- python jobs/train.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("train")
