/** Measures two sounds on one clock: input 0 is the microphone, input 1 what comes back. */

const CHUNK = 4096; // 12 messages a second: each becomes a picture
const STEP = 256; // samples in one point of the trace
const POINTS = CHUNK / STEP;

class TapProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.recorded = null; // which input is recorded: 0, 1 or none
    this.port.onmessage = ({ data }) => (this.recorded = data.recorded);
    this.begin();
  }

  begin() {
    this.filled = 0;
    this.peaks = [new Float32Array(POINTS), new Float32Array(POINTS)];
    this.energy = [0, 0];
    this.chunk = new Float32Array(CHUNK);
  }

  process(inputs) {
    const length = 128;
    const point = Math.floor(this.filled / STEP);
    for (let side = 0; side < 2; side += 1) {
      const samples = inputs[side]?.[0]; // missing while nothing is connected: silence
      if (!samples) continue;
      let energy = 0;
      let peak = this.peaks[side][point];
      for (let i = 0; i < length; i += 1) {
        const sample = samples[i];
        energy += sample * sample;
        if (sample > peak) peak = sample;
        else if (-sample > peak) peak = -sample;
      }
      this.energy[side] += energy;
      this.peaks[side][point] = peak;
      if (side === this.recorded) this.chunk.set(samples, this.filled);
    }
    this.filled += length;
    if (this.filled === CHUNK) this.hand();
    return true;
  }

  hand() {
    const levels = this.energy.map((energy) => Math.sqrt(energy / CHUNK));
    this.port.postMessage({ peaks: this.peaks, levels, chunk: this.recorded === null ? null : this.chunk });
    this.begin();
  }
}

registerProcessor("tap", TapProcessor);
