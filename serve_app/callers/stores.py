"""Which store of keys a URL means."""

from __future__ import annotations

from configs.places import RedisPlace, place_of_keys
from configs.schema import ConfigError
from serve_app.callers.file_store import FileKeys
from serve_app.callers.store import KeysAway, KeyStore


def open_keys(url: str) -> KeyStore:
    """The store at a file's path or at redis://host:port/database; ConfigError for what is neither."""
    place = place_of_keys(url)
    if isinstance(place, RedisPlace):
        from serve_app.callers.redis_store import RedisKeys  # loads only where it is used

        return RedisKeys(place)
    return FileKeys(place)


def checked_keys(url: str) -> KeyStore:
    """The same for a server that starts: a file has to be there. Redis may come later."""
    store = open_keys(url)
    if isinstance(store, FileKeys):
        try:
            store.read()
        except KeysAway as error:
            raise ConfigError(f"access.keys: {error.reason}; `seedvc keys add` makes such a file") from error
    return store
