"""Recordings that the tests of the file codecs decode: a tone in many containers."""

import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from webrtc.files.codecs import Samples

TONE_HZ = 440.0


def tone(duration_s: float = 3.0, sample_rate: int = 22050, level: float = 0.5) -> Samples:
    """A sine of 440 Hz."""
    seconds = np.arange(round(duration_s * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * TONE_HZ * seconds)).astype(np.float32)


def peak_hz(samples: Samples, sample_rate: int) -> float:
    """The frequency at which the spectrum is highest."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * sample_rate / len(samples))


def recording(
    container: str,
    codec: str,
    sample_rate: int,
    layout: str = "mono",
    *,
    duration_s: float = 3.0,
    muxer_options: dict[str, str] | None = None,
    with_video: bool = False,
) -> bytes:
    """A tone in a container, written by ffmpeg."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        with av.open(path, "w", format=container, options=muxer_options or {}) as out:
            if with_video:
                video = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
            stream = add_audio_stream(out, codec, sample_rate, layout)
            resampler = av.AudioResampler(
                stream.codec_context.format, layout, sample_rate, frame_size=stream.codec_context.frame_size or 1024
            )
            frame = av.AudioFrame.from_ndarray(tone(duration_s)[None], format="flt", layout="mono")
            frame.sample_rate = 22050
            if with_video:
                for _ in range(round(25 * duration_s)):
                    out.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
                out.mux(video.encode(None))
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
        return path.read_bytes()


def stamped(
    container: str,
    codec: str,
    sample_rate: int,
    starts_s: list[float],
    *,
    with_video: bool = False,
    piece_s: float = 1.0,
) -> bytes:
    """Pieces of a tone, `piece_s` each, that start where their time stamps say; pictures from 0 to the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        with av.open(path, "w", format=container) as out:
            if with_video:
                codec_of = {"webm": "libvpx", "flv": "flv"}
                name = codec_of.get(container, "mpeg4")
                video = cast(av.VideoStream, out.add_stream(name, rate=5, width=64, height=64, pix_fmt="yuv420p"))
            stream = add_audio_stream(out, codec, sample_rate, "mono")
            context = stream.codec_context
            if with_video:
                for _ in range(round(5 * (starts_s[-1] + piece_s))):
                    out.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
                out.mux(video.encode(None))
            size = context.frame_size or 1024
            for start_s in starts_s:
                sound = tone(piece_s, sample_rate)
                for at in range(0, len(sound) - size + 1, size):
                    frame = av.AudioFrame.from_ndarray(sound[None, at : at + size], format="flt", layout="mono")
                    frame.sample_rate = sample_rate
                    for piece in av.AudioResampler(context.format, "mono", sample_rate).resample(frame):
                        piece.pts = round(start_s * sample_rate) + at
                        piece.time_base = Fraction(1, sample_rate)
                        out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
        return path.read_bytes()


def add_audio_stream(out: av.container.OutputContainer, codec: str, sample_rate: int, layout: str) -> av.AudioStream:
    """An encoder in an open container; experimental, since ffmpeg calls its Vorbis encoder that."""
    stream = out.add_stream(codec, rate=sample_rate, layout=layout, options={"strict": "experimental"})
    assert isinstance(stream, av.AudioStream)
    stream.codec_context.open()
    return stream


def silence(container: str, codec: str, sample_rate: int, duration_s: int) -> bytes:
    """Mono silence in a container."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container) as out:
            stream = add_audio_stream(out, codec, sample_rate, "mono")
            size = stream.codec_context.frame_size or 4096
            for start in range(0, duration_s * sample_rate, size):
                frame = av.AudioFrame(stream.codec_context.format.name, "mono", size)
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                frame.sample_rate, frame.pts = sample_rate, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return file.read()


def film_without_sound() -> bytes:
    """Ten black pictures."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format="matroska") as out:
            video = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
            for _ in range(10):
                out.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
            out.mux(video.encode(None))
        return file.read()


def float_wav(samples: NDArray[np.floating], sample_rate: int = 22050, *, n_bytes: int = 4) -> bytes:
    """A float WAV of samples (T,) or (T, C), written by hand so that it may hold anything."""
    sound = samples.astype(f"<f{n_bytes}").tobytes()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    frame = channels * n_bytes
    return wav(sound, struct.pack("<HHIIHH", 3, channels, sample_rate, sample_rate * frame, frame, 8 * n_bytes))


def wav(sound: bytes, form: bytes, *, sound_bytes: int | None = None) -> bytes:
    """Any WAV: the sound behind a form, with the length stated that is there, or another."""
    stated = len(sound) if sound_bytes is None else sound_bytes
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", stated) + sound
    return b"RIFF" + struct.pack("<I", len(body)) + body


def multi_wav(samples: NDArray[np.floating], sample_rate: int = 22050) -> bytes:
    """A 16-bit WAV of samples (C, T)."""
    channels = len(samples)
    sound = np.rint(samples.T * 32767).astype("<i2").tobytes()
    return wav(sound, struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * channels * 2, channels * 2, 16))


def stereo_wav(left: Samples, right: Samples, sample_rate: int = 22050) -> bytes:
    """A 16-bit stereo WAV with a LIST chunk before its sound and another one behind it."""
    sound = np.rint(np.stack([left, right], axis=1) * 32767).astype("<i2").tobytes()
    note = b"LIST" + struct.pack("<I", 4) + b"INFO"
    out = io.BytesIO()
    form = struct.pack("<HHIIHH", 1, 2, sample_rate, sample_rate * 4, 4, 16)
    out.write(b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(form)) + form + note)
    out.write(b"data" + struct.pack("<I", len(sound)) + sound + note)
    return out.getvalue()
