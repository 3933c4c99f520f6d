"""Judges of a recording, independent of the networks: who speaks, which words, which pitch, how clean.

Resemblyzer hears speakers, Moonshine's tiny-en hears English words, DNSMOS rates quality (from a scorer file that is
not part of this project); the pitch judge is below.
"""

import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

JUDGE_RATE = 16000
RECOGNISER = "tiny-en"
SHORTEST_HEARD_S = 0.1
"""The recogniser fails below 0.08 s, in which nobody says a word."""
LONGEST_HEARD_S, LEAST_HEARD_S = 15.0, 10.0
"""It begins to repeat itself in recordings much longer than this; they are cut into parts of these lengths."""
SILENT_DB = -60.0
"""Silence makes it write "you", so that it is not asked below this level."""
QUIET_S = 0.05
DNSMOS_SAMPLES = 144160
"""What the scorer takes: 9.01 s."""
# DNS-Challenge, dnsmos_local.py: from the network's three numbers to ratings, highest power first.
DNSMOS_CURVES = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)
# fmt: off
UNDER_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
SIZES = ((10**6, "million"), (1000, "thousand"), (100, "hundred"))
MOST_DIGITS = 9
"""Longer rows of digits are read one by one."""
IRREGULAR = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
PITCH_HOP_S = 0.01
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
PITCH_WINDOW = 512
"""Samples at 16 kHz that are compared with themselves a period later (32 ms)."""
DIP = 0.15
"""A period is believed at the first lag whose difference falls below this (de Cheveigne and Kawahara, YIN, 2002)."""
VOICED = 0.3
LOUD = 10 ** (-40 / 20)
"""Frames this far below the loudest are counted unvoiced."""
MIN_VOICED_FRAMES = 20

Floats = npt.NDArray[np.float32]


class JudgeMissing(RuntimeError):
    """A judge cannot work here; the message says what it needs."""


@functools.cache
def _speaker_encoder() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resemblyzer 0.1.4 imports names that newer scipy and setuptools deprecate
        from resemblyzer import VoiceEncoder

        return VoiceEncoder("cpu", verbose=False)


def speaker_embedding(samples: Floats, sample_rate: int) -> Floats:
    """Resemblyzer's unit vector [256] of a mono recording."""
    encoder = _speaker_encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from resemblyzer import preprocess_wav

        wave = preprocess_wav(np.asarray(samples, np.float32), source_sr=sample_rate)
        return np.asarray(encoder.embed_utterance(wave), np.float32)


def speaker_similarity(a: Floats, a_rate: int, b: Floats, b_rate: int) -> float:
    """Cosine of the two recordings' speaker vectors: about 0.6 for strangers, above 0.8 for one speaker."""
    return float(speaker_embedding(a, a_rate) @ speaker_embedding(b, b_rate))


def at_judge_rate(samples: Floats, sample_rate: int) -> Floats:
    """The recording at 16 kHz."""
    return np.asarray(soxr.resample(np.asarray(samples, np.float32), sample_rate, JUDGE_RATE), np.float32)


@functools.cache
def _recogniser() -> Any:
    try:
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber
        from moonshine_voice.utils import get_model_path
    except ImportError as error:
        raise JudgeMissing("hearing words needs moonshine-voice: pip install 'seedvc-serve[quality]'") from error
    model = get_model_path(RECOGNISER)
    if not model.is_dir():
        raise JudgeMissing(f"this moonshine-voice comes without its model {RECOGNISER}; 0.1.0 has it")
    # Its own search for speech remembers earlier recordings and differs from run to run; 0 switches it off.
    return Transcriber(model, ModelArch.TINY, options={"vad_threshold": 0})


def recognised(samples: Floats, sample_rate: int) -> str:
    """The English text that Moonshine hears; the same for the same recording."""
    recogniser = _recogniser()
    heard = list[str]()
    for part in _parts(at_judge_rate(samples, sample_rate)):
        if len(part) >= SHORTEST_HEARD_S * JUDGE_RATE and level_db(part) > SILENT_DB:
            lines = recogniser.transcribe_without_streaming(part.tolist(), JUDGE_RATE).lines
            heard += [line.text for line in lines]
    return " ".join(heard)


