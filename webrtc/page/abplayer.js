/** Hears a recording before and after its conversion, at one and the same place. One of all players has the sound. */

import { clock } from "./recorder.js";
import { icon, make } from "./voices.js";

const SIDES = ["result", "source"];
const PICTURE_MS = 100;
const elements = { result: "after", source: "before" }; // ids of the two audio elements, which all players share
const sound = (side) => document.getElementById(elements[side]);

let holder = null; // the player that has them

export class AbPlayer {
  #title;
  #files;
  #seconds;
  #side = "result";
  #position = 0; // while another player has the sound
  #timer = null;
  #listening = new AbortController();
  #play = make("button", { type: "button", className: "play" });
  #place = make("input", { type: "range", min: 0, step: 0.01, value: 0, className: "place" });
  #time = make("output", { className: "play-time" });
  #switch = make("button", { type: "button", className: "ab" });

  /** `source` and `result` are files, `name` is that of the voice; a source that is not `playable` is not heard. */
  constructor({ title, source, result, seconds, name, playable }) {
    this.#title = title;
    this.#files = { source, result };
    this.#seconds = seconds;
    this.element = make("div", { className: "player" });
    this.element.dataset.testid = "player";
    this.#play.append(icon("i-play"), icon("i-pause"));
    this.#play.dataset.testid = "play";
    this.#play.addEventListener("click", () => (this.#playing ? this.pause() : this.play()));
    this.#place.max = seconds;
    this.#place.setAttribute("aria-label", `Place in ${title}`);
    this.#place.dataset.testid = "place";
    this.#place.addEventListener("input", () => this.#seek(Number(this.#place.value)));
    this.#switch.setAttribute("role", "switch");
    this.#switch.dataset.testid = "side";
    this.#switch.append(
      make("span", { className: "unseen", textContent: "Hear the original:" }),
      side("ab-b", "A", name),
      side("ab-a", "B", playable ? "Original" : "Not played here"),
    );
    this.#switch.disabled = !playable;
    if (!playable) this.#switch.title = "This browser cannot play the original.";
    this.#switch.addEventListener("click", () => this.#change());
    this.element.append(this.#play, this.#place, this.#time, this.#switch);
    this.#show();
  }

  async play() {
    this.#hold();
    sound(this.#side).currentTime = this.#position;
    await this.#start();
  }

  pause() {
    if (holder !== this) return;
    this.#position = sound(this.#side).currentTime;
    SIDES.forEach((side) => sound(side).pause());
    this.#show();
  }

  /** Lets go of the sound; another player may have it. */
  release() {
    if (holder !== this) return;
    this.pause();
    holder = null;
    this.#listening.abort();
    for (const side of SIDES) {
      URL.revokeObjectURL(sound(side).src);
      sound(side).removeAttribute("src");
      sound(side).load();
    }
    this.#show();
  }

  get #playing() {
    return holder === this && !sound(this.#side).paused;
  }

  #hold() {
    if (holder === this) return;
    holder?.release();
    holder = this;
    this.#listening = new AbortController();
    for (const side of SIDES) {
      sound(side).src = URL.createObjectURL(this.#files[side]);
      for (const event of ["play", "pause", "seeked"])
        sound(side).addEventListener(event, () => this.#show(), { signal: this.#listening.signal });
      sound(side).addEventListener("ended", () => this.#rewind(side), { signal: this.#listening.signal });
    }
  }

  async #start() {
    try {
      await sound(this.#side).play();
    } catch {
      // paused meanwhile, or the browser holds the sound back: the key shows it
    }
    this.#show();
  }

  /** The other side, from the very place on. */
  async #change() {
    const playing = this.#playing;
    if (playing) this.pause();
    this.#side = this.#side === "result" ? "source" : "result";
    if (playing) await this.play();
    this.#show();
  }

  #seek(seconds) {
    this.#position = seconds;
    if (holder === this) sound(this.#side).currentTime = seconds;
    this.#show();
  }

  #rewind(side) {
    if (side !== this.#side) return;
    this.#position = 0;
    this.#show();
  }

  #show() {
    const playing = this.#playing;
    if (playing) this.#position = sound(this.#side).currentTime;
    this.#play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.#title}`);
    this.#play.dataset.playing = String(playing);
    this.#switch.setAttribute("aria-checked", String(this.#side === "source"));
    this.#place.value = this.#position;
    this.#place.style.setProperty("--played", `${(100 * this.#position) / this.#seconds || 0}%`);
    this.#place.dataset.side = this.#side;
    this.#place.setAttribute("aria-valuetext", `${clock(this.#position)} of ${clock(this.#seconds)}`);
    this.#time.textContent = `${clock(this.#position)} / ${clock(this.#seconds)}`;
    clearTimeout(this.#timer);
    if (playing) this.#timer = setTimeout(() => this.#show(), PICTURE_MS);
  }
}

function side(className, letter, text) {
  const element = make("span", { className: `ab-side ${className}` });
  element.append(make("b", { textContent: letter }), ` ${text}`);
  return element;
}
