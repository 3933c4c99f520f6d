"""Recordings in and out: bytes of any container to float32 mono and back.

Knows nothing of calls; imports `configs` only. Importing a part of it loads no codec that the part does without.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from webrtc.files.codecs import Samples
    from webrtc.files.decode import RecordingDecoder
    from webrtc.files.encode import RecordingEncoder, encode_file
    from webrtc.files.errors import NotAudio
    from webrtc.files.formats import OUTPUT_FORMATS, OutputFormat

__all__ = [
    "OUTPUT_FORMATS",
    "RecordingDecoder",
    "RecordingEncoder",
    "NotAudio",
    "OutputFormat",
    "decode_file",
    "encode_file",
]

_HOME_OF = {
    "RecordingDecoder": "decode",
    "RecordingEncoder": "encode",
    "NotAudio": "errors",
    "OUTPUT_FORMATS": "formats",
    "OutputFormat": "formats",
    "encode_file": "encode",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'webrtc.files' has no attribute {name!r}")
    return getattr(import_module(f"webrtc.files.{_HOME_OF[name]}"), name)


def decode_file(source: str | Path | bytes) -> tuple[Samples, int]:
    """All samples of a file, or of a file's bytes, and their rate in Hz."""
    from webrtc.files.decode import RecordingDecoder

    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    with RecordingDecoder() as decoder:
        chunks = [*decoder.feed(data), *decoder.finish()]
    return np.concatenate([samples for samples, _ in chunks]), chunks[0][1]
