"""What is made of the figures of a call, and what happens where a call reported too few of them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import latency
from benchmarks.headless import Recorded
from configs import load_preset
from serve_app.commands.soundcard import FRAME
from webrtc.caller import CallerStats

REPORT: dict[str, Any] = {
    "stages_ms": {"total": 80.0, "encoder": 20.0, "diffusion": 20.0, "vocoder": 20.0},
    "jitter_buffer_ms": 35.0,
    "playout_ms": 25.0,
    "bridged": 2,
    "blocks": {"done": 8, "late": 0, "dropped": 0, "skipped": 0},
}


def call_of(reports: int, rtts_ms: tuple[float, ...] = (30.0,)) -> Recorded:
    """A silent call with so many reports of the server."""
    silence = [np.zeros(FRAME, np.float32)] * 500
    own = [CallerStats(rtt_ms, 0.0, 0.0, 0.0, 20.0, 0.0, 0, 0, 0, 0) for rtt_ms in rtts_ms]
    settings = {"mode": "lowest", "block_ms": 120, "delay_ms": 380}
    return Recorded(silence, silence, [REPORT] * reports, own, settings)


def test_jitter_is_not_counted_twice() -> None:
    recorded = call_of(20, (0.0, 0.0, 0.0, 0.0, 0.0, 31.0, 62.0, 93.0))
    found = latency.parts(recorded, load_preset("tiny").live, whole_ms=400.0)
    assert found["network"] == 31.0
    assert found["jitter buffer"] == 35.0


async def test_calls_that_hardly_report_end_the_search_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[str]()

    async def held_call(url: str, seconds: float, scenario: latency.Scenario, source: Any) -> Recorded:
        held.append(scenario.name)
        return call_of(4 if scenario.name == "2 at once" else 15)

    monkeypatch.setattr(latency, "held_call", held_call)
    first, second = await latency.until_late("", 15.0)
    assert (first["calls"], first["late_or_dropped"]) == (1, 0)
    assert second["calls"] == 2 and "reports" in second["overloaded"]
    assert held == ["1 at once", "2 at once", "2 at once"]


async def test_what_was_measured_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def held_call(url: str, seconds: float, scenario: latency.Scenario) -> Recorded:
        if scenario.name == "1 % loss":
            raise ConnectionError("gone")
        return call_of(15)

    monkeypatch.setattr(latency, "held_call", held_call)
    kept = list[list[str]]()
    args = argparse.Namespace(preset="tiny", only=None, seconds=40.0, minutes=0.0)
    with pytest.raises(ConnectionError):
        await latency.measured("", args, lambda found: kept.append([one["scenario"] for one in found["scenarios"]]))
    assert kept[-1] == ["bypass, by waves", "clean", "clean, 180 ms blocks", "clean, constant"]


def test_calls_too_short_to_be_measured_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latency", "--seconds", "16"])
    with pytest.raises(SystemExit):
        latency.main()
    assert "--seconds is 16; a call has to last at least 30 s" in capsys.readouterr().err
