"""Voice stage: a reference recording to a Voice, once per voice."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from configs.schema import ModelSizes, Preset
from stages.checkpoints import Checkpoint, load_network
from stages.diffusion import DiffusionStage
from stages.encoder import EncoderStage
from stages.geometry import MODEL_RATE, TICK_16K, TICK_MODEL, mel_frames, prompt_samples
from stages.models.campplus import Campplus, centred_fbank
from stages.models.mel import MelSpectrogram
from stages.pitch import median_hz, pitch_hz
from stages.reference import (
    STYLE_STEP_S,
    STYLE_WINDOW_S,
    ReferenceReport,
    brought_into,
    check_reference,
    level_dbfs,
    prepared,
    several_speakers,
    spoken,
)
from stages.resample import to_content_rate
from stages.types import DiffuseRequest, EncodeRequest, Prompt, Samples, Voice

RECIPE = 4
"""Goes up with each change of this file that makes another voice of the same recording."""
CALIBRATION_S = 8.0
QUIET_SHARE, BAND_GAINS, HELD = 0.4, (0.6, 2.2), 1.0
"""The share of quiet frames left out; bounds of a band's gain; how firmly the map is held (nepers squared)."""
LEADING_SILENCE = 10 ** (-50 / 20)
"""Leading samples this far below the loudest one are cut off."""


def fingerprint(preset: Preset, checkpoint: Checkpoint) -> str:
    """Names everything that a Voice depends on: the weights, the encoder's window, the prompts' lengths."""
    parts = (
        RECIPE,
        checkpoint.fingerprint,
        preset.whisper_window,
        preset.precision,
        preset.live.prompt_ms,
        preset.live.style_ms,
        preset.file.prompt_ms,
        preset.calibrate_voices,
        preset.temperature if preset.calibrate_voices else None,
        preset.reference_dbfs,
    )
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def as_rendered(n_mels: int) -> np.ndarray:
    """Bands [mels, mels + 1] that change nothing."""
    return np.eye(n_mels, n_mels + 1, dtype=np.float32)


