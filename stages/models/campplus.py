"""CAM++ speaker encoder (Wang et al. 2023): Kaldi filterbanks to one style vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from configs.schema import CampplusSizes

SAMPLE_RATE = 16000
N_BANDS = 80
SEGMENT_FRAMES = 100


def centred_fbank(wave: Tensor) -> Tensor:
    """Kaldi log filterbank of a wave [samples] at 16 kHz in [-1, 1]: [frames, 80], mean over time removed."""
    bands: Tensor = kaldi.fbank(wave.unsqueeze(0), num_mel_bins=N_BANDS, dither=0.0, sample_frequency=SAMPLE_RATE)
    return bands - bands.mean(dim=0, keepdim=True)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions over [frequency, time]; stride only along frequency."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FrequencyHead(nn.Module):
    """[B, 80, T] to [B, channels * 10, T]: four residual blocks that shrink frequency by 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.layer2 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        y = self.layer2(self.layer1(y))
        return F.relu(self.bn2(self.conv2(y))).flatten(1, 2)


class NormReLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batchnorm(x))


class ContextMask(nn.Module):
    """Local convolution weighted by a mask from the global and the 100-frame segment means."""

    def __init__(self, channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(channels, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, growth, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = x.mean(-1, keepdim=True) + self._segment_means(x)
        return self.linear_local(x) * torch.sigmoid(self.linear2(F.relu(self.linear1(context))))  # type: ignore[no-any-return]

    @staticmethod
    def _segment_means(x: Tensor) -> Tensor:
        means = F.avg_pool1d(x, SEGMENT_FRAMES, SEGMENT_FRAMES, ceil_mode=True)
        return means.repeat_interleave(SEGMENT_FRAMES, dim=-1)[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    def __init__(self, channels: int, sizes: CampplusSizes, dilation: int) -> None:
        super().__init__()
        bottleneck = sizes.growth * sizes.bn_size
        self.nonlinear1 = NormReLU(channels)
        self.linear1 = nn.Conv1d(channels, bottleneck, 1, bias=False)
        self.nonlinear2 = NormReLU(bottleneck)
        self.cam_layer = ContextMask(bottleneck, sizes.growth, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))], dim=1)


class DenseBlock(nn.Module):
    """`n_layers` densely connected layers, named tdnnd1, tdnnd2, ... as in the published file."""

    def __init__(self, channels: int, n_layers: int, dilation: int, sizes: CampplusSizes) -> None:
        super().__init__()
        self.n_layers = n_layers
        for i in range(n_layers):
            self.add_module(f"tdnnd{i + 1}", DenseLayer(channels + i * sizes.growth, sizes, dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Transition(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.nonlinear = NormReLU(channels)
        self.linear = nn.Conv1d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))  # type: ignore[no-any-return]


class TimeDelayLayer(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out, 5, stride=2, padding=2, bias=False)
        self.nonlinear = NormReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x))  # type: ignore[no-any-return]


class StyleProjection(nn.Module):
    """Statistics [B, C] to the style vector [B, style_dim]; the batch norm has no affine part."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(out, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x.unsqueeze(-1)).squeeze(-1))  # type: ignore[no-any-return]


class XVector(nn.Module):
    BLOCKS = ((12, 1), (24, 2), (16, 2))  # (layers, dilation)

    def __init__(self, in_channels: int, sizes: CampplusSizes) -> None:
        super().__init__()
        self.tdnn = TimeDelayLayer(in_channels, sizes.init_channels)
        channels = sizes.init_channels
        for i, (n_layers, dilation) in enumerate(self.BLOCKS, start=1):
            self.add_module(f"block{i}", DenseBlock(channels, n_layers, dilation, sizes))
            channels += n_layers * sizes.growth
            self.add_module(f"transit{i}", Transition(channels, channels // 2))
            channels //= 2
        self.out_nonlinear = NormReLU(channels)
        self.dense = StyleProjection(channels * 2, sizes.style_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tdnn(x)
        for i in range(1, len(self.BLOCKS) + 1):
            x = self.get_submodule(f"transit{i}")(self.get_submodule(f"block{i}")(x))
        x = self.out_nonlinear(x)
        return self.dense(torch.cat([x.mean(-1), x.std(-1)], dim=1))  # type: ignore[no-any-return]


class Campplus(nn.Module):
    """Centred filterbanks [B, T, 80] to style vectors [B, style_dim], not L2-normalised."""

    def __init__(self, sizes: CampplusSizes) -> None:
        super().__init__()
        self.head = FrequencyHead(sizes.head_channels)
        self.xvector = XVector(sizes.head_channels * N_BANDS // 8, sizes)

    def forward(self, fbank: Tensor) -> Tensor:
        return self.xvector(self.head(fbank.transpose(1, 2)))  # type: ignore[no-any-return]
