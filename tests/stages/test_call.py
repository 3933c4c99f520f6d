"""A call: blocks in order and in time, gaps without clicks, changes in the middle, an end that frees everything."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from configs.schema import CallMode, ConfigError, LiveSettings, Mode
from stages.call import CallStream
from stages.geometry import CONTENT_RATE, MODEL_RATE, TICK_16K, TICK_MODEL, Geometry
from stages.line import BlockLine
from stages.local import AtOnce, LocalStages, drain
from stages.recording import BlockStream
from stages.settings import CallSettings, delay_ms
from stages.threaded import ThreadedStages
from stages.types import BlockLost, DiffuseRequest, EncodeRequest, Samples, VocodeRequest, Voice
from tests.stages.sounds import EchoStages, SineStages, call, noise, silence_only, speech, with_pauses
from tests.stages.virtual import run_virtual

LIVE = LiveSettings(lowest=CallMode(block_ms=120, deadline_ms=240), constant=CallMode(block_ms=180, deadline_ms=200))
SINE_STEP = 2 * np.pi * 220 / MODEL_RATE
FADE_STEP = np.pi / 2 / (2 * TICK_MODEL)
"""The steepest slopes of the fakes' sine and of a fade of 40 ms over full scale."""
MODES: tuple[Mode, ...] = ("lowest", "constant")


@dataclass(eq=False)
class Work:
    number: int
    result: asyncio.Task[Samples]
    begun: bool = False


