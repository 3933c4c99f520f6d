"""Arguments of the Serve application: what `build(args)` takes out of a Serve config's `args`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from configs.places import place_of, place_of_keys, sessions_of
from configs.schema import ConfigError, Positive, Strict

Seconds = Annotated[float, Field(gt=0)]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$|^[0-9a-f:]*:[0-9a-f:.]*$")]
"""A name in small letters or an address, without a port."""
Origin = Annotated[str, Field(pattern=r"^(\*|https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?)$")]
"""As browsers send it: scheme, host in small letters, port where it is not the scheme's own; no path."""
ReferenceSeconds = Annotated[float, Field(ge=1, le=30)]
"""What a stage can make a voice of."""
MAX_REFUSING = 16
"""Refusals at once per ingress replica that wait for their client to stop sending."""
SHORT_REQUESTS = 64
"""Room for requests that are answered at once: health, lists of voices, the page."""


class StageArgs(Strict):
    """How one stage batches, and how its results travel."""

    max_batch_size: Positive = 4
    batch_wait_ms: Annotated[float, Field(ge=0)] = 2.0
    """How long a request waits for company when the device is idle; what waits while it is busy merges anyway."""
    transport: Literal["object_store", "grpc"] = "object_store"
    """How results for recordings travel; blocks of calls always go by value. object_store: on by reference; grpc: by
    value through the ingress, faster below 0.5 MB, at most 4 MiB (30 s of seed-vc-small's content are 4.6 MB)."""
    live_stuck_after_s: Seconds = 30.0
    """A replica that takes longer for one layer of a batch of calls' blocks is unhealthy: Serve replaces it after three
    checks, 10 s apart. Far above what a block may take, as all blocks are late long before."""
    stuck_after_s: Seconds = 900.0
    """The same of recordings' chunks; a large preset on a CPU takes long."""


class Limits(Strict):
    """What one request may bring, and how many conversions may run at once per ingress replica."""

    max_source_s: Seconds = 600.0
    max_upload_bytes: Positive = 256 * 1024 * 1024
    max_upload_wait_s: Seconds = 20.0
    """How long the first byte of a request's body may take."""
    max_upload_pause_s: Seconds = 60.0
    """How long an upload may stall."""
    max_upload_s: Seconds = 3600.0
    """How long one upload may take in all; live sound on `/stream` takes as long as it lasts."""
    max_uploads: Positive = 32
    """Requests with a body at once per ingress replica, until they are answered. Where all places are taken, a client
    that sends less than `min_upload_bytes_per_s` loses its own to a newcomer."""
    min_upload_bytes_per_s: Positive = 256
    min_reference_s: ReferenceSeconds = 1.0
    max_reference_s: ReferenceSeconds = 30.0
    max_conversions: Positive = 8
    retry_after_s: Positive = 2
    """What a refused client is told to wait."""


class IceServerArgs(Strict):
    """One STUN or TURN server, by the URLs that it is reached under."""

    urls: Annotated[tuple[Annotated[str, Field(pattern=r"^(stun|stuns|turn|turns):.+")], ...], Field(min_length=1)]

    @property
    def relays(self) -> bool:
        """Whether it relays by one of them, and so asks for a credential."""
        return any(url.startswith("turn") for url in self.urls)


class RtcArgs(Strict):
    """Live calls: how they get through, how many at once, and when one is given up."""

    ice_servers: tuple[IceServerArgs, ...] = ()
    """What clients are told to use: none where each reaches this machine by itself. TURN servers are coturn with a
    shared secret."""
    behind_nat: bool = False
    """Whether neither clients nor the TURN servers reach this machine's own addresses. It then asks the servers above
    for one that they do reach, at the start of each call; one of them that does not answer costs each call 5 s."""
    private_addresses: bool = True
    """Whether media may go to addresses of private networks (10.0.0.0/8, 192.168.0.0/16, fd00::/8 and the like), where
    clients in the same network are. Where all clients come from the internet, `false` keeps them from making this
    server send connectivity checks into the network that it stands in. Link-local and multicast addresses are never
    sent to, loopback only for a client that has called from this machine."""
    turn_secret_env: str = "SEEDVC_TURN_SECRET"
    """The environment variable that holds coturn's `static-auth-secret`."""
    credential_s: Positive = 3600
    """How long a TURN credential made from it is good for; a call may last longer."""
    max_calls: Positive = 8
    """Calls at once per ingress replica."""
    max_waiting: Positive = 64
    """Requests with an offer or a candidate at once per ingress replica, and as many sockets whose call has not begun;
    an idle one gives way to a newcomer."""
    retry_after_s: Positive = 2
    """What a refused client is told to wait."""
    max_call_s: Seconds = 14400.0
    connect_timeout_s: Seconds = 20.0
    """How long media may take to flow after the answer, and a socket to start its call."""
    lost_after_s: Seconds = 15.0
    """How long nothing at all may come from a client before it counts as gone; a muted one still sends."""
    idle_timeout_s: Seconds = 900.0
    """How long a call may go without speech before it gives its place away."""
    failing_timeout_s: Seconds = 10.0
    """How long each block of a call may fail before the call ends; its client is told at the first."""
    unheard_timeout_s: Seconds = 60.0
    """The same where the blocks are late or not answered, as while a replica is replaced."""
    page: bool = True
    """Whether the browser page is served at `/`."""


