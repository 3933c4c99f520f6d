"""Whisper's encoder out of a CTranslate2 file, whole or cut to the sizes of a small content encoder.

Kept are the first layers and, of each layer's hidden numbers, those that weigh most in speech: a small encoder that
starts so has already learnt to listen, and only has to learn to do it with less (training.train_encoder).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import WhisperSizes
from stages.models.whisper import EVERY_FRAME, EncoderLayer, WhisperEncoder, WhisperLogMel
from training.data import TICK, Floats

TYPES = {0: "<f4", 4: "<f2"}
"""Of CTranslate2's data types, those that its converter writes for Whisper without quantisation."""
HEAD_DIM = 64

State = dict[str, Tensor]


def tensors(path: Path) -> Iterator[tuple[str, Floats]]:
    """Names and float arrays of a CTranslate2 model.bin (its format version 6); what is not a float is left out."""
    with path.open("rb") as file:

        def numbers(form: str) -> tuple[int, ...]:
            return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

        def name() -> str:
            return file.read(numbers("H")[0]).rstrip(b"\0").decode()

        version = numbers("I")[0]
        if version != 6:
            raise ValueError(f"{path} has version {version} of CTranslate2's format, expected 6")
        name()  # of the kind of model
        _, count = numbers("II")
        for _ in range(count):
            title, (dims,) = name(), numbers("B")
            shape = numbers(f"{dims}I")
            kind, size = numbers("BI")
            data = file.read(size)
            if kind in TYPES:
                yield title, np.frombuffer(data, TYPES[kind]).astype(np.float32).reshape(shape)


def encoder_state(path: Path) -> State:
    """The encoder's tensors under the hub's names, as `stages.models.whisper` has them."""
    found = {
        name.removeprefix("encoder/"): torch.from_numpy(a) for name, a in tensors(path) if name.startswith("encoder/")
    }
    state = {
        "embed_positions.weight": found["position_encodings/encodings"],
        "layer_norm.weight": found["layer_norm/gamma"],
        "layer_norm.bias": found["layer_norm/beta"],
    }
    for conv in ("conv1", "conv2"):
        state |= {f"{conv}.{part}": found[f"{conv}/{part}"] for part in ("weight", "bias")}
    n_layers = sum(name.endswith("ffn/linear_0/weight") for name in found)
    for i in range(n_layers):
        theirs, ours = f"layer_{i}", f"layers.{i}"
        for norm, place in (("self_attn_layer_norm", "self_attention"), ("final_layer_norm", "ffn")):
            state[f"{ours}.{norm}.weight"] = found[f"{theirs}/{place}/layer_norm/gamma"]
            state[f"{ours}.{norm}.bias"] = found[f"{theirs}/{place}/layer_norm/beta"]
        for part in ("weight", "bias"):
            q, k, v = found[f"{theirs}/self_attention/linear_0/{part}"].chunk(3)
            state[f"{ours}.self_attn.q_proj.{part}"], state[f"{ours}.self_attn.v_proj.{part}"] = q, v
            if part == "weight":  # Whisper's keys have no bias
                state[f"{ours}.self_attn.k_proj.weight"] = k
            state[f"{ours}.self_attn.out_proj.{part}"] = found[f"{theirs}/self_attention/linear_1/{part}"]
            state[f"{ours}.fc1.{part}"] = found[f"{theirs}/ffn/linear_0/{part}"]
            state[f"{ours}.fc2.{part}"] = found[f"{theirs}/ffn/linear_1/{part}"]
    return state


def whole_encoder(path: Path) -> WhisperEncoder:
    """The encoder as it was published."""
    state = encoder_state(path)
    positions, width = state["embed_positions.weight"].shape
    sizes = WhisperSizes(
        n_mels=state["conv1.weight"].shape[1],
        d_model=width,
        n_heads=width // HEAD_DIM,
        n_layers=sum(name.endswith("fc1.weight") for name in state),
        ffn_dim=state["layers.0.fc1.weight"].shape[0],
        max_positions=positions,
    )
    encoder = WhisperEncoder(sizes)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def cut_encoder(path: Path, sizes: WhisperSizes, waves: Sequence[Floats]) -> State:
    """The published encoder cut to `sizes`, which keep its width and heads; `waves` at 16 kHz tell what weighs most."""
    whole = whole_encoder(path)
    width = whole.embed_positions.weight.shape[1]
    if (sizes.d_model, sizes.n_heads) != (width, width // HEAD_DIM) or sizes.n_layers > len(whole.layers):
        raise ValueError(
            f"{sizes.n_layers} layers of width {sizes.d_model} in {sizes.n_heads} heads cannot be cut out of "
            f"{len(whole.layers)} of {width} in {width // HEAD_DIM}; depth and ffn_dim may shrink, nothing else"
        )
    state = whole.state_dict()
    kept = {"embed_positions.weight": state["embed_positions.weight"][: sizes.max_positions]}
    kept |= {name: state[name] for name in state if name.startswith(("conv", "layer_norm"))}
    for i, weights in enumerate(hidden_weights(whole, waves)[: sizes.n_layers]):
        kept |= {name: tensor for name, tensor in state.items() if name.startswith(f"layers.{i}.")}
        strongest = weights.topk(sizes.ffn_dim).indices.sort().values
        kept[f"layers.{i}.fc1.weight"] = state[f"layers.{i}.fc1.weight"][strongest]
        kept[f"layers.{i}.fc1.bias"] = state[f"layers.{i}.fc1.bias"][strongest]
        kept[f"layers.{i}.fc2.weight"] = state[f"layers.{i}.fc2.weight"][:, strongest]
    return {name: tensor.clone() for name, tensor in kept.items()}


def hidden_weights(encoder: WhisperEncoder, waves: Sequence[Floats]) -> list[Tensor]:
    """How much each hidden number [ffn_dim] of each layer moves what comes out of it, over all waves."""
    log_mel = WhisperLogMel(encoder.conv1.in_channels)
    layers = [layer for layer in encoder.layers if isinstance(layer, EncoderLayer)]
    totals = [torch.zeros(layer.fc1.out_features) for layer in layers]
    for wave in waves:
        x = log_mel(torch.from_numpy(wave[: len(wave) // TICK * TICK])[None])
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(x)))).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for total, layer in zip(totals, layers, strict=True):
            x = x + layer.self_attn(layer.self_attn_layer_norm(x), EVERY_FRAME)
            hidden = F.gelu(layer.fc1(layer.final_layer_norm(x)))
            total += hidden.var(dim=(0, 1)) * layer.fc2.weight.square().sum(dim=0)
            x = x + layer.fc2(hidden)
    return totals
