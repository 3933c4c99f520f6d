"""The judges on sounds whose answers are known, the choice of pairs, and the whole run on two short pairs."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import judges, quality
from benchmarks.judges import (
    Dnsmos,
    Floats,
    Heard,
    JudgeMissing,
    Ratings,
    level_db,
    pitch_correlation,
    pitch_track,
    recognised,
    semitones_above,
    word_errors,
    words,
)
from benchmarks.pairs import (
    JOIN_S,
    LONGEST_S,
    RATE,
    SHORTEST_S,
    TRANSCRIPTS,
    DataMissing,
    Excerpt,
    Speaker,
    choose_pairs,
    cut,
    held_out_speakers,
    join,
)
from benchmarks.pictures import RANGE_DB, draw, spectrogram_db
from benchmarks.scores import MEASURES, Judged, Score, bootstrap, gaps, means
from training.data import Clip, held_out
from webrtc.files import decode_file

SAMPLES = Path(__file__).parents[2] / "samples"


def voiced(hz: Floats, sample_rate: int = RATE) -> Floats:
    """A buzz of 20 harmonics with the given fundamental [samples], falling by 6 dB an octave."""
    phase = 2 * np.pi * np.cumsum(hz.astype(np.float64)) / sample_rate
    harmonics = [np.sin(k * phase) / k * (k * hz < sample_rate / 2) for k in range(1, 21)]
    return np.asarray(0.2 * np.sum(harmonics, axis=0), np.float32)


def contour(seconds: float = 3.0, middle_hz: float = 120.0, semitones: float = 4.0) -> Floats:
    """A melody in Hz, going up and down twice."""
    t = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(middle_hz * 2 ** (semitones / 12 * np.sin(2 * np.pi * 2 / seconds * t)), np.float32)


@pytest.mark.parametrize("middle_hz", [75.0, 120.0, 220.0, 380.0])
def test_pitch_follows_a_melody_with_noise_around_it(middle_hz: float) -> None:
    hz = contour(middle_hz=middle_hz)
    sound = voiced(hz) + np.random.default_rng(0).normal(0, 0.01, len(hz)).astype(np.float32)
    track = pitch_track(sound, RATE)
    assert (track > 0).mean() > 0.98
    at = (np.arange(len(track)) * 0.01 + 0.016) * RATE  # the middle of each window
    expected = hz[np.minimum(at.astype(int), len(hz) - 1)]
    off = np.abs(12 * np.log2(track[track > 0] / expected[track > 0]))
    assert np.percentile(off, 95) < 0.3


def test_a_shifted_melody_correlates_fully_and_stands_where_it_was_shifted() -> None:
    low, high = pitch_track(voiced(contour()), RATE), pitch_track(voiced(contour(middle_hz=240.0)), RATE)
    correlation = pitch_correlation(low, high)
    assert correlation is not None and correlation > 0.99
    assert semitones_above(high, low) == pytest.approx(12, abs=0.2)
    assert semitones_above(low, high) == pytest.approx(-12, abs=0.2)


def test_a_mirrored_melody_correlates_negatively_and_a_flat_one_not_at_all() -> None:
    rising, falling = (pitch_track(voiced(contour(semitones=s)), RATE) for s in (4.0, -4.0))
    correlation = pitch_correlation(rising, falling)
    assert correlation is not None and correlation < -0.95
    assert pitch_correlation(rising, np.full(len(rising), 120, np.float32)) is None


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    assert (pitch_track(noise, RATE) > 0).mean() < 0.1
    silence = pitch_track(np.zeros(RATE, np.float32), RATE)
    assert not silence.any()
    assert pitch_correlation(silence, silence) is None
    assert semitones_above(silence, silence) is None
    assert pitch_track(np.zeros(100, np.float32), RATE).size == 0


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("the rye bread", "the rye bread", 0),
        ("the rye bread", "the dry bread", 1),
        ("the rye bread", "rye bread", 1),
        ("the rye bread", "the rye and the bread", 2),
        ("the rye bread", "", 3),
        ("", "bread", 1),
        ("one two three four", "two three four five", 2),
    ],
)
def test_word_errors_are_the_fewest_edits(said: str, heard: str, errors: int) -> None:
    assert word_errors(said.split(), heard.split()) == errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mind the gap, please: it's 4 doors.", "mind the gap please it's four doors"),
        ("‘Twenty-three’ isn’t 23", "twenty three isn't twenty three"),
        ("12 trees, the 3rd, the 12th and the 30th", "twelve trees the third the twelfth and the thirtieth"),
        ("In 1990, 1905 and 1800", "in nineteen ninety nineteen oh five and eighteen hundred"),
        ("110 or 2,304 or 1000000", "one hundred ten or two thousand three hundred four or one million"),
        ("3.5% of it", "three point five percent of it"),
        ("0070070070", "zero zero seven zero zero seven zero zero seven zero"),
        ("", ""),
    ],
)
def test_words_are_compared_without_case_punctuation_and_digits(text: str, expected: str) -> None:
    assert words(text) == expected.split()


def sample(name: str) -> Floats:
    """A recording of samples/sources."""
    samples, rate = decode_file(SAMPLES / "sources" / f"{name}.flac")
    assert rate == RATE
    return samples


def test_the_recogniser_hears_most_words_and_the_same_every_time() -> None:
    names = ("bakery", "garden", "station", "weather")
    texts = {name: recognised(sample(name), RATE) for name in names}
    said, heard = (sum([words(text[name]) for name in names], []) for text in (TRANSCRIPTS, texts))
    assert word_errors(said, heard) < 0.15 * len(said)
    assert [recognised(sample(name), RATE) for name in reversed(names)] == list(texts.values())[::-1]


def test_the_recogniser_takes_long_recordings() -> None:
    names = ("bakery", "garden", "station", "weather", "bakery", "garden")
    heard = Heard(np.concatenate([sample(name) for name in names]), RATE)
    assert heard.duration_s > 30
    rate = heard.word_error_rate(sum([words(TRANSCRIPTS[name]) for name in names], []))
    assert rate is not None and rate < 0.25


@pytest.mark.parametrize("seconds", [0, 0.01, 0.06, 0.5, 20])
def test_the_recogniser_hears_nothing_in_silence(seconds: float) -> None:
    assert recognised(np.zeros(round(seconds * RATE), np.float32), RATE) == ""


def test_the_recogniser_takes_fragments() -> None:
    for n in (1, 100, 1500, 2205, 4000):
        assert len(words(recognised(sample("garden")[RATE : RATE + n], RATE))) <= 3


def test_a_missing_recogniser_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    judges._recogniser.cache_clear()
    monkeypatch.setitem(sys.modules, "moonshine_voice.transcriber", None)
    with pytest.raises(JudgeMissing, match="hearing words needs moonshine-voice: pip install"):
        recognised(np.zeros(RATE, np.float32), RATE)


def test_level_in_db() -> None:
    assert level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert level_db(np.full(100, 0.1, np.float32)) == pytest.approx(-20)
    assert level_db(np.zeros(100, np.float32)) == -120


def test_bootstrap_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    values = list(np.random.default_rng(1).normal(0.7, 0.1, 400))
    few, many = bootstrap(values[:20]), bootstrap(values)
    assert few and many and few == bootstrap(values[:20])
    assert many.mean == pytest.approx(np.mean(values))
    assert many.low < many.mean < many.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert few.high - few.low > 2 * (many.high - many.low)


def test_bootstrap_leaves_out_what_is_missing_and_weighs_shares_by_their_words() -> None:
    assert bootstrap([]) is None
    assert bootstrap([None, None]) is None
    mean = bootstrap([3.0, 0.1, None], [1, 9, 5])
    assert mean and mean.n == 2
    assert mean.mean == pytest.approx((3.0 * 1 + 0.1 * 9) / 10)


def score(**changes: float | None) -> Score:
    """A score of zeros with some changes."""
    return Score(**(dict.fromkeys(MEASURES, 0.0) | changes))  # type: ignore[arg-type]  # not every field may be None


def test_means_and_gaps_over_pairs() -> None:
    pairs = [
        Judged("", "", 0, 1, n_heard, None, None, None, {"a": score(**a), "b": score(**b)})
        for n_heard, a, b in (
            (10, {"to_target": 0.8, "wer_own_words": 0.1, "overall": 3.0}, {"to_target": 0.7, "wer_own_words": 0.2}),
            (30, {"to_target": 0.6, "wer_own_words": 0.5, "overall": None}, {"to_target": 0.7, "wer_own_words": 0.5}),
        )
    ]
    of_a, difference = means(pairs, "a"), gaps(pairs, "a", "b")
    assert of_a["to_target"] and of_a["to_target"].mean == pytest.approx(0.7)
    assert of_a["wer_own_words"] and of_a["wer_own_words"].mean == pytest.approx((1 + 15) / 40)
    assert of_a["overall"] and of_a["overall"].n == 1
    assert difference["to_target"] and difference["to_target"].mean == pytest.approx(0)
    assert difference["wer_own_words"] and difference["wer_own_words"].mean == pytest.approx(-1 / 40)
    assert difference["overall"] and difference["overall"].n == 1


def people(**sexes: int) -> list[Speaker]:
    silence = np.zeros(RATE, np.float32)
    return [
        Speaker(f"{sex}{i}", sex, tuple(Excerpt(f"{sex}{i}-{k}", silence) for k in range(2)))
        for sex, count in sexes.items()
        for i in range(count)
    ]


def test_pairs_are_mixed_fair_and_decided_by_the_seed() -> None:
    speakers = people(F=13, M=13)
    pairs = choose_pairs(speakers, 24, seed=3)
    assert pairs == choose_pairs(speakers, 24, seed=3) != choose_pairs(speakers, 24, seed=4)
    directions = [pair.source_speaker[0] + pair.target_speaker[0] for pair in pairs]
    assert {way: directions.count(way) for way in set(directions)} == {"FM": 6, "MF": 6, "FF": 6, "MM": 6}
    assert len({pair.source_speaker for pair in pairs}) == len({pair.target_speaker for pair in pairs}) == 24
    assert all(pair.source_speaker != pair.target_speaker for pair in pairs)
    assert all(pair.unheard and pair.unheard.name != pair.target.name for pair in pairs)


def test_few_speakers_give_as_many_pairs_as_there_are_and_take_turns_with_their_excerpts() -> None:
    pairs = choose_pairs(people(F=2, M=1), 24, seed=0)
    assert len({(pair.source_speaker, pair.target_speaker) for pair in pairs}) == len(pairs) == 6
    assert {pair.source.name for pair in pairs} == {f"{who}-{k}" for who in ("F0", "F1", "M0") for k in range(2)}
    assert choose_pairs(people(F=1), 24, seed=0) == []


def test_long_clips_are_cut_where_they_are_quiet() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 16 * RATE).astype(np.float32)
    pauses_s = (4.7, 9.9, 14.2)
    for pause_s in pauses_s:
        wave[round(pause_s * RATE) : round((pause_s + 0.1) * RATE)] *= 0.01
    parts = list(cut(wave))
    assert np.array_equal(np.concatenate(parts), wave)
    edges_s = np.cumsum([len(part) for part in parts])[:-1] / RATE
    assert all(0 < edge - pause < 0.1 for edge, pause in zip(edges_s, pauses_s, strict=True))
    assert all(SHORTEST_S <= len(part) / RATE <= LONGEST_S for part in parts[:-1])


def test_joined_clips_keep_their_words_only_together() -> None:
    one, two, unknown = (Excerpt(text, np.ones(10, np.float32), text) for text in ("A", "B", ""))
    assert join(one, two).transcript == "A B"
    assert join(one, unknown).transcript == ""
    assert len(join(one, two).samples) == 20 + round(JOIN_S * RATE)


def corpus(root: Path) -> Path:
    """A data folder in which every speaker of a name 'vctk_<n>' reads a sample, some of them held out."""
    sources = [decode_file(path)[0] for path in sorted((SAMPLES / "sources").glob("*.flac"))]
    for kind, columns in (("human", ["sex", "lang", "src_rate"]), ("synth", [])):
        (root / kind).mkdir(parents=True)
        with (root / kind / "manifest.csv").open("w", newline="", encoding="utf8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "speaker", "duration_s", "transcript", *columns])
            for n in range(60):
                prefix = "vctk_" if kind == "human" else "esp_"
                wave = np.roll(sources[n % 4], 7 * n)[: round(3.2 * RATE)]
                soundfile.write(root / kind / f"{n}.wav", wave, RATE)
                row = [f"{n}.wav", f"{prefix}{n}", 3.2, "we planted twelve apple trees" if n % 2 else ""]
                writer.writerow([*row, "F" if n % 4 < 2 else "M", "en", RATE][: 4 + len(columns)])
    return root


def test_no_pair_has_a_speaker_that_was_trained_on(tmp_path: Path) -> None:
    speakers = held_out_speakers(corpus(tmp_path))
    names = {kind: {speaker.name for speaker in own} for kind, own in speakers.items()}
    for kind, prefix in (("human", "vctk_"), ("synthetic", "esp_")):
        everyone = [Clip("", f"{prefix}{n}", kind, "en", "", RATE, 3.2) for n in range(60)]
        assert names[kind] == {clip.speaker for clip in everyone if held_out(clip)}
        pairs = choose_pairs(speakers[kind], 24, seed=0)
        assert pairs and {p.source_speaker for p in pairs} | {p.target_speaker for p in pairs} <= names[kind]
    excerpts = [excerpt.name for own in speakers.values() for speaker in own for excerpt in speaker.excerpts]
    assert len(set(excerpts)) == len(excerpts), "what is judged once is found by its name"
    assert {speaker.sex for own in speakers.values() for speaker in own} <= {"F", "M"}


def test_a_folder_without_held_out_speakers_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no held-out speaker in .*human/manifest.csv"):
        held_out_speakers(tmp_path)


def test_ratings_are_the_published_curves_of_the_scorers_numbers() -> None:
    ratings = Ratings.of([3.0, 4.0, 2.0])
    assert ratings.speech == pytest.approx(-0.08397278 * 9 + 1.22083953 * 3 + 0.0052439)
    assert ratings.background == pytest.approx(-0.13166888 * 16 + 1.60915514 * 4 - 0.39604546)
    assert ratings.overall == pytest.approx(-0.06766283 * 4 + 1.11546468 * 2 + 0.04602535)


def test_a_missing_scorer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(JudgeMissing, match="no DNSMOS scorer file at .*nowhere.onnx"):
        Dnsmos(tmp_path / "nowhere.onnx")


def test_a_spectrogram_shows_a_tone_where_it_is(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 1000 / RATE * np.arange(RATE)).astype(np.float32)
    decibels = spectrogram_db(tone)
    assert abs(int(decibels[:, 40].argmax()) * RATE / 1024 - 1000) < 22
    assert decibels.max() == pytest.approx(0, abs=0.1) and decibels.min() == -RANGE_DB
    assert np.all(spectrogram_db(np.zeros(RATE, np.float32)) == -RANGE_DB)
    pytest.importorskip("matplotlib")
    draw(tmp_path / "new" / "tone.png", {"tone": tone, "half": tone[: RATE // 2]}, RATE)
    assert (tmp_path / "new" / "tone.png").read_bytes().startswith(b"\x89PNG")


def test_two_pairs_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "results" / "quality.json", corpus(tmp_path / "data")
    options = ["--pairs", "1", "--synthetic-pairs", "1", "--teacher-steps", "3", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(data), "--out", str(out), *options])
    assert quality.main() == 0
    printed = capsys.readouterr().out
    assert "DNSMOS is left out" in printed
    ways = ["streaming", "streaming, long blocks", "offline", "teacher"]
    assert f"| mean [95 %] | {' | '.join(f'human, {way}' for way in ways)} | synthetic, streaming |" in printed
    assert "DNSMOS overall" not in printed
    assert "| word errors of the converted, against the words heard in the source |" in printed

    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["preset"] == "tiny" and len(result["weights"]["tiny"]) >= 8
    assert result["steps"] == {"streaming": 1, "streaming, long blocks": 1, "offline": 1, "teacher": 3}
    assert result["block_ms"] == {"streaming": 120, "streaming, long blocks": 180}
    assert {"cpu", "cores", "date", "torch", "command"} <= result["machine"].keys()
    assert result["judges"].keys() == {"resemblyzer", "moonshine-voice"}
    assert result["measures"] == quality.ROWS
    assert result["groups"].keys() == {"human", "synthetic"}
    for group in result["groups"].values():
        (pair,) = group["pairs"]
        assert pair["source"] != pair["target"]
        assert pair["ways"].keys() == group["means"].keys() == set(result["steps"])
        assert group["gaps"].keys() == {"streaming less offline", "student less teacher"}
        for way, scores in pair["ways"].items():
            assert -1 <= scores["to_target"] <= 1 and scores["real_time_factor"] > 0
            assert scores["overall"] is None and group["means"][way]["overall"] is None
            assert group["means"][way]["to_target"]["mean"] == pytest.approx(scores["to_target"], abs=1e-3)
        assert -1 <= group["strangers"]["mean"] <= 1


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--data", str(tmp_path)])
    assert quality.main() == 1
    assert capsys.readouterr().err.startswith("quality: no held-out speaker in")
