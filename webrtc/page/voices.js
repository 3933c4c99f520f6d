/** The list of voices: choosing one, deleting an own one. */

import { request } from "./api.js";

const PRINT_BARS = 11;

export const fetchVoices = async () => (await request("v1/voices")).voices;
export const deleteVoice = (voiceId) => request(`v1/voices/${encodeURIComponent(voiceId)}`, { method: "DELETE" });

/** Uploads recordings of one speaker; returns the new voice's id, and how good its reference is (null: not told). */
export async function addVoice(name, files, { clean = false, consent = null } = {}) {
  const form = new FormData();
  form.append("name", name);
  if (clean) form.append("remove_background_noise", "true");
  if (consent) form.append("consent", consent);
  files.forEach((file) => form.append("files", file, file.name ?? "recording.wav"));
  const { voice_id: voiceId, reference = null } = await request("v1/voices/add", { method: "POST", body: form });
  return { voiceId, reference };
}

export class VoiceList {
  #list;
  #onChoose;
  #onDelete;
  #voices = [];

  constructor(list, { onChoose, onDelete }) {
    this.#list = list;
    this.#onChoose = onChoose;
    this.#onDelete = onDelete;
    list.addEventListener("change", ({ target }) => this.#onChoose(target.value));
  }

  get voices() {
    return this.#voices;
  }

  name(voiceId) {
    return this.#voices.find((voice) => voice.voice_id === voiceId)?.name ?? voiceId;
  }

  /** Shows these voices, own ones last; `chosen` is marked. */
  show(voices, chosen) {
    const own = (voice) => Number(Boolean(voice.is_owner));
    this.#voices = [...voices].sort((a, b) => own(a) - own(b) || a.name.localeCompare(b.name));
    const held = this.#list.contains(document.activeElement);
    this.#list.replaceChildren(...this.#voices.map((voice) => this.#item(voice, voice.voice_id === chosen)));
    if (held) this.focus();
  }

  choose(voiceId) {
    for (const radio of this.#list.querySelectorAll("input")) radio.checked = radio.value === voiceId;
  }

  /** Puts the keyboard on the chosen voice. */
  focus() {
    (this.#list.querySelector("input:checked") ?? this.#list.querySelector("input"))?.focus();
  }

  #item(voice, chosen) {
    const item = make("li", { className: "voice" });
    item.dataset.testid = "voice";
    item.dataset.voiceId = voice.voice_id;
    const radio = make("input", { type: "radio", name: "voice", value: voice.voice_id, checked: chosen });
    const about = voice.description || Object.values(voice.labels ?? {}).join(", ");
    const words = make("span", { className: "voice-words" });
    words.append(make("b", { textContent: voice.name }), make("small", { textContent: about }));
    const label = make("label", { className: "voice-key" });
    label.append(radio, print(voice.voice_id), words, make("i", { className: "voice-lamp" }));
    item.append(label);
    if (voice.is_owner) item.append(this.#bin(voice));
    return item;
  }

  #bin(voice) {
    const bin = make("button", { type: "button", className: "icon-key voice-bin" });
    bin.dataset.testid = "voice-delete";
    bin.setAttribute("aria-label", `Delete ${voice.name}`);
    bin.append(icon("i-bin"));
    bin.addEventListener("click", () => this.#onDelete(voice));
    return bin;
  }
}

/** A drawing to recognise a voice by: bars whose lengths follow from its id. */
function print(voiceId) {
  const drawing = svg("svg", { class: "voice-print", viewBox: `0 0 ${4 * PRINT_BARS} 32`, "aria-hidden": "true" });
  let state = 2166136261;
  for (const letter of voiceId) state = Math.imul(state ^ letter.charCodeAt(0), 16777619);
  for (let bar = 0; bar < PRINT_BARS; bar += 1) {
    state = Math.imul(state ^ (state >>> 15), 2246822519) + bar;
    const arch = Math.sin((Math.PI * (bar + 0.7)) / (PRINT_BARS + 0.4));
    const length = 2 + 12 * arch * (0.3 + 0.7 * ((state >>> 8) % 1000) / 1000);
    drawing.append(svg("path", { d: `M${4 * bar + 2} ${16 - length}V${16 + length}` }));
  }
  return drawing;
}

export function icon(name) {
  const drawing = svg("svg", { "aria-hidden": "true" });
  drawing.append(svg("use", { href: `#${name}` }));
  return drawing;
}

export const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}
