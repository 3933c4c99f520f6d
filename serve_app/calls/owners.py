"""Reaching one particular ingress replica: the one that holds a session. Serve itself calls any replica."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

from serve_app.errors import Unavailable
from serve_app.graph.handles import cause_of

ANSWER_S = 10.0
CHOICES = 2
LOOK_EVERY_S = 0.3


class OwnerRouter(LocalityMixin, RequestRouter):
    """Sends a call to the replica that it names, any other call to the shorter of two random queues.

    The name travels as the handle's session id. A replica that Serve is stopping is found by its actor, and answers
    while its sessions last. Where it is gone, any replica answers at once that it does not know the session.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try in this round; the less busy of them takes the call."""
        if pending_request is not None and (owner := pending_request.metadata.session_id):
            named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == owner]
            named = named or await asyncio.to_thread(self._stopping, owner, candidate_replicas)
            if named:
                return [named]
        near = [self._replicas[replica_id] for replica_id in self.apply_locality_routing(pending_request)]
        return [random.sample(near, min(CHOICES, len(near)))] if near else []

    async def _select_from_candidate_replicas(
        self, candidates: list[RunningReplica], backoff_index: int
    ) -> RunningReplica | None:
        """The base class takes only what runs (private, as of Ray 2.60)."""
        if len(candidates) == 1 and candidates[0].replica_id not in self._replicas:
            ((replica, n_requests),) = await self._probe_queue_lens(candidates, backoff_index)
            return replica if n_requests is not None and n_requests < replica.max_ongoing_requests else None
        chosen: RunningReplica | None = await super()._select_from_candidate_replicas(candidates, backoff_index)
        return chosen

    def _stopping(self, owner: str, others: list[RunningReplica]) -> list[RunningReplica]:
        """The replica of that name where it lives but is not among those that run; asks Ray, so for a thread."""
        if not others or not is_replica_name(owner, like=others[0].replica_id.unique_id):
            return []  # a client made the name up, so Ray is not asked
        info = others[0]._replica_info  # private, as of Ray 2.60: the record of another replica of the deployment
        replica_id = replace(info.replica_id, unique_id=owner)
        stopping = replace(
            info, replica_id=replica_id, actor_name=replica_id.to_full_id_str(), port=None, backend_http_port=None
        )
        try:
            return [self.create_replica_wrapper(stopping)]
        except ValueError:  # no such actor
            return []


def is_replica_name(name: str, like: str) -> bool:
    """Whether a name has the form of `like`, which Serve has made."""
    return len(name) == len(like) and name.isascii() and name.isalnum()


class ServeOwners:
    """The ingress replicas of this application, seen from one of them."""

    def __init__(self) -> None:
        context = serve.get_replica_context()
        self.name: str = context.replica_id.unique_id
        self._ingress: DeploymentHandle[Any] = serve.get_deployment_handle(context.deployment, context.app_name)

    async def ask(self, owner: str, method: str, *args: Any) -> Any:
        """Calls a method of the replica `owner`, or of any where that one is gone.

        Raises:
            Unavailable: no replica answered in time.
        """
        response = self._ingress.options(session_id=owner, method_name=method).remote(*args)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await response
        except RayTaskError as error:
            raise cause_of(error) from None
        except (TimeoutError, RayError, RayServeException) as error:
            response.cancel()  # type: ignore[no-untyped-call]
            raise Unavailable("the server that holds this session does not answer; try again soon") from error

    async def hold(self, method: str, *args: Any) -> None:
        """Calls a method of this very replica that returns when a session ends.

        So the session is one of this replica's ongoing requests: it takes a place of `max_ongoing_requests`,
        autoscaling counts it, and the replica waits for its end before it stops.
        """
        response = self._ingress.options(session_id=self.name, method_name=method).remote(*args)
        try:
            with suppress(RayError, RayServeException):  # the session itself needs no such call
                await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise


async def stopping() -> None:
    """Returns when Serve has asked this replica to stop. Serve tells no user code, so this reads Serve's own record."""
    worker = ray._private.worker.global_worker
    replica = worker.actors[worker.actor_id]._replica_impl  # private, as of Ray 2.60
    while not replica._shutting_down:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(LOOK_EVERY_S)
