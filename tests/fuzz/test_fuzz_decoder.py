"""Recordings that were damaged in every way: sound or a refusal comes out, in bounded time and memory."""

from __future__ import annotations

import functools
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.budget import budgeted
from tests.webrtc.files.recordings import float_wav, recording, stamped, tone
from tests.webrtc.files.test_decode import RECORDINGS
from webrtc.files import NotAudio
from webrtc.files.decode import RecordingDecoder
from webrtc.files.demux import PIECE_S
from webrtc.files.errors import MAX_RATE_HZ, MIN_RATE_HZ
from webrtc.files.timeline import MAX_SILENCE_S

LONGEST_S = 60.0  # of CPU, for a second of sound: hung
KINDS = [*RECORDINGS, "film", "gap", "float", "raw"]
HEAD_BYTES = 600  # where the sizes, rates and counts stand


@functools.cache
def original(kind: str) -> bytes:
    if kind == "film":
        return stamped("mp4", "aac", 16000, [1.0], with_video=True)
    if kind == "gap":
        return stamped("matroska", "pcm_s16le", 16000, [0.0, 2.0], piece_s=0.3)
    if kind == "float":
        return float_wav(np.stack([40000 * tone(0.3), -40000 * tone(0.3)], axis=1))
    if kind == "raw":
        return b""
    return recording(*RECORDINGS[kind], duration_s=0.3)


NUMBERS = st.sampled_from(
    [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x01", b"\x80\0\0\0"]
)
PATCHES = st.lists(
    st.tuples(
        st.booleans(),  # in the head, or anywhere
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "insert", "double"]),
        st.one_of(st.binary(min_size=1, max_size=8), NUMBERS),
    ),
    max_size=12,
)
Patch = tuple[bool, float, str, bytes]


def damaged(data: bytes, patches: list[Patch]) -> bytes:
    for in_head, share, how, new in patches:
        at = int((min(len(data), HEAD_BYTES) if in_head else len(data)) * share)
        if how == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif how == "cut":
            data = data[:at] + data[at + int.from_bytes(new[:2], "big") % 700 :]
        elif how == "insert":
            data = data[:at] + new + data[at:]
        else:
            data = data[: at + 200] + data[at:]
    return data


@budgeted(examples=150)
@given(
    kind=st.sampled_from(KINDS),
    patches=PATCHES,
    end=st.one_of(st.just(1.0), st.floats(0, 1)),
    cut=st.integers(1, 5000),
    file_format=st.sampled_from(["other", "other", "other", "pcm_s16le_16"]),
)
def test_a_damaged_recording_is_sound_or_refused(
    kind: str, patches: list[Patch], end: float, cut: int, file_format: str
) -> None:
    data = damaged(original(kind), patches)
    data = data[: round(end * len(data))]
    began_s = time.process_time()
    seconds = 0.0
    with RecordingDecoder(file_format=file_format) as decoder:
        try:
            for start in range(0, len(data) + 1, cut):
                feeding = decoder.feed(data[start : start + cut])
                for samples, rate in feeding:
                    seconds += len(samples) / rate
                    check(samples, rate)
            for samples, rate in decoder.finish():
                seconds += len(samples) / rate
                check(samples, rate)
        except NotAudio as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) > 20
        assert all("\n" not in warning for warning in decoder.warnings)
    assert seconds < MAX_SILENCE_S + 60
    assert time.process_time() - began_s < LONGEST_S


def check(samples: np.ndarray, rate: int) -> None:
    assert MIN_RATE_HZ <= rate <= MAX_RATE_HZ
    assert 0 < len(samples) <= round(PIECE_S * rate) + 1
    assert samples.dtype == np.float32 and np.isfinite(samples).all() and np.abs(samples).max() <= 1.0
