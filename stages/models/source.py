"""Harmonic source: what the vocal cords would do at a given pitch, with a flat spectrum, for small vocoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import MelSettings

HIGHEST_HZ, TAPER_HZ = 6000.0, 1000.0
LOWEST_HZ = 60.0
LEVEL = 0.02
DISPERSION_S = 1.2e-3
"""Later arrival of the highest harmonics: pulses of zero phase buzz."""


class HarmonicSource(nn.Module):
    """Pitch [B, T] in Hz, 0 where unvoiced, to harmonics [B, 256 * T] of equal strength and silence elsewhere."""

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.rate, self.hop = settings.sample_rate, settings.hop

    def forward(self, f0: Tensor) -> tuple[Tensor, Tensor]:
        """Also returns how voiced each frame is [B, T], 0 to 1."""
        voiced = (f0 > 0).float()
        hz = self._upsampled(_held(f0))
        phase = (2 * math.pi / self.rate * hz.double()).cumsum(dim=-1).remainder(2 * math.pi).float()
        turn = torch.polar(torch.ones_like(phase), phase)
        harmonic, wave = torch.ones_like(turn), torch.zeros_like(hz)
        for k in range(1, int(HIGHEST_HZ / max(LOWEST_HZ, float(hz.min()))) + 1):
            harmonic = harmonic * turn
            own_hz = k * hz
            delay = DISPERSION_S * math.pi * own_hz.square() / HIGHEST_HZ  # group delay rises with frequency
            strength = ((HIGHEST_HZ - own_hz) / TAPER_HZ).clamp(0, 1)
            wave = wave + strength * (harmonic.real * delay.cos() + harmonic.imag * delay.sin())
        return LEVEL * wave * self._upsampled(voiced), voiced

    def _upsampled(self, frames: Tensor) -> Tensor:
        """Frames [B, T], each at the middle of its hop, to samples [B, 256 * T] by straight lines."""
        return F.interpolate(frames.unsqueeze(1), scale_factor=self.hop, mode="linear").squeeze(1)


def _held(f0: Tensor) -> Tensor:
    """Pitch [B, T] with the last voiced value in its gaps, and the first one before it."""
    place = torch.arange(f0.shape[-1], device=f0.device).expand_as(f0)
    last = torch.where(f0 > 0, place, -1).cummax(dim=-1).values
    first = (f0 > 0).float().argmax(dim=-1, keepdim=True)
    held = f0.gather(-1, torch.where(last >= 0, last, first))
    return torch.where(held > 0, held, 100.0)  # nothing voiced at all: any pitch will do, it is not heard
