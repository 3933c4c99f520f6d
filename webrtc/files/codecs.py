"""The codecs of the output formats but mp3: samples in [-1, 1] at the output rate to bytes."""

import struct
from typing import Protocol

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from webrtc.files.formats import OutputFormat

Samples = NDArray[np.float32]  # (T,) mono

UNKNOWN_SIZE = 0xFFFFFFFF  # in a header: the stream ends when the bytes end
WAV_HEADER_BYTES = 44
OGG_PAGE_US = 100_000  # one Ogg page each 100 ms: what a listener waits for before the first sound


class Codec(Protocol):
    """Encodes samples in [-1, 1] at the output rate; `header` may be rewritten once all is known."""

    def encode(self, samples: Samples) -> bytes: ...
    def flush(self) -> bytes: ...
    def header(self) -> bytes: ...
    def close(self) -> None: ...


def _as_int16(samples: Samples) -> NDArray[np.int16]:
    scaled: NDArray[np.int16] = np.rint(samples * 32767.0).astype("<i2")
    return scaled


class Pcm:
    """Raw signed 16-bit little-endian samples."""

    def __init__(self, fmt: OutputFormat) -> None:
        self._rate = fmt.sample_rate

    def encode(self, samples: Samples) -> bytes:
        return _as_int16(samples).tobytes()

    def flush(self) -> bytes:
        return b""

    def header(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


class Wav(Pcm):
    """The same behind a RIFF header, whose sizes are exact only in a whole file."""

    def __init__(self, fmt: OutputFormat) -> None:
        super().__init__(fmt)
        self._data_bytes = 0
        self._finished = False

    def encode(self, samples: Samples) -> bytes:
        encoded = super().encode(samples)
        self._data_bytes += len(encoded)
        return encoded

    def flush(self) -> bytes:
        self._finished = True
        return b""

    def header(self) -> bytes:
        fits = self._finished and self._data_bytes + WAV_HEADER_BYTES < UNKNOWN_SIZE
        data_bytes = self._data_bytes if fits else UNKNOWN_SIZE
        riff_bytes = self._data_bytes + WAV_HEADER_BYTES - 8 if fits else UNKNOWN_SIZE
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, self._rate, self._rate * 2, 2, 16)
        return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)


class Law(Pcm):
    """G.711: one byte a sample, logarithmic (ITU-T G.711 through ffmpeg's tables)."""

    def __init__(self, fmt: OutputFormat) -> None:
        super().__init__(fmt)
        codec = "pcm_mulaw" if fmt.codec == "ulaw" else "pcm_alaw"
        self._context = open_context(codec, "s16", fmt)

    def encode(self, samples: Samples) -> bytes:
        if not samples.size:
            return b""
        frame = make_frame(_as_int16(samples), "s16", self._rate)
        return b"".join(bytes(packet) for packet in self._context.encode(frame))


class _Sink:
    """Collects what the Ogg muxer writes; without `seek`, so that it streams."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class Opus:
    """Opus in Ogg pages of 100 ms; the muxer states pre-skip and end, so the length is exact."""

    def __init__(self, fmt: OutputFormat) -> None:
        self._rate = fmt.sample_rate
        self._sink = _Sink()
        # bitexact: without it the stream serial number is random, and equal sound gives different files
        options = {"fflags": "+bitexact+flush_packets", "page_duration": str(OGG_PAGE_US)}
        self._container: av.container.OutputContainer | None = av.open(
            self._sink, "w", format="ogg", container_options=options
        )
        self._stream = self._container.add_stream("libopus", rate=fmt.sample_rate, layout="mono")
        assert fmt.bit_rate is not None
        self._stream.bit_rate = fmt.bit_rate
        self._stream.codec_context.format = av.AudioFormat("flt")
        self._stream.codec_context.options = {"vbr": "constrained", "frame_duration": "20"}
        self._frame_samples = fmt.sample_rate // 50
        self._pending = np.zeros(0, np.float32)
        self._fed_samples = 0

    def encode(self, samples: Samples) -> bytes:
        samples = np.concatenate([self._pending, samples])
        whole = len(samples) // self._frame_samples * self._frame_samples
        self._pending = samples[whole:]
        for piece in np.split(samples[:whole], whole // self._frame_samples or 1):
            self._mux(piece)
        return self._sink.take()

    def flush(self) -> bytes:
        self._mux(self._pending)
        if self._container is not None and self._fed_samples:
            self._container.mux(self._stream.encode(None))
        self.close()
        return self._sink.take()

    def header(self) -> bytes:
        return b""

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _mux(self, samples: Samples) -> None:
        if not samples.size or self._container is None:
            return
        frame = make_frame(samples, "flt", self._rate)
        frame.pts = self._fed_samples
        self._fed_samples += len(samples)
        self._container.mux(self._stream.encode(frame))


def open_context(codec: str, sample_format: str, fmt: OutputFormat) -> av.AudioCodecContext:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate = fmt.sample_rate
    context.layout = "mono"
    context.format = sample_format
    if fmt.bit_rate is not None:
        context.bit_rate = fmt.bit_rate
    context.open()
    return context


def make_frame(samples: NDArray[np.float32] | NDArray[np.int16], sample_format: str, rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[None], format=sample_format, layout="mono")
    frame.sample_rate = rate
    return frame