def _parts(wave: Floats) -> Iterator[Floats]:
    """A recording at 16 kHz in parts that the recogniser can take, cut where it is quietest."""
    quiet, least, longest = (round(s * JUDGE_RATE) for s in (QUIET_S, LEAST_HEARD_S, LONGEST_HEARD_S))
    while len(wave) > longest:
        energy = np.convolve(np.square(wave[least:longest], dtype=np.float64), np.ones(quiet), mode="valid")
        at = least + int(energy.argmin()) + quiet // 2
        yield wave[:at]
        wave = wave[at:]
    yield wave


def words(text: str) -> list[str]:
    """The words of a text, for comparison: lower case, no punctuation, numbers spelled out.

    Transcripts spell numbers; the recogniser writes "12" or "twelve", as it likes.
    """
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("%", " percent")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = re.sub(r"(\d+)((?:st|nd|rd|th)\b)?", lambda found: f" {_spelled(found[1], bool(found[2]))} ", text)
    bare = (word.strip("'") for word in re.sub(r"[^a-z']+", " ", text).split())
    return [word for word in bare if word]


def _spelled(digits: str, ordinal: bool) -> str:
    """A row of digits in words, as "twelve" or "twelfth"."""
    if len(digits) > MOST_DIGITS:
        return " ".join(UNDER_TWENTY[int(digit)] for digit in digits)
    *front, last = _cardinal(int(digits))
    if ordinal:
        last = IRREGULAR.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*front, last])


def _cardinal(number: int) -> list[str]:
    """The words of a number below 10^9, 1100 to 1999 as years are read."""
    if number < 20:
        return [UNDER_TWENTY[number]]
    if number < 100:
        tens, rest = divmod(number, 10)
        return [TENS[tens - 2], *(_cardinal(rest) if rest else [])]
    if 1100 <= number < 2000:
        century, rest = divmod(number, 100)
        return [*_cardinal(century), *(["oh"] if 0 < rest < 10 else []), *(_cardinal(rest) if rest else ["hundred"])]
    size, name = next((size, name) for size, name in SIZES if number >= size)
    count, rest = divmod(number, size)
    return [*_cardinal(count), name, *(_cardinal(rest) if rest else [])]


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one row of words into the other (Levenshtein)."""
    row = np.arange(len(heard) + 1)
    for i, word in enumerate(said, start=1):
        previous, row = row, np.full(len(heard) + 1, i)
        for j, other in enumerate(heard, start=1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
    return int(row[-1])


def word_error_rate(samples: Floats, sample_rate: int, transcript: str) -> float:
    """Word errors over the transcript's words; 0 is perfect, above 1 is possible."""
    said = words(transcript)
    return word_errors(said, words(recognised(samples, sample_rate))) / len(said)


def pitch_track(samples: Floats, sample_rate: int) -> Floats:
    """Fundamental in Hz every 10 ms, 0 where unvoiced.

    YIN twice: the second time only around the speaker's own range (De Looze and Hirst, 2008), which keeps octaves out.
    """
    wave = at_judge_rate(samples, sample_rate)
    first = _yin(wave, LOWEST_HZ, HIGHEST_HZ)
    voiced = first[first > 0]
    if len(voiced) < MIN_VOICED_FRAMES:
        return first
    low, high = np.percentile(voiced, [25, 75])
    return _yin(wave, max(LOWEST_HZ, 0.7 * float(low)), min(HIGHEST_HZ, 1.7 * float(high)))


def _yin(wave: Floats, lowest_hz: float, highest_hz: float) -> Floats:
    """Fundamental of each frame between two bounds by the cumulative mean normalised difference; 0 where unvoiced."""
    longest = int(JUDGE_RATE / lowest_hz) + 2
    span, hop = PITCH_WINDOW + longest, round(PITCH_HOP_S * JUDGE_RATE)
    if len(wave) < span:
        return np.zeros(0, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, span)[::hop].astype(np.float64)
    n_fft = 2 * span
    head = np.conj(np.fft.rfft(frames[:, :PITCH_WINDOW], n_fft))
    products = np.fft.irfft(np.fft.rfft(frames, n_fft) * head, n_fft)[:, :longest]
    energies = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    energies = energies[:, PITCH_WINDOW : PITCH_WINDOW + longest] - energies[:, :longest]
    difference = np.maximum(energies[:, :1] + energies - 2 * products, 0)
    lags = np.arange(longest)
    normal = np.ones_like(difference)
    normal[:, 1:] = difference[:, 1:] * lags[1:] / (np.cumsum(difference[:, 1:], axis=1) + 1e-12)
    shortest = max(2, int(JUDGE_RATE / highest_hz))
    level = np.sqrt(energies[:, 0])
    pitch = np.zeros(len(frames), np.float32)
    for i in np.flatnonzero((level > LOUD * level.max(initial=0)) & (level > 0)):
        pitch[i] = _pitch_of(normal[i], shortest, longest - 1)
    return pitch


