"""Forms as clients write them: every variant that can be told apart is read, whatever the cut; the rest is refused."""

from __future__ import annotations

import tracemalloc

import pytest

from serve_app.errors import BadUpload
from serve_app.multipart import (
    MAX_HEADER_BYTES,
    MAX_PARTS,
    MAX_PREAMBLE_BYTES,
    MultipartParser,
    PartBegin,
    PartEnd,
    parse_options,
)

HEAD = b'Content-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
SOUND = bytes(range(256)) + b"\r\n--b" + b"\r\n--limi" + b"\n--limit\n" + b"\r\n--limited\r\n" + b"\r\r\n-" + b"\r"


def read(data: bytes, step: int | None = None, boundary: bytes = b"limit") -> list[tuple[str, str | None, bytes]]:
    """The parts of a whole form, fed in pieces of `step` bytes."""
    parser, parts = MultipartParser(boundary), []
    content: bytearray | None = None
    for start in range(0, len(data), step or len(data)):
        for event in parser.feed(data[start : start + (step or len(data))]):
            if isinstance(event, PartBegin):
                assert content is None
                name, filename, content = event.name, event.filename, bytearray()
            elif isinstance(event, PartEnd):
                assert content is not None
                parts.append((name, filename, bytes(content)))
                content = None
            else:
                assert content is not None and event
                content += event
    if not parser.ended:
        raise BadUpload("ends before")
    return parts


def form(content: bytes = SOUND, head: bytes = HEAD) -> bytes:
    return b"--limit\r\n" + head + content + b"\r\n--limit--\r\n"


