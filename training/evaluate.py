"""Score the trained networks on speakers that no training heard.

`python -m training.evaluate --data ./data --out ./training-out` prints one line for each network.
"""

import logging

import numpy as np
import torch
import torch.nn.functional as F

from configs.schema import ModelSizes, load_preset
from stages.models.bigvgan import BigVgan
from stages.models.mel import MelSpectrogram
from training.data import Corpus
from training.export import vocoder_state
from training.loop import arguments, start_logging
from training.train_encoder import accuracy, load_phone_model
from training.train_style import equal_error_rate, load_style_encoder
from training.train_vocoder import SpectralLoss

VOCODER_CLIPS, VOCODER_FRAMES = 30, 172

log = logging.getLogger("training")


@torch.inference_mode()
def resynthesis(sizes: ModelSizes, vocoder: BigVgan, corpus: Corpus) -> tuple[float, float]:
    """Mean absolute log-mel error and spectral loss of held-out human clips (their first 2 s), wave to mel to wave."""
    mel = MelSpectrogram(sizes.mel)
    loss = SpectralLoss(mel)
    n = VOCODER_FRAMES * sizes.mel.hop
    clips = [clip for clip in corpus.dev() if clip.kind == "human" and clip.n_22k >= n]
    errors = []
    for clip in clips[:: max(1, len(clips) // VOCODER_CLIPS)]:
        real = torch.from_numpy(corpus.wave_22k(clip, 0, n))[None]
        made = vocoder(mel(real))
        errors.append((float(F.l1_loss(mel(made), mel(real))), float(loss(made, real)["stft"])))
    return float(np.mean([e for e, _ in errors])), float(np.mean([e for _, e in errors]))


def main() -> None:
    """Print the scores."""
    args = arguments(__doc__, minutes=0).parse_args()
    start_logging()
    sizes, corpus = load_preset(args.preset).model, Corpus(args.data)
    phones = load_phone_model(sizes.whisper, args.out)
    for kind in ("human", "synth"):
        shares = accuracy(phones, corpus, args.data, kind)
        log.info("content, held-out %s speakers: %.3f of frames right, %.3f of speech", kind, *shares)
    rate = equal_error_rate(load_style_encoder(sizes.campplus, args.out), corpus, corpus.dev())
    log.info("style, held-out human speakers: equal error rate %.3f", rate)
    vocoder = BigVgan(sizes.bigvgan)
    vocoder.load_state_dict(vocoder_state(sizes, args.out))
    errors = resynthesis(sizes, vocoder.eval(), corpus)
    log.info("vocoder, held-out human speakers: log-mel error %.3f, spectral loss %.3f", *errors)


if __name__ == "__main__":
    main()
