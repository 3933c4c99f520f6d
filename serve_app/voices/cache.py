"""Voices that a replica keeps in memory, so that blocks carry an id and not arrays."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from serve_app.errors import VoiceNotFound
from serve_app.voices.store import VoiceStore
from stages.types import Voice

LOOK_EVERY_S = 2.0
"""How often the voices in memory are compared with the store."""
COLD_S = 4.0
"""After so long without a request, the voices in memory may be out of date."""
COLD_WAIT_S = 1.0
"""How long the first request then waits for the comparison; a store that is away keeps nobody longer."""


@dataclass(frozen=True)
class Kept:
    """A voice, and its features' stamp in the store when it was read."""

    voice: Voice
    stamp: object


class VoiceCache:
    """Voices of one set of weights by id, least recently used out first, within a bound in bytes.

    A voice that is deleted or made anew in the store is forgotten a few seconds later. Blocks do not wait for that: a
    background task compares with the store. Only the first request after a pause waits, since nobody has looked before.
    """

    def __init__(self, store: VoiceStore, fingerprint: str, max_bytes: int) -> None:
        self._store, self._fingerprint, self._max_bytes = store, fingerprint, max_bytes
        self._voices: OrderedDict[str, Kept] = OrderedDict()
        self._n_bytes = 0
        self._lock = asyncio.Lock()
        self._looked_s = self._asked_s = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def get(self, voice_id: str) -> Voice:
        """The voice; VoiceNotFound where the store has none of these weights."""
        self.look()
        if self._looking is not None and monotonic() - self._asked_s >= COLD_S:
            await asyncio.wait([self._looking], timeout=COLD_WAIT_S)
        self._asked_s = monotonic()
        kept = self._voices.get(voice_id)
        if kept is None:
            async with self._lock:  # one read at a time; voices in memory do not wait
                kept = self._voices.get(voice_id)
                if kept is None:
                    kept = await asyncio.to_thread(self._read, voice_id)
                    self._keep(voice_id, kept)
        if voice_id in self._voices:
            self._voices.move_to_end(voice_id)
        return kept.voice

    def look(self) -> None:
        """Compares the voices in memory with the store, unless that was done a moment ago. Call it now and then."""
        is_looking = self._looking is not None and not self._looking.done()
        if self._voices and not is_looking and monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looking = asyncio.create_task(self._forget_changed())

    async def _forget_changed(self) -> None:
        kept = dict(self._voices)
        try:
            changed = await asyncio.to_thread(self._changed, kept)
        finally:
            self._looked_s = monotonic()
        for voice_id in changed:
            if self._voices.get(voice_id) is kept[voice_id]:
                self._drop(voice_id)

    def _changed(self, kept: Mapping[str, Kept]) -> list[str]:
        try:
            now = self._store.stamps(kept, self._fingerprint)
        except OSError:  # a storage that does not answer has not forgotten anything
            return []
        return [voice_id for voice_id, one in kept.items() if now.get(voice_id) != one.stamp]

    def _read(self, voice_id: str) -> Kept:
        # read first, so that a change meanwhile shows later
        stamp = self._store.stamps([voice_id], self._fingerprint).get(voice_id)
        voice = self._store.features(voice_id, self._fingerprint)
        if voice is None or stamp is None:
            raise VoiceNotFound(voice_id)
        return Kept(voice, stamp)

    def _keep(self, voice_id: str, kept: Kept) -> None:
        self._voices[voice_id] = kept
        self._n_bytes += kept.voice.n_bytes
        while self._n_bytes > self._max_bytes and len(self._voices) > 1:
            self._drop(next(iter(self._voices)))

    def _drop(self, voice_id: str) -> None:
        self._n_bytes -= self._voices.pop(voice_id).voice.n_bytes
