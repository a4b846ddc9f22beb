"""The S3 server of the overlay `kind`, as its pod runs it."""

from pathlib import Path
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from manifests import ROOT

SERVER = ROOT / "k8s/overlays/kind/settings/s3.py"
DEADLINE_SECONDS = 120  # against a hang: moto takes seconds to import


def test_it_comes_up_with_the_bucket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = SERVER.read_text().replace("PORT = 9000", f"PORT = {port}").replace("0.0.0.0", "127.0.0.1")
    assert str(port) in script
    server = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        started = time.monotonic()
        while True:  # as the pod's readinessProbe asks
            try:
                with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/dualview") as answer:
                    assert answer.status == 200
                    return
            except (URLError, ConnectionError):  # not yet there, or without the bucket yet
                assert server.poll() is None
                assert time.monotonic() - started < DEADLINE_SECONDS
                time.sleep(0.2)
    finally:
        server.kill()
        server.wait()