def bands_towards(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Weights and offset [mels, mels + 1] that bring the louder frames of `made` to those of `real`, frame by frame.

    Both are mels [mels, frames] of the same words. A network that has learnt for a short time lands near the mean of
    all voices, and varies too little. Three steps correct that: band by band; by a linear map of all bands, held near
    the identity since a reference is short; and band by band again, for what the map smoothes away.
    """
    loud = _loud(made)
    first = _mean_and_spread_towards(real, made)
    centre = real[:, loud].mean(axis=1, keepdims=True)
    x, y = (_applied(first, made) - centre)[:, loud], (real - centre)[:, loud]
    held = HELD * x.shape[1] * np.eye(len(x))
    weights = np.linalg.solve(x @ x.T + held, x @ y.T + held).T  # (mels, mels)
    second = np.column_stack([weights, centre - weights @ centre])
    third = _mean_and_spread_towards(real, _applied(second, _applied(first, made)))
    return _chained(first, second, third).astype(np.float32)


def _mean_and_spread_towards(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The same with a gain and an offset for each band alone."""
    (made_mean, made_spread), (real_mean, real_spread) = (_loud_statistics(mel) for mel in (made, real))
    gain = np.clip(real_spread / made_spread, *BAND_GAINS)
    return np.column_stack([np.diag(gain), real_mean - gain * made_mean])


def _applied(bands: np.ndarray, mel: np.ndarray) -> np.ndarray:
    return np.asarray(bands[:, :-1] @ mel + bands[:, -1:])


def _chained(*bands: np.ndarray) -> np.ndarray:
    """One map that does the same as all, one after the other."""
    chain = bands[0]
    for following in bands[1:]:
        chain = following[:, :-1] @ chain
        chain[:, -1] += following[:, -1]
    return chain


def _loud(mel: np.ndarray) -> np.ndarray:
    level = mel.mean(axis=0)
    return np.asarray(level >= np.quantile(level, QUIET_SHARE))


def _loud_statistics(mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loud = mel[:, _loud(mel)]
    return loud.mean(axis=1), loud.std(axis=1) + 1e-3


def blank_voice(preset: Preset, sizes: ModelSizes) -> Voice:
    """A voice of zeros with the preset's prompt lengths, to warm a stage up with."""

    def prompt(prompt_ms: int) -> Prompt:
        frames = mel_frames(prompt_samples(prompt_ms))
        return Prompt(
            mel=np.zeros((sizes.mel.n_mels, frames), np.float32),
            condition=np.zeros((frames, sizes.regulator.channels), np.float32),
            style=np.zeros(sizes.campplus.style_dim, np.float32),
            pitch_hz=np.zeros(1, np.float32),
            bands=as_rendered(sizes.mel.n_mels),
        )

    return Voice(live=prompt(preset.live.prompt_ms), file=prompt(preset.file.prompt_ms), fingerprint="blank")


class VoiceStage:
    """Whisper, mel and CAM++ over a reference, in the prompts' two lengths."""

    def __init__(
        self,
        preset: Preset,
        checkpoint: Checkpoint,
        encoder: EncoderStage,
        diffusion: DiffusionStage,
        device: str = "cpu",
    ) -> None:
        self._encoder, self._diffusion, self._device = encoder, diffusion, device
        self._preset, self._n_mels = preset, checkpoint.sizes.mel.n_mels
        self._mel = MelSpectrogram(checkpoint.sizes.mel).to(device)
        self._campplus = load_network(Campplus(checkpoint.sizes.campplus), "campplus", checkpoint, device)
        self._live_samples = prompt_samples(preset.live.prompt_ms)
        self._style_samples = prompt_samples(preset.live.style_ms) if preset.live.style_ms else None
        self._file_samples = prompt_samples(preset.file.prompt_ms)
        self.fingerprint = fingerprint(preset, checkpoint)

    def __call__(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """The voice of a mono recording of at least 1 s, warnings, and how good it is; BadAudio where there is none."""
        speech, rate, warnings = spoken(check_reference(samples, sample_rate), sample_rate)
        reference = prepared(speech, rate)
        wave = without_leading_silence(reference.wave)
        report = replace(reference.report, several_speakers=self._hears_several(wave))
        wave = brought_into(wave, level_dbfs(wave), *self._preset.reference_dbfs)
        content_wave = to_content_rate(wave)
        pitch = np.array([median_hz(pitch_hz(content_wave, len(content_wave) // TICK_16K + 1))], np.float32)
        live = self._prompt(np.resize(wave, self._live_samples), pitch)
        if self._style_samples:
            live = replace(live, style=self._style(wave[: self._style_samples]))
        file = self._prompt(wave[: self._file_samples], pitch)
        voice = Voice(live=live, file=file, fingerprint=self.fingerprint)
        if self._preset.calibrate_voices:
            voice = self._calibrated(voice, wave)
        return voice, [*warnings, *report.warnings], report

    def _hears_several(self, wave: Samples) -> bool:
        """Whether the windows of a reference are of more than one speaker."""
        size, step = int(STYLE_WINDOW_S * MODEL_RATE), int(STYLE_STEP_S * MODEL_RATE)
        starts = range(0, max(1, len(wave) - size + 1), step)
        windows = [wave[start : start + size] for start in starts]
        pitches = [median_hz(pitch_hz(to_content_rate(window), size // TICK_MODEL)) for window in windows]
        return several_speakers(np.stack([self._style(window) for window in windows]), np.array(pitches))

    def _prompt(self, wave: Samples, pitch: np.ndarray) -> Prompt:
        content = self._encoder([EncodeRequest(to_content_rate(wave))])[0]
        condition = self._diffusion.condition(content, mel_frames(len(wave)), pitch)
        return Prompt(
            mel=self._mel_of(wave),
            condition=condition,
            style=self._style(wave),
            pitch_hz=pitch,
            bands=as_rendered(self._n_mels),
        )

    def _calibrated(self, voice: Voice, wave: Samples) -> Voice:
        """The voice with bands that bring the conversion of its reference nearest to the reference."""
        wave = wave[: int(CALIBRATION_S * MODEL_RATE)]
        content = self._encoder([EncodeRequest(to_content_rate(wave))])[0]
        real, n = self._mel_of(wave), mel_frames(len(wave))
        prompts = []
        for prompt, settings, is_live in (
            (voice.live, self._preset.live, True),
            (voice.file, self._preset.file, False),
        ):
            request = DiffuseRequest(voice, n, 0, n, 0, 0, settings.steps, settings.cfg_rate, live=is_live)
            made = self._diffusion([content], [request], [voice])[0][: self._n_mels]
            prompts.append(replace(prompt, bands=bands_towards(real[:, : made.shape[1]], made[:, : real.shape[1]])))
        return replace(voice, live=prompts[0], file=prompts[1])

    @torch.inference_mode()
    def _mel_of(self, wave: Samples) -> np.ndarray:
        return np.asarray(self._mel(torch.from_numpy(wave).unsqueeze(0).to(self._device))[0].cpu().numpy())

    @torch.inference_mode()
    def _style(self, wave: Samples) -> np.ndarray:
        fbank = centred_fbank(torch.from_numpy(to_content_rate(wave))).unsqueeze(0)
        return np.asarray(self._campplus(fbank.to(self._device))[0].cpu().numpy())


def without_leading_silence(wave: Samples) -> Samples:
    """Cuts whole ticks of silence before the voice, which would waste a short prompt. At least a second is left."""
    loud = np.flatnonzero(np.abs(wave) > np.abs(wave).max() * LEADING_SILENCE)
    start = int(loud[0]) // TICK_MODEL * TICK_MODEL
    return wave[min(start, max(0, len(wave) - MODEL_RATE)) :]
