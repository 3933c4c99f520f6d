"""What is refused of recordings. Loads no codec."""

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
