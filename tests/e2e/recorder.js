// Runs in every page before its own scripts: keeps each RTCPeerConnection, and records what the microphone gave and
// what the other side sent on one clock (one AudioContext, one worklet), whatever the page itself does with them. Keeps
// the id of the newest session besides.
(() => {
  if (!navigator.mediaDevices) return; // the empty page that a browser opens first
  const RATE = 48000;
  const WORKLET = `registerProcessor('recorder', class extends AudioWorkletProcessor {
    process(inputs) {
      this.port.postMessage(inputs.map((input) => (input[0] ? input[0].slice() : new Float32Array(128))));
      return true;
    }
  });`;
  const recorder = { blocks: [[], []], connections: [], marks: {}, session: null };
  window.recorder = recorder;

  let node = null;
  const started = () => (node ??= (async () => {
    const context = new AudioContext({ sampleRate: RATE });
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: 'text/javascript' })));
    const worklet = new AudioWorkletNode(context, 'recorder', { numberOfInputs: 2, numberOfOutputs: 0 });
    worklet.port.onmessage = ({ data }) => data.forEach((block, side) => recorder.blocks[side].push(block));
    return { context, worklet };
  })());
  const record = async (stream, side) => {
    const { context, worklet } = await started();
    context.createMediaStreamSource(stream).connect(worklet, 0, side);
  };

  const devices = navigator.mediaDevices;
  const getUserMedia = devices.getUserMedia.bind(devices);
  devices.getUserMedia = async (constraints) => {
    const stream = await getUserMedia(constraints);
    record(stream, 0);
    return stream;
  };

  const Connection = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Connection {
    constructor(configuration = {}) {
      super(window.relayOnly ? { ...configuration, iceTransportPolicy: 'relay' } : configuration);
      recorder.connections.push(this);
      this.addEventListener('track', ({ track }) => record(new MediaStream([track]), 1));
    }
  };

  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...wishes) {
      super(...wishes);
      this.addEventListener('message', ({ data }) => (recorder.session = JSON.parse(data).session ?? recorder.session));
    }
  };

  recorder.mark = (name) => { recorder.marks[name] = recorder.blocks[1].length * 128; };

  // A side's recording as base64 of 16-bit samples: 0 microphone, 1 other side.
  recorder.sound = (side) => {
    const samples = new Int16Array(recorder.blocks[side].length * 128);
    recorder.blocks[side].forEach((block, index) => {
      for (let i = 0; i < 128; i++) samples[index * 128 + i] = Math.max(-1, Math.min(1, block[i])) * 32767;
    });
    const bytes = new Uint8Array(samples.buffer);
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  };

  // The pair of candidates in use: {local, remote}, each as getStats tells it.
  recorder.route = async () => {
    const stats = new Map(await recorder.connections.at(-1).getStats());
    const pair = [...stats.values()].find((entry) => entry.type === 'candidate-pair' && entry.nominated
      && entry.state === 'succeeded');
    return pair && { local: stats.get(pair.localCandidateId), remote: stats.get(pair.remoteCandidateId) };
  };
})();
