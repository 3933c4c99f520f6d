"""The jitter buffer: packets in as the network brings them, one event each 20 ms out, with little delay.

Pure: time is an argument, nothing here waits. Three rules:
- What comes out keeps to our clock, 20 ms each, give or take `PHASE_LIMIT_S`. The phase moves to follow the
  sender's clock; where this is not enough, a whole frame is put in or left out.
- A frame is put in or left out in silence. In speech only one a second is left out, and only while the delay is far
  too long.
- Late is worse than lost: nothing waits for packets that come more than `max_ms` after the fastest. Where the delay is
  longer than that by `GRACE_S`, as after a stalled network, it goes back to the target at once, and older packets drop.
"""

from dataclasses import dataclass

from webrtc.arrivals import Arrivals
from webrtc.opus import FRAME, RATE_HZ, is_dtx, packet_samples

FRAME_S = FRAME / RATE_HZ
MIN_MS = 20  # while nothing is lost; after a loss the full target waits for the next packet, which holds a copy
HEADROOM_S = 0.010  # added to what nearly all packets need
LOSSY = 0.02  # share of lost packets from which each frame waits for the next packet, for the copy in it
LOSS_MEMORY_S = 10.0
LOSS_MEMORY_PACKETS = 500
PHASE_LIMIT_S = 0.012  # over half a frame, so that a clock between two frames does not flip to and fro
SLEW_S = 0.0005  # phase per frame
DEAD_BAND_S = 0.001
TOO_LONG_S = 0.015  # beyond what is wanted; from here on speech may be cut
PATIENCE_S = 1.0  # how long such a delay waits for silence before one frame of speech is cut, each time
SETTLING_S = (
    0.2  # at the start and after a break the first packets may have been held up: a faster one resets the delay
)
GRACE_S = 0.06  # over the maximum: the fastest of a few packets is not known better
BREAK_S = 2.0  # after a jump of the transit or a pause without packets of this length, the stream is learned anew
MISORDERED = 100  # a sequence number further back than this is of another stream
MISSING = 1000  # a sequence number further ahead than this is of another stream
CAPACITY = 100  # packets; the oldest is dropped
GUESSED_FRAMES = 5  # in a row; after them the sender counts as silent
CATCH_UP_FRAMES = 10  # played at once after our own process was held up; the rest is dropped


@dataclass(frozen=True)
class Packet:
    """The next packet is due."""

    payload: bytes
    samples: int  # at 48 kHz, as in every event


@dataclass(frozen=True)
class Skip:
    """The packet goes through the decoder, for its state; its sound is left out to shorten the delay."""

    payload: bytes
    samples: int


@dataclass(frozen=True)
class Lost:
    """A frame is missing. Where the packet after it is there already, it may hold a copy."""

    next_payload: bytes | None
    samples: int


@dataclass(frozen=True)
class Silence:
    """The sender is silent, or one of its pauses is made longer."""

    samples: int


Event = Packet | Skip | Lost | Silence


@dataclass(frozen=True)
class JitterStats:
    """Counts since the start, and the state of now."""

    received: int  # without duplicates
    lost: int  # packets that were not there when they were due
    late: int  # of the lost ones, those that came after all
    duplicates: int
    skipped: int  # packets left out to shorten the delay
    concealed: int  # frames that were guessed or recovered
    jitter_ms: float  # how much later than the fastest packets nearly all packets come
    delay_ms: float  # how long the buffer holds the fastest packets
    target_ms: float  # how long it aims to hold them


@dataclass(frozen=True)
class _Waiting:
    timestamp: int
    payload: bytes
    samples: int
    quiet: bool | None


