"""Loading: all published spellings work, and what does not fit is named."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import stages
from configs import Preset, load_preset
from stages import checkpoints
from stages.checkpoints import (
    UPSTREAM_BIGVGAN,
    UPSTREAM_CAMPPLUS,
    UPSTREAM_CONFIG,
    UPSTREAM_DIT,
    UPSTREAM_WHISPER,
    Checkpoint,
    WeightsError,
    read_tensors,
)
from stages.local import LocalStages, open_weights
from stages.vocoder import VocoderStage
from tests.stages.golden import TINY_MODEL
from tests.stages.sounds import noise

DIT, CONFIG, CAMPPLUS = "DiT_tiny.pth", "config_tiny.yml", "campplus_tiny.bin"
BIGVGAN, WHISPER = "bigvgan_tiny/bigvgan_generator.pt", "whisper_tiny/model.safetensors"
Tree = dict[str, Any]
PRESET = load_preset("seed-vc-small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "weights"))


def load(folder: Path) -> LocalStages:
    return stages.load("seed-vc-small", folder)


def edit(path: Path, change: Callable[[Tree], Tree | None]) -> None:
    """Rewrite a weights or YAML file; `change` alters the tree, or gives another."""
    if path.suffix == ".yml":
        tree = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(change(tree) or tree))
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path)
    else:
        tree = torch.load(path, weights_only=True)
        torch.save(change(tree) or tree, path)


def drop(state: Tree, key: str) -> None:
    del state[key]


def prefixed(state: Tree) -> Tree:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def folded(state: Tree) -> Tree:
    """The file that torch itself writes once weight norm is removed."""
    out = {name: tensor for name, tensor in state.items() if not name.endswith(("weight_g", "weight_v"))}
    for name in (name for name in state if name.endswith("weight_g")):
        stem = name.removesuffix("_g")
        out[stem] = torch._weight_norm(state[f"{stem}_v"], state[name], 0)
    return out


def dense_at_the_top(name: str) -> str:
    return name.removeprefix("xvector.") if name.startswith("xvector.dense.") else name


def with_net(change: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    return lambda tree: {"net": {part: change(state) for part, state in tree["net"].items()}}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (DIT, with_net(prefixed)),
        (DIT, with_net(folded)),
        (DIT, lambda tree: {**tree, "optimizer": {}, "epoch": 3}),
        (CAMPPLUS, prefixed),
        (CAMPPLUS, lambda state: {dense_at_the_top(name): tensor for name, tensor in state.items()}),
        (BIGVGAN, lambda tree: {"generator": folded(tree["generator"])}),
        (BIGVGAN, lambda tree: {"generator": prefixed(tree["generator"])}),
        (WHISPER, lambda state: {**state, "model.decoder.x": torch.zeros(1), "proj_out.weight": torch.zeros(1)}),
    ],
)
def test_published_spellings(checkpoint: Checkpoint, folder: Path, file: str, change: Callable[[Tree], Tree]) -> None:
    edit(folder / file, change)
    loaded = open_weights(PRESET, folder)
    assert loaded.sizes == checkpoint.sizes
    for part, state in checkpoint.states.items():
        for name, tensor in state.items():
            assert torch.allclose(loaded.states[part][name], tensor, atol=1e-6), (part, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalStages(PRESET, loaded)


# One tensor that the forward pass reads, of each network, as its file names it.
NEEDED = [
    (DIT, ("net", "cfm"), "estimator.cond_projection.weight", "cfm", "cond_projection.weight"),
    (DIT, ("net", "cfm"), "estimator.transformer.layers.0.attention.wqkv.weight", "cfm", "layers.0.attention.wqkv"),
    (DIT, ("net", "length_regulator"), "model.3.bias", "length_regulator", "model.3.bias"),
    (CAMPPLUS, (), "head.bn1.running_mean", "campplus", "head.bn1.running_mean"),
    (CAMPPLUS, (), "xvector.dense.linear.weight", "campplus", "dense.linear.weight"),
    (BIGVGAN, ("generator",), "conv_pre.bias", "bigvgan", "conv_pre.bias"),
    (BIGVGAN, ("generator",), "resblocks.0.activations.0.act.alpha", "bigvgan", "activations.0.act.alpha"),
    (WHISPER, (), "model.encoder.layers.1.fc1.bias", "whisper", "layers.1.fc1.bias"),
]


def section(tree: Tree, path: tuple[str, ...]) -> Tree:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(("file", "where", "stored", "part", "named"), NEEDED)
def test_a_missing_tensor_is_named(
    folder: Path, file: str, where: tuple[str, ...], stored: str, part: str, named: str
) -> None:
    edit(folder / file, lambda tree: drop(section(tree, where), stored))
    with pytest.raises(WeightsError, match=f"{part}: .*missing") as caught:
        load(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("file", "where", "stored", "named"),
    [
        # The style layer's rows are no contradiction: they say how large a style is.
        *((file, where, stored, named) for file, where, stored, _, named in NEEDED if "dense" not in stored),
        (DIT, ("net", "cfm"), "estimator.conv1.weight", "conv1.weight"),
        (DIT, ("net", "cfm"), "estimator.wavenet.in_layers.0.conv.conv.weight_g", "wavenet.in_layers.0"),
        (DIT, ("net", "cfm"), "estimator.wavenet.in_layers.0.conv.conv.weight_v", "wavenet.in_layers.0"),
        (BIGVGAN, ("generator",), "conv_post.weight_v", "conv_post"),
    ],
)
def test_a_wrong_shape_is_named(folder: Path, file: str, where: tuple[str, ...], stored: str, named: str) -> None:
    def widen(tree: Tree) -> None:
        state = section(tree, where)
        state[stored] = torch.cat([state[stored], state[stored][:1]])

    edit(folder / file, widen)
    with pytest.raises(WeightsError, match=rf"{named}.* has shape \[.*\], expected \["):
        load(folder)


def test_weight_norm_needs_both_halves(folder: Path) -> None:
    edit(folder / BIGVGAN, lambda tree: drop(tree["generator"], "conv_pre.weight_v"))
    with pytest.raises(WeightsError, match=r"conv_pre\.weight_g has no partner conv_pre\.weight_v"):
        load(folder)


def test_known_unused_tensors_are_ignored(folder: Path) -> None:
    def add_and_remove(tree: Tree) -> None:
        cfm = tree["net"]["cfm"]
        for name in [name for name in cfm if "x_embedder" in name or "content_mask_embedder" in name]:
            del cfm[name]
        cfm["estimator.transformer.layers.0.skip_in_linear.weight"] = torch.zeros(7)
        cfm["estimator.input_pos"] = torch.arange(3)
        tree["net"]["length_regulator"]["mask_token"] = torch.zeros(5)

    edit(folder / DIT, add_and_remove)
    load(folder)  # a warning would be an error


@pytest.mark.parametrize(
    ("file", "where", "prefix", "part"),
    [
        (DIT, ("net", "cfm"), "estimator.", "cfm"),
        (DIT, ("net", "length_regulator"), "", "length_regulator"),
        (CAMPPLUS, (), "", "campplus"),
        (BIGVGAN, ("generator",), "", "bigvgan"),
        (WHISPER, (), "model.encoder.", "whisper"),
    ],
)
def test_other_surplus_gives_one_warning(
    folder: Path, file: str, where: tuple[str, ...], prefix: str, part: str
) -> None:
    def add(tree: Tree) -> None:
        section(tree, where).update({f"{prefix}extra.{i}": torch.zeros(1) for i in range(2)})

    edit(folder / file, add)
    with pytest.warns(UserWarning) as caught:
        load(folder)
    assert [str(warning.message) for warning in caught] == [f"{part}: 2 tensors are not used: extra.0, extra.1"]


def write_own_layout(checkpoint: Checkpoint, folder: Path) -> Preset:
    """The tensors as the shipped presets keep them, in half precision, and a preset that names their sizes."""
    both = {f"cfm.estimator.{name}": tensor for name, tensor in checkpoint.states["cfm"].items()}
    both |= {f"length_regulator.{name}": tensor for name, tensor in checkpoint.states["length_regulator"].items()}
    files = {"dit": both, **{part: checkpoint.states[part] for part in ("campplus", "bigvgan", "whisper")}}
    folder.mkdir()
    for part, state in files.items():
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        save_file({name: tensor.contiguous() for name, tensor in halves.items()}, folder / f"{part}.safetensors")
    return PRESET.model_copy(update={"model": checkpoint.sizes, "weights": folder})


def test_own_layout(checkpoint: Checkpoint, tmp_path: Path) -> None:
    preset = write_own_layout(checkpoint, tmp_path / "own")
    own = stages.load(preset)
    voice = own.voice(noise(1.0, 16000), 16000)
    assert np.isfinite(own.convert(noise(0.3, 16000), 16000, voice, steps=1)).all()
    edit(tmp_path / "own" / "dit.safetensors", lambda state: state.update({"vq.extra": torch.zeros(1)}))
    with pytest.warns(UserWarning, match=r"^cfm: 1 tensors are not used: vq\.extra$") as caught:
        stages.load(preset)
    assert len(caught) == 1
    (tmp_path / "own" / "bigvgan.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights file .*bigvgan\.safetensors is missing"):
        stages.load(preset)


class Bomb:
    """Unpickled the careless way, it would write a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("file", [DIT, CAMPPLUS, BIGVGAN])
