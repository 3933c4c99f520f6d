"""The data between the stages: numpy arrays and small frozen requests, never tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Samples = NDArray[np.float32]
"""Mono sound [samples], full scale at 1."""
Content = NDArray[np.float32]
"""Content features [frames, d_model] at 50 Hz; with pitch, its column comes last."""
Mel = NDArray[np.float32]
"""Log-mel [mels, frames] at 86.13 Hz; with pitch, its row in Hz comes last."""


class BadAudio(ValueError):
    """Sound that cannot be used; `reason` is a short code, the message says what came and what is allowed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives pickling between replicas
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


def as_mono(samples: NDArray[Any]) -> Samples:
    """Check that samples are one finite channel, and make them float32 in [-1, 1]'s unit.

    Raises:
        BadAudio: more than one axis, no samples, or a value that is not a finite number.
    """
    mono = np.asarray(samples)
    if mono.ndim != 1:
        raise BadAudio("not_mono", f"sound has shape {mono.shape}; one channel [samples] is expected")
    if not len(mono):
        raise BadAudio("empty", "sound holds no samples")
    if not np.issubdtype(mono.dtype, np.floating):
        raise BadAudio("not_float", f"sound has type {mono.dtype}; floating point in [-1, 1] is expected")
    mono = mono.astype(np.float32, copy=False)
    n_bad = len(mono) - int(np.isfinite(mono).sum())
    if n_bad:
        raise BadAudio("not_finite", f"sound holds {n_bad} values that are not finite numbers (NaN or infinity)")
    return mono


@dataclass(frozen=True)
class Prompt:
    """A reference as the diffusion takes it.

    mel [mels, P], condition [P, channels], style [style_dim], the reference's median pitch in Hz [1], and the weights
    and offset [mels, mels + 1] by which a frame that is rendered from it is brought to the reference's own bands.
    """

    mel: NDArray[np.float32]
    condition: NDArray[np.float32]
    style: NDArray[np.float32]
    pitch_hz: NDArray[np.float32]
    bands: NDArray[np.float32]

    @property
    def frames(self) -> int:
        return int(self.mel.shape[1])

    @property
    def is_whole(self) -> bool:
        """Whether the arrays have the shapes above, and hold numbers only."""
        arrays = [getattr(self, field.name) for field in fields(self)]
        if [array.ndim for array in arrays] != [2, 2, 1, 1, 2]:
            return False
        mels, frames = self.mel.shape
        shapes = (self.condition.shape[0], self.pitch_hz.shape, self.bands.shape)
        fits = shapes == (frames, (1,), (mels, mels + 1)) and frames > 0
        return fits and all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)


@dataclass(frozen=True)
class Voice:
    """A target voice: a prompt of fixed length for calls, a longer one for files, and the weights that made them."""

    live: Prompt
    file: Prompt
    fingerprint: str

    def to_bytes(self) -> bytes:
        """As safetensors."""
        arrays = {f"{use}.{name}": array for use, name, array in self._arrays()}
        return bytes(save(arrays, metadata={"fingerprint": self.fingerprint}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Voice:
        """What `to_bytes` made; ValueError where it is something else."""
        try:
            arrays = load(data)
            prompts = {
                use: Prompt(**{field.name: arrays[f"{use}.{field.name}"] for field in fields(Prompt)})
                for use in ("live", "file")
            }
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # as the format lays it out
            voice = cls(**prompts, fingerprint=header["__metadata__"]["fingerprint"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"this is not a stored voice: {error}") from error
        if not all(prompt.is_whole for prompt in prompts.values()):
            raise ValueError("this is not a stored voice: its arrays do not fit together")
        return voice

    @property
    def file_frames(self) -> int:
        """Mel frames of the prompt that recordings take."""
        return self.file.frames

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for _, _, array in self._arrays())

    def _arrays(self) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
        for use in ("live", "file"):
            prompt = getattr(self, use)
            for field in fields(Prompt):
                yield use, field.name, np.ascontiguousarray(getattr(prompt, field.name))


@dataclass(frozen=True)
class StoredVoice:
    """A voice that the stages find in a store by its id, and what a stream must know of it."""

    voice_id: str
    file_frames: int


STAGE_NAMES = ("encoder", "diffusion", "vocoder")


@dataclass(frozen=True)
class RenderedBlock:
    """A vocoder's samples, and what each stage took for them in milliseconds."""

    samples: Samples
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class EncodeRequest:
    """One window at 16 kHz; the first `drop_frames` features are not wanted.

    Where features have a pitch, it is relative to `usual_hz`, or to the median of the window.
    """

    samples: Samples
    drop_frames: int = 0
    live: bool = False
    usual_hz: float | None = None


@dataclass(frozen=True)
class DiffuseRequest:
    """What to render out of one window's content.

    The content is stretched to `frames` mel frames as a whole; [start, stop) of them are rendered. `voice` is the
    voice itself or its id in the voice store. `first_frame` numbers the first rendered frame for the start noise;
    `noise` [mels, T] or [mels, P + T] replaces the drawn one. Only the
    `last_frames` of what is rendered come back, or all.
    """

    voice: Voice | str
    frames: int
    start: int
    stop: int
    seed: int
    first_frame: int
    steps: int
    cfg_rate: float
    live: bool = False
    noise: NDArray[np.float32] | None = None
    last_frames: int | None = None


@dataclass(frozen=True)
class VocodeRequest:
    """How much of a mel to make audible: its `last_frames`, or all."""

    last_frames: int | None = None
    live: bool = False


Pending = Any
"""A result that may still be on its way: an array in process, a call on a cluster."""


Outcome = Literal["done", "bypassed", "skipped", "late", "dropped"]
"""What became of a block of a call."""


class BlockLost(Exception):
    """The stages gave a block up; a call goes on without it, a recording cannot."""


class Networks(Protocol):
    """The networks of one process, each computed at once."""

    def encode(self, request: EncodeRequest) -> Content:
        """Content features [frames, d_model] of one window."""

    def diffuse(self, content: Content, request: DiffuseRequest) -> Mel:
        """Mel [mels, T] of one content."""

    def vocode(self, mel: Mel, request: VocodeRequest) -> Samples:
        """Samples [256 * frames] of one mel."""


class Stages(Protocol):
    """The networks as streams use them: in this process, in a thread of it, or behind handles on a cluster."""

    def encode(self, request: EncodeRequest) -> Pending:
        """Start one window; its content is [frames, d_model]."""

    def render(self, content: Pending, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Pending:
        """Start making content audible in a voice; one content may be rendered in several parts."""

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Pending:
        """Start both for one block of a call."""

    async def collect(self, wave: Pending) -> Samples:
        """Wait for the samples [256 * frames]; BlockLost where the stages gave up."""

    def cancel(self, wave: Pending) -> None:
        """Give up a result that nobody will collect."""

    def stage_ms(self, wave: Pending) -> dict[str, float]:
        """Milliseconds by stage, as far as they are known now."""
