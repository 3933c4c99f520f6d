/** The strip that says what went wrong, with a key for what helps. */

import { ACTIONS, describe } from "./texts.js";

const $ = (id) => document.getElementById(id);

export class Notice {
  #onAction;
  #onLeave;
  #shown = null;

  /**
   * `onAction` takes the name of the action whose key was pressed; `onLeave` is called where the strip had the keyboard
   * when it went.
   */
  constructor({ onAction, onLeave }) {
    this.#onAction = onAction;
    this.#onLeave = onLeave;
    $("notice-close").addEventListener("click", () => this.hide());
    $("notice-action").addEventListener("click", () => {
      const { action } = this.#shown;
      if (action !== "now") this.hide();
      this.#onAction(action);
    });
  }

  /**
   * Shows the text of a code; one that stands there already is not spoken again. In the details, `action` replaces the
   * usual one, and `final` says that nothing is tried any more.
   */
  show(code, details = {}) {
    const told = { ...describe(code, details), ...("action" in details && { action: details.action }) };
    if (details.final && told.action === "now") told.action = "retry";
    const same = this.#shown?.title === told.title && this.#shown?.text === told.text;
    this.#shown = told;
    $("notice").hidden = false;
    $("notice").dataset.code = told.code;
    $("notice").dataset.passing = String(told.passing && told.action === "now");
    if (!same) {
      $("notice-title").textContent = told.title;
      $("notice-text").textContent = told.text;
    }
    $("notice-count").textContent = "";
    const held = document.activeElement === $("notice-action");
    $("notice-action").hidden = told.action === null;
    $("notice-action").textContent = ACTIONS[told.action] ?? "";
    if (held && told.action === null) $("notice-close").focus();
  }

  count(leftS) {
    $("notice-count").textContent = `${leftS} s`;
  }

  hide() {
    const held = $("notice").contains(document.activeElement);
    this.#shown = null;
    $("notice").hidden = true;
    $("notice").dataset.code = "";
    $("notice-title").textContent = $("notice-text").textContent = "";
    if (held) this.#onLeave();
  }

  /** Hides a text about trouble that passes by itself; others stay. */
  hidePassing() {
    if ($("notice").dataset.passing === "true") this.hide();
  }
}
