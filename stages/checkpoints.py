"""Finds weight files, reads them as state dicts, renames and checks the tensors, and loads them into networks.

Two layouts are read. Upstream's (reference: Seed-VC, CAM++, BigVGAN and Whisper as published) and our own
safetensors of the shipped presets: `dit`, `campplus`, `bigvgan`, `whisper`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.schema import (
    BigvganSizes,
    CampplusSizes,
    DitSizes,
    MelSettings,
    ModelSizes,
    Preset,
    RegulatorSizes,
    WavenetSizes,
    WhisperSizes,
    first_problem,
)

State = dict[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)

UPSTREAM_CONFIG = "config_dit_mel_seed_uvit_whisper_small_wavenet.yml"
UPSTREAM_DIT = "DiT_seed_v2_uvit_whisper_small_wavenet_bigvgan_pruned.pth"
UPSTREAM_CAMPPLUS = "campplus_cn_common.bin"
UPSTREAM_BIGVGAN = "bigvgan_v2_22khz_80band_256x"
UPSTREAM_WHISPER = "whisper-small"
ESTIMATOR = "cfm.estimator."
"""What names the diffusion's tensors in our own files."""
HEAD_BYTES = 4096
"""How much of each tensor of a safetensors file goes into the digest that names it."""

# All that torch's unpickler raises on damaged bytes, beside its own error.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Published tensors that inference never reads.
UNUSED = {
    "cfm": (
        "input_pos",
        "x_embedder.*",
        "cond_embedder.*",
        "content_mask_embedder.*",
        "t_embedder.freqs",
        "t_embedder2.freqs",
        "transformer.layers.*.skip_in_linear.*",
    ),
    "length_regulator": ("mask_token", "embedding.*"),
    "campplus": (),
    "bigvgan": ("*.upsample.filter", "*.downsample.lowpass.filter"),
    "whisper": (),
}


class WeightsError(ValueError):
    """Weights that are missing, unreadable or of another shape; the message names file and tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A preset's tensors by network, the sizes they were made for, and a digest that names them.

    A network's tensors are read when they are first asked for, so a process reads only the networks that it runs.
    """

    sizes: ModelSizes
    states: Mapping[str, State]
    fingerprint: str


class StatesOnDemand(Mapping[str, State]):
    """Tensors by network, each network's read once, when it is asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], State]]) -> None:
        self._readers = {part: cache(read) for part, read in readers.items()}

    def __getitem__(self, part: str) -> State:
        return self._readers[part]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def open_checkpoint(preset: Preset, folder: Path) -> Checkpoint:
    """Read the weights of `preset` from `folder`, in whichever of the two layouts it holds.

    Raises:
        WeightsError: a file is missing, unreadable, ambiguous or of an unsupported architecture.
    """
    if not folder.is_dir():
        raise WeightsError(f"no weights folder {folder}; {where_to_get(preset)}")
    own = [folder / f"{part}.safetensors" for part in ("dit", "campplus", "bigvgan", "whisper")]
    if any(path.exists() for path in own):
        return _open_own(preset, own)
    return _open_upstream(preset, folder)


def where_to_get(preset: Preset) -> str:
    """One sentence on how to come by a preset's weights."""
    if not preset.hub:
        return f"the preset {preset.name!r} ships its weights beside its YAML file"
    files = ", ".join(file.target for file in preset.hub)
    return f"run `seedvc pull {preset.name}`, or put these files there by hand: {files}"


def _open_own(preset: Preset, paths: list[Path]) -> Checkpoint:
    for path in paths:
        _require(path)
    dit, campplus, bigvgan, whisper = paths
    regulator = "length_regulator."
    readers: dict[str, Callable[[], State]] = {
        "cfm": lambda: _renamed(dit, lambda name: None if name.startswith(regulator) else _bare(name, ESTIMATOR)),
        "length_regulator": lambda: _renamed(dit, lambda name: _bare(name, regulator) if regulator in name else None),
        "campplus": lambda: _rename_dense(read_tensors(campplus)),
        "bigvgan": lambda: fold_weight_norm(read_tensors(bigvgan)),
        "whisper": lambda: _encoder_only(read_tensors(whisper)),
    }
    return Checkpoint(preset.model, StatesOnDemand(readers), _fingerprint(preset.model, paths))


