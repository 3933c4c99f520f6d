/** The chart: your voice above the line, the other one below, later by the delay. */

const SPAN_S = 6;
const GAIN = 1.2;

export class Trace {
  #canvas;
  #context;
  #stepS;
  #rings;
  #at = 0;
  #colours = {};
  #delayMs = null;
  #running = false;

  /** `stepS`: seconds between two points. */
  constructor(canvas, stepS) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#stepS = stepS;
    const size = Math.ceil(SPAN_S / stepS);
    this.#rings = [new Float32Array(size), new Float32Array(size)];
    const restyle = () => this.#restyle();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
    new ResizeObserver(restyle).observe(canvas);
  }

  push(peaks) {
    const size = this.#rings[0].length;
    for (let i = 0; i < peaks[0].length; i += 1, this.#at += 1)
      for (const side of [0, 1]) this.#rings[side][this.#at % size] = peaks[side][i];
  }

  /** The distance to mark between the two sides; null for none. */
  set delayMs(value) {
    this.#delayMs = value;
  }

  /** Whether a call runs. The chart starts empty then; without a call it shows an example. */
  set running(value) {
    this.#running = value;
    this.#rings.forEach((ring) => ring.fill(0));
    this.#at = 0;
    this.draw();
  }

  draw() {
    const { width, height } = this.#canvas;
    const ratio = window.devicePixelRatio || 1;
    const paper = this.#context;
    paper.setTransform(1, 0, 0, 1, 0, 0);
    paper.clearRect(0, 0, width, height);
    paper.scale(ratio, ratio);
    const size = { width: width / ratio, height: height / ratio };
    this.#grid(size);
    for (const side of [0, 1]) this.#lane(size, side);
    if (this.#running && this.#delayMs) this.#dimension(size, this.#delayMs);
  }

  #restyle() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.#canvas.getBoundingClientRect();
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    const style = getComputedStyle(this.#canvas);
    const names = ["in", "out", "grid", "rule", "ink", "ink-2"];
    this.#colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.draw();
  }

  #grid({ width, height }) {
    const lines = { grid: new Path2D(), rule: new Path2D(), "ink-2": new Path2D() };
    const down = (path, x) => (path.moveTo(x, 0), path.lineTo(x, height));
    const across = (path, y) => (path.moveTo(0, y), path.lineTo(width, y));
    const fine = SPAN_S * 5;
    for (let i = 1; i < fine; i += 1) down(i % 5 ? lines.grid : lines.rule, Math.round((i * width) / fine) + 0.5);
    const middle = Math.round(height / 2) + 0.5;
    for (const share of [-0.75, -0.5, -0.25, 0.25, 0.5, 0.75]) across(lines.grid, middle + (share * height) / 2);
    across(lines["ink-2"], middle);
    this.#context.lineWidth = 1;
    for (const [colour, path] of Object.entries(lines)) {
      this.#context.strokeStyle = this.#colours[colour];
      this.#context.stroke(path);
    }
  }

  /** Thin strokes side by side, one for every three pixels. */
  #lane({ width, height }, side) {
    const paper = this.#context;
    const pitch = 3;
    const strokes = Math.floor(width / pitch);
    const reach = height / 2 - 12;
    const middle = Math.round(height / 2) + (side === 0 ? -1 : 2);
    paper.fillStyle = this.#colours[side === 0 ? "in" : "out"];
    paper.globalAlpha = this.#running ? 1 : 0.32;
    paper.beginPath();
    for (let stroke = 0; stroke < strokes; stroke += 1) {
      const share = (strokes - stroke) / strokes; // 1: oldest, 0: now
      const value = this.#running ? this.#peak(side, share, 1 / strokes) : example(SPAN_S * (1 - share), side);
      const length = Math.round(Math.min(1, GAIN * Math.sqrt(value)) * reach);
      paper.rect(stroke * pitch, side === 0 ? middle - length : middle, 2, length);
    }
    paper.fill();
    paper.globalAlpha = 1;
  }

  /** The highest point within one stroke. Strokes begin at fixed points of time, so that they do not shimmer. */
  #peak(side, share, width) {
    const ring = this.#rings[side];
    const size = ring.length;
    const per = Math.max(1, Math.round(width * size));
    const newest = Math.floor(this.#at / per) * per;
    const end = newest - Math.round((share * size) / per) * per + per;
    let highest = 0;
    for (let i = Math.max(0, end - per, this.#at - size); i < Math.min(end, this.#at); i += 1)
      highest = Math.max(highest, ring[i % size]);
    return highest;
  }

  /** A dimension line, as on a drawing: from now back to the moment at which what comes back now was said. */
  #dimension({ width, height }, delayMs) {
    const paper = this.#context;
    const middle = Math.round(height / 2) + 0.5;
    const x = width - (delayMs / 1000 / SPAN_S) * width;
    paper.strokeStyle = this.#colours.ink;
    paper.lineWidth = 2;
    paper.beginPath();
    paper.moveTo(x, middle - 9);
    paper.lineTo(x, middle + 9);
    paper.moveTo(width - 1, middle - 9);
    paper.lineTo(width - 1, middle + 9);
    paper.stroke();
    paper.lineWidth = 3;
    paper.beginPath();
    paper.moveTo(x, middle);
    paper.lineTo(width - 1, middle);
    paper.stroke();
  }
}

/** What the chart shows without a call: a sentence, and the same sentence a moment later. */
function example(atS, side) {
  const time = side === 0 ? atS : atS - 0.35;
  const phrase = Math.max(0, Math.sin(time * 1.15 - 0.3)) ** 0.6;
  const syllables = 0.5 + 0.5 * Math.sin(time * 23 + 2 * Math.sin(time * 3.1));
  const grain = 0.75 + 0.25 * Math.sin(time * 171 + 40 * Math.sin(time * 7.7));
  return 0.42 * phrase * syllables * grain;
}
