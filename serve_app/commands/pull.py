"""`seedvc pull`: a preset's published files from the model hub, at their pinned revisions."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import httpx2
from huggingface_hub import HfFileMetadata, get_hf_file_metadata, get_session, get_token, hf_hub_url

from configs import ConfigError, Preset, load_preset
from configs.schema import HubFile
from serve_app.commands import UserMistake, say
from serve_app.commands.progress import Progress

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 20.0
ATTEMPTS = 5
"""How often in a row a connection may break without a new byte."""
PAUSE_S = 1.0


class PullFailed(Exception):
    """A file could not be fetched; the message says why, and which files belong where."""


def run(args: argparse.Namespace) -> None:
    """Fetches what is missing of a preset's files."""
    from stages.local import weights_folder

    try:
        preset = load_preset(args.preset)
        folder = Path(args.folder) if args.folder else weights_folder(preset)
        if not preset.hub:
            say(f"{preset.name}: the weights ship with the preset, in {folder}; there is nothing to fetch")
            return
        pull(preset, folder)
    except (ConfigError, PullFailed) as error:
        raise UserMistake(str(error)) from error
    say(f"{preset.name}: {len(preset.hub)} files in {folder}")


def pull(preset: Preset, folder: Path, endpoint: str | None = None) -> None:
    """Brings all files of `preset.hub` into `folder`. Present files stay, and begun downloads go on.

    `endpoint` is the hub's address; None: the HF_ENDPOINT of the environment, else the public hub.

    Raises:
        PullFailed: the hub cannot be reached, lacks a file, or sends other bytes than the pinned ones.
    """
    for file in preset.hub:
        target = folder / file.target
        if not target.resolve().is_relative_to(folder.resolve()):
            raise PullFailed(f"{file.target} lies outside of the weights folder")
        try:
            if target.exists():
                _check(target, file, f"{target} is there already; move it away to fetch the published file")
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(file, target, endpoint)
        except (httpx2.HTTPError, OSError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise PullFailed(f"cannot fetch {_name(file)}: {reason}; {_by_hand(preset, folder)}") from error


def _fetch(file: HubFile, target: Path, endpoint: str | None) -> None:
    """Download into `*.part` beside the target, check it, then give it its name."""
    url = hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint)
    # The name holds the content's tag: a download goes on only with the same content.
    etag = hashlib.sha256(f"{url} {metadata.etag}".encode()).hexdigest()[:12]
    part = target.with_name(f"{target.name}.{etag}.part")
    for stale in set(target.parent.glob(f"{target.name}.*.part")) - {part}:
        stale.unlink()
    _download(url, part, metadata, file.target)
    _check(part, file, "it was removed; run the command again", remove=True)
    part.replace(target)


def _download(url: str, part: Path, metadata: HfFileMetadata, label: str) -> None:
    """Fill `part` up to the file's size, going on where an earlier attempt broke off."""
    part.touch()
    total_bytes = metadata.size or 0
    with Progress(label, total_bytes) as progress:
        progress.advance(part.stat().st_size)
        failures = 0
        while metadata.size is None or part.stat().st_size < total_bytes:
            n_before = part.stat().st_size
            try:
                _append(url, part, progress)
                break
            except httpx2.TransportError:
                failures = failures + 1 if part.stat().st_size == n_before else 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(PAUSE_S)
    n_bytes = part.stat().st_size
    if metadata.size is not None and n_bytes != metadata.size:
        if n_bytes > metadata.size:
            part.unlink()
        raise OSError(f"the hub sent {n_bytes} bytes of {metadata.size}")


def _append(url: str, part: Path, progress: Progress) -> None:
    """One request for the rest of a file."""
    done_bytes = part.stat().st_size
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={done_bytes}-"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
        response.raise_for_status()
        goes_on = response.status_code == httpx2.codes.PARTIAL_CONTENT
        with part.open("ab" if goes_on else "wb") as out:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                out.write(chunk)
                progress.advance(len(chunk))


def _check(path: Path, file: HubFile, advice: str, remove: bool = False) -> None:
    """Compare the SHA-256 where the preset pins one."""
    if file.sha256 is None:
        return
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != file.sha256:
        if remove:
            path.unlink()
        raise PullFailed(f"{_name(file)} has SHA-256 {found}, expected {file.sha256}; {advice}")


def _name(file: HubFile) -> str:
    return f"{file.path} of {file.repo} at {file.revision}"


def _by_hand(preset: Preset, folder: Path) -> str:
    missing = [file for file in preset.hub if not (folder / file.target).exists()]
    files = ", ".join(f"{file.target} (from {file.repo})" for file in missing)
    return f"without a connection, put these files into {folder} by hand: {files}"
