"""What a call from the page costs on one machine: the browser, the ingress, the stages, and Ray itself.

`python -m benchmarks.page` starts the graph, measures it while nothing is asked of it, then while a page in a real
Chromium is in a call, prints a table of cores and writes benchmarks/results/page.json. The browser paints in software
and decodes sound to nowhere. Linux alone has the figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soxr
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.browser import running_chromium
from benchmarks.machine import machine
from benchmarks.processes import Work
from benchmarks.serving import running_graph
from serve_app.commands.soundcard import WavFile
from webrtc.files import decode_file

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "samples" / "sources" / "bakery.flac"
RATE_HZ = 48000
VOICE = "clara"
SETTLE_S = 6.0
"""After a start, until the work is even."""
CONNECT_TIMEOUT_MS = 30000

Cores = dict[str, float]


def measure(seconds: float) -> dict[str, Cores]:
    """Mean cores by part of the whole, idle and in a call."""
    with tempfile.TemporaryDirectory() as folder, running_graph() as url:
        microphone = Path(folder) / "speech.wav"
        write_speech(microphone)
        time.sleep(SETTLE_S)
        work = Work()
        time.sleep(seconds)
        idle = work.cores()
        with sync_playwright() as playwright, running_chromium(playwright, microphone, again=True) as browser:
            page = browser.new_page()
            page.goto(url)
            begin_call(page)
            work = Work()
            page.wait_for_timeout(seconds * 1000)
            return {"idle": idle, "in_call": work.cores()}


def write_speech(path: Path) -> None:
    """A sentence and a short rest."""
    samples, rate = decode_file(SOURCE)
    with WavFile(path) as file:
        file.write(np.asarray(soxr.resample(samples, rate, RATE_HZ), np.float32))
        file.write(np.zeros(RATE_HZ // 4, np.float32))


def begin_call(page: Page) -> None:
    """As a person does; returns when it has run for a moment."""
    page.locator(f'[data-voice-id="{VOICE}"] label').click()
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_attribute("data-state", "live", timeout=CONNECT_TIMEOUT_MS)
    page.wait_for_timeout(SETTLE_S * 1000)


def table(cores: Mapping[str, Cores]) -> str:
    """Groups with their sums, and the parts of each."""
    names = sorted({name for phase in cores.values() for name in phase})
    lines = [f"{'cores':<44}" + "".join(f"{phase:>10}" for phase in cores)]
    for group in dict.fromkeys(name.partition(":")[0] for name in names):
        parts = [name for name in names if name.startswith(f"{group}:")]
        sums = [sum(phase.get(name, 0.0) for name in parts) for phase in cores.values()]
        lines.append(f"{group:<44}" + "".join(f"{value:>10.2f}" for value in sums))
        lines += [
            f"  {name.partition(': ')[2]:<42}" + "".join(f"{phase.get(name, 0.0):>10.3f}" for phase in cores.values())
            for name in parts
        ]
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "page.json")
    args = parser.parse_args()
    cores = measure(args.seconds)
    print(table(cores))
    result = {"machine": machine("benchmarks.page"), "seconds": args.seconds, "cores": cores}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
