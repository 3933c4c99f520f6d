"""Write what was trained as the weights of a preset: four fp16 safetensors files in upstream's names.

`python -m training.export --out ./training-out --to configs/presets/tiny`. Weight norm is folded; vectors
stay float32.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import parametrize

from configs.schema import ModelSizes, load_preset
from training.loop import start_logging
from training.train_dit import load_converter
from training.train_encoder import load_phone_model
from training.train_style import load_style_encoder
from training.train_vocoder import trained_vocoder

log = logging.getLogger("training")

State = dict[str, Tensor]


def vocoder_state(sizes: ModelSizes, out: Path) -> State:
    """BigVGAN's tensors without weight norm."""
    vocoder = trained_vocoder(sizes, out)
    for module in vocoder.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return vocoder.state_dict()


def compact(state: Mapping[str, Tensor]) -> State:
    """Matrices in half precision; vectors (biases, norms, statistics) as they are."""
    return {
        name: (tensor.half() if tensor.dim() > 1 and tensor.is_floating_point() else tensor).detach().contiguous()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def write_weights(states: Mapping[str, Mapping[str, Tensor]], to: Path) -> None:
    """Write all networks, by the names that stages.checkpoints gives them, into a folder."""
    to.mkdir(parents=True, exist_ok=True)
    files = {
        "dit": {f"length_regulator.{name}": tensor for name, tensor in states["length_regulator"].items()}
        | {f"cfm.estimator.{name}": tensor for name, tensor in states["cfm"].items()},
        "campplus": states["campplus"],
        "bigvgan": states["bigvgan"],
        "whisper": {f"model.encoder.{name}": tensor for name, tensor in states["whisper"].items()},
    }
    for name, state in files.items():
        path = to / f"{name}.safetensors"
        save_file(compact(state), path)
        log.info("%s: %d tensors, %.2f MB", path.name, len(state), path.stat().st_size / 1e6)


def export(sizes: ModelSizes, out: Path, to: Path) -> None:
    """Write what the trainings have left in a folder as weights."""
    converter = load_converter(sizes, out)
    states = {
        "length_regulator": converter.regulator.state_dict(),
        "cfm": converter.dit.state_dict(),
        "campplus": load_style_encoder(sizes.campplus, out).state_dict(),
        "bigvgan": vocoder_state(sizes, out),
        "whisper": load_phone_model(sizes.whisper, out).encoder.state_dict(),
    }
    write_weights(states, to)


def main() -> None:
    """Export the checkpoints of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training-out"), help="folder of the checkpoints")
    parser.add_argument("--to", type=Path, required=True, help="the preset's weights folder")
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args()
    start_logging()
    export(load_preset(args.preset).model, args.out, args.to)


if __name__ == "__main__":
    main()
