"""The shipped recordings are what their lists say."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.pairs import TRANSCRIPTS
from webrtc.files import decode_file

SAMPLES = Path(__file__).parent.parent / "samples"
VOICES: list[dict[str, str]] = yaml.safe_load((SAMPLES / "voices.yaml").read_text(encoding="utf-8"))
PAIRS: list[dict[str, str]] = yaml.safe_load((SAMPLES / "pairs.yaml").read_text(encoding="utf-8"))
RECORDINGS = sorted(SAMPLES.glob("*/*.flac"))


def test_every_voice_has_its_recording_and_no_recording_lacks_a_voice() -> None:
    assert {voice["id"] for voice in VOICES} == {path.stem for path in RECORDINGS if path.parent.name == "voices"}
    assert all(voice["name"] and voice["description"] and voice["labels"] for voice in VOICES)


def test_the_pairs_use_every_source_and_every_voice() -> None:
    sources = {path.stem for path in RECORDINGS if path.parent.name == "sources"}
    assert {pair["source"] for pair in PAIRS} == sources
    assert {pair["voice"] for pair in PAIRS} == {voice["id"] for voice in VOICES}
    assert len({(pair["source"], pair["voice"]) for pair in PAIRS}) == len(PAIRS) == 8


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_is_of_the_stated_rate_level_and_length(path: Path) -> None:
    samples, rate = decode_file(path)
    assert rate == 22050
    assert abs(20 * np.log10(np.abs(samples).max()) + 3) < 0.1
    shortest_s, longest_s = (6, 12) if path.parent.name == "voices" else (4, 7)
    assert shortest_s < len(samples) / rate < longest_s
    assert np.abs(samples[: rate // 5]).max() > 0.01, "a long silence leads"


def test_the_transcripts_are_what_the_sources_say() -> None:
    spoken = (SAMPLES / "make.sh").read_text(encoding="utf-8")
    for source, transcript in TRANSCRIPTS.items():
        assert f'sources/{source}.flac \\\n    "{transcript}"' in spoken
