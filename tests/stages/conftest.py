from __future__ import annotations

import pytest

from configs import load_preset
from stages.checkpoints import Checkpoint, open_checkpoint
from stages.geometry import MODEL_RATE
from stages.local import LocalStages
from stages.types import Voice
from tests.stages.golden import TINY_MODEL, tensors
from tests.stages.sounds import quick_preset


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The fixtures' reduced model in upstream's file layout."""
    return open_checkpoint(load_preset("seed-vc-small"), TINY_MODEL)


@pytest.fixture(scope="session")
def golden_stages(checkpoint: Checkpoint) -> LocalStages:
    return LocalStages(load_preset("seed-vc-small"), checkpoint)


@pytest.fixture(scope="session")
def quick_stages(checkpoint: Checkpoint) -> LocalStages:
    return LocalStages(quick_preset(), checkpoint)


@pytest.fixture(scope="session")
def quick_voice(quick_stages: LocalStages) -> Voice:
    return quick_stages.voice(tensors("e2e_block_synth")["reference_wav"].numpy(), MODEL_RATE)
