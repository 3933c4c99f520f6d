"""Chromium's own offers with video beside the sound, answered by a real peer: the call comes about all the same."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import async_playwright

from benchmarks.browser import chromium
from tests.webrtc.clients import until
from tests.webrtc.test_peer import loud
from webrtc.candidates import Reach
from webrtc.peer import Peer, Samples

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed (apt-get install chromium)"),
]

OFFER = """async ({ bundlePolicy, kinds }) => {
  const peer = (window.peer = new RTCPeerConnection({ bundlePolicy }));
  const context = new AudioContext();
  const tone = context.createOscillator();
  const sink = context.createMediaStreamDestination();
  tone.connect(sink);
  tone.start();
  const canvas = document.createElement("canvas");
  canvas.getContext("2d").fillRect(0, 0, 9, 9);
  for (const kind of kinds) {
    if (kind === "audio") peer.addTrack(sink.stream.getAudioTracks()[0].clone());
    if (kind === "video") peer.addTrack(canvas.captureStream(5).getVideoTracks()[0]);
    if (kind === "player") peer.addTransceiver("video", { direction: "recvonly" });
    if (kind === "data") peer.createDataChannel("control");
  }
  await peer.setLocalDescription();
  await new Promise((done) => {
    if (peer.iceGatheringState === "complete") done();
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
    setTimeout(done, 2000);
  });
  return peer.localDescription.sdp;
}"""
ACCEPT = """async (sdp) => {
  await peer.setRemoteDescription({ type: "answer", sdp });
  return peer.getTransceivers().map((one) => [one.receiver.track.kind, one.currentDirection]);
}"""


@pytest.mark.parametrize("policy", ["balanced", "max-bundle", "max-compat"])
@pytest.mark.parametrize(
    "kinds", [["audio", "video", "data"], ["video", "audio", "data"], ["player", "audio", "video", "audio"]]
)
async def test_chromiums_offers_with_video(policy: str, kinds: list[str]) -> None:
    frames: list[Samples] = []
    flags = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=flags)
        page = await browser.new_page()
        peer = Peer([], on_frame=frames.append, reach=Reach(loopback=True), measure_every_s=0.1)
        try:
            offer = await page.evaluate(OFFER, {"bundlePolicy": policy, "kinds": kinds})
            directions: list[Any] = await page.evaluate(ACCEPT, await peer.answer(offer))
            assert [way for _, way in directions if way not in ("inactive", "stopped", None)] == ["sendrecv"]
            await until(lambda: loud(frames), "the sound is heard")
        finally:
            await peer.close()
            await browser.close()
