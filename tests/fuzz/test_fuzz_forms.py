"""Forms of any bytes: a clear refusal or the same parts, whatever the cut, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import BadUpload, InvalidFields
from serve_app.forms import parse_fields
from serve_app.multipart import (
    MAX_HEADER_BYTES,
    MAX_PARTS,
    MAX_PREAMBLE_BYTES,
    MultipartParser,
    PartBegin,
    PartEnd,
    parse_options,
)
from serve_app.recordings.routes import LateFields, SpeechForm, stream_warnings
from serve_app.uploads import MultipartForm, Recording
from serve_app.voices.routes import VoiceEdit, VoiceForm
from tests.fuzz.budget import budgeted

HEAD = b'Content-Disposition: form-data; name="audio"; filename="x"\r\n\r\n'
TOKENS = [
    b"--b", b"\r\n--b", b"\n--b", b"--b--", b"\r\n--b--", b"\r\n", b"\n", b"\r", b"-", b"--", b" ", b"\t", b":", b";",
    b"=", b'"', b"\\", HEAD, HEAD.replace(b"audio", b"seed"), HEAD.replace(b"\r\n", b"\n"), b"Content-Disposition:",
    b" form-data; name=", b"filename*=UTF-8''%e4", b"Content-Type: text/plain\r\n", b"\x00", b"\xff", b"5",
    b" " * 250, b"x" * (MAX_HEADER_BYTES - 1), b"x" * (MAX_PREAMBLE_BYTES // 2), (b"\r\n--b\r\n" + HEAD) * MAX_PARTS,
]  # fmt: skip
BODIES = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=6), max_size=30).map(b"".join)
FORMS = st.builds(
    lambda before, parts, behind: before + b"".join(b"--b\r\n" + HEAD + part + b"\r\n" for part in parts) + behind,
    BODIES,
    st.lists(BODIES, max_size=4),
    st.sampled_from([b"", b"--b--", b"--b--\r\n", b"--b--\r\n--b\r\n"]),
)
MAX_PIECES = 1000
CUTS = st.lists(st.integers(1, 40) | st.integers(1, 20000), min_size=1, max_size=8)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The bytes in pieces of these sizes, over and over; what is left after many of them comes at once."""
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)] if turn < MAX_PIECES else len(data)
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def read(pieces: Iterator[bytes]) -> tuple[list[tuple[PartBegin, bytes, bool]], str | None]:
    """What was read of each part, and whether to its end; and the refusal, if one came."""
    parser, begun, refusal = MultipartParser(b"b"), list[tuple[PartBegin, list[bytes]]](), None
    n_ended = 0
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                assert (len(begun) == n_ended) == isinstance(event, PartBegin), "parts lie in a row"
                if isinstance(event, PartBegin):
                    begun.append((event, []))
                elif isinstance(event, PartEnd):
                    n_ended += 1
                else:
                    begun[-1][1].append(event)
            assert len(parser._buffer) <= MAX_HEADER_BYTES, "more is held back than a part's headers"
        refusal = None if parser.ended else "not ended"
    except BadUpload as refused:
        refusal = str(refused)
    return [(event, b"".join(data), i < n_ended) for i, (event, data) in enumerate(begun)], refusal


@budgeted()
@given(BODIES | FORMS, CUTS)
def test_any_bytes_give_the_same_whatever_the_cut(data: bytes, sizes: list[int]) -> None:
    assert read(cut(data, sizes)) == read(iter([data]))


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@budgeted()
@given(st.lists(st.tuples(NAMES, st.none() | NAMES, st.binary(max_size=300)), max_size=5), CUTS, BODIES)
def test_what_is_written_is_read(parts: list[tuple[str, str | None, bytes]], sizes: list[int], junk: bytes) -> None:
    boundary = b"a boundary that is in none of the parts"
    lines = [b"" if boundary in junk else junk]
    for name, filename, content in parts:
        head = f"Content-Disposition: form-data; name={quoted(name)}"
        head += "" if filename is None else f"; filename={quoted(filename)}"
        lines.append(b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + content)
    data = b"\r\n".join([*lines, b"--" + boundary + b"--", junk])

    async def pieces() -> AsyncIterator[bytes]:
        for piece in cut(data, sizes):
            yield piece

    async def parse() -> list[tuple[str, str | None, bytes]]:
        form = MultipartForm(f'multipart/form-data; boundary="{boundary.decode()}"', pieces())
        return [(p.name, p.filename, b"".join([data async for data in p.chunks()])) async for p in form.parts()]

    try:
        assert asyncio.run(parse()) == parts
    except BadUpload as refused:
        assert len(lines[0]) >= MAX_PREAMBLE_BYTES and "no boundary" in str(refused)


@budgeted(100)
@given(st.text(max_size=60) | st.text("multipart/form-data; boundary=\"'*\\ab\n\r", max_size=60))
def test_any_content_type_is_a_form_or_refused(text: str) -> None:
    parse_options(text)
    for content_type in (text, f"multipart/form-data; boundary={text}"):
        try:
            MultipartForm(content_type, iter_nothing())
        except BadUpload as refused:
            assert len(str(refused)) < 2000


async def iter_nothing() -> AsyncIterator[bytes]:
    return
    yield b""


FIELDS = st.sampled_from(sorted({*SpeechForm.model_fields, *VoiceForm.model_fields, "audio", "files", "other"}))
JSON_LIKE = st.recursive(
    st.sampled_from(["null", "1", "true", '"a"', "NaN", "1e999", '"\\ud800"']),
    lambda inner: (
        inner.map(lambda text: f"[{text}]")
        | st.tuples(inner, inner).map(lambda pair: f'{{"a":{pair[0]},"b":{pair[1]}}}')
    ),
    max_leaves=6,
)
TEXTS = st.text(max_size=20) | JSON_LIKE | st.sampled_from(["5", "-1", "true", "pcm_s16le_16", "{}", "9" * 5000])


@budgeted(100)
@given(st.dictionaries(FIELDS, TEXTS, max_size=6))
def test_any_fields_are_taken_or_refused_by_name(texts: dict[str, str]) -> None:
    for form in (SpeechForm, VoiceForm, VoiceEdit):
        try:
            parse_fields(form, texts)
        except InvalidFields as refused:
            assert all(problem.loc[:1] == ("body",) and problem.msg for problem in refused.problems)


@budgeted()
@given(BODIES, st.dictionaries(FIELDS, TEXTS, max_size=6), BODIES, CUTS)
def test_nothing_behind_a_recording_raises(sound: bytes, late: dict[str, str], behind: bytes, sizes: list[int]) -> None:
    """Whatever follows, the recording is whole, and what is wrong behind it is kept apart."""
    sound = sound.replace(b"--b", b"")
    fields = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in late.items()]
    rest = "".join(fields).encode("utf-8", errors="replace") + behind
    data = b"--b\r\n" + HEAD + sound + b"\r\n" + (rest or b"--b--")

    async def pieces() -> AsyncIterator[bytes]:
        for piece in cut(data, sizes):
            yield piece

    async def take() -> None:
        form = MultipartForm("multipart/form-data; boundary=b", pieces())
        async for audio in form.parts():
            recording = Recording()
            try:
                await recording.take(audio, form)
                taken = b"".join([piece async for piece in recording.chunks()])
                assert taken.startswith(sound)
                early = SpeechForm()
                used = LateFields(recording, early).used
                if recording.recordings == 1 and recording.failure is None:
                    stream_warnings(recording, early, used)
            finally:
                recording.close()
            break

    try:
        asyncio.run(take())
    except BadUpload as refused:
        assert "ends before" in str(refused), "only a recording without an end is refused"
