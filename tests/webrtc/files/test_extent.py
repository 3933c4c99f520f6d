"""What is told about recordings that are whole, and about those that are cut off."""

import struct

import numpy as np
import pytest

from tests.webrtc.files.recordings import recording, stereo_wav, tone, wav
from tests.webrtc.files.test_decode import RECORDINGS, decode

CUT = [
    "wav s16",
    "wav float",
    "wav mu-law",
    "wav ms adpcm",
    "wav ima adpcm",
    "flac",
    "mp3",
    "ogg opus",
    "webm",
    "aiff",
    "au",
]
CUT += ["caf", "w64", "wv", "tta", "avi", "mkv pcm", "asf"]


@pytest.mark.parametrize("name", CUT)
def test_a_recording_that_is_cut_off_is_told(name: str) -> None:
    data = recording(*RECORDINGS[name])
    _, _, warnings = decode(data[: len(data) * 6 // 10 + 3])
    assert len(warnings) == 1 and "cut off" in warnings[0]


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
def test_an_mp4_that_is_cut_off_is_told(flags: str) -> None:
    data = recording("mp4", "aac", 44100, muxer_options={"movflags": flags})
    _, _, warnings = decode(data[: len(data) * 6 // 10])
    assert len(warnings) == 1 and "cut off" in warnings[0]


def test_gsm_is_whole_with_its_padding() -> None:
    blocks = np.random.default_rng(0).bytes(65 * 75)
    form = struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320)
    samples, rate, warnings = decode(wav(blocks + b"\0", form))
    assert len(samples) / rate == 3.0 and warnings == []
    _, _, warnings = decode(wav(blocks[:3000], form, sound_bytes=len(blocks)))
    assert len(warnings) == 1 and "of 3.0 s" in warnings[0]


@pytest.mark.parametrize("stated", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("form", [(1, 1, 16000, 32000, 2, 16), (7, 1, 8000, 8000, 1, 8), (3, 1, 16000, 64000, 4, 32)])
def test_a_wav_that_was_written_as_a_stream_is_whole(stated: int, form: tuple[int, ...]) -> None:
    _, _, warnings = decode(wav(bytes(40_000), struct.pack("<HHIIHH", *form), sound_bytes=stated))
    assert warnings == []


def test_other_chunks_and_odd_sizes_are_no_fault() -> None:
    assert decode(stereo_wav(tone(0.5), tone(0.5)))[2] == []
    form = struct.pack("<HHIIHH", 1, 1, 16000, 16000, 1, 8)
    assert decode(wav(bytes([128] * 16001), form))[2] == []


def test_a_wrong_byte_rate_is_no_fault() -> None:
    samples, rate, warnings = decode(wav(tone(1.0, 16000).tobytes(), struct.pack("<HHIIHH", 3, 1, 16000, 99, 4, 32)))
    assert len(samples) == rate and warnings == []


def test_an_mp3_of_variable_rate_without_a_stated_length_is_no_fault() -> None:
    data = recording("mp3", "libmp3lame", 44100, muxer_options={"write_xing": "0"})
    assert decode(data)[2] == []


def test_a_live_ogg_that_ends_with_a_page_is_no_fault() -> None:
    data = recording("ogg", "libopus", 48000, muxer_options={"page_duration": "100000"})
    last_page = data.rfind(b"OggS")
    assert decode(data[:last_page])[2] == []
    assert len(decode(data[: last_page + 40])[2]) == 1
