"""What the diffusion learns from: content, pitch, mel and style of every clip, computed once by the trained encoders.

The content comes in variants that tell the same words: the clip as it is, two warped and coloured copies (another voice
with the same words, which is what conversion hears), and one made of window ends, as a call's blocks are (no sound to
their right). `python -m training.features content` writes `data/features/`, and parts of it may run side by side;
`... features style` then adds the style vectors, and may be repeated with better ones.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from configs.schema import load_preset
from stages.models.campplus import Campplus
from stages.models.mel import MelSpectrogram
from stages.pitch import pitch_hz
from training.augment import colour, draw_warp, warp
from training.data import CONTENT_RATE, TICK, Clip, Corpus, Floats, chosen
from training.loop import arguments, start_logging
from training.train_encoder import load_phone_model
from training.train_style import WARPS, fbanks, load_style_encoder

VARIANTS = ("whole", "warped", "warped_again", "ends")
WHOLE_TICKS, WHOLE_OVERLAP = 500, 50  # a file's segments
WINDOW_TICKS, END_TICKS = 88, 39  # a call's window, and how much of it the diffusion renders
STYLE_S = (2.0, 5.0)
STYLE_CLIPS_PER_VOICE = 4
ENCODE_BATCH = 16

log = logging.getLogger("training")


class ContentModel(Protocol):
    """What makes content of waves at 16 kHz [B, n]: [B, n // 320 + 1, width]."""

    width: int

    def content(self, waves: Tensor) -> Tensor:
        """Content of the waves."""


@dataclass(frozen=True)
class Features:
    """Of one clip: content [variants, frames, width] and pitch in Hz [frames] at 50 Hz, mel [mel frames, 80].

    `style` [warps, lengths, 192] is there for a few clips of each voice, once the style encoder has been trained.
    """

    clip: Clip
    content: np.ndarray
    pitch: np.ndarray
    mel: np.ndarray
    style: np.ndarray | None = None


@torch.inference_mode()
def encode_whole(model: ContentModel, wave: Floats) -> Floats:
    """Content [n // 320 + 1, width] of a wave [n], in windows of 10 s that overlap by 1 s."""
    n_frames = len(wave) // TICK + 1
    out = np.empty((n_frames, model.width), dtype=np.float32)
    start = 0
    while True:
        piece = wave[start * TICK : (start + WHOLE_TICKS) * TICK]
        rows = model.content(torch.from_numpy(piece)[None])[0].numpy()
        skip = WHOLE_OVERLAP // 2 if start else 0
        out[start + skip : start + len(rows)] = rows[skip : n_frames - start]
        if start + WHOLE_TICKS >= n_frames - 1:
            return out
        start += WHOLE_TICKS - WHOLE_OVERLAP


@torch.inference_mode()
def encode_ends(model: ContentModel, wave: Floats) -> Floats:
    """Content [n // 320 + 1, width] in which every 39 frames are the end of a call's window."""
    n_frames = len(wave) // TICK + 1
    blocks = -(-n_frames // END_TICKS)
    past = np.zeros((WINDOW_TICKS - END_TICKS) * TICK, dtype=np.float32)
    padded = np.concatenate([past, wave, np.zeros(blocks * END_TICKS * TICK - len(wave), dtype=np.float32)])
    windows = np.stack(
        [padded[i * END_TICKS * TICK :][: WINDOW_TICKS * TICK] for i in range(blocks)]
    )  # (blocks, window samples)
    rows = [
        model.content(torch.from_numpy(windows[i : i + ENCODE_BATCH]))[:, -END_TICKS - 1 : -1].numpy()
        for i in range(0, blocks, ENCODE_BATCH)
    ]
    return np.concatenate(rows).reshape(-1, model.width)[:n_frames]


def unwarped(rows: Floats, factor: float, n_frames: int) -> Floats:
    """Content of a warped copy [about n / factor, width], put back on the clip's own time [n, width]."""
    index = np.minimum(np.round(np.arange(n_frames) / factor).astype(np.int64), len(rows) - 1)
    return rows[index]


@torch.inference_mode()
def features_of(
    clip: Clip, corpus: Corpus, phones: ContentModel, mel: MelSpectrogram, rng: np.random.Generator
) -> Features:
    """Content variants, pitch and mel of a clip."""
    wave = corpus.wave_16k(clip)
    n_frames = len(wave) // TICK + 1
    content = [encode_whole(phones, wave)]
    for encode in (encode_whole, encode_whole, encode_ends):
        factor = draw_warp(rng)
        content.append(unwarped(encode(phones, colour(warp(wave, factor), rng)), factor, n_frames))
    frames = mel(torch.from_numpy(corpus.wave_22k(clip))[None])[0].T.numpy()
    pitch = pitch_hz(wave, n_frames)
    return Features(clip, np.stack(content).astype(np.float16), pitch, frames.astype(np.float16))


@torch.inference_mode()
def style_of(clip: Clip, corpus: Corpus, style: Campplus, rng: np.random.Generator) -> Floats:
    """Style vectors [warps, lengths, 192] of a clip, each from another piece of it."""
    wave = corpus.wave_16k(clip)
    rows = []
    for factor in WARPS:
        warped = warp(wave, factor)
        for length_s in STYLE_S:
            n = int(length_s * CONTENT_RATE)
            start = int(rng.integers(max(1, len(warped) - n)))
            rows.append(style(fbanks([np.resize(warped[start : start + n], n)]))[0].numpy())
    return np.stack(rows).reshape(len(WARPS), len(STYLE_S), -1)


def read_features(root: Path) -> Iterator[Features]:
    """All that was computed, part by part."""
    style_file = root / "features" / "style.safetensors"
    styles = load_file(style_file) if style_file.exists() else {}
    for index in sorted((root / "features").glob("*.jsonl")):
        arrays = np.load(index.with_suffix(".npz"))
        content, pitch, mel = arrays["content"], arrays["pitch"], arrays["mel"]
        at_content = at_mel = 0
        for line in index.read_text(encoding="utf8").splitlines():
            row = json.loads(line)
            n_content, n_mel = row.pop("n_content"), row.pop("n_mel")
            rows, notes = content[:, at_content : at_content + n_content], pitch[at_content : at_content + n_content]
            yield Features(Clip(**row), rows, notes, mel[at_mel : at_mel + n_mel], styles.get(row["path"]))
            at_content, at_mel = at_content + n_content, at_mel + n_mel


def write_features(root: Path, part: int, features: list[Features]) -> None:
    """One file of arrays and one of clips; the clips come last, so that a part is there whole or not at all."""
    folder = root / "features"
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / f"{part}.npz",
        content=np.concatenate([f.content for f in features], axis=1),
        pitch=np.concatenate([f.pitch for f in features]),
        mel=np.concatenate([f.mel for f in features]),
    )
    lines = [
        json.dumps({**vars(f.clip), "n_content": f.content.shape[1], "n_mel": len(f.mel)}) + "\n" for f in features
    ]
    (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf8")


def main() -> None:
    """Compute the content of one part of the clips, or the style of all that have content."""
    options = arguments(__doc__, minutes=0)
    options.add_argument("what", choices=("content", "style"))
    options.add_argument("--part", type=int, default=0)
    options.add_argument("--parts", type=int, default=1)
    args = options.parse_args()
    start_logging()
    sizes = load_preset(args.preset).model
    corpus = Corpus(args.data)
    rng = np.random.default_rng((args.seed, args.part))
    if args.what == "style":
        encoder = load_style_encoder(sizes.campplus, args.out)
        taken: Counter[str] = Counter()
        styles = {}
        for clip in (features.clip for features in read_features(args.data)):
            taken[clip.speaker] += 1
            if taken[clip.speaker] <= STYLE_CLIPS_PER_VOICE:
                styles[clip.path] = style_of(clip, corpus, encoder, rng)
        save_file(styles, args.data / "features" / "style.safetensors")
        return
    phones, mel = load_phone_model(sizes.whisper, args.out), MelSpectrogram(sizes.mel)
    clips = chosen(corpus.train())[args.part :: args.parts]
    features = []
    for count, clip in enumerate(clips):
        features.append(features_of(clip, corpus, phones, mel, rng))
        if count % 100 == 0:
            log.info("content of %d of %d clips", count, len(clips))
    write_features(args.data, args.part, features)


if __name__ == "__main__":
    main()
