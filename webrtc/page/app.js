/** The page's main script: what the user does goes to the call, and how the call goes is shown to the user. */

import { AddVoice } from "./addvoice.js";
import { request, setKey } from "./api.js";
import { Controls } from "./controls.js";
import { DelayMeter } from "./delay.js";
import { missingFeatures, openMicrophone, whatFailed } from "./devices.js";
import { Dialer } from "./dialer.js";
import { Meter } from "./meters.js";
import { Notice } from "./notice.js";
import { NetworkWatch, clearReadouts, showBlocks, showDelay, showNetwork, showWork, write } from "./readouts.js";
import { Recordings } from "./recordings.js";
import { remember, settings } from "./settings.js";
import { Takes } from "./takes.js";
import { Tap } from "./tap.js";
import { Trace } from "./trace.js";
import { VoiceList, deleteVoice, fetchVoices } from "./voices.js";

const STEP = 256; // samples in one point of trace and delay meter, see tap-worklet.js
const STEP_S = STEP / 48000;
const CALM_MS = 1000; // between two pictures, where the user asked for less motion

const $ = (id) => document.getElementById(id);

const dialer = new Dialer({
  voice: settings.voice,
  mode: settings.mode || null,
  steps: settings.steps,
  bypass: false,
  adapt: settings.adapt,
});
const notice = new Notice({ onAction: act, onLeave: focusCall });
const meters = [new Meter($("meter-in"), $("meter-in-word")), new Meter($("meter-out"), $("meter-out-word"))];
const trace = new Trace($("trace"), STEP_S);
const delayMeter = new DelayMeter(STEP_S);
const network = new NetworkWatch();
const takes = new Takes($("takes"), {
  onFull: (minutes) => (showRecording(), notice.show("recording_full", { minutes })),
  onEmpty: focusCall,
});
const voiceList = new VoiceList($("voice-list"), { onChoose: chooseVoice, onDelete: askDelete });
const controls = new Controls({ dialer, notice, onMicrophone: () => changeMicrophone(), onHold: focusCall });
const recordings = new Recordings({
  inCall: () => dialer.active,
  onKeyNeeded: () => notice.show("invalid_api_key"),
  onDrop: () => (location.hash = "#recordings"),
});
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

let usable = false; // this browser can make calls at all
let opening = false; // asking for the microphone, which may wait for the user
let muted = false;
let tap = null;
let track = null;
let effective = {}; // settings of the running call, as the server told
let heardMs = null; // the measured delay
let progress = {}; // {tries, limit}, while the connection is tried again
let cause = null; // why the page ends the call by itself
let picture = 0; // the next one, once it is asked for
let drawnAt = 0;
let change = Promise.resolve(); // the last change of microphone; the next one waits for it

// Voices

/** Shows the voices; returns the status of the refusal where there are none to show. */
async function loadVoices() {
  let refused = null;
  try {
    const voices = await fetchVoices();
    const known = voices.some((voice) => voice.voice_id === settings.voice);
    recordings.voices = voices;
    voiceList.show(voices, chosenVoice());
    $("voices-empty").hidden = voices.length > 0;
    if (!known && voices.length > 0) callAs(voiceList.voices[0].voice_id);
    if (voices.length === 0) remember({ voice: "" });
  } catch (error) {
    if (error.status === 401) notice.show("invalid_api_key");
    else notice.show(error.status === 0 ? "server_unreachable" : "voices_failed", { reason: error.message, action: "voices" });
    refused = error.status;
  }
  refresh();
  return refused;
}

/** The list shows the voice of what is converted in the present view. */
const chosenVoice = () => (inRecordings() ? recordings.voice : settings.voice);

function chooseVoice(voiceId) {
  if (!inRecordings()) return callAs(voiceId);
  recordings.voice = voiceId;
  refresh();
}

function callAs(voiceId) {
  remember({ voice: voiceId });
  dialer.change({ voice: voiceId });
  refresh();
}

