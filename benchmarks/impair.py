"""A worse network than loopback, without root: packets of one call are lost, held up and delayed inside its client."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiortc import RTCDtlsTransport

MEDIA_BYTES = range(128, 192)
"""First bytes of RTP and RTCP, encrypted or not (RFC 7983); all others belong to the connection's set-up."""


@dataclass
class Network:
    """What happens to media in each direction; a delay is added once on the way there and once on the way back."""

    loss: float = 0.0
    """Share of the packets, independent of each other."""
    jitter_ms: float = 0.0
    """Each packet comes up to this much later, evenly spread, so packets overtake each other."""
    delay_ms: float = 0.0
    seed: int = 1
    lose_next: int = 0
    """So many of the client's next packets are lost, whatever `loss` says."""
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def fate_s(self) -> float | None:
        """How much later the next packet comes; None: never."""
        if self._random.random() < self.loss:
            return None
        return (self.delay_ms + self._random.uniform(0.0, self.jitter_ms)) / 1000

    def attach(self, transport: RTCDtlsTransport) -> None:
        """Puts this network under a connection of aiortc 1.16, whose private methods are the only place for it."""
        loop = asyncio.get_running_loop()
        under: Any = transport.transport
        above: Any = transport
        send, take_rtp, take_rtcp = under._send, above._handle_rtp_data, above._handle_rtcp_data
        flying: set[asyncio.Task[None]] = set()

        def later(deliver: Callable[[], Awaitable[None]]) -> None:
            fate_s = self.fate_s()
            if fate_s is not None:
                loop.call_later(fate_s, start, deliver)

        def start(deliver: Callable[[], Awaitable[None]]) -> None:
            task = asyncio.ensure_future(_quietly(deliver))
            flying.add(task)
            task.add_done_callback(flying.discard)

        async def sent(data: bytes) -> None:
            if data[0] not in MEDIA_BYTES:
                await send(data)
            elif self.lose_next:
                self.lose_next -= 1
            else:
                later(lambda: send(data))

        async def rtp_came(data: bytes, arrival_time_ms: int) -> None:
            later(lambda: take_rtp(data, arrival_time_ms=arrival_time_ms))

        async def rtcp_came(data: bytes) -> None:
            later(lambda: take_rtcp(data))

        under._send, above._handle_rtp_data, above._handle_rtcp_data = sent, rtp_came, rtcp_came


async def _quietly(deliver: Callable[[], Awaitable[None]]) -> None:
    try:
        await deliver()
    except ConnectionError:
        return  # the call has ended while the packet was on its way
