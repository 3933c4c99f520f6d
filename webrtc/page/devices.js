/** Microphones and outputs: what there is, and how one is opened. */

import { Refused } from "./api.js";

/** Names of what this browser lacks for a call, in words; empty where nothing is missing. */
export function missingFeatures() {
  const needed = {
    "WebRTC (RTCPeerConnection)": "RTCPeerConnection" in window,
    "audio worklets (AudioWorkletNode)": "AudioWorkletNode" in window,
    "microphone access (getUserMedia)": Boolean(navigator.mediaDevices?.getUserMedia),
  };
  return Object.keys(needed).filter((name) => !needed[name]);
}

/** A microphone that did not open; `code` is one of texts.js. */
export class MicrophoneError extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** What kept the microphone from being used, as texts.js takes it: {code, reason}. */
export function whatFailed(error) {
  if (error instanceof Refused) return { code: "server_unreachable", reason: error.message };
  return { code: error instanceof MicrophoneError ? error.code : "microphone_failed", reason: error.message };
}

const CODES = {
  NotAllowedError: "permission_denied",
  SecurityError: "permission_denied",
  NotFoundError: "no_microphone",
  NotReadableError: "microphone_busy",
  AbortError: "microphone_busy",
};

/** The track of a microphone, mono; a chosen one that is gone gives way to the default one. Throws MicrophoneError. */
export async function openMicrophone({ deviceId, echoCancellation, noiseSuppression }) {
  if (!window.isSecureContext) throw new MicrophoneError("insecure_context", "");
  const audio = { channelCount: 1, autoGainControl: false, echoCancellation, noiseSuppression };
  if (deviceId) audio.deviceId = { exact: deviceId };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    return stream.getAudioTracks()[0];
  } catch (error) {
    if (error.name === "OverconstrainedError" && deviceId)
      return openMicrophone({ deviceId: "", echoCancellation, noiseSuppression });
    throw new MicrophoneError(CODES[error.name] ?? "microphone_failed", error.message || error.name);
  }
}

export const canChooseOutput = () => "setSinkId" in HTMLMediaElement.prototype;

/** Fills the two lists with what is connected now. Names are known only once a microphone was allowed. */
export async function listDevices(inputs, outputs, chosen) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  fill(inputs, devices, "audioinput", "Default microphone", chosen.input);
  fill(outputs, devices, "audiooutput", "Default output", chosen.output);
}

function fill(select, devices, kind, defaultName, chosen) {
  const named = devices.filter((device) => device.kind === kind && device.deviceId && device.deviceId !== "default");
  const options = named.map((device, index) => new Option(device.label || `${defaultName} ${index + 1}`, device.deviceId));
  select.replaceChildren(new Option(defaultName, ""), ...options);
  select.value = chosen;
  if (select.selectedIndex < 0) select.value = "";
}
