"""DiT estimator of the flow: U-ViT transformer with adaptive norms and a WaveNet head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import DitSizes
from stages.layers import next_layer
from stages.models.wavenet import WaveNet

TIME_FREQUENCIES = 128
ROTARY_BASE = 10000.0
RMS_EPS = 1e-5


def ffn_dim(hidden_dim: int) -> int:
    """Two thirds of four times the width, rounded up to a multiple of 256 (Llama's rule, which upstream follows)."""
    return math.ceil(int(8 * hidden_dim / 3) / 256) * 256


class TimeEmbedding(nn.Module):
    """Flow time [B] in [0, 1] to [B, D]: cosines and sines of 1000 t, then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * steps / TIME_FREQUENCIES), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        angles = 1000.0 * t.unsqueeze(-1) * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))  # type: ignore[no-any-return]


class AdaptiveNorm(nn.Module):
    """RMS norm whose scale and shift come from the condition; the scale is used as it is, not as 1 + scale."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.project_layer = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.norm = nn.RMSNorm(hidden_dim, eps=RMS_EPS)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.project_layer(condition).unsqueeze(1).chunk(2, dim=-1)
        return scale * self.norm(x) + shift  # type: ignore[no-any-return]


def rotary_table(n_positions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [n_positions, head_dim // 2] of the rotary embedding (Su et al. 2021)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(n_positions, device=device, dtype=torch.float32), ROTARY_BASE**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2j, 2j + 1) of x [B, heads, T, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.wo = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, n_out: int) -> Tensor:
        """x [B, T, D] to the last n_out frames' [B, n_out, D]; all frames are attended to."""
        width = x.shape[-1]
        q = self._split(F.linear(x[:, -n_out:], self.wqkv.weight[:width]))
        k, v = (self._split(part) for part in F.linear(x, self.wqkv.weight[width:]).chunk(2, dim=-1))
        cos, sin = rotary
        q, k = rotate(q, cos[-n_out:], sin[-n_out:]).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, n_out, head_dim)
        return self.wo(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        inner = ffn_dim(hidden_dim)
        self.w1 = nn.Linear(hidden_dim, inner, bias=False)
        self.w3 = nn.Linear(hidden_dim, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """One block; `receives_skip` blocks first merge the popped output of their U-ViT partner."""

    def __init__(self, hidden_dim: int, num_heads: int, receives_skip: bool) -> None:
        super().__init__()
        self.attention = Attention(hidden_dim, num_heads)
        self.feed_forward = FeedForward(hidden_dim)
        self.attention_norm = AdaptiveNorm(hidden_dim)
        self.ffn_norm = AdaptiveNorm(hidden_dim)
        self.skip_in_linear = nn.Linear(2 * hidden_dim, hidden_dim) if receives_skip else None

    def forward(
        self,
        x: Tensor,
        t_emb: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        skip: Tensor | None,
        n_out: int,
    ) -> Tensor:
        if self.skip_in_linear is not None and skip is not None:
            x = self.skip_in_linear(torch.cat([x, skip], dim=-1))
        x = x[:, -n_out:] + self.attention(self.attention_norm(x, t_emb), rotary, mask, n_out)
        return x + self.feed_forward(self.ffn_norm(x, t_emb))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """U-ViT stack (Bao et al. 2022): the first half's outputs return, last in first out, to the second half.

    Only the last `n_out` frames come out; the last layer computes no others.
    """

    def __init__(self, sizes: DitSizes) -> None:
        super().__init__()
        self.n_half = sizes.depth // 2
        self.head_dim = sizes.hidden_dim // sizes.num_heads
        self.layers = nn.ModuleList(
            TransformerBlock(sizes.hidden_dim, sizes.num_heads, receives_skip=i > self.n_half)
            for i in range(sizes.depth)
        )
        self.norm = AdaptiveNorm(sizes.hidden_dim)

    def forward(self, x: Tensor, t_emb: Tensor, mask: Tensor | None, n_out: int) -> Tensor:
        n_frames = x.shape[1]
        rotary = rotary_table(n_frames, self.head_dim, x.device)
        skips: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            next_layer()
            n_needed = n_out if i == len(self.layers) - 1 else n_frames
            x = layer(x, t_emb, rotary, mask, skips.pop() if i > self.n_half else None, n_needed)
            if i < self.n_half:
                skips.append(x)
        return self.norm(x, t_emb)  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """Layer norm modulated by the flow time, then a linear layer (DiT, Peebles and Xie 2022)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_dim, hidden_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, 2 * hidden_dim))

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(t_emb).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)  # type: ignore[no-any-return]


class Dit(nn.Module):
    """Velocity v(x, prompt, t, style, mu) of the flow.

    x, prompt_x [B, in_channels, T] (the clean prompt mel in front, zeros behind), t [B], style [B, style_dim],
    mu [B, T, content_dim], lengths [B] or None where all items fill T; returns [B, in_channels, T], or only the
    `last_frames` of it, which spares the head the rest (not with lengths).
    """

    def __init__(self, sizes: DitSizes) -> None:
        super().__init__()
        hidden, mels = sizes.hidden_dim, sizes.in_channels
        self.cond_projection = nn.Linear(sizes.content_dim, hidden)
        self.cond_x_merge_linear = nn.Linear(hidden + 2 * mels + sizes.style_dim, hidden)
        self.t_embedder = TimeEmbedding(hidden)
        self.transformer = Transformer(sizes)
        self.skip_linear = nn.Linear(hidden + mels, hidden)
        self.conv1 = nn.Linear(hidden, sizes.wavenet.hidden_dim)
        self.t_embedder2 = TimeEmbedding(sizes.wavenet.hidden_dim)
        self.wavenet = WaveNet(sizes.wavenet)
        self.res_projection = nn.Linear(hidden, sizes.wavenet.hidden_dim)
        self.final_layer = FinalLayer(sizes.wavenet.hidden_dim)
        self.conv2 = nn.Conv1d(sizes.wavenet.hidden_dim, mels, 1)

    def forward(
        self,
        x: Tensor,
        prompt_x: Tensor,
        t: Tensor,
        style: Tensor,
        mu: Tensor,
        lengths: Tensor | None = None,
        last_frames: int | None = None,
    ) -> Tensor:
        key_mask, wave_mask = self._masks(lengths, x.shape[-1], x.device)
        t_emb = self.t_embedder(t)
        frames = x.transpose(1, 2)  # (B, T, mels)
        style_frames = style.unsqueeze(1).expand(-1, frames.shape[1], -1)
        h = self.cond_x_merge_linear(
            torch.cat([frames, prompt_x.transpose(1, 2), self.cond_projection(mu), style_frames], dim=-1)
        )
        n_out = x.shape[-1] if last_frames is None else last_frames
        seen = min(x.shape[-1], n_out + self.wavenet.reach)
        h = self.transformer(h, t_emb, key_mask, seen)
        h = self.skip_linear(torch.cat([h, frames[:, -seen:]], dim=-1))
        waves = self.wavenet(self.conv1(h).transpose(1, 2), self.t_embedder2(t).unsqueeze(-1), wave_mask)
        z = waves.transpose(1, 2) + self.res_projection(h)
        return self.conv2(self.final_layer(z[:, -n_out:], t_emb).transpose(1, 2))  # type: ignore[no-any-return]

    @staticmethod
    def _masks(lengths: Tensor | None, n_frames: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        if lengths is None:
            return None, None
        valid = torch.arange(n_frames, device=device) < lengths.to(device).unsqueeze(1)  # (B, T)
        return valid[:, None, None, :], valid[:, None, :]