function askDelete(voice) {
  $("remove-title").textContent = `Delete ${voice.name}?`;
  $("remove-problem").textContent = "";
  $("remove-confirm").onclick = async () => {
    try {
      await deleteVoice(voice.voice_id);
    } catch (error) {
      if (error.status !== 404) return ($("remove-problem").textContent = error.message);
    }
    $("remove").close();
    await loadVoices();
    voiceList.focus();
  };
  $("remove").showModal();
  $("remove-cancel").focus();
}

// The call

async function start() {
  if (dialer.active || opening || !usable) return;
  if (!settings.voice) return notice.show("no_voice");
  notice.hide();
  opening = true;
  say("Opening the microphone", "connecting");
  try {
    track = await openMicrophone(microphoneWishes());
    tap = await Tap.open(new MediaStream([track]), hear);
  } catch (error) {
    return finish(whatFailed(error));
  } finally {
    opening = false;
  }
  watchMicrophone();
  controls.listDevices();
  delayMeter.stepS = STEP / tap.rateHz;
  dialer.wanted.bypass = false;
  trace.running = true;
  finish(await dialer.run(track));
}

/** Puts everything away after the last try, but for the recordings. */
function finish(ended) {
  const outcome = cause ?? ended;
  cause = null;
  takes.stop();
  closeSound();
  trace.running = false;
  trace.delayMs = null;
  meters.forEach((meter) => meter.rest("off"));
  clearReadouts();
  controls.showAdapted(null);
  setMuted(false);
  if (outcome.code === "stopped") notice.hide();
  else notice.show(outcome.code, { ...outcome, final: true });
  refresh();
}

function closeSound() {
  tap?.close();
  track?.stop();
  tap = track = null;
  $("remote").srcObject = null;
}

const microphoneWishes = () => ({
  deviceId: settings.input,
  echoCancellation: settings.echoCancellation,
  noiseSuppression: settings.noiseSuppression,
});

/**
 * Puts another microphone, or the same one with other wishes, into the running call. Where that fails, the call ends, for
 * the reason `code` if that is given.
 */
function changeMicrophone(code = null) {
  change = change.then(reopenMicrophone).catch((error) => {
    if (!tap) return; // the call ended meanwhile
    cause = { ...whatFailed(error), ...(code && { code }) };
    dialer.stop();
  });
  return change;
}

async function reopenMicrophone() {
  const old = track;
  if (!old) return;
  old.onended = null;
  const opened = await openAnother(old);
  if (!tap) return opened.stop(); // the call ended meanwhile
  track = opened;
  track.enabled = !muted;
  try {
    await dialer.replaceTrack(opened);
  } finally {
    old.stop(); // not before: until then the call is made with it
  }
  if (track !== opened) return; // the call ended meanwhile
  watchMicrophone();
  tap.connect(0, new MediaStream([track]));
}

/** Some systems lend a device only once: then the old track lets go of it first. */
async function openAnother(old) {
  try {
    return await openMicrophone(microphoneWishes());
  } catch (error) {
    if (error.code !== "microphone_busy" || old.readyState === "ended") throw error;
    old.stop();
    return openMicrophone(microphoneWishes());
  }
}

/** A microphone that goes away gives way to the default one, or ends the call where there is no other. */
function watchMicrophone() {
  track.onended = async () => {
    remember({ input: "" });
    await changeMicrophone("microphone_lost");
    controls.listDevices();
  };
}