def _open_upstream(preset: Preset, folder: Path) -> Checkpoint:
    config_path = _find_config(preset, folder)
    config = _read_config(config_path)
    model = config["model_params"]
    if complaint := _unsupported(model):
        raise WeightsError(f"{config_path.name}: {complaint}")
    dit_path = _find_dit(preset, folder, config_path)
    campplus_name = model.get("style_encoder", {}).get("campplus_path", UPSTREAM_CAMPPLUS)
    campplus_path = _find(preset, folder, (Path(campplus_name).name, UPSTREAM_CAMPPLUS), "*.bin")
    vocoder_name = Path(str(model.get("vocoder", {}).get("name", UPSTREAM_BIGVGAN))).name
    bigvgan_path = _find(preset, folder, (vocoder_name, UPSTREAM_BIGVGAN), "*", inside="bigvgan_generator.pt")
    whisper_name = Path(str(model.get("speech_tokenizer", {}).get("name", UPSTREAM_WHISPER))).name
    whisper_path = _find(preset, folder, (whisper_name, UPSTREAM_WHISPER), "*", inside="model.safetensors")

    @cache
    def net() -> dict[str, Any]:
        return _section(read_tensors(dit_path), "net", dit_path)

    def cfm() -> State:
        state = _state(_section(net(), "cfm", dit_path), dit_path)
        return {_bare(name, "estimator."): tensor for name, tensor in fold_weight_norm(state).items()}

    def bigvgan() -> State:
        generator = _section(read_tensors(bigvgan_path), "generator", bigvgan_path)
        return fold_weight_norm(_state(generator, bigvgan_path))

    paths = (dit_path, campplus_path, bigvgan_path, whisper_path)
    for path in paths:
        _require(path)
    campplus = _rename_dense(_state(read_tensors(campplus_path), campplus_path))
    readers: dict[str, Callable[[], State]] = {
        "cfm": cfm,
        "length_regulator": lambda: _state(_section(net(), "length_regulator", dit_path), dit_path),
        "campplus": lambda: campplus,
        "bigvgan": bigvgan,
        "whisper": lambda: _encoder_only(_state(read_tensors(whisper_path), whisper_path)),
    }
    try:
        sizes = ModelSizes(
            mel=_mel_settings(config),
            whisper=_whisper_sizes(_read_json(whisper_path.parent / "config.json")),
            campplus=_campplus_sizes(campplus, campplus_path),
            regulator=RegulatorSizes(
                in_channels=model["length_regulator"]["in_channels"], channels=model["length_regulator"]["channels"]
            ),
            dit=_dit_sizes(model),
            bigvgan=_bigvgan_sizes(_read_json(bigvgan_path.parent / "config.json")),
        )
    except KeyError as error:
        raise WeightsError(f"{config_path.name} or a config.json beside it lacks the key {error}") from error
    except ValidationError as error:
        raise WeightsError(f"{config_path.name}: {first_problem(error)}") from error
    return Checkpoint(sizes, StatesOnDemand(readers), _fingerprint(sizes, paths))


def load_network(network: Net, part: str, checkpoint: Checkpoint, device: str) -> Net:
    """Put the tensors of `part` into `network`, on `device`, ready for inference.

    A tensor that the network needs must be there and fit (WeightsError names it); known unused ones are ignored, and
    any other surplus gives one warning that lists it.
    """
    state = checkpoint.states[part]
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - state.keys() - counters)
    if missing:
        raise WeightsError(f"{part}: {len(missing)} tensors are missing: {_some(missing)}")
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise WeightsError(
                f"{part}: tensor {name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
            )
    surplus = sorted(name for name in state.keys() - wanted.keys() if not _is_unused(part, name))
    if surplus:
        warnings.warn(f"{part}: {len(surplus)} tensors are not used: {', '.join(surplus)}", stacklevel=2)
    network.load_state_dict({name: state[name].float() for name in wanted.keys() & state.keys()}, strict=False)
    return network.to(device).eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Any]:
    """The tree of tensors of a .safetensors or a torch file (read with weights_only)."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"weights file {path} is missing") from error
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"weights file {path} cannot be read: {reason}") from error
    if not isinstance(tree, Mapping):
        raise WeightsError(f"weights file {path} holds a {type(tree).__name__}, expected a dictionary of tensors")
    return dict(tree)


def fold_weight_norm(state: Mapping[str, Tensor]) -> State:
    """Replace each weight_g, weight_v pair by weight = v * g / |v|, the norm over all but the first dimension."""
    folded = dict(state)
    for name in [name for name in state if name.endswith("weight_g")]:
        stem = name.removesuffix("_g")
        v = folded.pop(f"{stem}_v", None)
        if v is None:
            raise WeightsError(f"tensor {name} has no partner {stem}_v")
        g = folded.pop(name)
        if g.shape != (expected := (len(v), *[1] * (v.dim() - 1))):
            raise WeightsError(f"tensor {name} has shape {list(g.shape)}, expected {list(expected)} as {stem}_v has")
        norm = v.float().flatten(1).norm(dim=1).reshape(expected)
        folded[stem] = v.float() * (g.float() / norm)
    return folded


def _find_config(preset: Preset, folder: Path) -> Path:
    """Upstream's yml, else the only one, else the only one of a supported architecture."""
    named = folder / UPSTREAM_CONFIG
    if named.exists():
        return named
    candidates = sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
    if len(candidates) > 1:
        candidates = [path for path in candidates if _unsupported(_read_config(path)["model_params"]) is None]
    return _only(preset, folder, candidates, UPSTREAM_CONFIG)


