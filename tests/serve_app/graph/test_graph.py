"""The graph on Ray Serve gives what the stages give in one process, whatever happens to its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.experimental import get_object_locations

from configs.schema import CallMode
from configs.serve import ServeArgs
from serve_app.errors import VoiceNotFound
from serve_app.graph.deployments import AllStages
from serve_app.graph.handles import Hop, ServeBackend, ServeStages, StageHandle
from serve_app.metrics import BlockMetrics
from stages.blocks import BlockMaker
from stages.call import CallStream
from stages.geometry import CONTENT_RATE, MODEL_RATE
from stages.line import BlockLine, BlockRequests, Sampling
from stages.local import AtOnce
from stages.recording import BlockStream, FileSampling, RecordingStream
from stages.resample import to_content_rate
from stages.settings import CallSettings
from stages.threaded import ThreadedStages
from stages.types import DiffuseRequest, EncodeRequest, Samples, VocodeRequest, Voice
from tests.serve_app.deploy import Deployed, speechlike
from tests.serve_app.fakes import wait_until
from tests.stages.sounds import silence_only

pytestmark = pytest.mark.ray

TRANSPORTS = ("object_store", "grpc")
INLINED_BYTES = 100 * 1024
PATIENT_MS = 60_000
"""A deadline that no machine misses."""


def stages_over(transport: str) -> ServeStages:
    """What the ingress has, in this process."""
    encoder, diffusion, vocoder = (
        StageHandle.of(serve.get_deployment_handle(name, "seedvc"), transport)
        for name in ("Encoder", "Diffusion", "Vocoder")
    )
    return ServeStages(encoder, diffusion, vocoder, BlockMetrics())


async def whole(stream: RecordingStream, source: Samples, after_first: Callable[[], None] | None = None) -> Samples:
    """The whole result; `after_first` runs when the first sound has come."""
    waves: list[Samples] = []

    async def take(items: AsyncIterator[Samples]) -> None:
        async for wave in items:
            if not waves and after_first is not None:
                after_first()
            waves.append(wave)

    await take(stream.push(source))
    await take(stream.finish())
    return np.concatenate(waves)


def file_stream(stages: Any, graph: Deployed, voice: Voice | str, seed: int = 5) -> RecordingStream:
    """Several segments of several chunks, in a few seconds of sound."""
    settings = graph.preset.file.model_copy(
        update={"context_frames": graph.voice.file.frames + 80, "segment_ms": 3000, "segment_overlap_ms": 1000}
    )
    return RecordingStream(stages, voice, graph.voice.file.frames, settings, FileSampling(seed, 2, 0.7), MODEL_RATE)


def live_stream(stages: Any, graph: Deployed, voice: Voice | str, seed: int = 5) -> BlockStream:
    live = graph.preset.live.model_copy(update={"cfg_rate": 0.7})
    settings = CallSettings.of(live, voice, mode="constant", steps=2)
    return BlockStream(stages, BlockLine(live, settings, seed=seed, gate=silence_only))


async def blocks(stream: BlockStream, source_16k: Samples) -> Samples:
    return np.concatenate([block async for block in stream.push(source_16k)])


@contextmanager
def deserialised_sizes() -> Iterator[list[int]]:
    """Sizes of the objects that this process takes out of the object store or a message while the context is open."""
    sizes: list[int] = []
    context: Any = ray._private.worker.global_worker.get_serialization_context()  # type: ignore[no-untyped-call]
    original = context.deserialize_objects

    def counting(data: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.extend(len(item.data) for item in data if item.data is not None)
        return original(data, *args, **kwargs)

    context.deserialize_objects = counting
    try:
        yield sizes
    finally:
        context.deserialize_objects = original


def assert_close(got: Samples, expected: Samples) -> None:
    """Equal but for the last bits that a batch of several may round otherwise."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4


def kill_replica(deployment: str, application: str = "seedvc") -> None:
    """End a deployment's only replica as a crash would."""
    names = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::{application}#{deployment}#")
    ]
    assert len(names) == 1
    ray.kill(ray.get_actor(**names[0]), no_restart=True)


