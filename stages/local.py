"""The three stages and the voice maker in one process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from configs.schema import ConfigError, Preset, load_preset
from stages.blocks import BlockWindow
from stages.checkpoints import Checkpoint, open_checkpoint
from stages.diffusion import DiffusionStage
from stages.encoder import EncoderStage
from stages.geometry import Geometry
from stages.line import BlockRequests, Sampling
from stages.recording import LiveRecordingStream, RecordingStream
from stages.reference import ReferenceReport
from stages.streams import Streams
from stages.threaded import ThreadedStages
from stages.types import (
    Content,
    DiffuseRequest,
    EncodeRequest,
    Mel,
    Networks,
    Samples,
    VocodeRequest,
    Voice,
    as_mono,
)
from stages.vocoder import VocoderStage
from stages.voice import VoiceStage

Item = TypeVar("Item")


def set_threads(n_threads: int) -> None:
    """How many threads one computation takes, in this whole process."""
    torch.set_num_threads(n_threads)


def compute_first(device: str) -> None:
    """From now on the calling thread's work goes ahead of other threads' on a CUDA device."""
    if device != "cpu":
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]  # of torch


def weights_folder(preset: Preset) -> Path:
    """Where a preset's weights are: beside its YAML, or in the cache that `seedvc pull` fills.

    ConfigError where there is no place for a cache.
    """
    return preset.weights or _cache_folder(preset.name) / preset.name


def _cache_folder(wanted_for: str) -> Path:
    """SEEDVC_CACHE, else `seedvc-serve` in XDG_CACHE_HOME or in ~/.cache."""
    if own := os.environ.get("SEEDVC_CACHE"):
        return Path(own).absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # unset, or against its specification
        try:
            caches = Path.home() / ".cache"
        except RuntimeError as error:
            raise ConfigError(
                f"there is no home folder to keep the weights of {wanted_for} in: HOME is not set, and this user has"
                " none; set SEEDVC_CACHE to a folder"
            ) from error
    return caches / "seedvc-serve"


def open_weights(preset: Preset, weights: str | Path | None = None) -> Checkpoint:
    """Read a preset's weights from `weights` or from their usual folder; WeightsError says what is missing."""
    return open_checkpoint(preset, Path(weights) if weights else weights_folder(preset))


