"""What is refused of recordings. Loads no codec."""

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000

READABLE = "wav, flac, mp3, ogg, opus, webm, m4a, aac, aiff or another common recording"


class NotAudio(ValueError):
    """The upload cannot be converted.

    `reason` is empty, not_audio, no_audio_track, not_finite, rate_change, rate, channels or too_complex.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives pickling between replicas
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


def check_rate(sample_rate: int | None) -> None:
    """NotAudio for a rate that no recording has: resamplers and buffers are sized by it."""
    if sample_rate is not None and not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        allowed = f"allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
        raise NotAudio("rate", f"the recording has a rate of {sample_rate} Hz; {allowed}")
