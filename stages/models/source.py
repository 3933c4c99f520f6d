"""Harmonic source: pulses as of vocal cords at a given pitch, with a flat spectrum, for small vocoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import MelSettings

HIGHEST_HZ, TAPER_HZ = 6000.0, 1000.0
LEVEL = 0.02
DISPERSION_S = 1.2e-3
"""Later arrival of the highest harmonics: pulses of zero phase buzz."""
PULSE = 128
"""Samples of a pulse: the dispersion's 27, and the ringing of the band's edges on both sides."""
EARLY = 24
"""Samples of a pulse that lie before its instant."""
OFFSETS = 32
"""Places between two samples at which a pulse can begin: 1.4 microseconds, a hundredth turn at the highest harmonic."""


def pulses(sample_rate: int) -> Tensor:
    """One glottal pulse per offset [32, 128]: equal strength up to the highest harmonic, the higher ones later."""
    hz = torch.linspace(0, sample_rate / 2, 2049, dtype=torch.float64)[1:-1]
    strength = ((HIGHEST_HZ - hz) / TAPER_HZ).clamp(0, 1)
    phase = DISPERSION_S * math.pi * hz.square() / HIGHEST_HZ  # group delay rises with frequency
    time = torch.arange(PULSE, dtype=torch.float64) - EARLY - torch.arange(OFFSETS)[:, None] / OFFSETS
    angles = 2 * math.pi / sample_rate * time[..., None] * hz - phase  # (offsets, samples, frequencies)
    return ((strength * angles.cos()).sum(dim=-1) * (hz[1] - hz[0])).float()


class HarmonicSource(nn.Module):
    """Pitch [B, T] in Hz, 0 where unvoiced, to harmonics [B, 256 * T] of equal strength and silence elsewhere."""

    pulses: Tensor

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.rate, self.hop = settings.sample_rate, settings.hop
        self.register_buffer("pulses", pulses(settings.sample_rate), persistent=False)

    def forward(self, f0: Tensor) -> tuple[Tensor, Tensor]:
        """Also returns how voiced each frame is [B, T], 0 to 1.

        Harmonics of amplitude one are a train of pulses of 1 / f0: one is laid down wherever the phase comes round, to
        a 32nd of a sample.
        """
        voiced = (f0 > 0).float()
        hz = self._upsampled(_held(f0))
        turns = (hz.double() / self.rate).cumsum(dim=-1)  # (B, samples)
        item, sample = (turns.floor() > F.pad(turns, (1, 0))[:, :-1].floor()).nonzero(as_tuple=True)
        late = (turns.frac()[item, sample] * self.rate / hz[item, sample]).clamp(max=1 - 1 / OFFSETS)
        offset = ((1 - late) * OFFSETS).long().clamp(max=OFFSETS - 1)
        own = self.pulses[offset] / hz[item, sample][:, None]  # (pulses, 128)
        length = hz.shape[-1] + PULSE
        place = (item * length + sample - 1)[:, None] + torch.arange(PULSE, device=hz.device)
        train = hz.new_zeros(len(hz) * length).index_add_(0, place.flatten(), own.flatten())
        wave = train.view(len(hz), length)[:, EARLY : EARLY + hz.shape[-1]]
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
    return torch.where(held > 0, held, 100.0)  # nothing is voiced, so the pitch is not heard
