"""Train the content encoder (Whisper's layout) to tell phones through a narrow layer.

The layer keeps the phones from being told by the speaker. The regulator then takes the full width in front of it, which
holds a third more of the sound, and learns from warped copies not to believe what it says of the speaker.
`python -m training.train_encoder --data ./data --out ./training-out` writes training-out/encoder.pt.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import WhisperSizes, load_preset
from stages.models.whisper import WhisperEncoder, WhisperLogMel
from training.augment import colour, draw_warp, warp
from training.data import CONTENT_RATE, PHONES, Clip, Corpus, Floats
from training.labels import UNKNOWN, Labels, Phones, frame_labels, read_phones
from training.loop import Losses, Recipe, arguments, averaged_weights, start_logging, train

NARROW = 24
TICK = 320  # samples of a content frame at 16 kHz
# (ticks, batch, chance): windows of calls, then of files
WINDOWS = ((138, 16, 0.75), (276, 8, 0.17), (500, 4, 0.08))
MASKED_BANDS = 10
REREAD_STEPS = 100

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


class PhoneModel(nn.Module):
    """Waves at 16 kHz [B, n] to phones [B, n // 320 + 1, phones]; only `content` is used after training."""

    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.width = sizes.d_model
        self.log_mel = WhisperLogMel(sizes.n_mels)
        self.encoder = WhisperEncoder(sizes)
        self.encoder.embed_positions.weight = nn.Parameter(
            sinusoids(sizes.max_positions, sizes.d_model), requires_grad=False
        )
        self.narrow = nn.Linear(sizes.d_model, NARROW, bias=False)
        self.head = nn.Linear(NARROW, len(PHONES))

    def content(self, waves: Tensor) -> Tensor:
        """What the encoder tells of the waves, as the regulator hears it."""
        content: Tensor = self.encoder(self.log_mel(pad_to_frames(waves)))
        return content

    def forward(self, waves: Tensor) -> Tensor:
        """Logits of the phones [B, n // 320 + 1, phones]."""
        logits: Tensor = self.head(self.narrow(self.content(waves)))
        return logits

    def loss(self, waves: Tensor, labels: Tensor, masked: Tensor) -> Losses:
        """Cross-entropy of the phones [B, F]; `masked` [B, n_mels] bands are set to the floor."""
        log_mel = self.log_mel(pad_to_frames(waves))
        log_mel = torch.where(masked[:, :, None], log_mel.amin(dim=(1, 2), keepdim=True), log_mel)
        logits = self.head(self.narrow(self.encoder(log_mel)))
        return {"phones": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.05)}


class Windows:
    """Random labelled windows, half synthesised and half human, speaker by speaker."""

    def __init__(self, corpus: Corpus, root: Path, clips: list[Clip]) -> None:
        self.corpus, self.root, self.clips = corpus, root, clips
        self.reread()

    def reread(self) -> None:
        """Take up the labels that have come since."""
        self.phones = read_phones(self.root)
        self.by_kind: dict[str, list[list[Clip]]] = {}
        for kind in ("human", "synth"):
            speakers: dict[str, list[Clip]] = {}
            for clip in self.clips:
                if clip.kind == kind and clip.path in self.phones:
                    speakers.setdefault(clip.speaker, []).append(clip)
            if speakers:
                self.by_kind[kind] = list(speakers.values())
        self.chances = {}
        for kind, groups in self.by_kind.items():
            weight = np.sqrt([sum(clip.duration_s for clip in group) for group in groups])
            self.chances[kind] = weight / weight.sum()

    def draw(self, rng: np.random.Generator, ticks: int) -> tuple[Floats, Labels]:
        """One augmented window [ticks * 320] and the labels of its ticks + 1 frames."""
        kinds = list(self.by_kind)
        kind = kinds[int(rng.integers(len(kinds)))]
        groups = self.by_kind[kind]
        group = groups[int(rng.choice(len(groups), p=self.chances[kind]))]
        factor = draw_warp(rng)
        wave, phones = self._speech(rng, group, int(ticks * TICK * factor) + TICK)
        wave = warp(wave, factor)[: ticks * TICK]
        wave = np.pad(wave, (0, ticks * TICK - len(wave)))
        labels = frame_labels([(a / factor, b / factor, phone) for a, b, phone in phones], ticks + 1)
        return colour(wave, rng), labels

    def _speech(self, rng: np.random.Generator, group: list[Clip], n: int) -> tuple[Floats, Phones]:
        """Pieces of one speaker with silences between them, n samples in all, with the phones' times."""
        pieces: list[Floats] = []
        phones: Phones = []
        filled = 0
        if rng.random() < 0.25:  # a call starts with an empty past
            filled = int(rng.uniform(0, 0.6) * n)
            pieces.append(np.zeros(filled, dtype=np.float32))
            phones.append((0.0, filled / CONTENT_RATE, "SIL"))
        first = True
        while filled < n:
            clip = group[int(rng.integers(len(group)))]
            known = self.phones[clip.path]
            labelled = min(clip.n_16k, int(known[-1][1] * CONTENT_RATE))
            start = int(rng.integers(max(1, labelled - n // 2))) if first else 0
            piece = self.corpus.wave_16k(clip, start, min(n - filled, labelled - start))
            shift_s, end_s = (filled - start) / CONTENT_RATE, (filled + len(piece)) / CONTENT_RATE
            phones += [(a + shift_s, min(b + shift_s, end_s), p) for a, b, p in known if b > start / CONTENT_RATE]
            gap = int(rng.uniform(0.05, 0.8) * CONTENT_RATE)
            pieces += [piece, np.zeros(gap, dtype=np.float32)]
            phones.append((end_s, end_s + gap / CONTENT_RATE, "SIL"))
            filled += len(piece) + gap
            first = False
        return np.concatenate(pieces)[:n], phones

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Waves [B, ticks * 320] and labels [B, ticks + 1] of one drawn length."""
        ticks, size, _ = WINDOWS[int(rng.choice(len(WINDOWS), p=[chance for _, _, chance in WINDOWS]))]
        waves, labels = zip(*(self.draw(rng, ticks) for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(waves)), torch.from_numpy(np.stack(labels))


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


def load_phone_model(sizes: WhisperSizes, out: Path) -> PhoneModel:
    """The trained model (running average), ready to use."""
    model = PhoneModel(sizes)
    model.load_state_dict(averaged_weights(out, "encoder"))
    return model.eval()


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands; scores on held-out speakers at the end."""
    args = arguments(__doc__, minutes=28).parse_args()
    start_logging()
    sizes = load_preset(args.preset).model.whisper
    torch.manual_seed(args.seed)
    model, corpus = PhoneModel(sizes).to(args.device), Corpus(args.data)
    windows = Windows(corpus, args.data, corpus.train())
    steps = 0

    def loss_of(rng: np.random.Generator) -> Losses:
        nonlocal steps
        steps += 1
        if steps % REREAD_STEPS == 0:
            windows.reread()
        waves, labels = windows.batch(rng)
        masked = masked_bands(rng, len(waves), sizes.n_mels)
        return model.loss(waves.to(args.device), labels.to(args.device), masked.to(args.device))

    recipe = Recipe(args.minutes, learning_rate=1e-3, seed=args.seed)
    train(model, loss_of, recipe, args.out, "encoder")
    model = load_phone_model(sizes, args.out)
    for kind in ("human", "synth"):
        shares = accuracy(model, corpus, args.data, kind)
        log.info("held-out %s speakers: %.3f of frames right, %.3f of speech", kind, *shares)


if __name__ == "__main__":
    main()
