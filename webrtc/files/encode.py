"""Float32 mono to encoded bytes, piece by piece: resample, clip, encode.

The bytes depend on the samples alone, never on how they were cut into pieces.
"""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Self

import numpy as np
import soxr

from configs.schema import MODEL_RATE
from webrtc.files.codecs import Codec, Law, Opus, Pcm, Samples, Wav
from webrtc.files.formats import OutputFormat
from webrtc.files.mp3 import Mp3

_CODECS: dict[str, Callable[[OutputFormat], Codec]] = {
    "pcm": Pcm,
    "wav": Wav,
    "ulaw": Law,
    "alaw": Law,
    "mp3": Mp3,
    "opus": Opus,
}


class RecordingEncoder:
    """Turns samples at `sample_rate` into a stream of bytes in one output format."""

    def __init__(self, fmt: OutputFormat, *, sample_rate: int = MODEL_RATE) -> None:
        self._codec = _CODECS[fmt.codec](fmt)
        self._resampler: soxr.ResampleStream | None = None
        if sample_rate != fmt.sample_rate:
            self._resampler = soxr.ResampleStream(sample_rate, fmt.sample_rate, 1, dtype="float32", quality="HQ")
        self._begun = False

    def feed(self, samples: Samples) -> bytes:
        """Bytes that the new samples complete; often empty."""
        return self._begin() + self._codec.encode(self._at_output_rate(samples, last=False))

    def finish(self) -> bytes:
        """The remaining bytes; the encoder is closed after it."""
        tail = self._at_output_rate(np.zeros(0, np.float32), last=True)
        encoded = self._begin() + self._codec.encode(tail) + self._codec.flush()
        self.close()
        return encoded

    def exact_header(self) -> bytes:
        """After `finish`: what the first bytes are, now that the length is known. Same size as those sent."""
        return self._codec.header()

    def close(self) -> None:
        """Frees the codec; safe to call twice, and half-way through a stream."""
        self._codec.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._codec.header()

    def _at_output_rate(self, samples: Samples, *, last: bool) -> Samples:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(np.ascontiguousarray(samples, np.float32), last=last)
        clipped: Samples = np.clip(samples, -1.0, 1.0, dtype=np.float32)
        return clipped


def encode_file(pieces: Iterable[Samples], fmt: OutputFormat, out: IO[bytes], *, sample_rate: int = MODEL_RATE) -> None:
    """Writes a whole file with exact sizes in its header; `out` is seekable and holds the result alone."""
    with RecordingEncoder(fmt, sample_rate=sample_rate) as encoder:
        for piece in pieces:
            out.write(encoder.feed(piece))
        out.write(encoder.finish())
        out.seek(0)
        out.write(encoder.exact_header())
        out.seek(0, 2)
