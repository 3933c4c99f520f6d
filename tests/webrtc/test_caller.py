"""The calling side against the answering side, over real sockets on this machine."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.impair import Network
from tests.e2e.turn import running_coturn
from tests.webrtc.network import Sent, rtp
from tests.webrtc.speech import speech_48k
from webrtc.caller import Caller, _Loudspeaker, _Microphone
from webrtc.ice import IceServer, time_limited_credential
from webrtc.opus import FRAME, OpusEncoder, Samples48k
from webrtc.peer import Peer

LIMIT_S = 30.0


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.01)


async def test_sound_goes_both_ways_and_comes_back_after_loss() -> None:
    came, heard = list[Samples48k](), list[Samples48k]()
    network = Network()
    peer, caller = Peer([], on_frame=came.append), Caller()
    speech = speech_48k()[: 100 * FRAME].reshape(-1, FRAME)
    try:
        await caller.accept(await peer.answer(await caller.offer()))
        network.attach(caller.transport)
        await asyncio.wait_for(caller.connected.wait(), LIMIT_S)

        async def card() -> None:
            due_s, number = time.monotonic(), 0
            while True:
                due_s, number = due_s + 0.02, number + 1
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if number == 50:
                    network.lose_next = 1
                heard.append(caller.hear(due_s))
                caller.say(speech[number % len(speech)])
                peer.play(0.3 * np.sin(np.arange(441, dtype=np.float32) * 0.1))

        playing = asyncio.create_task(card())
        await until(lambda: any(np.abs(frame).max() > 0.1 for frame in came[100:]), "the peer hears after the loss")
        await until(lambda: any(np.abs(frame).max() > 0.2 for frame in heard), "the caller hears the peer")
        stats = await caller.follow()
        assert stats.received_packets > 0 and stats.received_bytes > stats.received_packets
        assert stats.sent_packets > 0 and network.lose_next == 0
        playing.cancel()
    finally:
        await caller.close()
        await peer.close()
    assert all(frame.shape == (FRAME,) for frame in heard)
    assert caller.closed.is_set()


async def test_the_loss_that_the_other_side_reports_is_a_share() -> None:
    peer, caller = Peer([], on_frame=lambda frame: None), Caller()
    speech = speech_48k()[: 100 * FRAME].reshape(-1, FRAME)
    try:
        await caller.accept(await peer.answer(await caller.offer()))
        Network(loss=0.4).attach(caller.transport)
        await asyncio.wait_for(caller.connected.wait(), LIMIT_S)
        losses = list[float]()
        async with asyncio.timeout(LIMIT_S):
            for number in itertools.count():
                caller.say(speech[number % len(speech)])
                await asyncio.sleep(0.02)
                losses.append((await caller.follow()).loss_out)
                if losses[-1] > 0.1:
                    break
        assert max(losses) < 1.0
    finally:
        await caller.close()
        await peer.close()


def test_a_frame_that_is_always_held_goes_in_a_pause() -> None:
    loudspeaker, encoder = _Loudspeaker(), OpusEncoder()
    speech = speech_48k()[: 100 * FRAME].reshape(-1, FRAME)
    for number in range(200):
        frame = speech[number] if number < 100 else np.zeros(FRAME, np.float32)
        loudspeaker.add(
            rtp(Sent(number, number * FRAME, encoder.encode(frame), number * 0.02, number * 0.02)), number * 0.02
        )
        if number == 50:
            loudspeaker._hold(speech[number])  # as after the card was ahead of the buffer's clock for once
        loudspeaker.frame(number * 0.02)
        if number == 99:
            assert loudspeaker.stats(None, 0.0, 0, 0).held_ms == 20
    assert loudspeaker.stats(None, 0.0, 0, 0).held_ms == 0


@pytest.mark.skipif(shutil.which("turnserver") is None, reason="not installed: turnserver")
async def test_hanging_up_does_not_wait_for_a_relay_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webrtc.caller.HANG_UP_S", 0.2)
    with running_coturn(tmp_path, "only for tests") as turn:
        credential = time_limited_credential("only for tests", "caller", now_s=time.time(), valid_s=600)
        caller = Caller([IceServer(tuple(turn.urls), *credential)])
        assert "typ relay" in await caller.offer()
    async with asyncio.timeout(LIMIT_S / 2):
        await caller.close()
    assert caller.closed.is_set()


async def test_nothing_is_heard_before_the_other_side_speaks() -> None:
    caller = Caller()
    try:
        assert not caller.hear(time.monotonic()).any()
        assert "useinbandfec=1" in await caller.offer()
    finally:
        await caller.close()


async def test_a_silent_microphone_sends_only_signs_of_life() -> None:
    microphone = _Microphone(asyncio.get_running_loop())
    for _ in range(100):
        microphone.put(np.zeros(FRAME, np.float32))
        while microphone._unsent:
            await microphone.recv()
    assert 2 <= microphone.sent < 15 and microphone.dropped == 0
