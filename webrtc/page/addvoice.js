/** The sheet that makes a voice: a name, and a recording from a file or from the microphone. */

import { sentence } from "./api.js";
import { openMicrophone, whatFailed } from "./devices.js";
import { describe } from "./messages.js";
import { Take, clock } from "./recorder.js";
import { Tap } from "./tap.js";
import { addVoice } from "./voices.js";

const LEAST_S = 5;
const MOST_S = 15;

const $ = (id) => document.getElementById(id);

/** What would sound better than this reference, or that it is good. */
function told(name, { speech_s: speechS, advice }) {
  const all = advice.length ? advice : [`A good recording, ${speechS.toFixed(1)} s of speech`];
  return `${name}: ${all.map(sentence).join(" ")}`;
}

export class AddVoice {
  #microphone;
  #onAdded;
  #opening = null; // stands for the try to open the microphone; another, or none, once nobody waits for it
  #take = null;
  #tap = null;
  #track = null;
  #sample = null; // the recording, once it is long enough

  /** `microphone` gives the chosen device; `onAdded` takes the new voice's id. How good its reference is stays on the page. */
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
    $("sample-record").addEventListener("click", () => (this.#tap ? this.#endRecording() : this.#record()));
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
    this.#setSample(null);
    this.#showFiles();
    this.#progress(0);
    $("add").showModal();
    $("add-name").focus();
  }

  async #record() {
    if (this.#opening) return; // pressed twice
    const opening = (this.#opening = {});
    this.#complain("");
    this.#setSample(null);
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
    if (this.#take.seconds >= LEAST_S) this.#setSample(this.#take.wav());
    else this.#complain(`That was ${this.#take.seconds.toFixed(1)} s; a voice takes at least ${LEAST_S} s.`);
    this.#take = null;
  }

  async #save() {
    const name = $("add-name").value.trim();
    const files = this.#sample ? [new File([this.#sample], "recording.wav")] : [...$("add-files").files];
    if (this.#tap) return this.#complain("The recording is still running: stop it first.");
    if (!name) return this.#complain("Give the voice a name.", $("add-name"));
    if (files.length === 0) return this.#complain("Record the speaker, or choose a file.", $("sample-record"));
    if (!$("add-agree").checked) return this.#complain("The speaker has to agree first.", $("add-agree"));
    this.#complain("");
    this.#busy(true);
    try {
      const { voiceId, reference } = await addVoice(name, files, { clean: $("add-clean").checked });
      $("add").close();
      $("reference").textContent = reference ? told(name, reference) : "";
      this.#onAdded(voiceId);
    } catch (error) {
      this.#complain(sentence(error.message));
    } finally {
      this.#busy(false);
    }
  }

  /** A recording made here takes the place of chosen files. */
  #setSample(sample) {
    this.#sample = sample;
    const preview = $("sample-preview");
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.hidden = !sample;
    if (sample) {
      preview.src = URL.createObjectURL(sample);
      $("add-files").value = "";
      $("files-name").textContent = "any audio format";
    } else preview.removeAttribute("src");
  }

  #showFiles() {
    const names = [...$("add-files").files].map((file) => file.name);
    $("files-name").textContent = names.join(", ") || "any audio format";
    if (names.length > 0) {
      this.#setSample(null);
      this.#progress(0);
    }
  }

  #showRecording(on) {
    $("sample-record").classList.toggle("on", on);
    $("sample-label").textContent = on ? "Stop" : "Record again";
    $("read-aloud").hidden = !on;
  }

  #progress(seconds) {
    $("sample-fill").style.transform = `scaleX(${seconds / MOST_S})`;
    $("sample-time").textContent = seconds ? `${clock(seconds)} of ${LEAST_S} to ${MOST_S} s` : `${LEAST_S} to ${MOST_S} s`;
    if (!seconds) $("sample-label").textContent = "Record";
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
