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
from stages.diffusion import Diffusion
from stages.encoder import Encoder
from stages.geometry import Geometry
from stages.live import CallSettings, LiveStream, Mode
from stages.offline import FileSampling, FileStream, LiveFileStream
from stages.pipeline import BlockRequests, Sampling, Stream
from stages.reference import ReferenceReport
from stages.threaded import ThreadedStages
from stages.types import Content, DiffuseRequest, EncodeRequest, Mel, Samples, VocodeRequest, Voice, as_mono
from stages.vocoder import Vocoder
from stages.voice import VoiceMaker

Item = TypeVar("Item")


def set_threads(n_threads: int) -> None:
    """How many threads one computation takes, in this whole process."""
    torch.set_num_threads(n_threads)


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


class LocalStages:
    """The calls of pipeline.Stages, computed at once, and conversions of whole sounds."""

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.preset = preset
        self.geometry = Geometry.from_settings(preset.live)
        self._encoder = Encoder(preset, checkpoint, device)
        self._diffusion = Diffusion(preset, checkpoint, device)
        self._vocoder = Vocoder(preset, checkpoint, device)
        self._voice_maker = VoiceMaker(preset, checkpoint, self._encoder, self._diffusion, device)
        self.fingerprint = self._voice_maker.fingerprint

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

    async def collect(self, wave: Samples) -> Samples:
        """The samples, which are there already."""
        return wave

    def cancel(self, wave: Samples) -> None:
        """Nothing is under way in process."""

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
        wave: Samples = BlockRequests.of(window, voice, Sampling(seed, live.steps, live.cfg_rate), noise).start(self)
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
    ) -> Samples:
        """A whole recording (mono) in another voice, at 22.05 kHz; `live` takes the path of a call."""
        samples = as_mono(samples)
        stream: FileStream | LiveFileStream
        if live:
            stream = self.open_live(voice, sample_rate=sample_rate, seed=seed, steps=steps)
        else:
            stream = self.open_file(voice, sample_rate=sample_rate, seed=seed, steps=steps, length_adjust=length_adjust)
        waves = [*drain(lambda: stream.push(samples)), *drain(stream.finish)]
        return np.concatenate(waves) if waves else np.zeros(0, np.float32)

    def open_file(
        self,
        voice: Voice,
        *,
        sample_rate: int,
        seed: int = 0,
        steps: int | None = None,
        length_adjust: float = 1.0,
        streaming: bool = False,
    ) -> FileStream:
        """A conversion of a growing recording."""
        settings = self.preset.file
        sampling = FileSampling.of(settings, seed, steps, length_adjust)
        return FileStream(self, voice, voice.file.frames, settings, sampling, sample_rate, streaming)

    def open_live(self, voice: Voice, *, sample_rate: int, seed: int = 0, steps: int | None = None) -> LiveFileStream:
        """The same through the path of a call."""
        live = self.preset.live
        sampling = Sampling.of(live, seed, steps)
        return LiveFileStream(Stream(self, voice, self.geometry, sampling), self.geometry, sample_rate)

    def open_call(
        self,
        voice: Voice,
        *,
        mode: Mode = "lowest",
        block_ms: int | None = None,
        steps: int | None = None,
        bypass: bool = False,
        seed: int = 0,
    ) -> LiveStream:
        """A live call in the running event loop, computed in a thread; ConfigError where a setting cannot work."""
        live = self.preset.live
        settings = CallSettings.of(live, voice, mode=mode, block_ms=block_ms, steps=steps, bypass=bypass)
        return LiveStream(self._threaded, live, settings, seed=seed)

    @cached_property
    def _threaded(self) -> ThreadedStages:
        return ThreadedStages(self)


def drain(iterate: Callable[[], AsyncIterator[Item]]) -> list[Item]:
    """All items of an async iterator that never really waits, with or without a running event loop."""
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
