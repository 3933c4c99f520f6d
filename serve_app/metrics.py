"""What the service counts: on each node's metrics port, as ray_seedvc_<noun>_<unit>."""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram

from stages.types import Outcome

MS_BOUNDARIES = [1.0, 2, 5, 10, 20, 40, 60, 90, 120, 180, 250, 360, 500, 1000, 2500, 10000]
SIZE_BOUNDARIES = [1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32]


class StageMetrics:
    """Histograms of one stage's replica."""

    def __init__(self, stage: str) -> None:
        tags = {"tag_keys": ("stage",)}
        self._queue = Histogram("seedvc_stage_queue_ms", "wait for the device", MS_BOUNDARIES, **tags)
        self._compute = Histogram("seedvc_stage_compute_ms", "time of one batch", MS_BOUNDARIES, **tags)
        self._size = Histogram("seedvc_stage_batch_size", "requests in one batch", SIZE_BOUNDARIES, **tags)
        for metric in (self._queue, self._compute, self._size):
            metric.set_default_tags({"stage": stage})

    def waited(self, milliseconds: float) -> None:
        self._queue.observe(milliseconds)

    def computed(self, milliseconds: float, n_requests: int) -> None:
        self._compute.observe(milliseconds)
        self._size.observe(n_requests)


class BlockMetrics:
    """Counters of an ingress replica's blocks."""

    def __init__(self) -> None:
        self.retried = Counter("seedvc_calls_retried", "chains started again because a replica was lost")
        self._of_outcome: dict[Outcome, Counter] = {
            "done": Counter("seedvc_blocks_done", "blocks of calls that were converted in time"),
            "bypassed": Counter("seedvc_blocks_bypassed", "blocks of calls that were passed on as they were"),
            "skipped": Counter("seedvc_blocks_skipped", "blocks of calls without speech, which the stages were spared"),
            "late": Counter("seedvc_blocks_late", "blocks of calls that missed their deadline"),
            "dropped": Counter("seedvc_blocks_dropped", "blocks of calls for which there was no room, or that failed"),
        }
        self._concealed = Counter("seedvc_blocks_concealed", "blocks of calls heard as a gap, late or dropped")

    def count(self, outcome: Outcome) -> None:
        """One block has come out."""
        self._of_outcome[outcome].inc()
        if outcome in ("late", "dropped"):
            self._concealed.inc()


class SessionStoreMetrics:
    """How an ingress replica gets on with the store of its sessions' records."""

    def __init__(self) -> None:
        self.answer = Histogram("seedvc_sessions_store_ms", "time of one answer of the session store", MS_BOUNDARIES)
        self.errors = Counter("seedvc_sessions_store_errors", "requests to the session store that failed")
        self.dropped = Counter("seedvc_sessions_store_dropped", "records left unwritten, as too many waited")
        self.away = Gauge("seedvc_sessions_store_away", "1 while the session store does not answer")


class SessionMetrics:
    """Gauges and counters of an ingress replica's calls."""

    def __init__(self) -> None:
        self.live = Gauge("seedvc_sessions_live", "calls that are running")
        self.refused = Counter("seedvc_sessions_refused", "calls that found no place")
        self.rung = Gauge("seedvc_ladder_rung", "how far calls were adapted to keep up; 0 is not at all")
        self._mouth_to_ear = Histogram(
            "seedvc_mouth_to_ear_ms", "estimated delay of a call, each second", MS_BOUNDARIES
        )
        self._lost = Counter("seedvc_packets_lost", "packets of speakers that did not come")
        self._bitrate = Gauge("seedvc_bitrate_out_bps", "sent to all calls together")
        self._sent_bps: dict[str, float] = {}
        self._known_lost: dict[str, int] = {}

    def follow(self, session_id: str, packets_lost: int, bitrate_out_bps: float, mouth_to_ear_ms: float) -> None:
        """Takes one second's figures of one call; `packets_lost` counts from its begin."""
        self._mouth_to_ear.observe(mouth_to_ear_ms)
        lost = packets_lost - self._known_lost.get(session_id, 0)
        if lost > 0:
            self._lost.inc(lost)
        self._known_lost[session_id] = packets_lost
        self._sent_bps[session_id] = bitrate_out_bps
        self._bitrate.set(sum(self._sent_bps.values()))

    def forget(self, session_id: str) -> None:
        """The call is over."""
        self._known_lost.pop(session_id, None)
        if self._sent_bps.pop(session_id, None) is not None:
            self._bitrate.set(sum(self._sent_bps.values()))


class KeyMetrics:
    """Counters of what the holders of keys do, by the name of the key."""

    MOST_NAMES = 100
    """Labels cost Prometheus memory: what further keys do is counted under `other`."""

    def __init__(self) -> None:
        tags = {"tag_keys": ("key",)}
        self._requests = Counter("seedvc_key_requests", "requests", **tags)
        self._refused = Counter("seedvc_key_refused", "what the limits of a key did not allow", **tags)
        self._call_s = Counter("seedvc_key_call_seconds", "time of calls", **tags)
        self._upload_bytes = Counter("seedvc_key_upload_bytes", "bytes of request bodies", **tags)
        self._names: set[str] = set()

    def asked(self, name: str) -> None:
        self._requests.inc(tags=self._tags(name))

    def refused(self, name: str) -> None:
        self._refused.inc(tags=self._tags(name))

    def called(self, name: str, seconds: float) -> None:
        if seconds > 0:
            self._call_s.inc(seconds, tags=self._tags(name))

    def uploaded(self, name: str, n_bytes: int) -> None:
        self._upload_bytes.inc(n_bytes, tags=self._tags(name))

    def _tags(self, name: str) -> dict[str, str]:
        if len(self._names) < self.MOST_NAMES:
            self._names.add(name)
        return {"key": name if name in self._names else "other"}
