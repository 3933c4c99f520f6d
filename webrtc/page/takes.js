/** The list of recordings of this page: one is running at most, each can be downloaded. */

import { Take, clock } from "./recorder.js";
import { icon, make } from "./voices.js";

const LONGEST_MIN = 60;
const MOST_TAKES = 8; // older ones make room, so that the page does not eat all memory

export class Takes {
  #list;
  #onFull;
  #onEmpty;
  #take = null;
  #label = "";
  #count = 0;

  /** `onFull` takes the minutes that one recording holds; `onEmpty` takes the keyboard when the last one was deleted. */
  constructor(list, { onFull, onEmpty }) {
    this.#list = list;
    this.#onFull = onFull;
    this.#onEmpty = onEmpty;
  }

  get running() {
    return this.#take !== null;
  }

  get time() {
    return clock(this.#take.seconds);
  }

  start(rateHz, label) {
    this.#take = new Take(rateHz, 60 * LONGEST_MIN);
    this.#label = label;
  }

  add(samples) {
    if (!this.#take) return;
    this.#take.add(samples);
    if (!this.#take.full) return;
    this.stop();
    this.#onFull(LONGEST_MIN);
  }

  /** Ends the running recording and puts it on top of the list. */
  stop() {
    const take = this.#take;
    this.#take = null;
    if (!take || take.seconds === 0) return;
    this.#count += 1;
    this.#list.prepend(this.#item(take));
    while (this.#list.children.length > MOST_TAKES) this.#remove(this.#list.lastElementChild);
  }

  #item(take) {
    const title = `Take ${this.#count}`;
    const item = make("li", { className: "take" });
    const words = make("span", { className: "take-words" });
    words.append(make("b", { textContent: title }), ` ${this.#label}, ${clock(take.seconds)}`);
    const file = `seedvc-${this.#label.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-")}-${this.#count}.wav`;
    const link = make("a", { className: "key small", download: file, href: URL.createObjectURL(take.wav()) });
    link.dataset.testid = "download";
    link.setAttribute("aria-label", `Download ${title} as WAV`);
    link.append(icon("i-down"), "WAV");
    const bin = make("button", { type: "button", className: "icon-key" });
    bin.setAttribute("aria-label", `Delete ${title}`);
    bin.append(icon("i-bin"));
    bin.addEventListener("click", () => this.#delete(item));
    item.append(words, link, bin);
    return item;
  }

  /** The keyboard goes to the next recording. */
  #delete(item) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    this.#remove(item);
    if (next) next.querySelector("button").focus();
    else this.#onEmpty();
  }

  #remove(item) {
    URL.revokeObjectURL(item.querySelector("a").href);
    item.remove();
  }
}
