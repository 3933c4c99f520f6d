"""Every output format: it round-trips, its bytes do not depend on the pieces, and they come early."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from tests.webrtc.files.recordings import TONE_HZ, peak_hz, tone
from webrtc.files import OUTPUT_FORMATS, OutputFormat, RecordingEncoder, decode_file, encode_file
from webrtc.files.codecs import Samples

EVERY_FORMAT = list(OUTPUT_FORMATS.values())


def encode(samples: Samples, fmt: OutputFormat, cuts: list[int] | None = None) -> bytes:
    with RecordingEncoder(fmt) as encoder:
        return b"".join(map(encoder.feed, np.split(samples, cuts or []))) + encoder.finish()


def decode(data: bytes, fmt: OutputFormat) -> Samples:
    """By ffmpeg directly, as a client would; raw formats are told apart by name."""
    raw = {"pcm": "s16le", "ulaw": "mulaw", "alaw": "alaw"}.get(fmt.codec)
    options = {"sample_rate": str(fmt.sample_rate), "ch_layout": "mono"} if raw else {}
    with av.open(io.BytesIO(data), "r", format=raw, container_options=options) as container:
        stream = container.streams.audio[0]
        assert stream.sample_rate == fmt.sample_rate
        assert stream.channels == 1
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]
    full_scale = 32768 if frames[0].dtype == np.int16 else 1
    samples: Samples = np.concatenate(frames).astype(np.float32) / np.float32(full_scale)
    return samples


def test_the_names_are_those_of_the_api() -> None:
    assert len(OUTPUT_FORMATS) == 28
    counts = {codec: sum(fmt.codec == codec for fmt in EVERY_FORMAT) for codec in ("mp3", "opus", "pcm", "wav")}
    assert counts == {"mp3": 7, "opus": 5, "pcm": 7, "wav": 7}
    assert OUTPUT_FORMATS["mp3_44100_128"] == OutputFormat("mp3_44100_128", "mp3", 44100, 128_000, "audio/mpeg", "mp3")


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_a_tone_round_trips(fmt: OutputFormat) -> None:
    decoded = decode(encode(tone(), fmt), fmt)
    assert abs(len(decoded) / fmt.sample_rate - 3.0) < 0.05
    assert abs(peak_hz(decoded, fmt.sample_rate) - TONE_HZ) < 1
    assert 0.45 < np.abs(decoded).max() < 0.6
    # The sound begins where the source's did: no codec delay is left in front.
    loud = np.flatnonzero(np.abs(decoded) > 0.25)
    assert loud[0] / fmt.sample_rate < 0.005


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_any_split_of_the_samples_gives_the_same_bytes(fmt: OutputFormat) -> None:
    samples = tone(1.0) + np.random.default_rng(0).normal(0, 0.01, 22050).astype(np.float32)
    whole = encode(samples, fmt)
    for count in (3, 60):
        cuts = sorted(np.random.default_rng(count).integers(0, len(samples), count).tolist())
        assert encode(samples, fmt, cuts) == whole


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_bytes_come_before_the_end(fmt: OutputFormat) -> None:
    with RecordingEncoder(fmt) as encoder:
        sent = b"".join(encoder.feed(tone(0.02)) for _ in range(25))
        decoded = decode(sent, fmt)
        assert len(decoded) / fmt.sample_rate > 0.2


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_a_whole_file_states_its_exact_length(fmt: OutputFormat) -> None:
    out = io.BytesIO()
    encode_file(np.split(tone(), 7), fmt, out)
    data = out.getvalue()
    decoded = decode(data, fmt)
    assert abs(len(decoded) - 3.0 * fmt.sample_rate) <= 1
    if fmt.codec in ("wav", "mp3"):
        with av.open(io.BytesIO(data), "r") as container:
            assert container.duration is not None
            assert abs(container.duration / av.time_base - 3.0) < 0.03


@pytest.mark.parametrize("fmt", [fmt for fmt in EVERY_FORMAT if fmt.codec == "mp3"], ids=lambda fmt: fmt.name)
def test_mp3_has_the_bit_rate_of_its_name(fmt: OutputFormat) -> None:
    assert fmt.bit_rate is not None
    frame_s = (1152 if fmt.sample_rate >= 32000 else 576) / fmt.sample_rate
    with av.open(io.BytesIO(encode(tone(), fmt)), "r") as container:
        bit_rates = [packet.size * 8 / frame_s for packet in container.demux(audio=0) if packet.size]
    assert abs(np.mean(bit_rates) - fmt.bit_rate) < 0.005 * fmt.bit_rate


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_what_is_too_loud_is_clipped_not_wrapped(fmt: OutputFormat) -> None:
    decoded = decode(encode(np.full(22050, 1.5, np.float32), fmt), fmt)
    middle = decoded[len(decoded) // 4 : len(decoded) // 2]
    if fmt.codec != "opus":  # Opus takes a constant for no sound, rightly
        assert middle.min() > 0.8


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_silence_stays_silent_and_nothing_stays_short(fmt: OutputFormat) -> None:
    assert np.abs(decode(encode(np.zeros(22050, np.float32), fmt), fmt)).max() < 1e-3
    assert len(encode(np.zeros(0, np.float32), fmt)) < 700


def test_an_encoder_left_half_way_can_be_closed() -> None:
    for fmt in EVERY_FORMAT:
        encoder = RecordingEncoder(fmt)
        encoder.feed(tone(0.1))
        encoder.close()
        encoder.close()


def test_files_are_read_from_paths_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    with path.open("wb") as file:
        encode_file([tone()], OUTPUT_FORMATS["wav_22050"], file)
    from_path, rate = decode_file(path)
    from_bytes, _ = decode_file(path.read_bytes())
    assert rate == 22050
    np.testing.assert_array_equal(from_path, from_bytes)
    np.testing.assert_allclose(from_path, tone(), atol=1e-4)
