"""What a replica keeps of voices: read once, within its bound, and not beyond their deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from serve_app.errors import VoiceNotFound
from serve_app.voices import cache
from serve_app.voices.cache import VoiceCache
from serve_app.voices.folder import FolderVoiceStore
from stages.types import Voice
from tests.serve_app.calls.fakes import until
from tests.serve_app.voices.test_voices import RATE, some_record, some_sound, some_voice


class CountingStore(FolderVoiceStore):
    """Counts what is read of it."""

    reads = 0
    is_away = False

    def features(self, voice_id: str, fingerprint: str) -> Voice | None:
        self.reads += 1
        return super().features(voice_id, fingerprint)

    def stamps(self, voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        if self.is_away:
            raise OSError("stale file handle")
        return super().stamps(voice_ids, fingerprint)

    def add_voice(self, voice_id: str, value: float = 1.0) -> None:
        self.add(some_record(voice_id), some_sound(n_samples=800), RATE)
        self.save_features(voice_id, "f", some_voice(value))


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    store = CountingStore(tmp_path, premade=tmp_path / "none")
    store.add_voice("anna")
    return store


@pytest.fixture
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOOK_EVERY_S", 0.0)


def value(voice: Voice) -> float:
    return float(voice.live.mel[0, 0])


async def looked(voices: VoiceCache) -> None:
    """The store was looked at once more."""
    voices.look()
    if voices._looking is not None:
        await voices._looking


async def test_a_voice_is_read_once_however_many_want_it(store: CountingStore) -> None:
    voices = VoiceCache(store, "f", 2**20)
    got = await asyncio.gather(*[voices.get("anna") for _ in range(8)])
    assert {id(voice) for voice in got} == {id(got[0])} and store.reads == 1


async def test_what_is_not_there_is_not_found(store: CountingStore) -> None:
    voices = VoiceCache(store, "f", 2**20)
    for voice_id in ("nobody", "anna"):
        with pytest.raises(VoiceNotFound):
            await VoiceCache(store, "g", 2**20).get(voice_id)
    assert value(await voices.get("anna")) == 1.0


async def test_the_least_recently_used_goes_first(store: CountingStore) -> None:
    size = some_voice(1.0).n_bytes
    for voice_id in ("berta", "clara2"):
        store.add_voice(voice_id)
    voices = VoiceCache(store, "f", 2 * size)
    for voice_id in ("anna", "berta", "anna", "clara2", "anna", "clara2"):
        await voices.get(voice_id)
    assert store.reads == 3
    await voices.get("berta")
    assert store.reads == 4


@pytest.mark.usefixtures("look_always")
@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.delete("anna"),
        lambda store: next(store._voices.glob("anna/features-*")).unlink(),
    ],
    ids=["deleted", "features gone"],
)
async def test_a_voice_that_is_deleted_is_forgotten(
    store: CountingStore, change: Callable[[CountingStore], None]
) -> None:
    voices = VoiceCache(store, "f", 2**20)
    await voices.get("anna")
    change(store)
    await voices.get("anna")  # no block waits for the store
    await looked(voices)
    with pytest.raises(VoiceNotFound):
        await voices.get("anna")
    assert voices._n_bytes == 0


@pytest.mark.usefixtures("look_always")
async def test_another_voice_under_the_same_id_is_heard(store: CountingStore) -> None:
    voices = VoiceCache(store, "f", 2**20)
    await voices.get("anna")
    store.delete("anna")
    store.add_voice("anna", 2.0)
    await looked(voices)
    assert value(await voices.get("anna")) == 2.0


@pytest.mark.usefixtures("look_always")
async def test_a_storage_that_does_not_answer_takes_no_voice_away(store: CountingStore) -> None:
    voices = VoiceCache(store, "f", 2**20)
    await voices.get("anna")
    store.is_away = True
    await looked(voices)
    assert value(await voices.get("anna")) == 1.0 and store.reads == 1


async def test_the_store_is_looked_at_now_and_then_only(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, looks, stamps = [100.0], list[str](), store.stamps(["anna"], "f")

    def looked_at(voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        looks.extend(voice_ids)
        return stamps

    monkeypatch.setattr(cache, "monotonic", lambda: now_s[0])
    voices = VoiceCache(store, "f", 2**20)
    await voices.get("anna")
    monkeypatch.setattr(store, "stamps", looked_at)
    for _ in range(20):
        now_s[0] += 0.4
        await voices.get("anna")
        await until(lambda: voices._looking is None or voices._looking.done(), "the look is over")
    assert 3 <= len(looks) <= 5
