/** The sheet that makes a voice: a name, and a recording from a file or from the microphone. */

import { sentence } from "./api.js";
import { openMicrophone, whatFailed } from "./devices.js";
import { Take, clock } from "./recorder.js";
import { Tap } from "./tap.js";
import { describe } from "./texts.js";
import { addVoice } from "./voices.js";

const LEAST_S = 5;
const MOST_S = 15;

const $ = (id) => document.getElementById(id);

/** The advice on a voice's reference, or that it is good. */
function adviceOn(name, { speech_s: speechS, advice }) {
  const all = advice.length ? advice : [`A good recording, ${speechS.toFixed(1)} s of speech`];
  return `${name}: ${all.map(sentence).join(" ")}`;
}

export class AddVoice {
  #microphone;
  #onAdded;
  #opening = null; // an object of its own for each try to open the microphone; null while none runs
  #take = null;
  #tap = null;
  #track = null;
  #reference = null; // the recording made here, once it is long enough

  /** `microphone` returns the id of the chosen device; `onAdded` takes the new voice's id. */
  constructor({ microphone, onAdded }) {
    this.#microphone = microphone;
    this.#onAdded = onAdded;
    $("add-open").addEventListener("click", () => this.#open());
    $("add-close").addEventListener("click", () => $("add").close());
    $("add-cancel").addEventListener("click", () => $("add").close());
    $("add").addEventListener("close", () => {
      this.#opening = null;
      this.#endRecording();
    });
    $("reference-record").addEventListener("click", () => (this.#tap ? this.#endRecording() : this.#record()));
    $("add-files").addEventListener("change", () => this.#showFiles());
    $("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save();
    });
  }

  #open() {
    $("add-form").reset();
    this.#complain("");
    $("reference").textContent = "";
    this.#setReference(null);
    this.#showFiles();
    this.#progress(0);
    $("add").showModal();
    $("add-name").focus();
  }

  async #record() {
    if (this.#opening) return; // pressed twice
    const opening = (this.#opening = {});
    this.#complain("");
    this.#setReference(null);
    let track = null;
    let tap = null;
    try {
      const deviceId = this.#microphone();
      track = await openMicrophone({ deviceId, echoCancellation: false, noiseSuppression: false });
      tap = await Tap.open(new MediaStream([track]), ({ chunk }) => this.#hear(chunk));
    } catch (error) {
      track?.stop();
      if (opening !== this.#opening) return;
      this.#opening = null;
      const { code, reason } = whatFailed(error);
      const { title, text } = describe(code, { reason });
      return this.#complain(`${title}. ${text}`);
    }
    if (opening !== this.#opening) {
      tap.close();
      return track.stop(); // the sheet was closed meanwhile
    }
    this.#opening = null;
    [this.#track, this.#tap] = [track, tap];
    this.#take = new Take(tap.rateHz, MOST_S);
    tap.record(0);
    this.#showRecording(true);
  }

  #hear(chunk) {
    if (!chunk || !this.#take) return;
    this.#take.add(chunk);
    this.#progress(this.#take.seconds);
    if (this.#take.full) this.#endRecording();
  }

  #endRecording() {
    if (!this.#tap) return;
    this.#tap.close();
    this.#track.stop();
    this.#tap = this.#track = null;
    this.#showRecording(false);
    if (this.#take.seconds >= LEAST_S) this.#setReference(this.#take.wav());
    else this.#complain(`That was ${this.#take.seconds.toFixed(1)} s; a voice takes at least ${LEAST_S} s.`);
    this.#take = null;
  }

  async #save() {
    const name = $("add-name").value.trim();
    const files = this.#reference ? [new File([this.#reference], "recording.wav")] : [...$("add-files").files];
    if (this.#tap) return this.#complain("The recording is still running: stop it first.");
    if (!name) return this.#complain("Give the voice a name.", $("add-name"));
    if (files.length === 0) return this.#complain("Record the speaker, or choose a file.", $("reference-record"));
    if (!$("add-agree").checked) return this.#complain("The speaker has to agree first.", $("add-agree"));
    this.#complain("");
    this.#busy(true);
    try {
      const { voiceId, reference } = await addVoice(name, files, {
        clean: $("add-clean").checked,
        consent: $("add-agree-words").textContent,
      });
      $("add").close();
      $("reference").textContent = reference ? adviceOn(name, reference) : "";
      this.#onAdded(voiceId);
    } catch (error) {
      this.#complain(sentence(error.message));
    } finally {
      this.#busy(false);
    }
  }

  /** A recording made here takes the place of chosen files. */
  #setReference(reference) {
    this.#reference = reference;
    const preview = $("reference-preview");
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.hidden = !reference;
    if (reference) {
      preview.src = URL.createObjectURL(reference);
      $("add-files").value = "";
      $("files-name").textContent = "any audio format";
    } else preview.removeAttribute("src");
  }

  #showFiles() {
    const names = [...$("add-files").files].map((file) => file.name);
    $("files-name").textContent = names.join(", ") || "any audio format";
    if (names.length > 0) {
      this.#setReference(null);
      this.#progress(0);
    }
  }

  #showRecording(on) {
    $("reference-record").classList.toggle("on", on);
    $("reference-label").textContent = on ? "Stop" : "Record again";
    $("read-aloud").hidden = !on;
  }

  #progress(seconds) {
    const allowed = `${LEAST_S} to ${MOST_S} s`;
    $("reference-fill").style.transform = `scaleX(${seconds / MOST_S})`;
    $("reference-time").textContent = seconds ? `${clock(seconds)} of ${allowed}` : allowed;
    if (!seconds) $("reference-label").textContent = "Record";
  }

  #busy(on) {
    $("add-save").disabled = on;
    $("add-save").textContent = on ? "Adding…" : "Add voice";
  }

  #complain(text, field = null) {
    $("add-problem").textContent = text;
    field?.focus();
  }
}
