/** Level meters: a bar for the eye, a word and a number for those who do not see it. */

const FLOOR_DB = -60;
const FALL_DB_PER_S = 26;
const HOLD_MS = 1200;
const SPOKEN_EVERY_MS = 1000;

const decibels = (level) => Math.max(FLOOR_DB, 20 * Math.log10(level + 1e-6));

/** What a level means: `loudness` in dB (mean), `peak` in dB. */
export function levelWord(loudness, peak) {
  if (peak > -1) return "too loud";
  if (loudness > -38) return "good";
  return loudness > -55 ? "quiet" : "silent";
}

export class Meter {
  #bar;
  #fill;
  #mark;
  #word;
  #shown = FLOOR_DB;
  #held = FLOOR_DB;
  #heldAt = 0;
  #placed = [];
  #loudest = { loudness: FLOOR_DB, peak: FLOOR_DB };
  #drawnAt = 0;
  #spokenAt = 0;

  constructor(bar, word) {
    this.#bar = bar;
    [this.#fill, this.#mark] = bar.children;
    this.#word = word;
    this.rest("off");
  }

  /** Takes the mean and the highest level (0 to 1) of the last moment. */
  push(level, peak) {
    this.#loudest.loudness = Math.max(this.#loudest.loudness, decibels(level));
    this.#loudest.peak = Math.max(this.#loudest.peak, decibels(peak));
    this.#shown = Math.max(this.#shown, decibels(peak));
  }

  /** Moves the bar; called for each picture. */
  draw(now) {
    const fall = (FALL_DB_PER_S * Math.min(200, now - this.#drawnAt)) / 1000;
    if (this.#shown >= this.#held || now - this.#heldAt > HOLD_MS) {
      this.#held = this.#shown;
      this.#heldAt = now;
    }
    this.#place(this.#shown, this.#held);
    this.#shown = Math.max(FLOOR_DB, this.#shown - fall);
    this.#drawnAt = now;
    if (now - this.#spokenAt > SPOKEN_EVERY_MS) this.#speak(now);
  }

  /** Empties the bar; the word says why. */
  rest(word) {
    this.#shown = this.#held = FLOOR_DB;
    this.#place(FLOOR_DB, FLOOR_DB);
    this.#say(word, FLOOR_DB, word);
  }

  #speak(now) {
    const { loudness, peak } = this.#loudest;
    const word = levelWord(loudness, peak);
    this.#say(word, Math.round(loudness), `${Math.round(loudness)} decibels, ${word}`);
    this.#loudest = { loudness: FLOOR_DB, peak: FLOOR_DB };
    this.#spokenAt = now;
  }

  #say(word, value, spoken) {
    this.#word.textContent = word;
    this.#word.dataset.level = word;
    this.#bar.setAttribute("aria-valuenow", value);
    this.#bar.setAttribute("aria-valuetext", spoken);
  }

  #place(shown, held) {
    if (shown === this.#placed[0] && held === this.#placed[1]) return;
    this.#placed = [shown, held];
    const share = (value) => 1 - value / FLOOR_DB;
    this.#fill.style.clipPath = `inset(0 ${100 - 100 * share(shown)}% 0 0)`;
    this.#mark.style.transform = `translateX(${100 * share(held) - 100}%)`;
    this.#mark.style.opacity = held > FLOOR_DB ? 1 : 0;
  }
}
