"""`seedvc check`: whether a Serve config can work, and what this machine carries."""

from __future__ import annotations

import argparse
from pathlib import Path

from serve_app.commands import UserMistake, note, say
from serve_app.commands.serve_config import problems, read_tree


def run(args: argparse.Namespace) -> None:
    """Checks what was asked for; all that is wrong with a config is told, a line each."""
    if args.config is None and not args.machine:
        raise UserMistake("say what to check: a Serve config by its file, or --machine")
    if args.config is not None:
        _check_config(Path(args.config))


def _check_config(path: Path) -> None:
    *others, last = problems(read_tree(path)) or [""]
    for problem in others:
        note(f"seedvc: {path}: {problem}")
    if last:
        raise UserMistake(f"{path}: {last}")
    say(f"{path} can be served")
