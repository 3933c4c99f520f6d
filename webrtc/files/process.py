"""A process that decodes recordings for another one, so that it can be ended, and can harm nobody.

`python -m webrtc.files.process` serves the socket that is its standard input. Messages are a kind, a length and that
many bytes. The other side begins a recording (BEGIN), feeds it and ends it (FEED, END); after each of these it reads
until MORE, DONE or FAILED. One recording after the other.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from webrtc.files.codecs import Samples
from webrtc.files.decode import RecordingDecoder
from webrtc.files.demux import PIECE_S
from webrtc.files.errors import NotAudio

HEADER = struct.Struct("<cI")
RATE = struct.Struct("<I")
BEGIN, FEED, END = b"B", b"F", b"E"
SOUND, WARNING, MORE, DONE, FAILED = b"S", b"W", b"M", b"D", b"X"

MEMORY_BYTES = 320 << 20  # private memory of the process: 25 MB when it starts, 60 MB with the usual recordings
CPU_S = 120  # of one recording; ten minutes of one take a few seconds
NICENESS = 5  # calls come first
OPEN_FILES = 32

TOO_COMPLEX = "the recording takes more memory or time to decode than is allowed; export it again as 16-bit wav or flac"


def main() -> None:
    """Decodes until the other side closes."""
    limit_process()
    with socket.socket(fileno=os.dup(0)) as peer, peer.makefile("rb") as commands:
        messages = _messages(commands)
        with suppress(ConnectionError):  # the other side has no use for the rest
            for kind, data in messages:
                assert kind == BEGIN, f"expected a recording to begin, got {kind!r}"
                allow_cpu_time()
                _decode_one(peer, data.decode(), messages)


def limit_process() -> None:
    """Bounds what a recording can take of the machine."""
    os.nice(NICENESS)
    for kind, limit in (
        (resource.RLIMIT_DATA, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(kind, (limit, limit))


def allow_cpu_time() -> None:
    """Bounds the next recording: beyond it the system ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(usage.ru_utime + usage.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))


def _messages(commands: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """What comes, message by message, until the other side closes."""
    while len(header := commands.read(HEADER.size)) == HEADER.size:
        kind, length = HEADER.unpack(header)
        yield kind, commands.read(length)


def _decode_one(peer: socket.socket, file_format: str, messages: Iterator[tuple[bytes, bytes]]) -> None:
    told: set[str] = set()
    with RecordingDecoder(file_format=file_format) as decoder:
        for kind, data in messages:
            try:
                for piece, rate in joined(decoder.feed(data) if kind == FEED else decoder.finish()):
                    _tell(peer, decoder, told)
                    _send(peer, SOUND, RATE.pack(rate) + piece.astype("<f4").tobytes())
                _tell(peer, decoder, told)
            except NotAudio as error:
                _send(peer, FAILED, json.dumps([error.reason, str(error)]).encode())
                return
            except MemoryError:
                _send(peer, FAILED, json.dumps(["too_complex", TOO_COMPLEX]).encode())
                return
            _send(peer, DONE if kind == END else MORE, b"")
            if kind == END:
                return


def _tell(peer: socket.socket, decoder: RecordingDecoder, told: set[str]) -> None:
    for warning in decoder.warnings:
        if warning not in told:
            told.add(warning)
            _send(peer, WARNING, warning.encode())


def _send(peer: socket.socket, kind: bytes, data: bytes) -> None:
    peer.sendall(HEADER.pack(kind, len(data)) + data)


def joined(decoding: Iterator[tuple[Samples, int]]) -> Iterator[tuple[Samples, int]]:
    """What is decoded, in arrays of about half a second where it comes faster than it is taken."""
    pieces: list[Samples] = []
    n_samples, rate = 0, 0
    for samples, rate in decoding:
        pieces.append(samples)
        n_samples += len(samples)
        if n_samples >= PIECE_S * rate:
            yield np.concatenate(pieces), rate
            pieces, n_samples = [], 0
    if n_samples:
        yield np.concatenate(pieces), rate


if __name__ == "__main__":
    main()
