"""Whisper's encoder and its log-mel front end (Radford et al. 2022), with the hub's key names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import WhisperSizes
from stages.layers import next_layer
from stages.models.mel import slaney_filterbank

SAMPLE_RATE = 16000
N_FFT = 400
HOP = 160
LAYER_NORM_EPS = 1e-5
EVERY_FRAME = slice(None)


class WhisperLogMel(nn.Module):
    """Waves at 16 kHz [B, samples] to Whisper's log-mel [B, n_mels, samples // 160].

    The dynamic range is clamped to 8 (in log10) below the loudest bin of each item, over the whole given window.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filterbank", slaney_filterbank(SAMPLE_RATE, N_FFT, n_mels, 0.0, 8000.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        spec = torch.stft(x, N_FFT, HOP, window=self.window, return_complex=True)[..., :-1]
        power = spec.real.square() + spec.imag.square()  # (B, 201, samples // 160)
        log_mel = torch.clamp(self.filterbank @ power, min=1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log_mel + 4.0) / 4.0


class SelfAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, wanted: slice) -> Tensor:
        """x [B, T, D] to the wanted frames' [B, n, D]; all frames are attended to."""
        q, k, v = self._split(self.q_proj(x[:, wanted])), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, D / heads)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.n_heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Pre-norm transformer block; names are the hub's."""

    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes.d_model, sizes.n_heads)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.d_model, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(sizes.d_model, sizes.ffn_dim)
        self.fc2 = nn.Linear(sizes.ffn_dim, sizes.d_model)
        self.final_layer_norm = nn.LayerNorm(sizes.d_model, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, wanted: slice) -> Tensor:
        x = x[:, wanted] + self.self_attn(self.self_attn_layer_norm(x), wanted)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))  # type: ignore[no-any-return]


class WhisperEncoder(nn.Module):
    """Log-mel [B, n_mels, 2 * F] to features [B, F, d_model] at 50 Hz; F is at most `max_positions`.

    Padding is not masked, as upstream: silence behind the speech takes part. Where only some frames are wanted, the
    last layer computes no others.
    """

    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(sizes.n_mels, sizes.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(sizes.d_model, sizes.d_model, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(sizes.max_positions, sizes.d_model)
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.n_layers))
        self.layer_norm = nn.LayerNorm(sizes.d_model, eps=LAYER_NORM_EPS)

    def forward(self, log_mel: Tensor, wanted: slice = EVERY_FRAME) -> Tensor:
        x = F.gelu(self.conv1(log_mel))
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (B, F, d_model)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers[:-1]:
            next_layer()
            x = layer(x, EVERY_FRAME)
        next_layer()
        return self.layer_norm(self.layers[-1](x, wanted))  # type: ignore[no-any-return]
