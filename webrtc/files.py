"""Recordings in and out: the file codecs under one name."""

from pathlib import Path

import numpy as np

from webrtc.codecs import Samples
from webrtc.decode import Decoder
from webrtc.demux import NotAudio
from webrtc.encode import Encoder, encode_file
from webrtc.formats import OUTPUT_FORMATS, OutputFormat

__all__ = ["OUTPUT_FORMATS", "Decoder", "Encoder", "NotAudio", "OutputFormat", "decode_file", "encode_file"]


def decode_file(source: str | Path | bytes) -> tuple[Samples, int]:
    """All samples of a file, or of a file's bytes, and their rate in Hz."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    with Decoder() as decoder:
        chunks = [*decoder.feed(data), *decoder.finish()]
    return np.concatenate([samples for samples, _ in chunks]), chunks[0][1]