dialer.addEventListener("state", ({ detail }) => {
  progress = detail;
  if (detail.state === "live") {
    notice.hidePassing();
    network.clear();
  } else {
    delayMeter.clear();
    heardMs = trace.delayMs = null;
    tap?.connect(1, null);
    if (detail.state === "reconnecting" || detail.state === "waiting") {
      clearReadouts();
      meters[1].rest("off");
      notice.show(detail.code, detail);
    }
  }
  refresh();
});
dialer.addEventListener("state", () => recordings.wake());
dialer.addEventListener("countdown", ({ detail }) => notice.count(detail.leftS));
dialer.addEventListener("hello", ({ detail }) => controls.showModes(detail));
dialer.addEventListener("settings", ({ detail }) => {
  effective = detail;
  controls.note(detail);
  refresh();
});
dialer.addEventListener("refused", ({ detail }) => {
  notice.show(detail.code, detail);
  remember({ voice: effective.voice });
  Object.assign(dialer.wanted, { voice: effective.voice, bypass: effective.bypass });
  controls.fallBack(effective);
  loadVoices();
});
dialer.addEventListener("remote", ({ detail: stream }) => {
  $("remote").srcObject = stream;
  tap?.connect(1, stream);
  listen();
});
dialer.addEventListener("stats", async ({ detail: server }) => {
  if (document.hidden) return;
  const report = await dialer.getStats();
  if (dialer.state !== "live" || !tap) return;
  const figures = network.read(report);
  if (!figures) return;
  if (!muted) heardMs = delayMeter.measure() ?? heardMs;
  const microphoneMs = 1000 * (track?.getSettings().latency ?? 0.01);
  showNetwork(figures, server);
  const outputMs = 1000 * tap.outputLatencyS;
  showDelay({ network: figures, server, microphoneMs, outputMs, heardMs, mode: effective.mode });
  showWork(server.stages_ms ?? {}, effective.block_ms);
  showBlocks(server.blocks ?? {});
  trace.delayMs = heardMs;
});

/** Plays what comes back; a browser may want one more click first. */
async function listen() {
  try {
    await $("remote").play();
  } catch (error) {
    if (error.name === "NotAllowedError") notice.show("sound_blocked");
  }
}

// What is heard and seen

function hear({ peaks, levels, chunk }) {
  trace.push(peaks);
  delayMeter.push(peaks);
  meters[0].push(levels[0], Math.max(...peaks[0]));
  meters[1].push(levels[1], Math.max(...peaks[1]));
  if (chunk) takes.add(chunk);
  picture ||= requestAnimationFrame(draw);
}

/** Draws what came since the last picture. A browser asks for none of a page that nobody sees. */
function draw(now) {
  picture = 0;
  if (!tap || (calm.matches && now - drawnAt < CALM_MS)) return;
  drawnAt = now;
  trace.draw();
  meters[0].draw(now);
  if (dialer.state === "live") meters[1].draw(now);
  write($("record-time"), takes.running ? takes.time : "");
}

function say(text, state) {
  write($("status-text"), text);
  $("status").dataset.state = state;
}

function statusText() {
  const name = voiceList.name(effective.voice ?? settings.voice);
  switch (dialer.state) {
    case "connecting":
      return "Connecting";
    case "reconnecting":
      return `Reconnecting, try ${progress.tries} of ${progress.limit}`;
    case "waiting":
      return "Waiting for a free place";
    case "live":
      if (muted) return "Muted: nothing is heard of you";
      return dialer.wanted.bypass ? "Live: heard in your own voice" : `Live: heard as ${name}`;
    default:
      return usable ? (settings.voice ? "Ready" : "Ready, without a voice") : "Not usable here";
  }
}

/** Shows the present state everywhere on the page. */
function refresh() {
  const { active, state } = dialer;
  say(statusText(), state);
  const focused = document.activeElement;
  $("start").hidden = active;
  $("stop").hidden = !active;
  $("start").disabled = !usable || !settings.voice;
  for (const id of ["mute", "bypass", "record"]) $(id).disabled = !active;
  if (focused?.closest(".transport") && (focused.hidden || focused.disabled)) focusCall();
  $("bypass").setAttribute("aria-checked", String(active && dialer.wanted.bypass));
  const name = settings.voice ? voiceList.name(settings.voice) : "The other voice";
  $("lane-voice").textContent = active && dialer.wanted.bypass ? "You, unconverted" : name;
  $("ab-voice").textContent = settings.voice ? name : "Converted";
  $("chart-hint").hidden = active;
  voiceList.choose(chosenVoice());
  showRecording();
}

