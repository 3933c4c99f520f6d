/** The settings of a call: delay, quality, devices, switches. */

import { canChooseOutput, listDevices } from "./devices.js";
import { remember, settings } from "./settings.js";

const $ = (id) => document.getElementById(id);
const radios = (name) => [...document.querySelectorAll(`input[name="${name}"]`)];
const check = (name, value) => radios(name).forEach((radio) => (radio.checked = radio.value === value));

const MICROPHONE_SWITCHES = { "echo-cancellation": "echoCancellation", "noise-suppression": "noiseSuppression" };

export class Controls {
  #dialer;
  #notice;
  #autoSteps = null; // how many steps "Auto" means, once known

  /** `onMicrophone`: another microphone is chosen, or another treatment of its sound. */
  constructor({ dialer, notice, onMicrophone }) {
    this.#dialer = dialer;
    this.#notice = notice;
    this.#bindModeAndSteps();
    this.#bindDevices(onMicrophone);
    for (const [id, name] of Object.entries({ ...MICROPHONE_SWITCHES, shortcuts: "shortcuts" })) {
      $(id).checked = settings[name];
      $(id).addEventListener("change", ({ target }) => {
        remember({ [name]: target.checked });
        if (id in MICROPHONE_SWITCHES) onMicrophone();
      });
    }
  }

  listDevices() {
    return listDevices($("input-device"), $("output-device"), settings);
  }

  /** The server says what each mode costs, and which one it prefers. */
  showModes({ modes, default_mode: preferred }) {
    const lowest = modes?.lowest?.delay_ms;
    const constant = modes?.constant?.delay_ms;
    if (lowest) $("mode-lowest-delay").textContent = `up to ${Math.round(lowest)} ms`;
    if (constant) $("mode-constant-delay").textContent = `fixed ${Math.round(constant)} ms`;
    if (!settings.mode) check("mode", preferred ?? "lowest");
  }

  /** Learns from the settings of a running call what "Auto" means. */
  note({ steps }) {
    if (this.#dialer.wanted.steps === null) this.#autoSteps ??= steps ?? null;
  }

  /** Goes back to what the call runs with, after a change was refused. */
  fallBack({ mode, steps }) {
    const wanted = this.#dialer.wanted;
    wanted.mode &&= mode;
    wanted.steps = wanted.steps === null ? null : steps;
    remember({ mode: wanted.mode ?? "", steps: wanted.steps });
    this.#showModeAndSteps();
  }

  #bindModeAndSteps() {
    this.#showModeAndSteps();
    for (const radio of radios("mode")) radio.addEventListener("change", () => this.#chooseMode(radio.value));
    for (const radio of radios("steps")) radio.addEventListener("change", () => this.#chooseSteps(radio.value));
  }

  #showModeAndSteps() {
    check("mode", settings.mode || "lowest");
    check("steps", settings.steps === null ? "" : String(settings.steps));
  }

  #chooseMode(mode) {
    remember({ mode });
    this.#dialer.change({ mode });
  }

  /** A running call takes only numbers: where it is not known what "Auto" means, only the next call gets it. */
  #chooseSteps(value) {
    const steps = value === "" ? null : Number(value);
    remember({ steps });
    const now = steps ?? this.#autoSteps;
    if (now !== null) this.#dialer.change({ steps: now });
    this.#dialer.wanted.steps = steps;
  }

  #bindDevices(onMicrophone) {
    $("input-device").addEventListener("change", ({ target }) => {
      remember({ input: target.value });
      onMicrophone();
    });
    $("output-field").hidden = !canChooseOutput();
    if (canChooseOutput() && settings.output)
      $("remote").setSinkId(settings.output).catch(() => remember({ output: "" })); // it may be gone
    $("output-device").addEventListener("change", ({ target }) => this.#chooseOutput(target.value));
    $("volume").value = settings.volume;
    $("remote").volume = settings.volume / 100;
    $("volume").addEventListener("input", ({ target }) => {
      remember({ volume: Number(target.value) });
      $("remote").volume = settings.volume / 100;
    });
    navigator.mediaDevices?.addEventListener("devicechange", () => this.listDevices());
  }

  async #chooseOutput(deviceId) {
    try {
      await $("remote").setSinkId(deviceId);
      remember({ output: deviceId });
    } catch (error) {
      $("output-device").value = settings.output;
      this.#notice.show("output_failed", { reason: error.message });
    }
  }
}
