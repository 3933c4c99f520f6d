"""Sound to sound: blocks, encoder, diffusion, vocoder, stitching. torch lives here; no Ray, no network."""

from stages.checkpoints import WeightsError
from stages.geometry import MODEL_RATE, Geometry
from stages.local import LocalStages, load, set_threads
from stages.types import BadAudio, Voice

__all__ = ["MODEL_RATE", "BadAudio", "Geometry", "LocalStages", "Voice", "WeightsError", "load", "set_threads"]
