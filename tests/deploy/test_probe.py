"""What the image's health check and the manifests' probes ask with."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "deploy" / "probe.py"


class _Agent(http.server.BaseHTTPRequestHandler):
    """Lives, and is not ready."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"" if self.path == "/healthz" else b"no link with tokyo")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def ask(path: str, port: int) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "SYNCAGENT_HOME": str(tmp_path), "PROBE_PORT": str(port)}
        return subprocess.run(
            [sys.executable, "-S", PROBE, path], env=environment, capture_output=True, text=True, check=False
        )

    return ask


def test_it_says_what_the_agent_says(
    probe: Callable[..., "subprocess.CompletedProcess[str]"], port: int, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").touch()
    assert probe("healthz", port).returncode == 0
    done = probe("readyz", port)
    assert (done.returncode, done.stderr) == (1, "readyz: 503 no link with tokyo\n")
    assert probe("healthz", 1).returncode == 1


def test_a_site_that_joins_lives_and_is_not_ready(
    probe: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert (probe("healthz", 1).returncode, probe("readyz", 1).returncode) == (0, 1)
    (tmp_path / "config.toml").touch()
    (tmp_path / "joining.json").touch()
    assert (probe("healthz", 1).returncode, probe("readyz", 1).returncode) == (0, 1)
