"""Stages that have no room, or lose a replica: who waits, who gives up, and what is asked again. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve_app.graph import handles
from serve_app.graph.handles import FULL_FOR_S, LONGEST_WAIT_S, Hop, ServeStages, StageHandle, StagesUnavailable
from serve_app.metrics import BlockMetrics
from stages.types import BlockLost, DiffuseRequest, EncodeRequest, VocodeRequest
from tests.stages.virtual import run_virtual

FULL = BackPressureError(num_queued_requests=64, max_queued_requests=64)
NEVER = 10**9


class Response:
    """What a handle gives: refused when it is sent, or there after a moment."""

    def __init__(self, handle: Handle, sources: tuple[Any, ...], error: Exception | None) -> None:
        self._result = asyncio.ensure_future(self._answer(sources))
        self._taken = asyncio.ensure_future(self._assigned(sources, error))
        for task in (self._result, self._taken):
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._handle = handle

    async def _assigned(self, sources: tuple[Any, ...], error: Exception | None) -> None:
        for source in sources:
            if isinstance(source, Response):
                await source._to_object_ref()
        if error is not None:
            raise error

    async def _answer(self, sources: tuple[Any, ...]) -> np.ndarray:
        await asyncio.sleep(0)
        await self._taken
        for source in sources:
            if isinstance(source, Response):
                await source
        await asyncio.sleep(0.01)
        return np.zeros(4, np.float32)

    async def _to_object_ref(self) -> object:
        await asyncio.shield(self._taken)
        return object()

    def __await__(self) -> Generator[Any, None, np.ndarray]:
        return asyncio.shield(self._result).__await__()

    def cancel(self) -> None:
        self._result.cancel()


class Handle:
    """A deployment that answers its first requests with these errors."""

    def __init__(self, *errors: Exception, full_times: int = 0) -> None:
        self._errors = [*errors, *[FULL] * min(full_times, 1000)]
        self.asked_s: list[float] = []
        self.for_call: set[bool] = set()

    def options(self, **options: Any) -> Handle:
        return self

    def remote(self, *args: Any) -> Response:
        self.asked_s.append(asyncio.get_running_loop().time())
        self.for_call.add(args[-1])
        return Response(self, args, self._errors.pop(0) if self._errors else None)


def stages_of(handles: list[Handle], transport: str) -> ServeStages:
    parts: Any = [StageHandle.of(handle, transport) for handle in handles]  # type: ignore[arg-type]
    encoder, diffusion, vocoder = parts
    return ServeStages(encoder, diffusion, vocoder, BlockMetrics())


def chain(stages: ServeStages, live: bool = False) -> Hop:
    content = stages.encode(EncodeRequest(np.zeros(320, np.float32), live=live))
    return stages.render(content, DiffuseRequest("anna", 1, 0, 1, 0, 0, 1, 0.0, live=live), VocodeRequest(live=live))


def asked(handles: list[Handle]) -> list[int]:
    return [len(handle.asked_s) for handle in handles]


@pytest.mark.parametrize("transport", ["grpc", "object_store"])
@pytest.mark.parametrize("full", [0, 1, 2])
def test_only_what_was_refused_is_asked_again_after_longer_and_longer_waits(full: int, transport: str) -> None:
    handles = [Handle(full_times=5 * (stage == full)) for stage in range(3)]

    async def run() -> None:
        stages = stages_of(handles, transport)
        assert len(await stages.collect(chain(stages))) == 4

    run_virtual(run())
    expected = [1, 1, 1]
    # By reference the requests behind it are sent before it is known that it was refused.
    for stage in range(full, 3 if transport == "object_store" else full + 1):
        expected[stage] = 6
    assert asked(handles) == expected
    waits = np.diff(handles[full].asked_s)
    assert np.all(waits >= 0.25) and np.all(np.diff(waits) > 0) and waits[-1] >= 4.0


@pytest.mark.parametrize("transport", ["grpc", "object_store"])
@pytest.mark.parametrize("full", [0, 1, 2])
def test_a_stage_that_stays_full_is_given_up_and_was_not_hammered(full: int, transport: str) -> None:
    handles = [Handle(full_times=NEVER * (stage == full)) for stage in range(3)]

    async def run() -> None:
        stages = stages_of(handles, transport)
        with pytest.raises(StagesUnavailable, match="no room for 120 s"):
            await stages.collect(chain(stages))
        assert FULL_FOR_S <= asyncio.get_running_loop().time() <= FULL_FOR_S + 2 * LONGEST_WAIT_S

    run_virtual(run())
    assert max(asked(handles)) <= 25


@pytest.mark.parametrize("transport", ["grpc", "object_store"])
@pytest.mark.parametrize("live", [False, True])
def test_only_blocks_of_calls_go_first_and_no_recording_on_their_path(live: bool, transport: str) -> None:
    def asked_for_call(open_stages: Callable[[ServeStages], ServeStages]) -> list[set[bool]]:
        handles = [Handle() for _ in range(3)]

        async def run() -> None:
            stages = open_stages(stages_of(handles, transport))
            await stages.collect(chain(stages, live))

        run_virtual(run())
        return [handle.for_call for handle in handles]

    assert asked_for_call(lambda stages: stages) == [{False}] * 3
    assert asked_for_call(ServeStages.for_calls) == [{True}] * 3


@pytest.mark.parametrize("full", [0, 1, 2])
def test_a_block_of_a_call_is_lost_at_once_where_there_is_no_room(full: int) -> None:
    handles = [Handle(full_times=NEVER * (stage == full)) for stage in range(3)]

    async def run() -> None:
        stages = stages_of(handles, "object_store").for_calls()
        with pytest.raises(BlockLost, match="no room"):
            await stages.collect(chain(stages, live=True))
        assert asyncio.get_running_loop().time() < 0.1

    run_virtual(run())
    assert max(asked(handles)) == 1


def test_a_recording_on_the_way_of_calls_waits_for_room() -> None:
    handles = [Handle(), Handle(full_times=3), Handle()]

    async def run() -> None:
        stages = stages_of(handles, "object_store")
        assert len(await stages.collect(chain(stages, live=True))) == 4

    run_virtual(run())
    assert asked(handles) == [1, 4, 1]


def test_two_that_share_a_source_start_it_again_once() -> None:
    handles = [Handle(FULL), Handle(), Handle()]

    async def run() -> None:
        stages = stages_of(handles, "object_store")
        content = stages.encode(EncodeRequest(np.zeros(320, np.float32)))
        request = DiffuseRequest("anna", 1, 0, 1, 0, 0, 1, 0.0)
        waves = [stages.render(content, request, VocodeRequest()) for _ in range(2)]
        await asyncio.gather(*map(stages.collect, waves))

    run_virtual(run())
    assert asked(handles)[0] == 2


@pytest.mark.parametrize("transport", ["grpc", "object_store"])
def test_a_lost_replica_is_asked_again_at_once(transport: str) -> None:
    handles = [Handle(), Handle(ActorDiedError()), Handle()]

    async def run() -> None:
        stages = stages_of(handles, transport)
        assert len(await stages.collect(chain(stages))) == 4
        assert asyncio.get_running_loop().time() < 0.25

    run_virtual(run())
    assert asked(handles)[1] == 2


def test_when_the_stages_last_answered_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [5.0]
    monkeypatch.setattr(handles, "monotonic", lambda: now_s[0])

    async def run() -> None:
        stages = stages_of([Handle(), Handle(), Handle()], "grpc")
        assert stages.answered_s < 0
        await stages.for_calls().collect(chain(stages, live=True))
        assert stages.answered_s == 5.0

    run_virtual(run())
