"""How long the fuzzers look: a few fixed examples in every test run, new ones for a time where it is asked for."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("SEEDVC_FUZZ_SECONDS") or 0)
"""How long each fuzzer looks for new examples; 0: it only tries the same few each time."""
MORE_S = 240.0
"""What the last round may take over that before the test counts as hung."""


def budgeted(examples: int = 25) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Stands above `@given`: so many examples, the same in each run; with SEEDVC_FUZZ_SECONDS rounds of new ones.

    The test is a plain function: what it has to await, it gives to `asyncio.run`.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        one_round: Callable[..., None] = settings(
            max_examples=max(examples, 100) if SECONDS else examples,
            derandomize=not SECONDS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(test)
        if not SECONDS:
            return one_round

        @functools.wraps(one_round)
        def rounds(*args: Any, **kwargs: Any) -> None:
            end_s = time.monotonic() + SECONDS
            while time.monotonic() < end_s:
                one_round(*args, **kwargs)

        limited: Callable[..., None] = pytest.mark.timeout(SECONDS + MORE_S)(rounds)
        return limited

    return decorate