class JitterBuffer:
    """One stream of Opus packets."""

    def __init__(self, target_ms: int = 30, max_ms: int = 120) -> None:
        if not MIN_MS <= target_ms <= max_ms:
            raise ValueError(f"the target is {MIN_MS} ms to the maximum of {max_ms} ms, not {target_ms} ms")
        self._target_s, self._max_s = target_ms / 1000, max_ms / 1000
        self._due_s: float | None = None
        self._phase_s = 0.0  # of `_due_s` against frames of exactly 20 ms since the first `take`
        self._arrivals: Arrivals | None = None  # None until the first packet
        self._waiting: dict[int, _Waiting] = {}  # by unwrapped sequence number
        self._highest = 0  # unwrapped sequence number
        self._highest_timestamp = 0  # unwrapped, of the same packet
        self._stray = 0  # the last sequence number that did not fit in
        self._first = 0  # sequence number that the stream began with
        self._past = 0  # all up to this sequence number is played or given up
        self._given_up: set[int] = set()  # the sequence numbers up to `_past` that were not there
        self._position = 0  # unwrapped timestamp of what is due
        self._frame = FRAME  # samples of the last packet
        self._in_dtx = True
        self._guessed_in_a_row = 0
        self._settled_s = 0.0
        self._too_long_since_s: float | None = None
        self._lost_s: float | None = None
        self._loss = 0.0  # share, over about the last LOSS_MEMORY_PACKETS
        self._received = self._lost = self._late = self._duplicates = self._skipped = self._concealed = 0

    @property
    def due_s(self) -> float | None:
        """When the next event is due; None before the first `take`."""
        return self._due_s

    @property
    def stats(self) -> JitterStats:
        delay_s = target_s = jitter_s = 0.0
        if self._arrivals is not None and self._due_s is not None:
            delay_s = self._play_out_s(self._due_s) - self._arrivals.fast_s
            target_s = self._wanted_s(self._arrivals, self._due_s) - self._arrivals.fast_s
            jitter_s = self._arrivals.spread_s
        return JitterStats(
            received=self._received,
            lost=self._lost,
            late=self._late,
            duplicates=self._duplicates,
            skipped=self._skipped,
            concealed=self._concealed,
            jitter_ms=1000 * jitter_s,
            delay_ms=1000 * delay_s,
            target_ms=1000 * target_s,
        )

    def add(self, sequence: int, timestamp: int, payload: bytes, arrival_s: float, quiet: bool | None = None) -> None:
        """Takes a packet off the network, in any order; `quiet` says that nobody speaks in it, where that is known."""
        number = _unwrap(sequence, self._highest, 16)
        at = _unwrap(timestamp, self._highest_timestamp, 32)
        transit_s = arrival_s - at / RATE_HZ
        arrivals = self._arrivals
        if arrivals is not None and not -MISORDERED <= number - self._highest <= MISSING:
            if number != self._stray + 1:  # one alone is a packet gone astray, two in a row are another stream
                self._stray = number
                return
            arrivals = None
        if arrivals is None or (number > self._highest and self._breaks(arrivals, arrival_s, transit_s)):
            self._begin(number, at, arrival_s, transit_s)
        elif number in self._waiting or (self._first <= number <= self._past and number not in self._given_up):
            self._duplicates += 1
            return
        else:
            arrivals.add(arrival_s, transit_s)
        self._received += 1
        if number > self._highest:
            self._highest, self._highest_timestamp = number, at
        if number <= self._past:
            self._late += 1
            self._given_up.discard(number)
            return
        if len(self._waiting) >= CAPACITY:
            self._leave_out(min(self._waiting))
        dtx = is_dtx(payload)
        self._waiting[number] = _Waiting(at, payload, packet_samples(payload) or FRAME, True if dtx else quiet)

    def take(self, now_s: float, quiet: bool = False) -> list[Event]:
        """All that is due, in order; `quiet` says that nobody spoke in what was played last."""
        if self._due_s is None:
            self._due_s = now_s
        events: list[Event] = []
        behind = int((now_s - self._due_s) / FRAME_S) - CATCH_UP_FRAMES
        if behind > 0:
            self._due_s += behind * FRAME_S
            self._position += behind * FRAME
            events.extend(self._leave_out_the_past())
        while self._due_s <= now_s:
            if self._arrivals is None:
                events.append(Silence(FRAME))
                self._due_s += FRAME_S
                continue
            events.extend(self._steer(self._arrivals, self._due_s, quiet))
            if self._due_s <= now_s:
                event = self._next()
                events.append(event)
                self._due_s += event.samples / RATE_HZ
        return events

    def _breaks(self, arrivals: Arrivals, arrival_s: float, transit_s: float) -> bool:
        """Whether the stream's times must be learned anew."""
        return abs(transit_s - arrivals.fast_now_s) >= BREAK_S or arrival_s - arrivals.last_s >= BREAK_S

    def _begin(self, number: int, at: int, arrival_s: float, transit_s: float) -> None:
        """Starts over with this packet: the sender was replaced, or was silent for long."""
        self._skipped += len(self._waiting)
        self._waiting.clear()
        self._given_up.clear()
        self._arrivals = Arrivals(arrival_s, transit_s)
        self._highest, self._highest_timestamp = number, at
        self._first, self._past = number, number - 1
        self._position = at
        self._in_dtx = True
        self._settled_s = arrival_s + SETTLING_S
        self._too_long_since_s = None
        if self._due_s is None:
            self._due_s = arrival_s + self._target_s
        self._shift(self._due_s, transit_s + self._target_s - self._play_out_s(self._due_s))

    def _play_out_s(self, due_s: float) -> float:
        """The transit that all packets get, buffer included, as things stand."""
        return due_s - self._position / RATE_HZ

    def _wanted_s(self, arrivals: Arrivals, now_s: float) -> float:
        """The transit that all packets should get."""
        if now_s < self._settled_s:
            return arrivals.fast_now_s + self._target_s
        lost_lately = self._lost_s is not None and now_s < self._lost_s + LOSS_MEMORY_S
        at_least_s = self._target_s if lost_lately else MIN_MS / 1000
        headroom_s = HEADROOM_S + (FRAME_S if self._loss > LOSSY else 0.0)
        wanted_s = max(arrivals.fast_s + at_least_s, arrivals.slow_s + headroom_s)
        return min(wanted_s, arrivals.fast_now_s + self._max_s)

    def _steer(self, arrivals: Arrivals, due_s: float, quiet: bool) -> list[Event]:
        """Moves the delay towards what is wanted, before the next event: by its due time, or by whole frames."""
        head = self._head()
        if head is not None and head.timestamp < self._position + self._frame // 2:
            self._position = (
                head.timestamp
            )  # a late packet is still played: what was guessed in its place has lengthened the delay
        play_out_s = self._play_out_s(due_s)
        later_s = self._wanted_s(arrivals, due_s) - play_out_s
        settling = due_s < self._settled_s
        if play_out_s - arrivals.fast_now_s > self._max_s + GRACE_S:
            self._settled_s = due_s + SETTLING_S
            return self._start_over(due_s, arrivals, arrivals.last_transit_s)
        if settling and later_s < -TOO_LONG_S:
            return self._start_over(due_s, arrivals, arrivals.fast_now_s)
        if later_s >= -TOO_LONG_S:
            self._too_long_since_s = None
        if abs(self._phase_s + later_s) <= PHASE_LIMIT_S:
            if abs(later_s) > DEAD_BAND_S:
                step_s = max(-SLEW_S, min(SLEW_S, later_s))
                self._phase_s += step_s
                self._due_s = due_s + step_s
            return []
        one_frame_s = max(-1.49 * FRAME_S, min(1.49 * FRAME_S, self._phase_s + later_s)) - self._phase_s
        if self._is_calm(head, quiet):
            return self._shift(due_s, one_frame_s)
        if later_s < -TOO_LONG_S:
            self._too_long_since_s = self._too_long_since_s or due_s
            if due_s > self._too_long_since_s + PATIENCE_S:
                self._too_long_since_s = due_s
                return self._shift(due_s, one_frame_s)
        return []

    def _start_over(self, due_s: float, arrivals: Arrivals, transit_s: float) -> list[Event]:
        """Sets the delay to the target over this transit at once, and forgets the others."""
        self._arrivals = Arrivals(arrivals.last_s, transit_s)
        return self._shift(due_s, transit_s + self._target_s - self._play_out_s(due_s))

    def _is_calm(self, head: _Waiting | None, quiet: bool) -> bool:
        """Whether nobody hears a frame more or less now."""
        if head is None or head.timestamp >= self._position + self._frame // 2:
            return self._in_dtx
        return quiet if head.quiet is None else head.quiet

    def _shift(self, due_s: float, later_s: float) -> list[Event]:
        """Moves what is due: by whole frames, left out or put in before it, and by the phase for the rest."""
        frames = round((self._phase_s + later_s) / FRAME_S)
        phase_s = self._phase_s + later_s - frames * FRAME_S
        self._due_s = due_s + phase_s - self._phase_s
        self._phase_s = phase_s
        self._position -= frames * FRAME
        return self._leave_out_the_past()

    def _leave_out_the_past(self) -> list[Event]:
        """Drops what waits before the position."""
        skips: list[Event] = []
        for number in sorted(self._waiting):
            waiting = self._waiting[number]
            if waiting.timestamp >= self._position - waiting.samples // 2:
                break
            self._leave_out(number)
            skips.append(Skip(waiting.payload, waiting.samples))
        return skips

    def _next(self) -> Event:
        """What is played now; moves the position behind it."""
        head = self._head()
        if head is None or head.timestamp >= self._position + self._frame // 2:
            event = self._bridge(head)
            self._position += event.samples
            return event
        number = min(self._waiting)
        self._give_up_before(number)
        del self._waiting[number]
        self._past = number
        self._loss -= self._loss / LOSS_MEMORY_PACKETS
        self._position = head.timestamp + head.samples
        self._frame = head.samples
        self._in_dtx = is_dtx(head.payload)
        self._guessed_in_a_row = 0
        return Packet(head.payload, head.samples)

    def _bridge(self, head: _Waiting | None) -> Event:
        """What takes the place of a packet that is not there: lost by its sequence number, or never sent."""
        missing = head is not None and min(self._waiting) > self._past + 1
        if head is not None and missing and head.timestamp < self._position + 3 * self._frame // 2:
            self._give_up_before(min(self._waiting))
            self._concealed += 1
            return Lost(head.payload, self._frame)
        paused = head is not None and not missing
        if self._in_dtx or paused or self._guessed_in_a_row >= GUESSED_FRAMES:
            self._in_dtx = True
            return Silence(FRAME)
        self._guessed_in_a_row += 1
        self._concealed += 1
        return Lost(None, self._frame)

    def _head(self) -> _Waiting | None:
        return self._waiting[min(self._waiting)] if self._waiting else None

    def _give_up_before(self, number: int) -> None:
        """Counts as lost what is missing before this sequence number."""
        for missing in range(self._past + 1, number):
            self._given_up.add(missing)
            self._lost += 1
            self._lost_s = self._due_s
            self._loss += (1 - self._loss) / LOSS_MEMORY_PACKETS
        self._past = number - 1
        if self._given_up:
            self._given_up = {old for old in self._given_up if old >= number - MISORDERED}

    def _leave_out(self, number: int) -> None:
        """Drops the first waiting packet."""
        self._give_up_before(number)
        self._in_dtx = is_dtx(self._waiting.pop(number).payload)
        self._past = number
        self._skipped += 1


def _unwrap(value: int, near: int, bits: int) -> int:
    """The number that ends in these bits and is nearest to `near`."""
    half = 1 << (bits - 1)
    return near + ((value - near + half) & ((1 << bits) - 1)) - half
