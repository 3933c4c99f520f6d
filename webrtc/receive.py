"""What a client says, as 20 ms frames at 16 kHz."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtpPacket
from numpy.typing import NDArray

from webrtc.downsample import Downsampler
from webrtc.opus import warm_up as warm_up_opus
from webrtc.sound import SILENT_DB, PacketSound, Pauses
from webrtc.tap import tap
from webrtc.tap import warm_up as warm_up_tap

Samples16k = NDArray[np.float32]  # (320,) mono at 16 kHz, full scale at 1

FRAME_16K = 320
METER_FALL_DB = 1.0  # per 20 ms, so that the eye can follow
STALL_S = 0.015
"""Where a timer is this late, the process stood still, and packets wait in its sockets."""
DRAIN_S = 0.003
"""How long those packets are read first."""


@dataclass(frozen=True, slots=True)
class ReceiveStats:
    """How receiving goes: counts of packets since the start, and the state of now."""

    received: int = 0  # without duplicates
    lost: int = 0  # not there when they were due
    late: int = 0  # of the lost ones, those that came after all
    duplicates: int = 0
    skipped: int = 0  # left out to shorten the delay
    damaged: int = 0  # could not be decoded
    concealed: int = 0  # frames that were guessed
    recovered: int = 0  # frames from the copy in the next packet
    jitter_ms: float = 0.0  # how much later than the fastest packets nearly all packets come
    delay_ms: float = 0.0  # how long the buffer holds the fastest packets
    target_ms: float = 0.0  # how long it aims to hold them
    level_db: float = SILENT_DB  # of full scale: for a meter, falls slowly


class ClientSound:
    """One client's packets to frames, without a clock of its own."""

    def __init__(self) -> None:
        self._sound = PacketSound()
        self._downsample = Downsampler()
        self._pauses = Pauses()
        self._quiet = True
        self._level_db = SILENT_DB
        self._rest = np.zeros(0, np.float32)

    @property
    def due_s(self) -> float | None:
        """When the next frame is due; None before the first `frames`."""
        return self._sound.due_s

    def add(self, packet: RtpPacket, arrival_s: float) -> None:
        """Takes an Opus packet off the network."""
        self._sound.add(packet, arrival_s)

    def frames(self, now_s: float) -> list[Samples16k]:
        """All frames that are due, mostly one."""
        sounds = self._sound.take(now_s, self._quiet)
        sound_16k = np.concatenate([self._rest, *map(self._downsample, sounds)])
        whole = len(sound_16k) // FRAME_16K * FRAME_16K
        self._rest = sound_16k[whole:]
        frames = list(sound_16k[:whole].reshape(-1, FRAME_16K))
        for frame in frames:
            self._measure(frame)
        return frames

    def stats(self) -> ReceiveStats:
        """The counts so far and the delay of now."""
        sound, buffer = self._sound, self._sound.stats
        return ReceiveStats(
            received=buffer.received,
            lost=buffer.lost,
            late=buffer.late,
            duplicates=buffer.duplicates,
            skipped=buffer.skipped,
            damaged=sound.damaged,
            concealed=buffer.concealed - sound.recovered,
            recovered=sound.recovered,
            jitter_ms=buffer.jitter_ms,
            delay_ms=buffer.delay_ms,
            target_ms=buffer.target_ms,
            level_db=self._level_db,
        )

    def _measure(self, frame: Samples16k) -> None:
        level_db = 10 * float(np.log10(np.mean(frame**2) + 1e-12))
        self._quiet = self._pauses.is_quiet(level_db)
        self._level_db = max(level_db, self._level_db - METER_FALL_DB)


class AudioReceiver:
    """Calls `on_frame` with each 20 ms of one client, silence included, from `attach` to `close`.

    Where `on_frame` or the receiving fails, no more frames come; `on_failure` is told the reason.
    """

    def __init__(self, on_frame: Callable[[Samples16k], None], on_failure: Callable[[BaseException], None]) -> None:
        self._on_frame, self._on_failure = on_frame, on_failure
        self._sound = ClientSound()
        self._task: asyncio.Task[None] | None = None

    def attach(self, receiver: RTCRtpReceiver) -> None:
        """Takes the place of the receiver's own buffer and decoder; before its first packet, and once."""
        if self._task is not None:
            raise RuntimeError("the receiver is attached already")
        loop = asyncio.get_running_loop()
        tap(receiver, self._sound.add, loop.time)
        self._task = loop.create_task(self._run(), name="receive-audio")
        self._task.add_done_callback(self._tell_failure)

    def stats(self) -> ReceiveStats:
        """The counts so far and the delay of now."""
        return self._sound.stats()

    def close(self) -> None:
        """Stops the frames; safe to call twice."""
        if self._task is not None:
            self._task.cancel()

    def _tell_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due_s = self._sound.due_s
            if due_s is not None:
                await asyncio.sleep(due_s - now())
                if now() > due_s + STALL_S:
                    await asyncio.sleep(DRAIN_S)
            for frame in self._sound.frames(now()):
                self._on_frame(frame)


def warm_up() -> None:
    """Makes the first call as quick as the others; raises where libopus or what we need of aiortc is missing."""
    warm_up_opus()
    warm_up_tap()