@dataclass
class SlowStages:
    """Stages whose block `n` takes `took_s(n)`; one at a time where `serial`, as in a thread, else side by side."""

    took_s: Callable[[int], float] = lambda n: 0.1
    inner: SineStages = field(default_factory=SineStages)
    serial: bool = False
    lost: frozenset[int] = frozenset()
    windows: list[Samples] = field(default_factory=list)
    requests: list[DiffuseRequest] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    under_way: set[int] = field(default_factory=set)
    most_under_way: int = 0
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def encode(self, request: EncodeRequest) -> Any:
        self.windows.append(request.samples)
        return self.inner.encode(request)

    def diffuse(self, content: Any, request: DiffuseRequest) -> Any:
        self.requests.append(request)
        return self.inner.diffuse(content, request)

    def vocode(self, mel: Any, request: VocodeRequest) -> Work:
        number = len(self.windows) - 1
        self.under_way.add(number)
        self.most_under_way = max(self.most_under_way, len(self.under_way))

        async def compute() -> Samples:
            async with self.busy if self.serial else nullcontext():
                work.begun = True
                await asyncio.sleep(self.took_s(number))
            self.under_way.discard(number)
            if number in self.lost:
                raise BlockLost
            wave: Samples = self.inner.vocode(mel, request)
            return wave

        work = Work(number, asyncio.create_task(compute()))
        return work

    def render(self, content: Any, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Work:
        return self.vocode(self.diffuse(content, diffuse), vocode)

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Work:
        return self.render(self.encode(encode), diffuse, vocode)

    async def collect(self, wave: Work) -> Samples:
        return await asyncio.shield(wave.result)

    def cancel(self, wave: Work) -> None:
        """A thread cannot be stopped in the middle of a block."""
        self.cancelled.append(wave.number)
        self.under_way.discard(wave.number)
        if not (self.serial and wave.begun):
            wave.result.cancel()

    def stage_ms(self, wave: Work) -> dict[str, float]:
        return {"vocoder": 1.0}


def open_gate(window: Samples, new_ticks: int) -> NDArray[np.float32]:
    """Everything is speech."""
    return np.ones(len(window) // TICK_16K, np.float32)


def settings(mode: Mode = "constant", **other: Any) -> CallSettings:
    return CallSettings.of(LIVE, "anyone", mode=mode, steps=1, **other)


@dataclass
class Heard:
    """What came out of a call, and when."""

    blocks: list[Samples]
    at_s: list[float]
    stream: CallStream

    @property
    def wave(self) -> Samples:
        return np.concatenate(self.blocks)


def hold(
    stages: SlowStages,
    source: Samples,
    chosen: CallSettings | None = None,
    *,
    seed: int = 3,
    gate: Any = open_gate,
    at: dict[float, Callable[[CallStream], object]] | None = None,
    stall: tuple[float, float] | None = None,
) -> Heard:
    """A whole call in virtual time, in packets of 20 ms; `at` does things in the middle.

    Nothing comes out of the microphone between the two times of `stall`, then all of it at once.
    """

    async def run() -> Heard:
        loop = asyncio.get_running_loop()
        stream = CallStream(stages, LIVE, chosen or settings(), seed=seed, gate=gate)
        heard = Heard([], [], stream)

        async def listen() -> None:
            async for block in stream.blocks():
                heard.blocks.append(block)
                heard.at_s.append(loop.time())

        listener = asyncio.create_task(listen())
        todo = sorted((at or {}).items(), key=lambda item: item[0])
        for start in range(0, len(source), TICK_16K):
            time_s = (start + TICK_16K) / CONTENT_RATE
            if stall is not None and stall[0] < time_s < stall[1]:
                time_s = stall[1]
            await asyncio.sleep(time_s - loop.time())
            while todo and todo[0][0] <= time_s + 1e-9:
                todo.pop(0)[1](stream)
            stream.push(source[start : start + TICK_16K])
        await asyncio.sleep(2)
        stream.close()
        await listener
        return heard

    return run_virtual(run())


def largest_step(wave: Samples) -> float:
    return float(np.abs(np.diff(wave)).max())


def ends_s(blocks: Sequence[Samples]) -> NDArray[np.float64]:
    """Capture times of the blocks' last samples."""
    return np.cumsum([len(block) for block in blocks]) / MODEL_RATE


def random_times(seed: int) -> Callable[[int], float]:
    times = np.random.default_rng(seed).uniform(0.02, 0.19, 1000)
    return lambda n: float(times[n])


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_call_in_time_equals_the_recording(mode: Mode, serial: bool) -> None:
    source = noise(5.0, CONTENT_RATE)
    took = (lambda n: 0.08 + 0.03 * (n % 2)) if serial else random_times(0)
    stages = SlowStages(took, EchoStages(), serial)
    heard = hold(stages, source, settings(mode, block_ms=180))
    expected = drain(partial(call(EchoStages()).push, source))
    assert len(heard.blocks) == len(expected) == 27
    assert np.array_equal(np.stack(heard.blocks), np.stack(expected))
    report = heard.stream.report
    assert (report.done, report.concealed, report.in_flight) == (27, 0, 0)
    assert report.stages_ms == {"vocoder": 1.0}


def test_results_come_in_order_and_as_soon_as_they_are_there() -> None:
    took = random_times(1)
    heard = hold(SlowStages(took), noise(5.0, CONTENT_RATE), settings("lowest"))
    ready = ends_s(heard.blocks) + [took(n) for n in range(len(heard.blocks))]
    assert np.allclose(heard.at_s, np.maximum.accumulate(ready))
    assert heard.stream.report.block_ms == pytest.approx(took(len(heard.blocks) - 1) * 1000)


def test_constant_mode_is_always_equally_late() -> None:
    heard = hold(SlowStages(random_times(2)), noise(5.0, CONTENT_RATE), settings("constant"))
    assert np.allclose(heard.at_s, ends_s(heard.blocks) + 0.2)
    assert heard.stream.delay_ms == heard.stream.usual_delay_ms == 180 + 40 + 20 + 20 + 200
    assert delay_ms(LIVE, "lowest") == 120 + 80 + 240
    assert delay_ms(LIVE, "lowest", 60) == 60 + 80 + 240
    assert delay_ms(LIVE, "lowest", 500) == 500 + 80 + 240 + (500 - 120)


def test_usual_delay_follows_the_results() -> None:
    heard = hold(SlowStages(lambda n: 0.1), noise(5.0, CONTENT_RATE), settings("lowest"))
    assert heard.stream.usual_delay_ms == pytest.approx(120 + 80 + 100)


@pytest.mark.parametrize("mode", MODES)
def test_late_blocks_are_concealed_and_cancelled(mode: Mode) -> None:
    stages = SlowStages(lambda n: 1.0 if n in (8, 9) else 0.1)
    heard = hold(stages, noise(4.0, CONTENT_RATE), settings(mode))
    report, fade = heard.stream.report, 2 * TICK_MODEL
    assert (report.late, report.dropped, report.concealed) == (2, 0, 2)
    assert stages.cancelled == [8, 9]
    deadline = 0.24 if mode == "lowest" else 0.2
    assert np.allclose(np.array(heard.at_s)[[8, 9]], ends_s(heard.blocks)[[8, 9]] + deadline)
    assert np.all(np.array(heard.at_s) <= ends_s(heard.blocks) + deadline + 1e-6)
    assert np.abs(heard.blocks[8][:fade]).max() > 0.5  # the tail of the block before
    assert not heard.blocks[8][fade:].any()
    assert not heard.blocks[9].any()
    assert np.abs(heard.blocks[10][fade:]).max() > 0.97
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP


def test_a_block_that_the_stages_lose_is_concealed() -> None:
    stages = SlowStages(lost=frozenset({5}))
    heard = hold(stages, noise(3.0, CONTENT_RATE))
    assert (heard.stream.report.dropped, heard.stream.report.done) == (1, 15)
    assert not heard.blocks[5][2 * TICK_MODEL :].any()


class FailingStages(SlowStages):
    """What comes of some blocks is an error, or no sound."""

    results: dict[int, Exception | Samples]

    async def collect(self, wave: Work) -> Samples:
        samples = await super().collect(wave)
        result = self.results.get(wave.number, samples)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.mark.parametrize(
    "result",
    [
        ValueError("no such voice"),
        RuntimeError("device-side assert"),
        MemoryError(),
        KeyError("x"),
        np.full(99999, np.nan, np.float32),
        np.full(99999, np.inf, np.float32),
        None,
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_an_error_of_a_stage_costs_its_block_only(mode: Mode, result: Any) -> None:
    stages = FailingStages()
    stages.results = {5: result, 9: result}
    heard = hold(stages, noise(4.0, CONTENT_RATE), settings(mode, block_ms=180))
    report = heard.stream.report
    assert (report.dropped, report.failed, report.concealed, report.late) == (2, 2, 2, 0)
    assert report.done == len(heard.blocks) - 2
    assert isinstance(report.failure, type(result) if isinstance(result, Exception) else Exception)
    assert not heard.blocks[5][2 * TICK_MODEL :].any() and np.abs(heard.blocks[7]).max() > 0.9
    assert np.isfinite(heard.wave).all()
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP


def test_blocks_that_the_stages_give_up_are_no_failures_of_theirs() -> None:
    report = hold(SlowStages(lost=frozenset({5})), noise(3.0, CONTENT_RATE)).stream.report
    assert (report.dropped, report.failed, report.failure) == (1, 0, None)


def test_an_error_of_our_own_is_not_hidden() -> None:
    def broken(window: Samples, new_ticks: int) -> NDArray[np.float32]:
        raise ZeroDivisionError("in the gate")

    async def run() -> None:
        stream = CallStream(SlowStages(), LIVE, settings(), gate=open_gate)
        stream.push(noise(0.18, CONTENT_RATE))
        stream._line = None  # type: ignore[assignment]  # a mistake in the loop itself
        with pytest.raises(AttributeError):
            await anext(stream.blocks())
        stream.close()
        with pytest.raises(ZeroDivisionError):
            CallStream(SlowStages(), LIVE, settings(), gate=broken).push(noise(0.18, CONTENT_RATE))

    run_virtual(run())


def test_a_third_block_is_dropped_and_its_neighbours_keep_their_context() -> None:
    stages = SlowStages(lambda n: 0.235, serial=False)  # in blocks of 100 ms: three would overlap
    source = noise(4.0, CONTENT_RATE)
    heard = hold(stages, source, settings("lowest", block_ms=100))
    report = heard.stream.report
    assert stages.most_under_way == 2
    assert len(heard.blocks) == 40
    assert report.late == 0
    assert report.dropped == pytest.approx(40 / 3, abs=1)
    size = Geometry.from_settings(LIVE, 100).window_samples_16k
    padded = np.concatenate([np.zeros(size, np.float32), source])
    step = CONTENT_RATE // 10
    whole = {padded[end - size : end].tobytes() for end in range(size + step, len(padded) + 1, step)}
    assert all(window.tobytes() in whole for window in stages.windows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("took_s", [0.13, 0.19, 0.23, 0.5])
def test_delay_never_grows_under_slow_stages(mode: Mode, took_s: float) -> None:
    stages = SlowStages(lambda n: took_s, serial=True)
    heard = hold(stages, noise(30.0, CONTENT_RATE), settings(mode, block_ms=120))
    deadline = 0.24 if mode == "lowest" else 0.2
    assert len(heard.blocks) == 250
    assert np.all(np.array(heard.at_s) <= ends_s(heard.blocks) + deadline + 1e-6)
    assert stages.most_under_way <= 2
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP
    if took_s < deadline - 0.02:  # what one block needs is there: every second one at the least is heard
        assert heard.stream.report.done >= 100


def test_a_hiccup_passes() -> None:
    stages = SlowStages(lambda n: 0.6 if n == 20 else 0.1, serial=True)
    heard = hold(stages, noise(10.0, CONTENT_RATE), settings("lowest"))
    report = heard.stream.report
    assert 1 <= report.concealed <= 6
    assert all(np.abs(block).max() > 0.9 for block in heard.blocks[30:])


def test_a_burst_after_a_stall_is_not_worked_off() -> None:
    """Sound that comes in one piece after 0.4 s: what is past its deadline is dropped, the rest comes in time."""
    stages = SlowStages(lambda n: 0.1)
    heard = hold(stages, noise(5.0, CONTENT_RATE), settings("lowest"), stall=(2.0, 2.4))
    report = heard.stream.report
    assert report.dropped >= 1
    assert report.done + report.concealed == len(heard.blocks) == 41
    assert np.allclose(np.array(heard.at_s)[-15:], ends_s(heard.blocks)[-15:] + 0.1, atol=0.03)
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP


def test_a_paused_source_starts_again_without_loss() -> None:
    async def run() -> None:
        stream = CallStream(SlowStages(), LIVE, settings("constant"), gate=open_gate)
        async with aclosing(stream.blocks()) as blocks:  # type: ignore[type-var]
            for _ in range(3):
                for _ in range(9):
                    await asyncio.sleep(0.02)
                    stream.push(noise(0.02, CONTENT_RATE))
                pushed_s = asyncio.get_running_loop().time()
                assert np.abs(await anext(blocks)).max() > 0.5
                assert asyncio.get_running_loop().time() == pytest.approx(pushed_s + 0.2)
                await asyncio.sleep(7.0)
        assert stream.report.done == 3
        stream.close()

    run_virtual(run())


def test_nobody_listening_keeps_memory_bounded() -> None:
    async def run() -> None:
        stages = SlowStages()
        stream = CallStream(stages, LIVE, settings("lowest"), gate=open_gate)
        for _ in range(3000):
            stream.push(noise(0.02, CONTENT_RATE))
            await asyncio.sleep(0.02)
        waiting = [block async for block in _until_dry(stream)]
        assert len(waiting) == 32
        assert stream.report.dropped + stream.report.done + stream.report.late == 500
        stream.close()

    run_virtual(run())


async def _until_dry(stream: CallStream) -> Any:
    async for block in stream.blocks():
        yield block
        if stream.report.done + stream.report.concealed == 500:
            return


# --- changes in the middle ---


def test_block_size_and_mode_change_without_loss_or_click() -> None:
    changes: dict[float, Callable[[CallStream], object]] = {
        1.0: lambda stream: stream.change(block_ms=120),
        2.03: lambda stream: stream.change(block_ms=300),
        3.01: lambda stream: stream.change(mode="lowest"),
        4.5: lambda stream: stream.change(mode="constant", block_ms=60),
    }
    source = noise(6.0, CONTENT_RATE)
    stages = SlowStages(lambda n: 0.03)
    heard = hold(stages, source, at=changes)
    sizes = [len(block) // TICK_MODEL for block in heard.blocks]
    assert [size for i, size in enumerate(sizes) if not i or size != sizes[i - 1]] == [9, 6, 15, 6, 3]
    assert heard.stream.report.concealed == 0
    assert len({len(window) for window in stages.windows}) == 1
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP
    assert len(heard.wave) == pytest.approx(6.0 * MODEL_RATE, abs=3 * TICK_MODEL)


def test_bypass_is_the_source_as_late_as_converted_blocks_of_that_size() -> None:
    source = noise(4.0, CONTENT_RATE, peak=0.3)
    resize: dict[float, Callable[[CallStream], object]] = {
        1.0: lambda stream: stream.change(block_ms=60),
        2.0: lambda stream: stream.change(block_ms=300),
    }
    stages = SlowStages()
    heard = hold(stages, source, settings(bypass=True), at=resize)
    expected = soxr.resample(source, CONTENT_RATE, MODEL_RATE, quality="HQ")
    lag = 4 * TICK_MODEL
    assert not stages.windows
    assert heard.stream.report.bypassed == len(heard.blocks)
    got = heard.wave[lag:]
    assert np.abs(got - expected[: len(got)])[100:].max() < 1e-3
    longer_s = np.maximum(0, [len(block) / MODEL_RATE - 0.18 for block in heard.blocks])  # than the mode's own
    assert np.allclose(heard.at_s, ends_s(heard.blocks) + 0.2 + longer_s)


def test_bypass_voice_and_steps_change_without_a_click() -> None:
    tone = (0.8 * np.sin(2 * np.pi * 300 / CONTENT_RATE * np.arange(6 * CONTENT_RATE))).astype(np.float32)
    changes: dict[float, Callable[[CallStream], object]] = {
        1.0: lambda stream: stream.change(bypass=True),
        2.5: lambda stream: stream.change(bypass=False, voice="other"),
        4.0: lambda stream: stream.change(steps=4, bypass=True),
        5.0: lambda stream: stream.change(bypass=False),
    }
    stages = SlowStages()
    heard = hold(stages, tone, settings("lowest"), at=changes)
    assert [(request.voice, request.steps) for request in stages.requests[:1] + stages.requests[-1:]] == [
        ("anyone", 1),
        ("other", 4),
    ]
    # A fade of 40 ms from one sine to the other adds at most its slope times the distance of the two.
    steepest = 2 * np.pi * 300 / MODEL_RATE
    assert largest_step(heard.wave) <= steepest + 2 * FADE_STEP
    # Without the networks blocks come out when they would have been ready with them: the delay stays.
    assert np.allclose(np.array(heard.at_s)[:-1], ends_s(heard.blocks)[:-1] + 0.1, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"block_ms": 20}, "block_ms is 20; this preset allows 40 to 680"),
        ({"block_ms": 700}, "block_ms is 700; this preset allows 40 to 680"),
        ({"block_ms": 130}, "block_ms is 130 ms; it must be a multiple of 20 ms"),
        ({"steps": 0}, "steps is 0; allowed are 1 to 100"),
        ({"steps": 101}, "steps is 101; allowed are 1 to 100"),
        ({"mode": "fast"}, "mode is 'fast'; allowed are 'lowest' and 'constant'"),
    ],
)
def test_impossible_settings_are_refused_and_change_nothing(change: dict[str, Any], complaint: str) -> None:
    stream = CallStream(SlowStages(), LIVE, settings(), gate=open_gate)
    before = stream.settings
    with pytest.raises(ConfigError, match=complaint):
        stream.change(**change)
    assert stream.settings == before
    with pytest.raises(ConfigError, match=complaint):
        CallStream(SlowStages(), LIVE, CallSettings.of(LIVE, "anyone", **change))


# --- silence ---


@pytest.mark.parametrize("mode", MODES)
def test_silence_is_silent_and_spares_the_networks(mode: Mode) -> None:
    stages = SlowStages()
    heard = hold(stages, np.zeros(5 * CONTENT_RATE, np.float32), settings(mode), gate=None)
    assert not heard.wave.any()
    assert not stages.windows
    assert heard.stream.report.skipped == len(heard.blocks)
    # As late as the networks are expected to be, so that the first word does not come later than the silence before.
    assert np.allclose(heard.at_s, ends_s(heard.blocks) + (0.2 if mode == "constant" else 0.3 * 0.24))


@pytest.mark.parametrize("bypass", [False, True])
def test_silence_does_not_count_as_speech_even_where_it_is_passed_on(bypass: bool) -> None:
    source = np.concatenate([noise(2.0, CONTENT_RATE, peak=0.3), np.zeros(3 * CONTENT_RATE, np.float32)])
    heard = hold(SlowStages(), source, settings(bypass=bypass), gate=silence_only)
    n_spoken = 2.0 / (heard.stream.settings.block_ms / 1000)
    assert n_spoken <= heard.stream.report.spoken <= n_spoken + 4 < len(heard.blocks)


def test_a_gate_opens_and_closes_without_a_click() -> None:
    def two_seconds(window: Samples, new_ticks: int) -> NDArray[np.float32]:
        """The source itself says where it is speech."""
        return np.asarray(np.abs(window).reshape(-1, TICK_16K).max(axis=1) > 0.1, np.float32)

    source = noise(6.0, CONTENT_RATE)
    for on, off in ((1.0, 1.3), (2.1, 2.14), (3.0, 3.9), (4.4, 5.02)):
        source[round(on * CONTENT_RATE) : round(off * CONTENT_RATE)] *= 0.1
    for mode in MODES:
        heard = hold(SlowStages(), source, settings(mode), gate=two_seconds)
        assert heard.stream.report.skipped > 2
        assert heard.stream.report.concealed == 0
        # Gains ramp over one tick at full scale, on top of a stitcher's fade.
        assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP + 1 / TICK_MODEL
        quiet = heard.wave[round(3.3 * MODEL_RATE) : round(3.7 * MODEL_RATE)]
        assert not quiet.any()


@pytest.mark.parametrize("mode", MODES)
def test_pauses_of_a_speaker_are_silent_and_mostly_skipped(mode: Mode) -> None:
    source = with_pauses(speech())[: 20 * CONTENT_RATE]
    source = source + noise(20.0, CONTENT_RATE, peak=1e-3)
    heard = hold(SlowStages(), source, settings(mode), gate=None)
    report = heard.stream.report
    assert report.concealed == 0
    in_pauses = 5 * 2.5 / 20 * len(heard.blocks)
    assert report.skipped >= 0.75 * in_pauses
    for phrase in range(5):  # from the end of the gate's hold to a moment before the next phrase
        start, stop = phrase * 4.0 + 0.6, phrase * 4.0 + 2.3
        assert not heard.wave[round(start * MODEL_RATE) : round(stop * MODEL_RATE)].any()
    assert largest_step(heard.wave) <= 1.05 * SINE_STEP + FADE_STEP + 1 / TICK_MODEL


# --- the end ---


def test_close_cancels_what_is_in_flight_and_frees_it() -> None:
    async def run() -> None:
        stages = SlowStages(lambda n: 0.19)
        stream = CallStream(stages, LIVE, settings("constant", block_ms=180), gate=open_gate)
        blocks = stream.blocks()
        waiting = asyncio.create_task(anext(blocks, None))
        await asyncio.sleep(0)
        stream.push(noise(0.18, CONTENT_RATE))
        await asyncio.sleep(0.18)
        stream.push(noise(0.18, CONTENT_RATE))
        assert stream.report.in_flight == 2
        stream.close()
        assert await waiting is None
        assert asyncio.get_running_loop().time() == pytest.approx(0.18)
        assert sorted(stages.cancelled) == [0, 1]
        assert stream.report.in_flight == 0
        stream.push(noise(1.0, CONTENT_RATE))
        assert len(stages.windows) == 2
        stream.close()
        await asyncio.sleep(0)  # cancelled tasks end on the loop's next turn
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gone = weakref.ref(stream)
        del stream, blocks, waiting
        gc.collect()
        assert gone() is None

    run_virtual(run())


# --- in this process ---


class ThreadNoting(EchoStages):
    """Notes where it computes."""

    def __init__(self) -> None:
        self.threads: set[Any] = set()

    def encode(self, request: EncodeRequest) -> Samples:
        self.threads.add(current_thread())
        return super().encode(request)


async def one_by_one(stream: CallStream, source: Samples, size: int) -> list[Samples]:
    """Push a block when the one before has come out, so that no machine is too slow for it."""
    out = []
    async with aclosing(stream.blocks()) as blocks:  # type: ignore[type-var]
        for start in range(0, len(source) - size + 1, size):
            stream.push(source[start : start + size])
            out.append(await anext(blocks))
    stream.close()
    return out


def patient(live: LiveSettings) -> LiveSettings:
    """Deadlines that no machine misses."""
    return live.model_copy(update={"lowest": CallMode.model_construct(block_ms=180, deadline_ms=60_000)})


async def test_the_worker_thread_computes_what_the_loop_would() -> None:
    inner, source = ThreadNoting(), noise(2.0, CONTENT_RATE)
    stages = ThreadedStages(inner)
    stream = CallStream(stages, patient(LIVE), settings("lowest", block_ms=180), seed=3, gate=open_gate)
    got = await one_by_one(stream, source, 2880)
    assert np.array_equal(np.stack(got), np.stack(drain(partial(call(EchoStages()).push, source))))
    assert len(inner.threads) == 1
    assert main_thread() not in inner.threads
    assert set(stream.report.stages_ms) == {"encoder", "diffusion", "vocoder"}


async def test_a_call_through_networks_equals_the_recording(quick_stages: LocalStages, quick_voice: Voice) -> None:
    live, source = quick_stages.preset.live, noise(1.5, CONTENT_RATE)
    chosen = CallSettings.of(live, quick_voice, mode="lowest", block_ms=180)
    stream = CallStream(ThreadedStages(quick_stages), patient(live), chosen, seed=5, gate=silence_only)
    got = await one_by_one(stream, source, 2880)
    line = BlockLine(live, chosen, seed=5, gate=silence_only)
    expected = drain(partial(BlockStream(AtOnce(quick_stages), line).push, source))
    assert np.array_equal(np.stack(got), np.stack(expected))


async def test_local_stages_open_a_call(quick_stages: LocalStages, quick_voice: Voice) -> None:
    stream = quick_stages.call_streams.call(quick_voice)
    got = await one_by_one(stream, np.zeros(CONTENT_RATE, np.float32), stream.settings.block_ms * CONTENT_RATE // 1000)
    assert len(got) == 8
    assert not np.concatenate(got).any()
    assert stream.report.skipped == 8
