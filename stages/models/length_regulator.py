"""Length regulator: content features at 50 Hz stretched to the mel frame rate and smoothed, with pitch or without."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import RegulatorSizes

N_CONVS = 4
LOWEST_HZ, HIGHEST_HZ = 50.0, 1100.0


def mel_scale(hz: Tensor | float) -> Tensor:
    """The mel scale whose unit is 1127 ln(1 + f / 700)."""
    return 1127.0 * torch.log1p(torch.as_tensor(hz, dtype=torch.float32) / 700.0)


def coarse_pitch(f0: Tensor, bins: int) -> Tensor:
    """Pitch in Hz [..] to one of `bins` steps of the mel scale, int64: 1 where unvoiced or below 50 Hz.

    What lies above the last bin becomes 0, as in upstream, whose networks were trained with that.
    """
    low, high = mel_scale(LOWEST_HZ), mel_scale(HIGHEST_HZ)
    slope = (bins - 2) / (high - low)
    place = mel_scale(f0) * slope - (low * slope - 1.0)
    step = torch.where(f0 > 0, place, 0.0).round().long().clamp(min=1)
    return torch.where(step >= bins, 0, step)


def nearest_index(n_in: int, n_out: int) -> Tensor:
    """Source frame of each target frame [n_out], int64, in float32 arithmetic.

    Exact integers would differ in places (1500 to 2583: frames 861 and 1722), and upstream's networks were trained
    with the float32 rounding.
    """
    ratio = np.float32(n_in) / np.float32(n_out)
    index = np.floor(np.arange(n_out, dtype=np.float32) * ratio).astype(np.int64)
    return torch.from_numpy(np.minimum(index, n_in - 1))


class LengthRegulator(nn.Module):
    """Content [B, T_in, in_channels] and, where told, pitch [B, T_f0] in Hz to conditions [B, max(lengths), channels].

    Group norm sees the whole sequence, so a frame depends on the total length: a chunk of a long sequence is not the
    sequence of a chunk. Rows behind an item's length are zero.
    """

    def __init__(self, sizes: RegulatorSizes) -> None:
        super().__init__()
        channels = sizes.channels
        self.content_in_proj = nn.Linear(sizes.in_channels, channels)
        layers: list[nn.Module] = []
        for _ in range(N_CONVS):
            layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))
        self.f0_bins = sizes.f0_bins
        if sizes.f0_bins:
            self.f0_embedding = nn.Embedding(sizes.f0_bins, channels)
            self.f0_mask = nn.Parameter(torch.zeros(1, channels))

    def forward(self, x: Tensor, lengths: Tensor, f0: Tensor | None = None) -> Tensor:
        n_out = int(lengths.max())
        x = self.content_in_proj(x)
        x = x[:, nearest_index(x.shape[1], n_out).to(x.device)]  # (B, n_out, channels)
        if self.f0_bins and f0 is not None:
            pitch = self.f0_embedding(coarse_pitch(f0, self.f0_bins))
            x = x + pitch[:, nearest_index(f0.shape[1], n_out).to(x.device)]
        elif self.f0_bins:
            x = x + self.f0_mask
        x = self.model(x.transpose(1, 2)).transpose(1, 2)
        mask = torch.arange(n_out, device=x.device) < lengths.to(x.device).unsqueeze(1)
        return x * mask.unsqueeze(-1)
