/** One call: a WebSocket for signalling, a peer for sound, a data channel for changes. It never retries. */

const HELLO_TIMEOUT_MS = 8000;
const READY_TIMEOUT_MS = 30000; // a busy server is slow to answer, and a voice may have to be made ready first
const MEDIA_TIMEOUT_MS = 15000;
const LOST_AFTER_MS = 4000; // "disconnected" is often only a moment of bad radio

export class Call {
  #url;
  #track;
  #handlers;
  #socket = null;
  #peer = null;
  #channel = null;
  #timer = 0;
  #messages = Promise.resolve();
  #candidates = [];
  #request = null;
  #early = {}; // changes that came between `start` and `ready`
  #phase = "opening"; // opening -> starting -> asked -> ready -> live -> over
  #resolve = null;

  /** Handlers: hello, ready, live, settings, stats, refused, remote; each takes what came. */
  constructor(url, track, handlers) {
    this.#url = url;
    this.#track = track;
    this.#handlers = handlers;
  }

  /**
   * Runs the call; the promise tells how it ended: {code, reason, retryAfterS}. `request` returns {voice, mode, steps,
   * bypass, adapt, replaces}; it is called late, since the user may change them until `start` is sent.
   */
  run(request) {
    return new Promise((resolve) => {
      this.#request = request;
      this.#resolve = resolve;
      this.#socket = new WebSocket(this.#url);
      this.#socket.onmessage = ({ data }) => this.#enqueue(JSON.parse(data));
      this.#socket.onclose = () => this.#end({ code: this.#phase === "opening" ? "no_hello" : "connection_lost" });
      this.#watch(HELLO_TIMEOUT_MS, "no_hello");
    });
  }

  /** Asks for other settings from the next block on. Until `start` is sent there is no need: it carries the newest. */
  change(fields) {
    if (this.#phase === "opening" || this.#phase === "starting") return;
    if (this.#phase === "asked") return void Object.assign(this.#early, fields); // a refusal before `ready` ends the call
    const text = JSON.stringify({ type: "change", ...fields });
    if (this.#channel?.readyState === "open") this.#channel.send(text);
    else if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(text);
  }

  async replaceTrack(track) {
    this.#track = track;
    await this.#peer?.getSenders()[0]?.replaceTrack(track).catch((error) => {
      if (this.#phase !== "over") throw error; // a call that is over needs none
    });
  }

  async getStats() {
    return this.#peer ? this.#peer.getStats() : new Map();
  }

  stop() {
    this.#send({ type: "stop" });
    this.#end({ code: "stopped" });
  }

  /** Messages are taken one after the other: a candidate must not overtake the answer. */
  #enqueue(message) {
    this.#messages = this.#messages
      .then(() => this.#take(message))
      .catch((error) => this.#end({ code: "offer_failed", reason: error.message }));
  }

  async #take(message) {
    if (this.#phase === "over") return;
    switch (message.type) {
      case "hello":
        this.#handlers.hello(message);
        return this.#offer(message.ice_servers);
      case "ready":
        this.#phase = "ready";
        this.#watch(MEDIA_TIMEOUT_MS, "media_failed");
        this.#handlers.ready(message);
        if (Object.keys(this.#early).length > 0) this.change(this.#early);
        return this.#peer.setRemoteDescription({ type: "answer", sdp: message.sdp });
      case "candidate":
        return this.#peer?.addIceCandidate(message.candidate ?? undefined);
      case "settings":
        return this.#handlers.settings(message);
      case "stats":
        return this.#handlers.stats(message);
      case "error":
        return this.#refused(message);
      case "end":
        return this.#end({ code: this.#lossOr(message.reason), reason: message.message, ended: true });
    }
  }

  async #offer(iceServers) {
    this.#phase = "starting";
    this.#watch(READY_TIMEOUT_MS, "server_unreachable");
    const peer = new RTCPeerConnection({ iceServers, bundlePolicy: "max-bundle" });
    this.#peer = peer;
    peer.onicecandidate = ({ candidate }) => this.#trickle(candidate);
    peer.onconnectionstatechange = () => this.#follow(peer.connectionState);
    const transceiver = peer.addTransceiver(this.#track, { direction: "sendrecv" });
    preferOpus(transceiver);
    peer.ontrack = ({ track, receiver }) => {
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // ms: as little as the network allows
      this.#handlers.remote(new MediaStream([track]));
    };
    this.#channel = peer.createDataChannel("control");
    this.#channel.onmessage = ({ data }) => this.#enqueue(JSON.parse(data));
    await peer.setLocalDescription();
    if (this.#phase === "over") return;
    this.#phase = "asked";
    this.#send({ type: "start", block_ms: null, ...this.#request(), sdp: peer.localDescription.sdp });
    const waiting = this.#candidates;
    this.#candidates = null;
    waiting.forEach((candidate) => this.#trickle(candidate));
  }

  /** Sends a candidate of ours; those found before the offer is out wait for it. */
  #trickle(candidate) {
    if (this.#candidates) this.#candidates.push(candidate);
    else this.#send({ type: "candidate", candidate: candidate && candidate.toJSON() });
  }

  #follow(state) {
    if (state === "connected") {
      clearTimeout(this.#timer);
      if (this.#phase !== "live") {
        this.#phase = "live";
        this.#handlers.live();
      }
    } else if (state === "disconnected") {
      this.#watch(LOST_AFTER_MS, "connection_lost");
    } else if (state === "failed") {
      this.#end({ code: this.#lossOr("media_failed") });
    }
  }

  /** Where sound once got through, no firewall stops it: the connection was lost. */
  #lossOr(code) {
    return code === "media_failed" && this.#phase === "live" ? "connection_lost" : code;
  }

  /** A refused start ends the call; a refused change only leaves things as they were. */
  #refused({ code, message, retry_after_s: retryAfterS }) {
    if (this.#phase === "live" || this.#phase === "ready") this.#handlers.refused({ code, reason: message });
    else this.#end({ code: code === "media_failed" ? "offer_failed" : code, reason: message, retryAfterS });
  }

  #watch(timeoutMs, code) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end({ code }), timeoutMs);
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #end(outcome) {
    if (this.#phase === "over") return;
    this.#phase = "over";
    clearTimeout(this.#timer);
    if (this.#peer) this.#peer.onconnectionstatechange = null;
    this.#peer?.close();
    this.#socket.onclose = null;
    this.#socket.close();
    this.#resolve(outcome);
  }
}

/** Offers Opus alone: the server speaks nothing else. */
function preferOpus(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("audio")?.codecs ?? [];
  const opus = codecs.filter((codec) => codec.mimeType.toLowerCase() === "audio/opus");
  if (opus.length > 0) transceiver.setCodecPreferences?.(opus);
}
