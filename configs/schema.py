"""Presets: which networks, which geometry, how many steps, where the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PRESET_FOLDER = Path(__file__).parent / "presets"

Positive = Annotated[int, Field(gt=0)]
WHISPER_MS = 30000
TICK_MS = 20
"""What all live sizes are counted in: exact at 16, 22.05 and 48 kHz."""
MODEL_RATE, HOP = 22050, 256
"""Of the mel that prompt, diffusion and vocoder share."""
MIN_BLOCK_MS = 40
MAX_STEPS = 100
"""Euler steps that a client may ask for."""
Mode = Literal["lowest", "constant"]
"""How a call is held: each block out as soon as it is there, or every block equally late."""
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_YAML_BYTES = 1 << 20
MAX_YAML_ALIASES = 100
LONGEST_QUOTE = 400
"""Characters of somebody's text in a message."""


class ConfigError(ValueError):
    """A setting that cannot work; the message names what came and what is allowed."""


class Strict(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MelSettings(Strict):
    """Analysis of the mel that prompt, diffusion and vocoder share; `fmax_hz` None means half the sample rate."""

    sample_rate: Positive = MODEL_RATE
    n_fft: Positive = 1024
    win: Positive = 1024
    hop: Positive = HOP
    n_mels: Positive = 80
    fmin_hz: float = 0.0
    fmax_hz: float | None = None


class WhisperSizes(Strict):
    """Content encoder (whisper-small by default)."""

    n_mels: Positive = 80
    d_model: Positive = 768
    n_heads: Positive = 12
    n_layers: Positive = 12
    ffn_dim: Positive = 3072
    max_positions: Positive = 1500


class CampplusSizes(Strict):
    """Style encoder."""

    head_channels: Positive = 32
    init_channels: Positive = 128
    growth: Positive = 32
    bn_size: Positive = 4
    style_dim: Positive = 192


class RegulatorSizes(Strict):
    """Length regulator; with `f0_bins` it is also told the pitch, and the Encoder measures it."""

    in_channels: Positive = 768
    channels: Positive = 512
    f0_bins: Positive | None = None


class WavenetSizes(Strict):
    """WaveNet head of the DiT."""

    hidden_dim: Positive = 512
    num_layers: Positive = 8
    kernel_size: Positive = 5
    dilation_rate: Positive = 1


class DitSizes(Strict):
    """Diffusion transformer."""

    hidden_dim: Positive = 512
    num_heads: Positive = 8
    depth: Positive = 13
    in_channels: Positive = 80
    content_dim: Positive = 512
    style_dim: Positive = 192
    wavenet: WavenetSizes = WavenetSizes()

    @model_validator(mode="after")
    def _heads_divide(self) -> DitSizes:
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 2:
            raise ValueError(f"hidden_dim {self.hidden_dim} does not split into {self.num_heads} heads of even size")
        return self


class BigvganSizes(Strict):
    """Vocoder."""

    n_mels: Positive = 80
    initial_channels: Positive = 1536
    upsample_rates: tuple[Positive, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernels: tuple[Positive, ...] = (8, 8, 4, 4, 4, 4)
    resblock_kernels: tuple[Positive, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[Positive, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


class ModelSizes(Strict):
    """Sizes of all five networks."""

    mel: MelSettings = MelSettings()
    whisper: WhisperSizes = WhisperSizes()
    campplus: CampplusSizes = CampplusSizes()
    regulator: RegulatorSizes = RegulatorSizes()
    dit: DitSizes = DitSizes()
    bigvgan: BigvganSizes = BigvganSizes()

    @property
    def carries_pitch(self) -> bool:
        """Whether content has a last column and mel a last row for the pitch."""
        return self.regulator.f0_bins is not None

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelSizes:
        pairs = (
            ("regulator.in_channels", self.regulator.in_channels, "whisper.d_model", self.whisper.d_model),
            ("dit.content_dim", self.dit.content_dim, "regulator.channels", self.regulator.channels),
            ("dit.style_dim", self.dit.style_dim, "campplus.style_dim", self.campplus.style_dim),
            ("dit.in_channels", self.dit.in_channels, "mel.n_mels", self.mel.n_mels),
            ("bigvgan.n_mels", self.bigvgan.n_mels, "mel.n_mels", self.mel.n_mels),
        )
        for name, size, other, expected in pairs:
            if size != expected:
                raise ValueError(f"{name} is {size}, but {other} is {expected}; the two must agree")
        return self


class CallMode(Strict):
    """A way to hold a call: the new sound in each block, and how long after its capture a block may come out."""

    block_ms: Positive
    deadline_ms: Annotated[int, Field(gt=0, le=1000)]
    """A block that is not there by then is concealed; in the constant mode every block comes out at this very time."""


class LiveSettings(Strict):
    """The real-time path: block geometry in milliseconds (whole 20 ms ticks) and sampling."""

    block_ms: Positive = 180
    crossfade_ms: Positive = 40
    context_ms: Positive = 2500
    """Past sound that the content encoder sees before each block."""
    diffusion_context_ms: Positive = 500
    """The part of it that the diffusion also renders."""
    right_ms: Positive = 20
    prompt_ms: Positive = 3000
    style_ms: Positive | None = None
    """How much of the reference the style vector of calls is made of; None: the prompt itself, as upstream."""
    steps: Positive = 10
    cfg_rate: Annotated[float, Field(ge=0)] = 0.7
    follow_level: bool = False
    """Whether the output is as loud as the source; else as loud as the voice's reference, as upstream."""
    high_pass: bool = False
    """Whether an offset and what else lies below every voice are taken out of source and result; upstream leaves them
    in."""
    vocoder_past_frames: Annotated[int, Field(ge=0)] | None = None
    """How many mel frames the vocoder renders in front of a block; None: all, as upstream."""
    lowest: CallMode = CallMode(block_ms=120, deadline_ms=240)
    constant: CallMode = CallMode(block_ms=180, deadline_ms=200)

    @model_validator(mode="after")
    def _ticks_fit(self) -> LiveSettings:
        for name in ("context_ms", "diffusion_context_ms", "crossfade_ms", "block_ms", "right_ms", "prompt_ms"):
            ticks_of(getattr(self, name), name)
        if self.diffusion_context_ms > self.context_ms:
            raise ConfigError(
                f"diffusion_context_ms is {self.diffusion_context_ms}; it must not exceed context_ms {self.context_ms}"
            )
        for name in MODES:
            self.check_block(getattr(self, name).block_ms, f"{name}.block_ms")
        return self

    def check_block(self, block_ms: int, name: str = "block_ms") -> None:
        """ConfigError where the window has no room for blocks of that size, or they are not whole ticks."""
        largest_ms = self.block_ms + self.diffusion_context_ms
        if not MIN_BLOCK_MS <= block_ms <= largest_ms:
            raise ConfigError(f"{name} is {block_ms}; this preset allows {MIN_BLOCK_MS} to {largest_ms}")
        ticks_of(block_ms, name)


def ticks_of(milliseconds: int, name: str) -> int:
    """Milliseconds as whole ticks; ConfigError where they do not divide."""
    if milliseconds % TICK_MS:
        raise ConfigError(f"{name} is {milliseconds} ms; it must be a multiple of {TICK_MS} ms")
    return milliseconds // TICK_MS


def mel_frames_in(milliseconds: int) -> int:
    """Whole mel frames in a time."""
    return milliseconds * MODEL_RATE // (1000 * HOP)


class FileSettings(Strict):
    """The recording path: long chunks with cross-fade."""

    prompt_ms: Positive = 25000
    context_frames: Positive = 2580
    overlap_frames: Positive = 16
    segment_ms: Positive = 30000
    segment_overlap_ms: Positive = 5000
    stream_segment_ms: Positive = 7000
    stream_segment_overlap_ms: Positive = 2000
    steps: Positive = 10
    cfg_rate: Annotated[float, Field(ge=0)] = 0.7
    follow_level: bool = False
    high_pass: bool = False
    """Both as for calls."""

    @model_validator(mode="after")
    def _segments_advance(self) -> FileSettings:
        if self.segment_overlap_ms >= self.segment_ms or self.stream_segment_overlap_ms >= self.stream_segment_ms:
            raise ValueError("a segment must be longer than its overlap")
        for name in ("segment_ms", "stream_segment_ms", "prompt_ms"):
            if getattr(self, name) > WHISPER_MS:
                raise ValueError(f"{name} is {getattr(self, name)}; Whisper's window holds at most {WHISPER_MS}")
        for name in ("segment_overlap_ms", "stream_segment_overlap_ms"):
            if mel_frames_in(getattr(self, name)) < self.overlap_frames:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; the cross-fade of {self.overlap_frames} mel frames must fit in"
                )
        if self.context_frames - mel_frames_in(self.prompt_ms) < 2 * self.overlap_frames:
            raise ValueError(
                f"context_frames is {self.context_frames}; a prompt of {self.prompt_ms} ms leaves no room in it"
            )
        return self


class HubFile(Strict):
    """One file of a model hub repository, pinned by revision and, where known, by SHA-256."""

    repo: str
    revision: str
    path: str
    target: str
    """Where it belongs below the weights folder."""
    sha256: str | None = None


class Preset(Strict):
    """A complete, runnable choice of networks and settings."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Names a folder of the cache too."""
    description: str
    licence: str
    weights: Path | None = None
    """Folder with the weights; relative to the preset file. None: the cache folder that `seedvc pull` fills."""
    hub: tuple[HubFile, ...] = ()
    model: ModelSizes = ModelSizes()
    whisper_window: Literal["padded", "cut"] = "padded"
    """padded: every window is filled up to 30 s, as upstream; cut: only the window itself, about 11 times cheaper."""
    precision: Literal["float32", "float16"] = "float32"
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the sampler's start noise (upstream's name); 0 for networks that were trained to render from none, in
    one step, whatever `steps` says."""
    mel_match_passes: Annotated[int, Field(ge=0, le=8)] = 0
    """How often the vocoder's spectral envelope is corrected towards the mel; none for a vocoder that needs no help.

    Where the networks carry the pitch, the first pass also gives voiced sound its harmonics."""
    calibrate_voices: bool = False
    """Whether each voice keeps a gain and an offset per mel band that make the reference, converted to itself, as
    bright and as lively as it is: a cure for small networks."""
    reference_dbfs: tuple[float, float] = (-30.0, -12.0)
    """Lowest and highest level of the speech that a voice is made of; a reference outside is brought to the nearer."""
    live: LiveSettings = LiveSettings()
    file: FileSettings = FileSettings()

    @property
    def renders_in_one(self) -> bool:
        """Whether the networks render in one step, whatever `steps` says."""
        return self.temperature == 0

    @field_validator("weights")
    @classmethod
    def _is_path(cls, weights: Path | None) -> Path | None:
        if weights is not None and "\0" in str(weights):
            raise ValueError("a path has no NUL in it")
        return weights


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str | Path) -> Preset:
    """The preset of that name, or of that YAML file.

    Raises:
        ConfigError: no such preset, or a setting that the schema refuses.
    """
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
    elif str(name) in preset_names():
        path = PRESET_FOLDER / f"{name}.yaml"
    else:
        raise ConfigError(f"no preset named {_short(repr(str(name)))}; there are: {', '.join(preset_names())}")
    tree = read_yaml(path)
    try:
        preset = Preset.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path.name}: {first_problem(error)}") from error
    if preset.weights is not None and not preset.weights.is_absolute():
        preset = preset.model_copy(update={"weights": path.parent / preset.weights})
    return preset


class _Loader(yaml.SafeLoader):
    """Bounds aliases: a few lines of them, one within another, make a tree that no memory holds."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._n_aliases = self._n_anchors_open = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._n_aliases += 1
            if self._n_anchors_open:
                raise yaml.YAMLError("aliases (*name) within what has a name (&name) are not allowed")
            if self._n_aliases > MAX_YAML_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_YAML_ALIASES} aliases (*name)")
            return super().compose_node(parent, index)
        is_named = self.peek_event().anchor is not None  # type: ignore[no-untyped-call]
        self._n_anchors_open += is_named
        node = super().compose_node(parent, index)
        self._n_anchors_open -= is_named
        return node


def read_yaml(path: Path) -> Any:
    """The tree of a YAML file; ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {_short(str(path))}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{_short(repr(str(path)))} is no file name: {error}") from error
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(f"{path.name} has more than {MAX_YAML_BYTES} bytes")
    try:
        return yaml.load(data, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that there is not
        raise ConfigError(f"{path.name} is not YAML: {_short(str(error))}") from error
    except RecursionError:
        raise ConfigError(f"{path.name} is nested too deeply") from None


def first_problem(error: ValidationError) -> str:
    """The first complaint of a validation as `place: message`, and how many more there are."""
    problems = error.errors()
    place = ".".join(str(part) for part in problems[0]["loc"]) or "top level"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_short(place)}: {_short(problems[0]['msg'])}{more}"


def _short(text: str) -> str:
    """A text as a message can hold it."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
