"""What a call from the page costs on one machine: the browser, the ingress, the stages, and Ray itself.

`python -m benchmarks.page` starts the graph, measures it while nothing is asked of it, then while a page in a real
Chromium is in a call, then while other programs take a core or two beside that call, so that it has to adapt. It prints
a table of cores and what became of the blocks, and writes benchmarks/results/page.json. The browser paints in software
and decodes sound to nowhere. Linux alone has the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

SPIN = "while True: pass"
KEEP_MESSAGES = """{
  window.told = [];
  const Socket = WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...options) {
      super(...options);
      this.addEventListener("message", ({ data }) => told.push({ at: performance.now() / 1000, ...JSON.parse(data) }));
    }
  };
}"""

Cores = dict[str, float]
Message = dict[str, Any]


def measure(
    seconds: float, busy: Sequence[int], picture: Path | None = None
) -> tuple[dict[str, Cores], dict[str, Any]]:
    """Mean cores by part of the whole, idle and in a call; and what became of the blocks, in the call alone and beside
    so many busy processes."""
    with tempfile.TemporaryDirectory() as folder, running_graph() as url:
        microphone = Path(folder) / "speech.wav"
        write_speech(microphone)
        time.sleep(SETTLE_S)
        work = Work()
        time.sleep(seconds)
        idle = work.cores()
        with sync_playwright() as playwright, running_chromium(playwright, microphone, again=True) as browser:
            page = browser.new_page()
            page.add_init_script(KEEP_MESSAGES)
            page.goto(url)
            begin_call(page)
            work = Work()
            blocks = {"in_call": after(page, seconds)}
            cores = {"idle": idle, "in_call": work.cores()}
            for count in busy:
                with spinning(count):
                    blocks[f"beside {count} busy"] = after(page, SETTLE_S + seconds, SETTLE_S)
                    if picture is not None:
                        draw(page, picture)
            return cores, blocks


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many other programs that take all they get."""
    programs = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def after(page: Page, seconds: float, settle_s: float = 0.0) -> dict[str, Any]:
    """What became of the blocks of the next seconds but the first, and what was adapted meanwhile, as it was told."""
    since_s: float = page.evaluate("performance.now() / 1000")
    page.wait_for_timeout(seconds * 1000)
    told: list[Message] = [message for message in page.evaluate("told") if message["at"] >= since_s]
    stats = [message for message in told if message["type"] == "stats" and message["at"] >= since_s + settle_s]
    first, last = stats[0], stats[-1]
    counts = {kind: last["blocks"][kind] - first["blocks"][kind] for kind in last["blocks"]}
    spoken = counts["done"] + counts["late"] + counts["dropped"]
    settings = [message for message in told if message["type"] == "settings"]
    return {
        "blocks": counts,
        "lost_share": round((counts["late"] + counts["dropped"]) / max(1, spoken), 4),
        "bridged": last["bridged"] - first["bridged"],
        "mouth_to_ear_ms": {"p50": percentile(stats, 50), "p95": percentile(stats, 95)},
        "adapted": [
            {"after_s": round(message["at"] - since_s, 1), "block_ms": message["block_ms"]} for message in settings
        ],
    }


def percentile(stats: Sequence[Message], share: int) -> float:
    """Of the delay that is told each second."""
    return round(float(np.percentile([message["mouth_to_ear_ms"] for message in stats], share)), 1)


def draw(page: Page, path: Path) -> None:
    """The page as it is, light, dark, and as wide as a phone."""
    for name, width, scheme in (("light", 1360, "light"), ("dark", 1360, "dark"), ("phone", 390, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.wait_for_timeout(500)
        page.screenshot(path=path.with_name(f"{path.stem}-{name}.png"), full_page=True)


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
    parser.add_argument("--busy", type=int, nargs="*", default=[1, 2], help="programs beside the call, one phase each")
    parser.add_argument("--picture", type=Path, help="also draw the page of each phase, as PATH-light.png and so on")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "page.json")
    args = parser.parse_args()
    cores, blocks = measure(args.seconds, args.busy, args.picture)
    print(table(cores))
    for phase, told in blocks.items():
        print(f"{phase}: {json.dumps(told)}")
    result = {"machine": machine("benchmarks.page"), "seconds": args.seconds, "cores": cores, "blocks": blocks}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
