"""Which store of records the setting `sessions` means."""

from __future__ import annotations

import os

from configs.places import REDIS_PASSWORD_ENV, REDIS_USERNAME_ENV, sessions_of
from serve_app.calls.records import MemoryRecords, Records
from serve_app.metrics import SessionStoreMetrics


def open_records(url: str, metrics: SessionStoreMetrics) -> Records:
    """The records of the setting `sessions`; ConfigError for what is no place for them."""
    place = sessions_of(url)
    if place is None:
        return MemoryRecords()
    from serve_app.calls.redis_records import RedisRecords  # redis loads only where it is used

    username, password = (os.environ.get(name) or None for name in (REDIS_USERNAME_ENV, REDIS_PASSWORD_ENV))
    return RedisRecords.at(place, metrics, username=username, password=password)
