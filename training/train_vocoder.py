"""Train the vocoder (BigVGAN, mel to wave) on mel and multi-resolution spectral losses; no discriminator yet.

`python -m training.train_vocoder --data ./data --out ./training-out` writes training-out/vocoder.pt.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from configs.schema import load_preset
from stages.models.bigvgan import AntiAliasedSnake, BigVgan, kaiser_sinc_filter
from stages.models.mel import MelSpectrogram
from training.data import Clip, Corpus
from training.loop import Losses, Recipe, arguments, start_logging, train

SEGMENT_FRAMES = 24
CONTEXT_FRAMES = 4  # on each side, synthesised but not judged: what lies beyond is unknown to the network
BATCH = 4
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512), (256, 64))  # (n_fft, hop)
FULL_BAND_HZ = 22050
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

    def draw(self, rng: np.random.Generator, frames: int, batch: int) -> Tensor:
        """Waves [batch, frames * hop] at random level."""
        n = frames * self.hop
        waves = np.zeros((batch, n), dtype=np.float32)
        for row in waves:
            clip = self.clips[min(int(np.searchsorted(self.chances, rng.random())), len(self.clips) - 1)]
            piece = self.corpus.wave_22k(clip, int(rng.integers(max(1, clip.n_22k - n))), n)
            row[: len(piece)] = piece
            row *= 10 ** (rng.uniform(-12, 3) / 20)
        return torch.from_numpy(np.clip(waves, -1, 1))


def _weight(clip: Clip) -> float:
    full_band = clip.kind == "human" and clip.src_rate >= FULL_BAND_HZ
    return clip.duration_s * (2.0 if full_band else 1.0)


def prepare(vocoder: BigVgan) -> None:
    """Small convolutions, as BigVGAN starts, with weight norm on all of them; activations that train fast."""
    for module in list(vocoder.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.init.normal_(module.weight, 0.0, 0.01 if module.kernel_size == (3,) else 0.03)
            parametrizations.weight_norm(module)
        for name, child in list(module.named_children()):
            if isinstance(child, AntiAliasedSnake):
                setattr(module, name, DepthwiseSnake(child))


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    args = arguments(__doc__, minutes=60).parse_args()
    start_logging()
    sizes = load_preset(args.preset).model
    torch.manual_seed(args.seed)
    vocoder, mel = BigVgan(sizes.bigvgan), MelSpectrogram(sizes.mel)
    prepare(vocoder)
    loss, segments = SpectralLoss(mel), Segments(Corpus(args.data), sizes.mel.hop)
    edge = CONTEXT_FRAMES * sizes.mel.hop

    def loss_of(rng: np.random.Generator) -> Losses:
        real = segments.draw(rng, SEGMENT_FRAMES + 2 * CONTEXT_FRAMES, BATCH)
        made = vocoder(mel(real))
        losses: Losses = loss(made[:, edge:-edge], real[:, edge:-edge])
        return losses

    recipe = Recipe(args.minutes, learning_rate=1e-3, betas=(0.8, 0.99), clip_norm=10.0, average=0.995, seed=args.seed)
    train(vocoder, loss_of, recipe, args.out, "vocoder")


if __name__ == "__main__":
    main()
