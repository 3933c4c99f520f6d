/** Recordings out of what was dropped or chosen: files, and what lies in folders. */

const MOST_SEEN = 5000; // files and folders that are looked at in one drop
const DEEPEST = 8; // folders in folders
const NAMES =
  /\.(aac|ac3|aiff?|aifc|alac|amr|ape|au|avi|caf|dts|eac3|flac|gsm|m4[abrv]|mk[av]|mov|mp[234]|mpc|mpg|mpeg|mts|og[agv]|opus|ra|snd|spx|tta|ts|w64|wav|webm|wma|wmv|wv|3gp)$/i;

/** Whether a file is a recording, as far as its name tells. */
const seemsRecording = (file) => /^(audio|video)\//.test(file.type) || NAMES.test(file.name);

/**
 * {files, others, unread}: files to convert, how many in folders are something else, and whether folders hold more than
 * was looked at. What was dropped by itself is taken for what its owner says it is.
 */
export async function dropped(transfer) {
  // Both must be asked for before the event ends.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const found = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  const all = { files: [], others: 0, unread: false, seen: 0 };
  for (const each of found) {
    if (each instanceof File) all.files.push(each);
    else if (each.isFile) await take(each, all, false);
    else await walk(each, all, 1);
  }
  return all;
}

/** The same of a file input. */
export function chosen(input) {
  const all = [...input.files];
  const files = input.webkitdirectory ? all.filter(visible).filter(seemsRecording) : all;
  return { files, others: all.filter(visible).length - files.length, unread: false };
}

const visible = ({ name }) => !name.startsWith(".");

async function walk(folder, all, depth) {
  const reader = folder.createReader();
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([]))); // in parts, until empty
    if (some.length === 0) return;
    for (const entry of some.sort((a, b) => a.name.localeCompare(b.name)).filter(visible)) {
      if (all.seen >= MOST_SEEN || (entry.isDirectory && depth >= DEEPEST)) {
        all.unread = true;
        continue;
      }
      all.seen += 1;
      if (entry.isDirectory) await walk(entry, all, depth + 1);
      else await take(entry, all, true);
    }
  }
}

async function take(entry, all, choosy) {
  const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
  if (file && (!choosy || seemsRecording(file))) all.files.push(file);
  else all.others += 1;
}

/** {durationS, playable}: how long this browser says that a file is, null where it cannot tell. */
export async function probe(file) {
  const player = new Audio();
  player.preload = "metadata";
  player.src = URL.createObjectURL(file);
  const playable = await new Promise((resolve) => {
    player.onloadedmetadata = () => resolve(true);
    player.onerror = () => resolve(false);
    setTimeout(() => resolve(false), PROBE_MS);
  });
  const durationS = playable && Number.isFinite(player.duration) && player.duration > 0 ? player.duration : null;
  URL.revokeObjectURL(player.src);
  player.removeAttribute("src");
  player.load(); // lets go of the decoder
  return { durationS, playable };
}

const PROBE_MS = 5000;

/** A number of bytes as people say it. */
export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}
