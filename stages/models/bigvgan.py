"""BigVGAN v2 generator (Lee et al. 2022): mel to wave with anti-aliased snake activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import BigvganSizes
from stages.layers import next_layer

N_TAPS = 12
BLOCK = 8  # input samples that one row of the blocked filters covers
UP_CONTEXT = 6
DOWN_SPAN = 2 * BLOCK + N_TAPS - 2


def kaiser_sinc_filter() -> Tensor:
    """12-tap low-pass [12] at half the band (cutoff 0.25, half width 0.3), summing to one."""
    half_width = 0.3
    attenuation_db = 2.285 * (N_TAPS // 2 - 1) * torch.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation_db - 8.7)
    window = torch.kaiser_window(N_TAPS, periodic=False, beta=beta)
    taps = 0.5 * torch.sinc(0.5 * (torch.arange(N_TAPS) - N_TAPS // 2 + 0.5)) * window
    return taps / taps.sum()


def upsampling_matrix(taps: Tensor) -> Tensor:
    """[14, 16]: 8 input samples and their context of 6 to 16 output samples at twice the rate."""
    matrix = torch.zeros(BLOCK + UP_CONTEXT, 2 * BLOCK)
    for i, row in enumerate(matrix):
        first = 2 * i - (N_TAPS - 1)  # the output that tap 0 reaches
        start, stop = max(first, 0), min(first + N_TAPS, len(row))
        row[start:stop] = 2 * taps[start - first : stop - first]
    return matrix


def downsampling_matrix(taps: Tensor) -> Tensor:
    """[26, 8]: 16 input samples and their context of 10 to 8 output samples at half the rate."""
    matrix = torch.zeros(DOWN_SPAN, BLOCK)
    for o in range(BLOCK):
        matrix[2 * o : 2 * o + N_TAPS, o] = taps
    return matrix


def apply_blocked(x: Tensor, matrix: Tensor, pad_left: int, pad_right: int, step: int, n_out: int) -> Tensor:
    """Filter x [B, C, T] by `matrix`, row by row of `step` new samples; the ends replicate.

    Equal to the usual strided depthwise convolution, but one dense matrix product, which is faster on a CPU.
    """
    fill = -(x.shape[-1] + pad_left + pad_right - matrix.shape[0]) % step
    x = F.pad(x, (pad_left, pad_right + fill), mode="replicate")
    rows = x.unfold(-1, matrix.shape[0], step)  # (B, C, rows, context + step)
    # flattened by hand: `rows @ matrix` would be one small product per item and channel
    made = rows.reshape(-1, matrix.shape[0]) @ matrix
    return made.view(*rows.shape[:2], -1)[..., :n_out]


class SnakeBeta(nn.Module):
    """x + sin^2(e^alpha x) / e^beta, per channel (alpha and beta are kept as logarithms)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, strength = self.alpha.exp()[:, None], 1 / (self.beta.exp()[:, None] + 1e-9)
        return torch.addcmul(x, torch.sin(x * alpha).square(), strength)


class AntiAliasedSnake(nn.Module):
    """[B, C, T] to [B, C, T]: the activation at twice the rate, between two low-pass filters."""

    up: Tensor
    down: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = kaiser_sinc_filter()
        self.act = SnakeBeta(channels)
        self.register_buffer("up", upsampling_matrix(taps), persistent=False)
        self.register_buffer("down", downsampling_matrix(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))

    def upsample(self, x: Tensor) -> Tensor:
        return apply_blocked(x, self.up, 3, 3, BLOCK, 2 * x.shape[-1])

    def downsample(self, x: Tensor) -> Tensor:
        return apply_blocked(x, self.down, 5, 6, 2 * BLOCK, (x.shape[-1] + 1) // 2)


class AmpBlock(nn.Module):
    """Residual block of anti-aliased multi-periodicity: pairs of a dilated and a plain convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations = nn.ModuleList(AntiAliasedSnake(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            next_layer()
            y = conv1(self.activations[2 * i](x))
            next_layer()
            x = x + conv2(self.activations[2 * i + 1](y))
        return x


class BigVgan(nn.Module):
    """Log-mel [B, mels, T] to waves [B, T * product of upsample rates] in [-1, 1]. Not causal."""

    def __init__(self, sizes: BigvganSizes) -> None:
        super().__init__()
        channels = sizes.initial_channels
        self.n_kernels = len(sizes.resblock_kernels)
        self.conv_pre = nn.Conv1d(sizes.n_mels, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(sizes.upsample_rates, sizes.upsample_kernels, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.ModuleList([up]))
            channels //= 2
            for res_kernel, dilations in zip(sizes.resblock_kernels, sizes.resblock_dilations, strict=True):
                self.resblocks.append(AmpBlock(channels, res_kernel, dilations))
        self.activation_post = AntiAliasedSnake(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up[0](x)  # type: ignore[index]
            blocks = self.resblocks[i * self.n_kernels : (i + 1) * self.n_kernels]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        next_layer()
        x = self.conv_post(self.activation_post(x))
        return torch.clamp(x, -1.0, 1.0).squeeze(1)
