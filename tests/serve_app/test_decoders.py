"""Decoding in processes: what strangers send can be ended, is bounded, and holds nobody else up."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from configs.serve import Limits
from serve_app import decoders
from serve_app.decoders import Decoded, DecodeProcess, busy_processes, decode_process
from serve_app.errors import AtCapacity, SourceTooLong
from serve_app.voices import service as service_of_voices
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.service import one_piece
from tests.serve_app.fakes import EchoBackend, encoded, recordings_over, tone, wav_file
from tests.webrtc.files.recordings import recording, silence
from webrtc.files import NotAudio, decode_file
from webrtc.files.process import MEMORY_BYTES

MP3 = encoded(2.0, "mp3_44100_64")


async def decoded_s(data: bytes, max_s: float | None = None) -> float:
    seconds = 0.0
    async with aclosing(Decoded(one_piece(data), max_s=max_s).pieces()) as pieces:
        async for samples, rate in pieces:
            seconds += len(samples) / rate
    return seconds


async def endless(data: bytes) -> AsyncIterator[bytes]:
    yield data
    await asyncio.Event().wait()


async def test_a_process_gives_the_samples_that_a_decoder_gives() -> None:
    pieces = [samples async for samples, _ in Decoded(one_piece(MP3)).pieces()]
    np.testing.assert_array_equal(np.concatenate(pieces), decode_file(MP3)[0])


async def test_a_warning_comes_with_the_sound_that_it_is_about() -> None:
    wave = tone(2.0)
    sound = Decoded(endless(wav_file(np.stack([wave, -wave], axis=1), 22050)))
    async with aclosing(sound.pieces()) as pieces:
        async for _ in pieces:
            break
    assert len(sound.warnings) == 1 and "cancel" in sound.warnings[0]


async def test_decoding_takes_no_thread_from_others() -> None:
    class NoThreads(ThreadPoolExecutor):
        def submit(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
            raise AssertionError("decoding took a thread that routes and stages wait for")

    asyncio.get_running_loop().set_default_executor(NoThreads())
    assert await decoded_s(MP3) > 1.9


async def test_a_process_serves_one_recording_after_the_other() -> None:
    async with decode_process() as first:
        await first.begin("other")
        with pytest.raises(NotAudio):
            async for _ in first.pieces(None, []):
                pass
    async with decode_process() as second:
        assert second is first


@pytest.mark.parametrize("hang_up", [True, False])
async def test_leaving_half_way_ends_the_process(hang_up: bool) -> None:
    async def take() -> None:
        async with aclosing(Decoded(endless(MP3)).pieces()) as pieces:
            async for _ in pieces:
                taken.set()
                if not hang_up:
                    return

    taken = asyncio.Event()
    task = asyncio.create_task(take())
    await taken.wait()
    if hang_up:
        assert busy_processes() == 1
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert busy_processes() == 0


async def test_a_process_that_dies_is_told_as_a_recording_that_is_too_complex() -> None:
    async with decode_process() as process:
        await process.begin("other")
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(NotAudio) as refusal:
            async for _ in process.pieces(MP3, []):
                pass
    assert refusal.value.reason == "too_complex"
    assert await decoded_s(MP3) > 1.9, "the next recording gets another process"


async def test_a_process_has_its_bounds_and_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVC_API_KEY", "secret")
    process = DecodeProcess()
    try:
        await process.begin("other")
        async for _ in process.pieces(MP3, []):
            pass
        here = Path(f"/proc/{process.pid}")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (here / "limits").read_text().splitlines()}
        assert int(limits["Max data size"]) == MEMORY_BYTES
        assert int(limits["Max cpu time"]) < 300
        assert b"secret" not in (here / "environ").read_bytes()
    finally:
        process.kill()


async def test_a_frame_that_unfolds_to_gigabytes_is_refused() -> None:
    data = bytearray(recording("ipod", "alac", 44100, duration_s=0.5))
    struct.pack_into(">I", data, data.rfind(b"alac") + 8, 0x0FFFFFFF)
    with pytest.raises(NotAudio):
        await decoded_s(bytes(data))


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("wv", "wavpack"), ("ogg", "libopus")])
async def test_silence_that_is_packed_small_ends_at_the_limit(container: str, codec: str) -> None:
    with pytest.raises(SourceTooLong):
        await decoded_s(silence(container, codec, 48000, 30), max_s=5.0)
    assert busy_processes() == 0


async def test_a_voice_takes_as_much_of_its_recordings_as_it_may(tmp_path: Path) -> None:
    service = recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits(max_reference_s=2.0))
    record, warnings = await service.voices.add("long", [encoded(60.0, "mp3_44100_64"), MP3])
    assert record.duration_s == 2.0 and any("first 2 s" in warning for warning in warnings)
    assert busy_processes() == 0


@pytest.mark.parametrize("rate", [96_000, 192_000, 384_000])
async def test_a_voice_is_kept_at_a_rate_that_voices_need(tmp_path: Path, rate: int) -> None:
    sound = np.sin(2 * np.pi * 440 / rate * np.arange(2 * rate)).astype(np.float32)[:, None] / 2
    store = FolderVoiceStore(tmp_path)
    record, _ = await recordings_over(EchoBackend(), store, Limits()).voices.add("high", [wav_file(sound, rate)] * 2)
    assert (record.sample_rate, record.duration_s) == (48_000, 4.0)
    samples, kept_rate = store.reference(record.voice_id)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * kept_rate / len(samples) == pytest.approx(440, abs=1)


async def test_voices_that_are_added_at_once_are_bounded(tmp_path: Path) -> None:
    service = recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits())
    adding = [asyncio.create_task(service.voices.add("v", [endless(MP3)])) for _ in range(20)]
    done, waiting = await asyncio.wait(adding, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert {type(task.exception()) for task in done} == {AtCapacity}
    assert busy_processes() <= 2
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert busy_processes() == 0


async def test_few_references_at_once_are_searched_for_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = 0

    def searched(samples: np.ndarray, rate: int, most_s: float) -> tuple[np.ndarray, int, list[str]]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.1)
        at_once -= 1
        return samples[: int(most_s * rate)], rate, []

    monkeypatch.setattr(service_of_voices, "spoken", searched)
    service = recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits(max_reference_s=1.5))
    await asyncio.gather(*(service.voices.add_samples("v", tone(2.0), 22050) for _ in range(4)))
    await asyncio.gather(*(service.voices.add("v", [MP3]) for _ in range(4)))
    assert most <= 2


def test_the_next_recording_finds_a_process_ready() -> None:
    decoders.warm_up()
    assert decoders._idle
