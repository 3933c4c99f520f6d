/** The page's ears: levels, trace points and recorded samples of the microphone and of what comes back. */

const RATE_HZ = 48000;

export class Tap {
  #context;
  #node;
  #sources = [null, null];

  /** `onPiece` takes {peaks: [in, out], levels: [in, out], chunk: samples or null} each 1024 samples. */
  static async open(onPiece) {
    const tap = new Tap();
    tap.#context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
    await tap.#context.audioWorklet.addModule(new URL("tap-worklet.js", import.meta.url));
    tap.#node = new AudioWorkletNode(tap.#context, "tap", {
      numberOfInputs: 2,
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    tap.#node.port.onmessage = ({ data }) => onPiece(data);
    await tap.#context.resume();
    return tap;
  }

  get rateHz() {
    return this.#context.sampleRate;
  }

  /** Seconds between the graph and the ear, as far as the browser knows. */
  get outputLatencyS() {
    return this.#context.outputLatency || this.#context.baseLatency || 0;
  }

  /** Connects a stream to side 0 (microphone) or 1 (what comes back), in place of the one before. */
  connect(side, stream) {
    this.#sources[side]?.disconnect();
    this.#sources[side] = stream && this.#context.createMediaStreamSource(stream);
    this.#sources[side]?.connect(this.#node, 0, side);
  }

  /** From now on pieces carry the samples of one side; of none with null. */
  record(side) {
    this.#node.port.postMessage({ recorded: side });
  }

  close() {
    this.#sources.forEach((source) => source?.disconnect());
    this.#node.port.onmessage = null;
    return this.#context.close();
  }
}
