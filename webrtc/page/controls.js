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

  /**
   * `onMicrophone`: another microphone is chosen, or another treatment of its sound. `onHold`: the key in the strip about
   * longer blocks was pressed, which then goes.
   */
  constructor({ dialer, notice, onMicrophone, onHold }) {
    this.#dialer = dialer;
    this.#notice = notice;
    this.#bindModeAndSteps();
    this.#bindDevices(onMicrophone);
    $("adapt").checked = settings.adapt;
    $("adapt").addEventListener("change", ({ target }) => this.#chooseAdapt(target.checked));
    $("hold").addEventListener("click", () => {
      this.#chooseAdapt(false);
      onHold();
    });
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

  /** The server says what each mode usually costs, which one it prefers, and whether steps make a difference. */
  showModes({ modes, default_mode: preferred, steps }) {
    const lowest = modes?.lowest?.usual_delay_ms;
    const constant = modes?.constant?.delay_ms;
    if (lowest) $("mode-lowest-delay").textContent = `about ${Math.round(lowest)} ms`;
    if (constant) $("mode-constant-delay").textContent = `always ${Math.round(constant)} ms`;
    $("steps-field").hidden = steps === null;
    if (!settings.mode) check("mode", preferred ?? "lowest");
  }

  /** Learns from the settings of a running call what "Auto" means, and shows what was adapted. */
  note({ steps, adapted }) {
    if (this.#dialer.wanted.steps === null) this.#autoSteps ??= adapted?.steps ?? steps ?? null;
    this.showAdapted(adapted);
  }

  /** Says why the call is not as it was wanted; with null, that it is. */
  showAdapted(adapted) {
    $("adapted").hidden = !adapted;
    $("adapted-text").textContent = adapted ? `${sentence(adapted.message)}.` : "";
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

  #chooseAdapt(adapt) {
    remember({ adapt });
    $("adapt").checked = adapt;
    this.#dialer.change({ adapt });
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

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
