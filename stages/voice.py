"""VoiceMaker: a reference recording to a Voice, once per voice."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from configs.schema import ModelSizes, Preset
from stages.checkpoints import Checkpoint, load_network
from stages.diffusion import Diffusion
from stages.encoder import Encoder
from stages.geometry import MODEL_RATE, TICK_16K, TICK_MODEL, mel_frames, prompt_samples
from stages.models.campplus import Campplus, centred_fbank
from stages.models.mel import MelSpectrogram
from stages.pitch import median_hz, pitch_hz
from stages.resample import to_content_rate, to_model_rate
from stages.types import BadAudio, EncodeRequest, Prompt, Samples, Voice, as_mono

RECIPE = 2
"""Counts the changes of this file that make other voices of the same recording."""
MIN_REFERENCE_S = 1.0
MAX_REFERENCE_S = 30.0
SILENCE_PEAK = 1e-3
"""A reference whose loudest sample is below -60 dB of full scale holds no voice."""
LEADING_SILENCE = 10 ** (-50 / 20)
"""What lies this far below the loudest sample before the voice begins is cut off."""


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
    )
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def blank_voice(preset: Preset, sizes: ModelSizes) -> Voice:
    """A voice of zeros with the preset's prompt lengths, to warm a stage up with."""

    def prompt(prompt_ms: int) -> Prompt:
        frames = mel_frames(prompt_samples(prompt_ms))
        return Prompt(
            mel=np.zeros((sizes.mel.n_mels, frames), np.float32),
            condition=np.zeros((frames, sizes.regulator.channels), np.float32),
            style=np.zeros(sizes.campplus.style_dim, np.float32),
            pitch_hz=np.zeros(1, np.float32),
        )

    return Voice(live=prompt(preset.live.prompt_ms), file=prompt(preset.file.prompt_ms), fingerprint="blank")


def check_reference(samples: Samples, sample_rate: int) -> tuple[Samples, list[str]]:
    """A reference fit to make a voice of, and what was done to it in words.

    Raises:
        BadAudio: shorter than 1 s, silent, not finite.
    """
    samples = as_mono(samples)
    duration_s = len(samples) / sample_rate
    if duration_s < MIN_REFERENCE_S:
        raise BadAudio(
            "too_short", f"the reference lasts {duration_s:.2f} s; at least {MIN_REFERENCE_S:.0f} s is needed"
        )
    if float(np.abs(samples).max()) < SILENCE_PEAK:
        raise BadAudio("silent", "the reference is silent; a recording of one voice is needed")
    warnings = []
    if duration_s > MAX_REFERENCE_S:
        samples = samples[: int(MAX_REFERENCE_S * sample_rate)]
        warnings.append(f"the reference lasts {duration_s:.1f} s; only its first {MAX_REFERENCE_S:.0f} s are used")
    return samples, warnings


class VoiceMaker:
    """Whisper, mel and CAM++ over a reference, in the prompts' two lengths."""

    def __init__(
        self, preset: Preset, checkpoint: Checkpoint, encoder: Encoder, diffusion: Diffusion, device: str = "cpu"
    ) -> None:
        self._encoder, self._diffusion, self._device = encoder, diffusion, device
        self._mel = MelSpectrogram(checkpoint.sizes.mel).to(device)
        self._campplus = load_network(Campplus(checkpoint.sizes.campplus), "campplus", checkpoint, device)
        self._live_samples = prompt_samples(preset.live.prompt_ms)
        self._style_samples = prompt_samples(preset.live.style_ms) if preset.live.style_ms else None
        self._file_samples = prompt_samples(preset.file.prompt_ms)
        self.fingerprint = fingerprint(preset, checkpoint)

    def __call__(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str]]:
        """The voice of a mono recording of 1 to 30 s, and warnings; BadAudio where there is none."""
        samples, warnings = check_reference(samples, sample_rate)
        wave = without_leading_silence(to_model_rate(samples, sample_rate))
        content_wave = to_content_rate(wave)
        pitch = np.array([median_hz(pitch_hz(content_wave, len(content_wave) // TICK_16K + 1))], np.float32)
        live = self._prompt(np.resize(wave, self._live_samples), pitch)
        if self._style_samples:
            live = replace(live, style=self._style(wave[: self._style_samples]))
        file = self._prompt(wave[: self._file_samples], pitch)
        return Voice(live=live, file=file, fingerprint=self.fingerprint), warnings

    def _prompt(self, wave: Samples, pitch: np.ndarray) -> Prompt:
        content = self._encoder([EncodeRequest(to_content_rate(wave))])[0]
        with torch.inference_mode():
            mel = self._mel(torch.from_numpy(wave).unsqueeze(0).to(self._device))[0].cpu().numpy()
        condition = self._diffusion.condition(content, mel_frames(len(wave)), pitch)
        return Prompt(mel=mel, condition=condition, style=self._style(wave), pitch_hz=pitch)

    @torch.inference_mode()
    def _style(self, wave: Samples) -> np.ndarray:
        fbank = centred_fbank(torch.from_numpy(to_content_rate(wave))).unsqueeze(0)
        return np.asarray(self._campplus(fbank.to(self._device))[0].cpu().numpy())


def without_leading_silence(wave: Samples) -> Samples:
    """Cut silence before the voice, in whole ticks, but leave a second: a short prompt must not be spent on it."""
    loud = np.flatnonzero(np.abs(wave) > np.abs(wave).max() * LEADING_SILENCE)
    start = int(loud[0]) // TICK_MODEL * TICK_MODEL
    return wave[min(start, max(0, len(wave) - MODEL_RATE)) :]
