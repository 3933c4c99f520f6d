"""A recording in any common container to float32 mono, piece by piece, while it is still being uploaded.

ffmpeg pulls its input, an upload pushes it: so ffmpeg runs in a thread of its own (turns.py). `feed` hands bytes over,
yields what they decode to, and is exhausted once ffmpeg asks for more. The samples depend on the bytes alone, never on
how they were cut.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from webrtc.files.codecs import Samples
from webrtc.files.demux import Recording
from webrtc.files.errors import READABLE, NotAudio
from webrtc.files.extent import Extent
from webrtc.files.sniff import Container, sniff
from webrtc.files.thread import Worker

SPOOL_IN_MEMORY_BYTES = 1 << 20
RAW_PCM = Container("s16le", {"sample_rate": "16000", "ch_layout": "mono"})
LOST_S = 0.5  # of silence that is told of
SHORTFALL_S = 0.1  # codec delays alone make a file up to this much shorter than it says


class RecordingDecoder:
    """Decodes one upload; `file_format` is pcm_s16le_16 (raw, 16 kHz, mono) or other (a container, told by content)."""

    def __init__(self, *, file_format: str = "other") -> None:
        if file_format not in ("other", "pcm_s16le_16"):
            raise ValueError(f"file_format must be other or pcm_s16le_16, not {file_format!r}")
        self._verdict: list[str] = []
        self._extent: Extent | None = None
        self._recording: Recording | None = None  # of a file that needs seeking
        self._container = RAW_PCM if file_format == "pcm_s16le_16" else None
        self._head = bytearray()  # held back until the container is known
        self._spool: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._worker: Worker | None = None
        self._fed_bytes = 0
        self._decoded_s = 0.0

    @property
    def warnings(self) -> list[str]:
        """What was odd about the upload so far; complete when all of it is decoded."""
        recording = self._recording or (self._worker.recording if self._worker is not None else None)
        return [*(recording.warnings if recording is not None else []), *self._verdict]

    def feed(self, data: bytes) -> Iterator[tuple[Samples, int]]:
        """Yields what the new bytes complete: samples in [-1, 1] and their rate in Hz. Does nothing until iterated."""
        if self._container is None:
            self._head += data
            self._container = sniff(bytes(self._head))
            if self._container is None:
                return
            data, self._head = bytes(self._head), bytearray()
        yield from self._count(self._pass_on(self._container, data))

    def finish(self) -> Iterator[tuple[Samples, int]]:
        """Yields the rest; raises NotAudio if nothing of the upload decodes to sound."""
        if self._container is None:
            self._container = sniff(bytes(self._head), whole=True)
            assert self._container is not None
            yield from self._count(self._pass_on(self._container, bytes(self._head)))
        if self._fed_bytes == 0:
            raise NotAudio("empty", f"the upload is empty; allowed is {READABLE}")
        if self._spool is not None:
            self._spool.seek(0)
            with contextlib.closing(Recording(self._spool, self._container)) as self._recording:
                yield from self._count(self._recording.chunks())
        elif self._worker is not None:
            yield from self._count(self._worker.feed(b"", complete=True))
            self._recording = self._worker.recording
        self._judge(self._recording)
        self.close()

    def close(self) -> None:
        """Ends the thread and frees the buffers; safe to call twice, and half-way through an upload."""
        if self._worker is not None:
            self._worker.close()
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _pass_on(self, container: Container, data: bytes) -> Iterator[tuple[Samples, int]]:
        """Gives ffmpeg those of the bytes that are for it."""
        at = self._fed_bytes
        self._fed_bytes += len(data)
        if self._extent is None:
            self._extent = Extent(container)
        self._extent.feed(data)
        if container.needs_seeking:
            if self._spool is None:
                self._spool = tempfile.SpooledTemporaryFile(SPOOL_IN_MEMORY_BYTES)  # noqa: SIM115 - `close` closes it
            self._spool.write(data)
            return
        if container.sound_bytes is not None:
            data = data[: max(0, container.skip_bytes + container.sound_bytes - at)]
        data = data[max(0, container.skip_bytes - at) :]
        if self._worker is None:
            self._worker = Worker(container)
        yield from self._worker.feed(data)

    def _count(self, chunks: Iterator[tuple[Samples, int]]) -> Iterator[tuple[Samples, int]]:
        for samples, sample_rate in chunks:
            self._decoded_s += len(samples) / sample_rate
            yield samples, sample_rate

    def _judge(self, recording: Recording | None) -> None:
        if recording is None or self._decoded_s == 0:
            raise NotAudio("not_audio", "the upload holds no sound that can be decoded")
        decoded = f"{self._decoded_s:.1f} s"
        whole_s = self._whole_s(recording)
        if whole_s is not None:
            self._verdict.append(f"the recording is cut off: {decoded} of {whole_s:.1f} s were decoded")
        elif self._ends_early(recording):
            self._verdict.append(f"the recording is damaged or cut off: {decoded} of it were decoded")
        elif recording.lost_s > LOST_S:
            self._verdict.append(
                f"an AVI does not tell when its sound is heard: about {recording.lost_s:.1f} s of silence before or "
                "within it may be missing; mp4 and mkv keep it"
            )

    def _whole_s(self, recording: Recording) -> float | None:
        """How long the recording was meant to be, where part of it is missing."""
        assert self._extent is not None
        if recording.declared_s is not None and self._extent.came_whole is not True:
            end_s = max(self._decoded_s, recording.end_s or 0.0)
            return recording.declared_s if end_s < recording.declared_s - SHORTFALL_S else None
        meant_s = self._decoded_s / max(self._extent.share(), 1e-6)
        return meant_s if self._decoded_s < meant_s - SHORTFALL_S else None

    def _ends_early(self, recording: Recording) -> bool:
        """Whether the last part of the upload, or another, is no whole packet; padding behind a whole one may be."""
        assert self._extent is not None
        is_padded = recording.damaged_packets == 1 and recording.damaged_at_end and self._extent.came_whole is True
        return self._extent.ends_inside_page or (recording.damaged_packets > 0 and not is_padded)
