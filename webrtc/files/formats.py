"""The output formats that a client may ask for, named as the ElevenLabs API names them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputFormat:
    """One `output_format` value: codec, rate in Hz, bit rate in bit/s where the codec has one."""

    name: str
    codec: str
    sample_rate: int
    bit_rate: int | None
    media_type: str
    extension: str


_MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "pcm": "audio/pcm",
    "wav": "audio/wav",
    "ulaw": "audio/basic",
    "alaw": "audio/PCMA",
}
_NAMES = (
    "alaw_8000",
    *("mp3_22050_32", "mp3_24000_48"),
    *(f"mp3_44100_{kbit}" for kbit in (32, 64, 96, 128, 192)),
    *(f"opus_48000_{kbit}" for kbit in (32, 64, 96, 128, 192)),
    *(f"pcm_{rate}" for rate in (8000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "ulaw_8000",
    *(f"wav_{rate}" for rate in (8000, 16000, 22050, 24000, 32000, 44100, 48000)),
)


def _parse(name: str) -> OutputFormat:
    codec, rate, *kbit = name.split("_")
    bit_rate = int(kbit[0]) * 1000 if kbit else None
    return OutputFormat(name, codec, int(rate), bit_rate, _MEDIA_TYPES[codec], codec)


OUTPUT_FORMATS: dict[str, OutputFormat] = {name: _parse(name) for name in _NAMES}
