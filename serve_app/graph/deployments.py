"""The stages as Ray Serve deployments: each loads its networks, warms up, batches, and answers health checks.

Replicas, CPUs, GPUs, autoscaling and request limits come from the Serve config; nothing is set here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import Preset, load_preset
from configs.serve import ServeArgs
from serve_app.graph.batching import BatchGate, RightOfWay, Watch
from serve_app.graph.listen import listen_at_node
from serve_app.metrics import StageMetrics
from serve_app.threads import computed
from serve_app.voices.cache import VoiceCache
from serve_app.voices.stores import open_voice_store
from stages.types import (
    STAGE_NAMES,
    Content,
    DiffuseRequest,
    EncodeRequest,
    Mel,
    RenderedBlock,
    Samples,
    VocodeRequest,
    Voice,
)

if TYPE_CHECKING:
    from stages.checkpoints import Checkpoint
    from stages.reference import ReferenceReport


def open_stage(args: ServeArgs) -> tuple[Preset, Checkpoint]:
    """The preset and its weights. Also sets how many threads this process computes with, and where it listens."""
    from stages.local import open_weights, set_threads

    listen_at_node()
    set_threads(args.torch_threads)
    preset = load_preset(args.preset)
    return preset, open_weights(preset, args.weights)


def open_gate(name: str, compute: Callable[[Any], Any], args: ServeArgs, way: RightOfWay | None) -> BatchGate[Any, Any]:
    """The gate of one stage. Stages of one process share their right of way."""
    from stages.local import compute_first

    first = partial(compute_first, args.device)
    return BatchGate(compute, getattr(args, name), StageMetrics(name), way or RightOfWay(), first)


class Encoder:
    """Windows at 16 kHz to content features."""

    def __init__(self, args: ServeArgs, way: RightOfWay | None = None) -> None:
        from stages.encoder import EncoderStage
        from stages.geometry import Geometry

        preset, checkpoint = open_stage(args)
        stage = EncoderStage(preset, checkpoint, args.device)
        geometry = Geometry.from_settings(preset.live)
        window = EncodeRequest(np.zeros(geometry.window_samples_16k, np.float32), geometry.drop_ticks, live=True)
        for size in range(1, args.encoder.max_batch_size + 1):
            stage([window] * size)
        self._gate: BatchGate[EncodeRequest, Content] = open_gate("encoder", stage, args, way)

    async def __call__(self, request: EncodeRequest, for_call: bool = False) -> Content:
        """Content [frames, d_model] of one window."""
        return await self._gate(request, for_call)

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        self._gate.check()


class Diffusion:
    """Content features and a voice to mel. Keeps a bounded number of voices in memory."""

    def __init__(self, args: ServeArgs, way: RightOfWay | None = None) -> None:
        from stages.diffusion import DiffusionStage
        from stages.geometry import Geometry
        from stages.voice import blank_voice, fingerprint

        preset, checkpoint = open_stage(args)
        stage = DiffusionStage(preset, checkpoint, args.device)
        voices = open_voice_store(args.voices)
        self._voices = VoiceCache(voices, fingerprint(preset, checkpoint), args.voice_cache_mb * 2**20)
        geometry = Geometry.from_settings(preset.live)
        width = checkpoint.sizes.whisper.d_model + checkpoint.sizes.carries_pitch
        content = np.zeros((geometry.content_frames, width), np.float32)
        voice, live, n = blank_voice(preset, checkpoint.sizes), preset.live, geometry.target_frames
        request = DiffuseRequest(voice, n, 0, n, 0, 0, live.steps, live.cfg_rate, live=True)
        for size in range(1, args.diffusion.max_batch_size + 1):
            stage([content] * size, [request] * size, [voice] * size)
        self._gate: BatchGate[tuple[Content, DiffuseRequest, Voice], Mel] = open_gate(
            "diffusion", lambda items: stage(*zip(*items, strict=True)), args, way
        )

    async def __call__(self, content: Content, request: DiffuseRequest, for_call: bool = False) -> Mel:
        """Mel [mels, T] of one content in the request's voice (an id of the voice store)."""
        voice = request.voice if isinstance(request.voice, Voice) else await self._voices.get(request.voice)
        return await self._gate((content, request, voice), for_call)

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        self._voices.look()  # forgets deleted voices also when no requests come
        self._gate.check()