def _find_dit(preset: Preset, folder: Path, config_path: Path) -> Path:
    """Upstream's .pth, else the only one, else the one that shares the yml's suffix (DiT_x.pth, config_x.yml)."""
    named = folder / UPSTREAM_DIT
    if named.exists():
        return named
    candidates = sorted(folder.glob("*.pth"))
    if len(candidates) > 1:
        suffix = config_path.stem.removeprefix("config_")
        candidates = [path for path in candidates if path.stem.partition("_")[2] == suffix]
    return _only(preset, folder, candidates, UPSTREAM_DIT)


def _find(preset: Preset, folder: Path, names: Iterable[str], pattern: str, inside: str = "") -> Path:
    """The first of `names` that exists, else the only match of `pattern`; with `inside`, that file in the folder."""
    expected = ""
    for name in names:
        expected = f"{name}/{inside}" if inside else name
        if (folder / expected).is_file():
            return folder / expected
    matches = sorted(path for path in folder.glob(f"{pattern}/{inside}" if inside else pattern) if path.is_file())
    return _only(preset, folder, matches, expected)


def _only(preset: Preset, folder: Path, candidates: list[Path], expected: str) -> Path:
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise WeightsError(f"{expected} is not in {folder}; {where_to_get(preset)}")
    names = ", ".join(path.relative_to(folder).as_posix() for path in candidates)
    raise WeightsError(f"{folder} holds several candidates for {expected}: {names}; keep one")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise WeightsError(f"{path} is not YAML: {error}") from error
    sections = ("preprocess_params", "model_params")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(section), dict) for section in sections):
        raise WeightsError(f"{path} lacks preprocess_params and model_params")
    return tree


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error


def _unsupported(model: Mapping[str, Any]) -> str | None:
    """The part of an upstream configuration that these networks cannot run, or None."""
    dit = model.get("DiT", {})
    allowed = {
        "final_layer_type": "wavenet",
        "time_as_token": False,
        "style_as_token": False,
        "f0_condition": False,
        "long_skip_connection": True,
        "uvit_skip_connection": True,
        "style_condition": True,
        "is_causal": False,
        "add_resblock_in_transformer": False,
    }
    for key, value in allowed.items():
        if dit.get(key, value) != value:
            return f"DiT.{key} is {dit[key]!r}, only {value!r} is supported"
    if model.get("length_regulator", {}).get("f0_condition", False):
        return "length_regulator.f0_condition is true, only false is supported"
    for part, kind in (("vocoder", "bigvgan"), ("speech_tokenizer", "whisper")):
        found = model.get(part, {}).get("type", kind)
        if found != kind:
            return f"{part}.type is {found!r}, only {kind!r} is supported"
    return None


def _dit_sizes(model: Mapping[str, Any]) -> DitSizes:
    dit, wavenet = model["DiT"], model["wavenet"]
    return DitSizes(
        hidden_dim=dit["hidden_dim"],
        num_heads=dit["num_heads"],
        depth=dit["depth"],
        in_channels=dit["in_channels"],
        content_dim=dit["content_dim"],
        style_dim=model["style_encoder"]["dim"],
        wavenet=WavenetSizes(**{key: wavenet[key] for key in WavenetSizes.model_fields}),
    )


def _mel_settings(config: Mapping[str, Any]) -> MelSettings:
    spect = config["preprocess_params"]["spect_params"]
    # Upstream reads the string "None" or an absent key as half the rate, and any other value as 8000 Hz.
    fmax_hz = None if spect.get("fmax", "None") in ("None", None) else 8000.0
    return MelSettings(
        sample_rate=config["preprocess_params"]["sr"],
        n_fft=spect["n_fft"],
        win=spect["win_length"],
        hop=spect["hop_length"],
        n_mels=spect["n_mels"],
        fmin_hz=spect.get("fmin", 0),
        fmax_hz=fmax_hz,
    )


