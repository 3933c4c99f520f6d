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

/** The JSON answer of a route; throws Refused. */
export async function request(path, options = {}) {
  let answer;
  const headers = key() ? { "xi-api-key": key() } : {}; // Authorization may be a proxy's
  try {
    answer = await fetch(apiUrl(path), { cache: "no-store", headers, ...options });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  const retryAfterS = Number(answer.headers.get("Retry-After")) || null;
  const reason = reasonIn(body) ?? `The server answered with status ${answer.status}.`;
  throw new Refused(answer.status, reason, body?.detail?.status, retryAfterS);
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
