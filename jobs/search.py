"""`dualview search` as a file, for `ray job submit -- python jobs/search.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("search")
