"""Train the style encoder (CAM++) to tell speakers apart; its vector conditions the diffusion.

It also learns to say how high a voice is and how its long-term spectrum is shaped: what the diffusion wants to know,
and a target that teaches from the first step, while a few hundred speakers take long to tell apart. The vector's scale
is held near one by the network's last batch norm. `python -m training.train_style --data ./data` writes
training-out/style.pt.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from configs.schema import CampplusSizes, load_preset
from stages.models.campplus import N_BANDS, Campplus, centred_fbank
from training.augment import colour, warp
from training.data import CONTENT_RATE, Clip, Corpus, Floats
from training.loop import Losses, Recipe, arguments, averaged_weights, start_logging, train
from training.pitch import band_shape, median_pitch_hz

WINDOW_S = (1.0, 1.8)
BATCH = 24
HUMAN_SHARE = 0.7
COLOURED = 0.3
SHARPNESS = 16.0
DESCRIBED_CLIPS, DESCRIBED_S = 3, 6
WARPS = (1.0, 0.86, 1.16)  # a resampled voice counts as another speaker: three times as many to tell apart

log = logging.getLogger("training")


class SpeakerModel(nn.Module):
    """Filterbanks [B, T, 80] to style vectors [B, style_dim]; the classifier is for training alone."""

    def __init__(self, sizes: CampplusSizes, n_classes: int) -> None:
        super().__init__()
        self.encoder = Campplus(sizes)
        self.classifier = nn.Linear(sizes.style_dim, n_classes, bias=False)  # one direction for each
        self.describer = nn.Linear(sizes.style_dim, 1 + N_BANDS)

    def loss(self, fbank: Tensor, classes: Tensor, descriptions: Tensor) -> Losses:
        """Cross-entropy of the speaker by the angle to its direction, and squared error of the description [B, 81]."""
        style = self.encoder(fbank)
        return {
            "speakers": F.cross_entropy(
                SHARPNESS * F.normalize(style) @ F.normalize(self.classifier.weight).T, classes
            ),
            "voice": 2.0 * F.mse_loss(self.describer(style), descriptions),
        }


class Speakers:
    """Random windows of random speakers."""

    def __init__(self, corpus: Corpus, clips: list[Clip]) -> None:
        self.corpus = corpus
        groups: dict[str, list[Clip]] = {}
        for clip in clips:
            groups.setdefault(clip.speaker, []).append(clip)
        self.names = sorted(groups)
        self.groups = [groups[name] for name in self.names]
        self.kinds = {
            kind: [i for i, group in enumerate(self.groups) if group[0].kind == kind] for kind in ("human", "synth")
        }

    def describe(self) -> None:
        """Work out each class's description [81] from a few clips: log pitch and band shape, standardised."""
        rows = []
        for group in self.groups:
            clips = [self.corpus.wave_16k(clip, 0, DESCRIBED_S * CONTENT_RATE) for clip in group[:DESCRIBED_CLIPS]]
            for factor in WARPS:
                waves = [warp(wave, factor) for wave in clips]
                shapes = [band_shape(uncentred_fbank(wave)) for wave in waves]
                pitch = np.log(np.median([median_pitch_hz(wave) for wave in waves]))
                rows.append(np.concatenate([[pitch], np.mean(shapes, axis=0)]))
        table = np.stack(rows)
        self.descriptions = ((table - table.mean(axis=0)) / table.std(axis=0)).astype(np.float32)

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Filterbanks [B, T, 80] of one drawn length, classes [B] (speaker and warp) and their descriptions [B, 81]."""
        n = int(rng.uniform(*WINDOW_S) * CONTENT_RATE)
        waves, classes = [], []
        for _ in range(BATCH):
            kind = "human" if rng.random() < HUMAN_SHARE and self.kinds["human"] else "synth"
            indices = self.kinds[kind] or self.kinds["human"]
            speaker = indices[int(rng.integers(len(indices)))]
            which = int(rng.integers(len(WARPS)))
            waves.append(self.window(rng, self.groups[speaker], n, WARPS[which]))
            classes.append(speaker * len(WARPS) + which)
        return fbanks(waves), torch.tensor(classes), torch.from_numpy(self.descriptions[classes])

    def window(self, rng: np.random.Generator, group: list[Clip], n: int, factor: float = 1.0) -> Floats:
        """One window [n], warped by the factor, repeated where the clip is shorter."""
        clip = group[int(rng.integers(len(group)))]
        n_clip = int(n * factor) + 1
        start = int(rng.integers(max(1, clip.n_16k - n_clip)))
        wave = np.resize(warp(self.corpus.wave_16k(clip, start, n_clip), factor), n)
        return colour(wave, rng) if rng.random() < COLOURED else wave


def uncentred_fbank(wave: Floats) -> Floats:
    """Log filterbank [frames, 80] with its mean over time."""
    bands = kaldi.fbank(torch.from_numpy(wave)[None], num_mel_bins=N_BANDS, dither=0.0, sample_frequency=CONTENT_RATE)
    return np.asarray(bands.numpy())


def fbanks(waves: list[Floats]) -> Tensor:
    """Centred filterbanks [B, T, 80] of waves of one length."""
    return torch.stack([centred_fbank(torch.from_numpy(wave)) for wave in waves])


@torch.no_grad()
def equal_error_rate(encoder: Campplus, corpus: Corpus, clips: list[Clip], seed: int = 0) -> float:
    """Of pairs of 3 s windows of held-out human speakers, by cosine."""
    speakers = Speakers(corpus, [clip for clip in clips if clip.kind == "human"])
    rng = np.random.default_rng(seed)
    vectors = []
    for group in speakers.groups:
        windows = [speakers.window(rng, group, 3 * CONTENT_RATE) for _ in range(6)]
        vectors.append(F.normalize(encoder(fbanks(windows))))
    stacked = torch.cat(vectors)
    owner = torch.arange(len(vectors)).repeat_interleave(6)
    cosines = stacked @ stacked.T
    pairs = torch.triu(torch.ones_like(cosines, dtype=torch.bool), 1)
    same = owner[:, None] == owner[None]
    own, other = cosines[pairs & same].sort().values, cosines[pairs & ~same].sort().values
    misses = torch.searchsorted(own, own) / len(own)
    false_alarms = 1 - torch.searchsorted(other, own) / len(other)
    return float(torch.maximum(misses, false_alarms).min())


def load_style_encoder(sizes: CampplusSizes, out: Path) -> Campplus:
    """The trained encoder (running average), ready to use."""
    weights = averaged_weights(out, "style")
    encoder = Campplus(sizes)
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")})
    return encoder.eval()


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    args = arguments(__doc__, minutes=30).parse_args()
    start_logging()
    sizes = load_preset(args.preset).model.campplus
    torch.manual_seed(args.seed)
    corpus = Corpus(args.data)
    speakers = Speakers(corpus, corpus.train())
    speakers.describe()
    model = SpeakerModel(sizes, len(speakers.names) * len(WARPS)).to(args.device)

    def loss_of(rng: np.random.Generator) -> Losses:
        return model.loss(*(tensor.to(args.device) for tensor in speakers.batch(rng)))

    recipe = Recipe(args.minutes, learning_rate=2e-3, warmup_steps=20, average=0.99, seed=args.seed, half=args.half)
    train(model, loss_of, recipe, args.out, "style")
    rate = equal_error_rate(load_style_encoder(sizes, args.out), corpus, corpus.dev())
    log.info("held-out speakers: equal error rate %.3f", rate)


if __name__ == "__main__":
    main()
