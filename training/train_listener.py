"""Train a listener: what does a mel say, and in which sounds? It then judges what the diffusion makes.

A mel can be near to the real one, band by band, and still be mumbled. The listener tells of disguised mels, so of any
voice, which phones the content encoder hears in the recording and what the teacher does (training.teacher, where it has
listened); what it finds on the way there is what a made mel has to share with the real one.
`python -m training.train_listener --data ./data --out ./training-out` writes training-out/listener.pt; it is not
shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import load_preset
from stages.models.length_regulator import nearest_index
from training.data import PHONES, Clip, Corpus, Floats
from training.features import Features, read_features
from training.loop import Losses, Recipe, Tensors, arguments, averaged_weights, start_logging, train
from training.pairs import HUMAN_SHARE, Disguise, mel_frames
from training.teacher import TEACHER_WIDTH, Teacher
from training.train_encoder import load_phone_model

CHANNELS, KERNEL, DILATIONS = 160, 5, (1, 1, 1, 2)
TICKS, BATCH = 60, 20
MEL_OFFSET = 2.5  # with half the scale, log-mels of speech are about zero and one wide

Reading = Callable[[Tensor], Tensor]
"""Content [frames, width] to phone probabilities [frames, phones]."""


class MelListener(nn.Module):
    """Mels [B, 80, T] to logits of the phones [B, phones, T] and the teacher's features [B, width, T]."""

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        widths = (n_mels, *(CHANNELS for _ in DILATIONS))
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation)
            for a, b, dilation in zip(widths, widths[1:], DILATIONS, strict=False)
        )
        self.phones = nn.Conv1d(CHANNELS, len(PHONES), 1)
        self.echo = nn.Conv1d(CHANNELS, TEACHER_WIDTH, 1)

    def maps(self, mel: Tensor) -> list[Tensor]:
        """What each layer finds [B, channels, T]."""
        x, found = mel / 2 + MEL_OFFSET, []
        for i, layer in enumerate(self.layers):
            y = F.gelu(layer(x))
            x = x + y if i else y
            found.append(x)
        return found

    def loss(self, heard: Heard) -> Losses:
        """Cross-entropy of the phones and squared error of what the teacher tells, where it does."""
        last = self.maps(heard.mel)[-1]
        log_phones = self.phones(last).log_softmax(dim=1)
        error = (self.echo(last) - heard.told).square().mean(dim=1) * heard.is_told
        return {
            "phones": -(heard.phones * log_phones).sum(dim=1).mean(),
            "teacher": error.sum() / heard.is_told.sum().clamp(min=1),
        }


@dataclass(frozen=True)
class Heard(Tensors):
    """Mels [B, 80, T], phone probabilities [B, phones, T], the teacher's features [B, width, T], is_told [B, T]."""

    mel: Tensor
    phones: Tensor
    told: Tensor
    is_told: Tensor


class Excerpts:
    """Random excerpts of 1.2 s of all clips that last so long, in made-up voices."""

    def __init__(self, features: list[Features], teacher: Teacher, reading: Reading) -> None:
        long_enough = [item for item in features if item.content.shape[1] > TICKS + 1]
        self.by_kind = [[f for f in long_enough if (f.clip.kind == "human") == human] for human in (True, False)]
        self.teacher, self.reading = teacher, reading

    def batch(self, rng: np.random.Generator) -> Heard:
        """A batch of excerpts."""
        drawn = [self._draw(rng) for _ in range(BATCH)]
        return Heard(*(torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True)))

    def _draw(self, rng: np.random.Generator) -> tuple[Floats, ...]:
        human, synthetic = self.by_kind
        items = human if human and (not synthetic or rng.random() < HUMAN_SHARE) else synthetic
        item = items[int(rng.integers(len(items)))]
        first = int(rng.integers(item.content.shape[1] - TICKS - 1))
        start, n = mel_frames(first), mel_frames(TICKS)
        mel = Disguise(rng).mel(item.mel[start : start + n].astype(np.float32))
        index = nearest_index(TICKS, n).numpy()
        content = item.content[0, first : first + TICKS].astype(np.float32)
        phones = self.reading(torch.from_numpy(content)).numpy()[index]
        told, is_told = self._told(item.clip, first + index)
        return mel.T, phones.T, told.T, is_told

    def _told(self, clip: Clip, frames: np.ndarray) -> tuple[Floats, Floats]:
        if clip in self.teacher:
            return self.teacher.told(clip, frames), np.ones(len(frames), np.float32)
        return np.zeros((len(frames), TEACHER_WIDTH), np.float32), np.zeros(len(frames), np.float32)


def load_listener(out: Path) -> MelListener:
    """The trained listener (running average), not to be trained on."""
    listener = MelListener()
    listener.load_state_dict(averaged_weights(out, "listener"))
    return listener.requires_grad_(False)


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    args = arguments(__doc__, minutes=6).parse_args()
    start_logging()
    torch.manual_seed(args.seed)
    encoder = load_phone_model(load_preset(args.preset).model.whisper, args.out)

    @torch.no_grad()
    def reading(content: Tensor) -> Tensor:
        phones: Tensor = encoder.head(encoder.narrow(content)).softmax(dim=-1)
        return phones

    excerpts = Excerpts(list(read_features(args.data)), Teacher(args.data, Corpus(args.data).clips), reading)
    listener = MelListener().to(args.device)
    recipe = Recipe(args.minutes, learning_rate=1.2e-3, weight_decay=0.05, seed=args.seed)
    train(listener, lambda rng: listener.loss(excerpts.batch(rng).to(args.device)), recipe, args.out, "listener")


if __name__ == "__main__":
    main()
