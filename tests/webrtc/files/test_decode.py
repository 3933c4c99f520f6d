"""Uploads of every kind: what decodes, how early, in whatever pieces, and what is refused."""

import gc
import resource
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.webrtc.files.recordings import (
    TONE_HZ,
    add_audio_stream,
    film_without_sound,
    float_wav,
    peak_hz,
    recording,
    silence,
    stereo_wav,
    tone,
    wav,
)
from webrtc.files import OUTPUT_FORMATS, NotAudio, RecordingDecoder, RecordingEncoder, decode_file
from webrtc.files.codecs import Samples

# name -> (container, codec, sample rate, layout)
RECORDINGS = {
    "wav u8": ("wav", "pcm_u8", 8000, "mono"),
    "wav s16": ("wav", "pcm_s16le", 16000, "mono"),
    "wav s24 96 kHz 5.1": ("wav", "pcm_s24le", 96000, "5.1"),
    "wav s32": ("wav", "pcm_s32le", 44100, "stereo"),
    "wav float": ("wav", "pcm_f32le", 48000, "stereo"),
    "wav double": ("wav", "pcm_f64le", 48000, "mono"),
    "wav a-law": ("wav", "pcm_alaw", 8000, "mono"),
    "wav mu-law": ("wav", "pcm_mulaw", 8000, "mono"),
    "flac": ("flac", "flac", 44100, "stereo"),
    "mp3": ("mp3", "libmp3lame", 44100, "stereo"),
    "mp3 16 kHz": ("mp3", "libmp3lame", 16000, "mono"),
    "ogg opus": ("ogg", "libopus", 48000, "mono"),
    "ogg vorbis": ("ogg", "vorbis", 44100, "stereo"),
    "webm": ("webm", "libopus", 48000, "mono"),
    "m4a": ("ipod", "aac", 44100, "stereo"),
    "aac": ("adts", "aac", 48000, "mono"),
    "aac 7.1": ("adts", "aac", 48000, "7.1"),
    "flac 7.1": ("flac", "flac", 48000, "7.1"),
    "aiff": ("aiff", "pcm_s16be", 44100, "stereo"),
    "caf": ("caf", "pcm_s16le", 44100, "mono"),
    "mpegts": ("mpegts", "aac", 44100, "mono"),
    "caf alac": ("caf", "alac", 16000, "mono"),
    "mov": ("mov", "alac", 44100, "mono"),
    "3gp": ("3gp", "aac", 16000, "mono"),
    "avi": ("avi", "libmp3lame", 44100, "mono"),
    "asf": ("asf", "pcm_s16le", 44100, "mono"),
    "voc": ("voc", "pcm_u8", 8000, "mono"),
    "nut": ("nut", "pcm_s16le", 44100, "mono"),
    "au": ("au", "pcm_s16be", 44100, "mono"),
    "w64": ("w64", "pcm_s16le", 44100, "mono"),
    "wv": ("wv", "wavpack", 44100, "mono"),
    "tta": ("tta", "tta", 44100, "mono"),
    "rm": ("rm", "ac3", 44100, "mono"),
    "flv": ("flv", "aac", 44100, "mono"),
    "mkv pcm": ("matroska", "pcm_s16le", 44100, "stereo"),
    "aiff float": ("aiff", "pcm_f32be", 44100, "mono"),
    "mpeg": ("mpeg", "mp2", 44100, "mono"),
    "ac3": ("ac3", "ac3", 48000, "stereo"),
    "wav ms adpcm": ("wav", "adpcm_ms", 22050, "stereo"),
    "wav ima adpcm": ("wav", "adpcm_ima_wav", 22050, "stereo"),
    "mov ima adpcm": ("mov", "adpcm_ima_qt", 44100, "mono"),
}


def decode(
    data: bytes, cuts: Iterator[int] | None = None, file_format: str = "other"
) -> tuple[Samples, int, list[str]]:
    with RecordingDecoder(file_format=file_format) as decoder:
        chunks: list[tuple[Samples, int]] = []
        while cuts is not None and data:
            size = next(cuts)
            chunks += decoder.feed(data[:size])
            data = data[size:]
        chunks += [*decoder.feed(data), *decoder.finish()]
        assert {rate for _, rate in chunks} == {chunks[0][1]}
        return np.concatenate([samples for samples, _ in chunks]), chunks[0][1], decoder.warnings


def test_speech_corpora_are_read() -> None:
    """NIST SPHERE: a head of text, 1024 bytes long, then samples."""
    head = "NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {n}\nsample_rate -i 22050\nsample_n_bytes -i 2\n"
    head += "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
    wave = tone(1.0)
    data = head.format(n=len(wave)).encode().ljust(1024) + np.rint(wave * 32767).astype("<i2").tobytes()
    samples, rate, warnings = decode(data)
    assert rate == 22050 and warnings == []
    np.testing.assert_allclose(samples, wave, atol=1e-4)


