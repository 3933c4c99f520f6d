"""The HTTP face: voices, conversions, early answers, odd and bad input; over a real server and real codecs."""

from __future__ import annotations

import errno
import io
import itertools
import json
import logging
import os
import time
import wave
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from configs.serve import Limits
from serve_app.decoders import busy_processes
from serve_app.forms import MODEL_IDS
from serve_app.http import create_app
from serve_app.recordings.service import Recordings
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.fakes import (
    EchoBackend,
    RawUpload,
    encoded,
    float_wav_file,
    recordings_over,
    serving,
    streamed,
    tone,
    wait_until,
    wav_file,
)
from webrtc.files import OUTPUT_FORMATS, decode_file

LIMITS = Limits(max_source_s=20.0, max_upload_bytes=6_000_000, max_conversions=2)
CONVERT = "/v1/speech-to-speech/clara"


@dataclass
class Server:
    """A running service and what is behind it."""

    url: str
    client: httpx.Client
    service: Recordings
    backend: EchoBackend
    raw_clients: list[RawUpload] = field(default_factory=list)

    def convert(
        self, audio: bytes, path: str = CONVERT, data: dict[str, str] | None = None, **query: Any
    ) -> httpx.Response:
        return self.client.post(path, params=query, data=data, files={"audio": audio})

    def raw(self, path: str) -> RawUpload:
        """A raw client that hangs up at the end of the test at the latest."""
        self.raw_clients.append(RawUpload(self.url, path))
        return self.raw_clients[-1]

    def is_idle(self) -> bool:
        return self.service.running_conversions == 0 and self.backend.open_streams == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    backend = EchoBackend()
    service = recordings_over(backend, FolderVoiceStore(tmp_path_factory.mktemp("voices")), LIMITS)
    with serving(create_app(service)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Server(url, client, service, backend)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server; afterwards nothing may be left of what the test did."""
    running.backend.failure = None
    yield running
    running.backend.failure = None
    while running.raw_clients:
        running.raw_clients.pop().close()
    wait_until(running.is_idle, "every conversion has ended")
    wait_until(lambda: busy_processes() == 0, "no decoder is left")


def problem(answer: httpx.Response, status_code: int = 422) -> dict[str, Any]:
    """The first complaint of a 422, or the detail of another refusal; checks the shape of both."""
    assert answer.status_code == status_code, answer.text
    detail = answer.json()["detail"]
    if status_code != 422:
        assert set(detail) >= {"status", "message"}
        return dict(detail)
    assert all(set(entry) == {"loc", "msg", "type"} for entry in detail)
    return dict(detail[0])


def seconds_of(audio: bytes) -> float:
    samples, rate = decode_file(audio)
    return len(samples) / rate


# Conversions


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_every_output_format_has_the_source_in_it(server: Server, name: str, suffix: str) -> None:
    answer = server.convert(wav_file(tone(1.0, 16000), 16000), CONVERT + suffix, output_format=name)
    fmt = OUTPUT_FORMATS[name]
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == fmt.media_type
    assert ("content-length" in answer.headers) == (suffix == "")
    if fmt.codec in ("mp3", "opus", "wav"):
        assert abs(seconds_of(answer.content) - 1.0) < 0.03
    else:
        bytes_per_s = fmt.sample_rate * (2 if fmt.codec == "pcm" else 1)
        assert abs(len(answer.content) / bytes_per_s - 1.0) < 0.001


def test_the_default_is_mp3_and_the_answer_names_its_seed(server: Server) -> None:
    first, second = (server.convert(encoded(1.0, "mp3_44100_128")) for _ in range(2))
    assert first.headers["content-type"] == "audio/mpeg"
    seeds = [int(answer.headers["x-seedvc-seed"]) for answer in (first, second)]
    assert seeds[0] != seeds[1], "drawn anew for each conversion"
    assert [call["seed"] for call in server.backend.calls[-2:]] == seeds
    assert (
        server.convert(encoded(1.0, "wav_16000"), data={"seed": "4294967295"}).headers["x-seedvc-seed"] == "4294967295"
    )


def test_a_whole_wav_states_its_size_and_a_streamed_one_does_not(server: Server) -> None:
    source = wav_file(tone(1.0), 22050)
    whole = server.convert(source, output_format="wav_22050").content
    with wave.open(io.BytesIO(whole)) as file:
        assert file.getnframes() == 22050
    flowing = server.convert(source, CONVERT + "/stream", output_format="wav_22050").content
    assert flowing[4:8] == flowing[40:44] == b"\xff\xff\xff\xff"
    assert flowing[44:] == whole[44:]


@pytest.mark.parametrize("family", ["speech-to-speech", "voice-changer"])
@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_both_path_families_take_all_fields(server: Server, family: str, suffix: str) -> None:
    fields = {
        "model_id": "eleven_multilingual_sts_v2",
        "voice_settings": json.dumps({"stability": 0.5}),
        "seed": "7",
        "remove_background_noise": "true",
        "file_format": "pcm_s16le_16",
        "steps": "3",
        "something_else": "ignored",
    }
    pcm = streamed(1.0, "pcm_16000")
    query = {"enable_logging": "false", "optimize_streaming_latency": "3", "output_format": "pcm_16000", "live": "true"}
    answer = server.client.post(
        f"/v1/{family}/martin{suffix}", params=query, data=fields, files={"audio": ("a.pcm", pcm, "audio/pcm")}
    )
    assert answer.status_code == 200, answer.text
    assert abs(len(answer.content) - len(pcm)) <= 4, "cleaned, and as long as before"
    assert server.backend.calls[-1] == {
        "path": "live", "voice_id": "martin", "sample_rate": 16000, "seed": 7, "steps": 3,
    }  # fmt: skip
    warnings = answer.headers.get_list("x-seedvc-warning")
    assert len(warnings) == 1 and "voice_settings" in warnings[0]


@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_background_noise_is_removed_where_it_is_asked_for(server: Server, suffix: str) -> None:
    """The backend says back what it hears: steady noise is quieter then, by 10 dB and more."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 3 * 22050)
    power = {}
    for remove in ("true", "false"):
        answer = server.client.post(
            CONVERT + suffix,
            params={"output_format": "pcm_22050"},
            data={"remove_background_noise": remove},
            files={"audio": ("a.wav", wav_file(noise, 22050))},
        )
        assert answer.status_code == 200, answer.text
        heard = np.frombuffer(answer.content, "<i2")
        assert len(heard) == len(noise)
        power[remove] = float(np.mean(heard[22050:].astype(float) ** 2))
    assert power["true"] < 0.1 * power["false"]


def test_a_new_voice_tells_how_good_its_reference_is(server: Server) -> None:
    answer = add(server, {"files": encoded(2.0, "mp3_44100_32")})
    assert answer.status_code == 200, answer.text
    told = answer.json()["reference"]
    assert told["speech_s"] == 4.1 and told["level_dbfs"] == -20.04 and told["music"] is False
    assert "4.1 s of speech" in told["summary"] and told["advice"] == [answer.headers["x-seedvc-warning"]]
    voice_id = answer.json()["voice_id"]
    assert server.client.get(f"/v1/voices/{voice_id}").json()["reference"] == told
    server.client.delete(f"/v1/voices/{voice_id}")
    assert server.client.get("/v1/voices/martin").json()["reference"] is None


def test_a_reference_is_cleaned_where_it_is_asked_for(server: Server) -> None:
    noise = wav_file(np.random.default_rng(0).uniform(-0.3, 0.3, 3 * 22050), 22050)
    power = {}
    for remove in ("true", "false"):
        answer = add(server, {"files": noise}, remove_background_noise=remove)
        assert answer.status_code == 200, answer.text
        stored, _ = server.service.voices.store.reference(answer.json()["voice_id"])
        power[remove] = float(np.mean(stored[22050:] ** 2))
        server.client.delete(f"/v1/voices/{answer.json()['voice_id']}")
    assert power["true"] < 0.1 * power["false"]


def test_a_recording_and_a_stream_are_opened_differently(server: Server) -> None:
    server.convert(wav_file(tone(1.0), 22050))
    server.convert(wav_file(tone(1.0), 22050), CONVERT + "/stream")
    server.convert(wav_file(tone(1.0), 22050), CONVERT + "/stream", optimize_streaming_latency=0)
    whole, flowing, unhurried = server.backend.calls[-3:]
    assert whole["streaming"] is False and flowing["streaming"] is True and unhurried["streaming"] is False
    assert whole["steps"] is None
    server.convert(streamed(1.0, "pcm_16000"), data={"file_format": "pcm_s16le_16"})


@pytest.mark.parametrize("suffix", ["", "/stream"])
@pytest.mark.parametrize(
    ("source", "seconds"),
    [
        (wav_file(tone(1.0, 8000), 8000), 1.0),
        (wav_file(np.stack([tone(1.0, 96000, 100.0 * (i + 1)) for i in range(6)], axis=1), 96000), 1.0),
        (wav_file(np.zeros(22050), 22050), 1.0),
        (encoded(1.0, "opus_48000_64"), 1.0),
        (streamed(1.0, "wav_16000"), 1.0),
    ],
    ids=["8 kHz mono", "96 kHz 5.1", "silent", "opus", "wav without sizes"],
)
def test_odd_sources_convert(server: Server, source: bytes, seconds: float, suffix: str) -> None:
    answer = server.convert(source, CONVERT + suffix, output_format="wav_22050")
    assert answer.status_code == 200, answer.text
    assert abs(seconds_of(answer.content) - seconds) < 0.02


def test_a_truncated_mp3_converts_as_far_as_it_goes_and_says_so(server: Server) -> None:
    whole = encoded(10.0, "mp3_44100_128")
    answer = server.convert(whole[: len(whole) // 2], output_format="wav_22050")
    assert 4.5 < seconds_of(answer.content) < 5.2
    assert "cut off" in answer.headers["x-seedvc-warning"]


# The early answer

STREAMED = {
    "pcm": ("pcm_16000", "pcm_s16le_16"),
    "wav": ("wav_16000", "other"),
    "mp3": ("mp3_44100_128", "other"),
    "ogg": ("opus_48000_64", "other"),
}


@pytest.mark.parametrize(("source", "result"), list(itertools.product(STREAMED, STREAMED)))
def test_stream_answers_before_the_upload_has_ended(server: Server, source: str, result: str) -> None:
    recording = streamed(6.0, STREAMED[source][0])
    raw = server.raw(f"{CONVERT}/stream?output_format={STREAMED[result][0]}")
    raw.field("file_format", STREAMED[source][1])
    raw.begin_file()
    half = len(recording) // 2
    raw.send(recording[:half])
    # Nothing more is sent until a good part of the answer has come: this returns only if the answer is early.
    early = len(raw.receive_body(2000))
    assert raw.status == 200
    raw.send(recording[half:])
    raw.end_file()
    raw.end()
    answer = raw.receive_all()
    assert raw.complete and len(answer) > early
    if result == "pcm":
        assert abs(len(answer) / 32000 - 6.0) < 0.05
    else:
        assert abs(seconds_of(answer) - 6.0) < 0.05
    raw.close()


@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_a_client_that_hangs_up_half_way_frees_everything(server: Server, suffix: str) -> None:
    recording = streamed(6.0, "mp3_44100_128")
    before = len(server.backend.calls)
    for _ in range(3):  # more than may run at once: a slot that is not freed would refuse the last one
        raw = server.raw(CONVERT + suffix)
        raw.begin_file()
        raw.send(recording[: len(recording) // 2])
        if suffix:
            raw.receive_body()
        raw.close()
        wait_until(server.is_idle, "the conversion has ended")
    assert len(server.backend.calls) - before == (3 if suffix else 0)
    assert server.convert(recording).status_code == 200


def test_a_reader_that_stops_holds_the_conversion_back(tmp_path: Path) -> None:
    backend = EchoBackend()
    service = recordings_over(backend, FolderVoiceStore(tmp_path), Limits())
    seconds = 240  # 23 MB of answer: far beyond what the sockets' own buffers take
    with (
        serving(create_app(service)) as url,
        closing(RawUpload(url, CONVERT + "/stream?output_format=wav_48000")) as raw,
    ):
        raw.field("file_format", "pcm_s16le_16")
        raw.begin_file()
        for _ in range(seconds):
            raw.send(bytes(32000))
        raw.end_file()
        raw.end()
        raw.receive_body()
        held, seen = -1.0, 0.0
        while held != seen:  # until nothing moves any more
            held = seen
            time.sleep(0.3)
            seen = backend.pushed_samples
        assert 0 < held < 0.8 * seconds * 16000, "the conversion ran on although nobody read"
        assert len(raw.receive_all()) == pytest.approx(seconds * 96000, rel=0.001)


# Fields behind the recording


def test_the_fields_of_a_short_form_count_wherever_they_stand(server: Server) -> None:
    """The JavaScript SDK writes the recording first."""
    body: dict[str, Any] = {"audio": ("a.wav", wav_file(tone(1.0), 22050)), "seed": (None, "5")}
    assert server.client.post(CONVERT, files=body).headers["x-seedvc-seed"] == "5"
    streamed_too = server.client.post(CONVERT + "/stream", files=body)
    assert streamed_too.headers["x-seedvc-seed"] == "5"
    assert "seed came behind the recording, and counted" in streamed_too.headers["x-seedvc-warning"]
    same = {**body, "seed": (None, ""), "model_id": (None, MODEL_IDS[1]), "voice_settings": (None, "{}")}
    unchanged = server.client.post(CONVERT + "/stream", files=same)
    assert unchanged.status_code == 200 and "x-seedvc-warning" not in unchanged.headers


def test_samples_without_a_header_may_be_named_behind_the_recording(server: Server) -> None:
    pcm = streamed(1.0, "pcm_16000")
    body: dict[str, Any] = {"audio": ("a.pcm", pcm), "file_format": (None, "pcm_s16le_16")}
    for suffix in ("", "/stream"):
        answer = server.client.post(CONVERT + suffix, params={"output_format": "pcm_16000"}, files=body)
        assert answer.status_code == 200, answer.text
        assert abs(len(answer.content) - len(pcm)) <= 4


LATE: list[tuple[str, str]] = [
    ("seed", "5"), ("seed", "abc"), ("seed", "x" * 70000), ("steps", "3"), ("remove_background_noise", "true"),
    ("model_id", "eleven_multilingual_sts_v2"), ("model_id", "gpt"), ("voice_settings", '{"stability": 0.3}'),
    ("file_format", "pcm_s16le_16"), ("file_format", "mp3"), ("anything", "else"),
]  # fmt: skip


HARMLESS = [("model_id", "eleven_multilingual_sts_v2"), ("anything", "else")]


@pytest.mark.parametrize(("name", "text"), [field for field in LATE if field[1] != "pcm_s16le_16"])
def test_a_field_behind_a_short_recording_is_never_refused(server: Server, name: str, text: str) -> None:
    raw = server.raw(CONVERT + "/stream")
    raw.begin_file()
    raw.send(encoded(1.0, "wav_22050"))
    raw.end_file()
    raw.field(name, text)
    raw.end()
    answer = raw.receive_all()
    head = raw.received.partition(b"\r\n\r\n")[0].lower()
    assert raw.status == 200 and raw.complete
    assert abs(seconds_of(answer) - 1.0) < 0.05
    assert (b"x-seedvc-warning" in head) == ((name, text) not in HARMLESS), head


@pytest.mark.parametrize(("name", "text"), LATE)
def test_a_field_that_comes_too_late_cuts_nothing(server: Server, name: str, text: str) -> None:
    """The answer has begun while the recording was still coming: its head tells that such fields do not count."""
    recording = streamed(6.0, "mp3_44100_128")
    raw = server.raw(CONVERT + "/stream?output_format=pcm_22050")
    raw.begin_file()
    raw.send(recording[: len(recording) // 2])
    raw.receive_body(2000)
    assert b"a field that follows comes too late to count" in raw.received
    raw.send(recording[len(recording) // 2 :])
    raw.end_file()
    raw.field(name, text)
    raw.begin_file()
    raw.send(b"a second recording")
    raw.end_file()
    raw.end()
    answer = raw.receive_all()
    assert raw.status == 200 and raw.complete
    assert abs(len(answer) / 44100 - 6.0) < 0.1


def test_no_warning_where_the_fields_come_first(server: Server) -> None:
    recording = streamed(6.0, "mp3_44100_128")
    raw = server.raw(CONVERT + "/stream?output_format=pcm_22050")
    raw.field("seed", "4")
    raw.begin_file()
    raw.send(recording[: len(recording) // 2])
    raw.receive_body(2000)
    assert b"x-seedvc-warning" not in raw.received.lower() and b"x-seedvc-seed: 4" in raw.received.lower()


def test_samples_that_are_named_late_of_all_convert(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken for a file that cannot be read until the field comes."""
    monkeypatch.setattr("serve_app.recordings.routes._REST_OF_FORM_S", 0.0)
    pcm = streamed(2.0, "pcm_16000")
    raw = server.raw(CONVERT + "/stream?output_format=pcm_16000")
    raw.begin_file()
    raw.send(pcm[:20000])
    time.sleep(0.1)
    raw.send(pcm[20000:])
    raw.end_file()
    time.sleep(0.1)
    raw.field("file_format", "pcm_s16le_16")
    raw.end()
    answer = raw.receive_all()
    assert raw.status == 200 and abs(len(answer) - len(pcm)) <= 4


def test_a_form_that_is_broken_behind_the_recording_is_refused_while_that_is_possible(server: Server) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="audio"\r\n\r\n'
    body = head + wav_file(tone(0.5), 22050) + b"\r\n--b\r\nno header\r\n"
    for suffix in ("", "/stream"):
        answer = server.client.post(
            CONVERT + suffix, content=body, headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert "without a colon" in problem(answer, 400)["message"]


def test_a_form_that_breaks_off_inside_the_recording_is_still_refused(server: Server) -> None:
    raw = server.raw(CONVERT + "/stream")
    raw.begin_file()
    raw.send(streamed(0.5, "mp3_44100_128"))
    raw._socket.sendall(b"0\r\n\r\n")
    refused = raw.receive_all()
    assert raw.status == 400 and b"ends before its closing boundary" in refused


# Refusals


@pytest.mark.parametrize("suffix", ["", "/stream"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "empty"),
        (b"this is no recording, but a sentence that goes on for a while. " * 20, "not_audio"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 40, "not_audio"),
        (float_wav_file(np.full(22050, np.nan, np.float32), 22050), "not_finite"),
        (float_wav_file(np.concatenate([tone(0.5), [np.inf]]).astype(np.float32), 22050), "not_finite"),
    ],
    ids=["empty", "text", "binary", "NaN", "infinite"],
)
def test_what_is_no_recording_is_refused(server: Server, source: bytes, reason: str, suffix: str) -> None:
    refused = problem(server.convert(source, CONVERT + suffix))
    assert refused["loc"] == ["body", "audio"] and refused["type"] == reason and refused["msg"]


@pytest.mark.parametrize("suffix", ["", "/stream"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "-1"),
        ("seed", "4294967296"),
        ("seed", "many"),
        ("seed", "1.5"),
        ("voice_settings", "{"),
        ("voice_settings", "[1]"),
        ("remove_background_noise", "perhaps"),
        ("file_format", "mp3"),
        ("model_id", "gpt"),
        ("steps", "0"),
        ("steps", "1000"),
    ],
)
def test_a_wrong_field_is_refused_by_name(server: Server, field: str, value: str, suffix: str) -> None:
    refused = problem(server.convert(wav_file(tone(1.0), 22050), CONVERT + suffix, data={field: value}))
    assert refused["loc"][:2] == ["body", field]


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("output_format", "mp3"),
        ("output_format", ""),
        ("enable_logging", "perhaps"),
        ("optimize_streaming_latency", "5"),
        ("live", "2"),
    ],
)
def test_a_wrong_query_parameter_is_refused_by_name(server: Server, query: str, value: str) -> None:
    refused = problem(server.convert(wav_file(tone(1.0), 22050), **dict[str, Any]({query: value})))
    assert refused["loc"] == ["query", query]
    if query == "output_format":
        assert all(name in refused["msg"] for name in OUTPUT_FORMATS), "it lists what is allowed"


@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_a_form_without_a_recording_is_refused(server: Server, suffix: str) -> None:
    answer = server.client.post(CONVERT + suffix, data={"seed": "1"}, files={"other": b"x"})
    assert problem(answer) == {"loc": ["body", "audio"], "msg": "Field required", "type": "missing"}
    two = [("audio", wav_file(tone(1.0), 22050))] * 2
    assert problem(server.client.post(CONVERT + suffix, files=two))["type"] == "duplicate"


@pytest.mark.parametrize("suffix", ["", "/stream"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"garbage"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="audio"\r\n\r\nx'),
        ("multipart/form-data; boundary=" + "b" * 300, b"x"),
    ],
    ids=["json", "no boundary", "no body", "garbage", "nameless part", "ends in a part", "endless boundary"],
)
def test_what_is_no_form_is_refused(server: Server, content_type: str, body: bytes, suffix: str) -> None:
    answer = server.client.post(CONVERT + suffix, content=body, headers={"content-type": content_type})
    assert problem(answer, 400)["status"] == "invalid_request"


@pytest.mark.parametrize("suffix", ["", "/stream"])
def test_an_unknown_voice_is_not_found(server: Server, suffix: str) -> None:
    answer = server.convert(wav_file(tone(1.0), 22050), "/v1/speech-to-speech/nobody" + suffix)
    refused = problem(answer, 404)
    assert refused["status"] == "voice_not_found" and "nobody" in refused["message"]


@pytest.mark.parametrize("voice_id", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "a%20b", "x" * 65])
def test_a_voice_id_that_leads_elsewhere_is_refused(server: Server, voice_id: str) -> None:
    for method, path in (("POST", "/v1/speech-to-speech/"), ("GET", "/v1/voices/"), ("DELETE", "/v1/voices/")):
        answer = server.client.request(method, path + voice_id, files={"audio": b"x"} if method == "POST" else None)
        assert answer.status_code in (404, 405, 422), answer.text
        assert answer.json()["detail"]


def test_a_source_beyond_the_limit_is_refused_with_the_limit(server: Server) -> None:
    assert server.convert(encoded(20.0, "mp3_44100_32")).status_code == 200
    too_long = encoded(21.0, "mp3_44100_32")
    refused = problem(server.convert(too_long), 413)
    assert refused["status"] == "source_too_long" and "20 s" in refused["message"]
    raw = server.raw(CONVERT + "/stream")
    raw.begin_file()
    raw.send(too_long)
    raw.end_file()
    raw.end()
    raw.receive_all()
    assert raw.status == 200 and not raw.complete, "an answer that has begun is cut short, not ended"
    raw.close()


@pytest.mark.parametrize("path", [CONVERT, CONVERT + "/stream", "/v1/voices/add"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_beyond_the_limit_is_refused(server: Server, path: str, chunked: bool) -> None:
    name = "files" if path.endswith("add") else "audio"
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
    noise = np.random.default_rng(0).bytes(64 * 1024)
    pieces = [head, *[noise] * 100, b"\r\n--b--\r\n"]
    answer = server.client.post(
        path,
        content=iter(pieces) if chunked else b"".join(pieces),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    if answer.status_code == 422:
        # the stream route may see first that the bytes are no recording
        assert path.endswith("/stream")
        return
    refused = problem(answer, 413)
    assert refused["status"] == "upload_too_large" and "6000000" in refused["message"]


def test_more_than_the_service_takes_at_once_is_told_to_come_back(server: Server) -> None:
    raws = []
    for _ in range(LIMITS.max_conversions):
        raw = server.raw(CONVERT + "/stream")
        raw.begin_file()
        raw.send(streamed(3.0, "mp3_44100_128"))
        raw.receive_body()
        raws.append(raw)
    answer = server.convert(wav_file(tone(1.0), 22050))
    assert problem(answer, 429)["status"] == "too_many_concurrent_requests"
    assert int(answer.headers["retry-after"]) >= 1
    assert server.client.get("/readyz").json() == {"status": "ready", "full": ["conversions"]}
    for raw in raws:
        raw.end_file()
        raw.end()
        raw.receive_all()
        assert raw.complete
        raw.close()
    wait_until(server.is_idle, "there is room again")
    assert server.convert(wav_file(tone(1.0), 22050)).status_code == 200


def test_a_failure_of_ours_shows_nothing_and_is_logged_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.backend.failure = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.INFO):
        answer = server.convert(wav_file(tone(1.0), 22050))
    refused = problem(answer, 500)
    assert refused["status"] == "internal_error" and "secret" not in answer.text and "Traceback" not in answer.text
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1 and logged[0].exc_info is not None
    assert logged[0].__dict__["request_id"] == refused["request_id"]


def test_unknown_paths_and_methods_have_the_same_shape(server: Server) -> None:
    assert problem(server.client.get("/v1/nothing"), 404)["status"] == "not_found"
    assert problem(server.client.put("/v1/voices"), 405)["status"] == "method_not_allowed"


# Voices


def add(server: Server, files: Any, **fields: str) -> httpx.Response:
    return server.client.post("/v1/voices/add", data={"name": "Anna", **fields}, files=files)


def test_a_voice_is_added_listed_used_and_deleted(server: Server) -> None:
    answer = add(server, {"files": wav_file(tone(2.0), 22050)}, labels='{"accent": "none"}', description="calm")
    assert answer.status_code == 200, answer.text
    voice_id = answer.json()["voice_id"]
    assert answer.json()["requires_verification"] is False
    voice = server.client.get(f"/v1/voices/{voice_id}").json()
    assert voice["name"] == "Anna" and voice["labels"] == {"accent": "none"} and voice["category"] == "cloned"
    assert voice in server.client.get("/v1/voices").json()["voices"]
    assert server.convert(encoded(1.0, "mp3_44100_128"), f"/v1/voice-changer/{voice_id}").status_code == 200
    assert server.client.get(f"/v1/voices/{voice_id}/settings").json()["speed"] == 1.0
    assert server.client.delete(f"/v1/voices/{voice_id}").json() == {"status": "ok"}
    for gone in (
        server.client.get(f"/v1/voices/{voice_id}"),
        server.client.delete(f"/v1/voices/{voice_id}"),
        server.client.get(f"/v1/voices/{voice_id}/settings"),
        server.convert(encoded(1.0, "mp3_44100_128"), f"/v1/voice-changer/{voice_id}"),
    ):
        assert problem(gone, 404)["status"] == "voice_not_found"


def test_several_recordings_make_one_voice_in_any_order_of_fields(server: Server) -> None:
    files: Any = [
        ("files", ("a.wav", wav_file(tone(0.7, 48000), 48000))),
        ("files", ("b.mp3", encoded(0.7, "mp3_22050_32"))),
        ("name", (None, "Two")),
        ("labels", (None, "null")),
    ]
    answer = server.client.post("/v1/voices/add", files=files)
    assert answer.status_code == 200, answer.text
    record = server.service.voices.store.get(answer.json()["voice_id"])
    assert record.sample_rate == 48000 and record.duration_s == pytest.approx(1.4, abs=0.03)
    server.client.delete(f"/v1/voices/{record.voice_id}")


def test_a_reference_is_cut_to_its_limit_with_a_warning(server: Server) -> None:
    answer = add(server, {"files": encoded(40.0, "mp3_44100_32")})
    assert answer.status_code == 200, answer.text
    assert "30 s" in answer.headers.get_list("x-seedvc-warning")[0]
    record = server.service.voices.store.get(answer.json()["voice_id"])
    assert record.duration_s == 30.0
    server.client.delete(f"/v1/voices/{record.voice_id}")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (wav_file(tone(0.9), 22050), "too_short"),
        (wav_file(np.zeros(44100), 22050), "silent"),
        (float_wav_file(np.full(44100, np.nan, np.float32), 22050), "not_finite"),
        (b"", "empty"),
        (b"no recording at all " * 50, "not_audio"),
    ],
    ids=["short", "silent", "NaN", "empty", "text"],
)
def test_a_reference_that_cannot_serve_is_refused(server: Server, reference: bytes, reason: str) -> None:
    before = server.client.get("/v1/voices").json()
    refused = problem(add(server, {"files": reference}))
    assert refused["type"] == reason and refused["loc"] == ["body", "files"]
    assert server.client.get("/v1/voices").json() == before


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": ""}, "name"),
        ({"labels": "{"}, "labels"),
        ({"labels": '{"a": 1}'}, "labels"),
        ({"name": "x" * 101}, "name"),
    ],
)
def test_a_wrong_field_of_a_voice_is_refused(server: Server, fields: dict[str, str], where: str) -> None:
    refused = problem(add(server, {"files": wav_file(tone(2.0), 22050)}, **fields))
    assert refused["loc"][:2] == ["body", where]


def test_labels_that_are_null_are_left_out(server: Server) -> None:
    added = add(server, {"files": wav_file(tone(2.0), 22050)}, labels='{"accent": null, "age": "old"}')
    assert added.status_code == 200, added.text
    voice_id = added.json()["voice_id"]
    assert server.client.get(f"/v1/voices/{voice_id}").json()["labels"] == {"age": "old"}
    server.client.delete(f"/v1/voices/{voice_id}")


@pytest.mark.parametrize(
    "labels",
    [
        json.dumps({str(i): "x" for i in range(51)}),
        json.dumps({"x" * 101: "x"}),
        json.dumps({"x": "x" * 501}),
        json.dumps({"": "x"}),
        '{"a": true}',
        '{"a": {"b": "c"}}',
        "[" * 20000,
        '["a"]',
    ],
)
def test_labels_that_are_too_many_too_long_or_no_text_are_refused(server: Server, labels: str) -> None:
    assert problem(add(server, {"files": wav_file(tone(2.0), 22050)}, labels=labels))["loc"][:2] == ["body", "labels"]


def test_a_form_of_many_recordings_is_refused_and_holds_few_files(server: Server) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, most = descriptors(), 0
    raw = server.raw("/v1/voices/add")
    for _ in range(25):
        raw.begin_file("files")
        raw.send(b"x")
        raw.end_file()
        most = max(most, descriptors())
    raw.begin_file("files")
    raw.end_file()
    raw.end()
    refused = json.loads(raw.receive_all())["detail"][0]
    assert raw.status == 422 and refused["loc"] == ["body", "files"] and "at most 25" in refused["msg"]
    assert most - before < 15
    raw.close()

    part = '--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    many = server.client.post(
        "/v1/voices/add",
        content=(part * 65 + "--b--").encode(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert "more than 64 parts" in problem(many, 400)["message"]


def test_a_voice_is_renamed(server: Server) -> None:
    added = add(server, {"files": wav_file(tone(2.0), 22050)}, labels='{"accent": "none"}', description="calm")
    url = f"/v1/voices/{added.json()['voice_id']}"
    before = server.client.get(url).json()
    form: dict[str, Any] = {"name": (None, "Berta"), "labels": (None, "null"), "description": (None, "null")}
    edited = server.client.post(url + "/edit", files=form)
    assert edited.json() == {"status": "ok"}, edited.text
    assert server.client.get(url).json() == before | {"name": "Berta"}
    relabelled = server.client.post(url + "/edit", files={"labels": (None, '{"age": "old", "accent": null}')})
    assert relabelled.json() == {"status": "ok"}
    voice = server.client.get(url).json()
    assert voice["labels"] == {"age": "old"} and voice["description"] == "calm"
    assert server.convert(wav_file(tone(1.0), 22050), f"/v1/speech-to-speech/{voice['voice_id']}").status_code == 200

    refused = problem(server.client.post(url + "/edit", files={"files": ("a.wav", b"x")}))
    assert refused["loc"] == ["body", "files"] and "cannot be changed" in refused["msg"]
    assert problem(server.client.post(url + "/edit", files={"name": (None, "x" * 101)}))["loc"] == ["body", "name"]
    server.client.delete(url)
    assert problem(server.client.post(url + "/edit", files=form), 404)["status"] == "voice_not_found"
    assert problem(server.client.post("/v1/voices/clara/edit", files=form), 403)["status"] == "voice_is_read_only"


def test_settings_of_a_voice_are_not_kept_and_a_warning_says_so(server: Server) -> None:
    url = "/v1/voices/clara/settings"
    edited = server.client.post(url + "/edit", json={"stability": 0.4})
    assert edited.json() == {"status": "ok"} and "ignored" in edited.headers["x-seedvc-warning"]
    assert server.client.get(url).json()["stability"] == 0.5
    for wrong in (b"", b"{", b"[" * 30000, b"1" * 30000, b" " * 70000, b"\xff"):
        assert problem(server.client.post(url + "/edit", content=wrong), 400)["status"] == "invalid_request"
    assert problem(server.client.post("/v1/voices/nobody/settings/edit", json={}), 404)["status"] == "voice_not_found"


def test_a_user_is_answered_who_may_do_all(server: Server) -> None:
    user = server.client.get("/v1/user").json()
    assert user["subscription"] == server.client.get("/v1/user/subscription").json()
    assert user["subscription"]["character_limit"] - user["subscription"]["character_count"] > 10**9
    assert user["subscription"]["can_use_instant_voice_cloning"] is True
    slots = user["subscription"]["voice_slots_used"]
    voice_id = add(server, {"files": wav_file(tone(2.0), 22050)}).json()["voice_id"]
    assert server.client.get("/v1/user/subscription").json()["voice_slots_used"] == slots + 1
    server.client.delete(f"/v1/voices/{voice_id}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/text-to-speech/clara"),
        ("POST", "/v1/text-to-speech/clara/stream"),
        ("POST", "/v1/speech-to-text"),
        ("GET", "/v1/history"),
        ("POST", "/v1/voices/pvc"),
        ("POST", "/v1/audio-isolation"),
    ],
)
def test_what_the_api_has_elsewhere_is_refused_by_what_is_offered(server: Server, method: str, path: str) -> None:
    answer = server.client.request(method, path)
    detail = problem(answer, answer.status_code)
    assert answer.status_code in (404, 405)
    assert path in detail["message"] and "not offered" in detail["message"] and "speech-to-speech" in detail["message"]


def test_a_voice_without_recordings_is_refused(server: Server) -> None:
    assert problem(add(server, {"other": b"x"}))["loc"] == ["body", "files"]


def test_premade_voices_are_there_and_cannot_be_deleted(server: Server) -> None:
    voices = server.client.get("/v1/voices?show_legacy=true").json()["voices"]
    assert {"clara", "martin"} <= {voice["voice_id"] for voice in voices if voice["category"] == "premade"}
    assert problem(server.client.delete("/v1/voices/clara"), 403)["status"] == "voice_is_read_only"


def test_the_features_of_a_premade_voice_are_made_once(server: Server) -> None:
    for _ in range(2):
        server.convert(wav_file(tone(1.0), 22050), "/v1/speech-to-speech/angus")
    assert server.service.voices.store.features("angus", "echo") is not None
    made = server.backend.made_voices
    server.convert(wav_file(tone(1.0), 22050), "/v1/speech-to-speech/angus")
    assert server.backend.made_voices == made


def test_voices_come_in_pages(server: Server) -> None:
    ids = [add(server, {"files": wav_file(tone(1.5), 22050)}, name=f"Page {i}").json()["voice_id"] for i in range(5)]
    query: dict[str, Any] = {
        "search": "page",
        "sort": "name",
        "sort_direction": "asc",
        "page_size": 2,
        "category": "cloned",
    }
    names: list[str] = []
    token: str | None = None
    while True:
        page = server.client.get("/v2/voices", params=query | ({"next_page_token": token} if token else {})).json()
        names += [voice["name"] for voice in page["voices"]]
        assert page["total_count"] == 5
        token = page["next_page_token"]
        assert page["has_more"] == (token is not None)
        if token is None:
            break
    assert names == [f"Page {i}" for i in range(5)]
    some = server.client.get("/v2/voices", params={"voice_ids": ids[:2]}).json()["voices"]
    assert {voice["voice_id"] for voice in some} == set(ids[:2])
    for wrong in ({"page_size": 0}, {"page_size": 101}, {"sort": "size"}, {"next_page_token": "nowhere"}):
        problem(server.client.get("/v2/voices", params=wrong))
    for voice_id in ids:
        server.client.delete(f"/v1/voices/{voice_id}")


# The rest


def form_of(path: Any) -> Any:
    return path["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]


def test_models_health_and_documentation(server: Server) -> None:
    models = server.client.get("/v1/models").json()
    assert {model["model_id"] for model in models} == set(MODEL_IDS)
    assert all(model["can_do_voice_conversion"] and not model["can_do_text_to_speech"] for model in models)
    assert models[0]["recordings"] == {"max_source_s": 20.0, "max_upload_bytes": 6_000_000, "steps": None}
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready", "full": []}
    assert server.client.get("/docs").status_code == 200
    paths = server.client.get("/openapi.json").json()["paths"]
    form = paths["/v1/voice-changer/{voice_id}/stream"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert {"audio", "seed", "file_format", "voice_settings"} <= form["properties"].keys()
    assert form["required"] == ["audio"]
    added = form_of(paths["/v1/voices/add"])
    assert set(added["required"]) == {"name", "files"}


def test_one_bad_voice_fails_for_itself_alone(server: Server, tmp_path: Path) -> None:
    store = FolderVoiceStore(tmp_path)
    (tmp_path / "voices" / "bad").write_bytes(b"no folder")
    with (
        serving(create_app(recordings_over(EchoBackend(), store, LIMITS))) as url,
        httpx.Client(base_url=url) as client,
    ):
        for path in ("/v1/voices", "/v2/voices", "/readyz"):
            assert client.get(path).status_code == 200
        assert problem(client.get("/v1/voices/bad"), 404)["status"] == "voice_damaged"
        convert = client.post("/v1/speech-to-speech/bad", files={"audio": wav_file(tone(0.5), 22050)})
        assert problem(convert, 404)["status"] == "voice_damaged"
        assert client.delete("/v1/voices/bad").status_code == 200
        assert problem(client.get("/v1/voices/bad"), 404)["status"] == "voice_not_found"


def test_a_full_disk_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = server.client.get("/v1/voices").json()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        answer = server.client.post(
            "/v1/voices/add", data={"name": "Anna"}, files={"files": wav_file(tone(1.5), 22050)}
        )
    refused = problem(answer, 507)
    assert refused["status"] == "not_stored" and "No space left" in refused["message"]
    assert server.client.get("/v1/voices").json() == before


def test_nothing_is_kept_of_a_conversion(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert server.convert(wav_file(tone(15.0, 48000), 48000), output_format="wav_48000").status_code == 200
    assert list(tmp_path.iterdir()) == []
