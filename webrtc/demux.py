"""What a recording is, and its first audio track as float32 mono: ffmpeg (PyAV) behind a plain iterator."""

from collections.abc import Iterator
from typing import Protocol, cast

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from webrtc.codecs import Samples
from webrtc.mp3 import read_frame_header
from webrtc.sniff import Container

READABLE = "wav, flac, mp3, ogg, opus, webm, m4a, aac, aiff or another common recording"
# What ffmpeg may take an upload for. Playlists and scripts (hls, concat, dash, ...) are not in the list: they would
# have the server open addresses and files that the upload names.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,rm,"
    "s16le,s24le,s32le,tta,u8,w64,wav,wv"
)


class NotAudio(ValueError):
    """The upload cannot be converted; `reason` is empty, not_audio, no_audio_track, not_finite or rate_change."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives pickling between replicas
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class Readable(Protocol):
    """What ffmpeg reads from. With `seek` and `tell` too, it may go back."""

    def read(self, size: int, /) -> bytes: ...


class Recording:
    """The first audio track of a container, as far as it decodes."""

    def __init__(self, file: Readable, container: Container) -> None:
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"} | container.options
        if container.name not in (None, "mp4"):
            # The first bytes have told what it is: do not wait for seconds of sound.
            options |= {"probesize": "32", "analyzeduration": "0"}
        try:
            self._container = av.open(
                cast("str", file),
                "r",
                format=container.name,
                container_options=options,
                metadata_errors="replace",  # a title in another encoding is no reason to refuse the sound
            )
        except av.error.FFmpegError as error:
            raise NotAudio("not_audio", f"the upload cannot be read as a recording; allowed is {READABLE}") from error
        tracks = self._container.streams.audio
        if not tracks or tracks[0].codec_context is None:
            self._container.close()
            fault = "an audio track whose codec is unknown" if tracks else "no audio track"
            raise NotAudio("no_audio_track", f"the upload holds {fault}; allowed is {READABLE}")
        self._stream = tracks[0]
        self._stream.codec_context.thread_count = 1
        self._sample_rate: int | None = None
        self.damaged_packets = 0
        self.declared_s = container.declared_s
        if self.declared_s is None and self._stream.duration and self._stream.time_base:
            self.declared_s = float(self._stream.duration * self._stream.time_base)

    def chunks(self) -> Iterator[tuple[Samples, int]]:
        """Samples in [-1, 1] and their rate in Hz."""
        for frame in self._frames():
            if self._sample_rate not in (None, frame.sample_rate):
                rates = f"from {self._sample_rate} Hz to {frame.sample_rate} Hz"
                raise NotAudio("rate_change", f"the recording changes {rates} half-way; allowed is one rate")
            self._sample_rate = frame.sample_rate
            if frame.samples:
                yield mono(frame), frame.sample_rate

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()

    def _frames(self) -> Iterator[av.AudioFrame]:
        is_mp3 = self._container.format.name == "mp3"
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, IndexError):  # IndexError: a damaged file grew new streams (PyAV 18.1)
                packet = None
                self.damaged_packets += 1
            if packet is None:
                return
            frame_header = read_frame_header(bytes(packet)[:4]) if is_mp3 and packet.size else None
            if frame_header is not None and packet.size < frame_header.size_bytes:
                self.damaged_packets += 1
                continue
            try:
                yield from self._stream.decode(packet)
            except av.error.FFmpegError:
                self.damaged_packets += 1


# ffmpeg's sample formats, as numpy names them
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
MAX_CHANNELS = 8


def mono(frame: av.AudioFrame) -> Samples:
    """The mean of a frame's channels as float32 in [-1, 1]."""
    by_channel = _by_channel(frame)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told below
        mean: NDArray[np.float64] = by_channel.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        message = "the recording holds NaN or infinite samples; export it again as 16-bit wav or flac"
        raise NotAudio("not_finite", message)
    if by_channel.dtype.kind == "u":
        mean = mean / 128.0 - 1.0
    elif by_channel.dtype.kind == "i":
        mean = mean / 2.0 ** (8 * by_channel.dtype.itemsize - 1)
    return np.clip(mean, -1.0, 1.0).astype(np.float32)


def _by_channel(frame: av.AudioFrame) -> NDArray[np.generic]:
    """A frame's samples, (C, T), in their own type.

    Not by `frame.to_ndarray`: PyAV 18.1 counts the planes up to a null pointer, finds more than eight where there are
    eight, and reads beyond them.
    """
    channels, kind = frame.layout.nb_channels, frame.format.name.removesuffix("p")
    if channels > MAX_CHANNELS:
        raise NotAudio("not_audio", f"the recording has {channels} channels; allowed are up to {MAX_CHANNELS}")
    if kind not in _SAMPLE_TYPES:
        raise NotAudio("not_audio", f"the recording has samples of type {kind}; allowed are {', '.join(_SAMPLE_TYPES)}")
    planes = [memoryview(plane) for plane in frame.planes[: channels if frame.format.is_planar else 1]]
    count = frame.samples if frame.format.is_planar else frame.samples * channels
    samples: NDArray[np.generic] = np.stack([np.frombuffer(plane, _SAMPLE_TYPES[kind], count) for plane in planes])
    return samples if frame.format.is_planar else samples.reshape(-1, channels).T