class AccessArgs(Strict):
    """Who may call: with which key, under which names of this server, from which pages."""

    api_key_env: str = "SEEDVC_API_KEY"
    """Where this environment variable is set, every route but health, documentation and the page's own files asks for
    its value."""
    keys: str | None = None
    """Where further keys are kept, which `seedvc keys` makes: a file that only its owner can read, or
    `redis://host:port/database`. Each has an owner and may have limits; the key above has none."""
    consent: Literal["optional", "required"] = "optional"
    """Whether who adds a voice has to state that its speaker agreed; the statement is kept with the voice."""
    open: bool = False
    """Whether a server that other machines reach may do without a key."""
    hosts: tuple[HostName, ...] = ()
    """Names, beside those of this machine itself, that clients know the server by. A server without a key, or on
    loopback, answers to no others; one with a key answers to any unless some are named here."""
    origins: tuple[Origin, ...] = ()
    """Pages of other origins that may call, such as https://page.example; "*" is any, and needs a key."""

    @field_validator("keys")
    @classmethod
    def _place_of_keys_known(cls, url: str | None) -> str | None:
        if url is not None:
            place_of_keys(url)
        return url


class ServeArgs(Strict):
    """The application's arguments; replicas, CPUs, GPUs and autoscaling are Serve's own `deployments` section."""

    model_config = ConfigDict(hide_input_in_errors=True)  # somebody's credentials, where they do not belong

    preset: str = "tiny"
    """Name of a preset, or path of a preset YAML that every node can read."""
    weights: str | None = None
    """Folder with the weights, in place of the preset's own."""
    device: str = "cpu"
    together: bool = False
    """Whether one deployment, `Stages`, is all three stages in one process: less to carry for a small machine."""
    torch_threads: Positive = 1
    """Threads per replica; one keeps results equal bit for bit and several replicas out of each other's way."""
    voices: str = "data/voices"
    """Voice store: a folder that every replica can read, or `s3://bucket/prefix`."""
    sessions: str = "memory"
    """Where the records are by which a call comes back as it was: `memory` (of each ingress replica, for its own calls)
    or `redis://host:port/database`."""
    encoder: StageArgs = StageArgs()
    diffusion: StageArgs = StageArgs()
    vocoder: StageArgs = StageArgs()
    voice_stuck_after_s: Seconds = 300.0
    """The same of making one voice of a reference, for VoiceMaker."""
    voice_cache_mb: Positive = 256
    """Bound of the voices that a Diffusion replica keeps in memory."""
    limits: Limits = Limits()
    rtc: RtcArgs = RtcArgs()
    access: AccessArgs = AccessArgs()

    @property
    def ongoing_requests(self) -> int:
        """What Serve must let an ingress replica have at once (`max_ongoing_requests` of `Ingress`), so that uploads,
        refusals, calls and their listeners never keep a health check waiting."""
        return self.limits.max_uploads + MAX_REFUSING + self.rtc.max_calls + 2 * self.rtc.max_waiting + SHORT_REQUESTS

    def check_ongoing_requests(self, max_ongoing_requests: int) -> None:
        """ConfigError where uploads and calls could take all places that Serve gives an ingress replica."""
        if max_ongoing_requests < self.ongoing_requests:
            raise ConfigError(
                f"max_ongoing_requests of Ingress is {max_ongoing_requests}; with these limits at least "
                f"{self.ongoing_requests} are needed, else uploads and calls keep health checks waiting"
            )

    @field_validator("voices")
    @classmethod
    def _place_of_voices_known(cls, url: str) -> str:
        place_of(url)
        return url

    @field_validator("sessions")
    @classmethod
    def _place_of_sessions_known(cls, url: str) -> str:
        sessions_of(url)
        return url

    @model_validator(mode="after")
    def _device_known(self) -> ServeArgs:
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise ValueError(f"device is {self.device!r}; allowed are 'cpu', 'cuda' and 'cuda:N'")
        return self
