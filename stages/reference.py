"""Checks a reference recording before a voice is made of it, and mends faults.

A good recording passes unchanged, sample for sample, so that networks can be compared with upstream's. Mended are
rumble and DC, stretches without speech, music, and a level outside of the preset's range.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.denoise import without_noise, without_tones
from stages.geometry import MODEL_RATE, TICK_16K, TICK_MODEL, TICKS_PER_S
from stages.pitch import median_hz
from stages.resample import to_content_rate, to_model_rate
from stages.speech import FIRST_BIN, LEAST_SPEECH_TICKS, joined, runs, spectra, speech_ticks
from stages.types import BadAudio, Samples, as_mono

MIN_REFERENCE_S = 1.0
MAX_REFERENCE_S = 30.0
"""How much speech of a reference is used."""
SEARCHED_S = 120.0
"""How far into a long recording speech is looked for."""
SILENCE_PEAK = 1e-3
"""A reference whose loudest sample is below -60 dB of full scale holds no voice."""

RUMBLE_HZ = (20.0, 50.0)
"""Nothing below the first is voice; all above the second may be."""
RUMBLE_SHARE = 1e-2
"""Rumble 20 dB below the whole is not heard, and stays."""
QUIET_PART = 12
"""The quietest twelfth of the frames shows the background of the voice."""
BAND, N_BANDS = 24, 8
"""Bands of 375 Hz from 125 Hz on, in bins."""
MOST_SNR_DB = 60.0
BACKGROUND_SNR_DB, NOISY_DB = 26.0, 20.0
"""Above the first, noise and the voice's own pauses cannot be told apart: clean recordings measured 28 and more."""
ROUGH = 0.95
"""Nepers between a band's mean and its typical bin: noise of any colour has 0.55, tones and other voices above 1.1."""
STYLE_WINDOW_S, STYLE_STEP_S = 2.0, 1.0
LEAST_WINDOWS, LEAST_GROUP, ROUNDS = 4, 0.2, 10
OTHER_SPEAKER, LIKELY_OTHER, OTHER_PITCH = 0.5, 0.7, 2 ** (5 / 12)
"""Groups are two people below the first cosine of their means; below the second where pitches differ by a fourth."""
FLAT_TOP = 3
CLIPPED_SHARE = 1e-3
LITTLE_SPEECH_S, ENOUGH_SPEECH_S = 5.0, 10.0
QUIET_DBFS = -45.0


@dataclass(frozen=True)
class ReferenceReport:
    """How good a reference is.

    `speech_s` seconds of speech are used; `level_dbfs` is that speech's level as it was recorded, `snr_db` how far it
    lies over what is behind it, `clipped_share` the part of the samples that were cut at full scale.
    """

    speech_s: float
    level_dbfs: float
    snr_db: float
    clipped_share: float = 0.0
    music: bool = False
    several_speakers: bool = False

    def described(self) -> dict[str, Any]:
        """The rounded figures, a summary and warnings, as they are stored with a voice and shown."""
        figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**figures, "summary": self.summary, "advice": self.warnings}

    @property
    def summary(self) -> str:
        """One plain line."""
        speech = f"{self.speech_s:.1f} s of speech at {self.level_dbfs:.0f} dBFS"
        return f"{speech}, {self.snr_db:.0f} dB over what is behind it"

    @property
    def warnings(self) -> list[str]:
        """Advice on how the reference would sound better."""
        found = []
        if not self.speech_s:
            found.append("no speech was found in the reference; one voice that speaks for 10 s or more is needed")
        elif self.speech_s < LITTLE_SPEECH_S:
            found.append(f"{self.speech_s:.1f} s of speech found; {ENOUGH_SPEECH_S:.0f} s or more sound better")
        if self.speech_s and self.music:
            found.append(
                "there is music, a hum or other voices behind the voice; it was taken out as far as possible, "
                "but the voice alone sounds better"
            )
        elif self.speech_s and self.snr_db < NOISY_DB:
            found.append(
                f"the voice is only {self.snr_db:.0f} dB over the noise behind it; a quiet room sounds better, or "
                "have the noise removed"
            )
        if self.clipped_share > CLIPPED_SHARE:
            found.append(f"{self.clipped_share:.1%} of the reference is clipped; a lower recording level sounds better")
        if self.speech_s and self.level_dbfs < QUIET_DBFS:
            found.append(f"the voice is very quiet ({self.level_dbfs:.0f} dBFS); a closer microphone sounds better")
        if self.several_speakers:
            found.append("the reference seems to hold more than one speaker; a voice is made of one")
        return found


