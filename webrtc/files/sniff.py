"""What an upload is, by its first bytes.

ffmpeg could tell too, but wants kilobytes before it is sure: a live upload would wait for its first seconds.
"""

import struct
from dataclasses import dataclass, field

from webrtc.files.mp3 import declared_s

HEAD_BYTES = 64  # enough for every signature and for an mp3's Info frame
UNDECIDED_BYTES = 1 << 20  # of leading boxes, chunks or tags; ffmpeg looks for itself after that
BOX_HEADER_BYTES = 8
CHUNK_HEADER_BYTES = 8
ID3_HEADER_BYTES = 10
ENDLESS_BYTES = 0x7FFFF000  # a WAV that was written as a stream states this or more, or nothing at all


@dataclass(frozen=True)
class Container:
    """How to open an upload: ffmpeg's name of the format (None: let it look), and which of the bytes are for it."""

    name: str | None
    options: dict[str, str] = field(default_factory=dict)
    needs_seeking: bool = False  # can be read only once the whole file is there
    skip_bytes: int = 0
    sound_bytes: int | None = None  # after the skipped ones; None: all that comes
    end_bytes: int | None = None  # where the sound ends in the file, as far as the head states it
    declared_s: float | None = None  # how long the file says that it is


def sniff(head: bytes, *, whole: bool = False) -> Container | None:
    """Tells the container, or None while more bytes are needed; `whole` says that there are no more."""
    found = _sniff(head) if len(head) >= HEAD_BYTES else None
    if found is None and (whole or len(head) >= UNDECIDED_BYTES):
        return Container(None, needs_seeking=True)
    return found


_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MATROSKA = b"\x1aE\xdf\xa3"


def _sniff(head: bytes) -> Container | None:
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RF64"):
        return _sniff_wav(head)
    if head.startswith(b"FORM") and head[8:11] == b"AIF":
        return _sniff_aiff(head)
    if head[4:8] in _FIRST_BOXES:
        return _sniff_mp4(head)
    if head.startswith(b"ID3"):
        return _sniff_behind_tag(head)
    if head.startswith(_MATROSKA):
        return Container("matroska", end_bytes=_matroska_end(head))
    for magic, name in ((b"fLaC", "flac"), (b"OggS", "ogg")):
        if head.startswith(magic):
            return Container(name)
    return _sniff_frames(head)


def _sniff_wav(head: bytes) -> Container | None:
    """Integer PCM goes to ffmpeg as bare samples: its WAV reader takes in 64 KiB of it first, in search of S/PDIF."""
    at, form, long_size = 12, b"", None
    while at + CHUNK_HEADER_BYTES <= len(head):
        kind, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        body = at + CHUNK_HEADER_BYTES
        if kind == b"data":
            if size == 0 or size >= ENDLESS_BYTES:
                return _wav_sound(form, body, long_size)
            return _wav_sound(form, body, size)
        if kind == b"ds64" and head.startswith(b"RF64"):
            long_size = int.from_bytes(head[body + 8 : body + 16], "little") or None
        if kind == b"fmt ":
            form = head[body : body + size]
        at = body + size + size % 2
    return None


def _wav_sound(form: bytes, skip_bytes: int, sound_bytes: int | None) -> Container:
    end_bytes = None if sound_bytes is None else skip_bytes + sound_bytes
    if len(form) < 16:
        return Container("wav", end_bytes=end_bytes)
    tag, channels, rate, byte_rate, frame_bytes, _ = struct.unpack_from("<HHIIHH", form)
    if tag == 0xFFFE and len(form) >= 26:  # WAVE_FORMAT_EXTENSIBLE: the real tag leads its GUID
        tag = int.from_bytes(form[24:26], "little")
    length_s = sound_bytes / byte_rate if sound_bytes and byte_rate else None
    sample_bytes = frame_bytes // channels if channels else 0
    if tag != 1 or rate == 0 or sample_bytes not in (1, 2, 3, 4) or frame_bytes % channels:
        return Container("wav", end_bytes=end_bytes)  # what its bytes unfold to is the codec's to say
    name = ("u8", "s16le", "s24le", "s32le")[sample_bytes - 1]
    options = {"sample_rate": str(rate), "ch_layout": f"{channels}c"}
    return Container(
        name,
        options,
        skip_bytes=skip_bytes,
        sound_bytes=sound_bytes,
        end_bytes=end_bytes,
        declared_s=length_s,
    )


