"""Calls without networks of either kind: a peer that the test speaks through, and stages that answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.schema import load_preset
from configs.serve import RtcArgs
from serve_app.callers.ring import OPERATOR, Caller
from serve_app.calls.records import Records
from serve_app.calls.registry import Calls
from serve_app.errors import VoiceNotFound
from serve_app.metrics import SessionMetrics
from stages.call import CallStream
from stages.geometry import HOP, TICK_16K
from stages.line import Gate
from stages.settings import CallSettings
from stages.types import DiffuseRequest, EncodeRequest, Samples, VocodeRequest
from webrtc.peer import PeerStats
from webrtc.sdp import Direction, Offer

TINY = load_preset("tiny")
LIVE = TINY.live
VOICES = ("martin", "clara")
TONE = (0.1 * np.sin(2 * np.pi * 4 / HOP * np.arange(HOP))).astype(np.float32)
"""One frame of 344.5 Hz: whole periods, so that frames in a row are one tone. (Opus removes a constant.)"""
ANSWER = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"


def audio_offer(direction: str = "sendrecv", codec: str = "opus/48000/2", more: str = "", ufrag: str = "abcd") -> str:
    """An offer as far as signalling reads one."""
    lines = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "c=IN IP4 0.0.0.0"]
    lines += ["a=mid:0", f"a={direction}", f"a=rtpmap:111 {codec}", "a=rtcp-mux", "a=setup:actpass"]
    lines += [
        f"a=ice-ufrag:{ufrag}",
        "a=ice-pwd:abcdefghijklmnopqrstuvwx",
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
    ]
    return "\r\n".join([*lines, *([more] if more else [])]) + "\r\n"


class FakePeer:
    """Holds what the call does to its client, and does what the test says the client does."""

    def __init__(
        self,
        *,
        on_frame: Callable[[Samples], None],
        on_message: Callable[[str], None] | None,
        direction: Direction,
        loopback: bool,
    ) -> None:
        self.on_frame, self.on_message, self.direction, self.loopback = on_frame, on_message, direction, loopback
        self.closed = asyncio.Event()
        self.candidates: list[dict[str, Any] | None] = []
        self.played: list[Samples] = []
        self.messages: list[dict[str, Any]] = []
        self.network = PeerStats(rtt_ms=12.0, bitrate_in_bps=32000.0)
        self.reason: str | None = None
        self.failed = False
        self.hung_up = False

    async def answer(self, given: Offer | str) -> str:
        if "unanswerable" in (given if isinstance(given, str) else given.sdp):
            raise ValueError("no common codec")
        return ANSWER

    def add_candidate(self, candidate: dict[str, Any] | None) -> None:
        self.candidates.append(candidate)

    def play(self, samples: Samples) -> None:
        self.played.append(samples)

    def send_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def stats(self) -> PeerStats:
        return self.network

    async def close(self) -> None:
        self.hung_up = True
        self.closed.set()

    def speak(self, seconds: float) -> None:
        """A loud client."""
        rng = np.random.default_rng(1)
        for _ in range(round(seconds * 50)):
            self.on_frame(rng.normal(0, 0.2, TICK_16K).astype(np.float32))


class QuickStages:
    """Answers every block at once, with a tone or with the failure that the test sets."""

    def __init__(self) -> None:
        self.voices: list[str] = []
        self.failure: Exception | None = None

    def encode(self, request: EncodeRequest) -> EncodeRequest:
        return request

    def diffuse(self, content: Any, request: DiffuseRequest) -> int:
        self.voices.append(str(request.voice))
        return request.frames

    def vocode(self, mel: int, request: VocodeRequest) -> int:
        return request.last_frames or mel

    def render(self, content: Any, diffuse: DiffuseRequest, vocode: VocodeRequest) -> int:
        return self.vocode(self.diffuse(content, diffuse), vocode)

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> int:
        return self.render(self.encode(encode), diffuse, vocode)

    async def collect(self, wave: int) -> Samples:
        if self.failure is not None:
            raise self.failure
        return np.tile(TONE, wave)

    def cancel(self, wave: int) -> None:
        pass

    def stage_ms(self, wave: int) -> dict[str, float]:
        return {"encoder": 1.0}


def everything(samples: Samples, n_new: int) -> Any:
    """A gate that is always open."""
    return np.ones(len(samples) // TICK_16K, np.float32)


@dataclass
class CallRoom:
    """A registry of calls and what is behind it."""

    args: RtcArgs = field(default_factory=RtcArgs)
    stages: QuickStages = field(default_factory=QuickStages)
    peers: list[FakePeer] = field(default_factory=list)
    streams: list[CallStream] = field(default_factory=list)
    owner: str = "here"
    make_peer: Callable[..., Any] = FakePeer
    gate: Gate = everything
    stats_every_s: float = 0.01
    adapt_every_s: float = 0.01
    records: Records | None = None
    features_gate: asyncio.Event | None = None
    """Where set, voices are made ready only when it is."""

    def __post_init__(self) -> None:
        self.calls = Calls(
            self.owner,
            self.args,
            TINY,
            make_features=self.make_features,
            open_stream=self.open_stream,
            open_peer=self.open_peer,
            metrics=SessionMetrics(),
            records=self.records,
            stats_every_s=self.stats_every_s,
            adapt_every_s=self.adapt_every_s,
        )

    async def make_features(self, voice_id: str, caller: Caller = OPERATOR) -> None:
        if self.features_gate is not None:
            await self.features_gate.wait()
        if voice_id not in VOICES:
            raise VoiceNotFound(voice_id)

    def open_stream(self, voice_id: str, **options: Any) -> CallStream:
        stream = CallStream(self.stages, LIVE, CallSettings.of(LIVE, voice_id, **options), gate=self.gate)
        self.streams.append(stream)
        return stream

    def open_peer(self, **options: Any) -> Any:
        self.peers.append(self.make_peer(**options))
        return self.peers[-1]


async def until(condition: Callable[[], Any], what: str, limit_s: float = 10.0) -> None:
    """Waits for something that other tasks bring about."""
    try:
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - any condition at all
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None