def random_cuts(seed: int, largest: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(0, largest + 1))


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_tone_comes_back_as_that_tone(name: str) -> None:
    container, codec, sample_rate, layout = RECORDINGS[name]
    samples, rate, warnings = decode(recording(container, codec, sample_rate, layout))
    assert rate == sample_rate
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) / rate - 3.0) < 0.08
    assert abs(peak_hz(samples, rate) - TONE_HZ) < 2
    assert 0.05 < np.abs(samples).max() <= 1.0
    assert warnings == []


@pytest.mark.parametrize("name", RECORDINGS)
def test_any_split_of_the_bytes_gives_the_same_samples(name: str) -> None:
    data = recording(*RECORDINGS[name], duration_s=1.0)
    whole, _, _ = decode(data)
    for seed, largest in enumerate((len(data) // 200 + 1, len(data) // 3)):
        pieces, _, _ = decode(data, random_cuts(seed, largest))
        np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize(
    "name", ["wav s16", "wav float", "wav mu-law", "mp3", "ogg opus", "webm", "aac", "aiff", "wav s24 96 kHz 5.1"]
)
def test_a_growing_upload_sounds_before_its_end(name: str) -> None:
    # An Ogg page is the smallest piece that decodes, and ffmpeg writes pages of a second unless told otherwise.
    options = {"page_duration": "100000"} if name == "ogg opus" else {}
    data = recording(*RECORDINGS[name], muxer_options=options)
    with RecordingDecoder() as decoder:
        first_200_ms = data[: len(data) // 15]
        heard = [
            len(samples)
            for start in range(0, len(first_200_ms), 160)
            for samples, _ in decoder.feed(first_200_ms[start : start + 160])
        ]
        assert sum(heard) > 0


@pytest.mark.parametrize("name", ["wav_16000", "mp3_44100_128", "opus_48000_64", "pcm_16000"])
def test_our_own_streams_decode_as_they_grow_and_without_a_warning(name: str) -> None:
    fmt = OUTPUT_FORMATS[name]
    file_format = "pcm_s16le_16" if fmt.codec == "pcm" else "other"
    with RecordingEncoder(fmt) as encoder, RecordingDecoder(file_format=file_format) as decoder:
        early = list(decoder.feed(encoder.feed(tone(1.0))))
        assert sum(len(samples) for samples, _ in early) / fmt.sample_rate > 0.5
        late = [*decoder.feed(encoder.finish()), *decoder.finish()]
        decoded = np.concatenate([samples for samples, _ in early + late])
        assert abs(len(decoded) / fmt.sample_rate - 1.0) < 0.05
        assert decoder.warnings == []


def test_channels_are_averaged_and_other_chunks_are_no_sound() -> None:
    left, right = tone(0.5), tone(0.5, level=0.25)
    samples, rate = decode_file(stereo_wav(left, right))
    assert rate == 22050
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-4)


def test_raw_samples_need_no_container() -> None:
    numbers = np.array([0, 16384, -32768, 32767], "<i2")
    samples, rate, _ = decode(numbers.tobytes(), random_cuts(0, 1), file_format="pcm_s16le_16")
    assert rate == 16000
    np.testing.assert_allclose(samples, [0, 0.5, -1, 32767 / 32768], atol=1e-7)


def test_the_sound_track_of_a_film_is_taken() -> None:
    samples, rate, _ = decode(recording("mp4", "aac", 44100, with_video=True))
    assert abs(len(samples) / rate - 3.0) < 0.1
    assert abs(peak_hz(samples, rate) - TONE_HZ) < 2


@pytest.mark.parametrize("flags", ["", "faststart", "frag_keyframe+empty_moov"])
def test_an_mp4_decodes_wherever_its_index_stands(flags: str) -> None:
    data = recording("mp4", "aac", 44100, muxer_options={"movflags": flags} if flags else {})
    whole, _, _ = decode(data)
    pieces, _, _ = decode(data, random_cuts(3, 999))
    assert abs(len(whole) / 44100 - 3.0) < 0.06
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize("name", ["mp3", "wav s16", "flac", "wav s24 96 kHz 5.1"])
def test_a_truncated_recording_decodes_as_far_as_it_goes_with_a_warning(name: str) -> None:
    container, codec, sample_rate, layout = RECORDINGS[name]
    data = recording(container, codec, sample_rate, layout)
    samples, rate, warnings = decode(data[: len(data) // 2 + 5], random_cuts(1, 1000))
    assert 1.0 < len(samples) / rate < 1.6
    assert len(warnings) == 1
    assert f"{len(samples) / rate:.1f} s of 3.0 s" in warnings[0] or name == "mp3"
    assert abs(peak_hz(samples, rate) - TONE_HZ) < 3


def test_a_truncated_mp3_without_a_stated_length_is_noticed_too() -> None:
    with RecordingEncoder(OUTPUT_FORMATS["mp3_44100_64"]) as encoder:
        data = encoder.feed(tone()) + encoder.finish()
    samples, rate, warnings = decode(data[: len(data) // 2 + 50])
    assert 1.3 < len(samples) / rate < 1.6
    assert warnings == [f"the recording is damaged or cut off: {len(samples) / rate:.1f} s of it were decoded"]


def test_an_mp3_with_a_damaged_middle_goes_on_behind_it() -> None:
    data = bytearray(recording("mp3", "libmp3lame", 44100))
    data[8000:9000] = bytes(1000)
    samples, rate, _ = decode(bytes(data))
    assert len(samples) / rate > 2.7


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"RIFF", "not_audio"),
        (b"hello, this is a text and no recording\n" * 50, "not_audio"),
        (np.random.default_rng(0).bytes(50_000), "not_audio"),
        (bytes(50_000), "not_audio"),
        (b"\xff\xfb\x90\x44" + bytes(3000), "not_audio"),
        (b"ID3\x04\0\0\0\0\0\x10" + bytes(3000), "not_audio"),
        (b"\0\0\0\x18ftypM4A " + bytes(3000), "not_audio"),
        (recording("wav", "pcm_s16le", 16000)[:44], "not_audio"),
        (float_wav(np.array([0.1, np.nan, 0.1] * 1000, np.float32)), "not_finite"),
        (float_wav(np.array([0.1, np.inf, 0.1] * 1000, np.float32)), "not_finite"),
        pytest.param(recording("ogg", "libopus", 48000)[:60], "not_audio", id="ogg"),  # its serial number is random
    ],
)
def test_what_is_no_recording_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    for cuts in (None, random_cuts(0, 777)):
        with pytest.raises(NotAudio) as refusal:
            decode(data, cuts)
        assert refusal.value.reason == reason
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) > 20


def test_a_film_without_sound_is_refused() -> None:
    with pytest.raises(NotAudio, match="no audio track"):
        decode(film_without_sound())


def test_a_rate_that_changes_half_way_is_refused() -> None:
    chained = b"".join(recording("adts", "aac", rate, duration_s=1.0) for rate in (44100, 32000))
    with pytest.raises(NotAudio, match="44100 Hz to 32000 Hz"):
        decode(chained)


@pytest.mark.parametrize("rate", [3999, 384_001, 2**31 - 1])
@pytest.mark.parametrize("name", ["wav s16", "wav float", "m4a alac", "caf"])
def test_a_rate_that_no_recording_has_is_refused_before_it_sizes_anything(name: str, rate: int) -> None:
    container, codec = {"m4a alac": ("ipod", "alac")}.get(name, RECORDINGS.get(name, ("", ""))[:2])
    data = bytearray(recording(container, codec, 44100, duration_s=0.2))
    if name == "caf":
        struct.pack_into(">d", data, 20, rate)
    elif name == "m4a alac":
        struct.pack_into(">I", data, data.rfind(b"alac") + 28, rate)
    else:
        struct.pack_into("<I", data, 24, rate)
    with pytest.raises(NotAudio, match="4000 to 384000 Hz") as refusal:
        decode(bytes(data))
    assert refusal.value.reason == "rate"


def test_a_voice_message_of_a_phone_is_read() -> None:
    """Opus in CAF, which ffmpeg writes in another way: its index stands behind its sound."""
    data = (Path(__file__).parent / "voice_message.caf").read_bytes()
    samples, rate, warnings = decode(data, random_cuts(0, 999))
    assert abs(len(samples) / rate - 3.02) < 0.03 and warnings == []


def test_of_a_container_with_hundreds_of_tracks_the_first_is_read() -> None:
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format="matroska") as out:
            streams = [add_audio_stream(out, "pcm_s16le", 8000, "mono") for _ in range(200)]
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            out.mux(streams[0].encode(frame))
        data = file.read()
    assert len(decode(data)[0]) == 800


@pytest.mark.parametrize(("channels", "frame_bytes"), [(0, 2), (0, 0), (65535, 65535)])
def test_a_wav_whose_channels_make_no_sense_is_refused(channels: int, frame_bytes: int) -> None:
    form = struct.pack("<HHIIHH", 1, channels, 16000, 32000, frame_bytes, 16)
    with pytest.raises(NotAudio):
        decode(wav(bytes(8000), form))


def test_more_than_eight_channels_are_refused() -> None:
    with pytest.raises(NotAudio, match="16 channels; allowed are up to 8"):
        decode(recording("wav", "pcm_s16le", 48000, "hexadecagonal"))


def test_a_title_in_another_encoding_does_not_matter() -> None:
    data = recording("flac", "flac", 44100, duration_s=0.5)
    samples, rate, _ = decode(data.replace(b"encoder=", b"\xff\xfe\xf8oder="))
    assert len(samples) / rate == 0.5


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_damaged_upload_decodes_or_is_refused_and_nothing_else(name: str) -> None:
    original = recording(*RECORDINGS[name], duration_s=0.3)
    rng = np.random.default_rng(0)
    for _ in range(25):
        data = bytearray(original)
        for at in rng.integers(0, min(len(data), 400), rng.integers(1, 12)):
            data[at : at + rng.integers(3)] = rng.bytes(int(rng.integers(4)))
        try:
            samples, rate, _ = decode(bytes(data), random_cuts(0, 2000))
        except NotAudio as refusal:
            assert str(refusal)
        else:
            assert rate > 0
            assert np.abs(samples).max() <= 1.0


def test_a_playlist_cannot_make_the_server_open_files(tmp_path: Path) -> None:
    target = tmp_path / "secret.wav"
    target.write_bytes(recording("wav", "pcm_s16le", 16000))
    playlists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{target}'\n",
    )
    for playlist in playlists:
        with pytest.raises(NotAudio):
            decode(playlist.encode())


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decode-upload"]


