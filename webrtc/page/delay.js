/** How late the other voice is: measured from the loudness of both sides, else added up from its parts. */

const COMPARED_S = 7;
const LONGEST_S = 1.4;
const LEAST_LIKENESS = 0.55;
const QUIET = 0.003;

/** Finds by how much the loudness of one side follows that of the other. */
export class DelayMeter {
  stepS; // seconds between two points
  #sides;
  #at = 0;

  /** `stepS`: seconds between two points. */
  constructor(stepS) {
    this.stepS = stepS;
    const size = Math.round(COMPARED_S / stepS);
    this.#sides = [new Float32Array(size), new Float32Array(size)];
  }

  /** Takes the newest peaks of both sides. */
  push([heard, returned]) {
    const size = this.#sides[0].length;
    for (let i = 0; i < heard.length; i += 1) {
      this.#sides[0][this.#at % size] = heard[i];
      this.#sides[1][this.#at % size] = returned[i];
      this.#at += 1;
    }
  }

  clear() {
    this.#at = 0;
  }

  /** The delay in ms, or null where the two sides say too little or differ too much. */
  measure() {
    const size = this.#sides[0].length;
    if (this.#at < size) return null;
    const [heard, returned] = this.#sides.map((points) => logarithms(points, this.#at % size));
    const longest = Math.round(LONGEST_S / this.stepS);
    const likeness = Array.from({ length: longest }, (_, lag) => correlation(heard, returned, lag));
    const best = likeness.indexOf(Math.max(...likeness));
    if (!(likeness[best] > LEAST_LIKENESS) || best === 0 || best === longest - 1) return null;
    return 1000 * this.stepS * (best + vertex(likeness[best - 1], likeness[best], likeness[best + 1]));
  }
}

/** Oldest first; in logarithms a soft syllable counts as well as a loud one. */
function logarithms(points, start) {
  const size = points.length;
  return Float32Array.from({ length: size }, (_, i) => Math.log(points[(start + i) % size] + QUIET));
}

/** Pearson's correlation of `a` with `b` taken `lag` points later. */
function correlation(a, b, lag) {
  const n = a.length - lag;
  let sumA = 0, sumB = 0, sumAA = 0, sumBB = 0, sumAB = 0;
  for (let i = 0; i < n; i += 1) {
    const x = a[i];
    const y = b[i + lag];
    sumA += x;
    sumB += y;
    sumAA += x * x;
    sumBB += y * y;
    sumAB += x * y;
  }
  const spread = Math.sqrt((sumAA - (sumA * sumA) / n) * (sumBB - (sumB * sumB) / n));
  return spread > 1e-6 ? (sumAB - (sumA * sumB) / n) / spread : 0;
}

/** Where the top of the parabola through three neighbours lies, -0.5 to 0.5. */
function vertex(left, middle, right) {
  const bend = left - 2 * middle + right;
  return bend < 0 ? (left - right) / (2 * bend) : 0;
}

/**
 * What the delay is made of, in ms, in the order in which sound passes. Where the whole was measured, the conversion is
 * what the other parts leave of it.
 */
export function delayParts({ microphoneMs, rttMs, jitterBufferMs, conversionMs, playoutMs, receiveMs, speakerMs, measuredMs }) {
  const packetMs = 26.5; // one Opus frame of 20 ms and the encoder's look-ahead
  const around = [microphoneMs + packetMs, rttMs, jitterBufferMs + receiveMs, playoutMs + speakerMs];
  const [capture, network, buffers, output] = around;
  const rest = measuredMs === null ? conversionMs : measuredMs - around.reduce((sum, ms) => sum + ms, 0);
  const parts = { Microphone: capture, Network: network, Buffers: buffers, Conversion: rest, Output: output };
  return Object.entries(parts)
    .filter(([, ms]) => ms > 0)
    .map(([name, ms]) => ({ name, ms }));
}
