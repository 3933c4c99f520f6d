/** The server's routes, relative to where this page is. */

export const apiUrl = (path) => new URL(path, document.baseURI);

/** A server may ask for a key; the browser's tab keeps it until it is closed. */
const KEY = "seedvc.key";
const key = () => sessionStorage.getItem(KEY);
export const setKey = (value) => sessionStorage.setItem(KEY, value);

/** A link may bring the key along as #key=..., which no server sees. It leaves the address, which may be shared. */
const brought = new URLSearchParams(location.hash.slice(1)).get("key");
if (brought) {
  setKey(brought);
  history.replaceState(null, "", location.pathname + location.search);
}

export function socketUrl() {
  const url = apiUrl("v1/rtc/ws");
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  if (key()) url.searchParams.set("access_token", key());
  return url;
}

/** A refusal, or no answer at all (`status` is 0 then); `code` is for the program, `message` for the user. */
export class Refused extends Error {
  constructor(status, message, code = null, retryAfterS = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

const keyHeaders = () => (key() ? { "xi-api-key": key() } : {}); // Authorization may be a proxy's
const noAnswer = () => new Refused(0, "The server does not answer.");

/** The JSON answer of a route; throws Refused. */
export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(apiUrl(path), { cache: "no-store", headers: keyHeaders(), ...options });
  } catch {
    throw noAnswer();
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  throw refused(answer.status, body, answer.headers.get("Retry-After"));
}

/**
 * Sends a form, and gives {blob, warning} of the answer; throws Refused, of the code `broken_off` where an answer that
 * had begun did not end, and an AbortError where `signal` says so. `onSent` and `onReceived` take bytes so far; `onSent`
 * takes those of the whole form too.
 */
export function exchange(path, form, { signal, onSent, onReceived }) {
  const call = new XMLHttpRequest(); // fetch tells nothing of an upload
  call.open("POST", apiUrl(path));
  call.responseType = "blob";
  Object.entries(keyHeaders()).forEach(([name, value]) => call.setRequestHeader(name, value));
  call.upload.onprogress = ({ loaded, total }) => onSent(loaded, total);
  call.onprogress = ({ loaded }) => call.status === 200 && onReceived(loaded);
  let begun = false;
  call.onreadystatechange = () => (begun ||= call.readyState >= 2 && call.status === 200);
  const stop = () => call.abort();
  signal.addEventListener("abort", stop);
  return new Promise((resolve, reject) => {
    call.onabort = () => reject(new DOMException("given up", "AbortError"));
    call.onerror = () => reject(begun ? new Refused(200, "The server broke off half-way.", "broken_off") : noAnswer());
    call.onload = async () => {
      const { response: blob, status } = call;
      if (status === 200) return resolve({ blob, warning: call.getResponseHeader("X-Seedvc-Warning") });
      const body = await blob.text().then(JSON.parse).catch(() => null);
      reject(refused(status, body, call.getResponseHeader("Retry-After")));
    };
    if (signal.aborted) return call.onabort();
    call.send(form);
  }).finally(() => signal.removeEventListener("abort", stop));
}

function refused(status, body, retryAfter) {
  const reason = reasonIn(body) ?? `The server answered with status ${status}.`;
  const detail = Array.isArray(body?.detail) ? body.detail[0] : body?.detail;
  return new Refused(status, reason, detail?.status ?? detail?.type, Number(retryAfter) || null);
}

/** Errors are {detail: {status, message}} or, of a form's fields, {detail: [{msg}]}. */
function reasonIn(body) {
  const detail = body?.detail;
  const reason = Array.isArray(detail) ? detail.map((problem) => problem.msg).join("; ") : (detail?.message ?? detail);
  return typeof reason === "string" && reason ? sentence(reason) : null;
}

export function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
