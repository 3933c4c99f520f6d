/** Texts for everything that can go wrong: what happened, and what helps. */

const TEXTS = {
  insecure_context: {
    title: "No microphone at this address",
    text: () =>
      `Browsers give a microphone only to pages on https:// or localhost. On the server's own machine open ` +
      `http://localhost:${location.port || 80}; for others start it with seedvc serve --lan, and open https://${location.host}. ` +
      "Voices can be added from files here.",
  },
  unsupported_browser: {
    title: "This browser cannot make calls",
    text: ({ missing }) => `It lacks ${missing}. Current versions of Chrome, Edge, Firefox and Safari have it.`,
  },
  permission_denied: {
    title: "The microphone is blocked",
    text: "Allow it in the site settings beside the address, or in the system's privacy settings, then start again.",
    action: "retry",
  },
  no_microphone: {
    title: "No microphone found",
    text: "Connect one, or switch it on, then start again.",
    action: "retry",
  },
  microphone_busy: {
    title: "The microphone is in use",
    text: "Another program holds it. Close that program, or choose another microphone, then start again.",
    action: "retry",
  },
  microphone_lost: {
    title: "The microphone went away",
    text: "It was unplugged or switched off. Connect it again, or choose another one, then start again.",
    action: "retry",
  },
  microphone_failed: {
    title: "The microphone did not start",
    text: ({ reason }) => `The browser says: ${reason}`,
    action: "retry",
  },
  output_failed: {
    title: "That output cannot be used",
    text: ({ reason }) => `Sound stays where it was. The browser says: ${reason}`,
  },
  sound_blocked: {
    title: "The browser holds the sound back",
    text: "It wants one more click before it plays anything.",
    action: "listen",
  },
  at_capacity: {
    title: "All places are taken",
    text: "The server carries as many calls as it can without falling behind. The call starts when one becomes free.",
    action: "now",
    passing: true,
  },
  still_at_capacity: {
    title: "No place became free",
    text: "Every try found the server full. Try again later.",
    action: "retry",
  },
  system_busy: {
    title: "The server is busy",
    text: "A part of it does not answer now; it may be restarting.",
    action: "now",
    passing: true,
  },
  internal_error: {
    title: "Something failed on the server",
    text: "It is not your doing; the server's log has the reason.",
    action: "now",
    passing: true,
  },
  connection_lost: {
    title: "Connection lost",
    text: "Your settings are kept and a running recording goes on.",
    action: "now",
    passing: true,
  },
  server_unreachable: {
    title: "The server does not answer",
    text: "It may be starting, or the network is down.",
    action: "now",
    passing: true,
  },
  gave_up: {
    title: "The connection did not come back",
    text: "Check the network, then start again.",
    action: "retry",
  },
  socket_blocked: {
    title: "Calls are blocked on the way",
    text: "The server answers, but no WebSocket comes through. A proxy or a firewall may stop it.",
    action: "retry",
  },
  media_failed: {
    title: "No sound gets through",
    text: "The server answers, but neither a direct nor a relayed path for sound was found. A firewall may stop it.",
    action: "now",
    passing: true,
  },
  offer_failed: {
    title: "Browser and server do not agree",
    text: ({ reason }) => `The call could not be set up: ${reason}`,
    action: "now",
    passing: true,
  },
  no_live_calls: {
    title: "This server takes no calls",
    text: "It converts recordings only.",
  },
  invalid_api_key: {
    title: "This server asks for a key",
    text: "Its owner gives it out.",
    action: "key",
  },
  voice_not_found: {
    title: "That voice is gone",
    text: "It was deleted in the meantime. Choose another one.",
  },
  no_voice: {
    title: "There is no voice yet",
    text: "Add one from a recording first.",
  },
  voices_failed: {
    title: "The voices could not be loaded",
    text: ({ reason }) => reason,
    action: "voices",
  },
  idle: {
    title: "The call ended",
    text: "Nothing was heard for a long time, so the server gave the place to others.",
    action: "retry",
  },
  time_limit: {
    title: "The call ended",
    text: "It reached the longest time that this server allows.",
    action: "retry",
  },
  quota_exceeded: {
    title: "Nothing is left of today",
    text: ({ reason }) => reason || "This key has used what it may use a day.",
  },
  key_revoked: {
    title: "This key was revoked",
    text: "The server takes it no longer.",
    action: "key",
  },
  too_many_concurrent_requests: {
    title: "This key has calls enough",
    text: ({ reason }) => reason || "End one of them first.",
    action: "retry",
  },
  replaced: {
    title: "The call goes on elsewhere",
    text: "It was taken over by another window.",
    action: "retry",
  },
  shutting_down: {
    title: "The server restarts",
    text: "The call moves to another one.",
    action: "now",
    passing: true,
  },
  recording_full: {
    title: "The recording is complete",
    text: ({ minutes }) => `One take holds ${minutes} minutes. Download it below, then record the next.`,
  },
  ended: {
    title: "The call ended",
    text: ({ reason }) => reason || "The server gave no reason.",
    action: "retry",
  },
  refused: {
    title: "The server refused that",
    text: ({ reason }) => reason || "It gave no reason.",
  },
};

export const ACTIONS = {
  retry: "Start again",
  now: "Try now",
  key: "Enter the key",
  listen: "Play the sound",
  voices: "Load again",
};

/** The text for a code: {code, title, text, action, passing}; a code that is not known here is a refusal. */
export function describe(code, details = {}) {
  const found = TEXTS[code] ?? (details.ended ? TEXTS.ended : TEXTS.refused);
  const text = typeof found.text === "function" ? found.text(details) : found.text;
  return { code, title: found.title, text, action: found.action ?? null, passing: found.passing ?? false };
}
