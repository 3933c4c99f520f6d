"""Whether a request sent now would be served: all parts answer, and this replica stays. For load balancers."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

log = logging.getLogger("seedvc.readiness")

Ask = Callable[[], Awaitable[object]]
"""Asks something for a sign of life; raises where it is not well."""

FRESH_S = 2.0
ANSWER_S = 2.0
"""How long an answer counts, and how long one is waited for."""


class Probe:
    """Asks one part for a sign of life: one question at a time, and none while the answer is fresh.

    A question that hangs is not asked again: each may hold a thread.
    """

    def __init__(self, name: str, ask: Ask) -> None:
        self._name, self._ask = name, ask
        self._asking: asyncio.Task[None] | None = None
        self._asked_s = self._answered_s = -math.inf
        self._is_well = False

    async def reason(self) -> str | None:
        """Why it is not well; None where it is."""
        now_s = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now_s - self._answered_s >= FRESH_S):
            self._asked_s = now_s
            # In a context of its own: Serve ties calls made in a request's context to that request.
            self._asking = asyncio.create_task(self._find_out(), context=Context())
        await asyncio.wait([self._asking], timeout=max(0.0, self._asked_s + ANSWER_S - now_s))
        return None if self._asking.done() and self._is_well else f"{self._name} does not answer"

    async def _find_out(self) -> None:
        was_well = self._is_well
        try:
            await self._ask()
            self._is_well = True
        except Exception as error:
            self._is_well = False
            if was_well:
                log.warning("%s does not answer", self._name, exc_info=error)
        finally:
            self._answered_s = asyncio.get_running_loop().time()


class Readiness:
    """The parts that must answer, by name, and whether this replica is about to go."""

    def __init__(self, asks: Mapping[str, Ask], is_retiring: Callable[[], bool] = lambda: False) -> None:
        self._probes = [Probe(name, ask) for name, ask in asks.items()]
        self._is_retiring = is_retiring

    async def reasons(self) -> list[str]:
        """Why requests should go elsewhere; none where this replica is ready."""
        found = await asyncio.gather(*[probe.reason() for probe in self._probes])
        leaving = ["this server goes away"] if self._is_retiring() else []
        return [*leaving, *filter(None, found)]
