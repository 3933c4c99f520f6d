"""Log-mel spectrogram that the prompt, the diffusion and the vocoder share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from configs.schema import MelSettings

LOG_FLOOR = 1e-5


def slaney_filterbank(sample_rate: int, n_fft: int, n_mels: int, fmin_hz: float, fmax_hz: float) -> Tensor:
    """Slaney-scale, Slaney-normalised triangles [n_mels, n_fft // 2 + 1], as librosa makes them by default."""
    banks: Tensor = melscale_fbanks(
        n_fft // 2 + 1, fmin_hz, fmax_hz, n_mels, sample_rate, norm="slaney", mel_scale="slaney"
    )  # (n_fft // 2 + 1, n_mels)
    return banks.T.contiguous()


class MelSpectrogram(nn.Module):
    """Waves [B, samples] to natural-log mel [B, n_mels, samples // hop] (no centring: BigVGAN's analysis)."""

    window: Tensor
    filterbank: Tensor

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.n_fft, self.hop, self.win = settings.n_fft, settings.hop, settings.win
        fmax_hz = settings.fmax_hz or settings.sample_rate / 2
        bank = slaney_filterbank(settings.sample_rate, settings.n_fft, settings.n_mels, settings.fmin_hz, fmax_hz)
        self.register_buffer("window", torch.hann_window(settings.win), persistent=False)
        self.register_buffer("filterbank", bank, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_spectrum(self.spectrum(x))

    def spectrum(self, x: Tensor) -> Tensor:
        """Complex spectrum [B, n_fft // 2 + 1, frames] of waves [B, samples]."""
        pad = (self.n_fft - self.hop) // 2
        x = F.pad(x.unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
        return torch.stft(x, self.n_fft, self.hop, self.win, self.window, center=False, return_complex=True)

    def of_spectrum(self, spectrum: Tensor) -> Tensor:
        """Natural-log mel of a complex spectrum."""
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return torch.log(torch.clamp(self.filterbank @ magnitude, min=LOG_FLOOR))
