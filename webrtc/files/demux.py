"""What a recording is, and its first audio track as float32 mono: ffmpeg (PyAV) behind a plain iterator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import av
import av.error
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from webrtc.files.codecs import Samples
from webrtc.files.errors import READABLE, NotAudio, check_rate
from webrtc.files.mixdown import Mono, Wave
from webrtc.files.mp3 import read_frame_header
from webrtc.files.sniff import Container
from webrtc.files.timeline import LEAD_S, Timeline

# What ffmpeg may take an upload for. Playlists and scripts (hls, concat, dash, ...) are not in the list: they would
# have the server open addresses and files that the upload names.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,iff,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mxf,nistsphere,nut,ogg,rm,s16le,s24le,s32le,tta,u8,voc,w64,wav,wv"
)
MAX_STREAMS = 64  # a film has a few dozen; each costs memory before anything is decoded
MAX_CHANNELS = 8
MAX_FRAMES_PER_S = 2000  # the shortest in use (Opus) are 400; each costs the same, even if it holds one sample
FEW_FRAMES = 20_000  # of any length
MAX_FRAME_SAMPLES = 1 << 22  # in all channels; the longest frames in use (APE) hold 2.4 million
MAX_WARNINGS = 8  # about channels, where these change: that may be with each frame
PIECE_S = 0.5  # the most that one piece of sound holds
EDGE_S = 0.005  # over which sound goes into a silence that was put in, and comes back
# Containers whose frames carry a time of their own; in the others a frame begins where the one before it ends. In an
# AVI only the first one does: those behind it count packets, whatever these hold.
STAMPED = frozenset({"matroska", "mov", "flv", "mpegts", "mpeg", "asf", "ogg", "avi", "rm", "amr", "nut"})
AMR_PAUSE_BYTES = 7  # speech takes 13 at least
# Containers whose time stamps count from 0, also where sound is all that they hold.
START_AT_ZERO = frozenset({"matroska", "mov", "flv"})
# Containers that state a length, where others have ffmpeg guess it from the bit rate.
STATE_LENGTH = frozenset({"flac", "matroska", "mov", "wv", "tta", "ape"})


class Readable(Protocol):
    """What ffmpeg reads from. With `seek` and `tell` too, it may go back."""

    def read(self, size: int, /) -> bytes: ...


class Recording:
    """The first audio track of a container, as far as it decodes."""

    def __init__(self, file: Readable, container: Container) -> None:
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none", "max_streams": str(MAX_STREAMS)}
        options |= container.options
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
        # One reader of ffmpeg has several names, and is called by the one that it was asked for.
        self._format = "mov" if container.name == "mp4" else self._container.format.name.split(",")[0]
        self._sample_rate: int | None = None
        self._mono: Mono | None = None
        self._timeline = Timeline()
        self._zero_s: float | None = None  # the earliest time stamp of the other tracks
        self._picture_s = 0.0  # how far the other tracks have come
        self._lead_s = 0.0  # and how far in the part of the file before the first sound
        self._sound_at: int | None = None  # where in the file that is
        self._edge: Wave | None = None  # the last sample, where the next frame follows a silence
        self.damaged_packets = 0
        self.damaged_at_end = False  # the last packet was among them
        self.declared_s = container.declared_s
        if self.declared_s is None and self._format in STATE_LENGTH:
            self.declared_s = self._stated_length_s()
        self._mono_warnings: list[str] = []
        try:
            check_rate(self._stream.codec_context.sample_rate or None)
            check_channels(self._stream.codec_context.channels)
        except NotAudio:
            self.close()
            raise

    @property
    def warnings(self) -> list[str]:
        """What was odd about the sound so far."""
        found = [*self._timeline.warnings, *self._mono_warnings, *(self._mono.warnings if self._mono else [])]
        return list(dict.fromkeys(found))

    @property
    def end_s(self) -> float | None:
        """Where the sound ends by its time stamps, where it has any."""
        return self._timeline.end_s

    @property
    def lost_s(self) -> float:
        """How much silence the recording may have lost: an AVI counts packets, and closes late starts and gaps.

        Known from what lies before its first sound, where its pictures last longer, and from the length that it states.
        """
        if self._format != "avi":
            return 0.0
        sound_s = self._timeline.given_s
        before_s = min(self._lead_s, self._picture_s - sound_s)
        # Not for samples of one size: there the stated length is missing, or counts bytes.
        is_exact = not self._stream.codec_context.name.startswith(("pcm_", "adpcm_"))
        return max(0.0, before_s, (is_exact and self._stated_length_s() or 0.0) - sound_s)

    def chunks(self) -> Iterator[tuple[Samples, int]]:
        """Samples in [-1, 1], half a second at most, and their rate in Hz."""
        sound_s = 0.0
        for n_frames, frame in enumerate(self._frames()):
            check_rate(frame.sample_rate)
            sound_s += frame.samples / frame.sample_rate
            if n_frames > max(FEW_FRAMES, MAX_FRAMES_PER_S * sound_s):
                message = f"the recording is in pieces of less than 1/{MAX_FRAMES_PER_S} s; export it as wav or flac"
                raise NotAudio("too_complex", message)
            if self._sample_rate not in (None, frame.sample_rate):
                rates = f"from {self._sample_rate} Hz to {frame.sample_rate} Hz"
                raise NotAudio("rate_change", f"the recording changes {rates} half-way; allowed is one rate")
            self._sample_rate = rate = frame.sample_rate
            if frame.samples:
                for by_channel in self._placed(frame):
                    yield from self._mixed(by_channel, rate)
        if self._mono is not None and self._sample_rate is not None:
            yield from _pieces(self._mono.finish(), self._sample_rate)

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()

    def _stated_length_s(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return None

    def _placed(self, frame: av.AudioFrame) -> Iterator[Wave]:
        """The frame's channels, (C, T), behind the silence that its time stamp asks for."""
        rate = frame.sample_rate
        gap_s = 0.0
        if self._format in STAMPED and not (self._format == "avi" and self._timeline.given_s):
            at_s = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
            gap_s = self._timeline.gap_s(at_s, self._beginning_s(at_s), frame.samples / rate)
        else:
            self._timeline.gap_s(None, None, frame.samples / rate)
        sound = by_channel(frame)
        edge = max(1, round(EDGE_S * rate))
        missing = round(gap_s * rate)
        if missing:
            ramp = np.linspace(0.0, 1.0, edge)
            if self._edge is not None and len(self._edge) == len(sound):
                faded = self._edge[:, None] * ramp[::-1]
                yield faded[:, :missing]
                missing = max(0, missing - edge)
                sound = sound.copy()
                sound[:, :edge] *= ramp[: sound.shape[1]]
            piece = max(1, round(PIECE_S * rate))
            for at in range(0, missing, piece):
                yield np.zeros((len(sound), min(piece, missing - at)))
        self._edge = sound[:, -1].copy()
        yield sound

    def _beginning_s(self, at_s: float | None) -> float | None:
        """Where the recording begins: with the first of its tracks, or where its edit list says."""
        is_alone = self._format in START_AT_ZERO and self._zero_s is None
        if (is_alone or self._format == "mov") and at_s is not None and 0 < at_s <= LEAD_S:
            return 0.0
        return self._zero_s

    def _mixed(self, sound: Wave, rate: int) -> Iterator[tuple[Samples, int]]:
        if self._mono is not None and self._mono.channels != len(sound):
            yield from _pieces(self._mono.finish(), rate)
            self._mono_warnings = list(dict.fromkeys([*self._mono_warnings, *self._mono.warnings]))[:MAX_WARNINGS]
            self._mono = None
        if self._mono is None:
            self._mono = Mono(len(sound), rate, unbounded=self._is_unbounded())
        piece = max(1, round(PIECE_S * rate))
        for at in range(0, sound.shape[1], piece):
            yield from _pieces(self._mono.push(sound[:, at : at + piece]), rate)

    def _is_unbounded(self) -> bool:
        """Whether the format holds float samples as they were written: in lossy ones they cannot be far from 1."""
        codec = self._stream.codec_context
        name = codec.name
        return name.startswith("pcm_f") or (
            name == "wavpack" and codec.format is not None and "flt" in codec.format.name
        )

    def _frames(self) -> Iterator[av.AudioFrame]:
        is_mp3 = self._format == "mp3"
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, IndexError):  # IndexError: a damaged file grew new streams (PyAV 18.1)
                packet = None
                self._damaged()
            if packet is None:
                return
            if packet.stream.index != self._stream.index:
                self._note_start(packet)
                continue
            self._sound_at = packet.pos if self._sound_at is None else self._sound_at
            if packet.size:
                self.damaged_at_end = False
            frame_header = read_frame_header(bytes(packet)[:4]) if is_mp3 and packet.size else None
            if frame_header is not None and packet.size < frame_header.size_bytes:
                self._damaged()
                continue
            try:
                yield from self._decoded(packet)
            except av.error.FFmpegError:
                if not self._is_pause(packet):
                    self._damaged()

    def _is_pause(self, packet: av.Packet[Any]) -> bool:
        """Whether the packet says that nobody speaks, which ffmpeg does not decode: phones send that in AMR."""
        return self._format == "amr" and packet.size <= AMR_PAUSE_BYTES

    def _decoded(self, packet: av.Packet[Any]) -> Iterator[av.AudioFrame]:
        for frame in self._stream.codec_context.decode(packet if packet.size else None):
            frame.time_base = frame.time_base or self._stream.time_base
            yield frame

    def _damaged(self) -> None:
        self.damaged_packets += 1
        self.damaged_at_end = True

    def _note_start(self, packet: av.Packet[Any]) -> None:
        """Remembers how far the other tracks have come, and their earliest time stamp before the first sound."""
        stream, stamp = packet.stream, packet.dts if packet.pts is None else packet.pts
        if stamp is None or stream.time_base is None:
            return
        if stream.type not in ("audio", "video") or stream.disposition & Disposition.attached_pic:
            return
        at_s = float(stamp * stream.time_base)
        self._picture_s = max(self._picture_s, at_s)
        if self._sound_at is None or (packet.pos or 0) < self._sound_at:
            self._lead_s = max(self._lead_s, at_s)
        if self._sample_rate is not None or packet.pts is None:
            return
        self._zero_s = at_s if self._zero_s is None else min(self._zero_s, at_s)


