"""Batches of a prompt and a source for the diffusion: one speaker, in a voice that is made up anew for every pair.

The content comes from warped copies, so that what it still tells of the speaker is wrong, and the voice to render is
itself disguised (another size of head, another microphone): prompt and style are all that can be believed, and a few
hundred speakers become any number. Where a clip is one of a group of aligned ones (training.pairs), its content mostly
comes from another of the group: the same words at the same time, in a voice that is really another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torchaudio
from torch import Tensor

from configs.schema import HOP, MODEL_RATE, MelSettings
from stages.geometry import TICK_MODEL
from training.data import Floats
from training.features import END_TICKS, VARIANTS, Features
from training.loop import Tensors
from training.train_style import WARPS

N_MELS = MelSettings().n_mels
FRAMES_PER_BATCH = 1800
HUMAN_SHARE = 0.7
HEARD, HEARD_CHANCES = ("warped", "warped_again", "ends", "whole"), (0.25, 0.25, 0.15, 0.35)
HEARD_IN_CALL_CHANCES = (0.1, 0.1, 0.6, 0.2)
WARPED, WARP_SPREAD = 0.4, 0.03
COLOURED, COLOUR_KNOTS, COLOUR_SPREAD = 0.4, 6, 0.4  # nepers
FROM_ANOTHER = 0.8
"""How often the content of a clip in a group is that of another clip in it."""
UNVOICED_BY_MISTAKE = 0.03


@dataclass(frozen=True)
class Shape:
    """One kind of batch: ticks of prompt and of source content, each drawn from a range, and its chance."""

    chance: float
    prompt_ticks: tuple[int, int]
    source_ticks: tuple[int, int]
    ends: bool = False  # as in a call: content from window ends


SHAPES = (
    Shape(0.45, (25, 50), (END_TICKS - 1, END_TICKS - 1), ends=True),
    Shape(0.35, (40, 150), (50, 150)),
    Shape(0.20, (100, 250), (150, 250)),
)


def mel_frames(ticks: int) -> int:
    """Whole mel frames in so many ticks of 20 ms."""
    return ticks * TICK_MODEL // HOP


@dataclass(frozen=True)
class Piece:
    """So many ticks of a clip from one on, and the clip that its content comes from: itself, or one aligned to it."""

    item: Features
    heard: Features
    first: int
    ticks: int


@dataclass(frozen=True)
class Batch(Tensors):
    """Content [B, ticks + 1, width], pitch in Hz [B, ticks + 1] and mel [B, 80, frames] of both; style [B, 192]."""

    prompt_content: Tensor
    prompt_pitch: Tensor
    prompt_mel: Tensor
    source_content: Tensor
    source_pitch: Tensor
    source_mel: Tensor
    style: Tensor


class Disguise:
    """One made-up voice: mel bands and pitch moved by a factor, and a smooth colouring of the bands."""

    def __init__(self, rng: np.random.Generator, warped: float = WARPED, coloured: float = COLOURED) -> None:
        self.warp = int(rng.integers(1, len(WARPS))) if rng.random() < warped else 0
        self.factor = WARPS[self.warp] * (float(np.exp(rng.normal(0, WARP_SPREAD))) if warped else 1.0)
        place = np.interp(BAND_HZ / self.factor, BAND_HZ, np.arange(N_MELS))
        self.low = np.minimum(place.astype(np.int64), N_MELS - 2)
        self.share = (place - self.low).astype(np.float32)
        self.colour = np.zeros(N_MELS, np.float32)
        if rng.random() < coloured:
            knots = rng.normal(0, COLOUR_SPREAD, COLOUR_KNOTS)
            self.colour += np.interp(np.arange(N_MELS), np.linspace(0, N_MELS - 1, COLOUR_KNOTS), knots)

    def mel(self, frames: Floats) -> Floats:
        """Mel [frames, 80] of the made-up voice."""
        return frames[:, self.low] * (1 - self.share) + frames[:, self.low + 1] * self.share + self.colour


def _band_centres_hz() -> np.ndarray:
    """Frequency of the highest point of each mel filter [80]."""
    filters = torchaudio.functional.melscale_fbanks(
        513, 0.0, MODEL_RATE / 2, N_MELS, MODEL_RATE, norm="slaney", mel_scale="slaney"
    )
    return np.maximum.accumulate(filters.numpy().argmax(axis=0) * MODEL_RATE / 1024 + np.arange(N_MELS) * 1e-3)


BAND_HZ = _band_centres_hz()


class Batches:
    """Pairs of a prompt and a source of one speaker, from two clips or from two places of one."""

    def __init__(self, features: list[Features], disguised: bool = True) -> None:
        self.disguised = disguised
        speakers: dict[str, list[Features]] = {}
        for item in features:
            speakers.setdefault(item.clip.speaker, []).append(item)
        groups = list(speakers.values())
        self.aligned: dict[str, list[Features]] = {}
        for item in features:
            if item.clip.group:
                self.aligned.setdefault(item.clip.group, []).append(item)
        self.groups = {kind: [g for g in groups if g[0].clip.kind == kind] for kind in ("human", "synth")}
        self.chances = {kind: _shares(groups) for kind, groups in self.groups.items() if groups}

    def batch(self, rng: np.random.Generator) -> Batch:
        """One drawn shape, filled with as many pairs as fit."""
        shape = SHAPES[int(rng.choice(len(SHAPES), p=[shape.chance for shape in SHAPES]))]
        prompt, source = (int(rng.integers(low, high + 1)) for low, high in (shape.prompt_ticks, shape.source_ticks))
        size = max(2, FRAMES_PER_BATCH // (mel_frames(prompt) + mel_frames(source)))
        rows = [self._pair(rng, prompt, source, shape.ends) for _ in range(size)]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))

    def _pair(self, rng: np.random.Generator, prompt: int, source: int, ends: bool) -> tuple[Floats, ...]:
        kind = "human" if rng.random() < HUMAN_SHARE else "synth"
        if kind not in self.chances:
            kind = next(iter(self.chances))
        group = self.groups[kind][int(rng.choice(len(self.groups[kind]), p=self.chances[kind]))]
        spoken = self._stretch(rng, group, source)
        shown = self._stretch(rng, group, prompt)
        heard = HEARD[int(rng.choice(len(HEARD), p=HEARD_IN_CALL_CHANCES if ends else HEARD_CHANCES))]
        disguise = Disguise(rng) if self.disguised else Disguise(rng, warped=0.0, coloured=0.0)
        known = [item.style for item in group if item.style is not None]
        if not known:
            raise ValueError(f"{group[0].clip.speaker} has no style vectors; run `python -m training.features style`")
        styles = known[int(rng.integers(len(known)))]
        style = styles[disguise.warp, int(rng.integers(styles.shape[1]))]
        shown = [replace(piece, heard=piece.item) for piece in shown]  # a voice's own recording
        return (*_piece(shown, "whole", prompt, disguise, rng), *_piece(spoken, heard, source, disguise, rng), style)

    def _stretch(self, rng: np.random.Generator, group: list[Features], ticks: int) -> list[Piece]:
        """Pieces of one or more clips that together are `ticks` long."""
        stretch: list[Piece] = []
        missing = ticks
        while missing > 0:
            item = group[int(rng.integers(len(group)))]
            known = min(item.content.shape[1] - 1, len(item.mel) * HOP // TICK_MODEL)
            first = int(rng.integers(max(0, known - missing) + 1)) if not stretch else 0
            taken = min(missing, known - first)
            stretch.append(Piece(item, self._heard(rng, item), first, taken))
            missing -= taken
        return stretch

    def _heard(self, rng: np.random.Generator, item: Features) -> Features:
        """The clip that the content of a clip is to come from."""
        others = [other for other in self.aligned.get(item.clip.group, []) if other is not item]
        if not others or rng.random() >= FROM_ANOTHER:
            return item
        return others[int(rng.integers(len(others)))]


def _shares(groups: list[list[Features]]) -> np.ndarray:
    """Chance of each speaker: the root of how much there is of him."""
    weight = np.sqrt([sum(item.clip.duration_s for item in group) for group in groups])
    return np.asarray(weight / weight.sum())


def _piece(
    stretch: list[Piece], variant: str, ticks: int, disguise: Disguise, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Content [ticks + 1, width], pitch [ticks + 1] and mel [80, frames] of a stretch, disguised."""
    which = VARIANTS.index(variant)
    contents, pitches, mels = [], [], []
    for piece in stretch:
        after = piece.first + piece.ticks + (piece is stretch[-1])  # content has one frame more, at the very end
        contents.append(piece.heard.content[which, piece.first : after])
        pitches.append(piece.item.pitch[piece.first : after])
        start = mel_frames(piece.first)
        mels.append(piece.item.mel[start : start + mel_frames(piece.ticks) + 1])
    pitch = np.concatenate(pitches) * disguise.factor
    pitch = np.where(rng.random(len(pitch)) < UNVOICED_BY_MISTAKE, 0, pitch)
    frames = np.concatenate(mels)
    wanted = mel_frames(ticks)
    frames = np.pad(frames, ((0, max(0, wanted - len(frames))), (0, 0)), mode="edge")[:wanted]
    mel = disguise.mel(frames.astype(np.float32)).T
    return np.concatenate(contents).astype(np.float32), pitch.astype(np.float32), mel.astype(np.float32)
