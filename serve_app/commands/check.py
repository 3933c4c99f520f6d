"""`seedvc check`: whether a Serve config can work, and what this machine carries."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.schema import ConfigError, LiveSettings, load_preset
from serve_app.calls.forecast import Forecast, Measured, forecasts, remedies
from serve_app.commands import UserMistake, note, say
from serve_app.commands.machine import features, free_memory_gib, measure, processor
from serve_app.commands.serve_config import problems, read_tree

NEEDED_GIB = 2.5
"""Free memory for `make serve`, with some to spare."""


def run(args: argparse.Namespace) -> None:
    """Checks what was asked for; all that is wrong with a config is told, a line each."""
    if args.config is None and not args.machine:
        raise UserMistake("say what to check: a Serve config by its file, or --machine")
    if args.config is not None:
        _check_config(Path(args.config))
    if args.machine:
        try:
            live = load_preset(args.preset).live
        except ConfigError as error:
            raise UserMistake(str(error)) from error
        for line in told_of_machine():
            say(line)
        for line in told_of_calls(measure(args.preset), live):
            say(line)


def _check_config(path: Path) -> None:
    *others, last = problems(read_tree(path)) or [""]
    for problem in others:
        note(f"seedvc: {path}: {problem}")
    if last:
        raise UserMistake(f"{path}: {last}")
    say(f"{path} can be served")


def told_of_machine() -> list[str]:
    """Processor and memory, a sentence each."""
    told, found, free_gib = [f"The processor is {processor()}."], features(), free_memory_gib()
    if found is not None:
        has, lacks = (", ".join(names) for names in found)
        told.append(f"It has {has or 'nothing that makes networks faster'}; it lacks {lacks or 'nothing'}.")
    if free_gib is not None:
        enough = "enough" if free_gib >= NEEDED_GIB else "little"
        told.append(f"{free_gib:.1f} GiB of memory are free: {enough} for `make serve`, which takes 2.1 GB.")
    return told


def told_of_calls(measured: Measured, live: LiveSettings) -> list[str]:
    """What a block takes, what is carried at each length, and what to change where that is nothing."""
    cores = f"{measured.cores} core{'s' * (measured.cores > 1)}"
    told = [
        f"One block takes {measured.alone.p50_ms:.0f} ms by itself, 95 of 100 at most {measured.alone.p95_ms:.0f} ms.",
        f"While others are computed on the {cores}, it takes {measured.at_once.p50_ms:.0f} ms, 95 of 100 at most "
        f"{measured.at_once.p95_ms:.0f} ms.",
    ]
    told += [_told_of(each) for each in forecasts(measured, live)]
    return told + [f"To change that: {remedy}." for remedy in remedies(measured, live)]


def _told_of(carried: Forecast) -> str:
    if not carried.calls:
        return f"Blocks of {carried.block_ms} ms: no call, as a block takes too long for them."
    return (
        f"Blocks of {carried.block_ms} ms: {_calls(carried.calls)}; {_calls(carried.beside_page)} beside the page in a "
        f"browser here; {_calls(carried.beside_recording)} while a recording is converted."
    )


def in_short(measured: Measured, live: LiveSettings, max_calls: int) -> str:
    """One line for a server that starts."""
    carried, _ = forecasts(measured, live)
    took = f"a block of {carried.block_ms} ms takes {measured.at_once.p50_ms:.0f} ms"
    if not carried.calls:
        return f"this machine is too slow or too busy for calls: {took}; `seedvc check --machine` says what helps"
    more = f"; rtc.max_calls lets in {max_calls}" if max_calls > carried.calls else ""
    return f"this machine carries {_calls(carried.calls)}, {carried.beside_page} beside a browser on it: {took}{more}"


def _calls(number: int) -> str:
    return f"{number or 'no'} call{'s' * (number != 1)}"
