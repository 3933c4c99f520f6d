"""Between the layers of the networks: where a computation may stand still, or be given up.

The networks call `next_layer`. Whoever computes says what happens there, for its own thread; else nothing does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_thread = threading.local()


def next_layer() -> None:
    """The next layer is about to be computed. What this raises ends the computation."""
    act: Callable[[], None] | None = getattr(_thread, "act", None)
    if act is not None:
        act()


@contextmanager
def before_each_layer(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` before each layer that this thread computes inside."""
    _thread.act = act
    try:
        yield
    finally:
        _thread.act = None
