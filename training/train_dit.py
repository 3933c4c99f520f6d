"""Train the length regulator and the DiT together: from content, pitch, style and a prompt to mel, by flow matching.

`python -m training.train_dit --data ./data --out ./training-out` reads what training.features has written and writes
training-out/dit.pt; `... --student` goes on from there, with what training.train_listener has written, to
dit_student.pt, which needs one step and no noise.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import ModelSizes, load_preset
from stages.models.dit import AdaptiveNorm, Dit
from stages.models.length_regulator import LengthRegulator
from training.batches import Batch, Batches
from training.discriminators import likeness_loss
from training.features import read_features
from training.loop import Losses, Recipe, arguments, averaged_weights, start_logging, train
from training.train_listener import MelListener, VoiceListener, load_listener, load_voice_listener

# Where one, two and four Euler steps evaluate, and how often to train there; the remaining items take any time. At the
# start there is nothing but noise, so only there does the network have to read the content.
STEP_TIMES, STEP_CHANCES, ANY_TIME = (0.0, 0.25, 0.5, 0.75), (0.64, 0.1, 0.18, 0.08), 0.2
STUDENT_FALL = 0.6
MEAN_LOG_MEL = -5.5  # a first guess of the output
SOUNDS_WEIGHT, PHONES_WEIGHT, TRAITS_WEIGHT, VOICE_WEIGHT = 1.5, 1.0, 0.6, 0.6

log = logging.getLogger("training")


class Converter(nn.Module):
    """Regulator and DiT, with the flow-matching loss."""

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        self.regulator = LengthRegulator(sizes.regulator)
        self.dit = Dit(sizes.dit)
        for module in self.dit.modules():
            if isinstance(module, AdaptiveNorm):  # start as a plain norm
                nn.init.normal_(module.project_layer.weight, 0.0, 0.01)
                nn.init.zeros_(module.project_layer.bias)
                nn.init.ones_(module.project_layer.bias.data[: module.project_layer.out_features // 2])
        nn.init.normal_(self.dit.conv2.weight, 0.0, 0.02)
        nn.init.constant_(self.dit.conv2.bias, MEAN_LOG_MEL)  # type: ignore[arg-type]

    def conditions(self, batch: Batch) -> Tensor:
        """Prompt's and source's conditions [B, P + T, channels], regulated apart, as in a call."""
        parts = (
            (batch.prompt_content, batch.prompt_pitch, batch.prompt_mel),
            (batch.source_content, batch.source_pitch, batch.source_mel),
        )
        return torch.cat(
            [self.regulator(content, torch.full((len(content),), mel.shape[-1]), f0) for content, f0, mel in parts],
            dim=1,
        )

    def velocity(self, batch: Batch, noise: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, 80, T] of the source's frames at the times [B]."""
        mu, n_prompt = self.conditions(batch), batch.prompt_mel.shape[-1]
        prompt_x = mu.new_zeros(len(mu), batch.prompt_mel.shape[1], mu.shape[1])
        prompt_x[..., :n_prompt] = batch.prompt_mel
        mixed = (1 - t)[:, None, None] * noise + t[:, None, None] * batch.source_mel
        x = torch.cat([torch.zeros_like(batch.prompt_mel), mixed], dim=-1)
        made: Tensor = self.dit(x, prompt_x, t, batch.style, mu)
        return made[..., n_prompt:]

    def rendered(self, batch: Batch) -> Tensor:
        """The source's mel [B, 80, T] in one step from no noise."""
        return self.velocity(batch, torch.zeros_like(batch.source_mel), torch.zeros_like(batch.style[:, 0]))

    def distance(self, batch: Batch) -> Losses:
        """Mean distance of what is rendered from no noise to the real mel."""
        return {"mel": (self.rendered(batch) - batch.source_mel).abs().mean()}

    def loss(self, batch: Batch, rng: np.random.Generator) -> Losses:
        """Squared error of the velocity on the source's frames, at drawn times."""
        size = len(batch.style)
        times = np.where(rng.random(size) < ANY_TIME, rng.random(size), rng.choice(STEP_TIMES, size, p=STEP_CHANCES))
        t = torch.from_numpy(times.astype(np.float32)).to(batch.style.device)
        noise = torch.randn_like(batch.source_mel)
        return {"velocity": (self.velocity(batch, noise, t) - (batch.source_mel - noise)).square().mean()}


