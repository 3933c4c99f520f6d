"""Label human English speech with the phones that PocketSphinx finds in it.

Forced alignment where the transcript is known, else a word decode whose phones are then aligned.
`python -m training.align --data ./data` appends to `labels/*.jsonl` and goes on where it stopped.
"""

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pocketsphinx import Decoder

from training.data import CONTENT_RATE, DEFAULT_DATA, Clip, Floats, held_out, read_manifests, read_wave
from training.labels import PHONE_INDEX, Phones, read_phones

SPHINX_FRAME_S = 0.01
MAX_DECODE_S = 16.0

log = logging.getLogger("training")


class Aligner:
    """PocketSphinx: phones of a clip with their times."""

    def __init__(self) -> None:
        self._forced = Decoder(lm=None, loglevel="FATAL")
        # one pass and few active states: a third of the time, nearly the same words
        self._words = Decoder(loglevel="FATAL", fwdflat=False, maxhmmpf=2000)
        self._word_search = self._words.current_search()

    def forced(self, wave: Floats, transcript: str) -> Phones:
        """Align a known text; raises RuntimeError where the recording does not fit it."""
        words = re.sub(r"[^a-z' ]+", " ", transcript.lower())
        self._forced.set_align_text(" ".join(words.split()))
        _run(self._forced, wave)
        return _phones(self._forced, wave)

    def decoded(self, wave: Floats) -> Phones:
        """Recognise the words first; raises RuntimeError where nothing was heard."""
        self._words.activate_search(self._word_search)
        _run(self._words, wave)
        if self._words.hyp() is None or not self._words.hyp().hypstr:
            raise RuntimeError("no words recognised")
        return _phones(self._words, wave)


def _run(decoder: Decoder, wave: Floats) -> None:
    decoder.start_utt()
    decoder.process_raw((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()


def _phones(decoder: Decoder, wave: Floats) -> Phones:
    decoder.set_alignment()
    _run(decoder, wave)
    phones: Phones = []
    for word in decoder.get_alignment():
        for phone in word:
            name = phone.name if phone.name in PHONE_INDEX else "SIL"
            start_s = phone.start * SPHINX_FRAME_S
            phones.append((start_s, start_s + phone.duration * SPHINX_FRAME_S, name))
    return phones


def label(root: Path, part: int, parts: int) -> None:
    """Label the human English clips that have no label yet; known texts and held-out speakers first."""
    target = root / "labels" / f"{part}.jsonl"
    target.parent.mkdir(exist_ok=True)
    done = {path.removeprefix("human/") for path in read_phones(root)}
    clips = [clip for clip in read_manifests(root) if clip.kind == "human" and clip.lang.startswith("en")]
    clips.sort(key=lambda clip: (not clip.transcript, not held_out(clip)))
    aligner = Aligner()
    for count, clip in enumerate(clips[part::parts]):
        path = clip.path.removeprefix("human/")
        if path in done:
            continue
        phones = _label_clip(aligner, root, clip)
        if phones:
            with target.open("a", encoding="utf8") as out:
                out.write(json.dumps({"path": path, "phones": phones}) + "\n")
        if count % 50 == 0:
            log.info("labelled %d of %d", count, len(clips) // parts)


def _label_clip(aligner: Aligner, root: Path, clip: Clip) -> Phones:
    wave = read_wave(root / clip.path, CONTENT_RATE)[: int(MAX_DECODE_S * CONTENT_RATE)]
    ways: list[Callable[[], Phones]] = [lambda: aligner.decoded(wave)]
    if clip.transcript:
        ways.insert(0, lambda: aligner.forced(wave, clip.transcript))
    for way in ways:
        try:
            return way()
        except RuntimeError as error:  # PocketSphinx knows no narrower type
            log.info("%s: %s", clip.path, error)
    return []


def main() -> None:
    """Label one part of the human clips; run several parts side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA))
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    label(args.data, args.part, args.parts)


if __name__ == "__main__":
    main()