def test_a_decoder_left_half_way_leaves_no_thread() -> None:
    data = recording("mp3", "libmp3lame", 44100)
    with RecordingDecoder() as fed, RecordingDecoder() as half_taken, RecordingDecoder():
        list(fed.feed(data[:5000]))
        next(iter(half_taken.feed(data)))
        assert len(decoding_threads()) == 2
    assert decoding_threads() == []
    fed.close()


def test_a_forgotten_decoder_takes_its_thread_with_it() -> None:
    decoder = RecordingDecoder()
    list(decoder.feed(recording("mp3", "libmp3lame", 44100)[:5000]))
    (thread,) = decoding_threads()
    del decoder
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_an_unknown_file_format_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="pcm_s16le_16"):
        RecordingDecoder(file_format="mp3")


@pytest.mark.parametrize("name", ["flac", "m4a"])
def test_a_ten_minute_recording_is_never_held_whole(name: str) -> None:
    """Silence packs so well that decoding it at once would take 100 MB; the pieces are taken one by one instead."""
    container, codec, sample_rate, layout = RECORDINGS[name]
    data = silence(container, codec, sample_rate, 600)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoded_s = 0.0
    with RecordingDecoder() as decoder:
        for start in range(0, len(data), 65536):
            for samples, rate in decoder.feed(data[start : start + 65536]):
                decoded_s += len(samples) / rate
        for samples, rate in decoder.finish():
            decoded_s += len(samples) / rate
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert abs(decoded_s - 600) < 0.2
    assert grown_kb < 30_000