def _sniff_aiff(head: bytes) -> Container | None:
    """An AIFF can be read as it comes only where its form (COMM) stands before its sound (SSND)."""
    at, knows_form = 12, False
    while at + CHUNK_HEADER_BYTES <= len(head):
        kind, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "big")
        if kind == b"SSND":
            end = at + CHUNK_HEADER_BYTES + size if 0 < size < ENDLESS_BYTES else None
            return Container("aiff", needs_seeking=not knows_form, end_bytes=end)
        knows_form = knows_form or kind == b"COMM"
        at += CHUNK_HEADER_BYTES + size + size % 2
    return None


def _matroska_end(head: bytes) -> int | None:
    """Where the one segment behind the EBML head ends, unless it was written as a stream."""
    ebml = _vint(head, 4)
    if ebml is None:
        return None
    at = ebml[0] + ebml[1]
    size = _vint(head, at + 4) if head[at : at + 4] == b"\x18S\x80g" else None
    return size[0] + size[1] if size is not None and size[1] else None


def _vint(data: bytes, at: int) -> tuple[int, int] | None:
    """Where a variable-length number of EBML ends, and its value; None where it is unknown or cut off."""
    if at >= len(data) or data[at] == 0:
        return None
    length = 9 - data[at].bit_length()
    number = int.from_bytes(data[at : at + length], "big") & (1 << 7 * length) - 1
    if at + length > len(data) or number == (1 << 7 * length) - 1:
        return None
    return at + length, number


def _sniff_mp4(head: bytes) -> Container | None:
    """An mp4 can be read as it comes only where its index (moov) stands before its sound (mdat)."""
    at = 0
    while at + BOX_HEADER_BYTES <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind == b"moov":
            return Container("mp4")
        if kind == b"mdat" or size < BOX_HEADER_BYTES:
            return Container("mp4", needs_seeking=True)
        at += size
    return None


def _sniff_behind_tag(head: bytes) -> Container | None:
    size = 0
    for byte in head[6:ID3_HEADER_BYTES]:
        size = size << 7 | byte & 0x7F
    behind = head[ID3_HEADER_BYTES + size :]
    if len(behind) < HEAD_BYTES:
        return None
    if behind.startswith(b"fLaC"):
        return Container("flac")
    found = _sniff_frames(behind)
    return found if found is not None and found.name else Container("mp3")


def _sniff_frames(head: bytes) -> Container | None:
    """mp3 and ADTS frames begin with eleven set bits; then the layer: 0 in ADTS, 1 in layer III."""
    if head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return _sniff_rest(head)
    if head[1] & 0xF6 == 0xF0:
        return Container("aac")
    if head[1] & 0x06 == 0x02:
        return Container("mp3", declared_s=declared_s(head))
    return Container(None, needs_seeking=True)


def _sniff_rest(head: bytes) -> Container | None:
    """What ffmpeg tells best by itself, with the whole file before it: many of these are read back and forth."""
    if head.startswith(b"RIFF"):
        end = BOX_HEADER_BYTES + int.from_bytes(head[4:8], "little")
    elif head.startswith(b"riff"):  # w64, whose names are GUIDs
        end = int.from_bytes(head[16:24], "little")
    elif head.startswith(b".snd"):
        start, size = struct.unpack_from(">II", head, 4)
        end = start + size if size else 0
    elif head.startswith((b"caff", _ASF)):
        found = _caf_end(head) if head.startswith(b"caff") else _asf_end(head)
        if found is None:
            return None
        end = found
    else:
        end = 0
    return Container(None, needs_seeking=True, end_bytes=end if 0 < end < ENDLESS_BYTES else None)


_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf_end(head: bytes) -> int | None:
    """The size that an ASF states; None while the head does not reach it."""
    at = head.find(_ASF_FILE_PROPERTIES) + 40
    return int.from_bytes(head[at : at + 8], "little") if 40 <= at <= len(head) - 8 else None


def _caf_end(head: bytes) -> int | None:
    """Where the sound of a CAF ends, 0 for the file's end; None while the head does not reach it."""
    at = 8
    while at + 12 <= len(head):
        kind, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 12], "big", signed=True)
        if size < 0:
            return 0
        at += 12 + size
        if kind == b"data":
            return at
    return None
