"""Keys in a file that only its owner can read."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serve_app.callers.counts import Counts, MemoryCounts
from serve_app.callers.key import Key
from serve_app.callers.store import KeysAway

_KEYS: TypeAdapter[list[Key]] = TypeAdapter(list[Key])


class FileKeys:
    """Keys in a JSON file. It is read again where it has changed; counts are those of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counts = MemoryCounts()
        self._read: tuple[object, list[Key]] | None = None

    async def keys(self) -> list[Key]:
        """As KeyStore."""
        return await asyncio.to_thread(self.read)

    async def add(self, key: Key) -> bool:
        """As KeyStore; makes the file where there is none."""
        return await asyncio.to_thread(self._add, key)

    async def remove(self, name: str) -> bool:
        """As KeyStore."""
        return await asyncio.to_thread(self._remove, name)

    async def close(self) -> None:
        """Nothing is open."""

    def read(self) -> list[Key]:
        """All keys; KeysAway, with a reason for the operator, where they cannot be read or others could read them."""
        try:
            about = self.path.stat()
            if stat.S_IMODE(about.st_mode) & 0o077:
                raise KeysAway(f"others can read {self.path}: chmod 600 it")
            stamp = (about.st_ino, about.st_mtime_ns, about.st_size)
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, _KEYS.validate_json(self.path.read_bytes())
        except OSError as error:
            raise KeysAway(f"cannot read {self.path}: {os.strerror(error.errno or 0)}") from error
        except ValidationError:
            raise KeysAway(f"{self.path} is no file of keys") from None
        return self._read[1]

    def _add(self, key: Key) -> bool:
        with self._changing():
            kept = self.read() if self.path.exists() else []
            if any(other.name == key.name for other in kept):
                return False
            self._write([*kept, key])
        return True

    def _remove(self, name: str) -> bool:
        with self._changing():
            kept = self.read()
            rest = [key for key in kept if key.name != name]
            if len(rest) == len(kept):
                return False
            self._write(rest)
        return True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Lets nobody else change a file of this folder meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            raise KeysAway(f"cannot write {self.path}: {os.strerror(error.errno or 0)}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, keys: list[Key]) -> None:
        try:
            descriptor, draft = tempfile.mkstemp(dir=self.path.parent)  # 0600 from the start
            with os.fdopen(descriptor, "wb") as file:
                file.write(_KEYS.dump_json(keys, indent=1) + b"\n")
            os.replace(draft, self.path)
        except OSError as error:
            raise KeysAway(f"cannot write {self.path}: {os.strerror(error.errno or 0)}") from error
