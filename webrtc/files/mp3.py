"""MPEG layer III out (LAME, with an Info frame of our own), and the frame lengths that tell a truncated file."""

import struct
from dataclasses import dataclass

import numpy as np

from webrtc.files.codecs import UNKNOWN_SIZE, Samples, make_frame, open_context
from webrtc.files.formats import OutputFormat

LAME_DELAY_SAMPLES = 576  # what LAME puts before the first sample, as its Info frame states it
DECODER_DELAY_SAMPLES = 529  # what every mp3 decoder adds

_MPEG1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_RATES = (44100, 48000, 32000)


@dataclass(frozen=True)
class FrameHeader:
    """What the four bytes before each layer III frame say (ISO 11172-3, 2.4.1.3)."""

    sample_rate: int
    samples: int
    size_bytes: int
    side_info_bytes: int


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """None where the bytes are no layer III frame, or one of free bit rate."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    version, kbit_code, rate_code = frame[1] >> 3 & 3, frame[2] >> 4, frame[2] >> 2 & 3
    if version == 1 or kbit_code in (0, 15) or rate_code == 3:
        return None
    mpeg1 = version == 3
    rate = _MPEG1_RATES[rate_code] >> (0 if mpeg1 else 1 if version == 2 else 2)
    kbit = (_MPEG1_KBITS if mpeg1 else _MPEG2_KBITS)[kbit_code]
    samples = 1152 if mpeg1 else 576
    single = frame[3] >> 6 == 3
    side_info_bytes = (17 if single else 32) if mpeg1 else (9 if single else 17)
    return FrameHeader(rate, samples, samples // 8 * kbit * 1000 // rate + (frame[2] >> 1 & 1), side_info_bytes)


def _mono_frame_header(rate: int, kbit: int) -> bytes:
    """The four bytes before an unpadded mono frame without checksum."""
    mpeg1 = rate in _MPEG1_RATES
    kbit_code = (_MPEG1_KBITS if mpeg1 else _MPEG2_KBITS).index(kbit)
    rate_code = _MPEG1_RATES.index(rate if mpeg1 else rate * 2)
    return bytes([0xFF, 0xFB if mpeg1 else 0xF3, kbit_code << 4 | rate_code << 2, 0xC4])


def declared_s(head: bytes) -> float | None:
    """The length that a Xing or Info frame at the head of a file states, if there is one."""
    header = read_frame_header(head)
    if header is None:
        return None
    at = 4 + header.side_info_bytes
    if head[at : at + 4] not in (b"Xing", b"Info") or len(head) < at + 12 or not head[at + 7] & 1:
        return None
    return int.from_bytes(head[at + 8 : at + 12], "big") * header.samples / header.sample_rate


class Mp3:
    """MPEG layer III at a constant bit rate, behind an Info frame that states LAME's delay so that players cut it off.

    Field layout of the Info frame: http://gabriel.mp3-tech.org/mp3infotag.html
    """

    def __init__(self, fmt: OutputFormat) -> None:
        assert fmt.bit_rate is not None
        self._context = open_context("libmp3lame", "fltp", fmt)
        self._header = _mono_frame_header(fmt.sample_rate, fmt.bit_rate // 1000)
        frame = read_frame_header(self._header)
        assert frame is not None
        self._frame = frame
        self._pending = np.zeros(0, np.float32)
        self._fed_samples = 0
        self._sent_frames = 0
        self._sent_bytes = 0
        self._finished = False

    def encode(self, samples: Samples) -> bytes:
        samples = np.concatenate([self._pending, samples])
        whole = len(samples) // self._frame.samples * self._frame.samples
        self._pending = samples[whole:]
        return b"".join(self._pack(piece) for piece in np.split(samples[:whole], whole // self._frame.samples or 1))

    def flush(self) -> bytes:
        encoded = self._pack(self._pending)
        for packet in self._context.encode(None):
            encoded += self._count(bytes(packet))
        self._finished = True
        return encoded

    def header(self) -> bytes:
        frame = bytearray(self._frame.size_bytes)
        frame[:4] = self._header
        at = 4 + self._frame.side_info_bytes
        frame[at : at + 4] = b"Info"
        if self._finished:
            padding = self._sent_frames * self._frame.samples - LAME_DELAY_SAMPLES - self._fed_samples
            struct.pack_into(">III", frame, at + 4, 3, self._sent_frames, self._sent_bytes + self._frame.size_bytes)
            at += 16
        else:
            # A size must be there, or ffmpeg takes this frame for 26 ms of sound.
            padding = 0
            struct.pack_into(">II", frame, at + 4, 2, UNKNOWN_SIZE)
            at += 12
        frame[at : at + 9] = b"LAME3.100"
        frame[at + 9] = 1  # constant bit rate
        frame[at + 21 : at + 24] = (LAME_DELAY_SAMPLES << 12 | min(max(padding, 0), 4095)).to_bytes(3, "big")
        return bytes(frame)

    def close(self) -> None:
        pass

    def _pack(self, samples: Samples) -> bytes:
        if not samples.size:
            return b""
        self._fed_samples += len(samples)
        return b"".join(
            self._count(bytes(packet))
            for packet in self._context.encode(make_frame(samples, "fltp", self._frame.sample_rate))
        )

    def _count(self, packet: bytes) -> bytes:
        """Drops frames that LAME flushes beyond the one in which the last sample comes out."""
        delay = LAME_DELAY_SAMPLES + DECODER_DELAY_SAMPLES
        if self._sent_frames * self._frame.samples >= self._fed_samples + delay:
            return b""
        self._sent_frames += 1
        self._sent_bytes += len(packet)
        return packet
