"""A client of the other make: aiortc's own peer connection, microphone tone in, what it hears kept."""

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from webrtc.opus import Samples48k


class ToneTrack(MediaStreamTrack):
    """A tone in frames of 20 ms."""

    kind = "audio"

    def __init__(self, hz: float) -> None:
        super().__init__()
        self._hz, self._position, self._begin_s = hz, 0, 0.0

    async def recv(self) -> AudioFrame:
        now = asyncio.get_running_loop().time
        self._begin_s = self._begin_s or now()
        await asyncio.sleep(max(0.0, self._begin_s + self._position / 48000 - now()))
        samples = 10000 * np.sin(2 * np.pi * self._hz / 48000 * (self._position + np.arange(960)))
        frame = AudioFrame.from_ndarray(samples.astype(np.int16).reshape(1, -1), format="s16", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = self._position, 48000, Fraction(1, 48000)
        self._position += 960
        return frame


class Client:
    """Offers audio and the channel `control`; `heard` grows with what comes back."""

    def __init__(self, hz: float = 440.0, direction: str = "sendrecv", channel: bool = True) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.transceiver = self.connection.addTransceiver(ToneTrack(hz), direction=direction)
        self.heard: list[Samples48k] = []
        self.messages: list[str] = []
        self.channel: RTCDataChannel | None = self.open_channel("control") if channel else None
        self._listening: asyncio.Task[None] | None = None
        self.connection.on("track", self._listen)

    async def offer(self) -> str:
        """With all candidates in it."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def accept(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def open_channel(self, label: str) -> RTCDataChannel:
        channel = self.connection.createDataChannel(label)
        channel.on("message", self.messages.append)
        return channel

    async def close(self) -> None:
        await self.connection.close()
        if self._listening is not None:
            self._listening.cancel()

    def _listen(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.create_task(self._keep(track))

    async def _keep(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                stereo = frame.to_ndarray().reshape(-1, 2)
                self.heard.append(stereo[:, 0].astype(np.float32) / np.float32(32768))
        except MediaStreamError:
            pass


def pitch_hz(samples: Any, rate_hz: int) -> float:
    """Where the spectrum is highest."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate_hz / len(samples))


async def until(condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> None:
    """Waits for something that the network brings about."""
    try:
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None
