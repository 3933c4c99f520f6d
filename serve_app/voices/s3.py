"""Voices in a part of an S3 bucket, or of a server that speaks S3."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from configs.places import BucketPlace
from configs.schema import ConfigError
from serve_app.errors import NotStored, StoreAway, VoiceDamaged, VoiceError, VoiceExists, VoiceNotFound
from serve_app.voices.base import MAX_FILE_BYTES, MAX_RECORD_BYTES, REFERENCE, BaseVoiceStore, Entry
from serve_app.voices.premade import PREMADE_FOLDER
from serve_app.voices.store import VOICE_ID, VoiceRecord, read_record, write_record

if TYPE_CHECKING:
    from stages.types import Voice

log = logging.getLogger("seedvc.voices")

CONNECT_S, READ_S, ATTEMPTS = 2.0, 5.0, 2
"""A request that gets no answer holds its thread for at most 15 s."""
AWAY_S = 1.0
"""After a request that got no answer, others are refused at once for so long, and hold no thread."""
AT_ONCE = 16
"""Requests at once of one list."""
LEFTOVER_AGE_S = 900.0
SWEEP_EVERY_S = 300.0
_UPDATES = 50
"""How often an update begins again where others change the same record meanwhile."""
_USED = "used"
_MARK = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_OURS = re.compile(rf"voices/{VOICE_ID.pattern}/{_MARK.pattern}/.+")
"""What a crash may leave; anything else in the bucket is somebody else's."""
_FULL = {"QuotaExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}


class _Changed(Exception):
    """A conditional request met another state."""


class _NotOffered(Exception):
    """The server does not know a condition."""


class _Denied(StoreAway):
    """These credentials may not do this."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An object."""

    etag: str
    changed_s: float
    data: bytes = b""


class S3VoiceStore(BaseVoiceStore):
    """Voices in a part of an S3 bucket.

    `records/<id>.json` is a voice: it is written last and deleted first. It names the folder of its other files,
    `voices/<id>/<SHA-256 of the recording>-<random>/`, which holds `reference.wav`, features, and `used`, whose time is
    that of the last use where the voice expires. No folder is used twice, so what a crash leaves in one is never a part
    of a later voice; it is swept once it is old. `premade/<id>/` is as in a folder.
    """

    def __init__(self, place: BucketPlace, premade: Path = PREMADE_FOLDER) -> None:
        super().__init__(premade)
        self._place = place
        region = place.region or os.environ.get("AWS_REGION")  # which boto3 does not read
        try:
            self._client = _client(place.endpoint, region, place.path_style)
        except BotoCoreError as error:  # a profile that is not there, for one
            raise ConfigError(f"the storage of voices {place} cannot be opened: {error}") from error
        self._pool = ThreadPoolExecutor(AT_ONCE, "voices")
        self._known: dict[str, tuple[str, Entry | VoiceDamaged]] = {}
        self._knows_conditions = True
        self._away_until_s = self._swept_s = -math.inf
        self._told_reason: str | None = None

    def check(self) -> None:
        """As VoiceStore."""
        with self._listing():
            self._client.list_objects_v2(Bucket=self._place.bucket, Prefix=self._key("records/"), MaxKeys=1)

    def ids(self) -> list[str]:
        """As VoiceStore."""
        return list(self._listed())

    def digest(self, voice_id: str) -> str:
        """As VoiceStore."""
        if voice_id in self._premade:
            return super().digest(voice_id)
        return self._current(voice_id).home.rpartition("/")[2].partition("-")[0]

    def stamps(self, voice_ids: Collection[str], fingerprint: str) -> Mapping[str, object]:
        """As VoiceStore; features of one voice by the same weights are all alike, so the record tells."""
        own = [voice_id for voice_id in voice_ids if voice_id not in self._premade]
        found: dict[str, object] = {name: self._premade_digest(name) for name in voice_ids if name in self._premade}
        if len(own) > AT_ONCE:
            listed = self._listed()
            return found | {voice_id: listed[voice_id].etag for voice_id in own if voice_id in listed}
        tags = zip(own, self._pool.map(self._tag, own), strict=True)
        return found | {voice_id: tag for voice_id, tag in tags if tag is not None}

    def sweep(self) -> None:
        """As VoiceStore; also removes now and then what crashes have left."""
        super().sweep()
        if monotonic() - self._swept_s >= SWEEP_EVERY_S:
            self._swept_s = monotonic()
            self._remove_leftovers()

    def save_features(self, voice_id: str, fingerprint: str, voice: Voice) -> None:
        """As VoiceStore."""
        home, name = self._features_place(voice_id, fingerprint)
        self._write_file(home, name, voice.to_bytes())
        if voice_id in self._premade:
            return
        try:
            is_there = self._read(voice_id).home == home
        except VoiceDamaged:  # its recording may still be good
            raise
        except VoiceNotFound:
            is_there = False
        if not is_there:  # it was deleted meanwhile, and its features with it but for these
            self._remove(home)
            raise VoiceNotFound(voice_id)

    def _read(self, voice_id: str) -> Entry:
        return self._entry(voice_id, self._record(voice_id))

    def _read_all(self) -> Iterator[tuple[str, Entry | VoiceError]]:
        listed = self._listed()
        self._known = {voice_id: known for voice_id, known in self._known.items() if voice_id in listed}
        return zip(listed, self._pool.map(self._known_or_read, listed, listed.values()), strict=True)

    def _known_or_read(self, voice_id: str, listed: _Found) -> Entry | VoiceError:
        """A record, which is read only where it has changed since the last list."""
        etag, known = self._known.get(voice_id, ("", None))
        if known is not None and etag == listed.etag:
            return known
        try:
            found = self._record(voice_id)
        except VoiceError as error:
            return error
        except _Denied:  # this one object: the list itself was not refused
            damaged = VoiceDamaged(voice_id)
            damaged.__cause__ = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return damaged
        outcome: Entry | VoiceDamaged
        try:
            outcome = self._entry(voice_id, found)
        except VoiceDamaged as error:
            outcome = error
        self._known[voice_id] = found.etag, outcome
        return outcome

    def _entry(self, voice_id: str, found: _Found) -> Entry:
        if len(found.data) > MAX_RECORD_BYTES:
            raise VoiceDamaged(voice_id) from OSError(errno.EFBIG, f"larger than {MAX_RECORD_BYTES} bytes")
        record = read_record(found.data, voice_id)
        unknown = dict(record.unknown)
        mark = unknown.pop("home", None)
        if not isinstance(mark, str) or not _MARK.fullmatch(mark):
            raise VoiceDamaged(voice_id) from OSError(errno.EINVAL, "its record does not name its recording")
        return Entry(replace(record, unknown=unknown), f"voices/{voice_id}/{mark}", found.changed_s)

    def _add(self, record: VoiceRecord, wav: bytes) -> None:
        voice_id = record.voice_id
        home = f"voices/{voice_id}/{hashlib.sha256(wav).hexdigest()}-{secrets.token_hex(8)}"
        self._put(f"{home}/{REFERENCE}", wav)
        try:
            self._put(f"records/{voice_id}.json", _written(record, home), IfNoneMatch="*")
        except _Changed as error:
            with suppress(VoiceError):
                if self._read(voice_id).home == home:
                    return  # it was there at the first attempt, whose answer was lost
            self._remove(home)
            raise VoiceExists(voice_id) from error

    def _update(self, voice_id: str, changes: Mapping[str, Any]) -> VoiceRecord:
        for _ in range(_UPDATES):
            found = self._record(voice_id)
            entry = self._entry(voice_id, found)
            if self._is_over(entry):
                raise VoiceNotFound(voice_id)
            changed = replace(entry.record, **changes)
            try:
                self._put(f"records/{voice_id}.json", _written(changed, entry.home), IfMatch=found.etag)
            except FileNotFoundError as error:
                raise VoiceNotFound(voice_id) from error
            except _Changed:
                continue
            return changed
        raise NotStored("the voice is changed by too many at once")

    def _delete(self, voice_id: str) -> None:
        while True:
            found = self._record(voice_id)
            try:
                home = self._entry(voice_id, found).home
            except VoiceDamaged:
                home = f"voices/{voice_id}"
            try:
                self._remove_one(f"records/{voice_id}.json", IfMatch=found.etag)
                break
            except FileNotFoundError as error:
                raise VoiceNotFound(voice_id) from error
            except _Changed:
                continue  # renamed meanwhile
        try:
            self._remove(home)
        except StoreAway:
            log.warning("the voice %s is deleted; its files go when the storage answers again", voice_id)

    def _renew(self, entry: Entry) -> None:
        self._put(f"{entry.home}/{_USED}", b"")

    def _used_s(self, entry: Entry) -> float:
        try:
            return max(entry.changed_s, self._get(f"{entry.home}/{_USED}", 0).changed_s)
        except FileNotFoundError:
            return entry.changed_s

    def _read_file(self, home: str, name: str) -> bytes:
        data = self._get(f"{home}/{name}", MAX_FILE_BYTES).data
        if name == REFERENCE and hashlib.sha256(data).hexdigest() not in home:
            raise OSError(errno.EINVAL, "its recording is another one")
        return data

    def _write_file(self, home: str, name: str, data: bytes) -> None:
        self._put(f"{home}/{name}", data)

    def _url_of(self, entry: Entry, name: str) -> str | None:
        if not self._place.presigned_s:
            return None
        wanted = {"Bucket": self._place.bucket, "Key": self._key(f"{entry.home}/{name}")}
        wanted["ResponseContentType"] = "audio/wav"
        with self._asking():
            return str(self._client.generate_presigned_url("get_object", wanted, ExpiresIn=self._place.presigned_s))

    def _record(self, voice_id: str) -> _Found:
        try:
            return self._get(f"records/{voice_id}.json", MAX_RECORD_BYTES + 1)
        except FileNotFoundError as error:
            raise VoiceNotFound(voice_id) from error

    def _tag(self, voice_id: str) -> str | None:
        try:  # not HEAD, which cannot tell a bucket that is missing
            return self._get(f"records/{voice_id}.json", MAX_RECORD_BYTES).etag
        except FileNotFoundError:
            return None

    def _listed(self) -> dict[str, _Found]:
        """The records of all voices, a thousand with each request."""
        found = {}
        for name, about in self._objects("records/"):
            voice_id = name.removeprefix("records/").removesuffix(".json")
            if name.endswith(".json") and VOICE_ID.fullmatch(voice_id) and voice_id not in self._premade:
                found[voice_id] = about
        return found

    def _remove_leftovers(self) -> None:
        """Removes old files that belong to no voice: what a crash of adding or deleting has left."""
        newest_s = datetime.now(UTC).timestamp() - LEFTOVER_AGE_S
        old = [name for name, about in self._objects("voices/") if about.changed_s < newest_s and _OURS.fullmatch(name)]
        homes, unreadable = set(), set()
        for voice_id, found in self._read_all() if old else ():  # after the files: a voice that is new has new ones
            if isinstance(found, Entry):
                homes.add(found.home)
            elif isinstance(found, VoiceDamaged):
                unreadable.add(voice_id)
        for name in old:
            home, _, _ = name.rpartition("/")
            if home not in homes and name.split("/")[1] not in unreadable:
                self._remove_one(name)

    def _remove(self, folder: str) -> None:
        for name, _ in self._objects(f"{folder}/"):
            self._remove_one(name)

    def _key(self, name: str) -> str:
        return f"{self._place.prefix}{name}"

    def _objects(self, folder: str) -> Iterator[tuple[str, _Found]]:
        """What is in a folder, at any depth."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._listing():
            for page in pages.paginate(Bucket=self._place.bucket, Prefix=self._key(folder)):
                for item in page.get("Contents", []):
                    name = item["Key"].removeprefix(self._place.prefix)
                    yield name, _Found(item["ETag"], item["LastModified"].timestamp())

    @contextmanager
    def _listing(self) -> Iterator[None]:
        try:
            with self._asking():
                yield
        except _Denied:  # all of it, not one object
            self._tell("403 AccessDenied")
            raise

    def _get(self, name: str, max_bytes: int) -> _Found:
        """An object, or as much of it; FileNotFoundError where there is none."""
        with self._asking():
            answer = self._client.get_object(Bucket=self._place.bucket, Key=self._key(name))
            with answer["Body"] as body:
                data = body.read() if answer["ContentLength"] <= max_bytes else body.read(max_bytes)
            return _Found(answer["ETag"], answer["LastModified"].timestamp(), data)

    def _put(self, name: str, data: bytes, **condition: str) -> None:
        """Writes an object; _Changed where it is not as the condition says."""
        wanted = {"Bucket": self._place.bucket, "Key": self._key(name), "Body": data}
        if condition and self._knows_conditions:
            try:
                with self._asking():
                    self._client.put_object(**wanted, **condition)
            except _NotOffered:
                self._knows_conditions = False
            else:
                return
        if "IfNoneMatch" in condition:
            with suppress(FileNotFoundError):
                self._get(name, 0)
                raise _Changed
        with self._asking():
            self._client.put_object(**wanted)

    def _remove_one(self, name: str, **condition: str) -> None:
        wanted = {"Bucket": self._place.bucket, "Key": self._key(name)}
        try:
            with self._asking():
                self._client.delete_object(**wanted, **condition)
        except _NotOffered:
            with self._asking():
                self._client.delete_object(**wanted)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Says in our words why a request failed. The log has the reason, without an address or a key."""
        if monotonic() < self._away_until_s:
            raise _away()
        try:
            yield
        except ClientError as error:
            raise self._meant(error) from error
        except BotoCoreError as error:
            self._away_until_s = monotonic() + AWAY_S
            self._tell(type(error).__name__)
            raise _away() from error
        if self._told_reason is not None:
            self._told_reason = None
            log.warning("the storage of voices %s answers again", self._place)

    def _meant(self, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        if status == 404 and code != "NoSuchBucket":
            return FileNotFoundError(errno.ENOENT, "there is no such object")
        if status in (409, 412):
            return _Changed()
        if status == 501:
            return _NotOffered()
        if status == 403:
            return _Denied(str(_away()))
        self._tell(f"{status} {code}")
        if status == 507 or code in _FULL:
            return NotStored(f"voices cannot be changed now: {os.strerror(errno.ENOSPC)}")
        if status >= 500:
            self._away_until_s = monotonic() + AWAY_S
        return _away()

    def _tell(self, reason: str) -> None:
        if reason != self._told_reason:
            log.error("the storage of voices %s cannot be used: %s", self._place, reason)
        self._told_reason = reason


def _away() -> StoreAway:
    return StoreAway("the storage of voices does not answer now; try again soon")


def _written(record: VoiceRecord, home: str) -> bytes:
    """A record with the name of its folder."""
    return json.dumps({**json.loads(write_record(record)), "home": home.rpartition("/")[2]}).encode()


@cache
def _client(endpoint: str | None, region: str | None, path_style: bool) -> Any:
    """One for all stores of a process: to make one takes long. Credentials, and what is None, come from the
    environment by boto3's own rules."""
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        max_pool_connections=2 * AT_ONCE,
        signature_version="s3v4",
        s3={"addressing_style": "path" if path_style else "auto"},
        request_checksum_calculation="when_required",  # other servers than Amazon's refuse what boto3 adds else
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
