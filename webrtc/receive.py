"""What a client says, as 20 ms frames at 16 kHz: packets from aiortc's transport, our own jitter buffer and decoder.

aiortc's own way holds 80 ms, and 280 ms for the rest of the call after one lost packet. Its statistics and reports to
the sender stay in use: they are what makes a browser add copies of its frames for the network to lose.
"""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass

import aiortc
import numpy as np
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtpPacket
from numpy.typing import NDArray

from webrtc.downsample import Downsampler
from webrtc.jitter import Event, JitterBuffer, Lost, Packet, Skip
from webrtc.opus import OpusDecoder, OpusError, Samples48k, has_copy
from webrtc.opus import warm_up as warm_up_opus

Samples16k = NDArray[np.float32]  # (320,) mono at 16 kHz, full scale at 1

FRAME_16K = 320
SILENT_DB = -120.0
QUIET_DB = -50.0  # of full scale: nobody speaks
PAUSE_DB = 25.0  # ... or this much below the speech before, where the room is loud
FORGET_DB = 0.02  # of that speech's level, per 20 ms
METER_FALL_DB = 1.0  # per 20 ms, so that the eye can follow
SEAM = 240  # samples at 48 kHz over which sound fades into what comes after a part left out
STALL_S = 0.015  # a timer this late means that packets were held up as well ...
DRAIN_S = 0.003  # ... and these come in first

# aiortc 1.16 has no public way to get at packets in time: these names of its receiver are private
_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_CODECS = "_RTCRtpReceiver__codecs"


@dataclass(frozen=True, slots=True)
class ReceiveStats:
    """How receiving goes: counts of packets since the start, and the state of now."""

    received: int = 0  # without duplicates
    lost: int = 0  # not there when they were due
    late: int = 0  # ... of these, and came after all
    duplicates: int = 0
    skipped: int = 0  # left out to shorten the delay
    damaged: int = 0  # could not be decoded
    concealed: int = 0  # frames that were guessed
    recovered: int = 0  # frames from the copy in the next packet
    jitter_ms: float = 0.0  # how much later than the fastest nearly all packets come
    delay_ms: float = 0.0  # what the buffer adds to the way of the fastest packets
    target_ms: float = 0.0  # what it would like to add
    level_db: float = SILENT_DB  # of full scale: for a meter, falls slowly


class Pauses:
    """Tells speech from pauses by level, for a place where sound can be stretched."""

    def __init__(self) -> None:
        self._speech_db = SILENT_DB

    def is_quiet(self, level_db: float) -> bool:
        """Whether 20 ms of this level, in dB of full scale, are part of a pause."""
        self._speech_db = max(level_db, self._speech_db - FORGET_DB)
        return level_db < max(QUIET_DB, self._speech_db - PAUSE_DB)


