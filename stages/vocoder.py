"""Vocoder stage: mel to sound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from configs.schema import Preset
from stages.checkpoints import Checkpoint, load_network
from stages.encoder import same
from stages.models.bigvgan import BigVgan
from stages.models.mel_match import MelMatch
from stages.types import Mel, Samples, VocodeRequest

MIN_MATCHED_FRAMES = 4
"""Below this a wave is shorter than one analysis window and its mirrored edges."""


class VocoderStage:
    """BigVGAN in float32; mels of equal length share a batch."""

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self._device = device
        self._network = load_network(BigVgan(checkpoint.sizes.bigvgan), "bigvgan", checkpoint, device)
        self._has_pitch = checkpoint.sizes.carries_pitch
        self._match = MelMatch(checkpoint.sizes.mel, preset.mel_match_passes).to(device)

    def __call__(self, mels: Sequence[Mel], requests: Sequence[VocodeRequest]) -> list[Samples]:
        """Samples [256 * frames] in [-1, 1] for each mel's wanted frames."""
        wanted = [mel[:, -r.last_frames :] if r.last_frames else mel for mel, r in zip(mels, requests, strict=True)]
        results: list[Samples] = [np.empty(0, np.float32)] * len(wanted)
        for group in same(mel.shape for mel in wanted):
            for i, wave in zip(group, self._vocode(np.stack([wanted[i] for i in group])), strict=True):
                results[i] = wave
        return results

    @torch.inference_mode()
    def _vocode(self, mels: np.ndarray) -> list[Samples]:
        mel, f0 = torch.from_numpy(mels).to(self._device), None
        if self._has_pitch:
            mel, f0 = mel[:, :-1], mel[:, -1]
        waves = self._network(mel)
        if mels.shape[-1] >= MIN_MATCHED_FRAMES:
            waves = self._match(waves, mel, f0)
        return [np.ascontiguousarray(wave) for wave in waves.cpu().numpy()]
