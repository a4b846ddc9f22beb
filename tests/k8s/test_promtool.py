from pathlib import Path
import shutil
import subprocess

from manifests import Build
import pytest
import yaml


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_alerts(build: Build, tmp_path: Path) -> None:
    """Their durations and templates, too, of which test_watching.py knows less."""
    for alerts in build.of("PrometheusRule").values():
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alerts["spec"]))
        command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yaml"]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
