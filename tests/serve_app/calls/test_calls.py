"""Calls from begin to end: both sides joined, changed in mid-call, and no place kept by a call that is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from configs.schema import Mode
from configs.serve import RtcArgs
from serve_app.calls.failing import Failing
from serve_app.calls.protocol import End, Wishes
from serve_app.calls.session import OPUS_MS, Call, stats_message
from serve_app.errors import CallsFull, Refused, Unavailable, VoiceNotFound
from stages.call import BlockReport
from stages.gate import tick_gains
from stages.geometry import TICK_16K
from stages.settings import call_mode
from stages.types import Samples
from tests.serve_app.calls import fakes as call_fakes
from tests.serve_app.calls.fakes import ANSWER, LIVE, CallRoom, audio_offer, until
from webrtc.peer import PeerStats

MARTIN = Wishes(voice="martin")
STOPPED = End("stopped", "the call was ended")


def of_recordings(samples: Samples, n_new: int) -> Any:
    """The gate that only leaves out what is truly silent."""
    return tick_gains(samples)


async def opened(room: CallRoom, told: list[dict[str, Any]] | None = None) -> Call:
    call = room.calls.start(MARTIN, audio_offer(), None if told is None else told.append)
    await call.answered()
    return call


async def over(room: CallRoom, call: Call) -> None:
    """The call has ended, and nothing of it is left."""
    await asyncio.wait_for(call.over.wait(), 10)
    assert room.calls.live == 0
    assert all(peer.hung_up for peer in room.peers)
    room.peers[-1].speak(1.0)  # into a closed stream: nothing happens
    assert room.streams[-1].report.in_flight == 0


async def test_what_is_said_comes_back_converted() -> None:
    room = CallRoom()
    call = await opened(room)
    assert call.answer.result() == ANSWER
    (peer,) = room.peers
    peer.speak(1.0)
    await until(lambda: len(peer.played) >= 5, "five blocks were played")
    assert np.concatenate(peer.played).max() > 0.05
    assert room.stages.voices[0] == "martin"
    call.stop(STOPPED)
    await over(room, call)
    assert peer.messages[-1] == {"type": "end", "reason": "stopped", "message": "the call was ended"}


async def test_statistics_are_told_with_every_part() -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room, told)
    room.peers[0].speak(0.5)
    await until(lambda: any(message["type"] == "stats" for message in told), "statistics came")
    stats = next(message for message in told if message["type"] == "stats")
    expected = (
        "type rtt_ms jitter_ms jitter_buffer_ms loss_in loss_out bitrate_in bitrate_out playout_ms bridged delay_ms "
        "usual_delay_ms"
    )
    assert set(stats) == {*expected.split(), "blocks", "stages_ms", "mouth_to_ear_ms"}
    assert set(stats["blocks"]) == {"done", "late", "dropped", "skipped"}
    json.dumps(stats)
    call.stop(STOPPED)
    await over(room, call)


@pytest.mark.parametrize("mode", ["lowest", "constant"])
async def test_mouth_to_ear_has_the_whole_delay_of_the_conversion_in_it(mode: Mode) -> None:
    room = CallRoom()
    call = room.calls.start(Wishes(voice="martin", mode=mode), audio_offer())
    await call.answered()
    (peer,), (stream,) = room.peers, room.streams
    peer.network = PeerStats(rtt_ms=40.0, jitter_buffer_ms=30.0, playout_ms=10.0)
    peer.speak(0.5)
    await until(lambda: stream.report.block_ms is not None, "a block was converted")
    told = stats_message(peer.stats(), stream)
    added = call_mode(LIVE, mode).block_ms if mode == "lowest" else stream.delay_ms
    assert told["mouth_to_ear_ms"] == round(40 + 30 + 10 + OPUS_MS + stream.usual_delay_ms, 1)
    assert told["mouth_to_ear_ms"] >= 40 + 30 + 10 + OPUS_MS + added
    call.stop(STOPPED)
    await over(room, call)


async def test_a_change_takes_effect_and_is_confirmed_where_it_was_asked() -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room, told)
    (peer,) = room.peers
    assert peer.on_message is not None
    peer.on_message(json.dumps({"type": "change", "voice": "clara", "mode": "constant"}))
    await until(lambda: peer.messages, "the change was confirmed on the data channel")
    assert peer.messages[0]["type"] == "settings"
    assert (peer.messages[0]["voice"], peer.messages[0]["mode"], peer.messages[0]["block_ms"]) == (
        "clara",
        "constant",
        180,
    )
    peer.speak(1.0)
    await until(lambda: "clara" in room.stages.voices, "blocks are made in the new voice")
    assert "settings" not in [message["type"] for message in told]
    call.stop(STOPPED)
    await over(room, call)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ('{"type":"change","voice":"nobody"}', "voice_not_found", "nobody"),
        ('{"type":"change"}', "invalid_message", "at least one of voice"),
        ('{"type":"change","block_ms":90}', "invalid_message", "multiple of 20"),
        ('{"type":"change","steps":0}', "invalid_message", "steps"),
        ('{"type":"start","voice":"martin","sdp":"v=0"}', "invalid_message", "has begun"),
        ('{"type":"dance"}', "invalid_message", "'start', 'candidate', 'change', 'stop'"),
        ("nonsense", "invalid_message", "Invalid JSON"),
        (f'"{"x" * 70000}"', "invalid_message", "65536"),
    ],
)
async def test_a_bad_message_is_explained_and_the_call_goes_on(text: str, code: str, words: str) -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room)
    call.hear(text, told.append)
    await until(lambda: told, "the error was told")
    assert (told[0]["type"], told[0]["code"]) == ("error", code)
    assert words in told[0]["message"]
    room.peers[0].speak(0.5)
    await until(lambda: room.peers[0].played, "the call goes on")
    assert call.settings["voice"] == "martin"
    call.stop(STOPPED)
    await over(room, call)


async def test_a_flood_of_changes_is_refused_not_queued() -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room)
    for _ in range(50):
        call.hear('{"type":"change","bypass":true}', told.append)
    assert {message["code"] for message in told} == {"too_many_changes"}
    call.stop(STOPPED)
    await over(room, call)


async def test_candidates_reach_the_peer_in_order() -> None:
    room = CallRoom()
    call = await opened(room)
    for text in ('{"candidate":"candidate:1","sdpMid":"0"}', '{"candidate":"candidate:2","sdpMid":"0"}', "null"):
        call.hear(f'{{"type":"candidate","candidate":{text}}}', print)
    first, second, last = room.peers[0].candidates
    assert first is not None and second is not None and last is None
    assert (first["candidate"], second["candidate"]) == ("candidate:1", "candidate:2")
    call.stop(STOPPED)
    await over(room, call)


async def test_a_full_house_refuses_until_a_place_is_free() -> None:
    room = CallRoom(RtcArgs(max_calls=2, retry_after_s=7))
    first, second = await opened(room), await opened(room)
    with pytest.raises(CallsFull, match="2 calls are running") as refused:
        await opened(room)
    assert refused.value.retry_after_s == 7
    first.stop(STOPPED)
    await first.over.wait()
    third = await opened(room)
    for call in (second, third):
        call.stop(STOPPED)
    await over(room, third)


@pytest.mark.parametrize(
    ("wishes", "offer", "kind"),
    [
        (Wishes(voice="nobody"), audio_offer(), VoiceNotFound),
        (MARTIN, audio_offer(ufrag="unanswerable"), Refused),
    ],
)
async def test_a_call_that_cannot_begin_frees_its_place(wishes: Wishes, offer: str, kind: type[Exception]) -> None:
    room = CallRoom(RtcArgs(max_calls=1))
    for _ in range(3):
        with pytest.raises(kind):
            await room.calls.start(wishes, offer).answered()
        assert room.calls.live == 0
    assert all(peer.hung_up for peer in room.peers)


async def test_a_client_that_leaves_before_the_answer_frees_its_place() -> None:
    room = CallRoom(RtcArgs(max_calls=1), features_gate=asyncio.Event())
    call = room.calls.start(MARTIN, audio_offer())
    waiting = asyncio.create_task(call.answered())
    await asyncio.sleep(0.01)
    assert room.calls.live == 1
    waiting.cancel()
    await until(lambda: room.calls.live == 0, "the place is free")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(Unavailable, match="before it began"):
        await call.answered()


async def test_a_call_that_is_stopped_at_once_frees_its_place() -> None:
    room = CallRoom(RtcArgs(max_calls=1))
    call = room.calls.start(MARTIN, audio_offer())
    call.stop(STOPPED)  # before its task has run at all
    await asyncio.wait_for(call.over.wait(), 10)
    assert room.calls.live == 0 and not room.peers


async def test_candidates_that_come_before_the_voice_is_ready_are_kept() -> None:
    gate = asyncio.Event()
    room = CallRoom(features_gate=gate)
    call = room.calls.start(MARTIN, audio_offer())
    for _ in range(200):
        call.hear('{"type":"candidate","candidate":{"candidate":"candidate:1","sdpMid":"0"}}', print)
    gate.set()
    await call.answered()
    assert len(room.peers[0].candidates) == 64
    call.stop(STOPPED)
    await over(room, call)


async def test_a_call_ends_with_its_media() -> None:
    room = CallRoom()
    call = await opened(room)
    room.peers[0].reason = "the client hung up"
    room.peers[0].closed.set()
    await over(room, call)
    assert call.end.result() == End("media_failed", "the client hung up")


async def test_a_peer_that_fails_is_no_fault_of_the_network() -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room, told)
    room.peers[0].failed = True
    room.peers[0].closed.set()
    await over(room, call)
    assert (told[-1]["type"], told[-1]["reason"]) == ("end", "internal_error")


@pytest.mark.parametrize(
    ("args", "reason"),
    [(RtcArgs(idle_timeout_s=0.05), "idle"), (RtcArgs(max_call_s=0.05), "time_limit")],
)
async def test_a_call_ends_when_nobody_speaks_or_it_lasts_too_long(args: RtcArgs, reason: str) -> None:
    room, told = CallRoom(args), list[dict[str, Any]]()
    call = await opened(room, told)
    await over(room, call)
    assert told[-1]["type"] == "end" and told[-1]["reason"] == reason


async def test_a_silent_call_is_idle_though_its_own_voice_is_passed_on() -> None:
    room, told = CallRoom(RtcArgs(idle_timeout_s=0.2), gate=of_recordings), list[dict[str, Any]]()
    call = room.calls.start(MARTIN.model_copy(update={"bypass": True}), audio_offer(), told.append)
    await call.answered()
    (peer,) = room.peers
    async with asyncio.timeout(10):
        while not call.over.is_set():
            peer.on_frame(np.zeros(TICK_16K, np.float32))
            await asyncio.sleep(0.005)
    assert peer.played
    assert told[-1]["type"] == "end" and told[-1]["reason"] == "idle"


async def test_a_call_lasts_for_as_long_as_somebody_speaks() -> None:
    room = CallRoom(RtcArgs(idle_timeout_s=0.3))
    call = await opened(room)
    for _ in range(30):
        room.peers[0].speak(0.2)
        await asyncio.sleep(0.02)
    assert not call.over.is_set()
    await over(room, call)


def said(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in told if message["type"] == kind]


async def speaking(room: CallRoom, until_true: Callable[[], Any]) -> None:
    """The client speaks until something has happened."""
    async with asyncio.timeout(10):
        while not until_true():
            room.peers[-1].speak(0.2)
            await asyncio.sleep(0.01)


FAILURES = [ZeroDivisionError("inside"), RuntimeError("device-side inside"), MemoryError("inside")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_a_failing_stage_costs_blocks_and_is_told_and_logged_once(
    caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    call = await opened(room, told)
    room.stages.failure = failure
    await speaking(room, lambda: room.streams[0].report.failed >= 20)
    assert not call.over.is_set()
    room.stages.failure = None
    done = room.streams[0].report.done
    await speaking(room, lambda: room.streams[0].report.done > done + 3)
    call.stop(STOPPED)
    await over(room, call)
    (error,) = said(told, "error")
    assert error["code"] == "internal_error" and "inside" not in json.dumps(told)
    assert [r.getMessage() for r in caplog.records].count("a block failed") == 1
    assert "blocks failed" in caplog.text


@pytest.mark.parametrize(
    ("failure", "words"), [(ZeroDivisionError("inside"), "failed on our side"), (VoiceNotFound("clara"), "'clara'")]
)
async def test_a_call_of_which_every_block_fails_ends_and_says_why(failure: Exception, words: str) -> None:
    room, told = CallRoom(RtcArgs(failing_timeout_s=0.3)), list[dict[str, Any]]()
    call = await opened(room, told)
    room.stages.failure = failure
    await speaking(room, call.over.is_set)
    await over(room, call)
    assert (told[-1]["type"], told[-1]["reason"]) == ("end", "conversion_failed")
    assert words in told[-1]["message"] and "0.3 s" in told[-1]["message"]


async def test_a_voice_that_is_deleted_in_mid_call_is_told_and_another_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, told = CallRoom(RtcArgs(failing_timeout_s=5.0)), list[dict[str, Any]]()
    call = await opened(room, told)
    await speaking(room, lambda: room.streams[0].report.done > 3)
    monkeypatch.setattr(call_fakes, "VOICES", ("clara",))
    room.stages.failure = VoiceNotFound("martin")
    await speaking(room, lambda: said(told, "error"))
    (error,) = said(told, "error")
    assert error["code"] == "voice_not_found" and "martin" in error["message"]
    room.stages.failure = None
    call.hear('{"type":"change","voice":"clara"}', told.append)
    done = room.streams[0].report.done
    await speaking(room, lambda: room.streams[0].report.done > done + 3)
    assert not call.over.is_set() and room.stages.voices[-1] == "clara"
    call.stop(STOPPED)
    await over(room, call)


async def test_features_that_a_replica_does_not_find_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    room = CallRoom()
    call = await opened(room)
    made = list[str]()

    async def make_features(voice_id: str, caller: object) -> None:
        made.append(voice_id)
        room.stages.failure = None

    monkeypatch.setattr(room.calls, "make_features", make_features)
    room.stages.failure = VoiceNotFound("martin")
    await speaking(room, lambda: made)
    done = room.streams[0].report.done
    await speaking(room, lambda: room.streams[0].report.done > done + 3)
    assert made == ["martin"]
    call.stop(STOPPED)
    await over(room, call)


def report_of(done: int, late: int, failed: int) -> BlockReport:
    return BlockReport(done=done, late=late, dropped=failed, failed=failed, failure=VoiceNotFound("x"))


@pytest.mark.parametrize(
    ("second", "ends_after_s"),
    [
        (lambda t: (0, 0, t), 11),  # each block fails
        (lambda t: (0, t, 0), 61),  # each is late
        (lambda t: (t, t, t), None),  # some are heard
        (lambda t: (t // 9, 0, t), None),  # one in nine is heard
        (lambda t: (0, 0, t // 20), 120),  # one in 20 s is tried, and fails: five times 2 s
        (lambda t: (0, 0, 1), None),  # one failed, then nobody spoke
    ],
)
def test_a_call_is_given_up_for_blocks_that_fail_not_for_pauses(
    second: Callable[[int], tuple[int, int, int]], ends_after_s: int | None
) -> None:
    failing, args = Failing(), RtcArgs()
    before, ended_s = BlockReport(), None
    for now_s in range(1, 200):
        report = report_of(*second(now_s))
        failing.follow(before, report, now_s)
        before = report
        if ended_s is None and failing.end(args) is not None:
            ended_s = now_s
    assert ended_s == ends_after_s


async def test_a_replica_that_goes_away_ends_calls_that_can_call_again() -> None:
    room, told = CallRoom(), list[dict[str, Any]]()
    with_socket, without = await opened(room, told), await opened(room)
    await room.calls.retire()
    assert (told[-1]["type"], told[-1]["reason"]) == ("end", "shutting_down")
    assert with_socket.over.is_set() and not without.over.is_set()
    with pytest.raises(CallsFull, match="goes away"):
        await opened(room)
    without.stop(STOPPED)
    await over(room, without)


async def test_listeners_hear_the_converted_side_and_end_with_the_call() -> None:
    room = CallRoom()
    call = await opened(room)
    listener = room.calls.listen(call.session_id, audio_offer("recvonly"))
    gone = room.calls.listen(call.session_id, audio_offer("recvonly"))
    await asyncio.gather(listener.answered(), gone.answered())
    speaker, ear, _ = room.peers
    assert ear.direction == "sendonly"
    gone.stop(STOPPED)
    await gone.over.wait()
    speaker.speak(1.0)
    await until(lambda: ear.played, "the listener hears")
    assert room.calls.find(listener.session_id) is listener
    call.stop(STOPPED)
    await over(room, call)
    await asyncio.wait_for(listener.over.wait(), 10)
    with pytest.raises(Refused, match="there is no session"):
        room.calls.find(listener.session_id)


async def test_session_ids_name_the_replica_and_cannot_be_guessed() -> None:
    room = CallRoom()
    first, second = await opened(room), await opened(room)
    ids = [call.session_id.split("~") for call in (first, second)]
    assert [owner for owner, _ in ids] == ["here", "here"]
    assert len({secret for _, secret in ids}) == 2 and all(len(secret) >= 24 for _, secret in ids)
    for call in (first, second):
        call.stop(STOPPED)
    await over(room, second)
