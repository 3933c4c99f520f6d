"""ffmpeg in a thread of its own, taking turns with whoever feeds it: only one of the two runs at any time."""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator

from webrtc.files.codecs import Samples
from webrtc.files.demux import Recording
from webrtc.files.sniff import Container

Chunk = tuple[Samples, int]

WAITING_CHUNKS = 16  # decoded pieces that may wait: bounds what a small, highly packed upload can unfold to
READ_BYTES = 4096  # a read is answered at once with what is there, so this sets no delay


class _Abandoned(Exception):
    """The feeder has closed: stop decoding."""


class Turns:
    """Bytes in, chunks out. ffmpeg's side calls `read` and `put`, the feeder's side `give` and `take`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._chunks: deque[Chunk] = deque()
        self._complete = False  # no more bytes will come
        self._hungry = True  # ffmpeg waits for bytes
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; none at the end. Waits for the feeder."""
        with self._changed:
            while not (self._data or self._complete or self._closed):
                self._hungry = True
                self._changed.notify_all()
                self._changed.wait()
            if self._closed:
                return b""
            taken = bytes(self._data[: min(size, READ_BYTES)])
            del self._data[: len(taken)]
            return taken

    def put(self, chunk: Chunk) -> None:
        """Hands a chunk to the feeder; waits while too many wait already."""
        with self._changed:
            while len(self._chunks) >= WAITING_CHUNKS and not self._closed:
                self._changed.wait()
            if self._closed:
                raise _Abandoned
            self._chunks.append(chunk)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; `error` is raised on the feeder's side."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def give(self, data: bytes, *, complete: bool) -> None:
        """Hands bytes to ffmpeg; after `complete` there are no more."""
        with self._changed:
            self._data += data
            self._complete = complete
            self._hungry = not (data or complete)
            self._changed.notify_all()

    def take(self) -> Chunk | None:
        """The next chunk, or None once ffmpeg waits for bytes or has ended."""
        with self._changed:
            while not (self._chunks or self._hungry or self._ended or self._closed):
                self._changed.wait()
            if self._chunks:
                chunk = self._chunks.popleft()
                self._changed.notify_all()
                return chunk
            if self._error is not None and not self._closed:
                raise self._error
            return None

    def close(self) -> None:
        """Sends ffmpeg home, wherever it is."""
        with self._changed:
            self._closed = True
            self._data.clear()
            self._chunks.clear()
            self._changed.notify_all()


class Worker:
    """Decodes one container that comes in pieces."""

    def __init__(self, container: Container) -> None:
        self._turns = Turns()
        self._recordings: list[Recording] = []
        arguments = (self._turns, container, self._recordings)
        self._thread = threading.Thread(target=_decode, args=arguments, name="decode-upload", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._turns.close)  # a decoder that nobody closed takes its thread with it

    @property
    def recording(self) -> Recording | None:
        """What is known of the container, once its head has been read."""
        return self._recordings[0] if self._recordings else None

    def feed(self, data: bytes, *, complete: bool = False) -> Iterator[Chunk]:
        """Yields what the bytes complete; with `complete`, all that is left."""
        self._turns.give(data, complete=complete)
        while (chunk := self._turns.take()) is not None:
            yield chunk

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._turns.close()
        self._thread.join()


def _decode(turns: Turns, container: Container, recordings: list[Recording]) -> None:
    """The thread: holds no reference to its Worker, so that a forgotten one can be collected."""
    try:
        with contextlib.closing(Recording(turns, container)) as recording:
            recordings.append(recording)
            for chunk in recording.chunks():
                turns.put(chunk)
    except BaseException as error:  # noqa: B036 - not swallowed: raised again in the thread that feeds
        turns.end(error)
    else:
        turns.end()
