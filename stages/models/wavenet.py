"""Gated convolution stack at the end of the DiT (WaveNet head)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import WavenetSizes
from stages.layers import next_layer


class NamedConv(nn.Module):
    """A 1-d convolution under upstream's key `conv.conv`, reflecting at the ends where it is wider than one."""

    def __init__(self, n_in: int, n_out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.pad = dilation * (kernel - 1) // 2
        self.conv = nn.Module()
        self.conv.conv = nn.Conv1d(n_in, n_out, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = F.pad(x, (self.pad, self.pad), mode="reflect")
        return self.conv.conv(x)  # type: ignore[no-any-return, operator]


class WaveNet(nn.Module):
    """[B, C, T] with condition [B, C, 1] to [B, C, T].

    `mask` [B, 1, T] zeroes what lies behind each item's length; None where all items are full. A frame depends on
    `reach` frames to each side.
    """

    def __init__(self, sizes: WavenetSizes) -> None:
        super().__init__()
        self.channels = channels = sizes.hidden_dim
        self.reach = (sizes.kernel_size - 1) // 2 * sum(sizes.dilation_rate**i for i in range(sizes.num_layers))
        self.cond_layer = NamedConv(channels, 2 * channels * sizes.num_layers)
        self.in_layers = nn.ModuleList(
            NamedConv(channels, 2 * channels, sizes.kernel_size, sizes.dilation_rate**i)
            for i in range(sizes.num_layers)
        )
        last = sizes.num_layers - 1
        self.res_skip_layers = nn.ModuleList(
            NamedConv(channels, channels if i == last else 2 * channels) for i in range(sizes.num_layers)
        )

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        conditions = self.cond_layer(condition).chunk(len(self.in_layers), dim=1)
        out = torch.zeros_like(x)
        for in_layer, res_skip, cond in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            next_layer()
            tanh_part, gate_part = (in_layer(x) + cond).chunk(2, dim=1)
            y = res_skip(torch.tanh(tanh_part) * torch.sigmoid(gate_part))
            if y.shape[1] > self.channels:
                x = x + y[:, : self.channels]
                if mask is not None:
                    x = x * mask
            out = out + y[:, -self.channels :]
        return out if mask is None else out * mask
