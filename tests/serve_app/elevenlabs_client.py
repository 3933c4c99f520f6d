"""What a user of the ElevenLabs SDK writes, nothing changed but `base_url`; runs where the SDK is found.

Usage: elevenlabs_client.py URL RECORDING REFERENCE; prints what came back as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elevenlabs import ElevenLabs, VoiceSettings  # type: ignore[import-not-found]  # found by PYTHONPATH
from elevenlabs.core.api_error import ApiError  # type: ignore[import-not-found]


def main(url: str, recording: Path, reference: Path) -> dict[str, Any]:
    """One round through the API."""
    client = ElevenLabs(base_url=url, api_key="any")
    source = recording.read_bytes()

    with open(reference, "rb") as first, open(reference, "rb") as second:
        added = client.voices.ivc.create(name="Anna", files=[first, second], labels={"accent": "none"})
    bare = client.voices.ivc.create(name="Bare", files=[reference.read_bytes()])
    got = client.voices.get(voice_id=added.voice_id)
    listed = [voice.voice_id for voice in client.voices.get_all(show_legacy=True).voices]
    found = client.voices.search(search="anna", page_size=1, include_total_count=True)
    client.voices.update(voice_id=bare.voice_id, name="Renamed", labels={"age": "old"})
    client.voices.settings.update(voice_id=bare.voice_id, request=VoiceSettings(stability=0.4))
    renamed = client.voices.get(voice_id=bare.voice_id)
    user = client.user.get()
    models = [model.model_id for model in client.models.list() if model.can_do_voice_conversion]

    convert = client.speech_to_speech.convert
    mp3 = b"".join(convert(voice_id=added.voice_id, audio=source))
    wav = b"".join(
        convert(
            voice_id=added.voice_id,
            audio=("source.flac", source, "audio/flac"),
            output_format="wav_16000",
            model_id="eleven_multilingual_sts_v2",
            voice_settings=json.dumps({"stability": 0.3, "similarity_boost": 0.9}),
            seed=1234,
            remove_background_noise=False,
            enable_logging=False,
            optimize_streaming_latency=2,
        )
    )
    pieces = list(client.speech_to_speech.stream(voice_id="clara", audio=source, output_format="pcm_16000"))
    raw = b"".join(
        client.speech_to_speech.stream(
            voice_id="clara", audio=b"".join(pieces), file_format="pcm_s16le_16", output_format="ulaw_8000", seed=5
        )
    )

    refusals = {
        "unknown voice": refused(lambda: b"".join(convert(voice_id="nobody", audio=source))),
        "unknown format": refused(lambda: b"".join(convert(voice_id="clara", audio=source, output_format="mp4"))),
        "not audio": refused(lambda: b"".join(convert(voice_id="clara", audio=b"words " * 100))),
        "not audio, streamed": refused(
            lambda: b"".join(client.speech_to_speech.stream(voice_id="clara", audio=b"words " * 100))
        ),
        "premade voice deleted": refused(lambda: client.voices.delete(voice_id="clara")),
        "premade voice renamed": refused(lambda: client.voices.update(voice_id="clara", name="Mine")),
        "speech from text": refused(lambda: b"".join(client.text_to_speech.convert(voice_id="clara", text="Hello"))),
    }
    deleted = [client.voices.delete(voice_id=voice_id).status for voice_id in (added.voice_id, bare.voice_id)]
    refusals["voice deleted twice"] = refused(lambda: client.voices.delete(voice_id=added.voice_id))
    return {
        "voice": {"name": got.name, "labels": got.labels, "category": got.category},
        "is_listed": {added.voice_id, bare.voice_id, "clara"} <= set(listed),
        "found": {
            "ids": [voice.voice_id for voice in found.voices] == [added.voice_id],
            "total": found.total_count,
        },
        "renamed": {"name": renamed.name, "labels": renamed.labels},
        "may_clone": [user.subscription.can_use_instant_voice_cloning, client.user.subscription.get().tier],
        "models": models,
        "default_voice_settings": client.voices.settings.get_default().speed,
        "mp3": mp3.hex(),
        "wav": wav.hex(),
        "pcm_bytes": len(b"".join(pieces)),
        "ulaw_bytes": len(raw),
        "refusals": refusals,
        "deleted": deleted,
    }


def refused(call: Callable[[], object]) -> dict[str, Any]:
    """The SDK's error for a call that must fail."""
    try:
        call()
    except ApiError as error:
        body = error.body
        if not isinstance(body, dict):
            body = json.loads(body.json())
        return {"error": type(error).__name__, "status_code": error.status_code, "body": body}
    return {"error": None}


if __name__ == "__main__":
    json.dump(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), sys.stdout)
