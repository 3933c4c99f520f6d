"""`seedvc serve`: a Serve config on this machine, with a Ray instance of its own that only this user can reach."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from configs.schema import load_preset
from configs.serve import ServeArgs
from serve_app.commands import UserMistake, note, say
from serve_app.commands.serve_config import APPLICATION, read_config

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

    from serve_app.commands.lan import Lan
    from serve_app.commands.stand_ins import StandIns

CONFIG = Path(__file__).parents[2] / "configs" / "local.yaml"


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C, SIGTERM, or the end of its terminal."""
    from serve_app import instance

    tree, schema = read_config(Path(args.config or CONFIG))
    lan, stand_ins = _lan(args, tree), _stand_ins(args, tree)
    schema = type(schema).model_validate(tree)
    _refuse_taken(schema.http_options.host, schema.http_options.port)
    options: dict[str, Any] = {"num_cpus": max(os.cpu_count() or 1, instance.needed_cpus(tree))}
    if args.metrics_port is not None:
        _refuse_taken("127.0.0.1", args.metrics_port)
        options["_metrics_export_port"] = args.metrics_port
    _end_by_signals()
    with suppress(KeyboardInterrupt):
        try:
            with (
                nullcontext() if lan is None else lan.environment(),
                nullcontext() if stand_ins is None else stand_ins.running(),
                instance.running_ray(**options),
            ):
                _end_by_signals()  # Ray has put its own handler in place, which aborts
                _serve(schema, {"log_level": "WARNING"} | (tree.get("logging_config") or {}), lan)
        except instance.GraphFailed as failure:
            raise UserMistake(str(failure)) from failure


def _lan(args: argparse.Namespace, tree: dict[str, Any]) -> Lan | None:
    """What the local network gets; None where it was not asked for by name."""
    if (args.certificate is None) != (args.private_key is None):
        raise UserMistake("--certificate and --private-key go together: a certificate is of no use without its key")
    if not args.lan:
        if args.certificate is not None:
            raise UserMistake("--certificate is for HTTPS in the local network, which --lan asks for")
        return None
    from serve_app.commands.lan import open_lan

    return open_lan(tree, args.certificate, args.private_key)


def _stand_ins(args: argparse.Namespace, tree: dict[str, Any]) -> StandIns | None:
    """Redis and S3 of its own; None where they were not asked for."""
    if not args.stand_ins:
        return None
    from serve_app.commands.stand_ins import StandIns

    stand_ins = StandIns()
    stand_ins.put_into(tree)
    return stand_ins


def _serve(schema: ServeDeploySchema, logging_config: dict[str, Any], lan: Lan | None) -> None:
    """Serves until KeyboardInterrupt, and then lets running requests finish."""
    from ray import serve

    from serve_app import instance

    try:
        instance.start_serve(schema, logging_config=logging_config)
        instance.deploy(schema)
        if lan is not None:
            lan.tell()
        scheme = "https" if schema.http_options.ssl_certfile else "http"
        host = schema.http_options.host if lan is None else lan.names[0]
        say(f"serving at {scheme}://{host}:{schema.http_options.port}; Ctrl-C ends it")
        _tell_what_is_carried(schema)
        signal.pause()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves its signature open


def _tell_what_is_carried(schema: ServeDeploySchema) -> None:
    """Measures for some seconds, when all that starts has started. Networks as large as published ones are left out, as
    they would be in memory once more.
    """
    from serve_app.commands.check import in_short
    from serve_app.commands.machine import measure

    for application in schema.applications:
        if application.import_path != APPLICATION:
            continue
        args = ServeArgs.model_validate(application.args)
        preset = load_preset(args.preset)
        if args.device == "cpu" and not preset.hub:
            try:
                measured = measure(args.preset, args.weights, quick=True)
            except UserMistake as failure:
                note(str(failure))
                continue
            say(in_short(measured, preset.live, args.rtc.max_calls))


def _refuse_taken(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserMistake(f"cannot listen at {host}:{port}: {error.strerror}") from error


def _end_by_signals() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