class Vocoder:
    """Mel to sound."""

    def __init__(self, args: ServeArgs, way: RightOfWay | None = None) -> None:
        from stages.geometry import Geometry
        from stages.vocoder import VocoderStage

        preset, checkpoint = open_stage(args)
        stage = VocoderStage(preset, checkpoint, args.device)
        rows = checkpoint.sizes.mel.n_mels + checkpoint.sizes.carries_pitch
        n_frames = Geometry.from_settings(preset.live).vocoder_frames(preset.live.vocoder_past_frames)
        mel, request = np.zeros((rows, n_frames), np.float32), VocodeRequest(n_frames, live=True)
        for size in range(1, args.vocoder.max_batch_size + 1):
            stage([mel] * size, [request] * size)
        self._gate: BatchGate[tuple[Mel, VocodeRequest], Samples] = open_gate(
            "vocoder", lambda items: stage(*zip(*items, strict=True)), args, way
        )

    async def __call__(self, mel: Mel, request: VocodeRequest, for_call: bool = False) -> Samples:
        """Samples [256 * frames] of one mel."""
        return await self._gate((mel, request), for_call)

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        self._gate.check()


class AllStages:
    """All three in one process: a block of a call crosses between processes once."""

    def __init__(self, args: ServeArgs) -> None:
        self._way = way = RightOfWay()
        self._encoder, self._diffusion, self._vocoder = Encoder(args, way), Diffusion(args, way), Vocoder(args, way)

    async def encode(self, request: EncodeRequest, for_call: bool = False) -> Content:
        """As Encoder."""
        return await self._encoder(request, for_call)

    async def diffuse(self, content: Content, request: DiffuseRequest, for_call: bool = False) -> Mel:
        """As Diffusion."""
        return await self._diffusion(content, request, for_call)

    async def vocode(self, mel: Mel, request: VocodeRequest, for_call: bool = False) -> Samples:
        """As Vocoder."""
        return await self._vocoder(mel, request, for_call)

    async def block(
        self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest, for_call: bool = False
    ) -> RenderedBlock:
        """One block from end to end. Recordings stand still between the stages of a call's block too."""
        with self._way.taken() if for_call else nullcontext():
            return await self._block(encode, diffuse, vocode, for_call)

    async def _block(
        self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest, for_call: bool
    ) -> RenderedBlock:
        marks = [perf_counter()]
        content = await self._encoder(encode, for_call)
        marks.append(perf_counter())
        mel = await self._diffusion(content, diffuse, for_call)
        marks.append(perf_counter())
        samples = await self._vocoder(mel, vocode, for_call)
        marks.append(perf_counter())
        took_ms = [(end - start) * 1000 for start, end in pairwise(marks)]
        return RenderedBlock(samples, dict(zip(STAGE_NAMES, took_ms, strict=True)))

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        for stage in (self._encoder, self._diffusion, self._vocoder):
            await stage.check_health()


class VoiceMaker:
    """Reference recordings to voices."""

    def __init__(self, args: ServeArgs) -> None:
        from stages.diffusion import DiffusionStage
        from stages.encoder import EncoderStage
        from stages.voice import VoiceStage

        preset, checkpoint = open_stage(args)
        encoder = EncoderStage(preset, checkpoint, args.device)
        diffusion = DiffusionStage(preset, checkpoint, args.device)
        self._maker = VoiceStage(preset, checkpoint, encoder, diffusion, args.device)
        self._busy, self._watch, self._stuck_after_s = asyncio.Lock(), Watch(), args.voice_stuck_after_s

    async def fingerprint(self) -> str:
        """Names the weights and settings that voices are made with."""
        return self._maker.fingerprint

    async def make(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """The voice of a reference, warnings, and how good it is; BadAudio where it holds none."""
        async with self._busy:
            return await computed(self._make, samples, sample_rate)

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        self._watch.check()

    def _make(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        self._watch.begin(self._stuck_after_s)
        result: object = None
        try:
            return self._maker(samples, sample_rate)
        except Exception as error:
            result = error
            raise
        finally:
            self._watch.end([result])
