"""Where voices, keys and the records of sessions are kept: the URLs of the settings, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from configs.schema import ConfigError

_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._=-]{1,128}(?:/(?!$)|$)){0,8}")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_DATABASE = re.compile(r"/?|/[0-9]{1,4}")
_NEARLY_A_URL = re.compile(r"(?:s3|file|https?):", re.IGNORECASE)
_TRUTH = {"true": True, "false": False}
_REDIS = ("redis", "rediss")
REDIS_USERNAME_ENV, REDIS_PASSWORD_ENV = "SEEDVC_REDIS_USERNAME", "SEEDVC_REDIS_PASSWORD"
_OPTIONS = ("endpoint", "region", "path_style", "presigned_s")
_WEEK_S = 7 * 86400
"""The longest life of a presigned URL, by the signature's own rule."""


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A part of an S3 bucket. What is None here, boto3 takes from the environment."""

    bucket: str
    prefix: str = ""
    """Empty, or with a slash at its end."""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
    """Whether requests name the bucket in the path, not in the host's name."""
    presigned_s: int = 0
    """How long a URL is good for by which a client gets a recording from the bucket itself; 0: it gets none."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def place_of(url: str) -> Path | BucketPlace:
    """The folder of a path or of file:///path, or the place of s3://bucket/prefix?options; ConfigError else."""
    if "://" not in url:
        if _NEARLY_A_URL.match(url):
            raise ConfigError(f"{url!r} is neither a folder nor a URL such as s3://bucket/prefix")
        return _path(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"{url.partition('://')[0]}:// is followed by no name of a bucket") from None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if parts.scheme == "s3":
        return _bucket_place(url)
    raise ConfigError(
        f"voices are kept in a folder (a path, or file:///path) or in S3 (s3://bucket/prefix); got {parts.scheme}://"
    )


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """A database of a Redis server. User and password come from the environment, and are the same for all places."""

    host: str
    port: int = 6379
    database: int = 0
    tls: bool = False

    def __str__(self) -> str:
        return f"redis{'s' * self.tls}://{self.host}:{self.port}/{self.database}"


def place_of_keys(url: str) -> Path | RedisPlace:
    """The file of a path or of file:///path, or the place of redis://host:port/database; ConfigError else."""
    scheme = url.partition(":")[0]
    if scheme in _REDIS:
        return _redis_place(url)
    if "://" not in url:
        return _path(url)
    if url.startswith(("file:///", "file://localhost/")):
        return Path(unquote(urlsplit(url).path))
    raise ConfigError(
        f"keys are kept in a file (a path, or file:///path) or in Redis (redis://host:port); got {scheme}://"
    )


def sessions_of(url: str) -> RedisPlace | None:
    """The place of redis://host:port/database, None for `memory`; ConfigError else."""
    if url == "memory":
        return None
    scheme, _, rest = url.partition("://")
    if scheme not in _REDIS or not rest:
        shown = f"{scheme}://" if rest else repr(url)
        raise ConfigError(f"records of sessions are kept in `memory` or in Redis (redis://host:port); got {shown}")
    return _redis_place(url)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text!r} is in the folder of a user that is not known here") from None


def _redis_place(url: str) -> RedisPlace:
    if "@" in url:
        raise ConfigError(
            "the URL of Redis holds no credentials; they come from the environment "
            f"({REDIS_USERNAME_ENV}, {REDIS_PASSWORD_ENV})"
        )
    mistake = ConfigError(f"{url!r} names no Redis; it should be redis://host:port, or redis://host:port/database")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise mistake from None
    if not host or port == 0 or not _DATABASE.fullmatch(parts.path) or parts.query or parts.fragment:
        raise mistake
    return RedisPlace(host, port or 6379, int(parts.path.strip("/") or 0), parts.scheme == "rediss")


def _bucket_place(url: str) -> BucketPlace:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigError("the URL of an S3 store holds no credentials; they come from the environment, as for boto3")
    if not parts.netloc:
        raise ConfigError(f"{url} names no bucket; it should be s3://bucket/prefix")
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(
            f"{parts.netloc!r} is no name of a bucket: 3 to 63 small letters, digits, '-' and '.', "
            "with a letter or digit at both ends"
        )
    prefix = parts.path.strip("/")
    if not _PREFIX.fullmatch(prefix) or "//" in parts.path or parts.fragment:
        raise ConfigError(
            f"{parts.path!r} is no prefix: up to 8 names of letters, digits, '.', '_', '=' and '-', with '/' between"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := options.keys() - set(_OPTIONS):
        raise ConfigError(f"{min(unknown)!r} is no option of an S3 store; allowed are {', '.join(_OPTIONS)}")
    endpoint = options.get("endpoint")
    return BucketPlace(
        parts.netloc,
        f"{prefix}/" if prefix else "",
        None if endpoint is None else _endpoint(endpoint),
        _matching(options, "region", _REGION),
        _truth(options, default=endpoint is not None),
        _seconds(options),
    )


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigError("the endpoint of an S3 store holds no credentials; they come from the environment")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is no endpoint; it should be http://host:port or https://host")
    return url


def _matching(options: dict[str, str], name: str, pattern: re.Pattern[str]) -> str | None:
    text = options.get(name)
    if text is not None and not pattern.fullmatch(text):
        raise ConfigError(f"{text!r} is no {name} of an S3 store; it should look like eu-central-1")
    return text


def _truth(options: dict[str, str], *, default: bool) -> bool:
    text = options.get("path_style")
    if text is not None and text not in _TRUTH:
        raise ConfigError(f"path_style is {text!r}; allowed are true and false")
    return default if text is None else _TRUTH[text]


def _seconds(options: dict[str, str]) -> int:
    text = options.get("presigned_s", "0")
    if not text.isdecimal() or not text.isascii() or int(text) > _WEEK_S:
        raise ConfigError(f"presigned_s is {text!r}; allowed are whole seconds from 0 to {_WEEK_S}")
    return int(text)
