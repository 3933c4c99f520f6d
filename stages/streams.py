"""Opens conversions: a preset's settings and its stages, applied to a voice."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import Mode, Preset
from stages.call import CallStream
from stages.line import BlockLine
from stages.recording import Compute, FileSampling, LiveRecordingStream, RecordingStream, at_once
from stages.settings import CallSettings
from stages.types import Outcome, Stages, StoredVoice, Voice


class Streams:
    """One preset's conversions over its stages, in this process or on a cluster.

    `seed` decides the start noise: the same seed makes the same sound. `steps` None takes the preset's own. `compute`
    is where recordings compute what the networks do not.
    """

    def __init__(
        self,
        preset: Preset,
        stages: Stages,
        observe: Callable[[Outcome], None] | None = None,
        compute: Compute = at_once,
    ) -> None:
        self._preset, self._stages, self._observe, self._compute = preset, stages, observe, compute

    @property
    def recording_steps(self) -> int | None:
        """Steps of a recording where none are asked for; None where any number is rendered in one."""
        return None if self._preset.renders_in_one else self._preset.file.steps

    def recording(
        self,
        voice: Voice | StoredVoice,
        *,
        sample_rate: int,
        seed: int = 0,
        steps: int | None = None,
        length_adjust: float = 1.0,
        streaming: bool = False,
    ) -> RecordingStream:
        """A recording through long chunks; `streaming` takes shorter ones, to begin before the recording has ended."""
        settings = self._preset.file
        sampling = FileSampling(seed, steps or settings.steps, settings.cfg_rate, length_adjust)
        return RecordingStream(
            self._stages,
            as_sent(voice),
            voice.file_frames,
            settings,
            sampling,
            sample_rate,
            streaming,
            self._compute,
        )

    def live_recording(
        self,
        voice: Voice | StoredVoice | str,
        *,
        sample_rate: int,
        seed: int = 0,
        steps: int | None = None,
        mode: Mode = "lowest",
        block_ms: int | None = None,
    ) -> LiveRecordingStream:
        """A recording through the line of a call; `block_ms` None takes the mode's own."""
        live = self._preset.live
        settings = CallSettings.of(live, as_sent(voice), mode=mode, block_ms=block_ms, steps=steps)
        return LiveRecordingStream(self._stages, BlockLine(live, settings, seed=seed), sample_rate)

    def call(
        self,
        voice: Voice | StoredVoice | str,
        *,
        mode: Mode = "lowest",
        block_ms: int | None = None,
        steps: int | None = None,
        bypass: bool = False,
        seed: int = 0,
    ) -> CallStream:
        """A call in the running event loop; ConfigError where a setting cannot work."""
        live = self._preset.live
        settings = CallSettings.of(live, as_sent(voice), mode=mode, block_ms=block_ms, steps=steps, bypass=bypass)
        return CallStream(self._stages, live, settings, seed=seed, observe=self._observe)


def as_sent(voice: Voice | StoredVoice | str) -> Voice | str:
    """The voice for requests: itself, or the id by which the stages find it in a store."""
    return voice.voice_id if isinstance(voice, StoredVoice) else voice