AUDIO = [("audio", "a", SOUND)]
VARIANTS = {
    "plain": (form(), AUDIO),
    "preamble": (b"Text that a reader skips.\r\n\r\n" + form(), AUDIO),
    "preamble with lookalikes": (b"--limited\r\n --limit\r\n--limi\r\n" + form(), AUDIO),
    "empty lines first": (b"\r\n\r\n" + form(), AUDIO),
    "preamble in bare newlines": (b"text\n" + form(), AUDIO),
    "epilogue": (form() + b"text\r\n--limit\r\n" + HEAD + b"not this one\r\n--limit--", AUDIO),
    "no last newline": (form()[:-2], AUDIO),
    "blanks behind boundaries": (form().replace(b"--limit\r\nContent", b"--limit \t\r\nContent"), AUDIO),
    "bare newlines": (
        b"--limit\nContent-Disposition: form-data; name=audio\n\nsound\r\n\n--limi\n--limit\n"
        b"Content-Disposition: form-data; name=seed\n\n7\n--limit--\n",
        [("audio", None, b"sound\r\n\n--limi"), ("seed", None, b"7")],
    ),
    "headers in bare newlines": (form(head=HEAD.replace(b"\r\n", b"\n")), AUDIO),
    "folded header": (form(head=HEAD.replace(b"; filename", b";\r\n\tfilename")), AUDIO),
    "other headers": (form(head=b"Content-Type: audio/wav; a=b\r\nX: \r\ncontent-DISPOSITION" + HEAD[19:]), AUDIO),
    "empty part": (form(b""), [("audio", "a", b"")]),
    "part without even a line": (b"--limit\r\n" + HEAD + b"--limit--", [("audio", "a", b"")]),
    "no part": (b"--limit--\r\n", []),
    "two parts": (
        b"--limit\r\n" + HEAD + b"1\r\n--limit\r\n" + HEAD.replace(b"audio", b"b") + b"\r\n\r\n--limit--",
        [("audio", "a", b"1"), ("b", "a", b"\r\n")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", [None, 1, 2, 3, 7, 50])
def test_every_variant_is_read_however_it_is_cut(variant: str, step: int | None) -> None:
    data, parts = VARIANTS[variant]
    assert read(data, step) == parts


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="a;b"; filename="x=y;z.wav"', "a;b", "x=y;z.wav"),
        (r'form-data; name="a\"b"; filename="C:\new\\x"', 'a"b', r"C:\new\x"),
        ("form-data; NAME=audio ; filename = plain.wav", "audio", "plain.wav"),
        ('form-data; name="audio"; filename="ä.wav"', "audio", "ä.wav"),
        ("form-data; name=audio; filename=fallback; filename*=UTF-8''%e2%82%ac%20.wav", "audio", "€ .wav"),
        ("form-data; filename*=iso-8859-1'en'%E4.wav; name=audio", "audio", "ä.wav"),
        ("form-data; name=audio; filename*=nonsense", "audio", "nonsense"),
        ("form-data; name=audio; filename*=rot13''%FF", "audio", "rot13''%FF"),
        ("attachment; name=audio; filename=", "audio", ""),
        ('form-data; name="unclosed; filename=x', "unclosed; filename=x", None),
        ('form-data; name=""', "", None),
    ],
)
def test_names_are_read_in_every_spelling(disposition: str, name: str, filename: str | None) -> None:
    data = form(b"1", f"Content-Disposition: {disposition}\r\n\r\n".encode())
    assert read(data) == read(data, 1) == [(name, filename, b"1")]


def test_names_that_are_no_utf_8_are_read_with_marks() -> None:
    ((name, _, _),) = read(form(b"1", b'Content-Disposition: form-data; name="\xff\xe4"\r\n\r\n'))
    assert name == "��"


def test_options_of_a_content_type() -> None:
    value, options = parse_options('Multipart/Form-Data; charset=UTF-8; Boundary="a b:c"; boundary=second')
    assert value == "multipart/form-data" and options == {"charset": "UTF-8", "boundary": "a b:c"}
    assert parse_options("") == ("", {})


@pytest.mark.parametrize("step", [None, 1, 1000])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * (MAX_PREAMBLE_BYTES + 20), "no boundary"),
        (b"--limit\r\n" + b"X: " + b"x" * MAX_HEADER_BYTES, "larger than"),
        (b"--limit\r\n" + b"X: y\r\n" * MAX_HEADER_BYTES, "larger than"),
        (b"--limit\r\n" + b" " * 2000 + b"no colon\r\n", "without a colon"),
        (b"--limit\r\nContent-Type: text/plain\r\n\r\n", "no name"),
        (b"--limit\r\nContent-Disposition: form-data; filename=x\r\n\r\n", "no name"),
        (b"--limit\r\n\r\n", "no name"),
        ((b"--limit\r\n" + HEAD + b"\r\n") * (MAX_PARTS + 1), f"more than {MAX_PARTS} parts"),
    ],
)
def test_what_goes_beyond_the_bounds_is_refused_and_named(data: bytes, message: str, step: int | None) -> None:
    with pytest.raises(BadUpload, match=message):
        read(data, step)


@pytest.mark.parametrize("boundary", [b"", b"x" * 201, b"a\nb", b"a\rb"])
def test_a_boundary_that_can_be_none_is_refused(boundary: bytes) -> None:
    with pytest.raises(BadUpload, match="boundary"):
        MultipartParser(boundary)


@pytest.mark.parametrize("piece", [b"\r\n--limitx", b"\r", b"--limit ", b"x" * 1000, b"\r\n--limit\t\t\t\tx"])
def test_nothing_piles_up(piece: bytes) -> None:
    parser = MultipartParser(b"limit")
    assert list(parser.feed(b"--limit\r\n" + HEAD))
    tracemalloc.start()
    for _ in range(20_000):
        for _ in parser.feed(piece):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("step", [None, 1, 100])
def test_what_stands_before_a_mistake_is_read_however_it_is_cut(step: int | None) -> None:
    data = form(b"whole")[:-4] + b"\r\nno header\r\n"
    parser, events = MultipartParser(b"limit"), list[object]()
    with pytest.raises(BadUpload, match="without a colon"):
        for start in range(0, len(data), step or len(data)):
            for event in parser.feed(data[start : start + (step or len(data))]):
                events.append(event)
    assert b"".join(event for event in events if isinstance(event, bytes)) == b"whole"
    assert isinstance(events[-1], PartEnd)
