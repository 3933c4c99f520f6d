/** Conversions of recordings: which are to come, which run, which are tried again. Knows nothing of the page. */

import { exchange, sentence } from "./api.js";
import { probe, size } from "./files.js";

const BUSY = new Set([429, 503]); // of the server: what passes by itself
const FIRST_WAIT_S = 2;
const LONGEST_WAIT_S = 30;
const MOST_TRIES = 60; // about half an hour
const TICK_MS = 500; // between two looks at the time that is left
const SHORT_BY_S = 1; // what a result may lack before it is told

/** What a result is saved as: the server's name for it, and what a second of it takes. */
const FORMATS = {
  wav: { name: "wav_22050", type: "audio/wav", bytesPerS: 44100, headerBytes: 44 },
  mp3: { name: "mp3_44100_128", type: "audio/mpeg", bytesPerS: 16000, headerBytes: 417 },
};

/** One recording: what becomes of it, and its result. */
export class Conversion {
  state = "ready"; // ready, waiting, sending, converting, done, failed, cancelled
  durationS = null; // as this browser says
  playable = false; // the file itself, in this browser
  options = null; // {voice, voiceName, saveAs, removeNoise, steps}
  sent = 0; // share of the upload
  convertedS = 0;
  code = ""; // of what went wrong
  problem = ""; // the same in words
  insisted = false; // it is sent although it seems too long
  warning = "";
  result = null; // a Blob
  saved = false; // the result was downloaded
  tries = 0;
  waitsFor = ""; // why it is tried again
  giveUp = new AbortController();

  constructor(file) {
    this.file = file;
  }

  get active() {
    return ["waiting", "sending", "converting"].includes(this.state);
  }

  get resultName() {
    const { saveAs, voiceName } = this.options;
    const stem = this.file.name.replace(/\.[^.]{1,5}$/, "") || "recording";
    return `${stem} (${voiceName}).${saveAs}`;
  }
}

/** Events: `change`, whose `detail` is the conversion or null for the whole queue, and `key`: the server asks for one. */
export class Conversions extends EventTarget {
  limits = { maxSourceS: Infinity, maxUploadBytes: Infinity }; // of the server, as far as they are known
  all = [];
  #mayRun;
  #mostBytes;
  #running = 0;
  #locked = false; // until there is a key
  #heldUntil = 0; // the server was full
  #tick = null;
  #probes = Promise.resolve();

  /** `mayRun` returns how many may run at once now; above `mostBytes` of results none is begun. */
  constructor({ mayRun, mostBytes }) {
    super();
    this.#mayRun = mayRun;
    this.#mostBytes = mostBytes;
  }

