"""What the service counts: on each node's metrics port, as ray_seedvc_<noun>_<unit>."""

from __future__ import annotations

from ray.serve.metrics import Counter, Histogram

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
    """Counters of an ingress replica's live blocks."""

    def __init__(self) -> None:
        self.late = Counter("seedvc_blocks_late", "live blocks that missed their deadline")
        self.dropped = Counter("seedvc_blocks_dropped", "live blocks without a result, late or failed")
        self.retried = Counter("seedvc_calls_retried", "chains started again because a replica was lost")
