"""Mel matching: corrects a vocoded wave's spectral envelope until its mel is the mel that was asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import MelSettings
from stages.models.mel import MelSpectrogram

MAX_GAIN = 6.0
"""Natural logarithm of the largest correction, 52 dB: silence is not blown up to anything."""
ENERGY_FLOOR = 1e-3
KNEE, CEILING = 0.8, 0.97


def limited(x: Tensor) -> Tensor:
    """Samples of any size bent smoothly below the ceiling; what lies under the knee stays as it is."""
    room = CEILING - KNEE
    over = (x.abs() - KNEE).clamp(min=0.0)
    return x.clamp(-KNEE, KNEE) + x.sign() * room * torch.tanh(over / room)


class MelMatch(nn.Module):
    """Waves [B, 256 * T] in [-1, 1] and their wanted log-mel [B, mels, T] to waves whose mel is nearer to it.

    Each pass multiplies the short-time spectrum by what the mel lacks, spread over the bins by the filterbank, and adds
    the frames up again; phases and harmonics stay the vocoder's. A cure for small vocoders: see docs/decisions.
    """

    def __init__(self, settings: MelSettings, passes: int) -> None:
        super().__init__()
        self.passes = passes
        self.mel = MelSpectrogram(settings)

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        for _ in range(self.passes):
            x = self._filter(x, (mel - self.mel(x)).clamp(-MAX_GAIN, MAX_GAIN))
        return limited(x) if self.passes else x

    def _filter(self, x: Tensor, gains: Tensor) -> Tensor:
        """Multiply x by e^gains [B, mels, T]; analysis and synthesis share the mel's frames and window."""
        n_fft, hop, window = self.mel.n_fft, self.mel.hop, self.mel.window
        pad, n_samples = (n_fft - hop) // 2, x.shape[-1]
        spread = self.mel.filterbank / (self.mel.filterbank.sum(dim=0, keepdim=True) + 1e-8)  # (mels, bins)
        padded = F.pad(x.unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
        spectrum = torch.stft(padded, n_fft, hop, n_fft, window, center=False, return_complex=True)
        frames = torch.fft.irfft(spectrum * torch.exp(spread.T @ gains), dim=1) * window[:, None]  # (B, n_fft, T)
        energy = window.square()[None, :, None].expand(1, -1, frames.shape[-1])
        length = (1, padded.shape[-1])
        added, norm = (F.fold(part, length, (1, n_fft), stride=(1, hop))[:, 0, 0] for part in (frames, energy))
        return (added / norm.clamp(min=ENERGY_FLOOR))[:, pad : pad + n_samples]
