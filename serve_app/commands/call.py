"""`seedvc call`: speak into a microphone, or play a file, and be heard in another voice, live."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from serve_app.commands import UserMistake, note, say
from serve_app.commands.card_side import CardSide, Hold, end_of_call, sound, until_ended
from serve_app.commands.devices import Device, find, listed
from serve_app.commands.soundcard import Recording, WavFile
from webrtc.files import NotAudio


def run(args: argparse.Namespace) -> None:
    """Calls until the recording or the call ends, or Ctrl-C is pressed; `--devices` only lists."""
    if args.devices:
        for line in listed():
            say(line)
        return
    _check(args)
    source = Path(args.source) if args.source else None
    out = Path(args.out) if args.out else None
    _check_files(source, out)
    microphone = None if source is not None else find("microphone", args.microphone)
    speaker = None if out is not None else find("speaker", args.speaker)
    if args.local:
        from serve_app.commands.local_call import opened
    else:
        from serve_app.commands.server_call import opened
    with ExitStack() as stack:
        hold = stack.enter_context(opened(args))
        file = None if out is None else stack.enter_context(_written(out))
        try:
            asyncio.run(_call(hold, source, file, microphone, speaker))
        except NotAudio as error:
            raise UserMistake(str(error)) from error
    if out is not None:
        say(f"wrote {out}")


def _check(args: argparse.Namespace) -> None:
    if args.voice is None:
        raise UserMistake("a call needs --voice: the name or id of a voice, or a recording of one")
    if args.local and args.server is not None:
        raise UserMistake("--local converts in this process, --server on another machine; give one of them")
    if not args.local and args.preset is not None:
        raise UserMistake("--preset goes with --local; a server has a preset of its own")


def _check_files(source: Path | None, out: Path | None) -> None:
    if source is not None and source.exists() and not source.is_file():
        raise UserMistake(f"{source} is no file; --in takes a recording that is there as a whole")
    if source is not None and not source.is_file():
        raise UserMistake(f"there is no file {source}")
    if source is not None and not os.access(source, os.R_OK):
        raise UserMistake(f"cannot read {source}: permission denied")
    if out is not None and out.suffix.lower() != ".wav":
        raise UserMistake(f"--out takes a .wav file; got {out.name}")
    if out is not None and not out.parent.is_dir():
        raise UserMistake(f"there is no folder {out.parent} to write {out.name} into")


async def _call(
    hold: Hold, source: Path | None, file: WavFile | None, microphone: Device | None, speaker: Device | None
) -> None:
    ended = end_of_call()
    card_side = CardSide(None if source is None else Recording(source), file, ended)
    async with sound(card_side, microphone, speaker):
        if microphone is not None or speaker is not None:
            note(f"Ctrl-C hangs up; the sound devices add {card_side.latency_s * 1000:.0f} ms")
        await until_ended(ended, hold(card_side))


@contextlib.contextmanager
def _written(path: Path) -> Iterator[WavFile]:
    try:
        file = WavFile(path)
    except OSError as error:
        raise UserMistake(f"cannot write {path}: {error.strerror}") from error
    with file:
        yield file
