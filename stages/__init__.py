"""Sound to sound: blocks, encoder, diffusion, vocoder, stitching. torch lives here; no Ray, no network.

Mono samples come in and go out. Imports `configs` only. Importing this package, or its types, loads no network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.checkpoints import WeightsError
    from stages.geometry import MODEL_RATE, Geometry
    from stages.local import LocalStages, load, set_threads
    from stages.types import BadAudio, Voice

__all__ = ["MODEL_RATE", "BadAudio", "Geometry", "LocalStages", "Voice", "WeightsError", "load", "set_threads"]

_HOME_OF = {
    "BadAudio": "types",
    "Geometry": "geometry",
    "LocalStages": "local",
    "MODEL_RATE": "geometry",
    "Voice": "types",
    "WeightsError": "checkpoints",
    "load": "local",
    "set_threads": "local",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it. The first name that needs torch loads torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stages' has no attribute {name!r}")
    return getattr(import_module(f"stages.{_HOME_OF[name]}"), name)
