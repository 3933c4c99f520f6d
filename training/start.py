"""Write a preset's weights as checkpoints, so that trainings go on from them: the counterpart of training.export.

`python -m training.start --of tiny --out ./training-out` writes dit.pt, style.pt and vocoder.pt, where there
are none yet. What a training has beside its network (a classifier, the optimiser's state) starts anew. Where a new
content encoder has been trained (encoder.pt), the regulator is told its content through the linear map that tells best
what the old encoder would have said.
"""

from __future__ import annotations

import argparse
import logging

import torch
from torch import Tensor

from configs.schema import Preset, load_preset
from stages.checkpoints import Checkpoint, load_network
from stages.local import open_weights
from stages.models.bigvgan import BigVgan
from training.data import TICK, Corpus
from training.features import encode_whole
from training.finetune import PresetContent
from training.loop import arguments, start_logging
from training.train_encoder import linear_fit, load_phone_model
from training.train_vocoder import prepare

FITTED_EVERY, FITTED_TICKS = 8, 400

log = logging.getLogger("training")

State = dict[str, Tensor]


def starting_points(checkpoint: Checkpoint) -> dict[str, State]:
    """Averaged weights by the name of their checkpoint."""
    states = checkpoint.states
    converter = {f"regulator.{name}": tensor for name, tensor in states["length_regulator"].items()}
    converter |= {f"dit.{name}": tensor for name, tensor in states["cfm"].items()}
    vocoder = load_network(BigVgan(checkpoint.sizes.bigvgan), "bigvgan", checkpoint, "cpu")
    prepare(vocoder)
    return {
        "dit": {name: tensor.float() for name, tensor in converter.items()},
        "style": {f"encoder.{name}": tensor.float() for name, tensor in states["campplus"].items()},
        "vocoder": vocoder.state_dict(),
    }


@torch.inference_mode()
def hear_anew(state: State, old: Preset, checkpoint: Checkpoint, args: argparse.Namespace) -> State:
    """A converter's weights with the regulator's first layer fitted to the new encoder's content."""
    corpus = Corpus(args.data)
    waves = [
        corpus.wave_16k(clip, 0, FITTED_TICKS * TICK)
        for clip in corpus.train()[::FITTED_EVERY]
        if clip.kind == "human" and clip.duration_s > 1
    ]
    before = PresetContent(old, checkpoint, "cpu")
    now = load_phone_model(load_preset(args.preset).model.whisper, args.out)
    x, y = (torch.cat([torch.from_numpy(encode_whole(model, w)) for w in waves]) for model in (now, before))
    fit, offset = linear_fit(x, y)  # (old width, new width), (old width)
    log.info("the new content tells %.3f of the old one's variance", 1 - (x @ fit.T + offset - y).var() / y.var())
    name = "regulator.content_in_proj"
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return state | {f"{name}.weight": weight @ fit, f"{name}.bias": bias + weight @ offset}


def main() -> None:
    """Write the checkpoints that are not there."""
    options = arguments(__doc__, minutes=0)
    options.add_argument("--of", default="tiny", help="the preset whose weights are taken")
    args = options.parse_args()
    start_logging()
    args.out.mkdir(parents=True, exist_ok=True)
    old = load_preset(args.of)
    checkpoint = open_weights(old)
    for stem, weights in starting_points(checkpoint).items():
        file = args.out / f"{stem}.pt"
        if file.exists():
            log.info("%s is there already", file)
            continue
        if stem == "dit" and (args.out / "encoder.pt").exists():
            weights = hear_anew(weights, old, checkpoint, args)
        torch.save({"average": {name: tensor.clone() for name, tensor in weights.items()}}, file)
        log.info("wrote %s", file)


if __name__ == "__main__":
    main()
