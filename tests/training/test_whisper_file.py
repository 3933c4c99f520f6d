"""A CTranslate2 file becomes Whisper's encoder, and a cut of it that loses little."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import WhisperSizes
from stages.models.whisper import WhisperEncoder, WhisperLogMel
from training.data import TICK, Floats
from training.whisper_file import HEAD_DIM, cut_encoder, encoder_state, whole_encoder

SIZES = WhisperSizes(d_model=2 * HEAD_DIM, n_heads=2, n_layers=3, ffn_dim=96, max_positions=60)


def their_name(name: str) -> str:
    """A tensor of ours, under CTranslate2's name; queries, keys and values lie in one there."""
    parts = {
        "embed_positions.weight": "position_encodings/encodings",
        "self_attn.out_proj": "self_attention/linear_1",
        "self_attn_layer_norm": "self_attention/layer_norm",
        "final_layer_norm": "ffn/layer_norm",
        "fc1": "ffn/linear_0",
        "fc2": "ffn/linear_1",
        "layers.": "layer_",
        "layer_norm.weight": "layer_norm/gamma",
        "layer_norm.bias": "layer_norm/beta",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return "encoder/" + name.replace(".", "/")


def write(path: Path, encoder: WhisperEncoder) -> None:
    """The encoder as CTranslate2 writes it in its format 6, in half precision, with a decoder's tensor beside it."""
    state = encoder.state_dict()
    arrays: dict[str, Floats] = {"decoder/scale": np.ones(1, np.float32)}
    for name, tensor in state.items():
        if "_proj" not in name or "out_proj" in name:
            arrays[their_name(name)] = tensor.numpy()
    for i in range(len(encoder.layers)):
        for part in ("weight", "bias"):
            q, v = (state[f"layers.{i}.self_attn.{x}_proj.{part}"] for x in "qv")
            k = state[f"layers.{i}.self_attn.k_proj.weight"] if part == "weight" else torch.zeros_like(q)
            arrays[f"encoder/layer_{i}/self_attention/linear_0/{part}"] = torch.cat([q, k, v]).numpy()

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    def tensor_bytes(name: str, array: np.ndarray, kind: int) -> bytes:
        head = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        return text(name) + head + struct.pack("<BI", kind, array.nbytes) + array.tobytes()

    body = [tensor_bytes(name, array.astype("<f2"), 4) for name, array in arrays.items()]
    body.append(tensor_bytes("encoder/num_heads", np.array(encoder.layers[0].self_attn.n_heads, "<i2"), 2))  # type: ignore[union-attr]
    path.write_bytes(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(body)) + b"".join(body))


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, WhisperEncoder]:
    """A file and the encoder in it, in the half precision of the file."""
    torch.manual_seed(0)
    encoder = WhisperEncoder(SIZES).half().float().eval().requires_grad_(False)
    write(tmp_path / "model.bin", encoder)
    return tmp_path / "model.bin", encoder


def waves() -> list[Floats]:
    """Three stretches of noise at 16 kHz."""
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(40 * TICK)).astype(np.float32) for _ in range(3)]


def features(encoder: WhisperEncoder, wave: Floats) -> torch.Tensor:
    """What an encoder tells of a wave."""
    told: torch.Tensor = encoder(WhisperLogMel()(torch.from_numpy(wave)[None]))
    return told


def test_the_file_holds_the_encoder(published: tuple[Path, WhisperEncoder]) -> None:
    path, encoder = published
    read = whole_encoder(path)
    assert read.state_dict().keys() == encoder.state_dict().keys()
    torch.testing.assert_close(features(read, waves()[0]), features(encoder, waves()[0]))


def test_what_nobody_hears_is_cut_first(published: tuple[Path, WhisperEncoder]) -> None:
    """Hidden numbers that no output hears are the ones that go."""
    path, encoder = published
    for layer in encoder.layers:
        layer.fc2.weight[:, ::2] = 0  # type: ignore[union-attr, operator]
    write(path, encoder)
    cut = WhisperEncoder(SIZES.model_copy(update={"ffn_dim": 48, "max_positions": 50})).eval()
    cut.load_state_dict(cut_encoder(path, SIZES.model_copy(update={"ffn_dim": 48, "max_positions": 50}), waves()))
    torch.testing.assert_close(features(cut, waves()[0]), features(encoder, waves()[0]), atol=1e-5, rtol=1e-5)


def test_fewer_layers_are_the_first_ones(published: tuple[Path, WhisperEncoder]) -> None:
    path, encoder = published
    state = cut_encoder(path, SIZES.model_copy(update={"n_layers": 2}), waves())
    assert {name for name in state if name.startswith("layers.")} == {
        name for name in encoder.state_dict() if name.startswith(("layers.0.", "layers.1."))
    }


def test_another_width_or_format_is_refused(published: tuple[Path, WhisperEncoder], tmp_path: Path) -> None:
    path, _ = published
    with pytest.raises(ValueError, match="depth and ffn_dim may shrink"):
        cut_encoder(path, SIZES.model_copy(update={"d_model": HEAD_DIM, "n_heads": 1}), waves())
    other = tmp_path / "other.bin"
    other.write_bytes(struct.pack("<I", 9) + path.read_bytes()[4:])
    with pytest.raises(ValueError, match="version 9"):
        encoder_state(other)
