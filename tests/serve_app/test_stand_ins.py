"""`seedvc serve --stand-ins`, which `make serve-redis` runs: a replica dies, and its call comes back on the other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from benchmarks.headless import Recorded, calling
from benchmarks.latency import Talk
from serve_app.calls.registry import owner_of
from serve_app.commands.signalling import CallFailed
from serve_app.instance import free_port
from tests.serve_app.processes import ROOT, descendants, listening
from tests.serve_app.redis_server import requires_redis

START_TIMEOUT_S = 120.0
BACK_WITHIN_S = 60.0
WANTED: dict[str, Any] = {"mode": "constant", "block_ms": 360, "adapt": False}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Address and process of configs/local.yaml with stand-ins, in a folder of its own; nothing of it stays."""
    config, log, port = tmp_path / "local.yaml", tmp_path / "log", free_port()
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    tree["http_options"]["port"] = port
    for deployment in tree["applications"][0]["deployments"]:
        if deployment["name"] == "Stages":
            deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}  # which start sooner than two
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "serve_app.cli", "serve", str(config), "--stand-ins"]
    with log.open("wb") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while b"serving at" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
        assert not [pid for pid in below if "redis" in command_of(pid)]
        assert not (tmp_path / "data").exists(), "voices were kept in S3 only"
    finally:
        process.kill()
        process.wait()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return ""


@requires_redis
@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_a_call_comes_back_when_its_replica_dies(server: tuple[str, int]) -> None:
    url, pid = server
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready", "full": []}
        reference = (ROOT / "samples" / "voices" / "vera.flac").read_bytes()
        added = await client.post("/v1/voices/add", data={"name": "mine"}, files={"files": reference})
        assert added.status_code == 200, added.text
    voice = added.json()["voice_id"]
    talk = Talk(0.0)
    async with calling(url, talk, voice=voice, **WANTED) as lost:
        await heard(lost)
        os.kill(holder(pid), signal.SIGKILL)
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            try:
                async with calling(url, talk, replaces=lost.session) as back:
                    await heard(back)
                break
            except CallFailed as failure:
                assert failure.passing, failure
                await asyncio.sleep(0.2)
    assert owner_of(back.session) != owner_of(lost.session)
    usual = {"usual_delay_ms": 0}
    assert back.settings | usual == lost.settings | usual
    assert back.settings["voice"] == voice


async def heard(recorded: Recorded) -> None:
    """Waits until converted sound comes."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while not any(np.abs(frame).max() > 0.01 for frame in recorded.heard[-50:]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert not recorded.refusals


def holder(pid: int) -> int:
    """The ingress replica that holds the one call: a call's media need a UDP socket."""
    (found,) = {
        each
        for each in descendants(pid)
        if "Ingress" in command_of(each) and any(one.protocol.startswith("udp") for one in listening(each))
    }
    return found
