"""A real coturn on loopback for as long as a test needs it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import free_port

START_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class TurnServer:
    """Where coturn listens, the secret it shares with the server, and what it has written so far."""

    port: int
    secret: str
    log: Path

    @property
    def urls(self) -> list[str]:
        return [f"turn:127.0.0.1:{self.port}?transport=udp"]


@contextmanager
def running_coturn(folder: Path, secret: str) -> Iterator[TurnServer]:
    """Starts coturn with time-limited credentials on a free port, and stops it."""
    program = shutil.which("turnserver")
    assert program is not None, "ask missing() first"
    port, log = free_port(), folder / "turn.log"
    command = [
        program, "-n", "--listening-ip=127.0.0.1", f"--listening-port={port}", "--relay-ip=127.0.0.1",
        "--min-port=50000", "--max-port=50100", "--realm=seedvc.test", "--use-auth-secret",
        f"--static-auth-secret={secret}", "--fingerprint", "--no-tls", "--no-dtls", "--no-cli", "--no-multicast-peers",
        "--no-rfc5780", f"--userdb={folder / 'turn.db'}", f"--pidfile={folder / 'turn.pid'}", "--log-file=stdout",
        "--simple-log", "-v",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait_for(port, process)
            yield TurnServer(port, secret, log)
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"coturn did not listen on port {port} within {START_TIMEOUT_S:.0f} s")
