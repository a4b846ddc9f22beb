"""The rows of a finished run as the inputs of another run."""

from pathlib import Path

from finished_run import ExtendedAfterReading, extend_run, finish_run, row
import pytest

from dualview.errors import InputError
from dualview.runs import run
from dualview.sources.drafts import Drafts
from dualview.storage import open_store


def test_a_run_that_is_extended_meanwhile_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_run(open_store(str(tmp_path)), [[row("a"), row("b")], [row("c")]], {})
    source = Drafts(str(tmp_path))
    before = source.inputs()
    assert [(source_input.name, source_input.num_rows) for source_input in before] == [
        ("data/shard-000000.parquet", 2),
        ("data/shard-000001.parquet", 1),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(run, "open_store", lambda url: ExtendedAfterReading(Path(url), (row("d"),)))
        assert source.inputs() == before
    extend_run(open_store(str(tmp_path)), [row("e")])
    with pytest.raises(InputError, match=r"source.run: the generate run at .* is not finished"):
        source.inputs()
