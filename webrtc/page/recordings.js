/** The part of the page that converts recordings: choosing them, how far each is, hearing and keeping the results. */

import { AbPlayer } from "./abplayer.js";
import { request } from "./api.js";
import { Conversions, spoken } from "./conversions.js";
import { chosen, dropped, size } from "./files.js";
import { clock } from "./recorder.js";
import { remember, settings } from "./settings.js";
import { icon, make } from "./voices.js";

const MOST_FILES = 100;
const MOST_BYTES = 2 ** 29; // of results in this tab
const AT_ONCE = 2;
const BETWEEN_DOWNLOADS_MS = 400; // browsers drop some of many downloads at one moment
const STEPS = [4, 10, 25, 50];

const $ = (id) => document.getElementById(id);

export class Recordings {
  #conversions;
  #onKeyNeeded;
  #voices = [];
  #rows = new Map(); // conversion -> Row
  #left = ""; // what was left out of the last drop, in words

  /** `inCall` tells whether a call runs: then only one recording does; `onKeyNeeded`: the server asks for a key. */
  constructor({ inCall, onKeyNeeded, onDrop }) {
    this.#onKeyNeeded = onKeyNeeded;
    const mayRun = () => (inCall() ? 1 : AT_ONCE);
    this.#conversions = new Conversions({ mayRun, mostBytes: MOST_BYTES });
    this.#conversions.addEventListener("change", ({ detail }) => this.#show(detail));
    this.#conversions.addEventListener("key", () => this.#onKeyNeeded());
    this.#bindFiles(onDrop);
    this.#bindOptions();
    $("convert").addEventListener("click", () => this.#start(this.#in("ready")));
    $("cancel-all").addEventListener("click", () => this.#active.forEach((each) => this.#conversions.cancel(each)));
    $("retry-failed").addEventListener("click", () => this.#start(this.#in("failed")));
    $("download-all").addEventListener("click", () => this.#downloadAll());
    $("clear").addEventListener("click", () => this.#clear());
    this.#summarise();
  }

  /** Whether leaving the page would lose something. */
  get unfinished() {
    return this.#active.length > 0 || this.#in("done").some(({ saved }) => !saved);
  }

  /** The id of the voice that recordings are converted into; empty where there is none. */
  get voice() {
    const ids = this.#voices.map(({ voice_id: id }) => id);
    return [settings.recordingVoice, settings.voice].find((id) => ids.includes(id)) ?? ids[0] ?? "";
  }

  set voice(voiceId) {
    remember({ recordingVoice: voiceId });
    this.#summarise();
  }

  /** The voices that there are now. */
  set voices(voices) {
    this.#voices = voices;
    this.#summarise();
  }

  /** Goes on where a key was given, a call ended or the server came back. */
  wake() {
    this.#conversions.wake();
  }

  /** Asks the server what it takes. */
  async learn() {
    this.#conversions.unlock();
    const [{ recordings } = {}] = await request("v1/models").catch(() => []); // then the server tells it of each file
    if (!recordings) return;
    const { max_source_s: maxSourceS, max_upload_bytes: maxUploadBytes, steps } = recordings;
    this.#conversions.limits = { maxSourceS, maxUploadBytes };
    $("drop-limits").textContent = `Audio and video, each up to ${spoken(maxSourceS)} and ${size(maxUploadBytes)}.`;
    $("recording-steps-field").hidden = steps === null;
    if (steps === null) return;
    const options = STEPS.map((count) => new Option(String(count), String(count)));
    $("recording-steps").replaceChildren(new Option(`Usual (${steps})`, ""), ...options);
    $("recording-steps").value = settings.recordingSteps ?? "";
  }

  focus() {
    $("recordings").focus({ preventScroll: true });
  }

  // Choosing

  #bindFiles(onDrop) {
    for (const id of ["choose-files", "choose-folder"])
      $(id).addEventListener("change", ({ target }) => {
        this.#take(chosen(target));
        target.value = ""; // the same file may be chosen again
      });
    const byMouse = window.matchMedia("(hover: hover)").matches; // phones drop nothing, and open no folders
    $("drop").dataset.by = byMouse ? "mouse" : "touch";
    $("choose-folder").closest("label").hidden = !byMouse || !("webkitdirectory" in HTMLInputElement.prototype);
    // A file that is dropped beside the field must not take the place of the page.
    const brings = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
    const over = (on) => (document.body.dataset.dropping = String(on));
    document.addEventListener("dragover", (event) => {
      if (!brings(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      over(true);
    });
    document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || over(false));
    document.addEventListener("drop", async (event) => {
      if (!brings(event)) return;
      event.preventDefault();
      over(false);
      const found = dropped(event.dataTransfer); // reads the event before it ends
      onDrop();
      this.#take(await found);
    });
  }

  /** Lists what there is room for, and says what is left out. */
  #take({ files, others, unread }) {
    const { maxUploadBytes } = this.#conversions.limits;
    const fitting = files.filter((file) => file.size <= maxUploadBytes);
    const taken = fitting.slice(0, Math.max(0, MOST_FILES - this.#conversions.all.length));
    taken.forEach((file) => this.#conversions.add(file));
    const left = [
      [others, "no recording", "no recordings"],
      [files.length - fitting.length, `larger than ${size(maxUploadBytes)}`],
      [fitting.length - taken.length, `beyond the ${MOST_FILES} that this list holds`],
    ].filter(([count]) => count > 0);
    const parts = left.map(([count, one, many = one]) => `${count} ${count === 1 ? one : many}`);
    if (unread) parts.push("what lies deeper in the folders");
    this.#left = parts.length > 0 ? `Left out: ${parts.join(", ")}.` : "";
    if (files.length === 0 && others === 0 && !unread) this.#left = "There is nothing in it.";
    this.#summarise();
    if (taken.length > 0 && !$("convert").disabled) $("convert").focus({ preventScroll: true });
  }

  #bindOptions() {
    for (const radio of document.querySelectorAll('input[name="save-as"]')) {
      radio.checked = radio.value === settings.saveAs;
      radio.addEventListener("change", () => remember({ saveAs: radio.value }));
    }
    $("remove-noise").checked = settings.removeNoise;
    $("remove-noise").addEventListener("change", ({ target }) => remember({ removeNoise: target.checked }));
    $("recording-steps").addEventListener("change", ({ target }) => remember({ recordingSteps: Number(target.value) || null }));
  }

  // What is done with them

  #in(...states) {
    return this.#conversions.all.filter(({ state }) => states.includes(state));
  }

  get #active() {
    return this.#conversions.all.filter(({ active }) => active);
  }

  /** With what is chosen now. */
  #start(conversions) {
    const voice = this.voice;
    if (!voice) return;
    const { name: voiceName } = this.#voices.find(({ voice_id: id }) => id === voice);
    const { saveAs, removeNoise } = settings;
    const steps = $("recording-steps-field").hidden ? null : settings.recordingSteps;
    for (const each of conversions) this.#conversions.start(each, { voice, voiceName, saveAs, removeNoise, steps });
  }

  /** The same file once more; the first result stays, to compare. */
  #again({ file }) {
    if (this.#conversions.all.length >= MOST_FILES) return;
    this.#start([this.#conversions.add(file)]);
  }

  #remove(conversion) {
    const row = this.#rows.get(conversion).element;
    const next = row.nextElementSibling ?? row.previousElementSibling;
    this.#conversions.remove(conversion);
    (next?.querySelector(".recording-keys > :not([hidden])") ?? this).focus();
  }

  #clear() {
    this.#in("ready", "done", "failed", "cancelled").forEach((each) => this.#conversions.remove(each));
    this.focus();
  }

  async #downloadAll() {
    for (const each of this.#in("done")) {
      this.#rows.get(each)?.download();
      await new Promise((resolve) => setTimeout(resolve, BETWEEN_DOWNLOADS_MS));
    }
  }

