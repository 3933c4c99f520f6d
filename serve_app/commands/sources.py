"""The recording that a command is given: a file, a pipe, or the standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from serve_app.commands import UserMistake

STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def is_readable(path: Path) -> bool:
    """Whether a recording may be read from there: a file, or a pipe such as the shell's `<(command)`."""
    return path.is_file() or path.is_fifo()


class Readable(Protocol):
    """Bytes, one after the other."""

    def read(self, size: int = -1, /) -> bytes: ...


class Source:
    """One recording, readable once."""

    def __init__(self, given: str) -> None:
        self._given = given
        if given in STANDARD_INPUT:
            self.name, kind, self.size_bytes = "stdin", _kind_of_stdin(), 0
        else:
            path = Path(given)
            if not path.exists():
                raise UserMistake(f"there is no file {given}")
            self.name, status = path.name, path.stat()
            kind, self.size_bytes = status.st_mode, status.st_size if stat.S_ISREG(status.st_mode) else 0
        if stat.S_ISDIR(kind):
            raise UserMistake(f"{given} is a folder; give one recording")
        if not any(is_kind(kind) for is_kind in (stat.S_ISREG, stat.S_ISFIFO, stat.S_ISSOCK)):
            raise UserMistake(f"{given} is neither a file nor a pipe; give one recording")
        if given not in STANDARD_INPUT and not os.access(given, os.R_OK):
            raise UserMistake(f"cannot read {given}: permission denied")

    @contextmanager
    def opened(self) -> Iterator[Readable]:
        """The bytes; those of the standard input are left open at the end."""
        try:
            if self._given in STANDARD_INPUT:
                yield sys.stdin.buffer
                return
            with open(self._given, "rb") as file:
                yield file
        except IsADirectoryError as error:
            raise UserMistake(f"{self._given} is a folder; give one recording") from error


def _kind_of_stdin() -> int:
    """The kind of standard input. A terminal is refused."""
    try:
        if sys.stdin.isatty():
            raise UserMistake("the standard input is a terminal; pipe a recording into it, or name a file")
        return os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, ValueError, OSError) as error:
        raise UserMistake("the standard input is closed; pipe a recording into it, or name a file") from error