def test_a_pickle_with_code_is_refused(folder: Path, file: str) -> None:
    torch.save({"net": Bomb(folder / "exploded")}, folder / file)
    with pytest.raises(WeightsError, match=f"{file} cannot be read"):
        load(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("file", [DIT, CAMPPLUS, BIGVGAN, WHISPER])
@pytest.mark.parametrize("damage", ["empty", "half", "noise", "text"])
def test_a_damaged_file_is_named(folder: Path, file: str, damage: str) -> None:
    content = (folder / file).read_bytes()
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "noise": bytes(range(256)) * 64,
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 7\n",
    }
    (folder / file).write_bytes(damaged[damage])
    with pytest.raises(WeightsError, match=f"{file} cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "tree", "complaint"),
    [
        (DIT, {"net": {"cfm": {}}}, "has no section 'length_regulator'; it has: cfm"),
        (DIT, {"model": {}}, "has no section 'net'; it has: model"),
        (DIT, [1, 2], "holds a list, expected a dictionary"),
        (BIGVGAN, {}, "has no section 'generator'"),
        (CAMPPLUS, {"head.conv1.weight": 3}, "head.conv1.weight.* is a int, expected a tensor"),
    ],
)
def test_another_tree_is_described(folder: Path, file: str, tree: Any, complaint: str) -> None:
    torch.save(tree, folder / file)
    with pytest.raises(WeightsError, match=complaint):
        load(folder)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (DIT, UPSTREAM_DIT),
        (CONFIG, UPSTREAM_CONFIG),
        (CAMPPLUS, UPSTREAM_CAMPPLUS),
        (BIGVGAN, f"{UPSTREAM_BIGVGAN}/bigvgan_generator.pt"),
        (WHISPER, f"{UPSTREAM_WHISPER}/model.safetensors"),
    ],
)
def test_a_missing_file_is_named_with_where_to_get_it(folder: Path, file: str, expected: str) -> None:
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=f"{expected} is not in .*seedvc pull seed-vc-small"):
        load(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights folder .*/nowhere; run `seedvc pull seed-vc-small`"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["bigvgan_tiny/config.json", "whisper_tiny/config.json"])
def test_a_missing_or_broken_json_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{not json")
    with pytest.raises(WeightsError, match=f"{file} is not JSON"):
        load(folder)
    (folder / file).write_text("{}")
    with pytest.raises(WeightsError, match="lacks the key"):
        load(folder)
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=f"{file} is missing"):
        load(folder)


def test_several_candidates_are_refused(folder: Path) -> None:
    for file, other in ((DIT, "DiT_more.pth"), (CAMPPLUS, "more.bin"), (CONFIG, "config_more.yml")):
        shutil.copy(folder / file, folder / other)
    with pytest.raises(WeightsError, match=r"several candidates for .*config_more\.yml, config_tiny\.yml; keep one"):
        load(folder)
    (folder / "config_more.yml").unlink()
    # The .pth that shares the yml's suffix is chosen; nothing tells which .bin is meant.
    with pytest.raises(WeightsError, match=r"several candidates for .*campplus_tiny\.bin, more\.bin; keep one"):
        load(folder)


def test_names_of_the_yml_come_first_then_upstreams(folder: Path) -> None:
    """With other candidates around, the names in the yml decide, and where those are not there, upstream's."""
    shutil.copy(folder / CAMPPLUS, folder / "other.bin")
    shutil.copytree(folder / "bigvgan_tiny", folder / "bigvgan_other")
    shutil.copytree(folder / "whisper_tiny", folder / "whisper_other")
    (folder / CAMPPLUS).rename(folder / UPSTREAM_CAMPPLUS)
    (folder / "whisper_tiny").rename(folder / UPSTREAM_WHISPER)
    (folder / "bigvgan_other" / "bigvgan_generator.pt").write_bytes(b"not to be read")
    load(folder)


def test_upstreams_own_names(folder: Path) -> None:
    shutil.copy(folder / DIT, folder / "DiT_other.pth")
    shutil.copy(folder / CONFIG, folder / "config_other.yml")
    (folder / DIT).rename(folder / UPSTREAM_DIT)
    (folder / CONFIG).rename(folder / UPSTREAM_CONFIG)
    load(folder)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("DiT.final_layer_type", "mlp", "DiT.final_layer_type is 'mlp', only 'wavenet' is supported"),
        ("DiT.time_as_token", True, "DiT.time_as_token is True, only False"),
        ("DiT.style_as_token", True, "DiT.style_as_token is True, only False"),
        ("DiT.f0_condition", True, "DiT.f0_condition is True, only False"),
        ("DiT.long_skip_connection", False, "DiT.long_skip_connection is False, only True"),
        ("length_regulator.f0_condition", True, "length_regulator.f0_condition is true"),
        ("vocoder.type", "hifigan", "vocoder.type is 'hifigan', only 'bigvgan'"),
        ("speech_tokenizer.type", "xlsr", "speech_tokenizer.type is 'xlsr', only 'whisper'"),
        ("DiT.num_heads", 5, "hidden_dim 48 does not split into 5 heads"),
        ("length_regulator.in_channels", 65, "regulator.in_channels is 65, but whisper.d_model is 64"),
    ],
)
def test_unsupported_architectures(folder: Path, place: str, value: object, complaint: str) -> None:
    part, key = place.split(".")
    edit(folder / CONFIG, lambda tree: tree["model_params"][part].update({key: value}))
    with pytest.raises(WeightsError, match=complaint):
        load(folder)


