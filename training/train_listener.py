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
from training.batches import HUMAN_SHARE, Disguise, mel_frames
from training.data import PHONES, Clip, Corpus, Floats
from training.features import Features, read_features
from training.loop import Losses, Recipe, Tensors, arguments, averaged_weights, start_logging, train
from training.teacher import TEACHER_WIDTH, Teacher
from training.train_encoder import load_phone_model
from training.train_style import WARPS

CHANNELS, KERNEL, DILATIONS = 160, 5, (1, 1, 1, 2)
TICKS, BATCH, PORTRAITS = 60, 20, 48
VOICE_DILATIONS, VOICE_WIDTH, SHARPNESS = (1, 1, 2, 2), 128, 20.0
MEL_OFFSET = 2.5  # with half the scale, log-mels of speech are about zero and one wide

Reading = Callable[[Tensor], Tensor]
"""Content [frames, width] to phone probabilities [frames, phones]."""


def convolutions(n_mels: int, dilations: tuple[int, ...]) -> nn.ModuleList:
    """Layers from a mel on."""
    widths = (n_mels, *(CHANNELS for _ in dilations))
    return nn.ModuleList(
        nn.Conv1d(a, b, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation)
        for a, b, dilation in zip(widths, widths[1:], dilations, strict=False)
    )


def found_by(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """What each layer finds [B, channels, T]; all but the first add to what is known."""
    found: list[Tensor] = []
    for layer in layers:
        y = F.gelu(layer(x))
        x = x + y if found else y
        found.append(x)
    return found


class MelListener(nn.Module):
    """Mels [B, 80, T] to logits of the phones [B, phones, T] and the teacher's features [B, width, T]."""

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        self.layers = convolutions(n_mels, DILATIONS)
        self.phones = nn.Conv1d(CHANNELS, len(PHONES), 1)
        self.echo = nn.Conv1d(CHANNELS, TEACHER_WIDTH, 1)

    def maps(self, mel: Tensor) -> list[Tensor]:
        """What each layer finds [B, channels, T]."""
        return found_by(self.layers, mel / 2 + MEL_OFFSET)

    def loss(self, heard: Heard) -> Losses:
        """Cross-entropy of the phones and squared error of what the teacher tells, where it does."""
        last = self.maps(heard.mel)[-1]
        log_phones = self.phones(last).log_softmax(dim=1)
        error = (self.echo(last) - heard.told).square().mean(dim=1) * heard.is_told
        return {
            "phones": -(heard.phones * log_phones).sum(dim=1).mean(),
            "teacher": error.sum() / heard.is_told.sum().clamp(min=1),
        }


class VoiceListener(nn.Module):
    """Mels [B, 80, T] to logits of the speaker [B, speakers]: who is it that speaks?"""

    def __init__(self, n_speakers: int, n_mels: int = 80) -> None:
        super().__init__()
        self.layers = convolutions(n_mels, VOICE_DILATIONS)
        self.vector = nn.Linear(2 * CHANNELS, VOICE_WIDTH)
        self.speakers = nn.Linear(VOICE_WIDTH, n_speakers, bias=False)  # one direction for each

    def maps(self, mel: Tensor) -> list[Tensor]:
        """What each layer finds [B, channels, T], of a mel whose loudness is left aside."""
        return found_by(self.layers, (mel - mel.mean(dim=(1, 2), keepdim=True)) / 2)

    def voice(self, last: Tensor) -> Tensor:
        """Unit vectors [B, width] of what the last layer has found."""
        return F.normalize(self.vector(torch.cat([last.mean(dim=-1), last.std(dim=-1)], dim=-1)), dim=-1)

    def loss(self, mel: Tensor, owners: Tensor) -> Losses:
        """Cross-entropy of the speakers [B], as cosines to one direction each."""
        cosines = self.voice(self.maps(mel)[-1]) @ F.normalize(self.speakers.weight, dim=-1).T
        return {"speakers": F.cross_entropy(SHARPNESS * cosines, owners)}


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


class Portraits:
    """Random excerpts of 1.2 s by speaker, coloured; a voice of another size counts as another speaker."""

    def __init__(self, features: list[Features]) -> None:
        speakers: dict[str, list[Features]] = {}
        for item in features:
            if len(item.mel) > mel_frames(TICKS):
                speakers.setdefault(item.clip.speaker, []).append(item)
        groups = list(speakers.values())
        self.groups = groups
        self.kinds = [
            [i for i, group in enumerate(groups) if (group[0].clip.kind == "human") == human] for human in (True, False)
        ]
        self.n_speakers = len(groups) * len(WARPS)

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mels [B, 80, T] and the numbers of their speakers [B]."""
        mels, owners = [], []
        for _ in range(PORTRAITS):
            human, synthetic = self.kinds
            kind = human if human and (not synthetic or rng.random() < HUMAN_SHARE) else synthetic
            owner = kind[int(rng.integers(len(kind)))]
            group, disguise = self.groups[owner], Disguise(rng)
            item = group[int(rng.integers(len(group)))]
            start = int(rng.integers(len(item.mel) - mel_frames(TICKS)))
            mels.append(disguise.mel(item.mel[start : start + mel_frames(TICKS)].astype(np.float32)).T)
            owners.append(owner * len(WARPS) + disguise.warp)
        return torch.from_numpy(np.stack(mels)), torch.tensor(owners)


def load_voice_listener(out: Path) -> VoiceListener:
    """The trained listener to voices (running average), not to be trained on."""
    weights = averaged_weights(out, "voice_listener")
    listener = VoiceListener(len(weights["speakers.weight"]))
    listener.load_state_dict(weights)
    return listener.requires_grad_(False)


def load_listener(out: Path) -> MelListener:
    """The trained listener (running average), not to be trained on."""
    listener = MelListener()
    listener.load_state_dict(averaged_weights(out, "listener"))
    return listener.requires_grad_(False)


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    options = arguments(__doc__, minutes=6)
    options.add_argument("--voices", action="store_true", help="train the listener to voices instead")
    args = options.parse_args()
    start_logging()
    torch.manual_seed(args.seed)
    if args.voices:
        portraits = Portraits(list(read_features(args.data)))
        voices = VoiceListener(portraits.n_speakers).to(args.device)

        def loss_of(rng: np.random.Generator) -> Losses:
            return voices.loss(*(tensor.to(args.device) for tensor in portraits.batch(rng)))

        recipe = Recipe(args.minutes, learning_rate=1.5e-3, weight_decay=0.05, seed=args.seed, half=args.half)
        train(voices, loss_of, recipe, args.out, "voice_listener")
        return
    encoder = load_phone_model(load_preset(args.preset).model.whisper, args.out)

    @torch.no_grad()
    def reading(content: Tensor) -> Tensor:
        phones: Tensor = encoder.head(encoder.narrow(content)).float().softmax(dim=-1)
        return phones

    excerpts = Excerpts(list(read_features(args.data)), Teacher(args.data, Corpus(args.data).clips), reading)
    listener = MelListener().to(args.device)
    recipe = Recipe(args.minutes, learning_rate=1.2e-3, weight_decay=0.05, seed=args.seed, half=args.half)
    train(listener, lambda rng: listener.loss(excerpts.batch(rng).to(args.device)), recipe, args.out, "listener")


if __name__ == "__main__":
    main()
