"""`seedvc serve`, started as a user starts it: what it listens on, who may give it jobs, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.cli import main
from serve_app.instance import free_port
from tests.serve_app.processes import descendants, listening, nobody, python_below

CONFIGS = Path(__file__).parents[2] / "configs"
START_TIMEOUT_S = 240.0
JOB = {"entrypoint": "true"}


@dataclass(frozen=True)
class Server:
    """A running `seedvc serve`."""

    pid: int
    port: int
    token_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def values_of(variable: str, pid: int) -> set[str]:
    """What an environment variable is in the processes below this one; some write their title over theirs."""
    found = set()
    for each in descendants(pid)[1:]:
        for setting in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"):
            name, _, value = setting.decode(errors="replace").partition("=")
            if name == variable:
                found.add(value)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """configs/local.yaml from a folder with a space in its path, for a user without a home, authentication told off."""
    folder = tmp_path_factory.mktemp("my voices")
    config, port = folder / "local.yaml", free_port()
    tree = yaml.safe_load((CONFIGS / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    config.write_text(yaml.safe_dump(tree))
    command = [*nobody(), str(python_below(folder / "nc")), "-m", "serve_app.cli", "serve", str(config)]
    environment = {"PATH": os.environ["PATH"], "RAY_AUTH_MODE": "disabled"}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"serving at" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        assert values_of("RAY_AUTH_MODE", process.pid) == {"token"}
        (token_file,) = values_of("RAY_AUTH_TOKEN_PATH", process.pid)
        yield Server(process.pid, port, Path(token_file))
        processes = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
        assert not Path(token_file).parent.exists()
        deadline = time.monotonic() + 20
        while left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, f"left running: {left}"
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()


@pytest.mark.e2e
def test_it_serves(server: Server) -> None:
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200


@pytest.mark.e2e
def test_every_socket_is_on_loopback(server: Server) -> None:
    sockets = listening(server.pid)
    assert server.port in [each.port for each in sockets]
    assert len(sockets) > 10, "Ray's own processes are not among the sockets"
    assert [each for each in sockets if not each.is_loopback] == []


@pytest.mark.e2e
def test_jobs_need_the_token(server: Server) -> None:
    token = server.token_file.read_text()
    answers: dict[str | None, set[int]] = {None: set(), "0" * 64: set(), token: set()}
    for port in {each.port for each in listening(server.pid) if each.protocol.startswith("tcp")} - {server.port}:
        for presented, statuses in answers.items():
            headers = {} if presented is None else {"Authorization": f"Bearer {presented}"}
            try:
                url = f"http://127.0.0.1:{port}/api/job_agent/jobs/"
                statuses.add(httpx.post(url, json=JOB, headers=headers, timeout=10).status_code)
            except httpx.HTTPError:  # a port that speaks gRPC
                continue
    right = answers.pop(token)
    assert right and not right & {401, 403}, "the token opens nothing, so the others show nothing"
    for statuses in answers.values():
        assert statuses & {401, 403}
        assert all(status >= 400 for status in statuses)


@pytest.mark.e2e
def test_the_token_is_private(server: Server) -> None:
    assert stat.S_IMODE(server.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.token_file.parent.stat().st_mode) == 0o700
    assert len(server.token_file.read_text()) == 64


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path) -> None:
    tree = yaml.safe_load((CONFIGS / "local.yaml").read_text())
    tree["http_options"]["port"] = server.port
    config = tmp_path / "local.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["serve", str(config)]) == 2
    assert f"cannot listen at 127.0.0.1:{server.port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not YAML"),
        ("[]", "names no applications"),
        ("applications: [{import_path: 3, name: a}]", "import_path"),
        ("http_options: {port: soon}\napplications: [{import_path: 'a:b'}]", "http_options.port"),
    ],
)
def test_a_config_that_cannot_be_served_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, complaint: str
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(text)
    assert main(["serve", str(config)]) == 2
    told = capsys.readouterr().err
    assert complaint in told and "Traceback" not in told


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: str(path.name))
def test_no_config_has_a_runtime_env(config: Path) -> None:
    """With one, Ray starts workers by a shell line that breaks at a space in the path of Python."""
    assert "runtime_env" not in config.read_text()
