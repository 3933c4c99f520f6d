"""Train the content encoder (Whisper's layout) to tell what a large recogniser hears, and phones in a narrow layer.

It hears warped and coloured copies and has to tell what the teacher heard in the recording itself, less the speaker's
mean (training.teacher): what the copies do not share, it cannot tell. The regulator then takes its full width.
`python -m training.train_encoder --data ./data --out ./training-out` writes training-out/encoder.pt.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import WhisperSizes, load_preset
from stages.models.whisper import WhisperEncoder, WhisperLogMel
from training.augment import colour, draw_warp, warp
from training.data import CONTENT_RATE, PHONES, TICK, Clip, Corpus, Floats
from training.labels import UNKNOWN, Phones, frame_labels, read_phones
from training.loop import Losses, Recipe, Tensors, arguments, averaged_weights, start_logging, train
from training.teacher import TEACHER_WIDTH, Teacher
from training.whisper_file import cut_encoder

NARROW = 24
# (ticks, batch, chance): windows of calls, then of files
WINDOWS = ((88, 24, 0.45), (138, 16, 0.3), (276, 8, 0.17), (500, 4, 0.08))
MASKED_BANDS = 10
HUMAN_SHARE = 0.7
PHONES_WEIGHT = 0.5
RATE, CUT_RATE = 1e-3, 6e-4
WEIGHED_EVERY, WEIGHED_TICKS, RIDGE = 10, 250, 30.0

log = logging.getLogger("training")


def sinusoids(positions: int, width: int) -> Tensor:
    """Whisper's fixed position table [positions, width]."""
    steps = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def pad_to_frames(waves: Tensor) -> Tensor:
    """Waves [B, n] with zeros behind, so that n // 320 + 1 content frames come out."""
    n = waves.shape[-1]
    return F.pad(waves, (0, (n // TICK + 1) * TICK - n))


@dataclass(frozen=True)
class Window(Tensors):
    """Waves [.., ticks * 320], phone labels [.., ticks + 1] and what the teacher tells [.., ticks + 1, width].

    `is_told` [.., ticks + 1] is one where the teacher was asked and zero elsewhere.
    """

    waves: Tensor
    labels: Tensor
    told: Tensor
    is_told: Tensor


@dataclass(frozen=True)
class Piece:
    """Samples [at, at + n) of a drawn stretch: a clip's from `start` on."""

    clip: Clip
    at: int
    start: int
    n: int


class PhoneModel(nn.Module):
    """Waves at 16 kHz [B, n] to phones [B, n // 320 + 1, phones]; only `content` is used after training."""

    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.sizes, self.width = sizes, sizes.d_model
        self.log_mel = WhisperLogMel(sizes.n_mels)
        self.encoder = WhisperEncoder(sizes)
        self.encoder.embed_positions.weight = nn.Parameter(
            sinusoids(sizes.max_positions, sizes.d_model), requires_grad=False
        )
        self.narrow = nn.Linear(sizes.d_model, NARROW, bias=False)
        self.head = nn.Linear(NARROW, len(PHONES))
        self.echo = nn.Linear(sizes.d_model, TEACHER_WIDTH)

    def content(self, waves: Tensor) -> Tensor:
        """What the encoder tells of the waves, as the regulator hears it."""
        content: Tensor = self.encoder(self.log_mel(pad_to_frames(waves)))
        return content

    def forward(self, waves: Tensor) -> Tensor:
        """Logits of the phones [B, n // 320 + 1, phones]."""
        logits: Tensor = self.head(self.narrow(self.content(waves)))
        return logits

    def loss(self, window: Window, masked: Tensor) -> Losses:
        """Cross-entropy of the phones and squared error of what the teacher tells, each where it is known.

        `masked` [B, n_mels] bands are set to the floor.
        """
        log_mel = self.log_mel(pad_to_frames(window.waves))
        log_mel = torch.where(masked[:, :, None], log_mel.amin(dim=(1, 2), keepdim=True), log_mel)
        content = self.encoder(log_mel)
        logits = self.head(self.narrow(content))
        error = (self.echo(content) - window.told).square().mean(dim=-1) * window.is_told
        return {
            "phones": PHONES_WEIGHT
            * F.cross_entropy(logits.flatten(0, 1), window.labels.flatten(), label_smoothing=0.05),
            "teacher": error.sum() / window.is_told.sum().clamp(min=1),
        }


class Windows:
    """Random windows, speaker by speaker, of clips whose phones are known or which the teacher has heard."""

    def __init__(self, corpus: Corpus, root: Path) -> None:
        self.corpus = corpus
        self.phones = read_phones(root)
        self.teacher = Teacher(root, corpus.clips)
        self.by_kind: dict[str, list[list[Clip]]] = {}
        for kind in ("human", "synth"):
            speakers: dict[str, list[Clip]] = {}
            for clip in corpus.train():
                if clip.kind == kind and (clip.path in self.phones or clip in self.teacher):
                    speakers.setdefault(clip.speaker, []).append(clip)
            if speakers:
                self.by_kind[kind] = list(speakers.values())
        self.chances = {}
        for kind, groups in self.by_kind.items():
            weight = np.sqrt([sum(clip.duration_s for clip in group) for group in groups])
            self.chances[kind] = weight / weight.sum()

    def draw(self, rng: np.random.Generator, ticks: int) -> Window:
        """One augmented window."""
        kind = "human" if rng.random() < HUMAN_SHARE else "synth"
        kind = kind if kind in self.by_kind else next(iter(self.by_kind))
        groups = self.by_kind[kind]
        group = groups[int(rng.choice(len(groups), p=self.chances[kind]))]
        factor = draw_warp(rng)
        wave, phones, pieces = self._speech(rng, group, int(ticks * TICK * factor) + TICK)
        wave = warp(wave, factor)[: ticks * TICK]
        wave = np.pad(wave, (0, ticks * TICK - len(wave)))
        labels = frame_labels([(a / factor, b / factor, phone) for a, b, phone in phones], ticks + 1)
        told, is_told = self._told(pieces, np.arange(ticks + 1) * TICK * factor)
        arrays = (colour(wave, rng), labels, told, is_told)
        return Window(*(torch.from_numpy(array) for array in arrays))

    def _told(self, pieces: list[Piece], places: np.ndarray) -> tuple[Floats, Floats]:
        """What the teacher tells [frames, width] at the places [frames] of a stretch in samples, and where it does."""
        told = np.zeros((len(places), TEACHER_WIDTH), np.float32)
        is_told = np.zeros(len(places), np.float32)
        for piece in pieces:
            inside = (places >= piece.at) & (places < piece.at + piece.n)
            if piece.clip in self.teacher and inside.any():
                frames = np.round((places[inside] - piece.at + piece.start) / TICK).astype(np.int64)
                told[inside], is_told[inside] = self.teacher.told(piece.clip, frames), 1.0
        return told, is_told

    def _speech(self, rng: np.random.Generator, group: list[Clip], n: int) -> tuple[Floats, Phones, list[Piece]]:
        """Clips of one speaker with silences between them, n samples in all, with the phones' times."""
        waves: list[Floats] = []
        phones: Phones = []
        pieces: list[Piece] = []
        filled = 0
        if rng.random() < 0.25:  # a call starts with an empty past
            filled = int(rng.uniform(0, 0.6) * n)
            waves.append(np.zeros(filled, dtype=np.float32))
            phones.append((0.0, filled / CONTENT_RATE, "SIL"))
        first = True
        while filled < n:
            clip = group[int(rng.integers(len(group)))]
            known = self.phones.get(clip.path, [])
            usable = clip.n_16k if clip in self.teacher else min(clip.n_16k, int(known[-1][1] * CONTENT_RATE))
            start = int(rng.integers(max(1, usable - n // 2))) if first else 0
            piece = self.corpus.wave_16k(clip, start, min(n - filled, usable - start))
            shift_s, end_s = (filled - start) / CONTENT_RATE, (filled + len(piece)) / CONTENT_RATE
            phones += [(a + shift_s, min(b + shift_s, end_s), p) for a, b, p in known if b > start / CONTENT_RATE]
            pieces.append(Piece(clip, filled, start, len(piece)))
            gap = int(rng.uniform(0.05, 0.8) * CONTENT_RATE)
            waves += [piece, np.zeros(gap, dtype=np.float32)]
            phones.append((end_s, end_s + gap / CONTENT_RATE, "SIL"))
            filled += len(piece) + gap
            first = False
        return np.concatenate(waves)[:n], phones, pieces

    def batch(self, rng: np.random.Generator) -> Window:
        """Windows of one drawn length [B, ..]."""
        ticks, size, _ = WINDOWS[int(rng.choice(len(WINDOWS), p=[chance for _, _, chance in WINDOWS]))]
        drawn = [self.draw(rng, ticks) for _ in range(size)]
        return Window(*(torch.stack([getattr(w, field.name) for w in drawn]) for field in fields(Window)))


def masked_bands(rng: np.random.Generator, batch: int, bands: int) -> Tensor:
    """One run of up to nine masked bands per item, [batch, bands]."""
    first = rng.integers(0, bands, (batch, 1))
    width = rng.integers(0, MASKED_BANDS, (batch, 1))
    index = np.arange(bands)
    return torch.from_numpy((index >= first) & (index < first + width))


@torch.no_grad()
def accuracy(model: PhoneModel, corpus: Corpus, root: Path, kind: str) -> tuple[float, float]:
    """Share of right frames on held-out speakers' clips (first 2.76 s): all frames, and those that are not silence."""
    phones = read_phones(root)
    right = np.zeros(2)
    total = np.zeros(2)
    clips = [clip for clip in corpus.dev() if clip.kind == kind and clip.path in phones]
    for clip in clips[:: max(1, len(clips) // 100)]:
        wave = corpus.wave_16k(clip, 0, 138 * TICK)
        labels = frame_labels(phones[clip.path], len(wave) // TICK + 1)
        guess = model(torch.from_numpy(wave)[None])[0].argmax(-1).numpy()
        for i, judged in enumerate((labels != UNKNOWN, labels > 0)):
            right[i] += (guess == labels)[judged].sum()
            total[i] += judged.sum()
    shares = right / np.maximum(total, 1)
    return float(shares[0]), float(shares[1])


@torch.no_grad()
def agreement(model: PhoneModel, corpus: Corpus, teacher: Teacher) -> float:
    """Share of the variance of what the teacher hears in held-out human speech that the model tells."""
    error = total = 0.0
    for clip in [clip for clip in corpus.dev() if clip.kind == "human" and clip in teacher][::2]:
        wave = corpus.wave_16k(clip, 0, 138 * TICK)
        told = torch.from_numpy(teacher.told(clip, np.arange(len(wave) // TICK + 1)))
        error += float((model.echo(model.content(torch.from_numpy(wave)[None]))[0] - told).square().sum())
        total += float(told.square().sum())
    return 1 - error / max(total, 1e-9)


def load_phone_model(sizes: WhisperSizes, out: Path) -> PhoneModel:
    """The trained model (running average), ready to use."""
    model = PhoneModel(sizes)
    model.load_state_dict(averaged_weights(out, "encoder"))
    return model.eval()


def linear_fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [m, n] and bias [m] of the layer that makes y [frames, m] of x [frames, n] best, by ridge regression."""
    x = F.pad(x, (0, 1), value=1.0)
    fit = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)  # (n + 1, m)
    return fit[:-1].T, fit[-1]


@torch.no_grad()
def begin_from_whisper(model: PhoneModel, file: Path, corpus: Corpus, teacher: Teacher) -> None:
    """Let the encoder start as Whisper's own, cut to its sizes by what weighs most in some of the clips.

    The layer that tells the rest starts as the linear map that fits best: one of noise would first undo what is there.
    """
    clips = [clip for clip in corpus.train() if clip.kind == "human" and clip in teacher][::WEIGHED_EVERY]
    waves = [corpus.wave_16k(clip, 0, WEIGHED_TICKS * TICK) for clip in clips]
    model.encoder.load_state_dict(cut_encoder(file, model.sizes, waves))
    heard = [model.content(torch.from_numpy(wave)[None])[0] for wave in waves]
    told = [teacher.told(clip, np.arange(len(rows))) for clip, rows in zip(clips, heard, strict=True)]
    weight, bias = linear_fit(torch.cat(heard), torch.from_numpy(np.concatenate(told)))
    model.echo.weight.copy_(weight)
    model.echo.bias.copy_(bias)


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands; scores on held-out speakers at the end."""
    options = arguments(__doc__, minutes=28)
    options.add_argument("--whisper", type=Path, help="model.bin of a CTranslate2 folder to start from")
    args = options.parse_args()
    start_logging()
    sizes = load_preset(args.preset).model.whisper
    torch.manual_seed(args.seed)
    model, corpus = PhoneModel(sizes), Corpus(args.data)
    windows = Windows(corpus, args.data)
    if args.whisper:
        begin_from_whisper(model, args.whisper, corpus, windows.teacher)
    model = model.to(args.device)

    def loss_of(rng: np.random.Generator) -> Losses:
        window = windows.batch(rng)
        masked = masked_bands(rng, len(window.waves), sizes.n_mels)
        return model.loss(window.to(args.device), masked.to(args.device))

    rate = CUT_RATE if args.whisper else RATE
    recipe = Recipe(args.minutes, learning_rate=rate, seed=args.seed, half=args.half)
    train(model, loss_of, recipe, args.out, "encoder")
    model = load_phone_model(sizes, args.out)
    for kind in ("human", "synth"):
        shares = accuracy(model, corpus, args.data, kind)
        log.info("held-out %s speakers: %.3f of frames right, %.3f of speech", kind, *shares)
    log.info("held-out human speakers: %.3f of the teacher told", agreement(model, corpus, windows.teacher))


if __name__ == "__main__":
    main()