  // What is shown

  #show(conversion) {
    const all = this.#conversions.all;
    for (const [each, row] of this.#rows) {
      if (all.includes(each)) continue;
      row.remove();
      this.#rows.delete(each);
    }
    if (conversion && all.includes(conversion)) {
      if (!this.#rows.has(conversion)) this.#list(conversion);
      this.#rows.get(conversion).show(this.#conversions);
    }
    this.#summarise();
  }

  #list(conversion) {
    const row = new Row(conversion, {
      onCancel: () => this.#conversions.cancel(conversion),
      onRetry: () => this.#start([conversion]),
      onAgain: () => this.#again(conversion),
      onRemove: () => this.#remove(conversion),
      onSave: () => this.#summarise(),
    });
    this.#rows.set(conversion, row);
    $("recording-list").append(row.element);
  }

  #summarise() {
    const all = this.#conversions.all;
    const [ready, done, failed] = ["ready", "done", "failed"].map((state) => this.#in(state).length);
    const active = this.#active.length;
    const count = all.length - ready - this.#in("cancelled").length;
    const words = [];
    if (count > 0) words.push(`${done} of ${count} converted`);
    if (failed > 0) words.push(`${failed} failed`);
    if (count === 0 && all.length > 0) words.push(`${all.length} ${all.length === 1 ? "recording" : "recordings"}`);
    const about = words.length > 0 ? `${words.join(", ")}.` : "";
    const full = this.#conversions.full && active > 0 ? `This tab is full (${size(MOST_BYTES)}): save some results and remove them, then the rest goes on.` : "";
    tell($("recordings-summary"), [about, full].filter(Boolean).join(" "));
    tell($("left-out"), this.#left);
    $("recordings").dataset.empty = String(all.length === 0);
    $("recordings-count").textContent = active > 0 ? String(active) : "";
    $("convert").disabled = ready === 0 || !this.voice;
    $("convert-label").textContent = ready > 1 ? `Convert ${ready}` : "Convert";
    const keys = { "cancel-all": active > 1, "retry-failed": failed > 1, "download-all": done > 1, clear: all.length > active };
    const focused = document.activeElement;
    for (const [id, needed] of Object.entries(keys)) $(id).hidden = !needed;
    if (focused?.hidden || (focused === $("convert") && focused.disabled)) this.focus();
  }
}

