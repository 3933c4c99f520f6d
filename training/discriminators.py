"""Judges of the adversarial training, small enough for a CPU: of waves, by period and by resolution.

HiFi-GAN's multi-period discriminator (Kong et al. 2020) hears whether voiced sound repeats itself, UnivNet's
multi-resolution discriminator (Jang et al. 2021), which BigVGAN also takes, whether a spectrogram looks real.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (1, 8, 24, 48, 48)
RESOLUTIONS = ((512, 128), (1024, 256), (256, 64))  # (n_fft, hop)
SPECTRAL_CHANNELS = (1, 12, 12, 12, 12)
SLOPE = 0.1

Judgement = list[Tensor]
"""Feature maps of all layers, the verdict last."""


class PeriodJudge(nn.Module):
    """Waves [B, n], folded to [B, 1, n / period, period], to feature maps."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        pairs = zip(PERIOD_CHANNELS, PERIOD_CHANNELS[1:], strict=False)
        self.layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in pairs
        )
        self.verdict = parametrizations.weight_norm(nn.Conv2d(PERIOD_CHANNELS[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> Judgement:
        x = F.pad(x, (0, -x.shape[-1] % self.period))
        x = x.reshape(len(x), 1, -1, self.period)
        return _through(x, self.layers, self.verdict)


class SpectralJudge(nn.Module):
    """Waves [B, n] to feature maps of their magnitudes at one resolution."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        pairs = zip(SPECTRAL_CHANNELS, SPECTRAL_CHANNELS[1:], strict=False)
        self.layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv2d(a, b, (7, 3), (2, 1) if i else (1, 1), padding=(3, 1)))
            for i, (a, b) in enumerate(pairs)
        )
        self.verdict = parametrizations.weight_norm(nn.Conv2d(SPECTRAL_CHANNELS[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Judgement:
        spectrum = torch.stft(x, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return _through(magnitude.unsqueeze(1), self.layers, self.verdict)


class Judges(nn.Module):
    """All of them: waves [B, n] to one judgement each."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(
            [*(PeriodJudge(period) for period in PERIODS), *(SpectralJudge(*sizes) for sizes in RESOLUTIONS)]
        )

    def forward(self, waves: Tensor) -> list[Judgement]:
        return [judge(waves) for judge in self.all]


def judges_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Least squares: real sound is 1, made sound is 0."""
    parts = [
        (r[-1] - 1).square().mean() + m[-1].square().mean() for r, m in zip(real, made, strict=True)
    ]  # fmt: skip
    return torch.stack(parts).mean()


def makers_loss(made: list[Judgement]) -> Tensor:
    """Least squares: made sound should be taken for real."""
    return torch.stack([(m[-1] - 1).square().mean() for m in made]).mean()


def likeness_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Mean distance of the feature maps, relative to the real ones' size."""
    parts = [
        F.l1_loss(m, r.detach()) / (r.detach().abs().mean() + 1e-4)
        for real_maps, made_maps in zip(real, made, strict=True)
        for r, m in zip(real_maps[:-1], made_maps[:-1], strict=True)
    ]
    return torch.stack(parts).mean()


def _through(x: Tensor, layers: nn.ModuleList, verdict: nn.Module) -> Judgement:
    maps = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        maps.append(x)
    maps.append(verdict(x))
    return maps
