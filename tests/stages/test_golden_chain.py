"""The whole chain against upstream's recorded numbers: one block, a stream of blocks, a file in chunks."""

from __future__ import annotations

import dataclasses
import json
import wave

import numpy as np
import pytest
import torch

from configs import load_preset
from configs.schema import Preset
from stages.checkpoints import Checkpoint
from stages.geometry import HOP, MODEL_RATE, TICKS_PER_S, Geometry
from stages.local import AtOnce, LocalStages, drain
from stages.recording import FileSampling, RecordingStream
from stages.resample import to_content_rate
from stages.stitch import Stitcher
from stages.types import Content, DiffuseRequest, EncodeRequest, Mel, Samples
from tests.stages.golden import FOLDER, MANIFEST, assert_golden, tensors

PLAN_SETTINGS = {
    *("sr_stream", "sr_model", "hop", "block_time", "crossfade", "extra_time_ce", "extra_time", "extra_time_right"),
    "vad_chunk_size",  # the detector's own chunking, no part of the geometry
}


def golden_preset(**live: object) -> Preset:
    preset = load_preset("seed-vc-small")
    return preset.model_copy(update={"live": preset.live.model_copy(update=live)})


def test_one_block(golden_stages: LocalStages) -> None:
    golden = tensors("e2e_block_synth")
    voice = golden_stages.voice(golden["reference_wav"].numpy(), MODEL_RATE)
    assert_golden("e2e_block_synth", "style", voice.live.style[None])
    assert_golden("e2e_block_synth", "mel2", voice.live.mel[None])
    assert_golden("e2e_block_synth", "prompt_condition", voice.live.condition[None])
    source = golden["input_wav_res"].numpy()
    block = golden_stages.block(source, voice, noise=golden["noise"][0].numpy())
    assert_golden("e2e_block_synth", "vc_wave", block[None, None])
    assert_golden("e2e_block_synth", "output", golden_stages.geometry.returned(block))
    content = golden_stages.encode(EncodeRequest(source))
    assert_golden("e2e_block_synth", "S_alt_full", content[None])


def test_stream_of_blocks(checkpoint: Checkpoint) -> None:
    golden = tensors("streaming_22k")
    stages = LocalStages(golden_preset(steps=4), checkpoint)
    geometry = stages.geometry
    voice = stages.voice(golden["reference_wav"].numpy(), MODEL_RATE)
    stitcher = Stitcher(geometry)
    window = np.zeros(geometry.window_samples_16k, np.float32)
    output, offsets, waves = [], [], []
    was_speech = False
    for tail, noise, is_speech in zip(
        golden["input_res_tail"].numpy(), golden["noise_tail"].numpy(), golden["speech_flag_after"], strict=True
    ):
        # Upstream rewrites the zone before the new block with better context: its tail is one zone longer.
        window = np.concatenate([window[geometry.block_samples_16k :], tail[-geometry.block_samples_16k :]])
        window[-len(tail) :] = tail
        waves.append(stages.block(window, voice, noise=noise))
        returned = geometry.returned(waves[-1])
        # A block during which speech begins is heard, and so is the one during which it ends.
        output.append(stitcher.push(returned if was_speech or is_speech else np.zeros_like(returned)))
        was_speech = bool(is_speech)
        offsets.append(stitcher.offset)
    assert_golden("streaming_22k", "vc_wave_first3", np.stack(waves[:3]))
    assert_golden("streaming_22k", "sola_offset", np.array(offsets))
    assert_golden("streaming_22k", "output", np.concatenate(output))


@pytest.mark.parametrize("plan", [p for p in json.loads((FOLDER / "frame_plans.json").read_text()) if p["hop"] == HOP])
def test_frame_plan(plan: dict[str, float]) -> None:
    rate = int(plan["sr_stream"])
    geometry = Geometry.from_seconds(
        plan["block_time"],
        plan["crossfade"],
        plan["extra_time_ce"],
        plan["extra_time"],
        plan["extra_time_right"],
        rate,
    )
    zone = rate // TICKS_PER_S
    vocoded = np.arange(geometry.target_frames * HOP)
    returned = geometry.returned(vocoded)
    assert {
        "zc": zone,
        "block_frame": geometry.block_ticks * zone,
        "block_frame_16k": geometry.block_samples_16k,
        "crossfade_frame": geometry.crossfade_ticks * zone,
        "sola_buffer_frame": geometry.sola_ticks * zone,
        "sola_search_frame": zone,
        "extra_frame": geometry.left_ticks * zone,
        "extra_frame_right": geometry.right_ticks * zone,
        "input_wav": geometry.window_ticks * zone,
        "input_wav_res": geometry.window_samples_16k,
        "skip_head": geometry.left_ticks,
        "skip_tail": geometry.right_ticks,
        "return_length": geometry.return_ticks,
        "content_frames_after_cut": geometry.content_frames,
        "target_frames": geometry.target_frames,
        "vocoder_samples": len(vocoded),
        "output_samples": len(returned),
        "output_start": returned[0],
    } == {key: value for key, value in plan.items() if key not in PLAN_SETTINGS}


class RecordedNoise(LocalStages):
    """LocalStages that starts each chunk from the recorded noise."""

    noise: np.ndarray
    chunks: list[int]

    def diffuse(self, content: Content, request: DiffuseRequest) -> Mel:
        n_frames = request.stop - request.start
        noise = self.noise[len(self.chunks), :, :n_frames]
        self.chunks.append(n_frames)
        return super().diffuse(content, dataclasses.replace(request, noise=noise))


def read_wav(name: str) -> Samples:
    with wave.open(str(FOLDER / "audio" / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (MODEL_RATE, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / np.float32(32768)


def test_file_in_chunks(checkpoint: Checkpoint) -> None:
    facts = MANIFEST["offline_chunked.safetensors"]
    stages = RecordedNoise(load_preset("seed-vc-small"), checkpoint)
    stages.noise, stages.chunks = tensors("offline_chunked")["noise_tail"].numpy(), []
    reference = np.tile(read_wav("offline_reference_part.wav"), 5)[:560070]
    source = read_wav("offline_source.wav")
    voice = stages.voice(reference, MODEL_RATE)
    assert voice.file.frames == facts["prompt_frames"]
    assert_golden("offline_chunked", "style", voice.file.style[None])
    sampling = FileSampling(0, 2, 0.7, length_adjust=1.1)
    file = stages.preset.file.model_copy(update={"high_pass": False})  # as upstream
    stream = RecordingStream(AtOnce(stages), voice, voice.file.frames, file, sampling, MODEL_RATE)
    waves = [*drain(lambda: stream.push(source)), *drain(stream.finish)]
    assert stages.chunks == facts["chunks"]
    assert_golden("offline_chunked", "output", np.concatenate(waves))


def test_content_of_a_long_file(golden_stages: LocalStages) -> None:
    facts, golden = MANIFEST["long_semantic.safetensors"], tensors("long_semantic")
    source = to_content_rate(np.tile(read_wav("offline_source.wav"), 5)[:690165])
    assert len(source) == facts["n_samples_16k"]
    starts = (0, 25 * 16000)
    windows = [source[start : start + 30 * 16000] for start in starts]
    assert [len(window) for window in windows] == facts["window_lengths"]
    rows = np.concatenate(
        [
            golden_stages.encode(EncodeRequest(windows[0])),
            golden_stages.encode(EncodeRequest(windows[1], drop_frames=250)),
        ]
    )
    assert len(rows) == facts["total_rows"]
    assert_golden("long_semantic", "S_alt_rows", torch.from_numpy(rows)[golden["row_index"]])