def check_reference(samples: NDArray[Any], sample_rate: int) -> Samples:
    """The reference as float32 mono; raises where no voice can be in it.

    Raises:
        BadAudio: shorter than 1 s, silent, not finite.
    """
    mono = as_mono(samples)
    duration_s = len(mono) / sample_rate
    if duration_s < MIN_REFERENCE_S:
        raise BadAudio(
            "too_short", f"the reference lasts {duration_s:.2f} s; at least {MIN_REFERENCE_S:.0f} s is needed"
        )
    if float(np.abs(mono - np.median(mono)).max()) < SILENCE_PEAK:
        raise BadAudio("silent", "the reference is silent; a recording of one voice is needed")
    return mono


def without_rumble(wave: Samples, sample_rate: int) -> Samples:
    """The wave without DC and rumble, where there is enough of them to matter."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    hz = np.fft.rfftfreq(len(wave), 1 / sample_rate)
    power = np.square(np.abs(spectrum))
    lowest, highest = RUMBLE_HZ
    kept = np.clip((hz - lowest) / (highest - lowest), 0, 1)
    if float(np.sum(power * (1 - kept))) <= RUMBLE_SHARE * float(np.sum(power)):
        return wave
    return np.asarray(np.fft.irfft(spectrum * np.sin(kept * np.pi / 2) ** 2, len(wave)), np.float32)


def spoken(samples: Samples, sample_rate: int, most_s: float = MAX_REFERENCE_S) -> tuple[Samples, int, list[str]]:
    """Returns the recording, or its speech at 22.05 kHz where it is longer than `most_s`.

    Also returns the rate, and warnings that say what was left out.
    """
    duration_s = len(samples) / sample_rate
    if duration_s <= most_s:
        return samples, sample_rate, []
    wave = to_model_rate(samples[: int(SEARCHED_S * sample_rate)], sample_rate)
    flags = speech_ticks(to_content_rate(without_rumble(wave, MODEL_RATE)))
    found = flags.sum() >= LEAST_SPEECH_TICKS
    if found:
        wave = joined(wave, flags)
    what = "its speech" if found else "its beginning"
    if len(wave) > most_s * MODEL_RATE:
        what = f"the first {most_s:g} s" + (" of its speech" if found else "")
    told = f"the reference lasts {duration_s:.1f} s; only {what} is used"
    return wave[: int(most_s * MODEL_RATE)], MODEL_RATE, [told]


@dataclass(frozen=True)
class PreparedReference:
    """What a voice is made of, at 22.05 kHz, and how good it is."""

    wave: Samples
    report: ReferenceReport


def prepared(samples: Samples, sample_rate: int) -> PreparedReference:
    """The speech of a checked reference at its own level, without rumble and music."""
    wave = without_rumble(to_model_rate(samples, sample_rate), MODEL_RATE)
    clipped, (snr_db, music) = clipped_share(samples), background(wave)
    if music:
        wave = without_noise(without_tones(wave), MODEL_RATE)
    flags = speech_ticks(to_content_rate(wave))
    if flags.sum() < LEAST_SPEECH_TICKS:
        return PreparedReference(wave, ReferenceReport(0.0, level_dbfs(wave), MOST_SNR_DB, clipped))
    level = level_dbfs(wave[: len(flags) * TICK_MODEL].reshape(-1, TICK_MODEL)[flags])
    speech = joined(wave, flags)[: int(MAX_REFERENCE_S * MODEL_RATE)]
    if len(speech) < MIN_REFERENCE_S * MODEL_RATE:
        speech = np.resize(speech, int(MIN_REFERENCE_S * MODEL_RATE))
    if not music:
        snr_db, music = background(speech)  # measured again, without the parts that were cut out
        if music:
            speech = without_noise(without_tones(speech), MODEL_RATE)
    speech_s = min(MAX_REFERENCE_S, float(flags.sum()) / TICKS_PER_S)
    return PreparedReference(speech, ReferenceReport(speech_s, level, snr_db, clipped, music))


def background(wave: Samples) -> tuple[float, bool]:
    """How far in dB a voice lies over the sound in its pauses, and whether that sound is music or other voices."""
    content_wave = to_content_rate(wave)
    power = spectra(content_wave, len(content_wave) // TICK_16K)[:, FIRST_BIN : FIRST_BIN + BAND * N_BANDS] ** 2 + 1e-9
    energy = power.sum(axis=1)
    loud = float(np.mean(energy[energy >= np.median(energy)]))
    quiet = power[np.argsort(energy)[: max(3, len(energy) // QUIET_PART)]]
    snr_db = min(MOST_SNR_DB, float(10 * np.log10(loud / np.median(quiet.sum(axis=1)))))
    bands = quiet.reshape(len(quiet), N_BANDS, BAND)
    rough = np.log(bands.mean(axis=2)) - np.log(bands).mean(axis=2)
    share = bands.sum(axis=2) / quiet.sum(axis=1, keepdims=True)
    return snr_db, bool(snr_db < BACKGROUND_SNR_DB and np.median((rough * share).sum(axis=1)) > ROUGH)


def level_dbfs(wave: Samples) -> float:
    """Root mean square over full scale."""
    return 10 * math.log10(float(np.mean(np.square(wave, dtype=np.float64))) + 1e-12)


def brought_into(wave: Samples, level: float, lowest_dbfs: float, highest_dbfs: float) -> Samples:
    """The wave at the nearest allowed level; unchanged where `level` is allowed."""
    gain_db = float(np.clip(level, lowest_dbfs, highest_dbfs)) - level
    return wave if abs(gain_db) < 1e-6 else np.asarray(wave * 10 ** (gain_db / 20), np.float32)


def clipped_share(samples: Samples) -> float:
    """The share of samples that lie in flat tops."""
    peak = float(np.abs(samples).max())
    at_top = np.abs(samples) >= peak * (1 - 1e-3)
    n_flat: int = sum(run.stop - run.start for run in runs(at_top) if run.stop - run.start >= FLAT_TOP)
    return n_flat / len(samples)


def several_speakers(styles: NDArray[np.float32], pitches_hz: NDArray[np.floating[Any]]) -> bool:
    """Whether style vectors [windows, style_dim] and pitches [windows] of a recording are those of two people."""
    unit = styles / (np.linalg.norm(styles, axis=1, keepdims=True) + 1e-9)
    if len(unit) < LEAST_WINDOWS:
        return False
    likeness = unit @ unit.T
    a, b = (unit[i] for i in np.unravel_index(int(likeness.argmin()), likeness.shape))
    for _ in range(ROUNDS):
        first = unit @ a >= unit @ b
        if first.all() or not first.any():
            return False
        a, b = (_unit_mean(unit[group]) for group in (first, ~first))
    if min(first.mean(), 1 - first.mean()) <= LEAST_GROUP:
        return False
    low, high = sorted(median_hz(pitches_hz[group]) for group in (first, ~first))
    is_far = low > 0 and high / low > OTHER_PITCH
    return bool(float(a @ b) < (LIKELY_OTHER if is_far else OTHER_SPEAKER))


def _unit_mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = vectors.mean(axis=0)
    return np.asarray(mean / (np.linalg.norm(mean) + 1e-9), np.float32)
