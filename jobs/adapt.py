"""`dualview adapt` as a file, for `ray job submit -- python jobs/adapt.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("adapt")
