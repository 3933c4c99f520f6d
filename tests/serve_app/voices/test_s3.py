"""What only S3 has: faults of a network and a server, conditions, pages, presigned URLs. Each against a real server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.serve import Limits
from serve_app.cli import main
from serve_app.errors import NotStored, StoreAway, VoiceExists, VoiceNotFound
from serve_app.http import create_app
from serve_app.voices import base, s3
from serve_app.voices.cache import VoiceCache
from serve_app.voices.folder import FolderVoiceStore
from serve_app.voices.s3 import S3VoiceStore
from serve_app.voices.stores import open_voice_store
from tests.serve_app.buckets import BucketServer, Environ, client, stuck, url_of
from tests.serve_app.fakes import EchoBackend, recordings_over, serving, tone, wait_until, wav_file
from tests.serve_app.voices.test_voices import RATE, Bucket, some_record, some_sound, some_voice


@pytest.fixture
def server(buckets: BucketServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    """The server, as it was before afterwards."""
    monkeypatch.setattr(s3, "AWAY_S", 0.0)  # a test does not wait for the storage to be asked again
    yield buckets
    buckets.fault = buckets.late_fault = None
    buckets.stop()
    buckets.start()


@pytest.fixture
def bucket(server: BucketServer, tmp_path: Path) -> Bucket:
    return Bucket(tmp_path, server.new_bucket())


@pytest.fixture
def store(bucket: Bucket) -> S3VoiceStore:
    return bucket.open()


def answering(status: str, code: str) -> Callable[[Environ], tuple[str, str]]:
    return lambda environ: (status, code)


AWAY: dict[str, Callable[[BucketServer], object]] = {
    "refused": BucketServer.stop,
    "503": lambda server: setattr(server, "fault", answering("503 Slow", "SlowDown")),
    "denied": lambda server: setattr(server, "fault", answering("403 No", "AccessDenied")),
    "no bucket": lambda server: setattr(server, "fault", answering("404 No", "NoSuchBucket")),
    "stuck": lambda server: setattr(server, "fault", stuck),
}


@pytest.mark.parametrize("fail", AWAY.values(), ids=list(AWAY))
def test_a_store_that_is_away_refuses_is_told_and_comes_back(
    server: BucketServer,
    bucket: Bucket,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[BucketServer], object],
) -> None:
    monkeypatch.setattr(s3, "AWAY_S", 0.0 if fail is not AWAY["stuck"] else 60.0)
    monkeypatch.setattr(s3, "READ_S", 0.5)
    store = S3VoiceStore(replace(bucket.place, region="eu-hurried-1"), tmp_path / "none")  # a client of its own
    store.add(some_record(), some_sound(), RATE)
    fail(server)
    calls: list[Callable[[], object]] = [
        store.check,
        store.list,
        lambda: store.get("anna"),
        lambda: store.stamps(["anna"], "f"),
        lambda: store.add(some_record("berta"), some_sound(), RATE),
        lambda: store.update("anna", {"name": "Clara"}),
        lambda: store.delete("anna"),
    ]
    for call in calls if fail is AWAY["stuck"] else calls[::3]:
        with pytest.raises(StoreAway, match="does not answer"):
            call()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert bucket.place.bucket in told and "testing" not in told
    server.fault = None
    server.stop()
    server.start()
    store._away_until_s = 0.0
    assert store.list() == [some_record()]
    assert "answers again" in caplog.text


def test_a_store_that_is_away_is_not_asked_all_the_time(
    server: BucketServer, store: S3VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "AWAY_S", 60.0)
    server.fault = answering("503 Slow", "SlowDown")
    server.asked.clear()
    for _ in range(20):
        with pytest.raises(StoreAway):
            store.check()
    assert len(server.asked) == s3.ATTEMPTS


def test_a_full_store_says_so(server: BucketServer, store: S3VoiceStore) -> None:
    server.fault = answering("507 Full", "XMinioStorageFull")
    with pytest.raises(NotStored, match="cannot be changed now: No space left"):
        store.add(some_record(), some_sound(), RATE)


def test_a_record_that_may_not_be_read_is_left_out(server: BucketServer, store: S3VoiceStore) -> None:
    for name in ("anna", "bad"):
        store.add(some_record(name), some_sound(), RATE)
    server.fault = lambda environ: ("403 No", "AccessDenied") if "bad.json" in environ["PATH_INFO"] else None
    assert [record.voice_id for record in store.list()] == ["anna"]


def test_an_answer_that_was_lost_makes_no_second_voice(server: BucketServer, store: S3VoiceStore) -> None:
    lost = []

    def lose_one(environ: Environ) -> tuple[str, str]:
        lost.append(environ["PATH_INFO"])
        server.late_fault = None
        return "500 Oh", "InternalError"

    def watch(environ: Environ) -> None:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("anna.json") and not lost:
            server.late_fault = lose_one

    server.fault = watch
    store.add(some_record(), some_sound(), RATE)
    assert len(lost) == 1 and store.list() == [some_record()]
    assert store.reference("anna")


def test_a_server_without_conditions_keeps_ids_apart_all_the_same(server: BucketServer, store: S3VoiceStore) -> None:
    conditions = {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"}
    server.fault = lambda environ: ("501 No", "NotImplemented") if conditions & environ.keys() else None
    store.add(some_record(), some_sound(), RATE)
    with pytest.raises(VoiceExists):
        store.add(some_record(name="Other"), some_sound(1), RATE)
    assert store.update("anna", {"name": "Berta"}).name == "Berta"
    store.delete("anna")
    assert store.list() == []


def later(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """The clock of this machine goes on, that of the server does not."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=by_s)

    for module in (base, s3):
        monkeypatch.setattr(module, "datetime", Later)


