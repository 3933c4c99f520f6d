/** Makes calls, one after the other, through lost connections and a full server, until the user stops. */

import { request, socketUrl } from "./api.js";
import { Call } from "./call.js";

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 8;
const TRIES = { before: 3, after: 8, full: 60 }; // before the first call that is live, after it, and at a full server
const STEADY_MS = 10000; // after a call that was live for so long, tries are counted from 0 again
const PASSING = new Set([
  "connection_lost", "server_unreachable", "media_failed", "offer_failed", "shutting_down", "at_capacity", "system_busy",
  "internal_error",
]);

/** Seconds until try number `tries` (from 0): doubling, bounded, and spread so that not all callers come back at once. */
export function waitBefore(tries, random = Math.random()) {
  return Math.min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** tries) * (1 + random / 4);
}

/** Events: state, hello, settings, stats, refused, remote, countdown; `detail` is what came. */
export class Dialer extends EventTarget {
  state = "idle"; // idle, connecting, live, reconnecting, waiting
  wanted;
  #call = null;
  #track = null;
  #hurry = null;
  #stopped = false;
  #sessionId = null; // of the last call, while the server may still hold it

  /** `wanted` is {voice, mode, steps, bypass, adapt}: what each call is started with. */
  constructor(wanted) {
    super();
    this.wanted = wanted;
    window.addEventListener("online", () => this.tryNow());
  }

  get active() {
    return this.state !== "idle";
  }

  /** Calls with this microphone; the promise tells why no other call was tried. */
  async run(track) {
    this.#track = track;
    this.#stopped = false;
    this.#enter("connecting");
    let tries = 0;
    let everLive = false;
    for (;;) {
      let liveSince = null;
      const outcome = await this.#attempt(() => {
        everLive = true;
        liveSince = performance.now();
      });
      if (liveSince !== null && performance.now() - liveSince > STEADY_MS) tries = 0;
      const full = outcome.code === "at_capacity";
      const limit = full ? TRIES.full : everLive ? TRIES.after : TRIES.before;
      if (this.#stopped || !PASSING.has(outcome.code)) return this.#over(outcome);
      if (tries >= limit) return this.#over(exhausted(outcome, everLive));
      const waitS = outcome.retryAfterS ?? (full ? LONGEST_WAIT_S : waitBefore(tries));
      tries += 1;
      this.#enter(full ? "waiting" : "reconnecting", { ...outcome, tries, limit });
      await this.#pause(waitS);
      if (this.#stopped) return this.#over({ code: "stopped" });
    }
  }

  /** Changes what is wanted, in a running call at its next block. */
  change(fields) {
    Object.assign(this.wanted, fields);
    this.#call?.change(fields);
  }

  async replaceTrack(track) {
    this.#track = track;
    await this.#call?.replaceTrack(track);
  }

  getStats() {
    return this.#call ? this.#call.getStats() : Promise.resolve(new Map());
  }

  tryNow() {
    this.#hurry?.();
  }

  stop() {
    this.#stopped = true;
    this.#call?.stop();
    this.#hurry?.();
  }

  async #attempt(onLive) {
    const tell = (type) => (detail) => this.#tell(type, detail);
    this.#call = new Call(socketUrl(), this.#track, {
      hello: tell("hello"),
      ready: ({ session, settings }) => {
        this.#sessionId = session;
        this.#tell("settings", settings);
      },
      settings: tell("settings"),
      stats: tell("stats"),
      refused: tell("refused"),
      remote: tell("remote"),
      live: () => {
        onLive();
        this.#enter("live");
      },
    });
    const outcome = await this.#call.run(() => ({ ...this.wanted, ...(this.#sessionId && { replaces: this.#sessionId }) }));
    this.#call = null;
    if (outcome.ended) this.#sessionId = null;
    return outcome.code === "no_hello" && !this.#stopped ? await whyNoHello() : outcome;
  }

  /** Waits, telling each second; `tryNow` and `stop` cut it short. */
  async #pause(waitS) {
    const until = performance.now() + 1000 * waitS;
    let hurried = false;
    while (!hurried && performance.now() < until) {
      const leftMs = until - performance.now();
      this.#tell("countdown", { leftS: Math.ceil(leftMs / 1000) });
      hurried = await new Promise((resolve) => {
        this.#hurry = () => resolve(true);
        setTimeout(() => resolve(false), leftMs % 1000 || 1000);
      });
    }
    this.#hurry = null;
  }

  #enter(state, detail = {}) {
    this.state = state;
    this.#tell("state", { state, ...detail });
  }

  #over(outcome) {
    this.#sessionId = null;
    this.#enter("idle");
    return outcome;
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** A refused socket does not say why; the answer to a plain request does. */
async function whyNoHello() {
  try {
    await request("v1/rtc/config");
    return { code: "socket_blocked" };
  } catch (error) {
    if (error.status === 429 || error.status === 503)
      return {
        code: error.code === "system_busy" ? error.code : "at_capacity",
        reason: error.message,
        retryAfterS: error.retryAfterS,
      };
    if (error.status === 401) return { code: error.code ?? "invalid_api_key", reason: error.message };
    if (error.status === 404) return { code: "no_live_calls" };
    return { code: "server_unreachable", reason: error.message };
  }
}

function exhausted(outcome, everLive) {
  if (outcome.code === "at_capacity") return { code: "still_at_capacity" };
  return everLive ? { code: "gave_up" } : outcome;
}