def test_channels_that_come_and_go_are_told_of_once() -> None:
    left = tone(0.7, 44100)
    with tempfile.NamedTemporaryFile(suffix=".mp3") as file:
        with av.open(file.name, "w", format="mp3") as out:
            stream = add_audio_stream(out, "libmp3lame", 44100, "stereo")
            size = stream.codec_context.frame_size
            for at in range(0, len(left) - size, size):
                part = left[at : at + size]
                frame = av.AudioFrame.from_ndarray(np.stack([part, -part]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, at
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        stereo = file.read()
    mono = recording(
        "mp3", "libmp3lame", 44100, duration_s=0.2, muxer_options={"write_xing": "0", "id3v2_version": "0"}
    )
    _, _, warnings = decode((stereo + mono) * 12)
    assert len([warning for warning in warnings if "cancel" in warning]) == 1


def test_a_recording_in_pieces_of_one_sample_is_too_complex() -> None:
    def element(name: str, data: bytes) -> bytes:
        return bytes.fromhex(name) + b"\x01" + len(data).to_bytes(7, "big") + data

    def number(name: str, value: int) -> bytes:
        return element(name, value.to_bytes(8, "big"))

    sound = element("E1", element("B5", struct.pack(">d", 4000.0)) + number("9F", 1) + number("6264", 8))
    track = number("D7", 1) + number("73C5", 1) + number("83", 2) + element("86", b"A_PCM/INT/LIT") + sound
    block = b"\x81\0\0\x02" + bytes([255, *[1] * 255]) + b"\x80" * 256  # 256 frames in one block (lacing)
    clusters = element("1F43B675", number("E7", 0) + element("A3", block)) * 100
    head = element("1A45DFA3", element("4282", b"matroska") + number("4287", 4) + number("4285", 2))
    with pytest.raises(NotAudio, match="pieces of less than 1/2000 s"):
        decode(head + element("18538067", element("1654AE6B", element("AE", track)) + clusters))
