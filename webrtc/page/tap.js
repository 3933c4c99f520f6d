/** Levels, trace points and recorded samples of the microphone and of what comes back. */

import { Refused } from "./api.js";

const RATE_HZ = 48000;

export class Tap {
  #context;
  #node;
  #sides = [null, null];

  /**
   * Taps a microphone's stream. `onPiece` takes {peaks: [in, out], levels: [in, out], chunk: samples or null} each
   * 4096 samples. Throws Refused where the server no longer gives the worklet.
   */
  static async open(stream, onPiece) {
    const tap = new Tap();
    tap.#context = contextFor(stream);
    await tap.#context.audioWorklet.addModule(new URL("tap-worklet.js", import.meta.url)).catch(() => {
      tap.#context.close(); // a browser grants a page only a few
      throw new Refused(0, "A part of this page could not be loaded.");
    });
    tap.#node = new AudioWorkletNode(tap.#context, "tap", {
      numberOfInputs: 2,
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    tap.#node.port.onmessage = ({ data }) => onPiece(data);
    tap.connect(0, stream);
    await tap.#context.resume();
    return tap;
  }

  get rateHz() {
    return this.#context.sampleRate;
  }

  /** Seconds that played sound needs to the ear, as far as the browser knows. */
  get outputLatencyS() {
    return this.#context.outputLatency || this.#context.baseLatency || 0;
  }

  /** Connects a stream to side 0 (microphone) or 1 (what comes back), in place of the one before. */
  connect(side, stream) {
    this.#sides[side]?.disconnect();
    this.#sides[side] = stream && this.#context.createMediaStreamSource(stream);
    this.#sides[side]?.connect(this.#node, 0, side);
  }

  /** From now on pieces carry the samples of one side; of none with null. */
  record(side) {
    this.#node.port.postMessage({ recorded: side });
  }

  close() {
    this.#sides.forEach((side) => side?.disconnect());
    this.#node.port.onmessage = null;
    return this.#context.close();
  }
}

/** At 48 kHz; where a browser takes a microphone only at its own rate, at that. */
function contextFor(stream) {
  const context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
  try {
    context.createMediaStreamSource(stream);
    return context;
  } catch {
    context.close();
    return new AudioContext({ latencyHint: "interactive" });
  }
}
