"""Each voice store: no half-written voice is ever seen, ids stay inside, premade voices as they are."""

import errno
import json
import logging
import os
import pickle
import shutil
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import pytest

from configs.places import BucketPlace
from serve_app.errors import (
    InvalidVoiceId,
    NotStored,
    StoreAway,
    VoiceDamaged,
    VoiceExists,
    VoiceIsReadOnly,
    VoiceNotFound,
)
from serve_app.voices import folder as voices
from serve_app.voices.base import BaseVoiceStore
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.premade import PREMADE_FOLDER
from serve_app.voices.s3 import S3VoiceStore
from serve_app.voices.store import VoiceRecord, as_stored, new_voice_id, wav_of
from serve_app.voices.stores import open_voice_store
from stages.types import Prompt, Voice
from tests.serve_app.buckets import BucketServer, client

RATE = 16000
NOBODY = 65534


def some_sound(seed: int = 0, n_samples: int = RATE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)


def some_voice(value: float, fingerprint: str = "f") -> Voice:
    prompt = Prompt(
        np.full((80, 4), value, np.float32),
        np.full((4, 8), value, np.float32),
        np.zeros(192, np.float32),
        np.ones(1, np.float32),
        np.ones((80, 81), np.float32),
    )
    return Voice(prompt, prompt, fingerprint)


def some_record(voice_id: str = "anna", name: str = "Anna") -> VoiceRecord:
    return VoiceRecord(
        voice_id, name, description="calm", labels={"accent": "none"}, created_at_unix=7, sample_rate=RATE
    )


class Storage(Protocol):
    """What lies behind a store, for what a test does behind its back."""

    def open(self, premade: Path | None = None) -> BaseVoiceStore:
        """A store as another process has it; `premade`: a folder of premade voices."""

    def names(self) -> list[str]:
        """All files, with the id of the voice in each."""

    def read(self, name: str) -> bytes:
        """One of them."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces one of them, or makes it."""

    def remove(self, name: str) -> None:
        """Removes one of them."""

    def record(self, voice_id: str) -> str:
        """The file that holds a record."""


@dataclass(frozen=True)
class Folder:
    root: Path

    def open(self, premade: Path | None = None) -> FolderVoiceStore:
        return FolderVoiceStore(self.root / "store", premade or self.root / "none")

    def names(self) -> list[str]:
        store = self.root / "store"
        return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        return (self.root / "store" / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / "store" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / "store" / name).unlink()

    def record(self, voice_id: str) -> str:
        return f"voices/{voice_id}/record.json"