  /** Takes a file in; nothing is sent yet. */
  add(file) {
    const conversion = new Conversion(file);
    this.all.push(conversion);
    this.#probes = conversion.probed = this.#probes.then(async () => {
      if (!this.all.includes(conversion)) return;
      Object.assign(conversion, await probe(file));
      this.#tell(conversion);
    });
    this.#tell(conversion);
    return conversion;
  }

  start(conversion, options) {
    if (conversion.active) return;
    conversion.insisted = conversion.code === "source_too_long"; // a browser may err about a length
    Object.assign(conversion, { options, state: "waiting", code: "", problem: "", warning: "", sent: 0, convertedS: 0, tries: 0 });
    conversion.giveUp = new AbortController();
    this.#locked = false;
    this.#tell(conversion);
    this.wake();
  }

  cancel(conversion) {
    if (!conversion.active) return;
    conversion.state = "cancelled";
    conversion.giveUp.abort();
    this.#tell(conversion);
    this.wake();
  }

  /** Forgets a recording and its result. */
  remove(conversion) {
    this.cancel(conversion);
    this.all = this.all.filter((each) => each !== conversion);
    this.#tell(null);
    this.wake();
  }

  /** A key was given. */
  unlock() {
    this.#locked = false;
    this.wake();
  }

  get heldS() {
    return Math.max(0, Math.ceil((this.#heldUntil - performance.now()) / 1000));
  }

  get locked() {
    return this.#locked;
  }

  get full() {
    return this.all.reduce((bytes, { result }) => bytes + (result?.size ?? 0), 0) >= this.#mostBytes;
  }

  /** Begins what may begin now. */
  wake() {
    while (!this.#locked && !this.full && this.heldS === 0 && this.#running < this.#mayRun()) {
      const next = this.all.find(({ state }) => state === "waiting");
      if (!next) return;
      this.#run(next);
    }
  }

  async #run(conversion) {
    const { giveUp } = conversion;
    this.#running += 1;
    this.#enter(conversion, "sending");
    try {
      await conversion.probed;
      await this.#convert(conversion, giveUp.signal);
    } catch (error) {
      if (!giveUp.signal.aborted) this.#refused(conversion, error);
    } finally {
      this.#running -= 1;
      this.wake();
    }
  }

  async #convert(conversion, signal) {
    const { file, options, durationS } = conversion;
    signal.throwIfAborted();
    if (file.size > this.limits.maxUploadBytes) throw new Known("upload_too_large");
    const tooLong = durationS > this.limits.maxSourceS;
    if (tooLong && !conversion.insisted) throw new Known("source_too_long");
    const format = FORMATS[options.saveAs];
    const form = new FormData();
    form.append("remove_background_noise", String(options.removeNoise));
    if (options.steps) form.append("steps", String(options.steps));
    form.append("audio", file, file.name);
    // Only what can be counted against a length is streamed; the plain route tells more exactly what went wrong.
    const counted = durationS !== null && !tooLong;
    const query = `output_format=${format.name}${counted ? "&optimize_streaming_latency=0" : ""}`;
    const route = `v1/speech-to-speech/${encodeURIComponent(options.voice)}${counted ? "/stream" : ""}?${query}`;
    const { blob, warning } = await exchange(route, form, {
      signal,
      onSent: (bytes, all) => {
        conversion.sent = bytes / all;
        if (bytes >= all && conversion.state === "sending") conversion.state = "converting";
        this.#tell(conversion);
      },
      onReceived: (bytes) => {
        conversion.state = "converting";
        conversion.convertedS = Math.max(0, bytes - format.headerBytes) / format.bytesPerS;
        this.#tell(conversion);
      },
    });
    conversion.result = options.saveAs === "wav" ? withSizes(blob) : new Blob([blob], { type: format.type });
    conversion.convertedS = Math.max(0, blob.size - format.headerBytes) / format.bytesPerS;
    conversion.saved = false;
    conversion.warning = warning ? sentence(warning) : lacking(conversion);
    this.#enter(conversion, "done");
  }

  #refused(conversion, error) {
    if (BUSY.has(error.status) && conversion.tries < MOST_TRIES) return this.#hold(conversion, error);
    if (error.status === 401 && error.code !== "quota_exceeded") {
      this.#locked = true;
      this.#enter(conversion, "waiting");
      this.dispatchEvent(new CustomEvent("key"));
      return;
    }
    conversion.code = error.code ?? "";
    conversion.problem = this.#sentence(conversion, error);
    this.#enter(conversion, "failed");
  }

  /** The server has no room, or a part of it does not answer: nothing is sent for a while, each time longer. */
  #hold(conversion, { status, message, retryAfterS }) {
    const waitS = Math.min(LONGEST_WAIT_S, FIRST_WAIT_S * 1.5 ** conversion.tries);
    conversion.tries += 1;
    conversion.waitsFor = status === 429 ? "The server is full" : message.replace(/[.]$/, "");
    this.#heldUntil = Math.max(this.#heldUntil, performance.now() + 1000 * Math.max(waitS, retryAfterS ?? 0));
    clearInterval(this.#tick);
    this.#tick = setInterval(() => {
      if (this.heldS === 0) clearInterval(this.#tick);
      this.all.filter(({ state, tries }) => state === "waiting" && tries > 0).forEach((each) => this.#tell(each));
      this.wake();
    }, TICK_MS);
    Object.assign(conversion, { sent: 0, convertedS: 0 });
    this.#enter(conversion, "waiting");
  }

  #enter(conversion, state) {
    if (conversion.giveUp.signal.aborted) return;
    conversion.state = state;
    this.#tell(conversion);
  }

  #tell(conversion) {
    this.dispatchEvent(new CustomEvent("change", { detail: conversion }));
  }

  #sentence(conversion, error) {
    const { maxSourceS, maxUploadBytes } = this.limits;
    switch (error.code) {
      case "not_audio":
      case "no_audio_track":
        return "This is not a recording: there is no sound in it that could be read.";
      case "empty":
        return "This file is empty.";
      case "source_too_long":
        return `This is longer than ${ofServer(spoken(maxSourceS), maxSourceS)}. Cut it into parts.`;
      case "upload_too_large":
        return `This file is larger than ${ofServer(size(maxUploadBytes), maxUploadBytes)}.`;
      case "voice_not_found":
      case "voice_damaged":
        return "That voice is gone. Choose another one and try again.";
      case "broken_off":
        return `The server broke off after ${spoken(conversion.convertedS)}. Try again.`;
    }
    if (error.status === 0) return "The server does not answer. Try again when it is back.";
    return error.message ? sentence(error.message) : "Something failed in this page. Try again.";
  }
}

/** What the server would refuse, and what is not sent therefore. */
class Known extends Error {
  constructor(code) {
    super(code);
    this.code = code;
  }
}

const ofServer = (words, limit) => (Number.isFinite(limit) ? `the ${words} that this server takes` : "this server takes");

/** Seconds in words. */
export function spoken(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 6) / 10} minutes`;
}

/** A length that is not what the file promised is told; streamed answers begin before that is known. */
function lacking({ convertedS, durationS }) {
  if (durationS === null || convertedS > Math.min(durationS - SHORT_BY_S, 0.95 * durationS)) return "";
  return `Only ${spoken(convertedS)} of ${spoken(durationS)} could be read; the file may be cut off or damaged.`;
}

/** A WAV that was streamed has no sizes in its header yet. */
function withSizes(blob) {
  const number = (value) => {
    const view = new DataView(new ArrayBuffer(4));
    view.setUint32(0, value, true);
    return view.buffer;
  };
  const parts = [blob.slice(0, 4), number(blob.size - 8), blob.slice(8, 40), number(blob.size - 44), blob.slice(44)];
  return new Blob(parts, { type: "audio/wav" });
}
