"""`seedvc call --local` on a real sound server: from its microphone to its speakers, in one process."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr

from benchmarks import delays
from configs.schema import load_preset
from stages.geometry import CONTENT_RATE, TICK_16K
from stages.pitch import median_hz, pitch_hz
from stages.settings import delay_ms
from tests.e2e.presets import unhurried_preset
from tests.e2e.sound_server import MICROPHONE, PROGRAMS, RATE_HZ, SPEAKERS, SoundServer, running_sound_server
from tests.serve_app.fakes import wait_until
from webrtc.files import decode_file
from webrtc.files.codecs import Samples

ROOT = Path(__file__).parents[2]
SOURCE, VOICE = ROOT / "samples" / "sources" / "garden.flac", "martin"  # a high voice, to become a low one
TAIL_S = 1.5
AROUND_MS = 400
"""Beyond the conversion: the sound server's buffers, on a machine that has more to do."""
OTHERS = ("ray", "aiortc", "fastapi", "websockets")
"""What a call in one process has no use for."""
MAIN = f"""
import sys
from serve_app.cli import main
code = main(sys.argv[1:])
print("loaded:", *(name for name in {OTHERS} if name in sys.modules))
sys.exit(code)
"""

_missing = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.alone,
    pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)} (see `make test-programs`)"),
]


@pytest.fixture(scope="module")
def sound_server() -> Iterator[SoundServer]:
    with running_sound_server() as server:
        command = [sys.executable, "-m", "serve_app.cli", "call", "--devices"]
        listed = subprocess.run(command, cwd=ROOT, env=server.environment, capture_output=True, text=True)
        if "  pulse, ALSA\n" not in listed.stdout:
            pytest.skip("PortAudio does not reach PulseAudio; on Debian it needs libportaudio2 and libasound2-plugins")
        assert all(f"  {name}\n" in listed.stdout for name in (MICROPHONE, *SPEAKERS))
        yield server


def call(server: SoundServer, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """A call whose words go to the log."""
    command = [sys.executable, "-c", MAIN, "call", "--local", "--voice", VOICE, *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=out, stderr=out)


def told(log: Path) -> str:
    return log.read_text(errors="replace")


def test_names_that_match_no_device_are_told_with_those_there_are(sound_server: SoundServer) -> None:
    mistakes = {
        ("--microphone", "nothing"): "there is no microphone 'nothing'; there are: ",
        ("--speaker", "speaker"): "2 speakers match 'speaker': 'speaker1', 'speaker2'; give more of the name",
    }
    for arguments, sentence in mistakes.items():
        command = [sys.executable, "-m", "serve_app.cli", "call", "--local", "--voice", VOICE, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=sound_server.environment, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert sentence in line


def test_what_the_microphone_hears_comes_out_of_the_speaker_in_another_voice(
    sound_server: SoundServer, tmp_path: Path
) -> None:
    preset = unhurried_preset(tmp_path)
    converted, bypassed = tmp_path / "converted.log", tmp_path / "bypassed.log"
    devices = ["--preset", str(preset), "--microphone", MICROPHONE, "--speaker"]
    with (
        call(sound_server, *devices, SPEAKERS[0], log=converted) as converting,
        call(sound_server, *devices, SPEAKERS[1], "--bypass", log=bypassed) as bypassing,
    ):
        try:
            for log in (converted, bypassed):
                wait_until(lambda log=log: "in a call as" in told(log), "the call has begun", limit_s=90)
            said, heard, same = sound_server.talk(at_48k(SOURCE), TAIL_S)
            converting.send_signal(signal.SIGINT)
            assert converting.wait(20) == 0, told(converted)
            sound_server.process.kill()  # the second call loses its devices
            assert bypassing.wait(30) == 2, told(bypassed)
        finally:
            for process in (converting, bypassing):
                process.kill()
    assert told(bypassed).splitlines()[-2].startswith("seedvc: the sound device stopped"), told(bypassed)
    assert "Traceback" not in told(converted) + told(bypassed)
    assert "loaded:\n" in told(converted)

    latest_ms = delay_ms(load_preset(preset).live, "lowest") + AROUND_MS
    found = delays.spread(delays.of_waves(said, same))
    assert found["p50_ms"] is not None, "the speaker's own voice did not come back"
    assert 0 < found["p50_ms"] < latest_ms
    assert 0.5 < rms(same) / rms(said) < 2
    (hertz, source_hz, voice_hz) = map(usual_hz, (heard, said, at_48k(ROOT / f"samples/voices/{VOICE}.flac")))
    assert abs(np.log(hertz / voice_hz)) < abs(np.log(hertz / source_hz)), (hertz, source_hz, voice_hz)
    assert loud_s(heard) > 0.5 * loud_s(said)
    assert 0.1 < np.abs(heard).max() < 0.99, "neither silent nor clipped"
    shown = re.search(r"mouth to ear about (\d+) ms, level .* blocks \d+ done", told(bypassed))
    assert shown is not None, told(bypassed)
    assert abs(int(shown[1]) - found["p50_ms"]) < AROUND_MS


def at_48k(path: Path) -> Samples:
    samples, rate = decode_file(path)
    return np.asarray(soxr.resample(samples, rate, RATE_HZ), np.float32)


def rms(sound: Samples) -> float:
    return float(np.sqrt(np.mean(sound**2)))


def usual_hz(sound: Samples) -> float:
    """Median pitch."""
    wave = np.asarray(soxr.resample(sound, RATE_HZ, CONTENT_RATE), np.float32)
    return median_hz(pitch_hz(wave, len(wave) // TICK_16K))


def loud_s(sound: Samples) -> float:
    """Seconds above -40 dB."""
    frames = sound[: len(sound) // 960 * 960].reshape(-1, 960)
    return float((np.sqrt((frames**2).mean(axis=1)) > 0.01).sum()) * 0.02