def _pitch_of(normal: npt.NDArray[np.float64], shortest: int, longest: int) -> float:
    """Pitch in Hz of one frame's normalised differences [lags]: the first deep dip, else the deepest; 0 if shallow."""
    inside = normal[shortest:longest]
    deep = np.flatnonzero(inside < DIP)
    lag = int(deep[0]) if len(deep) else int(inside.argmin())
    while lag + 1 < len(inside) and inside[lag + 1] < inside[lag]:
        lag += 1
    lag += shortest
    if normal[lag] > VOICED:
        return 0.0
    before, here, after = normal[lag - 1 : lag + 2]
    bend = before - 2 * here + after
    return float(JUDGE_RATE / (lag + (0.5 * (before - after) / bend if bend > 0 else 0.0)))


def pitch_correlation(a: Floats, b: Floats) -> float | None:
    """Correlation of log pitch over the frames that are voiced in both tracks; None where they are too few or flat."""
    n = min(len(a), len(b))
    both = (a[:n] > 0) & (b[:n] > 0)
    if both.sum() < MIN_VOICED_FRAMES:
        return None
    x, y = np.log(a[:n][both]), np.log(b[:n][both])
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else None


def semitones_above(a: Floats, b: Floats) -> float | None:
    """How far the median pitch of track `a` lies above that of `b`; None where one of them has no voice."""
    if not (a > 0).any() or not (b > 0).any():
        return None
    return float(12 * np.log2(np.median(a[a > 0]) / np.median(b[b > 0])))


def level_db(samples: Floats) -> float:
    """Root mean square in dB of full scale; silence is -120."""
    return float(20 * np.log10(max(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), 1e-6)))


@dataclass(frozen=True)
class Ratings:
    """DNSMOS P.835, from 1 to 5: the speech itself, the background, all in all."""

    speech: float
    background: float
    overall: float

    @classmethod
    def of(cls, raw: Sequence[float]) -> "Ratings":
        """From what the network puts out."""
        return cls(*(float(np.polyval(curve, x)) for curve, x in zip(DNSMOS_CURVES, raw, strict=True)))


class Dnsmos:
    """The scorer file of Microsoft's DNS-Challenge, sig_bak_ovr.onnx."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise JudgeMissing("DNSMOS needs onnxruntime: pip install 'seedvc-serve[quality]'") from error
        if not path.is_file():
            raise JudgeMissing(f"no DNSMOS scorer file at {path}; it is sig_bak_ovr.onnx of the DNS-Challenge")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, samples: Floats, sample_rate: int) -> Ratings:
        """Ratings of the first 9 s; what is shorter is repeated, as in the published scorer."""
        wave = np.resize(at_judge_rate(samples, sample_rate), DNSMOS_SAMPLES)[None]
        (raw,) = self._session.run(None, {self._session.get_inputs()[0].name: wave})[0]
        return Ratings.of(raw)


class Heard:
    """A recording (mono) and what the judges say of it, each asked once and only when needed."""

    def __init__(self, samples: Floats, sample_rate: int, dnsmos: Dnsmos | None = None) -> None:
        self.samples, self.sample_rate, self._dnsmos = samples, sample_rate, dnsmos

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    @functools.cached_property
    def embedding(self) -> Floats:
        """Speaker vector [256]."""
        return speaker_embedding(self.samples, self.sample_rate)

    @functools.cached_property
    def words(self) -> list[str]:
        """What the recogniser hears."""
        return words(recognised(self.samples, self.sample_rate))

    @functools.cached_property
    def pitch(self) -> Floats:
        """Hz every 10 ms, 0 where unvoiced."""
        return pitch_track(self.samples, self.sample_rate)

    @functools.cached_property
    def ratings(self) -> Ratings | None:
        """DNSMOS, where there is a scorer."""
        return self._dnsmos(self.samples, self.sample_rate) if self._dnsmos else None

    def similarity(self, other: "Heard") -> float:
        """Cosine of the two speaker vectors."""
        return float(self.embedding @ other.embedding)

    def word_error_rate(self, said: Sequence[str]) -> float | None:
        """Word errors over the words that were said; None where there are none."""
        return word_errors(said, self.words) / len(said) if said else None