/** Moves the keyboard to Start or Stop: the key that had it may be hidden or disabled now. */
function focusCall() {
  if (inRecordings()) return recordings.focus();
  const key = dialer.active ? $("stop") : $("start");
  (key.disabled ? $("deck") : key).focus();
}

function setMuted(on) {
  muted = on;
  if (track) track.enabled = !on;
  $("mute").setAttribute("aria-pressed", String(on));
  refresh();
}

function toggleBypass() {
  if (!dialer.active) return;
  dialer.change({ bypass: !dialer.wanted.bypass });
  refresh();
}

function toggleRecording() {
  if (takes.running) takes.stop();
  else if (tap) takes.start(tap.rateHz, voiceList.name(settings.voice));
  tap?.record(takes.running ? 1 : null);
  showRecording();
}

function showRecording() {
  if (!takes.running) tap?.record(null);
  $("record").setAttribute("aria-pressed", String(takes.running));
  $("record-label").textContent = takes.running ? "Recording" : "Record";
  if (!takes.running) $("record-time").textContent = "";
}

// What the user does

const inRecordings = () => $("plate").dataset.view === "recordings";

/** The address names the view, so that it can be kept and gone back from. */
function showView() {
  const view = location.hash === "#recordings" ? "recordings" : "call";
  $("plate").dataset.view = view;
  for (const name of ["call", "recordings"])
    if (name === view) $(`view-${name}`).setAttribute("aria-current", "page");
    else $(`view-${name}`).removeAttribute("aria-current");
  if (location.hash === "#deck") $("deck").focus();
  voiceList.choose(chosenVoice());
}

/** A call, and what was converted and not saved, would be lost. */
function onLeave(event) {
  if (dialer.active || recordings.unfinished) event.preventDefault();
}

/** Single letters are shortcuts only where nothing else takes letters, and can be switched off. */
function onKey(event) {
  if (!settings.shortcuts || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !dialer.active) return;
  if (event.target.closest("input[type=text], select, textarea, dialog")) return;
  const shortcut = { m: () => setMuted(!muted), b: toggleBypass }[event.key.toLowerCase()];
  if (!shortcut) return;
  event.preventDefault();
  shortcut();
}

function act(action) {
  const actions = {
    retry: start,
    now: () => dialer.tryNow(),
    listen,
    voices: init,
    key: () => $("key").showModal(),
  };
  actions[action]();
}

function bind() {
  $("start").addEventListener("click", start);
  $("stop").addEventListener("click", () => dialer.stop());
  $("mute").addEventListener("click", () => setMuted(!muted));
  $("bypass").addEventListener("click", toggleBypass);
  $("record").addEventListener("click", toggleRecording);
  $("remove-cancel").addEventListener("click", () => $("remove").close());
  $("key-cancel").addEventListener("click", () => $("key").close());
  $("key-form").addEventListener("submit", () => (setKey($("key-value").value), init()));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", showView);
  window.addEventListener("beforeunload", onLeave);
  new AddVoice({
    microphone: () => settings.input,
    onAdded: async (voiceId) => {
      chooseVoice(voiceId);
      await loadVoices();
      voiceList.focus();
    },
  });
}

/** Asks the server what it offers. Without a key it offers nothing, so that comes before what else is missing. */
async function init() {
  notice.hide();
  const missing = missingFeatures();
  usable = window.isSecureContext && missing.length === 0;
  if ((await loadVoices()) === 401) return;
  recordings.learn();
  if (!window.isSecureContext) return notice.show("insecure_context");
  if (!usable) return notice.show("unsupported_browser", { missing: missing.join(" and ") });
  await controls.listDevices();
  try {
    controls.showModes(await request("v1/rtc/config"));
  } catch (error) {
    if (error.status === 401) notice.show("invalid_api_key");
    if (error.status === 404) notice.show("no_live_calls");
  }
}

bind();
showView();
clearReadouts();
init();
