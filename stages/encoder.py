"""Encoder stage: windows at 16 kHz to content features, and to pitch where the preset carries it over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Preset
from stages.checkpoints import Checkpoint, load_network
from stages.models.whisper import WhisperEncoder, WhisperLogMel
from stages.pitch import relative_pitch
from stages.types import BadAudio, Content, EncodeRequest

FRAME_SAMPLES = 320
PADDED_SAMPLES = 30 * 16000
PITCH_LEAD_FRAMES = 12


def same(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions of equal keys together, in order of first appearance: the rectangles of a batch."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return list(groups.values())


def autocast(preset: Preset, device: str) -> AbstractContextManager[object]:
    """Half-precision arithmetic where the preset asks for it."""
    if preset.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.float16)


def melody(request: EncodeRequest, n_frames: int) -> NDArray[np.float32]:
    """Pitch of a window's last frames [n_frames], relative to the speaker's usual one.

    Where the usual pitch is known, only the frames that the path of the pitch needs to settle are computed before them.
    """
    unheard = max(0, request.drop_frames - PITCH_LEAD_FRAMES) if request.usual_hz else 0
    wave = request.samples[unheard * FRAME_SAMPLES :]
    return relative_pitch(wave, request.drop_frames - unheard + n_frames, request.usual_hz)[-n_frames:]


class EncoderStage:
    """Whisper's encoder over whole windows; windows of equal length share a batch."""

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self._preset, self._device = preset, device
        self._log_mel = WhisperLogMel(checkpoint.sizes.whisper.n_mels).to(device)
        self._network = load_network(WhisperEncoder(checkpoint.sizes.whisper), "whisper", checkpoint, device)
        self._has_pitch = checkpoint.sizes.carries_pitch
        self._longest = checkpoint.sizes.whisper.max_positions * FRAME_SAMPLES

    def __call__(self, requests: Sequence[EncodeRequest]) -> list[Content]:
        """Features [samples // 320 + 1 - drop_frames, d_model] for each window; with pitch, one more column.

        That last column is the pitch relative to the speaker's usual one: 1 there, 0 where unvoiced.
        """
        results: list[Content] = [np.empty(0, np.float32)] * len(requests)
        for group in same(len(request.samples) for request in requests):
            first = min(requests[i].drop_frames for i in group)
            features = self._encode(np.stack([requests[i].samples for i in group]), first)
            for i, kept in zip(group, features, strict=True):
                rows = kept[requests[i].drop_frames - first :]
                if self._has_pitch:
                    rows = np.column_stack([rows, melody(requests[i], len(rows))])
                results[i] = np.ascontiguousarray(rows)
        return results

    @torch.inference_mode()
    def _encode(self, windows: np.ndarray, first: int) -> np.ndarray:
        """Features [B, frames - first, d_model] of windows [B, samples] of one length."""
        n_samples = windows.shape[1]
        if n_samples > self._longest:
            raise BadAudio(
                "window_too_long", f"a window has {n_samples} samples; the encoder holds at most {self._longest}"
            )
        n_frames = n_samples // FRAME_SAMPLES + 1
        cut = min(n_frames * FRAME_SAMPLES, self._longest)
        padded = PADDED_SAMPLES if self._preset.whisper_window == "padded" else cut
        x = torch.from_numpy(windows.astype(np.float32, copy=False)).to(self._device)
        x = torch.nn.functional.pad(x, (0, max(0, padded - n_samples)))[:, :padded]
        log_mel = self._log_mel(x)  # in full precision: half of it cannot hold a power spectrum's range
        with autocast(self._preset, self._device):
            features: Tensor = self._network(log_mel, slice(first, n_frames))
        return np.asarray(features.float().cpu().numpy())
