"""Each network against upstream's recorded numbers (reduced models, float32)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from configs.schema import MelSettings, RegulatorSizes
from stages.checkpoints import Checkpoint, load_network
from stages.models.bigvgan import AntiAliasedSnake, BigVgan, kaiser_sinc_filter
from stages.models.campplus import Campplus, centred_fbank
from stages.models.dit import Dit
from stages.models.flow import sample
from stages.models.length_regulator import LengthRegulator, coarse_pitch, nearest_index
from stages.models.mel import MelSpectrogram
from stages.models.whisper import WhisperEncoder, WhisperLogMel
from stages.resample import to_content_rate
from tests.stages.golden import assert_golden, tensors

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_mel() -> None:
    golden = tensors("mel")
    mel = MelSpectrogram(MelSettings())
    assert torch.allclose(mel.filterbank, golden["filterbank_22_full"], atol=1e-6)
    assert_golden("mel", "mel22", mel(golden["wav22"]))
    assert_golden("mel", "mel22_loud", mel(golden["wav22_loud"]))
    assert_golden("mel", "mel22_silence", mel(torch.zeros(1, 3000)))
    assert_golden("mel", "mel22_fmax8000", MelSpectrogram(MelSettings(fmax_hz=8000.0))(golden["wav22"]))


def test_resample() -> None:
    golden = tensors("resample")
    assert_golden("resample", "ta_22050_16000", to_content_rate(golden["wav22"].numpy()))


def test_fbank_and_campplus(checkpoint: Checkpoint) -> None:
    golden = tensors("fbank_campplus")
    campplus = load_network(Campplus(checkpoint.sizes.campplus), "campplus", checkpoint, "cpu")
    fbank = centred_fbank(golden["wav16"][0])
    assert torch.allclose(fbank, golden["fbank_centered"], atol=1e-3)
    assert_golden("fbank_campplus", "head_out", campplus.head(golden["fbank_centered"].T.unsqueeze(0)))
    assert_golden("fbank_campplus", "embedding", campplus(golden["fbank_centered"].unsqueeze(0)))
    assert_golden("fbank_campplus", "embedding_short", campplus(golden["short_feats"].unsqueeze(0)))


def test_nearest_index() -> None:
    for name, expected in tensors("nearest_index").items():
        n_in, n_out = (int(part) for part in name.removeprefix("idx_").split("_to_"))
        assert torch.equal(nearest_index(n_in, n_out), expected.long()), name


@pytest.mark.parametrize("case", ["up_b2", "up_258", "down_40", "same_39"])
def test_length_regulator(checkpoint: Checkpoint, case: str) -> None:
    golden = tensors("length_regulator")
    regulator = load_network(LengthRegulator(checkpoint.sizes.regulator), "length_regulator", checkpoint, "cpu")
    out = regulator(golden[f"x_{case}"], golden[f"ylens_{case}"])
    assert_golden("length_regulator", f"out_{case}", out)


def test_length_regulator_with_pitch() -> None:
    """The tolerance is the manifest's of upstream's f0 preset (dit_f0)."""
    golden = tensors("length_regulator_f0")
    regulator = LengthRegulator(RegulatorSizes(in_channels=64, channels=40, f0_bins=256)).eval()
    regulator.load_state_dict(
        {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    )
    x, lengths, f0 = golden["lr_x"], golden["lr_ylens"], golden["lr_f0"]
    assert torch.equal(coarse_pitch(f0, 256), golden["f0_coarse"])
    for given, expected in ((f0, "lr_out_f0"), (None, "lr_out_nof0")):
        assert (regulator(x, lengths, given) - golden[expected]).abs().max() <= 5e-5


def test_dit(checkpoint: Checkpoint) -> None:
    golden = tensors("dit")
    dit = load_network(Dit(checkpoint.sizes.dit), "cfm", checkpoint, "cpu")
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, inputs, output: seen.update({name: output})

    for name, module in [
        ("act_t_emb", dit.t_embedder),
        ("act_merged", dit.cond_x_merge_linear),
        *((f"act_layer{i}", layer) for i, layer in enumerate(dit.transformer.layers)),
        ("act_transformer", dit.transformer),
        ("act_t_emb2", dit.t_embedder2),
        ("act_wavenet", dit.wavenet),
        ("act_final_layer", dit.final_layer),
    ]:
        module.register_forward_hook(keep(name))  # type: ignore[arg-type]
    x, prompt, t, style, mu = (golden[key] for key in ("x", "prompt_x", "t", "style", "mu"))
    assert_golden("dit", "out", dit(x, prompt, t, style, mu, golden["x_lens"]))
    for name, activation in seen.items():
        assert_golden("dit", name, activation)
    one = slice(0, 1)
    assert_golden("dit", "single_out", dit(x[one], prompt[one], t[one], style[one], mu[one]))
    zeros = (torch.zeros_like(part[one]) for part in (style, mu))
    assert_golden("dit", "null_out", dit(x[one], torch.zeros_like(prompt[one]), t[one], *zeros))


@pytest.mark.parametrize("output", [name for name in tensors("cfm") if name.startswith("out_")])
def test_sampler(checkpoint: Checkpoint, output: str) -> None:
    golden = tensors("cfm")
    dit = load_network(Dit(checkpoint.sizes.dit), "cfm", checkpoint, "cpu")
    parts = output.split("_")
    steps, rate = int(parts[1].removeprefix("s")), int(parts[2].removeprefix("cfg")) / 10
    temperature = 0.8 if parts[-1] == "temp08" else 1.0
    rates = torch.tensor([rate]) if rate else None
    mel = sample(dit, golden["mu"], golden["prompt"], golden["style"], golden["noise"] * temperature, steps, rates)
    assert_golden("cfm", output, mel)
    assert not mel[..., : golden["prompt"].shape[-1]].any()


def test_sampler_trajectory(checkpoint: Checkpoint) -> None:
    golden = tensors("cfm")
    dit = load_network(Dit(checkpoint.sizes.dit), "cfm", checkpoint, "cpu")
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    dit.register_forward_pre_hook(lambda module, inputs: states.append((inputs[0][0], inputs[2][0])))
    sample(dit, golden["mu"], golden["prompt"], golden["style"], golden["noise"], 4, torch.tensor([0.7]))
    assert torch.allclose(torch.stack([x for x, _ in states]), golden["traj_x_in"], atol=1e-4)
    assert torch.allclose(torch.stack([t for _, t in states]), golden["traj_t"], atol=1e-6)


def test_bigvgan(checkpoint: Checkpoint) -> None:
    golden = tensors("bigvgan")
    vocoder = load_network(BigVgan(checkpoint.sizes.bigvgan), "bigvgan", checkpoint, "cpu")
    seen: dict[str, torch.Tensor] = {}
    for name, module in [
        ("stage_conv_pre", vocoder.conv_pre),
        ("stage_up0", vocoder.get_submodule("ups.0.0")),
        *((f"resblock{i}", vocoder.resblocks[i]) for i in range(3)),
        ("stage_activation_post", vocoder.activation_post),
    ]:
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    assert_golden("bigvgan", "wav", vocoder(golden["mel"]).unsqueeze(1))
    # Upstream adds the other blocks of the stage into the first one's output in place, before it was recorded.
    seen["stage_resblock0"] = torch.stack([seen.pop(f"resblock{i}") for i in range(3)]).sum(dim=0)
    for name, activation in seen.items():
        assert_golden("bigvgan", name, activation)


def test_anti_aliased_snake() -> None:
    golden = tensors("bigvgan")
    snake = AntiAliasedSnake(3)
    snake.act.alpha.copy_(golden["act_alpha_log"])
    snake.act.beta.copy_(golden["act_beta_log"])
    assert torch.allclose(kaiser_sinc_filter(), golden["act_filter"].flatten(), atol=1e-6)
    assert_golden("bigvgan", "act_upsampled", snake.upsample(golden["act_x"]))
    assert_golden("bigvgan", "act_downsampled", snake.downsample(golden["act_x"]))
    assert_golden("bigvgan", "act_out", snake(golden["act_x"]))


def test_whisper(checkpoint: Checkpoint) -> None:
    golden = tensors("whisper")
    encoder = load_network(WhisperEncoder(checkpoint.sizes.whisper), "whisper", checkpoint, "cpu")
    wave = golden["wav16"]
    features = WhisperLogMel()(torch.nn.functional.pad(wave, (0, 480000 - wave.shape[1])))
    assert_golden("whisper", "input_features", features)
    assert_golden("whisper", "encoder_full", encoder(features))
    assert_golden("whisper", "semantic", encoder(features)[:, : wave.shape[1] // 320 + 1])
