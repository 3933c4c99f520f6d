"""The `seedvc` command: reads the command line and calls the subcommand, whose module is imported only then."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from serve_app.commands import DEFAULT_KEYS, DEFAULT_SERVER, UserMistake, note
from serve_app.commands.ending import ended_by_signals
from serve_app.names import shown


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, shown(f"{self.prog}: {message}; see {self.prog} --help") + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 where it worked, 2 for a mistake of the user, which one sentence names."""
    args = parser().parse_args(arguments)
    # Before numpy is there: its second thread waits for work in a loop, and takes a core from the networks.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    command = importlib.import_module(f"serve_app.commands.{args.command}")
    try:
        with ended_by_signals():
            command.run(args)
    except UserMistake as mistake:
        note(f"seedvc: {mistake}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> Parser:
    """All subcommands; each is the module of its name in `serve_app.commands`."""
    root = Parser(prog="seedvc", description="Convert recordings into another voice, here or on a server.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    convert = commands.add_parser("convert", help="convert a recording")
    convert.add_argument(
        "source", metavar="SOURCE", help="the recording: any common audio file, or - for the standard input"
    )
    convert.add_argument("--voice", required=True, help="name or id of a voice, or a recording of one")
    convert.add_argument("--out", required=True, metavar="FILE", help="what to write; its extension names the format")
    convert.add_argument("--server", metavar="URL", help="convert there; without it, in this process")
    convert.add_argument("--preset", default="tiny", help="preset, or its YAML file (default: tiny); not with --server")
    convert.add_argument("--steps", type=_whole(1, 100), help="sampling steps (default: the preset's)")
    convert.add_argument("--seed", type=_whole(0, 2**32 - 1), help="same seed, same sound (default: drawn)")
    convert.add_argument("--remove-background-noise", action="store_true", help="clean the recording first")
    convert.add_argument("--live", action="store_true", help="take the path of a call")

    voices = commands.add_parser("voices", help="list, add and remove the voices of a server; copy a store")
    actions = voices.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    listing = actions.add_parser("list", help="list the voices")
    adding = actions.add_parser("add", help="add a voice")
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("files", metavar="FILE", nargs="+", help="recordings of the voice; 10 s of speech or more")
    adding.add_argument("--description")
    adding.add_argument("--remove-background-noise", action="store_true", help="clean the recordings first")
    adding.add_argument("--consent", metavar="TEXT", help="state that the speaker agreed; kept with the voice")
    removing = actions.add_parser("remove", help="remove a voice")
    removing.add_argument("voice", metavar="VOICE", help="its id or name")
    copying = actions.add_parser("copy", help="copy all voices of one store into another; run again, it goes on")
    copying.add_argument("source", metavar="FROM", help="a folder, or s3://bucket/prefix")
    copying.add_argument("target", metavar="TO", help="the same")
    for action in (listing, adding, removing):
        action.add_argument("--server", metavar="URL", default=DEFAULT_SERVER, help=f"default: {DEFAULT_SERVER}")

    keys = commands.add_parser("keys", help="make, list and revoke the keys of those who may use a server")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    making = actions.add_parser("add", help="make a key; it is printed once, and kept nowhere")
    making.add_argument("name", metavar="NAME", help="of its holder, for you: letters, digits, '.', '_' and '-'")
    making.add_argument("--calls", type=_whole(0, 10**9), metavar="N", help="at once")
    making.add_argument("--minutes-a-day", type=_whole(0, 10**9), metavar="N", help="of calls")
    making.add_argument("--voices", type=_whole(0, 10**9), metavar="N", help="of their own")
    making.add_argument("--requests-a-second", type=_whole(1, 10**6), metavar="N")
    making.add_argument("--upload-mb", type=_whole(0, 10**9), metavar="N", help="of uploads a day")
    showing = actions.add_parser("list", help="list the keys by their names")
    revoking = actions.add_parser("revoke", help="revoke a key: its holder's calls end within seconds")
    revoking.add_argument("name", metavar="NAME")
    for action in (making, showing, revoking):
        action.add_argument(
            "--keys", metavar="PLACE", default=DEFAULT_KEYS,
            help=f"as access.keys of the Serve config: a file, or redis://host:port/database (default: {DEFAULT_KEYS})",
        )  # fmt: skip

    call = commands.add_parser("call", help="speak live in another voice")
    call.add_argument("--voice", help="name or id of a voice, or a recording of one")
    where = f"default: {DEFAULT_SERVER}"
    call.add_argument("--server", metavar="URL", help=f"convert there ({where}); comes back after a lost connection")
    call.add_argument("--local", action="store_true", help="convert in this process, with no server")
    call.add_argument("--preset", help="preset, or its YAML file (default: tiny); with --local only")
    call.add_argument("--mode", choices=("lowest", "constant"), help="delay: as short as it goes, or never varying")
    call.add_argument("--block-ms", type=_whole(20, 10000), metavar="MS", help="size of a block (default: the mode's)")
    call.add_argument("--steps", type=_whole(1, 100), help="sampling steps (default: the preset's)")
    call.add_argument("--hold", action="store_true", help="keep block size and steps even where blocks are lost")
    call.add_argument("--bypass", action="store_true", help="be heard in your own voice")
    call.add_argument("--in", dest="source", metavar="FILE", help="say a recording instead of what a microphone hears")
    call.add_argument("--out", metavar="FILE", help="write a .wav file instead of playing on a speaker")
    call.add_argument("--microphone", metavar="NAME", help="input device (default: the system's)")
    call.add_argument("--speaker", metavar="NAME", help="output device (default: the system's)")
    call.add_argument("--devices", action="store_true", help="only list the microphones and speakers")

    serve = commands.add_parser("serve", help="serve a Serve config on this machine until Ctrl-C")
    serve.add_argument(
        "config", metavar="CONFIG", nargs="?", help="its YAML file (default: local.yaml of this package)"
    )
    serve.add_argument("--metrics-port", type=_whole(1, 65535), metavar="PORT", help="for Prometheus, on 127.0.0.1")
    serve.add_argument("--lan", action="store_true", help="let the local network in: by HTTPS, with a key")
    serve.add_argument("--stand-ins", action="store_true", help="with a Redis and an S3 server of its own, to try both")
    serve.add_argument("--certificate", type=Path, metavar="FILE", help="PEM, for --lan (default: one that it makes)")
    serve.add_argument("--private-key", type=Path, metavar="FILE", help="of that certificate, PEM, unencrypted")

    check = commands.add_parser("check", help="tell whether a Serve config can work, and what this machine carries")
    check.add_argument("config", metavar="CONFIG", nargs="?", help="the Serve config's YAML file")
    check.add_argument("--machine", action="store_true", help="measure a block of calls on this machine")
    check.add_argument("--preset", default="tiny", help="preset, or its YAML file, for --machine (default: tiny)")

    commands.add_parser("presets", help="list the presets")

    pull = commands.add_parser("pull", help="fetch the weights of a preset from the model hub")
    pull.add_argument("preset", metavar="PRESET", help="preset, or its YAML file")
    pull.add_argument("--folder", metavar="DIR", help="where to (default: where the preset looks for them)")

    plan = commands.add_parser("plan", help="show the sizes and delays of a preset")
    plan.add_argument("preset", metavar="PRESET", nargs="?", default="tiny", help="preset, or its YAML file")

    report = commands.add_parser("report", help="print what a report of a fault needs: versions, machine, config")
    report.add_argument("--config", metavar="FILE", help="the Serve config in use; secrets are left out")
    return root


class _whole:  # noqa: N801 - reads as a type in `type=`, which argparse names in its messages
    """A whole number within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        if not text.lstrip("-").isdigit() or not self._least <= int(text) <= self._most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {self._least} to {self._most}")
        return int(text)


if __name__ == "__main__":
    sys.exit(main())
