/** The figures beside the call: delay and what it is made of, the network, the work on a block. */

import { delayParts } from "./delay.js";
import { make } from "./voices.js";

const $ = (id) => document.getElementById(id);
const NONE = "–";

/** Figures of the connection, from the change between two of the browser's reports. */
export class NetworkWatch {
  #before = null;

  /** Takes an RTCStatsReport. Answers null for the first, and where no time has passed since the last. */
  read(report) {
    const entries = [...report.values()];
    const find = (type, test = () => true) => entries.find((entry) => entry.type === type && test(entry)) ?? {};
    const transport = find("transport");
    const pair = report.get(transport.selectedCandidatePairId) ?? find("candidate-pair", (entry) => entry.nominated);
    const received = find("inbound-rtp");
    const counts = {
      atMs: received.timestamp ?? performance.timeOrigin + performance.now(),
      up: find("outbound-rtp").bytesSent ?? 0,
      down: received.bytesReceived ?? 0,
      packets: received.packetsReceived ?? 0,
      lost: received.packetsLost ?? 0,
      bufferS: received.jitterBufferDelay ?? 0,
      emitted: received.jitterBufferEmittedCount ?? 0,
      playoutS: find("media-playout").totalPlayoutDelay ?? 0,
      played: find("media-playout").totalSamplesCount ?? 0,
    };
    const before = this.#before;
    this.#before = counts;
    if (!before || counts.atMs <= before.atMs) return null;
    const change = (name) => Math.max(0, counts[name] - before[name]);
    const kbits = (name) => (8 * change(name)) / (counts.atMs - before.atMs);
    const mean = (sum, count) => (change(count) > 0 ? (1000 * change(sum)) / change(count) : null);
    return {
      rttMs: pair?.currentRoundTripTime === undefined ? null : 1000 * pair.currentRoundTripTime,
      rateUp: kbits("up"),
      rateDown: kbits("down"),
      lossDown: (100 * change("lost")) / Math.max(1, change("lost") + change("packets")),
      jitterDownMs: received.jitter === undefined ? null : 1000 * received.jitter,
      receiveMs: mean("bufferS", "emitted"),
      speakerMs: mean("playoutS", "played"),
    };
  }

  clear() {
    this.#before = null;
  }
}

export function showNetwork(network, server) {
  number("rtt", network.rttMs ?? server.rtt_ms, 0, " ms");
  number("rate-up", network.rateUp, 0);
  number("rate-down", network.rateDown, 0);
  number("loss-up", percent(server.loss_in), 1);
  number("loss-down", network.lossDown, 1);
  number("jitter-up", server.jitter_ms, 0);
  number("jitter-down", network.jitterDownMs, 0);
}

const percent = (share) => (typeof share === "number" ? 100 * share : null);

/** Shows the delay from mouth to ear; `heardMs` was measured between microphone and speaker, or is null. */
export function showDelay({ network, server, microphoneMs, outputMs, heardMs, mode }) {
  const speakerMs = network.speakerMs ?? outputMs;
  const parts = delayParts({
    microphoneMs,
    rttMs: network.rttMs ?? server.rtt_ms ?? 0,
    jitterBufferMs: server.jitter_buffer_ms ?? 0,
    conversionMs: server.usual_delay_ms ?? server.delay_ms ?? 0,
    playoutMs: server.playout_ms ?? 0,
    receiveMs: network.receiveMs ?? 0,
    speakerMs,
    measuredMs: heardMs === null ? null : heardMs + microphoneMs + speakerMs,
  });
  const totalMs = parts.reduce((sum, { ms }) => sum + ms, 0);
  number("delay", totalMs);
  $("delay-how").textContent = heardMs === null ? "estimated" : "measured on your speech";
  stack($("delay-stack"), parts, totalMs);
  $("delay-parts").replaceChildren(...parts.map(part));
  const whole = `Mouth to ear about ${Math.round(totalMs)} ms: delay a video by that.`;
  $("mode-whole").textContent = mode === "constant" ? whole : "";
}

function part({ name, ms }) {
  const row = document.createElement("div");
  row.dataset.part = name;
  row.append(make("dt", { textContent: name }), make("dd", { textContent: Math.round(ms) }));
  return row;
}

/** Shows how long a block took in each stage, beside how long it lasts. */
export function showWork(stagesMs, blockMs) {
  const names = ["encoder", "diffusion", "vocoder"];
  names.forEach((name) => number(`stage-${name}`, stagesMs[name], 0));
  number("stages-total", stagesMs.total, 0);
  number("block-ms", blockMs, 0);
  const parts = names.map((name) => ({ name, ms: stagesMs[name] ?? 0 }));
  const totalMs = parts.reduce((sum, { ms }) => sum + ms, 0);
  stack($("stages-stack"), parts, Math.max(totalMs, blockMs ?? 0));
  $("stages-stack").dataset.over = String(totalMs > blockMs);
}

export function showBlocks(blocks) {
  for (const name of ["done", "late", "dropped", "skipped"]) number(`blocks-${name}`, blocks[name], 0);
  for (const name of ["late", "dropped"]) $(`blocks-${name}`).classList.toggle("raised", blocks[name] > 0);
}

/** Shows no figures, as before and after a call. */
export function clearReadouts() {
  showNetwork({}, {});
  showWork({}, null);
  showBlocks({});
  number("delay", null);
  $("delay-how").textContent = $("mode-whole").textContent = "";
  $("delay-parts").replaceChildren();
  stack($("delay-stack"), [], 1);
}

function number(id, value, digits = 0, unit = "") {
  const known = typeof value === "number" && Number.isFinite(value);
  $(id).toggleAttribute("data-none", !known);
  write($(id), known ? value.toFixed(digits) + unit : NONE);
}

/** Puts a text there, unless it is there: even the same text would be laid out and painted again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function stack(bar, parts, wholeMs) {
  while (bar.children.length > parts.length) bar.lastChild.remove();
  while (bar.children.length < parts.length) bar.append(document.createElement("i"));
  parts.forEach(({ name, ms }, index) => {
    bar.children[index].dataset.part = name;
    bar.children[index].style.flexBasis = `${(100 * ms) / (wholeMs || 1)}%`;
  });
}