@dataclass(frozen=True)
class Bucket:
    root: Path
    place: BucketPlace

    def open(self, premade: Path | None = None) -> S3VoiceStore:
        return S3VoiceStore(self.place, premade or self.root / "none")

    def names(self) -> list[str]:
        pages = client(self.place).get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        assert all(key.startswith(self.place.prefix) for key in keys)
        return sorted(key.removeprefix(self.place.prefix) for key in keys)

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": f"{self.place.prefix}{name}"}

    def read(self, name: str) -> bytes:
        data: bytes = client(self.place).get_object(**self._object(name))["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        client(self.place).put_object(**self._object(name), Body=data)

    def remove(self, name: str) -> None:
        client(self.place).delete_object(**self._object(name))

    def record(self, voice_id: str) -> str:
        return f"records/{voice_id}.json"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Folder(tmp_path)
    return Bucket(tmp_path, request.getfixturevalue("buckets").new_bucket())


@pytest.fixture
def store(storage: Storage) -> BaseVoiceStore:
    return storage.open()


@pytest.fixture
def folder(tmp_path: Path) -> FolderVoiceStore:
    """For what only a folder can have."""
    return FolderVoiceStore(tmp_path / "store", premade=tmp_path / "none")


def files_of(storage: Storage, voice_id: str) -> list[str]:
    return [name for name in storage.names() if voice_id in name]


def test_what_is_added_comes_back(store: BaseVoiceStore) -> None:
    sound = as_stored(some_sound())
    store.add(some_record(), sound, RATE)
    assert store.get("anna") == some_record()
    assert store.list() == [some_record()]
    samples, rate = store.reference("anna")
    assert rate == RATE
    np.testing.assert_array_equal(samples, sound)


def test_storing_is_idempotent_and_clips() -> None:
    loud = np.array([2.0, -2.0, 1.0, 0.3], np.float32)
    once = as_stored(loud)
    np.testing.assert_array_equal(as_stored(once), once)
    assert np.abs(once).max() == 1.0


def test_another_process_sees_the_same_voices(store: BaseVoiceStore, storage: Storage) -> None:
    store.add(some_record(), some_sound(), RATE)
    other = storage.open()
    assert other.list() == store.list()
    other.delete("anna")
    assert store.list() == []


def test_a_deleted_voice_is_gone_with_its_features(store: BaseVoiceStore) -> None:
    store.add(some_record(), some_sound(), RATE)
    store.save_features("anna", "f", some_voice(1.0))
    store.delete("anna")
    calls: list[Callable[[], object]] = [
        lambda: store.get("anna"),
        lambda: store.reference("anna"),
        lambda: store.features("anna", "f"),
        lambda: store.save_features("anna", "f", some_voice(1.0)),
        lambda: store.delete("anna"),
    ]
    for call in calls:
        with pytest.raises(VoiceNotFound, match="anna"):
            call()
    store.add(some_record(), some_sound(), RATE)
    assert store.features("anna", "f") is None, "the features of a deleted voice do not come back with its id"


def test_a_record_changes_and_the_rest_stays(store: BaseVoiceStore, storage: Storage) -> None:
    store.add(some_record(), some_sound(), RATE)
    store.save_features("anna", "f", some_voice(1.0))
    before = store.reference("anna")[0]
    changed = store.update("anna", {"name": "Berta", "labels": {}})
    assert changed == store.get("anna") == replace(some_record(), name="Berta", labels={})
    assert store.features("anna", "f") is not None
    np.testing.assert_array_equal(store.reference("anna")[0], before)
    assert len(storage.names()) == 3, "record, recording and features"
    store.delete("anna")
    with pytest.raises(VoiceNotFound, match="anna"):
        store.update("anna", {"name": "Clara"})
    assert store.list() == [] and storage.names() == []


def test_a_premade_record_cannot_be_changed() -> None:
    with TemporaryDirectory() as folder, pytest.raises(VoiceIsReadOnly, match="clara"):
        FolderVoiceStore(Path(folder)).update("clara", {"name": "Mine"})


def test_readers_meet_whole_records_while_they_change(store: BaseVoiceStore) -> None:
    store.add(some_record(), some_sound(), RATE)
    with ThreadPoolExecutor(4) as pool:
        changes = [pool.submit(store.update, "anna", {"name": f"name {i}" * 50}) for i in range(20)]
        while not all(change.done() for change in changes):
            assert store.get("anna").description == "calm"
        for change in changes:
            change.result()


def test_a_taken_id_is_refused_and_the_first_voice_kept(store: BaseVoiceStore) -> None:
    store.add(some_record(), some_sound(1), RATE)
    before = store.reference("anna")[0]
    with pytest.raises(VoiceExists):
        store.add(some_record(name="Other"), some_sound(2), RATE)
    assert store.get("anna").name == "Anna"
    np.testing.assert_array_equal(store.reference("anna")[0], before)


def test_features_are_kept_for_each_fingerprint(store: BaseVoiceStore) -> None:
    store.add(some_record(), some_sound(), RATE)
    assert store.features("anna", "one") is None
    store.save_features("anna", "one", some_voice(1.0, "one"))
    store.save_features("anna", "two", some_voice(2.0, "two"))
    store.save_features("anna", "two", some_voice(3.0, "two"))
    one, two = store.features("anna", "one"), store.features("anna", "two")
    assert one is not None and two is not None
    assert one.fingerprint == "one" and one.live.mel[0, 0] == 1.0
    assert two.fingerprint == "two" and two.file.mel[0, 0] == 3.0, "saved again: the newer one counts"


@pytest.mark.parametrize(
    "voice_id",
    ["", ".", "..", "../anna", "a/b", "a\\b", "/etc/passwd", "a\x00b", "a b", "anna\n", "ä", "x" * 65, "%2e%2e"],
)
def test_an_id_that_could_leave_the_folder_is_refused(store: BaseVoiceStore, voice_id: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(voice_id),
        lambda: store.delete(voice_id),
        lambda: store.reference(voice_id),
        lambda: store.features(voice_id, "f"),
        lambda: store.save_features(voice_id, "f", some_voice(1.0)),
        lambda: store.add(some_record(voice_id), some_sound(), RATE),
    ]
    for call in calls:
        with pytest.raises(InvalidVoiceId):
            call()


def junk_file(folder: Path) -> None:
    folder.write_bytes(b"words")


def empty_folder(folder: Path) -> None:
    folder.mkdir()


def link_to_itself(folder: Path) -> None:
    folder.symlink_to(folder.name)


def folder_in_place_of_the_record(folder: Path) -> None:
    (folder / "record.json").mkdir(parents=True)


def pipe_in_place_of_the_record(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "record.json")


def record_that_links_to_itself(folder: Path) -> None:
    folder.mkdir()
    (folder / "record.json").symlink_to("record.json")


BAD_FOLDERS = {
    "a file": junk_file,
    "an empty folder": empty_folder,
    "a link to itself": link_to_itself,
    "a folder for a record": folder_in_place_of_the_record,
    "a pipe for a record": pipe_in_place_of_the_record,
    "a record that links to itself": record_that_links_to_itself,
}


def record_with(**fields: object) -> bytes:
    return json.dumps({"voice_id": "bad", "name": "Secret Name", "home": f"{'0' * 64}-{'0' * 16}", **fields}).encode()


BAD_RECORDS = {
    "an empty record": b"",
    "a record cut off": b'{"voice_id": "bad", "na',
    "a record in another coding": '{"voice_id": "bad", "name": "Zo\xe9"}'.encode("latin-1"),
    "half a character": b'{"voice_id": "bad", "name": "\\ud800"}',
    "a list": b'["bad"]',
    "a word": b'"bad"',
    "nothing": b"null",
    "a deep list": b"[" * 100_000,
    "a huge record": b" " * 2**20 + b"{}",
    "no name": b'{"voice_id": "bad"}',
    "a number for a name": record_with(name=7),
    "a word for labels": record_with(labels="deep"),
    "a number for a label": record_with(labels={"age": 7}),
    "a word for a time": record_with(created_at_unix="yesterday"),
    "another category": record_with(category="bought"),
    "a time without end": record_with(expires_s=10**400),
    "a time before all": record_with(expires_s=-5),
    "a date without end": record_with(created_at_unix=10**400),
    "no number": record_with(reference={"speech_s": float("nan")}),
    "a number beyond all": b'{"voice_id": "bad", "name": "Secret Name", "reference": {"speech_s": 1e400}}',
}
BAD_HOMES = {"no home": None, "a number for a home": 7, "the home of another": "../anna", "an empty home": ""}


@pytest.mark.parametrize("spoil", BAD_FOLDERS.values(), ids=list(BAD_FOLDERS))
def test_one_bad_folder_is_left_out_and_told_once(
    folder: FolderVoiceStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    folder.add(some_record(), some_sound(), RATE)
    spoil(tmp_path / "store" / "voices" / "bad")
    bad_is_left_out_and_goes(folder, caplog)
    assert [path.name for path in (tmp_path / "store" / "voices").iterdir()] == ["anna"]
    assert not list((tmp_path / "store" / "scratch").iterdir())


@pytest.mark.parametrize("data", BAD_RECORDS.values(), ids=list(BAD_RECORDS))
def test_one_bad_record_is_left_out_and_told_once(
    store: BaseVoiceStore, storage: Storage, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    store.add(some_record(), some_sound(), RATE)
    store.add(some_record("bad"), some_sound(), RATE)
    storage.write(storage.record("bad"), data)
    bad_is_left_out_and_goes(store, caplog)
    assert files_of(storage, "bad") == []


@pytest.mark.parametrize("home", BAD_HOMES.values(), ids=list(BAD_HOMES))
def test_a_record_that_leads_elsewhere_is_bad(
    buckets: BucketServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, home: object
) -> None:
    bucket = Bucket(tmp_path, buckets.new_bucket())
    store = bucket.open()
    store.add(some_record(), some_sound(), RATE)
    bucket.write("records/bad.json", record_with(home=home))
    bad_is_left_out_and_goes(store, caplog)
    assert store.reference("anna")


def bad_is_left_out_and_goes(store: BaseVoiceStore, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert [record.voice_id for record in store.list()] == ["anna"]
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "bad" in told and "Secret Name" not in told
    with pytest.raises(VoiceDamaged, match="'bad' is damaged"):
        store.get("bad")
    assert sorted(store.ids()) == ["anna", "bad"]
    store.delete("bad")
    assert store.ids() == ["anna"]


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Gives the folder to a user who is not root, and is that user for a while: root reads everything."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("locked", [".", "record.json"])
def test_an_entry_that_may_not_be_read_is_left_out(locked: str) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:  # pytest's own folders are root's alone
        root = Path(name)
        store = FolderVoiceStore(root / "store", root / "none")
        store.add(some_record(), some_sound(), RATE)
        store.add(some_record("bad"), some_sound(), RATE)
        with as_nobody(root):
            (root / "store" / "voices" / "bad" / locked).chmod(0)
            assert [record.voice_id for record in store.list()] == ["anna"]
            store.delete("bad")
            assert not list((root / "store" / "scratch").iterdir()), "the recording does not stay behind"


def test_what_is_no_voice_at_all_is_passed_over(store: BaseVoiceStore, storage: Storage) -> None:
    kind = storage.record("x").replace("x", "{}").removesuffix("/record.json")
    for name in (".DS_Store", "lost found", "x" * 65):
        storage.write(kind.format(name), b"")
    assert store.list() == [] and store.ids() == []


def test_an_own_voice_does_not_double_a_premade_one(storage: Storage) -> None:
    store = storage.open(PREMADE_FOLDER)
    storage.write(storage.record("clara"), record_with(voice_id="clara"))
    assert [record.voice_id for record in store.list()].count("clara") == 1 and store.ids() == []


def test_a_record_of_another_version_is_read_and_kept_whole(store: BaseVoiceStore, storage: Storage) -> None:
    store.add(some_record(), some_sound(), RATE)
    name, more = storage.record("anna"), {"pronouns": "she", "unknown": {"a": [1]}}
    written = {**json.loads(storage.read(name)), **more}
    storage.write(name, json.dumps(written).encode())
    (read,) = store.list()
    assert (read.name, read.labels, read.unknown) == ("Anna", {"accent": "none"}, more)
    store.update("anna", {"name": "Berta"})
    assert json.loads(storage.read(name)) == written | {"name": "Berta"}


def test_a_copied_folder_is_a_voice_of_its_own(folder: FolderVoiceStore, tmp_path: Path) -> None:
    folder.add(some_record(), some_sound(), RATE)
    shutil.copytree(tmp_path / "store" / "voices" / "anna", tmp_path / "store" / "voices" / "berta")
    assert [record.voice_id for record in folder.list()] == ["anna", "berta"]


def test_a_crash_while_adding_leaves_nothing_to_see(folder: FolderVoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(voices, "_write", full_disk)
        with pytest.raises(OSError, match="no space"):
            folder.add(some_record(), some_sound(), RATE)
    assert folder.list() == []
    folder.add(some_record(), some_sound(), RATE)
    assert folder.list() == [some_record()]


def test_a_crash_while_saving_features_keeps_the_old_ones(
    folder: FolderVoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.add(some_record(), some_sound(), RATE)
    folder.save_features("anna", "f", some_voice(1.0))

    def half_saved(path: Path, data: bytes) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(voices, "_write", half_saved)
        with pytest.raises(OSError, match="no space"):
            folder.save_features("anna", "f", some_voice(2.0))
    kept = folder.features("anna", "f")
    assert kept is not None and kept.live.mel[0, 0] == 1.0


def cut_off(data: bytes) -> bytes:
    return data[:-7]


def emptied(data: bytes) -> bytes:
    return b""


def words(data: bytes) -> bytes:
    return b"words " * 100


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_bytes(b"")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def of_other_weights(data: bytes) -> bytes:
    return some_voice(1.0, "other").to_bytes()


def not_numbers(data: bytes) -> bytes:
    return some_voice(float("nan")).to_bytes()


def another_form(data: bytes) -> bytes:
    voice = some_voice(1.0)
    return Voice(replace(voice.live, condition=np.ones((3, 8), np.float32)), voice.file, "f").to_bytes()


def another_type(data: bytes) -> bytes:
    voice = some_voice(1.0)
    return Voice(replace(voice.live, mel=np.ones((80, 4), np.float64)), voice.file, "f").to_bytes()


SPOILED_FEATURES = [cut_off, emptied, words, of_other_weights, not_numbers, another_form, another_type]


@pytest.mark.parametrize("spoil", [a_folder, a_pipe, a_loop])
def test_what_stands_in_place_of_features_is_replaced(
    folder: FolderVoiceStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    folder.add(some_record(), some_sound(), RATE)
    folder.save_features("anna", "f", some_voice(1.0))
    spoil(tmp_path / "store" / "voices" / "anna" / "features-f.safetensors")
    damaged_features_count_as_none_and_are_replaced(folder, "anna", caplog)


@pytest.mark.parametrize("spoil", SPOILED_FEATURES)
@pytest.mark.parametrize("voice_id", ["anna", "clara"])
def test_damaged_features_count_as_none_and_are_replaced(
    storage: Storage, caplog: pytest.LogCaptureFixture, spoil: Callable[[bytes], bytes], voice_id: str
) -> None:
    store = storage.open(PREMADE_FOLDER)
    store.add(some_record(), some_sound(), RATE)
    store.save_features(voice_id, "f", some_voice(1.0))
    (name,) = [name for name in files_of(storage, voice_id) if "features-f" in name]
    storage.write(name, spoil(storage.read(name)))
    damaged_features_count_as_none_and_are_replaced(store, voice_id, caplog)
    assert store.list()[-1].voice_id == "anna"


def damaged_features_count_as_none_and_are_replaced(
    store: BaseVoiceStore, voice_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert store.features(voice_id, "f") is None
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert voice_id in told
    store.save_features(voice_id, "f", some_voice(2.0))
    made = store.features(voice_id, "f")
    assert made is not None and made.live.mel[0, 0] == 2.0


@pytest.mark.parametrize("spoil", [a_folder, a_pipe, a_loop])
def test_what_stands_in_place_of_a_recording_is_told(
    folder: FolderVoiceStore, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder.add(some_record(), some_sound(), RATE)
    spoil(tmp_path / "store" / "voices" / "anna" / "reference.wav")
    with pytest.raises(VoiceDamaged, match="'anna' is damaged"):
        folder.reference("anna")


@pytest.mark.parametrize("spoil", [None, cut_off, emptied, words])
def test_a_damaged_recording_is_told_as_such(
    store: BaseVoiceStore, storage: Storage, spoil: Callable[[bytes], bytes] | None
) -> None:
    store.add(some_record(), some_sound(), RATE)
    store.save_features("anna", "f", some_voice(1.0))
    (name,) = [name for name in files_of(storage, "anna") if name.endswith("reference.wav")]
    if spoil is None:
        storage.remove(name)
    else:
        storage.write(name, spoil(storage.read(name)))
    with pytest.raises(VoiceDamaged, match="'anna' is damaged"):
        store.reference("anna")
    assert store.list() == [some_record()]
    assert store.features("anna", "f") is not None, "what was made of it is still good"


def test_a_recording_of_another_kind_is_not_read_as_ours(folder: FolderVoiceStore, tmp_path: Path) -> None:
    folder.add(some_record(), some_sound(), RATE)
    for channels, width in ((2, 2), (1, 1), (1, 4)):
        with wave.open(str(tmp_path / "store" / "voices" / "anna" / "reference.wav"), "wb") as file:
            file.setparams((channels, width, RATE, 0, "NONE", ""))
            file.writeframes(bytes(8000))
        with pytest.raises(VoiceDamaged):
            folder.reference("anna")


@pytest.mark.parametrize("rate", [1, 3999, 400_000, 2**31 - 1])
def test_a_recording_of_a_rate_that_none_has_is_damaged(folder: FolderVoiceStore, tmp_path: Path, rate: int) -> None:
    folder.add(some_record(), some_sound(), RATE)
    with wave.open(str(tmp_path / "store" / "voices" / "anna" / "reference.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with pytest.raises(VoiceDamaged):
        folder.reference("anna")


def premade_with(folder: Path, storage: Storage, sound: np.ndarray) -> BaseVoiceStore:
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "nora.wav").write_bytes(wav_of(sound, RATE))
    (folder / "samples.yaml").write_text("- {id: nora, name: Nora}\n")
    return storage.open(folder / "samples")


def test_a_premade_voice_of_another_recording_gets_other_features(storage: Storage, tmp_path: Path) -> None:
    before = premade_with(tmp_path, storage, some_sound(1))
    before.save_features("nora", "f", some_voice(1.0))
    assert premade_with(tmp_path, storage, some_sound(1)).features("nora", "f") is not None
    after = premade_with(tmp_path, storage, some_sound(2))
    assert after.features("nora", "f") is None
    after.save_features("nora", "f", some_voice(2.0))
    made = after.features("nora", "f")
    assert made is not None and made.live.mel[0, 0] == 2.0


def test_a_stamp_changes_with_the_voice_and_goes_with_it(store: BaseVoiceStore) -> None:
    for name in ("anna", "berta"):
        store.add(some_record(name), some_sound(), RATE)
        store.save_features(name, "f", some_voice(1.0))
    first = store.stamps(["anna", "berta", "nobody"], "f")
    assert first.keys() == {"anna", "berta"} and store.stamps(first, "f") == first
    store.delete("anna")
    assert store.stamps(first, "f") == {"berta": first["berta"]}
    store.add(some_record("anna"), some_sound(1), RATE)
    store.save_features("anna", "f", some_voice(1.0))
    again = store.stamps(first, "f")
    assert again["anna"] != first["anna"] and again["berta"] == first["berta"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_storage_that_takes_nothing_says_so(
    folder: FolderVoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder.add(some_record("berta"), some_sound(), RATE)

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    changes: list[Callable[[], object]] = [
        lambda: folder.add(some_record(), some_sound(), RATE),
        lambda: folder.save_features("berta", "f", some_voice(1.0)),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for change in changes:
            with pytest.raises(NotStored, match=f"cannot be changed now: {os.strerror(code)}"):
                change()
    assert [record.voice_id for record in folder.list()] == ["berta"]
    assert folder.features("berta", "f") is None
    assert not list((tmp_path / "store" / "scratch").iterdir())


def test_a_storage_that_is_away_has_not_forgotten_its_voices(folder: FolderVoiceStore, tmp_path: Path) -> None:
    folder.add(some_record(), some_sound(), RATE)
    folder.save_features("anna", "f", some_voice(1.0))
    (tmp_path / "store" / "voices").rename(tmp_path / "away")
    calls: list[Callable[[], object]] = [
        folder.list,
        lambda: folder.get("anna"),
        lambda: folder.reference("anna"),
        lambda: folder.features("anna", "f"),
        lambda: folder.stamps(["anna"], "f"),
        lambda: folder.save_features("anna", "f", some_voice(1.0)),
        lambda: folder.delete("anna"),
    ]
    for call in calls:
        with pytest.raises(StoreAway, match="does not answer"):
            call()
    (tmp_path / "away").rename(tmp_path / "store" / "voices")
    assert folder.list() == [some_record()]


def test_a_deletion_that_a_crash_broke_off_is_finished_at_the_next_start(
    folder: FolderVoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.add(some_record(), some_sound(), RATE)
    with monkeypatch.context() as patch:
        patch.setattr(voices, "_discard", lambda path: None)
        folder.delete("anna")
    scratch = tmp_path / "store" / "scratch"
    assert list(scratch.rglob("reference.wav"))
    FolderVoiceStore(tmp_path / "store", premade=tmp_path / "none")
    assert not list(scratch.iterdir())


def test_starting_while_voices_are_deleted_hinders_no_deletion(folder: FolderVoiceStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for i in range(50):
            folder.add(some_record(f"v{i}"), some_sound(n_samples=800), RATE)
        starting = pool.submit(lambda: [FolderVoiceStore(tmp_path / "store", tmp_path / "none") for _ in range(50)])
        for i in range(50):
            folder.delete(f"v{i}")
        starting.result()
    assert folder.list() == [] and not list((tmp_path / "store" / "scratch").iterdir())


def test_leftovers_of_a_crash_are_swept_once_they_are_old(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for name, age_s in (("old", 7200), ("young", 60)):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "reference.wav").write_bytes(b"half")
        then_s = scratch.stat().st_mtime - age_s
        os.utime(scratch / name, (then_s, then_s))
    FolderVoiceStore(tmp_path, premade=tmp_path / "none")
    assert [path.name for path in scratch.iterdir()] == ["young"]


def test_adding_deleting_and_reading_at_once_never_shows_half_a_voice(store: BaseVoiceStore) -> None:
    ids = [f"voice-{i}" for i in range(4)]
    stop = threading.Event()
    added: list[str] = []
    deleted: list[str] = []

    def churn(voice_id: str, seed: int) -> None:
        for _ in range(25 if isinstance(store, FolderVoiceStore) else 5):
            try:
                store.add(some_record(voice_id), some_sound(seed, 800), RATE)
                added.append(voice_id)
                store.save_features(voice_id, "f", some_voice(seed))
            except (VoiceExists, VoiceNotFound):
                pass
            try:
                store.delete(voice_id)
                deleted.append(voice_id)
            except VoiceNotFound:
                pass

    def read() -> int:
        seen = 0
        while not stop.is_set():
            for record in store.list():
                assert record.name == "Anna"
                try:
                    assert len(store.reference(record.voice_id)[0]) == 800
                    store.features(record.voice_id, "f")
                    seen += 1
                except VoiceNotFound:
                    pass
        return seen

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        writers = [pool.submit(churn, voice_id, seed) for seed, voice_id in enumerate(ids * 2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            stop.set()
        assert reader.result() > 0
    assert sorted(added) == sorted(deleted), "every voice that was added was deleted exactly once"
    assert store.list() == []


def test_of_many_who_add_one_id_exactly_one_succeeds(store: BaseVoiceStore) -> None:
    def attempt(seed: int) -> bool:
        try:
            store.add(some_record(name=f"by {seed}"), some_sound(seed, 800), RATE)
        except VoiceExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    assert len(store.list()) == 1


def test_premade_voices_are_there_and_read_only(storage: Storage) -> None:
    store = storage.open(PREMADE_FOLDER)
    premade = store.list()
    assert {record.voice_id for record in premade} >= {"clara", "martin"}
    assert all(record.category == "premade" for record in premade)
    before = {path: path.stat().st_mtime_ns for path in PREMADE_FOLDER.iterdir()}
    with pytest.raises(VoiceIsReadOnly, match="clara"):
        store.delete("clara")
    with pytest.raises(VoiceExists):
        store.add(some_record("clara"), some_sound(), RATE)
    samples, rate = store.reference("clara")
    assert len(samples) >= rate
    store.save_features("clara", "f", some_voice(1.0))
    assert store.features("clara", "f") is not None
    assert store.features("martin", "f") is None
    assert {path: path.stat().st_mtime_ns for path in PREMADE_FOLDER.iterdir()} == before


def test_a_premade_voice_without_its_recording_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples.yaml").write_text("- {id: ghost, name: Ghost}\n")
    with pytest.raises(ValueError, match="one recording of 'ghost'"):
        FolderVoiceStore(tmp_path / "store", premade=tmp_path / "samples")


def test_a_store_is_opened_by_path_or_file_url(tmp_path: Path) -> None:
    by_path = open_voice_store(str(tmp_path / "a b"))
    by_path.add(some_record(), some_sound(), RATE)
    by_url = open_voice_store((tmp_path / "a b").as_uri())
    assert by_url.get("anna") == some_record()


def test_errors_survive_the_way_between_processes() -> None:
    for kind in (VoiceNotFound, InvalidVoiceId, VoiceIsReadOnly, VoiceExists):
        error = pickle.loads(pickle.dumps(kind("anna")))
        assert type(error) is kind and error.voice_id == "anna" and str(error) == str(kind("anna"))


def test_new_ids_are_valid_and_differ(store: BaseVoiceStore) -> None:
    ids = {new_voice_id() for _ in range(100)}
    assert len(ids) == 100
    for voice_id in ids:
        with pytest.raises(VoiceNotFound):
            store.get(voice_id)
