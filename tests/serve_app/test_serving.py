"""The whole service as users meet it: HTTP through Serve's proxy to the graph, its health, its metrics."""

from __future__ import annotations

import io
import itertools
import json
import os
from contextlib import ExitStack, closing

import httpx
import numpy as np
import pytest
from ray import serve
from websockets.sync.client import connect

from configs.serve import Limits
from stages.geometry import HOP, MODEL_RATE
from tests.serve_app.deploy import Deployed, speechlike
from tests.serve_app.fakes import RawUpload, streamed, wait_until, wav_file
from tests.serve_app.processes import listening
from webrtc.files import decode_file

pytestmark = pytest.mark.ray


def test_all_five_deployments_are_healthy(graph: Deployed) -> None:
    deployments = serve.status().applications["seedvc"].deployments
    assert set(deployments) == {"Ingress", "Encoder", "Diffusion", "Vocoder", "VoiceMaker"}
    assert {deployment.status for deployment in deployments.values()} == {"HEALTHY"}


def test_all_of_it_listens_on_loopback(graph: Deployed) -> None:
    tcp = [each for each in listening(os.getpid()) if each.protocol.startswith("tcp")]
    assert len(tcp) > 10, "Ray's own processes are not among the sockets"
    assert [each for each in tcp if not each.is_loopback] == []


def test_the_service_is_ready_through_the_proxy(graph: Deployed) -> None:
    ready = {"status": "ready", "full": []}
    wait_until(lambda: httpx.get(f"{graph.http_url}/readyz", timeout=30).json() == ready, "all of it answers")


