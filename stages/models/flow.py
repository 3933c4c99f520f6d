"""Conditional flow matching (Lipman et al. 2022): Euler integration with classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.models.dit import Dit


def sample(
    estimator: Dit,
    mu: Tensor,
    prompt: Tensor,
    style: Tensor,
    noise: Tensor,
    steps: int,
    cfg_rates: Tensor | None,
    last_frames: int | None = None,
) -> Tensor:
    """Integrate noise to mel in `steps` uniform Euler steps.

    mu [B, P + T, content_dim], prompt [B, mels, P] (clean mel), style [B, style_dim], noise [B, mels, P + T],
    cfg_rates [B] or None for no guidance (half the cost). Returns [B, mels, P + T], the prompt's part zero, or
    only the `last_frames` of it.
    """
    n_prompt = prompt.shape[-1]
    prompt_x = torch.zeros_like(noise)
    prompt_x[..., :n_prompt] = prompt
    x = noise.clone()
    x[..., :n_prompt] = 0
    times = torch.linspace(0, 1, steps + 1, device=noise.device)
    t = times[0]
    for k in range(steps):
        dt = times[k + 1] - times[k]
        wanted = last_frames if k == steps - 1 else None
        velocity = _velocity(estimator, x, prompt_x, t, style, mu, cfg_rates, wanted)
        x = x[..., -velocity.shape[-1] :] + dt * velocity
        x[..., : max(0, n_prompt + x.shape[-1] - noise.shape[-1])] = 0
        t = t + dt
    return x


def _velocity(
    estimator: Dit,
    x: Tensor,
    prompt_x: Tensor,
    t: Tensor,
    style: Tensor,
    mu: Tensor,
    cfg_rates: Tensor | None,
    last_frames: int | None,
) -> Tensor:
    """The guided velocity; the null branch has no prompt, style or content, and shares the batch."""
    if cfg_rates is None:
        return estimator(x, prompt_x, t.expand(len(x)), style, mu, last_frames=last_frames)  # type: ignore[no-any-return]
    both = estimator(
        torch.cat([x, x]),
        torch.cat([prompt_x, torch.zeros_like(prompt_x)]),
        t.expand(2 * len(x)),
        torch.cat([style, torch.zeros_like(style)]),
        torch.cat([mu, torch.zeros_like(mu)]),
        last_frames=last_frames,
    )
    conditioned, null = both.chunk(2)
    rate = cfg_rates[:, None, None]
    return (1 + rate) * conditioned - rate * null  # type: ignore[no-any-return]
