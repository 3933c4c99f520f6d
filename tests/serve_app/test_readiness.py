"""Whether the service is ready: what must answer is asked seldom, waited for shortly, and told by name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve.exceptions import BackPressureError

from configs.serve import Limits, RtcArgs
from serve_app.calls.registry import Calls
from serve_app.calls.rtc import Rtc
from serve_app.graph import handles
from serve_app.graph.handles import sign_of_life
from serve_app.http import create_app
from serve_app.ingress import log_failed_drain
from serve_app.readiness import ANSWER_S, FRESH_S, Probe, Readiness
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import CallRoom, until
from tests.serve_app.fakes import EchoBackend, recordings_over
from tests.stages.virtual import run_virtual


class Part:
    """Something that answers, fails or hangs."""

    def __init__(self, error: Exception | None = None, takes_s: float = 0.0) -> None:
        self.error, self.takes_s, self.asked = error, takes_s, 0

    async def __call__(self) -> None:
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error


def test_what_fails_is_named_and_tried_again_when_its_answer_is_old() -> None:
    async def run() -> None:
        well, ill = Part(), Part(RuntimeError("the last 3 batches failed"))
        readiness = Readiness({"the encoder": well, "the vocoder": ill})
        assert await readiness.reasons() == ["the vocoder does not answer"]
        ill.error = None
        assert await readiness.reasons() == ["the vocoder does not answer"]
        await asyncio.sleep(FRESH_S)
        assert await readiness.reasons() == []

    run_virtual(run())


def test_a_flood_of_questions_asks_once() -> None:
    async def run() -> None:
        part = Part(takes_s=0.5)
        probe = Probe("the encoder", part)
        assert set(await asyncio.gather(*[probe.reason() for _ in range(500)])) == {None}
        for _ in range(100):
            await asyncio.sleep(0.01)
            await probe.reason()
        assert part.asked == 1
        await asyncio.sleep(FRESH_S)
        await probe.reason()
        assert part.asked == 2

    run_virtual(run())


def test_what_hangs_is_not_waited_for_and_not_asked_again_meanwhile() -> None:
    async def run() -> None:
        part = Part(takes_s=30)
        probe, loop = Probe("the voice store", part), asyncio.get_running_loop()
        assert await probe.reason() == "the voice store does not answer"
        assert loop.time() == pytest.approx(ANSWER_S)
        for _ in range(100):
            assert await probe.reason() is not None
        assert loop.time() == pytest.approx(ANSWER_S) and part.asked == 1
        part.takes_s = 0
        await asyncio.sleep(60)
        assert await probe.reason() is None

    run_virtual(run())


def test_who_asks_and_leaves_hinders_nobody() -> None:
    async def run() -> None:
        part = Part(takes_s=1.0)
        probe = Probe("the encoder", part)
        leaving = asyncio.create_task(probe.reason())
        await asyncio.sleep(0.1)
        leaving.cancel()
        assert await probe.reason() is None and part.asked == 1

    run_virtual(run())


class StageHandle:
    """A stage's handle as far as it is asked for its health."""

    def __init__(self, error: Exception | None = None, takes_s: float = 0.0) -> None:
        self.part, self.cancelled = Part(error, takes_s), 0
        self.check_health = self

    def remote(self) -> StageHandle:
        return self

    def __await__(self) -> Any:
        return self.part().__await__()

    def cancel(self) -> None:
        self.cancelled += 1


class Answered:
    answered_s = float("-inf")


def test_a_stage_that_is_full_or_has_just_answered_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "monotonic", lambda: 100.0)

    async def run() -> None:
        stages: Any = Answered()
        full: Any = StageHandle(BackPressureError(num_queued_requests=1, max_queued_requests=1))
        await sign_of_life(full, stages)()
        ill, hung = StageHandle(RuntimeError("stuck")), StageHandle(takes_s=1000)
        handle: Any
        for handle, error in ((ill, RuntimeError), (hung, TimeoutError)):
            with pytest.raises(error):
                await sign_of_life(handle, stages)()
        assert hung.cancelled == 1
        stages.answered_s = 95.0
        for handle in (ill, hung):
            await sign_of_life(handle, stages)()
            assert handle.part.asked == 1

    run_virtual(run())


async def get(path: str, folder: Path, calls: Calls | None = None, **stages: Part) -> httpx.Response:
    """A request to an app with these stages behind it."""
    rtc = None if calls is None else Rtc(calls, None, list, calls.args)  # type: ignore[arg-type]
    app = create_app(recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits()), rtc, None, stages)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path)


async def test_readiness_over_http(tmp_path: Path) -> None:
    assert (await get("/readyz", tmp_path, encoder=Part())).json() == {"status": "ready", "full": []}
    answer = await get("/readyz", tmp_path, encoder=Part(), vocoder=Part(RuntimeError("inside")))
    assert answer.status_code == 503
    detail = answer.json()["detail"]
    assert (detail["status"], detail["reasons"]) == ("not_ready", ["vocoder does not answer"])
    assert "inside" not in answer.text
    assert (await get("/healthz", tmp_path, vocoder=Part(RuntimeError()))).status_code == 200


async def test_a_store_that_fails_or_a_server_that_leaves_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = CallRoom(RtcArgs(max_calls=1))
    assert (await get("/readyz", tmp_path, room.calls)).json()["full"] == []
    await room.calls.retire()
    answer = await get("/readyz", tmp_path, room.calls)
    assert answer.status_code == 503 and answer.json()["detail"]["reasons"] == ["this server goes away"]

    def broken(store: FolderVoiceStore) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(FolderVoiceStore, "check", broken)
    answer = await get("/readyz", tmp_path)
    assert answer.status_code == 503 and answer.json()["detail"]["reasons"] == ["the voice store does not answer"]


async def test_a_drain_that_fails_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise AttributeError("_shutting_down")

    for life, seen in ((fails(), True), (asyncio.sleep(0), False)):
        caplog.clear()
        drain: asyncio.Task[None] = asyncio.create_task(life)
        drain.add_done_callback(log_failed_drain)
        await until(drain.done, "the drain is over")
        await asyncio.sleep(0)
        assert ("calls are not told" in caplog.text) == seen
