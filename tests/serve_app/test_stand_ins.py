"""`seedvc serve --stand-ins`, which `make serve-redis` runs: a replica dies, and its call comes back on the other."""

from __future__ import annotations

START_TIMEOUT_S = 120.0
BACK_WITHIN_S = 60.0
HEARD_S = 2.0
