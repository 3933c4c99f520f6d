"""Parses a multipart form as it comes: bytes in, events out, however the bytes are cut. Does no input or output.

Follows RFC 2046 and 7578, and accepts what is safe to accept: text before the first and behind the last boundary is
skipped, blanks may follow a boundary, lines may all end in a bare newline, the last line may lack its end.
It holds back a bounded amount: the headers of a part, or a few bytes that may begin a boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from serve_app.errors import BadUpload

MAX_PARTS = 64
MAX_PREAMBLE_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 13
MAX_BOUNDARY_BYTES = 200
"""RFC 2046 allows 70; some clients draw longer ones."""

_BLANKS = b" \t"
_MAX_PADDING_BYTES = 200
_OPTION = re.compile(r';\s*([^\s=;]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class PartBegin:
    """The headers of a part have been read."""

    name: str
    filename: str | None


class PartEnd:
    """The part that began last is complete."""


Event = PartBegin | bytes | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


class _Line(Enum):
    """The kind of a line that begins as a boundary."""

    BOUNDARY = auto()
    LAST_BOUNDARY = auto()
    DATA = auto()
    UNKNOWN = auto()  # its end is still to come


class MultipartParser:
    """One form; BadUpload where the bytes are no form."""

    def __init__(self, boundary: bytes) -> None:
        if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES or b"\r" in boundary or b"\n" in boundary:
            raise BadUpload(
                f"a form's boundary has 1 to {MAX_BOUNDARY_BYTES} characters in one line; got {boundary[:80]!r}"
            )
        self._dashed = b"--" + boundary
        self._newline = b"\r\n"
        self._state = _State.PREAMBLE
        self._buffer = bytearray()
        self._at = 0
        self._line_start = True
        """Whether what is next begins a line: there a boundary needs no newline before it."""
        self._skipped_bytes = 0
        self._n_parts = 0
        self._header_bytes = 0
        self._headers: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether the last boundary has come; what follows is skipped."""
        return self._state is _State.EPILOGUE

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events of the next bytes; iterate to the end before more is fed."""
        if self.ended:
            return
        self._buffer += data
        try:
            yield from self._events()
        finally:
            del self._buffer[: self._at]
            self._at = 0

    def _events(self) -> Iterator[Event]:
        while True:
            state = self._state
            if state is _State.HEADERS:
                begun = self._read_header_line()
                if begun is None:
                    return
                yield from begun
            elif state is _State.EPILOGUE:
                self._at = len(self._buffer)
                return
            else:
                data, line = self._read_to_boundary()
                if state is _State.BODY and data:
                    yield data
                elif state is _State.PREAMBLE:
                    self._skip(len(data))
                if line is _Line.UNKNOWN:
                    return
                if state is _State.BODY:
                    yield PartEnd()
                if line is _Line.BOUNDARY:
                    self._begin_part()
                else:
                    self._state = _State.EPILOGUE

    def _skip(self, n_bytes: int) -> None:
        self._skipped_bytes += n_bytes
        if self._skipped_bytes > MAX_PREAMBLE_BYTES:
            raise BadUpload(f"no boundary of the form came in its first {MAX_PREAMBLE_BYTES} bytes")

    def _read_to_boundary(self) -> tuple[bytes, _Line]:
        """The bytes that are certainly before the next boundary, and its kind. Moves on behind both."""
        buffer, begin, search = self._buffer, self._at, self._at
        while True:
            if self._line_start:
                start, at = begin, begin
                if not buffer.startswith(self._dashed, at):
                    if self._dashed.startswith(bytes(buffer[at : at + len(self._dashed)])):
                        return b"", _Line.UNKNOWN
                    self._line_start = False
                    continue
            else:
                at, start = self._next_dashed(search)
                if at < 0:
                    self._at = start
                    return bytes(buffer[begin:start]), _Line.UNKNOWN
            kind, after = self._line_kind(at + len(self._dashed))
            if kind is _Line.UNKNOWN:
                self._at = start
                return bytes(buffer[begin:start]), kind
            if kind is not _Line.DATA:
                break
            self._line_start = False
            search = at + 1
        self._at = after
        self._line_start = False
        return bytes(buffer[begin:start]), kind

    def _next_dashed(self, search: int) -> tuple[int, int]:
        """Where the next dashed boundary of a line is, and where what belongs to it starts, its newline included.

        Where there is none: -1, and from where on the bytes may be the start of one.
        """
        buffer = self._buffer
        if self._state is _State.PREAMBLE:  # which newline this form uses is known from its first boundary on
            at = buffer.find(b"\n" + self._dashed, search)
            whole = b"\n" + self._dashed
        else:
            whole = self._newline + self._dashed
            at = buffer.find(whole, search)
        if at >= 0:
            return at + len(whole) - len(self._dashed), at
        tail = buffer.rfind(whole[:1], max(search, len(buffer) - len(whole) + 1))
        if tail >= 0 and whole.startswith(bytes(buffer[tail:])):
            return -1, tail
        return -1, len(buffer)

    def _line_kind(self, at: int) -> tuple[_Line, int]:
        """The kind of the line whose dashed boundary ends at `at`, and where the next line starts."""
        buffer = self._buffer
        if buffer.startswith(b"--", at):
            return _Line.LAST_BOUNDARY, at + 2
        end = at
        while end < len(buffer) and buffer[end] in _BLANKS and end - at < _MAX_PADDING_BYTES:
            end += 1
        rest = bytes(buffer[end : end + 2])
        first = self._state is _State.PREAMBLE
        for newline in (b"\r\n", b"\n") if first else (self._newline,):
            if rest.startswith(newline):
                self._newline = newline
                return _Line.BOUNDARY, end + len(newline)
        if not rest or rest == b"\r" or (rest == b"-" and end == at):
            return _Line.UNKNOWN, at
        return _Line.DATA, at

    def _begin_part(self) -> None:
        self._n_parts += 1
        if self._n_parts > MAX_PARTS:
            raise BadUpload(f"the form has more than {MAX_PARTS} parts")
        self._header_bytes = 0
        self._headers = []
        self._state = _State.HEADERS

    def _read_header_line(self) -> tuple[PartBegin, ...] | None:
        """What the next line of a part's headers brings; None where its end is still to come."""
        end = self._buffer.find(b"\n", self._at, self._at + MAX_HEADER_BYTES + 1)
        held_bytes = (len(self._buffer) if end < 0 else end + 1) - self._at
        if self._header_bytes + held_bytes > MAX_HEADER_BYTES:
            raise BadUpload(f"the headers of a part of the form are larger than {MAX_HEADER_BYTES} bytes")
        if end < 0:
            return None
        line = bytes(self._buffer[self._at : end]).removesuffix(b"\r")
        self._at = end + 1
        self._header_bytes += held_bytes
        if not line:
            self._state = _State.BODY
            self._line_start = True
            return (_part(self._headers),)
        text = line.decode("utf-8", errors="replace")
        if line[0] in _BLANKS and self._headers:
            self._headers[-1] += " " + text.strip()
        elif b":" not in line:
            raise BadUpload(f"a part of the form has a header without a colon: {text[:80]!r}")
        else:
            self._headers.append(text)
        return ()


def _part(headers: list[str]) -> PartBegin:
    for line in headers:
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            _, options = parse_options(value)
            if "name" in options:
                return PartBegin(options["name"], options.get("filename"))
    raise BadUpload("a part of the multipart body has no name")


def parse_options(header: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case, and its parameters: quoted, or in the extended form of RFC 5987 (`name*=`)."""
    value, semicolon, rest = header.partition(";")
    plain: dict[str, str] = {}
    extended: dict[str, str] = {}
    for match in _OPTION.finditer(semicolon + rest):
        key, quoted, bare = match[1].lower(), match[2], match[3]
        text = bare.strip() if quoted is None else _ESCAPED.sub(r"\1", quoted)
        if key.endswith("*"):
            extended.setdefault(key[:-1], _extended(text))
        else:
            plain.setdefault(key, text)
    return value.strip().lower(), plain | extended


def _extended(text: str) -> str:
    """`UTF-8''na%C3%AFve` as text; what names no such character set is taken as it stands."""
    charset, quote, rest = text.partition("'")
    if not quote or charset.lower() not in ("utf-8", "iso-8859-1", "us-ascii"):
        return text
    return unquote_to_bytes(rest.partition("'")[2]).decode(charset, errors="replace")
