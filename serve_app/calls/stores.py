"""Which store of records the setting `sessions` means."""

from __future__ import annotations

import os

from configs.places import sessions_of
from serve_app.calls.records import MemoryRecords, Records
from serve_app.metrics import SessionStoreMetrics

USERNAME_ENV, PASSWORD_ENV = "SEEDVC_REDIS_USERNAME", "SEEDVC_REDIS_PASSWORD"


def open_records(url: str, metrics: SessionStoreMetrics) -> Records:
    """The records of the setting `sessions`; ConfigError for what is no place for them."""
    place = sessions_of(url)
    if place is None:
        return MemoryRecords()
    from serve_app.calls.redis_records import RedisRecords  # redis loads only where it is used

    username, password = (os.environ.get(name) or None for name in (USERNAME_ENV, PASSWORD_ENV))
    return RedisRecords.at(place, metrics, username=username, password=password)