/** Speaks only what is new. */
function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** One recording in the list. */
class Row {
  #conversion;
  #about = make("small", {});
  #bar = make("div", { className: "progress" });
  #sent = make("i", { className: "progress-sent" });
  #converted = make("i", { className: "progress-converted" });
  #note = make("p", { className: "recording-note" });
  #link = make("a", { className: "key small" });
  #keys = {};
  #player = null;
  #shown = null; // the result that the player has

  constructor(conversion, { onCancel, onRetry, onAgain, onRemove, onSave }) {
    this.#conversion = conversion;
    const { name } = conversion.file;
    this.element = make("li", { className: "recording" });
    this.element.dataset.testid = "recording";
    const words = make("span", { className: "recording-words" });
    words.append(make("b", { textContent: name, title: name }), this.#about);
    this.#link.dataset.testid = "save";
    this.#link.append(icon("i-down"), make("span", {}));
    this.#link.addEventListener("click", () => ((conversion.saved = true), onSave()));
    this.#keys = {
      retry: key("Try again", `Try again: ${name}`, onRetry),
      again: key("Again", `Again: convert ${name} with what is chosen now`, onAgain),
      cancel: key("Cancel", `Cancel ${name}`, onCancel),
      remove: key(null, `Remove ${name}`, onRemove),
    };
    const keys = make("span", { className: "recording-keys" });
    keys.append(this.#link, ...Object.values(this.#keys));
    const head = make("div", { className: "recording-head" });
    head.append(words, keys);
    this.#bar.setAttribute("role", "progressbar");
    this.#bar.setAttribute("aria-label", name);
    this.#bar.append(this.#sent, this.#converted);
    this.#note.dataset.testid = "recording-note";
    this.element.append(head, this.#bar, this.#note);
  }

  show(conversions) {
    const { state, active, result, durationS, convertedS, sent, file, options, warning, problem } = this.#conversion;
    this.element.dataset.state = state;
    const length = durationS === null ? "" : `${clock(durationS)}, `;
    const into = result && state === "done" ? `, in the voice ${options.voiceName}` : "";
    this.#about.textContent = `${length}${size(file.size)}${into}`;
    this.#bar.hidden = !active;
    const share = durationS ? Math.min(1, convertedS / durationS) : 0;
    this.#sent.style.width = `${100 * sent}%`;
    this.#converted.style.width = `${100 * share}%`;
    const unknown = state === "converting" && durationS === null;
    this.#bar.dataset.unknown = String(unknown);
    if (unknown) this.#bar.removeAttribute("aria-valuenow");
    else this.#bar.setAttribute("aria-valuenow", String(Math.round(state === "converting" ? 100 * share : 0)));
    tell(this.#note, this.#words(conversions));
    this.#bar.setAttribute("aria-valuetext", this.#note.textContent);
    this.#note.dataset.kind = problem ? "problem" : warning ? "warning" : "";
    this.#showKeys(state, active);
    this.#showResult(state);
  }

  #words(conversions) {
    const { state, sent, convertedS, durationS, problem, warning, tries, waitsFor } = this.#conversion;
    switch (state) {
      case "waiting":
        if (conversions.locked) return "Waiting for the key.";
        if (tries === 0) return "Waiting for its turn.";
        return conversions.heldS > 0
          ? `${waitsFor}: next try in ${conversions.heldS} s.`
          : `${waitsFor}: trying again.`;
      case "sending":
        return sent > 0 ? `Sending: ${Math.round(100 * sent)} %` : "Sending";
      case "converting":
        if (durationS === null) return "Converting";
        return `Converting: ${clock(Math.min(convertedS, durationS))} of ${clock(durationS)}`;
      case "failed":
        return problem;
      case "cancelled":
        return "Cancelled.";
      case "done":
        return warning;
      default:
        return "";
    }
  }

  #showKeys(state, active) {
    const focused = document.activeElement;
    this.#keys.retry.hidden = state !== "failed" && state !== "cancelled";
    this.#keys.again.hidden = this.#link.hidden = state !== "done";
    this.#keys.cancel.hidden = !active;
    this.#keys.remove.hidden = active;
    if (focused?.hidden && this.element.contains(focused))
      this.element.querySelector(".recording-keys > :not([hidden])").focus();
  }

  #showResult(state) {
    const { result, file, options, convertedS, playable } = this.#conversion;
    if (state !== "done" || this.#shown === result) return;
    this.#dropResult();
    this.#shown = result;
    this.#link.href = URL.createObjectURL(result);
    this.#link.download = this.#conversion.resultName;
    this.#link.lastElementChild.textContent = options.saveAs.toUpperCase();
    this.#link.setAttribute("aria-label", `Download ${file.name} as ${options.saveAs.toUpperCase()}`);
    this.#player = new AbPlayer({
      title: file.name, source: file, result, seconds: convertedS, name: options.voiceName, playable,
    });
    this.element.append(this.#player.element);
  }

  #dropResult() {
    if (!this.#shown) return;
    URL.revokeObjectURL(this.#link.href);
    this.#player.release();
    this.#player.element.remove();
    this.#shown = null;
  }

  download() {
    this.#link.click();
  }

  remove() {
    this.#dropResult();
    this.element.remove();
  }
}

/** A key with a word on it, or one that removes. */
function key(word, label, onClick) {
  const button = make("button", { type: "button", className: word ? "key small" : "icon-key" });
  button.setAttribute("aria-label", label);
  button.append(word ?? icon("i-bin"));
  button.addEventListener("click", onClick);
  return button;
}