def check_channels(channels: int) -> None:
    """NotAudio for more channels than are mixed."""
    if channels > MAX_CHANNELS:
        raise NotAudio("channels", f"the recording has {channels} channels; allowed are up to {MAX_CHANNELS}")


def _pieces(samples: Samples, rate: int) -> Iterator[tuple[Samples, int]]:
    piece = max(1, round(PIECE_S * rate))
    for at in range(0, len(samples), piece):
        yield samples[at : at + piece], rate


# ffmpeg's sample formats, as numpy names them
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}


def by_channel(frame: av.AudioFrame) -> Wave:
    """A frame's samples, (C, T), in nominal full scale: what integers hold is in [-1, 1], floats may go beyond.

    Not by `frame.to_ndarray`: PyAV 18.1 counts the planes up to a null pointer, finds more than eight where there are
    eight, and reads beyond them.
    """
    channels, kind = frame.layout.nb_channels, frame.format.name.removesuffix("p")
    check_channels(channels)
    if kind not in _SAMPLE_TYPES:
        raise NotAudio("not_audio", f"the recording has samples of type {kind}; allowed are {', '.join(_SAMPLE_TYPES)}")
    if frame.samples * channels > MAX_FRAME_SAMPLES:
        raise NotAudio("too_complex", f"the recording has frames of {frame.samples} samples; that is too much at once")
    planes = [memoryview(plane) for plane in frame.planes[: channels if frame.format.is_planar else 1]]
    count = frame.samples if frame.format.is_planar else frame.samples * channels
    stored: NDArray[np.generic] = np.stack([np.frombuffer(plane, _SAMPLE_TYPES[kind], count) for plane in planes])
    if not frame.format.is_planar:
        stored = stored.reshape(-1, channels).T
    with np.errstate(invalid="ignore"):  # what is not a number is told below
        wave: Wave = stored.astype(np.float64)
    if stored.dtype.kind == "u":
        return wave / 128.0 - 1.0
    if stored.dtype.kind == "i":
        return wave / 2.0 ** (8 * stored.dtype.itemsize - 1)
    if not np.isfinite(wave).all() or np.abs(wave).max() > _LARGEST:
        message = "the recording holds NaN or infinite samples; export it again as 16-bit wav or flac"
        raise NotAudio("not_finite", message)
    return wave


_LARGEST = 1e100  # whose square is still a number
