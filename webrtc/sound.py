"""One sender's Opus packets to sound at 48 kHz: our jitter buffer and decoder. Pure: time is an argument."""

import numpy as np
from aiortc.rtp import RtpPacket

from webrtc.jitter import Event, JitterBuffer, JitterStats, Lost, Packet, Silence, Skip
from webrtc.opus import OpusDecoder, OpusError, Samples48k, has_copy

SILENT_DB = -120.0
QUIET_DB = -50.0
"""Of full scale: below it nobody speaks."""
PAUSE_DB = 25.0
"""Where the room is loud, a level this far below the speech before is a pause as well."""
FORGET_DB = 0.02
"""How fast the remembered level of speech falls, per 20 ms."""
SEAM = 240
"""Samples at 48 kHz over which a part left out fades into what follows it."""


class Pauses:
    """Tells speech from pauses by level: sound can be stretched or shortened in a pause."""

    def __init__(self) -> None:
        self._speech_db = SILENT_DB

    def is_quiet(self, level_db: float) -> bool:
        """Whether 20 ms of this level, in dB of full scale, are part of a pause."""
        self._speech_db = max(level_db, self._speech_db - FORGET_DB)
        return level_db < max(QUIET_DB, self._speech_db - PAUSE_DB)


class PacketSound:
    """Packets in as the network brings them, sound out as it is due.

    Args:
        lead_in: whether the time before the first packet is played gives silence (else it gives nothing).
    """

    def __init__(self, *, lead_in: bool = True) -> None:
        self.damaged = 0
        """Packets that could not be decoded."""
        self.recovered = 0
        """Frames from the copy in the next packet."""
        self._begun = lead_in
        self._buffer = JitterBuffer()
        self._decoder = OpusDecoder()
        self._pauses = Pauses()  # by the level that the sender writes on each packet
        self._left_out: Samples48k | None = None  # how sound would have gone on where a part is left out

    @property
    def begun(self) -> bool:
        """Whether there is sound yet, silence of the lead-in included."""
        return self._begun

    @property
    def due_s(self) -> float | None:
        """When the next part is due; None before the first `take`."""
        return self._buffer.due_s

    @property
    def stats(self) -> JitterStats:
        """The jitter buffer's counts so far and its delay of now."""
        return self._buffer.stats

    def add(self, packet: RtpPacket, arrival_s: float) -> None:
        """Takes an Opus packet off the network."""
        level = packet.extensions.audio_level  # (whether it is voice, its level in dB below full scale), if sent
        quiet = None if level is None else self._pauses.is_quiet(-float(level[1]))
        self._buffer.add(packet.sequence_number, packet.timestamp, packet.payload, arrival_s, quiet)

    def take(self, now_s: float, quiet: bool) -> list[Samples48k]:
        """All parts that are due, in order, mostly one of 20 ms; `quiet` says that nobody spoke in the last one."""
        sounds = [self.decode(event) for event in self._buffer.take(now_s, quiet)]
        return [sound for sound in sounds if sound is not None]

    def decode(self, event: Event) -> Samples48k | None:
        """What is heard of an event; None where it adds no sound. A damaged packet sounds like a lost one."""
        if isinstance(event, Silence) and not self._begun:
            return None
        sound = self._decoded(event)
        if sound is None:
            return None
        self._begun = True
        return self._across_seam(sound)

    def guess(self) -> Samples48k:
        """20 ms of what probably follows, for those who need sound before it is due."""
        return self._decoder.conceal()

    def _decoded(self, event: Event) -> Samples48k | None:
        try:
            match event:
                case Packet(payload):
                    return self._decoder.decode(payload)
                case Skip(payload):
                    skipped = self._decoder.decode(payload)  # keeps the decoder's state
                    if self._left_out is None:
                        self._left_out = skipped[:SEAM]
                    return None
                case Lost(next_payload, samples) if next_payload is not None:
                    self.recovered += has_copy(next_payload)
                    return self._decoder.recover(next_payload, samples)
        except OpusError:
            self.damaged += 1
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
