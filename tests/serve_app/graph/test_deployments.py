"""Deployments' own part, in this process: when one of them is no longer healthy."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from configs.serve import ServeArgs
from serve_app.graph import batching
from serve_app.graph.batching import MAX_FAILED_BATCHES
from serve_app.graph.deployments import VoiceMaker
from stages.types import BadAudio
from tests.serve_app.fakes import tone


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> VoiceMaker:
    return VoiceMaker(ServeArgs(voices=str(tmp_path_factory.mktemp("voices")), voice_stuck_after_s=300))


@pytest.mark.parametrize("error", [RuntimeError("device-side assert triggered"), MemoryError()])
async def test_a_voice_maker_that_keeps_failing_is_not_healthy_until_it_works_again(
    maker: VoiceMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lost(samples: object, sample_rate: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(maker, "_maker", lost)
        for _ in range(MAX_FAILED_BATCHES):
            await maker.check_health()
            with pytest.raises(type(error)):
                await maker.make(tone(1.0), 22050)
        with pytest.raises(RuntimeError, match="batches failed"):
            await maker.check_health()
    await maker.make(tone(1.5), 22050)
    await maker.check_health()


async def test_recordings_without_a_voice_leave_the_maker_healthy(maker: VoiceMaker) -> None:
    for _ in range(MAX_FAILED_BATCHES + 1):
        with pytest.raises(BadAudio):
            await maker.make(np.zeros(22050, np.float32), 22050)
    await maker.check_health()


async def test_a_voice_maker_that_is_stuck_is_noticed(maker: VoiceMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, free, now_s = threading.Event(), threading.Event(), [0.0]

    def stuck(samples: object, sample_rate: int) -> None:
        inside.set()
        free.wait()

    monkeypatch.setattr(batching, "perf_counter", lambda: now_s[0])
    monkeypatch.setattr(maker, "_maker", stuck)
    making = asyncio.create_task(maker.make(tone(1.0), 22050))
    await asyncio.to_thread(inside.wait)
    now_s[0] = 299.0
    await maker.check_health()
    now_s[0] = 301.0
    with pytest.raises(RuntimeError, match="has been running for 301 s"):
        await maker.check_health()
    free.set()
    await making
    await maker.check_health()
