"""Train the vocoder (BigVGAN, mel to wave): first on spectral losses, then against judges.

`python -m training.train_vocoder --data ./data --out ./training-out` writes training-out/vocoder.pt from nothing;
`... --adversarial` goes on from there, with discriminators, to training-out/vocoder_adversarial.pt. In the second part
the wave is judged after the preset's mel matching, as it will be heard: the network need not spend itself on what the
matching does, and learns harmonics instead.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from configs.schema import HOP, MODEL_RATE, ModelSizes, load_preset
from stages.models.bigvgan import AntiAliasedSnake, BigVgan, kaiser_sinc_filter
from stages.models.mel import MelSpectrogram
from stages.models.mel_match import MelMatch
from stages.pitch import pitch_hz
from training.data import CONTENT_RATE, TICK, Clip, Corpus, Floats
from training.discriminators import Judgement, Judges, judges_loss, likeness_loss, makers_loss
from training.loop import Losses, Recipe, arguments, averaged_weights, start_logging, train

SEGMENT_FRAMES = 24
CONTEXT_FRAMES = 4  # on each side, synthesised but not judged: what lies beyond is unknown to the network
BATCH = 4
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512), (256, 64))  # (n_fft, hop)
FULL_BAND_HZ = MODEL_RATE
PITCH_LEAD_S = 0.25
MEL_FLOOR, FLOOR_PER_BIN = 1.5e-3, 5e-5


class SpectralLoss(nn.Module):
    """Distance of two waves [B, samples]: log and linear magnitudes at several resolutions, and the mel.

    Logarithms are taken above a floor of about 50 dB below speech: a small network must not spend itself on hiss.
    """

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        self.mel = mel
        for n_fft, _ in RESOLUTIONS:
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> Losses:
        spectral = made.new_zeros(())
        for n_fft, hop in RESOLUTIONS:
            m, r = (self._magnitude(wave, n_fft, hop) for wave in (made, real))
            convergence = torch.linalg.vector_norm(m - r) / torch.linalg.vector_norm(r)
            spectral = spectral + F.l1_loss(m.log(), r.log()) + convergence
        made_mel, real_mel = ((self.mel(wave).exp() + MEL_FLOOR).log() for wave in (made, real))
        return {"mel": 2.0 * F.l1_loss(made_mel, real_mel), "stft": spectral / len(RESOLUTIONS)}

    def _magnitude(self, wave: Tensor, n_fft: int, hop: int) -> Tensor:
        window = self.get_buffer(f"window_{n_fft}")
        spec = torch.stft(wave, n_fft, hop, window=window, center=False, return_complex=True)
        return torch.sqrt(spec.real.square() + spec.imag.square() + 1e-9) + FLOOR_PER_BIN * n_fft


class DepthwiseSnake(nn.Module):
    """The same activation with the usual depthwise filters, which train a third faster than the blocked ones."""

    taps: Tensor

    def __init__(self, blocked: AntiAliasedSnake) -> None:
        super().__init__()
        self.act = blocked.act
        self.register_buffer("taps", kaiser_sinc_filter()[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        taps = self.taps.expand(channels, 1, -1)
        x = F.pad(x, (5, 5), mode="replicate")
        x = F.conv_transpose1d(x, 2 * taps, stride=2, groups=channels)[..., 15:-15]
        x = F.pad(self.act(x), (5, 6), mode="replicate")
        return F.conv1d(x, taps, stride=2, groups=channels)


class Segments:
    """Random pieces of clips; recordings with the full band count more, since the upper half is rare."""

    def __init__(self, corpus: Corpus, hop: int) -> None:
        self.corpus, self.hop = corpus, hop
        self.clips = corpus.train()
        weights = np.array([_weight(clip) for clip in self.clips])
        self.chances = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, frames: int, batch: int) -> tuple[Tensor, Tensor]:
        """Waves [batch, frames * hop] at random level, and their pitch in Hz [batch, frames]."""
        n = frames * self.hop
        waves, pitch = np.zeros((batch, n), np.float32), np.zeros((batch, frames), np.float32)
        for wave, f0 in zip(waves, pitch, strict=True):
            clip = self.clips[min(int(np.searchsorted(self.chances, rng.random())), len(self.clips) - 1)]
            start = int(rng.integers(max(1, clip.n_22k - n)))
            piece = self.corpus.wave_22k(clip, start, n)
            wave[: len(piece)] = piece
            wave *= 10 ** (rng.uniform(-12, 3) / 20)
            f0[:] = self._pitch(clip, start / MODEL_RATE, frames)
        return torch.from_numpy(np.clip(waves, -1, 1)), torch.from_numpy(pitch)

    def _pitch(self, clip: Clip, start_s: float, frames: int) -> Floats:
        """Pitch in the middle of each mel frame from `start_s` on, with some sound around it to tell it by."""
        begin = max(0, int((start_s - PITCH_LEAD_S) * CONTENT_RATE))
        length_s = frames * self.hop / MODEL_RATE + 2 * PITCH_LEAD_S
        wave = self.corpus.wave_16k(clip, begin, int(length_s * CONTENT_RATE))
        pitch = pitch_hz(wave, len(wave) // TICK + 1)
        middle_s = start_s - begin / CONTENT_RATE + (np.arange(frames) + 0.5) * self.hop / MODEL_RATE
        return pitch[np.clip(np.round(middle_s * CONTENT_RATE / TICK).astype(np.int64), 0, len(pitch) - 1)]


def _weight(clip: Clip) -> float:
    full_band = clip.kind == "human" and clip.src_rate >= FULL_BAND_HZ
    return clip.duration_s * (2.0 if full_band else 1.0)


def prepare(vocoder: BigVgan) -> None:
    """For training: weight norm on all convolutions, and activations that train fast."""
    for module in list(vocoder.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            parametrizations.weight_norm(module)
        for name, child in list(module.named_children()):
            if isinstance(child, AntiAliasedSnake):
                setattr(module, name, DepthwiseSnake(child))


class Contest(nn.Module):
    """The vocoder and its judges, trained by one optimiser: each loss reaches only the side that it is meant for."""

    def __init__(self, vocoder: BigVgan, mel: MelSpectrogram, match: MelMatch) -> None:
        super().__init__()
        self.vocoder, self.judges, self.match = vocoder, Judges(), match
        self.spectral = SpectralLoss(mel)

    def loss(self, real: Tensor, pitch: Tensor) -> Losses:
        """All losses for real waves [B, samples] of known pitch [B, frames]; their edges are context."""
        mel = self.spectral.mel(real)
        edge = CONTEXT_FRAMES * HOP
        made = self.match(self.vocoder(mel), mel, pitch)[:, edge:-edge]
        real = real[:, edge:-edge]
        own = self.judges(real)
        frozen = {name: tensor.detach() for name, tensor in self.judges.named_parameters()}
        heard: list[Judgement] = torch.func.functional_call(self.judges, frozen, (made,))
        return {
            **self.spectral(made, real),
            "makers": 0.5 * makers_loss(heard),
            "likeness": 2.0 * likeness_loss(own, heard),
            "judges": judges_loss(own, self.judges(made.detach())),
        }


def prepared(sizes: ModelSizes) -> BigVgan:
    """A vocoder as it is trained: with weight norm."""
    vocoder = BigVgan(sizes.bigvgan)
    for module in vocoder.modules():  # small convolutions, as BigVGAN starts
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.init.normal_(module.weight, 0.0, 0.01 if module.kernel_size == (3,) else 0.03)
    prepare(vocoder)
    return vocoder


def trained_vocoder(sizes: ModelSizes, out: Path) -> BigVgan:
    """The last state of the training, adversarial where it got there, with weight norm."""
    vocoder = prepared(sizes)
    if (out / "vocoder_adversarial.pt").exists():
        weights = averaged_weights(out, "vocoder_adversarial")
        weights = {k.removeprefix("vocoder."): v for k, v in weights.items() if k.startswith("vocoder.")}
    else:
        weights = averaged_weights(out, "vocoder")
    vocoder.load_state_dict(weights)
    return vocoder


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    parser = arguments(__doc__, minutes=60)
    parser.add_argument("--adversarial", action="store_true", help="the second part: against discriminators")
    args = parser.parse_args()
    start_logging()
    preset = load_preset(args.preset)
    sizes = preset.model
    torch.manual_seed(args.seed)
    mel, segments = MelSpectrogram(sizes.mel).to(args.device), Segments(Corpus(args.data), sizes.mel.hop)
    edge = CONTEXT_FRAMES * sizes.mel.hop

    def drawn(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        waves, pitch = segments.draw(rng, SEGMENT_FRAMES + 2 * CONTEXT_FRAMES, BATCH)
        return waves.to(args.device), pitch.to(args.device)

    if args.adversarial:
        match = MelMatch(sizes.mel, preset.mel_match_passes)
        contest = Contest(trained_vocoder(sizes, args.out), mel, match).to(args.device)
        recipe = Recipe(args.minutes, learning_rate=4e-4, betas=(0.8, 0.99), clip_norm=5.0, seed=args.seed)
        train(contest, lambda rng: contest.loss(*drawn(rng)), recipe, args.out, "vocoder_adversarial")
        return
    vocoder, loss = prepared(sizes).to(args.device), SpectralLoss(mel).to(args.device)

    def loss_of(rng: np.random.Generator) -> Losses:
        real, _ = drawn(rng)
        made = vocoder(mel(real))
        losses: Losses = loss(made[:, edge:-edge], real[:, edge:-edge])
        return losses

    recipe = Recipe(args.minutes, learning_rate=1e-3, betas=(0.8, 0.99), clip_norm=10.0, average=0.995, seed=args.seed)
    train(vocoder, loss_of, recipe, args.out, "vocoder")


if __name__ == "__main__":
    main()