class Student(nn.Module):
    """A converter that renders in one step from no noise (a preset's `temperature: 0`), and is heard by a listener.

    One step from noise spends most of a small network on taking the noise away again, and a step that is judged by how
    real it looks says some real words, not the ones that were said: the listener asks for the sounds of the recording.
    """

    def __init__(self, converter: Converter, listener: MelListener, voices: VoiceListener) -> None:
        super().__init__()
        self.converter, self._listeners = converter, (listener, voices)  # a tuple: their weights are not the student's

    def loss(self, batch: Batch) -> Losses:
        """Distance to the real mel: in bands, in what the listeners find, in the phones and the voice they hear."""
        real, (listener, voices) = batch.source_mel, self._listeners
        made = self.converter.rendered(batch)
        own, heard = listener.maps(real), listener.maps(made)
        said = listener.phones(own[-1]).log_softmax(dim=1)
        understood = listener.phones(heard[-1]).log_softmax(dim=1)
        own_voice, heard_voice = voices.maps(real), voices.maps(made)
        likeness = (voices.voice(own_voice[-1]) * voices.voice(heard_voice[-1])).sum(dim=-1)
        return {
            "mel": (made - real).abs().mean(),
            "sounds": SOUNDS_WEIGHT * likeness_loss([[*own, said]], [[*heard, understood]]),
            "phones": PHONES_WEIGHT * (said.exp() * (said - understood)).sum(dim=1).mean(),
            "traits": TRAITS_WEIGHT * likeness_loss([[*own_voice, real]], [[*heard_voice, made]]),
            "voice": VOICE_WEIGHT * (1 - likeness).mean(),
        }


def load_converter(sizes: ModelSizes, out: Path) -> Converter:
    """The trained networks (running average), ready to use: the student where there is one."""
    model = Converter(sizes)
    if (out / "dit_student.pt").exists():
        weights = averaged_weights(out, "dit_student")
        weights = {k.removeprefix("converter."): v for k, v in weights.items() if k.startswith("converter.")}
    else:
        weights = averaged_weights(out, "dit")
    model.load_state_dict(weights)
    return model.eval()


def main() -> None:
    """Train from the beginning, or go on where the checkpoint stands."""
    options = arguments(__doc__, minutes=60)
    options.add_argument("--student", action="store_true", help="the second part: one step, from no noise")
    args = options.parse_args()
    start_logging()
    sizes = load_preset(args.preset).model
    torch.manual_seed(args.seed)
    batches = Batches(list(read_features(args.data)))
    if args.student:
        listener, voices = load_listener(args.out).to(args.device), load_voice_listener(args.out).to(args.device)
        student = Student(load_converter(sizes, args.out).train(), listener, voices).to(args.device)
        recipe = Recipe(
            args.minutes, 8e-4, betas=(0.85, 0.98), average=0.995, fall=STUDENT_FALL, seed=args.seed, half=args.half
        )
        train(student, lambda rng: student.loss(batches.batch(rng).to(args.device)), recipe, args.out, "dit_student")
        return
    model = Converter(sizes).to(args.device)

    def loss_of(rng: np.random.Generator) -> Losses:
        return model.loss(batches.batch(rng).to(args.device), rng)

    recipe = Recipe(args.minutes, learning_rate=1.5e-3, warmup_steps=100, average=0.995, seed=args.seed, half=args.half)
    train(model, loss_of, recipe, args.out, "dit")


if __name__ == "__main__":
    main()
