from pathlib import Path

import smollm2


def test_an_existing_checkpoint_is_not_written_again(tmp_path: Path):
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    assert smollm2.checkpoint(folder) == folder
    assert [file.name for file in folder.iterdir()] == ["config.json"]
