"""`dualview generate` as a file, for `ray job submit -- python jobs/generate.py ...`"""

from dualview.cli import run

if __name__ == "__main__":
    run("generate")
