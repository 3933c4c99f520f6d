"""The loop that all trainings share: schedule, running average of the weights, checkpoints, resume."""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.data import DEFAULT_DATA

CHECKPOINT_EVERY_S = 150.0
REPORT_EVERY_STEPS = 50
PAUSE_S = 30.0  # a step that took longer was paused from outside; the pause is not training time
A_PRIME = 7919

log = logging.getLogger("training")

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Tensors:
    """Base of the batches: a record of tensors only."""

    def to(self, device: str) -> Self:
        """The same elsewhere."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one training goes."""

    minutes: float
    learning_rate: float
    warmup_steps: int = 150
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    average: float = 0.998
    fall: float = 0.2
    """Share of the time, at the end, over which the learning rate falls linearly."""
    seed: int = 0
    half: bool = False
    """Whether the products are computed in bfloat16, on processors that do that faster (AMX, AVX-512)."""

    def rate(self, step: int, minutes: float) -> float:
        """Learning rate: linear warm-up, constant, linear fall."""
        fall = min(1.0, max(0.02, (1.0 - minutes / self.minutes) / self.fall))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps) * fall


def train(
    model: nn.Module, loss_of: Callable[[np.random.Generator], Losses], recipe: Recipe, out: Path, stem: str
) -> None:
    """Minimise the sum of the losses; writes `out/stem.pt` every few minutes and resumes from it.

    The checkpoint's "average" is the exponential running average of the weights, which export and scores use. Mean
    losses are appended to `out/stem.jsonl`, from which training.curves draws. Where `torchrun` has started several
    processes, each draws its own batches, gradients are averaged over all, and the first one writes.
    """
    rank = _join()
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{stem}.pt"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    step, minutes = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location=next(model.parameters()).device)
        if "model" in state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            average, step, minutes = state["average"], state["step"], state["minutes"]
            log.info("%s: resumed at step %d, %.1f min", stem, step, minutes)
        else:  # of training.start: the network alone
            model.load_state_dict(state["average"], strict=False)
            average = {key: value.detach().clone() for key, value in model.state_dict().items()}
            log.info("%s: starts from %d tensors", stem, len(state["average"]))
    torch.manual_seed(recipe.seed + step + rank * A_PRIME)
    rng = np.random.default_rng((recipe.seed, step, rank))
    saved_minutes = minutes
    sums: dict[str, float] = {}
    summed = 0
    model.train()
    while minutes < recipe.minutes:
        started_s = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, minutes)
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=recipe.half):
            losses = loss_of(rng)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized():
            _average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        step += 1
        _update(average, model, min(recipe.average, step / (step + 10)))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        summed += 1
        if step % REPORT_EVERY_STEPS == 0 and rank == 0:
            means = {name: total / summed for name, total in sums.items()}
            told = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            log.info("%s: step %d, %.1f min: %s", stem, step, minutes, told)
            row = {"step": step, "minutes": round(minutes, 2), "rate": recipe.rate(step, minutes), "losses": means}
            with (out / f"{stem}.jsonl").open("a", encoding="utf8") as history:
                history.write(json.dumps(row) + "\n")
            sums, summed = {}, 0
        minutes = _of_first(minutes + min(time.monotonic() - started_s, PAUSE_S) / 60)
        if (minutes - saved_minutes) * 60 > CHECKPOINT_EVERY_S or minutes >= recipe.minutes:
            if rank == 0:
                _save(file, model, optimizer, average, step, minutes)
            saved_minutes = minutes
    log.info("%s: ended at step %d after %.1f min", stem, step, minutes)


def _join() -> int:
    """This process' number among those that `torchrun` has started; 0 where it is alone."""
    if "RANK" not in os.environ:
        return 0
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank()


def _average_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    together = torch.nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(together)
    together /= dist.get_world_size()
    torch.nn.utils.vector_to_parameters(together, gradients)


def _of_first(minutes: float) -> float:
    """The first process' time, so that all end at the same step."""
    if not dist.is_initialized():
        return minutes
    shared = torch.tensor(minutes, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


@torch.no_grad()
def _update(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - keep)
        else:
            average[key].copy_(value)


def _save(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    minutes: float,
) -> None:
    part = file.with_suffix(".part")
    state = {
        "model": model.state_dict(), "average": average, "optimizer": optimizer.state_dict(),
        "step": step, "minutes": minutes,
    }  # fmt: skip
    torch.save(state, part)
    part.rename(file)


def averaged_weights(out: Path, stem: str) -> dict[str, Tensor]:
    """The running average that a training has written."""
    weights: dict[str, Tensor] = torch.load(out / f"{stem}.pt", weights_only=True, map_location="cpu")["average"]
    return weights


def arguments(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options that every training takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA), help="corpus folder, packed by training.data")
    parser.add_argument("--out", type=Path, default=Path("training-out"), help="folder of the checkpoints")
    parser.add_argument("--preset", default="tiny", help="preset whose sizes are trained")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time, pauses not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--half", action="store_true", help="multiply in bfloat16, where the processor can")
    return parser


def start_logging() -> None:
    """Progress lines with the time, and one thread: the trainings share a small machine."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
