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
  shortcuts: true,
};

export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return { ...DEFAULTS }; // storage may be switched off, or hold something else
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // then they last as long as the page
  }
}
