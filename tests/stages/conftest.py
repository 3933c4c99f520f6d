from __future__ import annotations

import pytest

from configs import load_preset
from stages.checkpoints import Checkpoint, open_checkpoint
from stages.local import LocalStages
from tests.stages.golden import TINY_MODEL


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The fixtures' reduced model in upstream's file layout."""
    return open_checkpoint(load_preset("seed-vc-small"), TINY_MODEL)


@pytest.fixture(scope="session")
def golden_stages(checkpoint: Checkpoint) -> LocalStages:
    return LocalStages(load_preset("seed-vc-small"), checkpoint)
