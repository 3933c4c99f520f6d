"""The pace of packets under a clock of the test's own, and what is in them."""

import asyncio

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from tests.webrtc.speech import speech_48k
from webrtc.opus import FRAME, OpusDecoder, OpusEncoder, OpusError, is_dtx
from webrtc.packets import INAUDIBLE_AFTER, REFRESH_AFTER
from webrtc.playout import Playout
from webrtc.rate import Rate
from webrtc.send import MAX_BEHIND, TICK_S, Pace, SendTrack


class Clock:
    """Time that passes when somebody sleeps, and a little more, as it does."""

    def __init__(self, begin_s: float = 1000.0) -> None:
        self.now_s = begin_s
        self.oversleep_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.oversleep_s
        await asyncio.sleep(0)


def a_track(playout: Playout, clock: Clock, encoder: OpusEncoder | None = None) -> SendTrack:
    return SendTrack(playout, encoder or OpusEncoder(), unexpected, clock=clock, sleep=clock.sleep)


def unexpected(error: BaseException) -> None:
    raise AssertionError("the track failed") from error


def noise(ticks: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(5).normal(0, 0.1, 441 * ticks).astype(np.float32)


def test_late_wake_ups_do_not_add_up() -> None:
    pace, now = Pace(50.0), 50.0
    for expected in range(5000):
        tick, due_s = pace.next(now)
        assert tick == expected
        now = max(now, due_s) + 0.007
    assert now == pytest.approx(50.0 + 4999 * TICK_S + 0.007)


def test_a_short_stall_is_made_up_for() -> None:
    pace = Pace(0.0)
    pace.next(0.0)
    made = np.array([pace.next(3.5 * TICK_S) for _ in range(4)])
    np.testing.assert_allclose(made, [(tick, tick * TICK_S) for tick in range(1, 5)])
    assert pace.left_out == 0


def test_a_long_stall_makes_no_burst() -> None:
    pace = Pace(0.0)
    pace.next(0.0)
    assert pace.next(100.5 * TICK_S)[0] == 100
    assert pace.left_out == 99
    np.testing.assert_allclose(pace.next(100.5 * TICK_S), (101, 101 * TICK_S))


def test_a_moved_grid_stays_where_it_is() -> None:
    pace = Pace(0.0)
    pace.next(0.0)
    pace.slew(-0.0001)
    np.testing.assert_allclose(pace.next(0.0), (1, TICK_S - 0.0001))
    np.testing.assert_allclose(pace.next(0.0), (2, 2 * TICK_S - 0.0001))


def test_no_more_is_made_up_for_than_a_listener_can_use() -> None:
    pace = Pace(0.0)
    pace.next(0.0)
    at_once = 0
    now_s = (1.5 + MAX_BEHIND) * TICK_S
    while pace.next(now_s)[1] < now_s:
        at_once += 1
    assert at_once == MAX_BEHIND + 1 and pace.left_out == 0


async def test_packets_come_each_20_ms_with_their_timestamps() -> None:
    clock, playout = Clock(), Playout(max_ms=2000)
    clock.oversleep_s = 0.003
    track = a_track(playout, clock)
    first = await track.recv()
    track.play(noise(60))
    packets = [await track.recv() for _ in range(50)]
    assert [packet.pts for packet in (first, *packets)] == [960 * n for n in range(51)]
    assert clock.now_s == pytest.approx(1000 + 50 * TICK_S + 0.003)
    assert track.counts.packets == 51 and track.ticks_left_out == 0


async def test_a_stall_leaves_a_hole_in_the_timestamps() -> None:
    clock, playout = Clock(), Playout(max_ms=2000)
    track = a_track(playout, clock)
    await track.recv()
    track.play(noise(60))
    await track.recv()
    clock.now_s += 0.51
    after = await track.recv()
    assert after.pts == 26 * FRAME  # the newest at 0.53 s
    assert track.ticks_left_out == 24


async def test_what_is_pushed_is_heard() -> None:
    clock, playout = Clock(), Playout(max_ms=4000)
    track, decoder = a_track(playout, clock), OpusDecoder()
    await track.recv()
    tone = (0.3 * np.sin(2 * np.pi * 441 / 22050 * np.arange(22050))).astype(np.float32)
    track.play(tone)
    heard = np.concatenate([decoder.decode(bytes(await track.recv())) for _ in range(40)])[9600:]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * 48000 / len(heard) == pytest.approx(441, abs=3)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


async def test_silence_costs_its_first_packet_and_a_sign_of_life_now_and_then() -> None:
    clock = Clock()
    track = a_track(Playout(), clock)
    packets = [await track.recv() for _ in range(30)]
    times = np.array([packet.pts for packet in packets]) // FRAME
    assert np.diff(times).max() >= 10  # what lies between was left out
    spoken = times[[not is_dtx(bytes(packet)) for packet in packets]]
    assert np.diff(spoken).max() <= 2 * REFRESH_AFTER + 2  # a listener never hears nothing for a second
    assert clock.now_s - 1000 == pytest.approx(times[-1] * TICK_S)
    assert track.counts.silent == times[-1] + 1 - len(packets)
    settled = packets[15:]
    doubles = [is_dtx(bytes(a)) and is_dtx(bytes(b)) for a, b in zip(settled, settled[1:], strict=False)]
    assert not any(doubles)
    assert sum(len(bytes(packet)) for packet in settled) * 8 / (len(settled) * 0.2) < 3000


async def test_hiss_after_speech_is_not_worth_packets() -> None:
    track, decoder = a_track(Playout(max_ms=4000), Clock()), OpusDecoder()
    await track.recv()
    speech = np.resize(speech_48k()[::2], 22050).astype(np.float32)
    track.play(np.concatenate((speech, 1e-4 * noise(100) / 0.1)))
    packets = [await track.recv() for _ in range(70)]
    heard = np.concatenate([decoder.decode(bytes(packet)) for packet in packets])
    times = np.array([packet.pts for packet in packets]) // FRAME
    sizes = np.array([len(bytes(packet)) for packet in packets])
    hiss = times > 50 + INAUDIBLE_AFTER + 2
    assert np.abs(heard[: 40 * FRAME]).max() > 0.05
    assert sizes[hiss].sum() < 200 * ((times[hiss][-1] - times[hiss][0]) // REFRESH_AFTER + 1)
    assert sizes[times < 50].mean() > 100


async def test_a_model_that_says_nothing_does_not_hold_up_the_track() -> None:
    clock = Clock()
    track = a_track(Playout(), clock)
    assert (await track.recv()).pts == 0
    assert (await track.recv()).pts == 960
    assert clock.now_s == pytest.approx(1000 + TICK_S)


async def test_sound_from_before_the_first_packet_is_not_sent_late() -> None:
    playout = Playout()
    track = a_track(playout, Clock())
    track.play(noise(20))
    await track.recv()
    assert playout.buffered_ms == 0


async def test_the_bitrate_follows() -> None:
    clock, playout = Clock(), Playout(max_ms=6000)
    track = a_track(playout, clock)
    await track.recv()
    spoken = np.resize(speech_48k()[::2], 22050 * 5).astype(np.float32)
    track.play(spoken)
    high = sum([len(bytes(await track.recv())) for _ in range(100)])
    track.set_rate(Rate(16000, 0))
    low = sum([len(bytes(await track.recv())) for _ in range(100)])
    assert low < 0.5 * high


async def test_a_failure_is_told_and_ends_the_track() -> None:
    class Broken(OpusEncoder):
        def encode(self, samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
            raise OpusError("broken")

    told = list[BaseException]()
    track = SendTrack(Playout(), Broken(), told.append, clock=(clock := Clock()), sleep=clock.sleep)
    with pytest.raises(OpusError, match="broken"):
        await track.recv()
    assert [str(error) for error in told] == ["broken"]


async def test_a_stopped_track_ends() -> None:
    track = a_track(Playout(), Clock())
    track.stop()
    with pytest.raises(MediaStreamError, match="stopped"):
        await track.recv()
