"""Conversions of recordings: which may run, in which voice, through which streams. Knows no web framework."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from configs.serve import Limits
from serve_app.decoders import Decoded
from serve_app.errors import AtCapacity, FieldProblem, InvalidFields
from serve_app.places import Place, slowest_of
from serve_app.recordings.conversion import Conversion, SourceStream
from serve_app.voices.service import Voices
from stages.types import StoredVoice
from webrtc.files import OUTPUT_FORMATS

DEFAULT_OUTPUT_FORMAT = "mp3_44100_128"
MAX_SEED = 2**32 - 1


class RecordingStreams(Protocol):
    """Opens conversions of recordings; see stages.streams."""

    @property
    def recording_steps(self) -> int | None:
        """Steps where none are asked for; None where any number is rendered in one."""

    def recording(
        self, voice: StoredVoice, *, sample_rate: int, seed: int, steps: int | None, streaming: bool
    ) -> SourceStream:
        """One through long chunks."""

    def live_recording(self, voice: StoredVoice, *, sample_rate: int, seed: int, steps: int | None) -> SourceStream:
        """One through the line of a call."""


class Recordings:
    """Converts recordings, within limits."""

    def __init__(self, voices: Voices, streams: RecordingStreams, limits: Limits) -> None:
        self.voices, self.streams, self.limits = voices, streams, limits
        self._running: dict[object, Place | None] = {}

    async def convert(
        self,
        voice_id: str,
        upload: AsyncIterator[bytes],
        *,
        output_format: str = DEFAULT_OUTPUT_FORMAT,
        seed: int | None = None,
        steps: int | None = None,
        file_format: str = "other",
        live: bool = False,
        streaming: bool = False,
        place: Place | None = None,
        remove_noise: bool = False,
    ) -> Conversion:
        """A conversion that runs while it is entered; the voice is known to exist and its features are made.

        `place` is that of the upload.
        """
        fmt = OUTPUT_FORMATS.get(output_format)
        if fmt is None:
            message = f"unknown output format {output_format!r}; allowed are {', '.join(OUTPUT_FORMATS)}"
            raise InvalidFields([FieldProblem(("query", "output_format"), message, "enum")])
        voice = await self.voices.make_features(voice_id)
        seed = secrets.randbits(32) if seed is None else seed
        if live:
            open_stream = partial(self.streams.live_recording, voice, seed=seed, steps=steps)
        else:
            open_stream = partial(self.streams.recording, voice, seed=seed, steps=steps, streaming=streaming)
        sound = Decoded(upload, file_format, self.limits.max_source_s)
        return Conversion(sound, open_stream, fmt, seed, self.admitted(place), remove_noise)

    @property
    def running_conversions(self) -> int:
        """How many places for conversions are taken."""
        return len(self._running)

    @property
    def is_full(self) -> bool:
        """Whether one more conversion would be refused."""
        return self.running_conversions >= self.limits.max_conversions

    def require_room(self) -> None:
        """AtCapacity where one more conversion would be refused; asked before an upload is taken."""
        if self.is_full and self._slowest() is None:
            message = f"{self.limits.max_conversions} conversions are running, which is the limit; try again soon"
            raise AtCapacity(message, self.limits.retry_after_s, "too_many_concurrent_requests")

    @contextmanager
    def admitted(self, place: Place | None = None) -> Iterator[None]:
        """Takes room for one more conversion, or raises AtCapacity. A slow upload at `place` may lose it again."""
        self.require_room()
        if len(self._running) >= self.limits.max_conversions and (slowest := self._slowest()) is not None:
            slowest.give_up()
            self._running = {key: place for key, place in self._running.items() if place is not slowest}
        admission = object()
        self._running[admission] = place
        try:
            yield
        finally:
            self._running.pop(admission, None)

    def _slowest(self) -> Place | None:
        """The slowest upload, whose conversion can be ended to make room."""
        return slowest_of(place for place in self._running.values() if place is not None)
