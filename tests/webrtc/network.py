"""A sender, a network with faults and a receiver's clock, all simulated: minutes of packets in a second."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from aiortc.rtp import HeaderExtensions, RtpPacket

from webrtc.jitter import Event, JitterBuffer, Lost, Packet, Silence, Skip
from webrtc.opus import FRAME, RATE_HZ

FRAME_S = FRAME / RATE_HZ
START_S = 100.0  # the receiver's clock when the first frame is captured
TRANSIT_S = 0.05
TALK_S, PAUSE_S = 3.0, 1.0
SPEECH = bytes([0x78, *range(100)])  # the first byte says: 20 ms, mono
COMFORT = bytes([0x78, 0])


@dataclass(frozen=True)
class Sent:
    """One packet on its way; what is captured at `captured_s` ends a frame later."""

    sequence: int
    timestamp: int
    payload: bytes
    captured_s: float
    arrival_s: float
    quiet: bool | None = None


def rtp(sent: Sent) -> RtpPacket:
    """The packet as aiortc reads it off the network."""
    packet = RtpPacket(payload_type=111, sequence_number=sent.sequence, timestamp=sent.timestamp, payload=sent.payload)
    packet.extensions = HeaderExtensions()
    return packet


def talk(
    duration_s: float,
    *,
    sequence: int = 0,
    timestamp: int = 0,
    clock_ppm: float = 0.0,
    pauses: bool = True,
    dtx: bool = False,
    told: bool = True,
) -> list[Sent]:
    """Talks for 3 s and pauses for 1 s, in DTX with one packet each 400 ms; `told`: packets say they are quiet."""
    sent: list[Sent] = []
    for n in range(round(duration_s / FRAME_S)):
        second = n * FRAME_S % (TALK_S + PAUSE_S)
        pausing = pauses and second >= TALK_S
        if pausing and dtx and round((second - TALK_S) / FRAME_S) % 20:
            continue
        captured_s = START_S + n * FRAME_S * (1 - clock_ppm * 1e-6)
        sent.append(
            Sent(
                (sequence + len(sent)) % (1 << 16),
                (timestamp + n * FRAME) % (1 << 32),
                COMFORT if pausing and dtx else SPEECH,
                captured_s,
                captured_s + FRAME_S + TRANSIT_S,
                pausing if told else None,
            )
        )
    return sent


def delayed(sent: Iterable[Sent], by_s: Callable[[Sent], float]) -> list[Sent]:
    return [replace(packet, arrival_s=packet.arrival_s + by_s(packet)) for packet in sent]


def jittery(sent: Iterable[Sent], up_to_s: float, seed: int = 0) -> list[Sent]:
    """Each packet is delayed on its own, so they overtake one another."""
    random = np.random.default_rng(seed)
    return delayed(sent, lambda packet: up_to_s * float(random.random()))


def lossy(sent: Iterable[Sent], share: float, seed: int = 0) -> list[Sent]:
    random = np.random.default_rng(seed)
    return [packet for packet in sent if random.random() >= share]


def stalled(sent: Iterable[Sent], from_s: float, for_s: float) -> list[Sent]:
    """What would come in this time comes at its end, all at once."""
    end_s = START_S + from_s + for_s
    return [
        replace(packet, arrival_s=end_s) if START_S + from_s <= packet.arrival_s < end_s else packet for packet in sent
    ]


@dataclass
class Heard:
    """What the buffer gave out, and when."""

    events: list[tuple[float, Event]] = field(default_factory=list)
    delays: list[tuple[float, float]] = field(default_factory=list)  # (time since the start, ms over the transit)
    played: list[int] = field(default_factory=list)  # index of each packet that was played
    buffer: JitterBuffer = field(default_factory=JitterBuffer)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for _, event in self.events)

    def delay_ms(self, from_s: float = 0.0, to_s: float = 1e9, percentile: float = 50) -> float:
        """Of the packets played in this time: how long after the fastest possible arrival."""
        return float(np.percentile([ms for at, ms in self.delays if from_s <= at < to_s], percentile))

    @property
    def concealed(self) -> float:
        """Share of frames that were guessed or recovered, of those that are not silence."""
        return self.count(Lost) / max(1, self.count(Lost) + self.count(Packet))

    @property
    def output_s(self) -> float:
        """How much sound came out."""
        return sum(event.samples for _, event in self.events if not isinstance(event, Skip)) / RATE_HZ

    def silence_in_speech(self, sent: list[Sent]) -> int:
        """Frames of silence that stand between two packets of the same utterance, but for those before the first."""
        count, before, gap = 0, None, 0
        indices = iter(self.played)
        for _, event in self.events:
            if isinstance(event, Silence):
                gap += 1
            elif isinstance(event, Packet):
                packet = sent[next(indices)] if len(event.payload) > len(COMFORT) else None
                if before is not None and packet is not None and not before.quiet and not packet.quiet:
                    count += gap
                before, gap = packet, 0
        return count


def listen(
    sent: list[Sent],
    *,
    timer_late_s: float = 0.002,
    for_s: float | None = None,
    held_up: tuple[float, float] = (0.0, 0.0),
) -> Heard:
    """Runs the buffer until it plays the last packet, or for so long; its timer fires late, and not while held up."""
    heard = Heard()
    random = np.random.default_rng(1)
    # payloads of one kind are all alike: a number in front of the rest tells which packet was played
    arriving = deque(sorted((packet.arrival_s, n) for n, packet in enumerate(sent)))
    marked = {n: _mark(packet.payload, n) for n, packet in enumerate(sent)}
    captured = {mark: n for n, mark in marked.items() if len(mark) > 2}
    end_s = START_S + for_s if for_s is not None else arriving[-1][0] + 0.2
    take_s = START_S
    while take_s < end_s and (for_s is not None or heard.played[-1:] != [len(sent) - 1]):
        while arriving and arriving[0][0] <= take_s:
            arrival_s, n = arriving.popleft()
            packet = sent[n]
            heard.buffer.add(packet.sequence, packet.timestamp, marked[n], arrival_s, packet.quiet)
        for event in heard.buffer.take(take_s):
            heard.events.append((take_s - START_S, event))
            if isinstance(event, Packet) and event.payload in captured:
                n = captured[event.payload]
                heard.played.append(n)
                fastest_s = sent[n].captured_s + FRAME_S + TRANSIT_S
                heard.delays.append((take_s - START_S, 1000 * (take_s - fastest_s)))
        assert heard.buffer.due_s is not None
        take_s = max(take_s, heard.buffer.due_s + timer_late_s * float(random.random()))
        if held_up[0] <= take_s - START_S < held_up[1]:
            take_s = START_S + held_up[1]
    return heard


def _mark(payload: bytes, n: int) -> bytes:
    return payload if len(payload) <= 2 else payload[:1] + n.to_bytes(4, "big") + payload[5:]