def test_what_a_crash_leaves_is_not_seen_and_swept_once_it_is_old(
    bucket: Bucket, store: S3VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(some_record("berta"), some_sound(), RATE)
    store.save_features("berta", "f", some_voice(1.0))
    store.add(some_record("bad"), some_sound(), RATE)
    bucket.write("records/bad.json", b"cut o")
    kept = bucket.names()

    class Crash(Exception):
        pass

    def no_record(name: str, data: bytes, **condition: str) -> None:
        if name.startswith("records/"):
            raise Crash
        put(name, data, **condition)

    def no_removal(folder: str) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        put = store._put
        patch.setattr(store, "_put", no_record)
        with pytest.raises(Crash):
            store.add(some_record(), some_sound(), RATE)
    store.add(some_record("clara2"), some_sound(), RATE)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_remove", no_removal)
        with pytest.raises(Crash):
            store.delete("clara2")
    assert [record.voice_id for record in store.list()] == ["berta"]
    store.sweep()
    assert len(bucket.names()) == len(kept) + 2, "young files may belong to a voice that is being added"
    foreign = ["voices/notes.txt", "voices/anna/record.json"]
    for name in foreign:
        bucket.write(name, b"somebody else's")
    later(monkeypatch, s3.LEFTOVER_AGE_S + 60)
    bucket.open().sweep()
    assert bucket.names() == sorted([*kept, *foreign])


def test_a_voice_expires_when_nothing_has_used_it(
    bucket: Bucket, store: S3VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("used", "unused"):
        store.add(replace(some_record(name), expires_s=60), some_sound(), RATE)
    other = bucket.open()
    with monkeypatch.context() as patch:
        later(patch, 70)
        assert other.list() == []
    client(bucket.place).copy_object(
        **bucket._object("records/unused.json"),
        CopySource={"Bucket": bucket.place.bucket, "Key": "some/where/records/unused.json"},
        MetadataDirective="REPLACE",
    )
    store.renew("used")
    (home,) = [name for name in bucket.names() if name.endswith("/used")]
    assert store.get("used").expires_s == 60 and "voices/used/" in home
    later(monkeypatch, 70)
    other.sweep()
    assert bucket.names() == [] and other.ids() == []


def test_a_list_reads_each_record_once_and_in_pages(server: BucketServer, bucket: Bucket) -> None:
    store = bucket.open()
    for i in range(7):
        store.add(some_record(f"v{i}"), some_sound(n_samples=800), RATE)

    def small_pages(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 3

    events = store._client.meta.events
    events.register("provide-client-params.s3.ListObjectsV2", small_pages)
    try:
        server.asked.clear()
        assert len(store.list()) == 7 and len(server.asked) == 3 + 7
        server.asked.clear()
        assert len(store.list()) == 7 and len(server.asked) == 3
        bucket.open().update("v3", {"name": "Berta"})
        server.asked.clear()
        assert [record.name for record in store.list()].count("Berta") == 1 and len(server.asked) == 3 + 1
        many = [f"v{i}" for i in range(s3.AT_ONCE + 1)]
        server.asked.clear()
        assert store.stamps(many, "f") == store.stamps(many[:7], "f") and len(server.asked) == 3 + 7
    finally:
        events.unregister("provide-client-params.s3.ListObjectsV2", small_pages)


def test_features_that_are_made_while_the_voice_is_deleted_do_not_stay(
    bucket: Bucket, store: S3VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(some_record(), some_sound(), RATE)
    write = store._write_file

    def deleted_first(home: str, name: str, data: bytes) -> None:
        bucket.open().delete("anna")
        write(home, name, data)

    monkeypatch.setattr(store, "_write_file", deleted_first)
    with pytest.raises(VoiceNotFound):
        store.save_features("anna", "f", some_voice(1.0))
    assert bucket.names() == []


async def test_voices_on_a_replica_outlive_an_outage_but_not_their_deletion(
    server: BucketServer, bucket: Bucket, store: S3VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anna", "berta"):
        store.add(some_record(name), some_sound(), RATE)
        store.save_features(name, "f", some_voice(1.0))
    voices = VoiceCache(bucket.open(), "f", 2**20)
    await voices.get("anna")
    server.stop()
    voices._looked_s = voices._asked_s = -1000.0  # a replica that nobody has asked for long
    assert await voices.get("anna")
    with pytest.raises(StoreAway):
        await voices.get("berta")
    server.start()
    store.delete("anna")
    voices._looked_s = voices._asked_s = -1000.0
    with pytest.raises(VoiceNotFound):
        await voices.get("anna")
    assert await voices.get("berta")


async def test_a_voice_that_is_stored_is_kept_where_its_features_are_not(server: BucketServer, bucket: Bucket) -> None:
    voices = recordings_over(EchoBackend(), bucket.open(), Limits()).voices
    server.fault = lambda environ: ("503 Slow", "SlowDown") if "features-" in environ["PATH_INFO"] else None
    record, _ = await voices.add_samples("Anna", tone(1.5), 22050)
    server.fault = None
    assert voices.store.features(record.voice_id, "echo") is None
    await voices.make_features(record.voice_id)
    assert voices.store.features(record.voice_id, "echo") is not None


def test_an_outage_as_clients_see_it(server: BucketServer) -> None:
    place = server.new_bucket(presigned_s=60)
    service = recordings_over(EchoBackend(), open_voice_store(url_of(place)), Limits())
    upload = {"files": wav_file(tone(1.5), 22050)}
    with serving(create_app(service)) as url, httpx.Client(base_url=url, timeout=30) as http:
        voice_id = http.post("/v1/voices/add", data={"name": "me"}, files=upload).json()["voice_id"]
        convert = {"audio": wav_file(tone(0.5), 22050)}
        assert http.post(f"/v1/speech-to-speech/{voice_id}", files=convert).status_code == 200
        server.stop()
        refused = [
            http.get("/v1/voices"),
            http.post("/v1/voices/add", data={"name": "other"}, files=upload),
            http.post(f"/v1/speech-to-speech/{voice_id}", files=convert),
            http.delete(f"/v1/voices/{voice_id}"),
        ]
        for answer in refused:
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0, answer.text
            assert "does not answer now" in answer.json()["detail"]["message"] and place.bucket not in answer.text
        wait_until(lambda: http.get("/readyz").status_code == 503, "the readiness sees it")
        assert http.get("/readyz").json()["detail"]["reasons"] == ["the voice store does not answer"]
        assert http.get("/healthz").status_code == 200
        server.start()
        wait_until(lambda: http.get("/readyz").status_code == 200, "it is ready again")
        assert http.post(f"/v1/speech-to-speech/{voice_id}", files=convert).status_code == 200
        own = [voice for voice in http.get("/v1/voices").json()["voices"] if voice["category"] == "cloned"]
        assert [voice["name"] for voice in own] == ["me"]
        (sample,) = own[0]["samples"]
        sent = http.get(f"/v1/voices/{voice_id}/samples/{sample['sample_id']}/audio")
        assert sent.status_code == 307 and "X-Amz-Signature" in sent.headers["location"]
        recording = httpx.get(sent.headers["location"])
        assert recording.headers["content-type"] == "audio/wav" and recording.content[:4] == b"RIFF"
        assert http.delete(f"/v1/voices/{voice_id}").status_code == 200
        assert httpx.get(sent.headers["location"]).status_code in (403, 404)
    assert client(place).list_objects_v2(Bucket=place.bucket, Prefix=f"{place.prefix}voices/")["KeyCount"] == 0


def test_a_recording_is_sent_where_no_url_is_given_out(tmp_path: Path) -> None:
    service = recordings_over(EchoBackend(), FolderVoiceStore(tmp_path), Limits())
    service.voices.store.add(some_record(), some_sound(), RATE)
    with serving(create_app(service)) as url, httpx.Client(base_url=url) as http:
        for voice_id, kind, magic in (("anna", "audio/wav", b"RIFF"), ("clara", "audio/flac", b"fLaC")):
            sent = http.get(f"/v1/voices/{voice_id}/samples/reference/audio")
            assert (sent.status_code, sent.headers["content-type"], sent.content[:4]) == (200, kind, magic)
        assert http.get("/v1/voices/anna/samples/other/audio").status_code == 404
        assert http.get("/v1/voices/nobody/samples/reference/audio").status_code == 404


def copy(source: object, target: object) -> int:
    return main(["voices", "copy", str(source), str(target)])


def test_voices_move_into_s3_and_back(server: BucketServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = FolderVoiceStore(tmp_path / "here")
    bucket = Bucket(tmp_path, server.new_bucket())
    records = [replace(some_record(f"v{i}", f"Name {i}"), unknown={"pronouns": "she"}) for i in range(6)]
    for i, record in enumerate(records):
        here.add(record, some_sound(i, 800), RATE)
    server.fault = lambda environ: ("507 Full", "QuotaExceeded") if "records/v4" in environ["PATH_INFO"] else None
    assert copy(tmp_path / "here", url_of(bucket.place)) == 2
    told = capsys.readouterr().err
    assert "v4: voices cannot be changed now" in told and "5 copied, 1 failed" in told and "100 %" in told
    server.fault, there = None, bucket.open()
    there.update("v1", {"name": "Later"})
    server.asked.clear()
    assert copy(tmp_path / "here", url_of(bucket.place)) == 0
    assert "1 copied, 1 changed, 4 there already" in capsys.readouterr().err
    assert len([asked for asked in server.asked if asked.startswith("PUT") and "/voices/" in asked]) == 1
    assert copy(url_of(bucket.place), tmp_path / "back") == 0
    back = FolderVoiceStore(tmp_path / "back")
    for store in (there, back):
        assert [store.get(record.voice_id) for record in records] == records
        assert [store.digest(record.voice_id) for record in records] == [here.digest(f"v{i}") for i in range(6)]
    back.delete("v2")
    back.add(records[2], some_sound(99, 800), RATE)
    (tmp_path / "back" / "voices" / "v3" / "record.json").write_text("cut o")
    assert copy(tmp_path / "back", url_of(bucket.place)) == 2
    told = capsys.readouterr().err
    assert "v2: there is already a voice" in told and "v3: the voice 'v3' is damaged" in told
    assert "4 there already, 2 failed" in told and "Name" not in told


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("{}", "{}/to", "there is no store of voices in"),
        ("gs://bucket/x", "{}", "got gs://"),
        ("s3://Bucket", "{}", "is no name of a bucket"),
        ("s3://bucket?endpoint=http://127.0.0.1:1&region=eu", "{}", "does not answer now"),
    ],
)
def test_a_copy_that_cannot_begin_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], buckets: BucketServer, source: str, target: str, told: str
) -> None:
    assert copy(source.format(tmp_path), target.format(tmp_path)) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
