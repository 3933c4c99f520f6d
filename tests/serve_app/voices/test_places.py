"""The setting `voices`: a folder or a part of a bucket, and what is wrong with any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.places import BucketPlace, place_of
from configs.schema import ConfigError, first_problem
from configs.serve import ServeArgs
from serve_app.voices import s3
from serve_app.voices.s3 import S3VoiceStore


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("data/voices", Path("data/voices")),
        ("~/voices", Path.home() / "voices"),
        ("file:///a%20b", Path("/a b")),
        ("s3://bucket", BucketPlace("bucket")),
        ("s3://my.bucket-1/", BucketPlace("my.bucket-1")),
        ("s3://bucket/a/b.c_d/", BucketPlace("bucket", "a/b.c_d/")),
        (
            "s3://bucket/a?endpoint=http://minio:9000&region=eu-central-1",
            BucketPlace("bucket", "a/", "http://minio:9000", "eu-central-1", path_style=True),
        ),
        ("s3://bucket?path_style=true&presigned_s=60", BucketPlace("bucket", path_style=True, presigned_s=60)),
        ("s3://bucket?endpoint=https://s3.host&path_style=false", BucketPlace("bucket", endpoint="https://s3.host")),
    ],
)
def test_a_place_is_read(url: str, place: object) -> None:
    assert place_of(url) == place
    assert ServeArgs(voices=url).voices == url


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://bucket/voices", "got gs://"),
        ("http://host/voices", "got http://"),
        ("file://host/voices", "got file://"),
        ("s3:/bucket/voices", "neither a folder nor a URL"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        *[
            (f"s3://{name}", "is no name of a bucket")
            for name in ("Bucket", "ab", "a" * 64, "a..b", "-ab", "ab-", "10.0.0.1", "a_b", "ab:90")
        ],
        *[
            (f"s3://bucket/{prefix}", "is no prefix")
            for prefix in ("a//b", "../a", "a/./b", "a b", "ä", "a#b", "/".join("abcdefghi"), "a" * 129)
        ],
        ("s3://bucket?zone=1", "'zone' is no option of an S3 store; allowed are endpoint"),
        ("s3://bucket?endpoint=minio:9000", "is no endpoint"),
        ("s3://bucket?endpoint=", "is no endpoint"),
        ("s3://bucket?region=Frankfurt am Main", "is no region"),
        ("s3://bucket?path_style=yes", "allowed are true and false"),
        ("s3://bucket?presigned_s=-1", "whole seconds from 0 to 604800"),
        ("s3://bucket?presigned_s=604801", "whole seconds from 0 to 604800"),
        ("s3://[x/y", "followed by no name of a bucket"),
        ("~nosuchuser/voices", "a user that is not known here"),
        ("s3://key:very-secret@bucket/a", "holds no credentials"),
        ("s3://bucket?endpoint=http://key:very-secret@host", "holds no credentials"),
    ],
)
def test_what_is_no_place_is_refused_in_a_sentence(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        place_of(url)
    assert "\n" not in str(refused.value) and "very-secret" not in str(refused.value)
    with pytest.raises(ValidationError) as invalid:
        ServeArgs(voices=url)
    assert told in first_problem(invalid.value) and "very-secret" not in str(invalid.value)


def test_what_the_url_leaves_open_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example:9000")
    s3._client.cache_clear()
    try:
        here = S3VoiceStore(BucketPlace("bucket"), tmp_path)._client.meta
        assert (here.region_name, here.endpoint_url) == ("eu-north-1", "http://s3.example:9000")
        told = S3VoiceStore(BucketPlace("bucket", "", "http://127.0.0.1:9", "eu-west-1"), tmp_path)._client.meta
        assert (told.region_name, told.endpoint_url) == ("eu-west-1", "http://127.0.0.1:9")
    finally:
        s3._client.cache_clear()
