"""Time stamps: silence stands where a recording has none, and a stamp that lies costs nothing."""

import numpy as np
import pytest

from tests.webrtc.files.recordings import recording, stamped, tone
from tests.webrtc.files.test_decode import decode, random_cuts
from webrtc.files.codecs import Samples
from webrtc.files.timeline import MAX_SILENCE_S, Timeline


def spans(samples: Samples, rate: int) -> list[tuple[float, float]]:
    """Where sound starts and ends, in seconds, to within 10 ms."""
    frame = rate // 100
    loud = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame).max(axis=1) > 0.1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
    return [(float(a) / 100, float(b) / 100) for a, b in edges.reshape(-1, 2)]


CONTAINERS = [
    ("webm", "libopus", 48000),
    ("mp4", "aac", 16000),
    ("matroska", "pcm_s16le", 16000),
    ("flv", "aac", 44100),
]


@pytest.mark.parametrize(("container", "codec", "rate"), CONTAINERS)
def test_a_gap_is_filled_with_silence(container: str, codec: str, rate: int) -> None:
    data = stamped(container, codec, rate, [0.0, 3.0])
    samples, got_rate, warnings = decode(data)
    np.testing.assert_array_equal(decode(data, random_cuts(0, 3000))[0], samples)
    np.testing.assert_allclose(spans(samples, got_rate), [(0.0, 1.0), (3.0, 4.0)], atol=0.12)
    assert warnings == []


@pytest.mark.parametrize(("container", "codec", "rate"), CONTAINERS)
def test_sound_that_starts_behind_its_picture_starts_late(container: str, codec: str, rate: int) -> None:
    samples, got_rate, warnings = decode(stamped(container, codec, rate, [2.0, 3.0], with_video=True))
    (start_s, end_s), *rest = spans(samples, got_rate)
    assert abs(start_s - 2.0) < 0.12 and abs((rest[-1][1] if rest else end_s) - 4.0) < 0.12
    assert warnings == []


def test_a_recording_that_was_cut_out_of_a_longer_one_starts_at_once() -> None:
    samples, rate, warnings = decode(stamped("webm", "libopus", 48000, [500.0]))
    assert spans(samples, rate)[0][0] < 0.1 and len(samples) / rate < 1.1
    assert warnings == []


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("flv", "aac"), ("mp4", "aac")])
def test_sound_alone_starts_where_its_container_says(container: str, codec: str) -> None:
    samples, rate, warnings = decode(stamped(container, codec, 44100, [2.0]))
    np.testing.assert_allclose(spans(samples, rate), [(2.0, 3.0)], atol=0.12)
    assert warnings == []


@pytest.mark.parametrize("codec", ["libmp3lame", "pcm_s16le", "ac3"])
def test_an_avi_whose_sound_starts_late_is_told_of(codec: str) -> None:
    """An AVI has no time stamps: how late is told by what lies before the sound, and by the length that it states."""
    _, _, warnings = decode(stamped("avi", codec, 44100, [2.0, 3.0], with_video=True))
    assert len(warnings) == 1 and "does not tell when its sound" in warnings[0]


@pytest.mark.parametrize("codec", ["libmp3lame", "ac3"])
def test_an_avi_whose_sound_has_a_gap_is_told_of(codec: str) -> None:
    _, _, warnings = decode(stamped("avi", codec, 44100, [0.0, 3.0], with_video=True))
    assert len(warnings) == 1 and "does not tell when its sound" in warnings[0]


@pytest.mark.parametrize("codec", ["libmp3lame", "pcm_s16le", "ac3", "eac3", "vorbis", "adpcm_ms"])
@pytest.mark.parametrize("with_video", [True, False])
def test_an_avi_in_order_is_as_long_as_its_sound(codec: str, with_video: bool) -> None:
    samples, rate, warnings = decode(recording("avi", codec, 44100, "stereo", with_video=with_video))
    assert abs(len(samples) / rate - 3.0) < 0.1
    assert warnings == []


def test_silence_that_is_put_in_does_not_click() -> None:
    wave = tone(1.0, 16000)
    samples, _, _ = decode(stamped("matroska", "pcm_s16le", 16000, [0.0, 3.1]))
    assert np.abs(np.diff(samples)).max() < 1.5 * np.abs(np.diff(wave)).max()


def test_the_pauses_of_a_phone_are_silence() -> None:
    """AMR with discontinuous transmission: a packet of comfort noise, then packets without data."""
    speech, noise, nothing = b"\x3c" + bytes(31), b"\x44" + bytes(5), b"\x7c"
    data = b"#!AMR\n" + (50 * speech + noise + 49 * nothing) * 2 + 50 * speech
    samples, rate, warnings = decode(data)
    assert abs(len(samples) / rate - 5.0) < 0.01 and warnings == []


def test_a_time_stamp_that_lies_does_not_become_an_hour() -> None:
    samples, rate, warnings = decode(stamped("matroska", "pcm_s16le", 16000, [0.0, 3600.0]))
    assert len(samples) / rate < 2.1
    assert len(warnings) == 1 and "jump by" in warnings[0]


def test_plain_formats_know_no_gaps() -> None:
    samples, rate, warnings = decode(recording("wav", "pcm_s16le", 16000, duration_s=1.0))
    assert len(samples) == rate and warnings == []


def test_jitter_and_overlaps_put_nothing_in() -> None:
    rng = np.random.default_rng(0)
    line = Timeline()
    assert sum(line.gap_s(n * 0.02 + rng.uniform(-0.03, 0.03), None, 0.02) for n in range(500)) == 0.0


def test_single_losses_add_up_to_the_time_that_they_took() -> None:
    line = Timeline()
    frames = [n for n in range(1000) if n % 10]
    filled_s = sum(line.gap_s(n * 0.02, None, 0.02) for n in frames)
    assert abs(filled_s - 0.02 * (1000 - len(frames))) <= 0.12


def test_a_clock_that_is_set_back_counts_from_there() -> None:
    line = Timeline()
    for start in (0, 0, 7):
        assert sum(line.gap_s(start + n * 0.02, None, 0.02) for n in range(50)) == pytest.approx(6.0 if start else 0.0)


def test_all_silence_together_is_bounded() -> None:
    line = Timeline()
    filled_s = sum(line.gap_s(n * 50.0, None, 0.02) for n in range(100))
    assert 0 < filled_s <= MAX_SILENCE_S
    assert len(line.warnings) == 1