def load(preset: str | Preset, weights: str | Path | None = None, device: str = "cpu") -> LocalStages:
    """All stages of a preset in this process.

    Args:
        preset: name, or a loaded preset.
        weights: folder in upstream's layout or ours; None: the preset's own.
        device: "cpu" or a CUDA device.

    Raises:
        ConfigError: no such preset or device. WeightsError: weights missing or unfit.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; allowed are 'cpu', 'cuda' and 'cuda:N'")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch sees no CUDA device here; use 'cpu'")
    chosen = preset if isinstance(preset, Preset) else load_preset(preset)
    return LocalStages(chosen, open_weights(chosen, weights), device)


class AtOnce:
    """Stages over networks of this process. Computes at once, so every result is already there."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def encode(self, request: EncodeRequest) -> Content:
        return self._networks.encode(request)

    def render(self, content: Content, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Samples:
        return self._networks.vocode(self._networks.diffuse(content, diffuse), vocode)

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Samples:
        return self.render(self.encode(encode), diffuse, vocode)

    async def collect(self, wave: Samples) -> Samples:
        """The samples, which are there."""
        return wave

    def cancel(self, wave: Samples) -> None:
        """Nothing is under way."""

    def stage_ms(self, wave: Samples) -> dict[str, float]:
        """Not measured."""
        return {}


class LocalStages:
    """All networks of a preset in one process, and conversions of whole sounds."""

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.preset = preset
        self.geometry = Geometry.from_settings(preset.live)
        self._encoder = EncoderStage(preset, checkpoint, device)
        self._diffusion = DiffusionStage(preset, checkpoint, device)
        self._vocoder = VocoderStage(preset, checkpoint, device)
        self._voice_maker = VoiceStage(preset, checkpoint, self._encoder, self._diffusion, device)
        self.fingerprint = self._voice_maker.fingerprint
        self._at_once = AtOnce(self)
        self.streams = Streams(preset, self._at_once)
        """Conversions computed where they are asked; iterate them with `drain`."""

    def encode(self, request: EncodeRequest) -> Content:
        """Content features [frames, d_model] of one window."""
        return self._encoder([request])[0]

    def diffuse(self, content: Content, request: DiffuseRequest) -> Mel:
        """Mel [mels, T] of one content; the request carries the voice itself."""
        if not isinstance(request.voice, Voice):
            raise TypeError(f"in process a request carries its Voice, got {type(request.voice).__name__}")
        return self._diffusion([content], [request], [request.voice])[0]

    def vocode(self, mel: Mel, request: VocodeRequest) -> Samples:
        """Samples [256 * frames] of one mel."""
        return self._vocoder([mel], [request])[0]

    def voice(self, samples: Samples, sample_rate: int) -> Voice:
        """The voice of a reference (mono, 1 s or more; 30 s of its speech are used); BadAudio where it holds none."""
        return self.make_voice(samples, sample_rate)[0]

    def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """The voice of a reference, what would sound better in words, and how good the reference is."""
        return self._voice_maker(samples, sample_rate)

    def block(self, source_16k: Samples, voice: Voice, noise: np.ndarray | None = None, seed: int = 0) -> Samples:
        """One block's window [window] at 16 kHz to the vocoder's whole output, before stitching.

        `noise` [mels, P + T] or [mels, T] replaces the drawn start noise.
        """
        geometry, live = self.geometry, self.preset.live
        if len(source_16k) != geometry.window_samples_16k:
            raise ValueError(f"the window has {len(source_16k)} samples, expected {geometry.window_samples_16k}")
        window = BlockWindow(as_mono(source_16k), geometry.window_ticks, geometry)
        requests = BlockRequests.of(window, voice, Sampling(seed, live.steps, live.cfg_rate), noise)
        wave: Samples = requests.start(self._at_once)
        return wave

    def convert(
        self,
        samples: Samples,
        sample_rate: int,
        voice: Voice,
        seed: int = 0,
        *,
        steps: int | None = None,
        length_adjust: float = 1.0,
        live: bool = False,
        block_ms: int | None = None,
    ) -> Samples:
        """A whole recording (mono) in another voice, at 22.05 kHz; `live` takes the line of a call, in its own blocks
        or in those given."""
        samples = as_mono(samples)
        stream: RecordingStream | LiveRecordingStream
        if live:
            stream = self.streams.live_recording(
                voice, sample_rate=sample_rate, seed=seed, steps=steps, block_ms=block_ms
            )
        else:
            stream = self.streams.recording(
                voice, sample_rate=sample_rate, seed=seed, steps=steps, length_adjust=length_adjust
            )
        waves = [*drain(lambda: stream.push(samples)), *drain(stream.finish)]
        return np.concatenate(waves) if waves else np.zeros(0, np.float32)

    @cached_property
    def _threaded(self) -> ThreadedStages:
        return ThreadedStages(self)

    @cached_property
    def call_streams(self) -> Streams:
        """Conversions computed in a thread, for calls in a running event loop."""
        return Streams(self.preset, self._threaded)

    def warm_up(self, voice: Voice) -> None:
        """Computes a block of silence in the thread of the calls: the first one takes longer than the others."""
        live = self.preset.live
        window = BlockWindow(
            np.zeros(self.geometry.window_samples_16k, np.float32), self.geometry.window_ticks, self.geometry
        )
        sampling = Sampling(0, live.steps, live.cfg_rate, live.vocoder_past_frames)
        BlockRequests.of(window, voice, sampling).start(self._threaded).future.result()


def drain(iterate: Callable[[], AsyncIterator[Item]]) -> list[Item]:
    """All items of an async iterator that never waits. Works with and without a running event loop."""
    iterator, items = iterate(), []
    while True:
        try:
            iterator.__anext__().__await__().send(None)
        except StopIteration as done:
            items.append(done.value)
        except StopAsyncIteration:
            return items
        else:
            raise RuntimeError("an in-process stage waited for something")
