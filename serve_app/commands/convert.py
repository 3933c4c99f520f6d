"""`seedvc convert`: one recording into another voice, in this process or on a server."""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from serve_app.commands import UserMistake, note, say
from serve_app.commands.progress import Progress
from serve_app.commands.remote import Server
from serve_app.commands.sources import Readable, Source, is_readable
from webrtc.files.formats import OUTPUT_FORMATS, OutputFormat

if TYPE_CHECKING:
    from stages import LocalStages, Voice
    from stages.recording import LiveRecordingStream, RecordingStream
    from stages.types import Samples

FORMAT_OF = {
    ".wav": "wav_22050",
    ".mp3": "mp3_44100_128",
    ".ogg": "opus_48000_96",
    ".opus": "opus_48000_96",
    ".pcm": "pcm_22050",
    ".ulaw": "ulaw_8000",
    ".alaw": "alaw_8000",
}
_READ_BYTES = 1 << 16


def run(args: argparse.Namespace) -> None:
    """Converts, writes the result, and says how long it took."""
    source, out = Source(args.source), Path(args.out)
    if Path(args.voice).is_file() and not os.access(args.voice, os.R_OK):
        raise UserMistake(f"cannot read {args.voice}: permission denied")
    if out.suffix.lower() not in FORMAT_OF:
        raise UserMistake(f"the extension of --out names the format: {', '.join(FORMAT_OF)}; got {out.name}")
    if not out.parent.is_dir():
        raise UserMistake(f"there is no folder {out.parent} to write {out.name} into")
    fmt = OUTPUT_FORMATS[FORMAT_OF[out.suffix.lower()]]
    began_s = time.perf_counter()
    seed = (_remote if args.server else _local)(args, source, out, fmt)
    say(f"wrote {out} in {time.perf_counter() - began_s:.1f} s (seed {seed})")


def _local(args: argparse.Namespace, source: Source, out: Path, fmt: OutputFormat) -> int:
    """Converts in this process, in bounded memory; the seed."""
    reference = reference_of(args.voice)
    from configs import ConfigError
    from stages import BadAudio, WeightsError, load, set_threads
    from webrtc.files import NotAudio, encode_file

    # More threads gain little on networks of this size, and one busy core holds all of them up.
    set_threads(max(1, (os.cpu_count() or 1) // 2))
    seed: int = secrets.randbits(32) if args.seed is None else args.seed
    try:
        stages = load(args.preset)
        voice = made_voice(stages, reference)
        with _written(out) as file, Progress("converting", source.size_bytes) as progress:
            encode_file(_waves(stages, voice, _decoded(source, progress), seed, args), fmt, file)
    except (BadAudio, NotAudio, ConfigError, WeightsError) as error:
        raise UserMistake(str(error)) from error
    return seed


def _waves(
    stages: LocalStages,
    voice: Voice,
    source: Iterator[tuple[Samples, int]],
    seed: int,
    args: argparse.Namespace,
) -> Iterator[Samples]:
    """The converted sound, as it gets ready."""
    from stages.local import drain

    stream: RecordingStream | LiveRecordingStream | None = None
    for samples, rate in _cleaned(source) if args.remove_background_noise else source:
        if stream is None:
            open_stream = stages.streams.live_recording if args.live else stages.streams.recording
            stream = open_stream(voice, sample_rate=rate, seed=seed, steps=args.steps)
        yield from drain(partial(stream.push, samples))
    assert stream is not None, "a decoder that finds nothing raises"
    yield from drain(stream.finish)


def _cleaned(source: Iterator[tuple[Samples, int]]) -> Iterator[tuple[Samples, int]]:
    """The same sound without the noise in it."""
    from stages.denoise import NoiseRemover

    remover: NoiseRemover | None = None
    for samples, rate in source:
        remover = remover or NoiseRemover(rate)
        yield remover.push(samples), rate
    assert remover is not None, "a decoder that finds nothing raises"
    yield remover.push(np.zeros(0, np.float32), last=True), rate


def _decoded(source: Source, progress: Progress | None = None) -> Generator[tuple[Samples, int]]:
    """The sound of a recording, piece by piece."""
    from webrtc.files import RecordingDecoder

    with source.opened() as file, RecordingDecoder() as decoder:
        try:
            while data := file.read(_READ_BYTES):
                yield from decoder.feed(data)
                if progress is not None:
                    progress.advance(len(data))
            yield from decoder.finish()
        except GeneratorExit:  # the caller has enough of it
            tell(decoder.warnings)
            raise
        tell(decoder.warnings)


def reference_of(wanted: str) -> Source:
    """The recording of a premade voice by id or name, or the recording that was given."""
    from serve_app.voices.premade import premade_recording, premade_records

    if is_readable(Path(wanted)):
        return Source(wanted)
    records = list(premade_records())
    for record in records:
        if wanted.casefold() in (record.voice_id.casefold(), record.name.casefold()):
            return Source(str(premade_recording(record.voice_id)))
    known = ", ".join(record.voice_id for record in records)
    raise UserMistake(f"{wanted!r} is neither a recording nor a premade voice; those are: {known}")


def made_voice(stages: LocalStages, reference: Source) -> Voice:
    """The voice of a recording, of which only the searched beginning is read."""
    from stages.reference import SEARCHED_S

    pieces: list[Samples] = []
    taken_s = 0.0
    with closing(_decoded(reference)) as sound:
        for samples, rate in sound:
            pieces.append(samples)
            taken_s += len(samples) / rate
            if taken_s > SEARCHED_S:
                break
    voice, warnings, _ = stages.make_voice(np.concatenate(pieces), rate)
    tell(warnings)
    return voice


def _remote(args: argparse.Namespace, source: Source, out: Path, fmt: OutputFormat) -> int:
    """Converts on a server; the seed."""
    fields = {name: str(value) for name in ("steps", "seed") if (value := getattr(args, name)) is not None}
    if args.remove_background_noise:
        fields["remove_background_noise"] = "true"
    query = {"output_format": fmt.name, "live": str(args.live).lower()}
    with (
        Server(args.server) as server,
        server.voice(args.voice) as (voice_id, warnings),
        Progress("uploading", source.size_bytes) as progress,
        source.opened() as file_in,
        _written(out) as file,
        server.request(
            "POST",
            f"/v1/speech-to-speech/{voice_id}",
            params=query,
            data=fields,
            files={"audio": (source.name, Upload(file_in, progress))},
        ) as answer,
    ):
        for data in answer.iter_bytes():
            file.write(data)
        tell([*warnings, *answer.headers.get_list("x-seedvc-warning")])
        return int(answer.headers["x-seedvc-seed"])


class Upload:
    """A recording to upload, with progress. It tells no length, so the request is sent in chunks, as for a pipe."""

    def __init__(self, file: Readable, progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`."""
        data = self._file.read(size)
        self._progress.advance(len(data))
        return data


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name only when it is complete."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserMistake(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def tell(warnings: list[str]) -> None:
    """Prints the warnings to standard error."""
    for warning in warnings:
        note(f"note: {warning}")
