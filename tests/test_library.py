"""`import dualview`: what it offers, and what it does not import for it."""

from pathlib import Path
import subprocess
import sys

import pytest

import dualview
from dualview.errors import InputError
from dualview.extras import needs

ROOT = Path(__file__).parents[1]
HEAVY = ("ray", "torch", "deepspeed", "transformers", "sentence_transformers", "boto3", "pyarrow")


def imported(program: str) -> set[str]:
    """Which of the heavy packages a process has imported after the program."""
    told = f"{program}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(process.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "program",
    [
        "import dualview",
        "import dualview; assert dualview.p_mrr(['a', 'b'], ['b', 'a'], ['a']) == 0.5",
        "import dualview; dualview.paired_difference({('t', 'q'): 1.0}, {('t', 'q'): 0.5}, 10, 0)",
        "import dualview; dualview.train, dualview.generate, dualview.evaluate, dualview.search",
        "import dualview.cli\ntry: dualview.cli.main(['--help'])\nexcept SystemExit: print()",
    ],
)
def test_metrics_and_help_import_nothing_heavy(program: str) -> None:
    light = {"pyarrow"} if "dualview.train" in program else set()  # the records of a config
    assert imported(program) <= light


def test_every_public_name_is_there_and_documented() -> None:
    assert set(dualview.__all__) <= set(dir(dualview))
    for name in dualview.__all__:
        assert getattr(dualview, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dualview.nothing  # noqa: B018


def test_the_verbs_take_changes_and_tell_mistakes_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"train-dual.yaml: unknown key `colour`"):
        dualview.train(ROOT / "configs/demo/train-dual.yaml", colour="red")
    with pytest.raises(InputError, match=r"^GenerateConfig: missing key `bootstrap`"):
        dualview.generate({"output": "x"})


def test_a_package_that_is_not_installed_names_its_extra() -> None:
    with (
        pytest.raises(
            InputError,
            match=r"^training needs the package not_there, .*: pip install 'dualview\[train\]'$",
        ),
        needs("train", "training"),
    ):
        import not_there  # noqa: F401
    with pytest.raises(ModuleNotFoundError), needs("train", "training"):
        import dualview.not_there  # noqa: F401