class Listener:
    """One client's packets to frames, without a clock of its own."""

    def __init__(self) -> None:
        self._buffer = JitterBuffer()
        self._decoder = OpusDecoder()
        self._downsample = Downsampler()
        self._told, self._heard = Pauses(), Pauses()  # by the sender's level of each packet, by our own
        self._quiet = True
        self._level_db = SILENT_DB
        self._left_out: Samples48k | None = None  # how sound would have gone on where a part is left out
        self._rest = np.zeros(0, np.float32)
        self._damaged = self._recovered = 0

    @property
    def due_s(self) -> float | None:
        """When the next frame is due; None before the first `frames`."""
        return self._buffer.due_s

    def add(self, packet: RtpPacket, arrival_s: float) -> None:
        """Takes an Opus packet off the network."""
        level = packet.extensions.audio_level  # whether it is voice, and its level in dB below full scale
        quiet = None if level is None else self._told.is_quiet(-float(level[1]))
        self._buffer.add(packet.sequence_number, packet.timestamp, packet.payload, arrival_s, quiet)

    def frames(self, now_s: float) -> list[Samples16k]:
        """All frames that are due, mostly one."""
        parts = [self._rest]
        for event in self._buffer.take(now_s, self._quiet):
            sound = self._sound(event)
            if sound is not None:
                parts.append(self._downsample(self._across_seam(sound)))
        sound_16k = np.concatenate(parts)
        whole = len(sound_16k) // FRAME_16K * FRAME_16K
        self._rest = sound_16k[whole:]
        frames = list(sound_16k[:whole].reshape(-1, FRAME_16K))
        for frame in frames:
            self._measure(frame)
        return frames

    def stats(self) -> ReceiveStats:
        buffer = self._buffer.stats
        return ReceiveStats(
            received=buffer.received,
            lost=buffer.lost,
            late=buffer.late,
            duplicates=buffer.duplicates,
            skipped=buffer.skipped,
            damaged=self._damaged,
            concealed=buffer.concealed - self._recovered,
            recovered=self._recovered,
            jitter_ms=buffer.jitter_ms,
            delay_ms=buffer.delay_ms,
            target_ms=buffer.target_ms,
            level_db=self._level_db,
        )

    def _sound(self, event: Event) -> Samples48k | None:
        """What is heard of an event; None where it is left out."""
        try:
            match event:
                case Packet(payload):
                    return self._decoder.decode(payload)
                case Skip(payload):
                    skipped = self._decoder.decode(payload)
                    if self._left_out is None:
                        self._left_out = skipped[:SEAM]
                    return None
                case Lost(next_payload, samples) if next_payload is not None:
                    self._recovered += has_copy(next_payload)
                    return self._decoder.recover(next_payload, samples)
        except OpusError:
            self._damaged += 1
        return None if isinstance(event, Skip) else self._decoder.conceal(event.samples)

    def _across_seam(self, sound: Samples48k) -> Samples48k:
        """Fades from what was left out into what follows it."""
        if self._left_out is None:
            return sound
        length = min(len(self._left_out), len(sound))
        rising = (np.arange(length, dtype=np.float32) + 1) / np.float32(length + 1)
        sound[:length] = rising * sound[:length] + (1 - rising) * self._left_out[:length]
        self._left_out = None
        return sound

    def _measure(self, frame: Samples16k) -> None:
        level_db = 10 * float(np.log10(np.mean(frame**2) + 1e-12))
        self._quiet = self._heard.is_quiet(level_db)
        self._level_db = max(level_db, self._level_db - METER_FALL_DB)


class AudioReceiver:
    """Calls `on_frame` with each 20 ms of one client, silence included, from `attach` to `close`.

    Where that or the receiving fails, no more frames come; `on_failure` is told the reason.
    """

    def __init__(self, on_frame: Callable[[Samples16k], None], on_failure: Callable[[BaseException], None]) -> None:
        self._on_frame, self._on_failure = on_frame, on_failure
        self._listener = Listener()
        self._task: asyncio.Task[None] | None = None

    def attach(self, receiver: RTCRtpReceiver) -> None:
        """Takes the place of the receiver's own buffer and decoder; before its first packet, and once."""
        if self._task is not None:
            raise RuntimeError("the receiver is attached already")
        _check_aiortc(receiver.__dict__)
        loop = asyncio.get_running_loop()
        setattr(receiver, _JITTER_BUFFER, _Tap(getattr(receiver, _CODECS), self._listener, loop.time))
        self._task = loop.create_task(self._run(), name="receive-audio")
        self._task.add_done_callback(self._tell_failure)

    def stats(self) -> ReceiveStats:
        """The counts so far and the delay of now."""
        return self._listener.stats()

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
            due_s = self._listener.due_s
            if due_s is not None:
                await asyncio.sleep(due_s - now())
                if now() > due_s + STALL_S:
                    await asyncio.sleep(DRAIN_S)
            for frame in self._listener.frames(now()):
                self._on_frame(frame)


class _Tap:
    """Stands where aiortc's receiver has its jitter buffer, and never gives it anything to decode."""

    def __init__(
        self, codecs: dict[int, aiortc.RTCRtpCodecParameters], listener: Listener, now: Callable[[], float]
    ) -> None:
        self._codecs, self._listener, self._now = codecs, listener, now

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Passes Opus packets on and drops others; (no picture is missing, nothing to decode)."""
        if self._codecs[packet.payload_type].mimeType.lower() == "audio/opus":
            self._listener.add(packet, self._now())
        return False, None


def warm_up() -> None:
    """Makes the first call as quick as the others; raises where libopus or what we need of aiortc is missing."""
    warm_up_opus()
    _check_aiortc(RTCRtpReceiver.__init__.__code__.co_names)


def _check_aiortc(names: Container[str]) -> None:
    for name in (_JITTER_BUFFER, _CODECS):
        if name not in names:
            raise RuntimeError(f"aiortc {aiortc.__version__} has no {name}: receiving needs aiortc 1.16")
