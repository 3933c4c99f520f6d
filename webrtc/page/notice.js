/** The strip that says what went wrong, with the one thing that helps. */

import { ACTIONS, describe } from "./messages.js";

const $ = (id) => document.getElementById(id);

export class Notice {
  #onAction;
  #onLeave;
  #shown = null;

  /** `onAction` takes the name of the action whose key was pressed; `onLeave` takes the keyboard when the strip goes. */
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
   * Shows a message; words that stand there already are not said again. In the details, `action` replaces the usual one,
   * and `final` says that nothing is tried any more.
   */
  show(code, details = {}) {
    const message = { ...describe(code, details), ...("action" in details && { action: details.action }) };
    if (details.final && message.action === "now") message.action = "retry";
    const same = this.#shown?.title === message.title && this.#shown?.text === message.text;
    this.#shown = message;
    $("notice").hidden = false;
    $("notice").dataset.code = message.code;
    $("notice").dataset.passing = String(message.passing && message.action === "now");
    if (!same) {
      $("notice-title").textContent = message.title;
      $("notice-text").textContent = message.text;
    }
    $("notice-count").textContent = "";
    const held = document.activeElement === $("notice-action");
    $("notice-action").hidden = message.action === null;
    $("notice-action").textContent = ACTIONS[message.action] ?? "";
    if (held && message.action === null) $("notice-close").focus();
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

  /** Takes away what has passed, and leaves the rest. */
  hidePassing() {
    if ($("notice").dataset.passing === "true") this.hide();
  }
}
