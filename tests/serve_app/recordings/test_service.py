"""The service without a web framework: what it shares between requests, and what it frees."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.serve import Limits
from serve_app.decoders import busy_processes
from serve_app.errors import AtCapacity, InvalidFields, NotStored, SourceTooLong
from serve_app.recordings.service import Recordings
from serve_app.threads import NICENESS, computed, in_thread
from serve_app.voices import folder
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.service import one_piece
from stages.reference import ReferenceReport
from stages.types import BadAudio, Samples, Voice
from tests.serve_app.fakes import EchoBackend, encoded, recordings_over, tone, wav_file
from webrtc.files import NotAudio


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture
def service(backend: EchoBackend, tmp_path: Path) -> Recordings:
    return recordings_over(backend, FolderVoiceStore(tmp_path), Limits(max_source_s=5.0, max_conversions=1))


async def trickle(data: bytes, endless: bool = False) -> AsyncIterator[bytes]:
    """An upload in small pieces, which may never end."""
    for start in range(0, len(data), 5000):
        yield data[start : start + 5000]
        await asyncio.sleep(0)
    if endless:
        await asyncio.Event().wait()


async def test_a_conversion_gives_the_same_bytes_however_the_upload_is_cut(service: Recordings) -> None:
    source = encoded(2.0, "mp3_44100_64")
    results = []
    for upload in (one_piece(source), trickle(source)):
        conversion = await service.convert("clara", upload, output_format="pcm_22050", seed=1)
        async with conversion:
            results.append(b"".join([chunk async for chunk in conversion]))
    assert results[0] == results[1] and len(results[0]) > 80000


async def test_leaving_a_conversion_half_way_ends_all_of_it(service: Recordings, backend: EchoBackend) -> None:
    conversion = await service.convert("clara", trickle(encoded(3.0, "mp3_44100_64"), endless=True))
    async with conversion:
        async for chunk in conversion:
            assert chunk
            break
        assert service.running_conversions == 1 and busy_processes() == 1
    assert service.running_conversions == 0 and backend.open_streams == 0 and busy_processes() == 0


async def test_a_cancelled_conversion_ends_all_of_it(service: Recordings, backend: EchoBackend) -> None:
    entered = asyncio.Event()

    async def request() -> None:
        conversion = await service.convert("clara", trickle(encoded(3.0, "mp3_44100_64"), endless=True))
        async with conversion:
            async for _ in conversion:
                entered.set()

    task = asyncio.create_task(request())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.running_conversions == 0 and backend.open_streams == 0 and busy_processes() == 0


async def test_an_error_in_any_step_comes_out_as_itself(service: Recordings, backend: EchoBackend) -> None:
    async def failing_upload() -> AsyncIterator[bytes]:
        yield encoded(1.0, "mp3_44100_64")
        raise ConnectionResetError("upload")

    backend_failure = ZeroDivisionError("stage")
    cases: list[tuple[AsyncIterator[bytes], type[Exception], Exception | None]] = [
        (failing_upload(), ConnectionResetError, None),
        (one_piece(b"words " * 100), NotAudio, None),
        (one_piece(encoded(6.0, "mp3_44100_64")), SourceTooLong, None),
        (one_piece(encoded(1.0, "mp3_44100_64")), ZeroDivisionError, backend_failure),
    ]
    for upload, expected, failure in cases:
        backend.failure = failure
        conversion = await service.convert("clara", upload)
        with pytest.raises(expected):
            async with conversion:
                async for _ in conversion:
                    pass
        assert service.running_conversions == 0 and backend.open_streams == 0 and busy_processes() == 0


async def test_room_is_limited_and_comes_back(service: Recordings) -> None:
    source = wav_file(tone(0.5), 22050)
    first, second = [await service.convert("clara", one_piece(source)) for _ in range(2)]
    async with first:
        with pytest.raises(AtCapacity, match="1 conversions"):
            async with second:
                pass
        with pytest.raises(AtCapacity):
            service.require_room()
    async with await service.convert("clara", one_piece(source)) as third:
        assert [chunk async for chunk in third]


async def test_an_unknown_output_format_is_refused_before_anything_is_made(
    service: Recordings, backend: EchoBackend
) -> None:
    with pytest.raises(InvalidFields, match="mp3_44100_128"):
        await service.convert("clara", one_piece(b""), output_format="mp4")
    assert backend.made_voices == 0


async def test_many_who_want_the_same_new_features_make_them_once(service: Recordings, backend: EchoBackend) -> None:
    await asyncio.gather(*[service.voices.make_features("martin") for _ in range(8)])
    assert backend.made_voices == 1


async def test_new_weights_make_their_own_features(service: Recordings, tmp_path: Path) -> None:
    class OtherWeights(EchoBackend):
        fingerprint = "other"

        async def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
            voice, warnings, report = await super().make_voice(samples, sample_rate)
            return Voice(voice.live, voice.file, "other"), warnings, report

    await service.voices.make_features("clara")
    other = recordings_over(OtherWeights(), service.voices.store, Limits())
    await other.voices.make_features("clara")
    for fingerprint in ("echo", "other"):
        voice = service.voices.store.features("clara", fingerprint)
        assert voice is not None and voice.fingerprint == fingerprint


async def test_damaged_features_are_made_again_from_the_recording(
    service: Recordings, backend: EchoBackend, tmp_path: Path
) -> None:
    record, _ = await service.voices.add_samples("Anna", tone(1.5), 22050)
    for voice_id in (record.voice_id, "clara"):
        await service.voices.make_features(voice_id)
        (path,) = tmp_path.glob(f"*/{voice_id}/features-*")
        path.write_bytes(path.read_bytes()[:100])
        made_before = backend.made_voices
        await service.voices.make_features(voice_id)
        await service.voices.make_features(voice_id)
        assert backend.made_voices == made_before + 1
        assert service.voices.store.features(voice_id, "echo") is not None


async def test_a_voice_whose_features_find_no_room_is_not_kept(
    service: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("features"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(data)

    before = service.voices.store.list()
    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(NotStored, match="No space left"):
        await service.voices.add_samples("Anna", tone(1.5), 22050)
    assert service.voices.store.list() == before


async def test_a_voice_that_cannot_be_made_is_not_kept(service: Recordings) -> None:
    before = service.voices.store.list()
    with pytest.raises(BadAudio):
        await service.voices.add("short", [wav_file(tone(0.5), 22050)])
    with pytest.raises(BadAudio):
        await service.voices.add_samples("short", tone(0.5), 22050)
    assert service.voices.store.list() == before


async def test_a_silent_reference_troubles_no_replica(service: Recordings, backend: EchoBackend) -> None:
    made_before = backend.made_voices
    with pytest.raises(BadAudio, match="silent"):
        await service.voices.add_samples("nobody", np.zeros(44100, np.float32), 22050)
    assert backend.made_voices == made_before


async def test_features_come_from_what_is_stored(service: Recordings, backend: EchoBackend) -> None:
    heard: list[Samples] = []
    make_voice = backend.make_voice

    async def listening(samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        heard.append(samples)
        return await make_voice(samples, sample_rate)

    backend.make_voice = listening  # type: ignore[method-assign]
    record, _ = await service.voices.add_samples("Anna", tone(1.5), 22050)
    stored, _ = service.voices.store.reference(record.voice_id)
    assert (heard[0] == stored).all(), "so that other weights can make the same of it later"


@pytest.mark.parametrize("run_in_thread", [in_thread, computed])
async def test_a_cancelled_caller_waits_for_its_thread(run_in_thread: Callable[..., Coroutine[Any, Any, None]]) -> None:
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        time.sleep(0.2)
        done.set()

    task = asyncio.create_task(run_in_thread(slow))
    await asyncio.to_thread(inside.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
async def test_what_computes_for_recordings_gives_way() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    ours = niceness()
    assert await computed(niceness) == NICENESS
    assert (await in_thread(niceness), niceness()) == (ours, ours)
