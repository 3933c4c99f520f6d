"""The sound card's side of a call, whatever its far end: this process, or one connection to a server after another."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from serve_app.commands import UserMistake
from serve_app.commands.devices import Device
from serve_app.commands.soundcard import FRAME_S, Recording, WavFile, on_devices, on_timer
from webrtc.files.codecs import Samples

TAIL_S = 0.5
"""How much longer than the delay of the voice a call from a file goes on."""
STOPPED_AFTER_S = 3.0
"""A sound card that has called nobody for so long is gone."""


class FarEnd(Protocol):
    """What converts. Both methods may be called in the sound card's own thread, and never wait."""

    def say(self, frame: Samples) -> None:
        """The next 20 ms of the microphone."""

    def hear(self, now_s: float) -> Samples:
        """The 20 ms that are played next, at a moment of the monotonic clock."""


class CardSide:
    """What happens in each 20 ms of the sound card: one frame to the far end, and one from there.

    While the far end is away there is silence, and a recording goes on as a speaker would. Ends the call when its
    recording has been said and its answer heard.
    """

    def __init__(self, recording: Recording | None, file: WavFile | None, ended: asyncio.Future[None]) -> None:
        self._recording, self._file = recording, file
        self._ended, self._loop = ended, asyncio.get_running_loop()
        self._far_end: FarEnd | None = None
        self._begun = self._over = False
        self._left_s = 0.0
        self._levels = _Level(), _Level()
        self.latency_s = 0.0
        """Of the sound devices, as they tell it."""
        self.called_s = time.monotonic()
        """When the sound card last called."""

    def connect(self, far_end: FarEnd, delay_s: float) -> None:
        """From now on frames go to this far end, whose voice is at most so late."""
        self._far_end, self._begun = far_end, True
        self._left_s = delay_s + TAIL_S

    def delayed(self, delay_s: float) -> None:
        """The voice may be later than before."""
        self._left_s = max(self._left_s, delay_s + TAIL_S)

    def disconnect(self) -> None:
        """From now on there is silence."""
        self._far_end = None

    @property
    def connected(self) -> bool:
        """Whether there is a far end now."""
        return self._far_end is not None

    def levels_dbfs(self) -> tuple[float, float]:
        """How loud the microphone and the speaker were since the last time."""
        said, heard = self._levels
        return said.take_dbfs(), heard.take_dbfs()

    def __call__(self, captured: Samples, now_s: float) -> Samples:
        self.called_s = time.monotonic()
        heard = np.zeros_like(captured)
        if self._over or not self._begun:
            return heard
        try:
            said = captured if self._recording is None else self._recording.frame()
            if (far_end := self._far_end) is not None:
                heard = far_end.hear(now_s)
                far_end.say(said)
            if self._file is not None:
                self._file.write(heard)
        except Exception as error:  # this may be the sound card's thread, where nobody else sees it
            self.end(UserMistake(f"a file failed: {error.strerror}") if isinstance(error, OSError) else error)
            return heard
        for level, frame in zip(self._levels, (said, heard), strict=True):
            level.add(frame)
        if self._recording is not None and self._recording.ended:
            self._left_s -= FRAME_S
            if self._left_s <= 0:
                lost = UserMistake("the recording ended while the connection was lost; its end was not converted")
                self.end(None if far_end is not None else lost)
        return heard

    def end(self, failure: BaseException | None = None) -> None:
        """Ends the call, from any thread."""
        self._over = True
        self._loop.call_soon_threadsafe(_set, self._ended, failure)


class _Level:
    """Root mean square of the frames since it was last taken."""

    def __init__(self) -> None:
        self._power, self._n_frames = 0.0, 0

    def add(self, frame: Samples) -> None:
        self._power += float(np.mean(frame**2))
        self._n_frames += 1

    def take_dbfs(self) -> float:
        power = self._power / max(1, self._n_frames)
        self._power, self._n_frames = 0.0, 0
        return 10 * float(np.log10(power + 1e-12))


Hold = Callable[[CardSide], Coroutine[Any, Any, None]]
"""Holds a call with this sound card until it is over."""


def end_of_call() -> asyncio.Future[None]:
    """Done when the call is over for whatever reason; Ctrl-C hangs up."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C cancels the whole call there, which ends it too
        loop.add_signal_handler(signal.SIGINT, _set, ended)
    return ended


async def until_ended(ended: asyncio.Future[None], holding: Coroutine[Any, Any, None]) -> None:
    """Runs what holds the call until either is over; raises what either has failed with."""
    task = asyncio.create_task(holding)
    task.add_done_callback(partial(_follow, ended))
    try:
        await ended
    finally:
        task.cancel()
        await asyncio.wait({task})


def _follow(ended: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _set(ended, task.exception())


def _set(ended: asyncio.Future[None], failure: BaseException | None = None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)


@asynccontextmanager
async def sound(card_side: CardSide, microphone: Device | None, speaker: Device | None) -> AsyncIterator[None]:
    """Keeps the sound card going, on real devices where one is given."""
    with contextlib.ExitStack() as stack:
        if microphone is None and speaker is None:
            card = on_timer(card_side)
        else:
            devices = on_devices(card_side, microphone=microphone, speaker=speaker)
            card_side.latency_s = stack.enter_context(devices)
            card = _watch(card_side)
        task = asyncio.create_task(card)
        try:
            yield
        finally:
            task.cancel()


async def _watch(card_side: CardSide) -> None:
    """Ends the call where the sound card no longer calls: nothing else tells it everywhere."""
    while True:
        await asyncio.sleep(STOPPED_AFTER_S / 6)
        if time.monotonic() - card_side.called_s > STOPPED_AFTER_S:
            card_side.end(UserMistake("the sound device stopped: it was unplugged, or its sound server has ended"))
