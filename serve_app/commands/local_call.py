"""`seedvc call --local`: the far end is this process, with no server, no network and no Ray.

The same line of blocks as in every call. The networks compute in a thread, the sound card has a thread of its own, and
the event loop between them cuts and stitches.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from serve_app.calls.ladder import ADAPT_EVERY_S, Adaptation, Ladder, Wanted
from serve_app.commands import UserMistake
from serve_app.commands.card_side import CardSide, Hold
from serve_app.commands.convert import made_voice, reference_of
from serve_app.commands.display import Display, blocks_told, ms
from serve_app.commands.machine import cores
from serve_app.commands.soundcard import FRAME_S
from webrtc.downsample import Downsampler
from webrtc.files.codecs import Samples
from webrtc.playout import Playout

if TYPE_CHECKING:
    from stages import LocalStages, Voice
    from stages.call import BlockReport, CallStream

PRESET = "tiny"
MAX_WAITING_FRAMES = 10
"""200 ms of the microphone that the event loop has not taken; beyond it the oldest is dropped."""
SHOW_EVERY_S = 1.0


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Hold]:
    """Loads the networks, makes the voice, and computes a first block, which takes longer than the others."""
    reference = reference_of(args.voice)
    from configs import ConfigError
    from stages import BadAudio, WeightsError, load, set_threads
    from webrtc.files import NotAudio

    # More threads gain little on networks of this size, and one busy core holds all of them up.
    set_threads(max(1, cores() // 2))
    try:
        stages = load(args.preset or PRESET)
        voice = made_voice(stages, reference)
        stages.warm_up(voice)
    except (BadAudio, NotAudio, ConfigError, WeightsError) as error:
        raise UserMistake(str(error)) from error
    yield partial(_hold, args, stages, voice)


async def _hold(args: argparse.Namespace, stages: LocalStages, voice: Voice, card_side: CardSide) -> None:
    """Converts until it is cancelled."""
    from configs import ConfigError

    wanted = Wanted(args.mode or "lowest", args.block_ms, args.steps, False if args.hold else None)
    fitted = wanted.usual(stages.preset.live)
    try:
        stream = stages.call_streams.call(
            voice, mode=wanted.mode, **fitted._asdict(), bypass=args.bypass, seed=secrets.randbits(32)
        )
    except ConfigError as error:
        raise UserMistake(str(error)) from error
    ladder = Ladder(stages.preset.live, renders_in_one=stages.preset.renders_in_one)
    adaptation = Adaptation(ladder, stream, wanted, "this computer")
    far_end, display = Converter(stream), Display()
    settings = stream.settings
    told = {"mode": settings.mode, "block_ms": settings.block_ms, "bypass": settings.bypass}
    display.begin(args.voice, told | {"delay_ms": stream.delay_ms})
    if args.steps is not None and stages.preset.renders_in_one:
        display.one_step()
    card_side.connect(far_end, stream.delay_ms / 1000)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(far_end.play())
            group.create_task(_show(far_end, stream, card_side, display))
            group.create_task(_adapt(adaptation, stream, card_side, display))
    finally:
        card_side.disconnect()
        stream.close()


async def _adapt(adaptation: Adaptation, stream: CallStream, card_side: CardSide, display: Display) -> None:
    while True:
        await asyncio.sleep(ADAPT_EVERY_S)
        if adaptation.step(asyncio.get_running_loop().time()):
            card_side.delayed(stream.delay_ms / 1000)
            display.adapt({"block_ms": stream.settings.block_ms, "adapted": adaptation.told})


async def _show(far_end: Converter, stream: CallStream, card_side: CardSide, display: Display) -> None:
    failed = 0
    while True:
        await asyncio.sleep(SHOW_EVERY_S)
        report = stream.report
        if report.failed > failed == 0:
            display.say(f"the networks failed on a block: {report.failure}")
        failed = report.failed
        delay_ms = far_end.delay_ms + card_side.latency_s * 1000
        display.show(stats_line(delay_ms, card_side.levels_dbfs(), report))


def stats_line(delay_ms: float, levels_dbfs: tuple[float, float], report: BlockReport) -> str:
    """A call's figures on one line."""
    counts = {kind: getattr(report, kind) for kind in ("done", "late", "dropped", "skipped")}
    said, heard = levels_dbfs
    return (
        f"mouth to ear about {delay_ms:.0f} ms, level {said:.0f} dB in {heard:.0f} dB out,"
        f" block {ms(report.block_ms)}, {blocks_told(counts)}"
    )


class Converter:
    """A call's stream as a far end: frames of 20 ms at 48 kHz in, as many out."""

    def __init__(self, stream: CallStream) -> None:
        self._stream, self._loop = stream, asyncio.get_running_loop()
        self._said: deque[Samples] = deque(maxlen=MAX_WAITING_FRAMES)
        self._downsample = Downsampler()
        self._playout, self._lock = Playout(), threading.Lock()

    @property
    def delay_ms(self) -> float:
        """From the beginning of a frame of the microphone to the same sound on its way to the speaker."""
        with self._lock:
            return FRAME_S * 1000 + self._stream.usual_delay_ms + self._playout.delay_ms

    def say(self, frame: Samples) -> None:
        self._said.append(frame)
        if len(self._said) == 1:  # else the loop has been woken already
            self._loop.call_soon_threadsafe(self._take)

    def hear(self, now_s: float) -> Samples:
        with self._lock:  # held for the time that a block takes to be joined on, never for the networks
            return self._playout.frame(now_s)

    def _take(self) -> None:
        while self._said:
            self._stream.push(self._downsample(self._said.popleft()))

    async def play(self) -> None:
        """Hands on the blocks as they come, until the stream is closed."""
        async for block in self._stream.blocks():
            with self._lock:
                self._playout.push(block, time.monotonic())
