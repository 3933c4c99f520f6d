"""A real Redis on a free port: it can be killed, started again empty, and hung."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from serve_app.commands.stand_ins import REDIS, redis_process
from serve_app.instance import free_port
from tests.serve_app.fakes import wait_until

PASSWORD = "only-for-tests"
requires_redis = pytest.mark.skipif(
    shutil.which(REDIS) is None, reason=f"not installed: {REDIS} (see `make test-programs`)"
)


class RedisServer:
    """One server; what it holds goes with it."""

    def __init__(self, password: str = "") -> None:
        self.port, self._password = free_port(), password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = redis_process(self.port, self._password)
        wait_until(self._answers, "Redis listens")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It takes connections, and answers none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextmanager
def running_redis(password: str = "") -> Iterator[RedisServer]:
    """A server for as long as the block runs."""
    server = RedisServer(password)
    server.start()
    try:
        yield server
    finally:
        server.kill()
