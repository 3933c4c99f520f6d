"""`make demo`: every pair of samples/pairs.yaml through the graph over HTTP, into demo-out/, judged and timed.

Exits with 1 and one sentence if a conversion is not what it should be: broken sound, another length than its source,
or no nearer to the target voice than the source was.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import yaml

import stages
from benchmarks.blocks import measure, measure_alone, table
from benchmarks.judges import speaker_similarity
from benchmarks.serving import GraphFailed, running_graph
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

ROOT = Path(__file__).parent.parent
OUTPUT_FORMAT = "wav_22050"
ALLOWED_DRIFT_S = 0.05
FULL_SCALE = 32767 / 32768  # what a clipped 16-bit sample reads as
CONVERSION_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Pair:
    """One recording in one voice: how long it took, and what the judges say."""

    name: str
    source_s: float
    drift_s: float
    took_s: float
    peak: float
    finite: bool
    similarity_before: float
    similarity_after: float

    @property
    def real_time_factor(self) -> float:
        """Time to convert over the recording's length."""
        return self.took_s / self.source_s

    def faults(self) -> list[str]:
        """What is wrong with the conversion, each in one sentence."""
        found = []
        if not self.finite:
            found.append(f"{self.name} holds samples that are no numbers")
        if self.peak >= FULL_SCALE:
            found.append(f"{self.name} is clipped")
        if abs(self.drift_s) > ALLOWED_DRIFT_S:
            found.append(f"{self.name} differs from its source by {self.drift_s * 1000:+.0f} ms; allowed are 50 ms")
        if self.similarity_after <= self.similarity_before:
            scores = f"{self.similarity_before:.2f} before, {self.similarity_after:.2f} after"
            found.append(f"{self.name} stands no nearer to its target than the source did ({scores})")
        return found


def convert_pairs(url: str, folder: Path) -> list[Pair]:
    """Every pair over HTTP; the converted recordings go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = yaml.safe_load((ROOT / "samples" / "pairs.yaml").read_text(encoding="utf-8"))
    judged = []
    with httpx.Client(base_url=url, timeout=CONVERSION_TIMEOUT_S) as client:
        for voice in dict.fromkeys(pair["voice"] for pair in pairs):
            # The first use of a voice makes its features, which are kept: not part of a conversion's time.
            _convert(client, ROOT / "samples" / "sources" / f"{pairs[0]['source']}.flac", voice)
        for pair in pairs:
            judged.append(_judge(client, pair["source"], pair["voice"], folder))
            print(f"  {judged[-1].name}: {judged[-1].took_s:.1f} s", flush=True)
    return judged


def _convert(client: httpx.Client, source: Path, voice: str) -> bytes:
    files = {"audio": (source.name, source.read_bytes(), "audio/flac")}
    answer = client.post(
        f"/v1/speech-to-speech/{voice}", params={"output_format": OUTPUT_FORMAT}, data={"seed": "0"}, files=files
    )
    if answer.is_error:
        raise GraphFailed(f"converting {source.name} to {voice} was answered with {answer.status_code}: {answer.text}")
    return answer.content


def _judge(client: httpx.Client, source_name: str, voice: str, folder: Path) -> Pair:
    source_file = ROOT / "samples" / "sources" / f"{source_name}.flac"
    start = time.perf_counter()
    body = _convert(client, source_file, voice)
    took_s = time.perf_counter() - start
    (folder / f"{source_name}-{voice}.wav").write_bytes(body)
    (source, source_rate), (converted, rate) = decode_file(source_file), decode_file(body)
    target, target_rate = decode_file(ROOT / "samples" / "voices" / f"{voice}.flac")

    def similarity(samples: Samples, sample_rate: int) -> float:
        return speaker_similarity(samples, sample_rate, target, target_rate)

    source_s = len(source) / source_rate
    return Pair(
        name=f"{source_name} > {voice}",
        source_s=source_s,
        drift_s=len(converted) / rate - source_s,
        took_s=took_s,
        peak=float(np.abs(converted).max()),
        finite=bool(np.isfinite(converted).all()),
        similarity_before=similarity(source, source_rate),
        similarity_after=similarity(converted, rate),
    )


def report(pairs: list[Pair]) -> str:
    """The table of the conversions."""
    lines = [f"{'pair':<20}{'length':>8}{'took':>8}{'RTF':>7}{'similarity':>12}{'after':>7}{'peak':>7}{'drift':>9}"]
    for pair in pairs:
        lines.append(
            f"{pair.name:<20}{pair.source_s:>6.1f} s{pair.took_s:>6.1f} s{pair.real_time_factor:>7.2f}"
            f"{pair.similarity_before:>12.2f}{pair.similarity_after:>7.2f}{pair.peak:>7.2f}"
            f"{pair.drift_s * 1000:>6.1f} ms"
        )
    return "\n".join(lines)


def main() -> int:
    """Converts, measures, prints; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="folder with the preset's weights")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out")
    args = parser.parse_args()
    try:
        local = stages.load(args.preset, args.weights)
        alone = measure_alone(local)
        print("starting Ray and the five deployments ...", flush=True)
        with running_graph("cpu", preset=args.preset, weights=args.weights) as url:
            print(f"converting the recordings of samples/ at {url}", flush=True)
            pairs = convert_pairs(url, args.out)
            print("measuring one block of a call ...", flush=True)
            cost = measure(local, alone)
    except (GraphFailed, httpx.HTTPError, stages.WeightsError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"\n{report(pairs)}\n\n{table(cost)}\n\nthe conversions are in {args.out}/")
    faults = [fault for pair in pairs for fault in pair.faults()]
    if faults:
        print(f"demo: {'; '.join(faults)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
