/** What the user chose, kept in this browser. */

const KEY = "seedvc.settings";
const DEFAULTS = {
  voice: "",
  mode: "",
  steps: null,
  input: "",
  output: "",
  volume: 100,
  echoCancellation: false,
  noiseSuppression: false,
  adapt: true,
  shortcuts: true,
  recordingVoice: "",
  saveAs: "wav",
  removeNoise: false,
  recordingSteps: null,
};

export const settings = { ...DEFAULTS, ...stored() };

/** Changes settings, for now and for the next visit. */
export function remember(fields) {
  Object.assign(settings, fields);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // storage may be switched off: then they last as long as the page
  }
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY));
  } catch {
    return null; // storage may be switched off, or hold something else
  }
}
