"""Diffusion stage: content features and a voice to mel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from configs.schema import Preset
from stages.checkpoints import Checkpoint, load_network
from stages.encoder import autocast, same
from stages.models.dit import Dit
from stages.models.flow import sample
from stages.models.length_regulator import LengthRegulator, nearest_index
from stages.noise import frame_noise
from stages.types import Content, DiffuseRequest, Mel, Prompt, Voice


def prompt_of(voice: Voice, request: DiffuseRequest) -> Prompt:
    """The prompt that a request takes: the fixed one for calls, the long one for files."""
    return voice.live if request.live else voice.file


class DiffusionStage:
    """Length regulator and flow-matching sampler; requests of one shape, step count and guidance share a batch.

    Networks without start noise take one step, whatever is asked for.
    """

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self._preset, self._device = preset, device
        sizes = checkpoint.sizes
        self._n_mels = sizes.mel.n_mels
        self._regulator = load_network(LengthRegulator(sizes.regulator), "length_regulator", checkpoint, device)
        self._dit = load_network(Dit(sizes.dit), "cfm", checkpoint, device)

    def __call__(
        self, contents: Sequence[Content], requests: Sequence[DiffuseRequest], voices: Sequence[Voice]
    ) -> list[Mel]:
        """Mel [mels, last_frames or stop - start] for each request; with pitch, a last row: in Hz, 0 where unvoiced."""
        prompts = [prompt_of(voice, request) for voice, request in zip(voices, requests, strict=True)]
        keys = [
            (content.shape, prompt.frames, r.frames, r.start, r.stop, r.last_frames, r.steps, r.cfg_rate > 0)
            for content, prompt, r in zip(contents, prompts, requests, strict=True)
        ]
        results: list[Mel] = [np.empty(0, np.float32)] * len(requests)
        for group in same(keys):
            mels = self._render([contents[i] for i in group], [requests[i] for i in group], [prompts[i] for i in group])
            for i, mel in zip(group, mels, strict=True):
                results[i] = mel
        return results

    def condition(self, content: Content, n_frames: int, pitch_hz: np.ndarray) -> np.ndarray:
        """Condition [n_frames, channels] of one content [frames, d_model] of median pitch [1], as a voice keeps it."""
        return np.asarray(self._regulate([content], n_frames, [pitch_hz])[0].cpu().numpy())

    @torch.inference_mode()
    def _regulate(self, contents: Sequence[Content], n_frames: int, pitches_hz: Sequence[np.ndarray]) -> Tensor:
        """Conditions [B, n_frames, channels]. A melody is raised to the pitches [1]."""
        lengths = torch.full((len(contents),), n_frames)
        content, f0 = self._tensor(contents), None
        if self._regulator.f0_bins:
            content, f0 = content[..., :-1], content[..., -1] * self._tensor(pitches_hz)
        with autocast(self._preset, self._device):
            return self._regulator(content, lengths, f0).float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _render(
        self, contents: Sequence[Content], requests: Sequence[DiffuseRequest], prompts: Sequence[Prompt]
    ) -> list[Mel]:
        first, n_prompt = requests[0], prompts[0].frames
        condition = self._regulate(contents, first.frames, [p.pitch_hz for p in prompts])[:, first.start : first.stop]
        mu = torch.cat([self._tensor([p.condition for p in prompts]), condition], dim=1)  # (B, P + T, channels)
        noise = np.zeros((len(requests), self._n_mels, mu.shape[1]), np.float32)
        if not self._preset.renders_in_one:
            for row, request in zip(noise, requests, strict=True):
                row[:, n_prompt:] = self._preset.temperature * self._start_noise(request)
        rates = torch.tensor([r.cfg_rate for r in requests], device=self._device) if first.cfg_rate > 0 else None
        with autocast(self._preset, self._device):
            mels = sample(
                self._dit,
                mu,
                self._tensor([p.mel for p in prompts]),
                self._tensor([p.style for p in prompts]),
                self._tensor(noise),
                1 if self._preset.renders_in_one else first.steps,
                rates,
                first.last_frames or first.stop - first.start,
            )
        bands = self._tensor([p.bands for p in prompts])  # (B, mels, mels + 1)
        rendered = torch.baddbmm(bands[..., -1:], bands[..., :-1], mels.float())
        if self._regulator.f0_bins:
            index = nearest_index(contents[0].shape[0], first.frames)[first.start : first.stop][-mels.shape[-1] :]
            melody = self._tensor(contents)[:, index.to(self._device), -1]
            pitch = melody * self._tensor([p.pitch_hz for p in prompts])
            rendered = torch.cat([rendered, pitch.unsqueeze(1)], dim=1)
        return [np.ascontiguousarray(mel) for mel in rendered.cpu().numpy()]

    def _start_noise(self, request: DiffuseRequest) -> np.ndarray:
        n_frames = request.stop - request.start
        if request.noise is not None:
            return request.noise[:, request.noise.shape[1] - n_frames :]
        return frame_noise(request.seed, request.first_frame, n_frames, self._n_mels)

    def _tensor(self, arrays: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack(list(arrays))).to(self._device)