def _whisper_sizes(config: Mapping[str, Any]) -> WhisperSizes:
    return WhisperSizes(
        n_mels=config["num_mel_bins"],
        d_model=config["d_model"],
        n_heads=config["encoder_attention_heads"],
        n_layers=config["encoder_layers"],
        ffn_dim=config["encoder_ffn_dim"],
        max_positions=config["max_source_positions"],
    )


def _bigvgan_sizes(config: Mapping[str, Any]) -> BigvganSizes:
    required = {"activation": "snakebeta", "snake_logscale": True, "use_tanh_at_final": False}
    required |= {"use_bias_at_final": False, "resblock": "1"}
    for key, value in required.items():
        if config.get(key, value) != value:
            raise WeightsError(f"vocoder config: {key} is {config[key]!r}, only {value!r} is supported")
    return BigvganSizes(
        n_mels=config["num_mels"],
        initial_channels=config["upsample_initial_channel"],
        upsample_rates=config["upsample_rates"],
        upsample_kernels=config["upsample_kernel_sizes"],
        resblock_kernels=config["resblock_kernel_sizes"],
        resblock_dilations=config["resblock_dilation_sizes"],
    )


def _campplus_sizes(state: State, path: Path) -> CampplusSizes:
    """CAM++ ships no config: its sizes are read off the shapes."""
    try:
        growth, bottleneck, _ = state["xvector.block1.tdnnd1.cam_layer.linear_local.weight"].shape
        return CampplusSizes(
            head_channels=state["head.conv1.weight"].shape[0],
            init_channels=state["xvector.tdnn.linear.weight"].shape[0],
            growth=growth,
            bn_size=bottleneck // growth,
            style_dim=state["xvector.dense.linear.weight"].shape[0],
        )
    except KeyError as error:
        raise WeightsError(f"campplus: tensor {error.args[0]} is missing from {path.name}") from error


def _section(tree: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    if not isinstance(tree.get(key), Mapping):
        raise WeightsError(f"{path} has no section {key!r}; it has: {_some(sorted(map(str, tree)))}")
    return dict(tree[key])


def _state(tree: Mapping[str, Any], path: Path) -> State:
    """A flat state dict, names without the prefix that parallel training leaves."""
    for name, value in tree.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name} is a {type(value).__name__}, expected a tensor")
    return {name.removeprefix("module."): tensor for name, tensor in tree.items()}


def _encoder_only(state: Mapping[str, Tensor]) -> State:
    """A Whisper file without its decoder, names without the encoder's prefix."""
    return {
        name.removeprefix("model.encoder."): tensor
        for name, tensor in state.items()
        if not name.startswith(("model.decoder.", "proj_out."))
    }


def _rename_dense(state: Mapping[str, Tensor]) -> State:
    """CAM++ files name the last layer `xvector.dense.*` or, after upstream's renaming, `dense.*`."""
    return {f"xvector.{name}" if name.startswith("dense.") else name: tensor for name, tensor in state.items()}


def _is_unused(part: str, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in UNUSED[part])


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _bare(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _renamed(path: Path, rename: Callable[[str], str | None]) -> State:
    """A file's tensors under other names; where there is none, the tensor is left out."""
    named = ((rename(name), tensor) for name, tensor in read_tensors(path).items())
    return {name: tensor for name, tensor in named if name is not None}


def _require(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"weights file {path} is missing")


def _fingerprint(sizes: ModelSizes, paths: Iterable[Path]) -> str:
    """16 hex digits for the sizes and the files: two equal ones make equal voices."""
    digest = hashlib.sha256(sizes.model_dump_json().encode())
    for path in paths:
        try:
            digest.update(_file_digest(path))
        except OSError as error:
            raise WeightsError(f"weights file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:16]


def _file_digest(path: Path) -> bytes:
    """Names a weights file by less than all of its bytes, which may be gigabytes.

    safetensors: the header, which names all tensors, and the first numbers of each; training changes them all. torch
    files are zip archives, which hold a checksum of each tensor. What is neither is read whole.
    """
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            header_bytes = int.from_bytes(file.read(8), "little")
            header = file.read(min(header_bytes, path.stat().st_size))
            digest.update(header)
            for start in _tensor_starts(header):
                file.seek(8 + header_bytes + start)
                digest.update(file.read(HEAD_BYTES))
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    digest.update(f"{entry.filename} {entry.file_size} {entry.CRC}".encode())
        else:
            file.seek(0)
            while data := file.read(1 << 20):
                digest.update(data)
    return digest.digest()


def _tensor_starts(header: bytes) -> list[int]:
    """Where the tensors of a safetensors file begin; none where its header is damaged, and reading it raises later."""
    try:
        tree = json.loads(header)
        return sorted(entry["data_offsets"][0] for name, entry in tree.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, LookupError):
        return []