def test_only_one_supported_config_among_several(folder: Path) -> None:
    """As published side by side: the configurations of other architectures are passed over."""
    shutil.copy(folder / CONFIG, folder / "config_tiny_f0.yml")
    edit(folder / "config_tiny_f0.yml", lambda tree: tree["model_params"]["DiT"].update(f0_condition=True))
    (folder / "DiT_tiny_f0.pth").write_bytes(b"not to be read")
    load(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not YAML"),
        ("[]", "lacks preprocess_params and model_params"),
        ("model_params:\npreprocess_params:\n", "lacks preprocess_params and model_params"),
        ("model_params: {}\npreprocess_params: {}\n", "lacks the key"),
    ],
)
def test_a_broken_config_is_described(folder: Path, text: str, complaint: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(WeightsError, match=complaint):
        load(folder)


def test_fmax_as_upstream_reads_it(folder: Path) -> None:
    def loaded_fmax() -> float | None:
        return open_weights(PRESET, folder).sizes.mel.fmax_hz

    def set_fmax(value: object) -> None:
        edit(folder / CONFIG, lambda tree: tree["preprocess_params"]["spect_params"].update(fmax=value))

    assert loaded_fmax() is None
    set_fmax(11025)
    assert loaded_fmax() == 8000.0
    edit(folder / CONFIG, lambda tree: drop(tree["preprocess_params"]["spect_params"], "fmax"))
    assert loaded_fmax() is None


# --- reading no more than is used ---


def test_a_network_opens_its_own_file_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noting(path: Path) -> dict[str, Any]:
        read.append(path.relative_to(folder).as_posix())
        return read_tensors(path)

    monkeypatch.setattr(checkpoints, "read_tensors", noting)
    opened = open_weights(PRESET, folder)
    assert read == [CAMPPLUS], "CAM++ ships no config: its sizes are read off its shapes"
    VocoderStage(PRESET, opened)
    assert read == [CAMPPLUS, BIGVGAN]


@pytest.mark.parametrize(
    ("file", "path"),
    [
        (DIT, ("net", "cfm", "estimator.cond_projection.weight")),
        (CAMPPLUS, ("head.bn1.running_mean",)),
        (BIGVGAN, ("generator", "conv_pre.bias")),
        (WHISPER, ("model.encoder.layers.1.fc1.bias",)),
    ],
)
def test_the_digest_changes_with_any_tensor_and_with_nothing_else(
    checkpoint: Checkpoint, folder: Path, file: str, path: tuple[str, ...]
) -> None:
    assert open_weights(PRESET, folder).fingerprint == checkpoint.fingerprint, "a copy"

    def nudged(tree: Tree) -> None:
        *sections, name = path
        for section in sections:
            tree = tree[section]
        tree[name] = tree[name] + 1e-3

    edit(folder / file, nudged)
    assert open_weights(PRESET, folder).fingerprint != checkpoint.fingerprint