@pytest.mark.parametrize("query", [{}, {"live": "true"}])
def test_a_recording_is_converted(graph: Deployed, query: dict[str, str]) -> None:
    source = speechlike(2.0, 8)
    upload = wav_file(source, MODEL_RATE)
    answer = httpx.post(
        f"{graph.http_url}/v1/speech-to-speech/{graph.voice_id}",
        params={"output_format": "wav_22050", **query},
        data={"seed": "11"},
        files={"audio": upload},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-seedvc-seed"] == "11"
    got, rate = decode_file(io.BytesIO(answer.content).getvalue())
    heard = np.rint(source * 32767).astype(np.float32) / np.float32(32768)
    expected = graph.local.convert(heard, MODEL_RATE, graph.voice, seed=11, live=bool(query))
    assert rate == MODEL_RATE
    assert abs(len(got) - len(source)) <= HOP
    assert np.abs(got - expected[: len(got)]).max() < 1e-3  # 16-bit steps, and blocks that shared a batch


def test_a_voice_is_added_used_and_deleted(graph: Deployed) -> None:
    with httpx.Client(base_url=graph.http_url, timeout=120) as client:
        reference = {"files": wav_file(speechlike(3.0, 2), MODEL_RATE)}
        added = client.post("/v1/voices/add", data={"name": "mine", "labels": "null"}, files=reference)
        assert added.status_code == 200, added.text
        voice_id = added.json()["voice_id"]
        assert voice_id in [voice["voice_id"] for voice in client.get("/v1/voices").json()["voices"]]
        source = {"audio": wav_file(speechlike(1.0, 3), MODEL_RATE)}
        converted = client.post(f"/v1/voice-changer/{voice_id}", files=source)
        assert converted.headers["content-type"] == "audio/mpeg"
        assert client.delete(f"/v1/voices/{voice_id}").json() == {"status": "ok"}
        refused = client.post(f"/v1/voice-changer/{voice_id}", files=source)
        assert (refused.status_code, refused.json()["detail"]["status"]) == (404, "voice_not_found")


def test_a_silent_reference_is_refused(graph: Deployed) -> None:
    silence = {"files": wav_file(np.zeros(3 * MODEL_RATE, np.float32), MODEL_RATE)}
    answer = httpx.post(f"{graph.http_url}/v1/voices/add", data={"name": "nobody"}, files=silence, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "silent"


def test_silence_stays_silent(graph: Deployed) -> None:
    silence = np.zeros(2 * MODEL_RATE, np.float32)
    answer = httpx.post(
        f"{graph.http_url}/v1/speech-to-speech/{graph.voice_id}?output_format=pcm_22050",
        files={"audio": wav_file(silence, MODEL_RATE)},
        timeout=60,
    )
    got = np.frombuffer(answer.content, "<i2")
    assert abs(len(got) - len(silence)) <= HOP
    assert not got.any()


def test_stream_answers_through_the_proxy_before_the_upload_has_ended(graph: Deployed) -> None:
    recording = streamed(12.0, "pcm_16000")
    path = f"/v1/speech-to-speech/{graph.voice_id}/stream?output_format=pcm_22050"
    with closing(RawUpload(graph.http_url, path, timeout_s=120)) as raw:
        raw.field("file_format", "pcm_s16le_16")
        raw.begin_file()
        raw.send(recording[: len(recording) * 3 // 4])
        raw.receive_body(20000)  # returns only if the answer comes while the upload is still open
        raw.send(recording[len(recording) * 3 // 4 :])
        raw.end_file()
        raw.end()
        answer = raw.receive_all()
    assert abs(len(answer) / 2 / MODEL_RATE - 12.0) < 0.05


def test_hanging_up_frees_the_graph(graph: Deployed) -> None:
    """More clients leave half-way than may convert at once; the next one is served."""
    recording = streamed(30.0, "pcm_16000")
    path = f"/v1/speech-to-speech/{graph.voice_id}/stream?output_format=pcm_22050"
    for _ in range(graph.max_conversions + 1):
        with closing(RawUpload(graph.http_url, path, timeout_s=120)) as raw:
            raw.field("file_format", "pcm_s16le_16")
            raw.begin_file()
            raw.send(recording)

    def is_served() -> bool:
        answer = httpx.post(
            f"{graph.http_url}/v1/speech-to-speech/{graph.voice_id}",
            files={"audio": wav_file(speechlike(0.5, 3), MODEL_RATE)},
            timeout=120,
        )
        assert answer.status_code in (200, 429), answer.text
        return answer.status_code == 200

    wait_until(is_served, "a place is free again", limit_s=60)


def test_uploads_that_send_nothing_leave_health_calls_and_uploads_their_places(graph: Deployed) -> None:
    """More than there are places for uploads; once they count as idle, another upload gets one."""
    paths = itertools.cycle(
        [f"/v1/speech-to-speech/{graph.voice_id}", f"/v1/speech-to-speech/{graph.voice_id}/stream", "/v1/voices/add"]
    )
    with ExitStack() as clients:
        for path in itertools.islice(paths, Limits().max_uploads + 30):
            raw = clients.enter_context(closing(RawUpload(graph.http_url, path)))
            if path.endswith("stream"):
                raw.begin_file()
                raw.send(bytes(100))
        for path in ("/healthz", "/"):
            assert httpx.get(graph.http_url + path, timeout=10).status_code == 200
        with connect(f"{graph.http_url.replace('http', 'ws')}/v1/rtc/ws", open_timeout=10) as socket:
            assert json.loads(socket.recv(timeout=10))["type"] == "hello"

        def is_served() -> bool:
            source = {"audio": wav_file(speechlike(0.5, 3), MODEL_RATE)}
            answer = httpx.post(f"{graph.http_url}/v1/speech-to-speech/{graph.voice_id}", files=source, timeout=60)
            assert answer.status_code in (200, 429), answer.text
            return answer.status_code == 200

        wait_until(is_served, "an idle upload has given way", limit_s=30)


def test_openapi_names_the_form(graph: Deployed) -> None:
    schema = httpx.get(f"{graph.http_url}/openapi.json", timeout=10).json()
    form = json.dumps(schema["paths"]["/v1/speech-to-speech/{voice_id}"]["post"]["requestBody"])
    assert '"audio"' in form
