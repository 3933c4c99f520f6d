"""Fit a preset to your own recordings: `python -m training.finetune --clips my-voice/ --to my-preset`.

The folder holds clips of 1 to 30 s (longer ones are cut), of one voice, or of one voice in each of its folders. The
preset's regulator and DiT are trained on; encoder, style encoder and vocoder stay. The result is a folder with weights
and a preset file, for `seedvc convert ... --preset my-preset/preset.yaml` and the `preset` of a Serve config. From
`seed-vc-small` it wants a GPU (`--device cuda`).
"""

import argparse
import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from torch import Tensor

from configs.schema import ConfigError, Preset, load_preset
from stages.checkpoints import Checkpoint, WeightsError, load_network
from stages.encoder import EncoderStage
from stages.local import open_weights
from stages.models.campplus import Campplus
from stages.models.mel import MelSpectrogram
from stages.types import EncodeRequest
from training.batches import Batches
from training.data import MODEL_RATE, Corpus, pack, read_wave
from training.export import write_weights
from training.features import Features, features_of, style_of
from training.loop import Losses, Recipe, averaged_weights, start_logging, train
from training.train_dit import Converter

MIN_CLIP_S, MAX_CLIP_S = 1.0, 30.0
LEARNING_RATE = 1e-4

log = logging.getLogger("training")


class PresetContent:
    """The preset's own content encoder, as training.features asks for it."""

    def __init__(self, preset: Preset, checkpoint: Checkpoint, device: str) -> None:
        self.width = checkpoint.sizes.whisper.d_model
        self._encoder = EncoderStage(preset, checkpoint, device)

    def content(self, waves: Tensor) -> Tensor:
        """Content [B, n // 320 + 1, width] of waves [B, n], without the pitch."""
        rows = self._encoder([EncodeRequest(wave.numpy()) for wave in waves])
        return torch.from_numpy(np.stack(rows)[..., : self.width])


def collect(clips: Path, root: Path) -> int:
    """Copy a folder's recordings into a corpus at `root`, cut to 30 s; how many there are.

    Raises:
        ConfigError: no recording in the folder that is long enough and can be read.
    """
    human = root / "human"
    human.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str]] = []
    for path in sorted(path for path in clips.rglob("*") if path.is_file()):
        try:
            wave = read_wave(path, MODEL_RATE)
        except soundfile.LibsndfileError:
            log.info("%s is left out: not a recording that libsndfile reads", path.name)
            continue
        voice = path.relative_to(clips).parts[0] if path.parent != clips else clips.resolve().name
        for start in range(0, len(wave), int(MAX_CLIP_S * MODEL_RATE)):
            piece = wave[start : start + int(MAX_CLIP_S * MODEL_RATE)]
            if len(piece) < MIN_CLIP_S * MODEL_RATE:
                continue
            name = f"{len(rows):05d}.flac"
            soundfile.write(human / name, piece, MODEL_RATE)
            rows.append((name, f"own_{voice}", f"{len(piece) / MODEL_RATE:.3f}", ""))
    if not rows:
        raise ConfigError(f"{clips} holds no recording of {MIN_CLIP_S:g} s or more")
    with (human / "manifest.csv").open("w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([("path", "speaker", "duration_s", "transcript"), *rows])
    return len(rows)


def own_features(preset: Preset, checkpoint: Checkpoint, root: Path, device: str, seed: int) -> list[Features]:
    """Content, pitch, mel and style of every clip, by the preset's own encoders."""
    pack(root)
    corpus = Corpus(root)
    rng = np.random.default_rng(seed)
    content, mel = PresetContent(preset, checkpoint, device), MelSpectrogram(checkpoint.sizes.mel)
    campplus = load_network(Campplus(checkpoint.sizes.campplus), "campplus", checkpoint, "cpu")
    made = []
    for count, clip in enumerate(corpus.clips):
        features = features_of(clip, corpus, content, mel, rng)
        made.append(
            Features(clip, features.content, features.pitch, features.mel, style_of(clip, corpus, campplus, rng))
        )
        log.info("features of %d of %d clips", count + 1, len(corpus.clips))
    return made


def finetune(preset: Preset, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Train the preset's regulator and DiT on the clips, and write the new preset."""
    work: Path = args.to / "training"
    collect(args.clips, work)
    batches = Batches(own_features(preset, checkpoint, work, args.device, args.seed), disguised=False)
    torch.manual_seed(args.seed)
    converter = Converter(checkpoint.sizes)
    load_network(converter.regulator, "length_regulator", checkpoint, "cpu")
    load_network(converter.dit, "cfm", checkpoint, "cpu")
    converter = converter.requires_grad_(True).to(args.device)

    def loss_of(rng: np.random.Generator) -> Losses:
        batch = batches.batch(rng).to(args.device)
        return converter.loss(batch, rng) if preset.temperature else converter.distance(batch)

    recipe = Recipe(args.minutes, learning_rate=LEARNING_RATE, warmup_steps=20, average=0.99, seed=args.seed)
    train(converter, loss_of, recipe, work, "dit")
    converter.load_state_dict(averaged_weights(work, "dit"))
    states = dict(checkpoint.states)
    states["cfm"], states["length_regulator"] = converter.dit.state_dict(), converter.regulator.state_dict()
    write_weights(states, args.to / "weights")
    tree = preset.model_copy(update={"model": checkpoint.sizes, "weights": Path("weights"), "hub": ()})
    tree = tree.model_copy(update={"name": args.to.resolve().name})
    (args.to / "preset.yaml").write_text(yaml.safe_dump(json.loads(tree.model_dump_json()), sort_keys=False))
    log.info("wrote %s", args.to / "preset.yaml")


def main() -> int:
    """Fine-tune from the command line; 2 where the clips or the weights cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--to", type=Path, required=True, help="folder of the new preset")
    parser.add_argument("--preset", default="tiny", help="preset to start from")
    parser.add_argument("--weights", help="folder with the preset's weights, in place of its own")
    parser.add_argument("--minutes", type=float, default=10, help="training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    args = parser.parse_args()
    start_logging()
    try:
        preset = load_preset(args.preset)
        finetune(preset, open_weights(preset, args.weights), args)
    except (ConfigError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
