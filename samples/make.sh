#!/usr/bin/env bash
# Regenerates the recordings: flite and espeak-ng speak, sox trims long silences and sets the peak to -3 dB.
# Needs: apt-get install flite espeak-ng sox
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

finish() {  # raw.wav out.flac: leaves 0.1 s before the speech and 0.2 s after it
    sox -D "$1" -r 22050 -c 1 -b 16 -C 8 "$2" rate -v \
        silence 1 0.01 0.3% fade 0.01 reverse silence 1 0.01 0.3% fade 0.01 reverse \
        pad 0.1 0.2 norm -3
}

flite_voice() {  # voice out.flac sentence
    flite -voice "$1" -t "$3" -o "$folder/raw.wav"
    finish "$folder/raw.wav" "$2"
}

espeak_voice() {  # voice pitch words-per-minute out.flac sentence
    espeak-ng -v "$1" -p "$2" -s "$3" -w "$folder/raw.wav" "$5"
    finish "$folder/raw.wav" "$4"
}

mkdir -p voices sources

flite_voice slt voices/clara.flac \
    "The ferry to the island sails twice a day in summer. Bring a warm coat, because the wind on deck is stronger than it looks from the shore."
flite_voice rms voices/martin.flac \
    "My grandfather kept bees behind the old chapel. Every August we filled forty jars with honey, and gave most of them to the neighbours."
flite_voice awb voices/angus.flac \
    "A good walk begins before sunrise. By the time the town is awake, you have climbed the hill, seen the whole valley, and earned your breakfast."
espeak_voice en-us+Annie 42 150 voices/vera.flac \
    "The library opens at nine and closes at six. Ask at the front desk if you would like to borrow a map, a camera, or one of the telescopes."

flite_voice kal16 sources/bakery.flac \
    "The bakery on the corner sells out of rye bread by ten, so we usually stop there on the way to school."
flite_voice slt sources/station.flac \
    "The next train leaves from platform four. Please keep your tickets ready and mind the gap between the doors."
espeak_voice en-us+Michael 38 150 sources/weather.flac \
    "Tomorrow will be cloudy in the morning, with a little rain near the coast and sunshine after lunch."
espeak_voice en-gb-x-rp+linda 55 150 sources/garden.flac \
    "We planted twelve apple trees along the wall, and three of them already carry fruit this year."
