"""Voices that a replica keeps in memory, so that blocks carry an id and not arrays."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from serve_app.stores.voices import VoiceNotFound, VoiceStore
from stages.types import Voice


class VoiceCache:
    """Voices of one set of weights by id, least recently used out first, within a bound in bytes."""

    def __init__(self, store: VoiceStore, fingerprint: str, max_bytes: int) -> None:
        self._store, self._fingerprint, self._max_bytes = store, fingerprint, max_bytes
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._n_bytes = 0
        self._lock = asyncio.Lock()

    async def get(self, voice_id: str) -> Voice:
        """The voice; VoiceNotFound where the store has none of these weights."""
        if voice_id not in self._voices:
            async with self._lock:  # one read at a time; whoever has its voice does not wait for the storage
                if voice_id not in self._voices:
                    voice = await asyncio.to_thread(self._store.features, voice_id, self._fingerprint)
                    if voice is None:
                        raise VoiceNotFound(voice_id)
                    self._keep(voice_id, voice)
        self._voices.move_to_end(voice_id)
        return self._voices[voice_id]

    def _keep(self, voice_id: str, voice: Voice) -> None:
        self._voices[voice_id] = voice
        self._n_bytes += voice.n_bytes
        while self._n_bytes > self._max_bytes and len(self._voices) > 1:
            _, dropped = self._voices.popitem(last=False)
            self._n_bytes -= dropped.n_bytes
