/** Takes: samples as they come, and WAV files of them. */

const BYTES_PER_SAMPLE = 2;
const HEADER_BYTES = 44;

/** One take, 16-bit mono; it holds at most `longestS` seconds and says when it is full. */
export class Take {
  #chunks = [];
  #samples = 0;
  #most;

  constructor(rateHz, longestS) {
    this.rateHz = rateHz;
    this.#most = Math.round(longestS * rateHz);
  }

  get seconds() {
    return this.#samples / this.rateHz;
  }

  get full() {
    return this.#samples >= this.#most;
  }

  add(samples) {
    const room = Math.min(samples.length, this.#most - this.#samples);
    if (room <= 0) return;
    this.#chunks.push(toInt16(samples.subarray(0, room)));
    this.#samples += room;
  }

  /** The take as a WAV file. */
  wav() {
    return new Blob([header(this.#samples, this.rateHz), ...this.#chunks], { type: "audio/wav" });
  }
}

function toInt16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}

function header(samples, rateHz) {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  const bytes = samples * BYTES_PER_SAMPLE;
  text(0, "RIFF");
  view.setUint32(4, HEADER_BYTES - 8 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // length of what describes the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, rateHz, true);
  view.setUint32(28, rateHz * BYTES_PER_SAMPLE, true);
  view.setUint16(32, BYTES_PER_SAMPLE, true);
  view.setUint16(34, 8 * BYTES_PER_SAMPLE, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  return view.buffer;
}

/** Seconds as 0:07 or 12:34. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