def test_handle_equals_in_process(graph: Deployed) -> None:
    handle: Any = serve.get_app_handle("seedvc")
    source = speechlike(2.0, 0)
    got = handle.convert.remote(source, MODEL_RATE, graph.voice_id, seed=7, steps=2).result()
    expected = graph.local.convert(source, MODEL_RATE, graph.voice, seed=7, steps=2)
    assert np.array_equal(got, expected)
    chunks = handle.options(stream=True).stream.remote(source, MODEL_RATE, graph.voice_id, seed=7, steps=2)
    assert np.array_equal(np.concatenate(list(chunks)), expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_calls_and_files_equal_in_process(graph: Deployed, transport: str) -> None:
    stages, source = stages_over(transport), speechlike(2.0, 3)
    source_16k = to_content_rate(source)
    here, there = (live_stream(s, graph, v) for s, v in ((AtOnce(graph.local), graph.voice), (stages, graph.voice_id)))
    size = graph.local.geometry.block_samples_16k
    for start in range(0, len(source_16k), size):  # one at a time: two in flight would share a batch
        block = source_16k[start : start + size]
        assert np.array_equal([b async for b in there.push(block)], [b async for b in here.push(block)])
    got = await whole(file_stream(stages, graph, graph.voice_id), source)
    assert_close(got, await whole(file_stream(AtOnce(graph.local), graph, graph.voice), source))


async def test_large_tensors_go_by_reference(graph: Deployed) -> None:
    """Content above 100 KiB lies in the object store, and the caller of the chain never takes it out."""
    stages = stages_over("object_store")
    frames = 1000
    with deserialised_sizes() as sizes:
        content = stages.encode(EncodeRequest(to_content_rate(speechlike(12.0, 0))))
        request = DiffuseRequest(graph.voice_id, frames, 0, 40, seed=0, first_frame=0, steps=1, cfg_rate=0.0)
        wave = await stages.collect(stages.render(content, request, VocodeRequest()))
        assert isinstance(content, Hop)
        reference = await content._response._to_object_ref()
        location = get_object_locations([reference])[reference]
    assert len(wave) == 40 * 256
    assert location["object_size"] >= INLINED_BYTES
    assert location["node_ids"], "an inlined object lies on no node"
    assert max(sizes) < INLINED_BYTES


@pytest.mark.parametrize(
    ("deployment", "transport"),
    [("Encoder", "object_store"), ("Diffusion", "object_store"), ("Vocoder", "object_store"), ("Diffusion", "grpc")],
)
async def test_killed_replica_loses_nothing(graph: Deployed, deployment: str, transport: str) -> None:
    source = speechlike(4.0, 4)
    stream = file_stream(stages_over(transport), graph, graph.voice_id)
    got = await whole(stream, source, after_first=lambda: kill_replica(deployment))
    assert_close(got, await whole(file_stream(AtOnce(graph.local), graph, graph.voice), source))


@pytest.fixture
def together(graph: Deployed, tmp_path: Path) -> Iterator[ServeStages]:
    """What the ingress has where one deployment is all three stages."""
    args = ServeArgs(preset="seed-vc-small", weights=str(graph.weights), voices=str(tmp_path), together=True)
    stages = serve.deployment(name="Stages", ray_actor_options={"num_cpus": 0})(AllStages).bind(args)
    handle: Any = serve.run(stages, name="together", route_prefix=None)
    parts = (handle.encode, handle.diffuse, handle.vocode)
    encoder, diffusion, vocoder = (StageHandle.of(part, "object_store") for part in parts)
    yield ServeStages(encoder, diffusion, vocoder, BlockMetrics(), StageHandle.of(handle.block, "grpc"))
    serve.delete("together")


async def test_three_stages_in_one_deployment_equal_in_process_and_survive_a_crash(
    graph: Deployed, together: ServeStages
) -> None:
    source = speechlike(3.0, 6)
    source_16k = to_content_rate(source)
    waves: list[Samples] = []
    there = live_stream(together, graph, graph.voice)
    async for block in there.push(source_16k):
        if not waves:
            kill_replica("Stages", "together")
        waves.append(block)
    assert_close(np.concatenate(waves), await blocks(live_stream(AtOnce(graph.local), graph, graph.voice), source_16k))
    got = await whole(file_stream(together, graph, graph.voice), source)
    assert_close(got, await whole(file_stream(AtOnce(graph.local), graph, graph.voice), source))
    wave = BlockRequests.of(
        next(BlockMaker(graph.local.geometry).push(source_16k)), graph.voice, Sampling(0, 1, 0.0)
    ).start(together)
    await together.collect(wave)
    assert set(together.stage_ms(wave)) == {"encoder", "diffusion", "vocoder"}


async def test_streams_share_batches(graph: Deployed) -> None:
    stages = stages_over("object_store")
    sources = [to_content_rate(speechlike(1.0, seed)) for seed in range(4)]
    got = await asyncio.gather(
        *(blocks(live_stream(stages, graph, graph.voice_id, seed), source) for seed, source in enumerate(sources))
    )
    for seed, (together, source) in enumerate(zip(got, sources, strict=True)):
        alone = await blocks(live_stream(AtOnce(graph.local), graph, graph.voice, seed), source)
        assert_close(together, alone)


def backend_over(transport: str, graph: Deployed, deadline_ms: int) -> ServeBackend:
    """What the ingress has for calls, with another deadline in mode `lowest`."""
    mode = CallMode.model_construct(block_ms=180, deadline_ms=deadline_ms)
    preset = graph.preset.model_copy(update={"live": graph.preset.live.model_copy(update={"lowest": mode})})
    maker = serve.get_deployment_handle("VoiceMaker", "seedvc")
    return ServeBackend(preset, stages_over(transport), maker, "", retry_after_s=1)


async def converse(stream: CallStream, source_16k: Samples) -> Samples:
    """A call whose speaker waits for each block, so that no machine is too slow for it."""
    size, waves = stream.settings.block_ms * CONTENT_RATE // 1000, []
    async with aclosing(stream.blocks()) as out:  # type: ignore[type-var]
        for start in range(0, len(source_16k) - size + 1, size):
            stream.push(source_16k[start : start + size])
            waves.append(await anext(out))
    stream.close()
    return np.concatenate(waves)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_live_call_equals_in_process(graph: Deployed, transport: str, tmp_path: Path) -> None:
    backend = backend_over(transport, graph, PATIENT_MS)
    source_16k = to_content_rate(speechlike(1.5, 3))
    stream = backend.call_streams.call(graph.voice_id, block_ms=180, steps=2, seed=5)
    got = await converse(stream, source_16k)
    assert stream.report.done > 0
    assert stream.report.concealed == 0
    assert np.abs(got).max() > 0.01
    assert set(stream.report.stages_ms) == {"encoder", "diffusion", "vocoder"}
    live = graph.preset.live.model_copy(
        update={"lowest": CallMode.model_construct(block_ms=180, deadline_ms=PATIENT_MS)}
    )
    here = CallStream(ThreadedStages(graph.local), live, replace(stream.settings, voice=graph.voice), seed=5)
    assert np.array_equal(got, await converse(here, source_16k))


async def test_a_voice_that_is_deleted_in_mid_call_is_not_heard_for_long(graph: Deployed, tmp_path: Path) -> None:
    handle: Any = serve.get_app_handle("seedvc")
    voice_id = await handle.make_voice.remote(speechlike(2.0, 9), MODEL_RATE, "leaving")
    stream = backend_over("object_store", graph, PATIENT_MS).call_streams.call(voice_id, block_ms=180, steps=1)
    source, size = to_content_rate(speechlike(60.0, 0)), CONTENT_RATE * 180 // 1000
    said = iter(source[: len(source) // size * size].reshape(-1, size))
    async with aclosing(stream.blocks()) as out, asyncio.timeout(60):  # type: ignore[type-var]
        stream.push(next(said))
        await anext(out)
        assert stream.report.done == 1
        url = f"{graph.http_url}/v1/voices/{voice_id}"
        (await asyncio.to_thread(httpx.delete, url, timeout=30)).raise_for_status()
        while not stream.report.failed:
            stream.push(next(said))
            await anext(out)
            await asyncio.sleep(0.02)  # the replicas look at the store every few seconds
    stream.close()
    assert isinstance(stream.report.failure, VoiceNotFound)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_late_block_is_cancelled_and_concealed(graph: Deployed, transport: str, tmp_path: Path) -> None:
    stream = backend_over(transport, graph, 1).call_streams.call(graph.voice_id, steps=50)
    stream.push(to_content_rate(speechlike(0.18, 0))[:2880])
    wave = stream._waiting[0].pending
    assert wave is not None
    hops: list[Any] = [hop._hop for hop in wave.chain()]
    block = await anext(stream.blocks())
    assert stream.report.late == 1
    assert len(block) == graph.local.geometry.block_samples
    assert not block.any()
    await asyncio.sleep(0)  # a task learns of its cancelling on the loop's next turn
    assert all(hop.cancelled() for hop in hops)
    stream.close()


async def test_hanging_up_cancels_what_is_in_flight(graph: Deployed, tmp_path: Path) -> None:
    stream = backend_over("object_store", graph, PATIENT_MS).call_streams.call(graph.voice_id, steps=50)
    for _ in range(2):
        stream.push(to_content_rate(speechlike(0.18, 0))[:2880])
    waves: list[Any] = [block.pending for block in stream._waiting]
    hops = [hop._hop for wave in waves for hop in wave.chain()]
    stream.close()
    await asyncio.sleep(0)
    assert [hop.cancelled() for hop in hops] == [True] * 6
    assert [block async for block in stream.blocks()] == []


async def test_metrics_are_readable_at_the_node(graph: Deployed, tmp_path: Path) -> None:
    """Blocks by what became of them and the stages' histograms, at the port that Prometheus scrapes."""
    source_16k = np.concatenate([to_content_rate(speechlike(0.5, 0)), np.zeros(CONTENT_RATE, np.float32)])
    for deadline_ms in (1, PATIENT_MS):
        backend = backend_over("object_store", graph, deadline_ms)
        await converse(backend.call_streams.call(graph.voice_id, steps=2), source_16k)
    metrics = {f"ray_seedvc_blocks_{what}_total" for what in ("done", "late", "concealed", "skipped")}
    metrics |= {f"ray_seedvc_stage_{what}_count" for what in ("queue_ms", "compute_ms", "batch_size")}
    wanted = metrics | {f'stage="{stage}"' for stage in ("encoder", "diffusion", "vocoder")}

    def all_there() -> bool:
        text = httpx.get(f"{graph.metrics_url}/metrics", timeout=10).text
        return all(name in text for name in wanted)

    await asyncio.to_thread(wait_until, all_there, f"{wanted} are exported", 40.0)
