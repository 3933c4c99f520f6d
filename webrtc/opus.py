"""Opus by libopus itself. PyAV leaves out DTX, in-band FEC, concealment, and settings that change in mid-call.

All sound is mono float32 at 48 kHz. An object belongs to one thread at a time.
"""

import ctypes
import functools
import importlib.util
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples48k = NDArray[np.float32]  # (T,) mono at 48 kHz, in [-1, 1]

RATE_HZ = 48000
FRAME = 960  # samples in 20 ms
MAX_PACKET_SAMPLES = 5760  # 120 ms, the longest packet that Opus allows
MAX_PACKET_BYTES = 1275  # of one frame
BITRATES_BPS = (6000, 510000)

# From opus_defines.h
_APPLICATION_VOIP = 2048
_SIGNAL_VOICE = 3001
_SET_BITRATE, _GET_BITRATE = 4002, 4003
_SET_VBR = 4006
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_EXPECTED_LOSS = 4014
_SET_DTX = 4016
_SET_SIGNAL = 4024

# From RFC 6716 table 2: the first configurations of the hybrid and of the CELT-only mode
_HYBRID, _CELT_ONLY = 12, 16

_FLOATS = ctypes.POINTER(ctypes.c_float)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "opus_strerror": (ctypes.c_char_p, [ctypes.c_int]),
    "opus_encoder_create": (ctypes.c_void_p, [ctypes.c_int32, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]),
    "opus_encoder_destroy": (None, [ctypes.c_void_p]),
    # variadic: the value after the request is passed beyond argtypes, which ctypes knows how to do on every platform
    "opus_encoder_ctl": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "opus_encode_float": (
        ctypes.c_int32,
        [ctypes.c_void_p, _FLOATS, ctypes.c_int, ctypes.c_char_p, ctypes.c_int32],
    ),
    "opus_decoder_create": (ctypes.c_void_p, [ctypes.c_int32, ctypes.c_int, ctypes.c_void_p]),
    "opus_decoder_destroy": (None, [ctypes.c_void_p]),
    "opus_decode_float": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, _FLOATS, ctypes.c_int, ctypes.c_int],
    ),
}


class OpusError(Exception):
    """libopus refused a call or a packet."""


class OpusMissing(Exception):
    """No libopus that works was found on this machine."""


class OpusEncoder:
    """Encodes 20 ms frames of speech with variable bitrate."""

    def __init__(self, bitrate: int = 64000, complexity: int = 5, dtx: bool = True, fec: bool = True) -> None:
        self._lib = _library()
        error = ctypes.c_int()
        self._handle = self._lib.opus_encoder_create(RATE_HZ, 1, _APPLICATION_VOIP, ctypes.byref(error))
        _check(self._lib, error.value)
        weakref.finalize(self, self._lib.opus_encoder_destroy, self._handle)
        self._packet = ctypes.create_string_buffer(MAX_PACKET_BYTES)
        self._control(_SET_VBR, 1)
        self._control(_SET_SIGNAL, _SIGNAL_VOICE)
        self._control(_SET_COMPLEXITY, complexity)
        self._control(_SET_DTX, int(dtx))
        self._control(_SET_INBAND_FEC, int(fec))
        self.set_bitrate(bitrate)

    def encode(self, frame: Samples48k) -> bytes:
        """One packet from exactly 960 samples; `is_dtx` packets need not be sent after the first."""
        if frame.shape != (FRAME,):
            raise ValueError(f"a frame has {FRAME} samples, not an array of shape {frame.shape}")
        samples = np.ascontiguousarray(frame, np.float32)
        size = self._lib.opus_encode_float(
            self._handle, samples.ctypes.data_as(_FLOATS), FRAME, self._packet, MAX_PACKET_BYTES
        )
        return self._packet.raw[: _check(self._lib, size)]

    @property
    def bitrate(self) -> int:
        """What the encoder aims at, in bit/s, as libopus tells it."""
        value = ctypes.c_int32()
        _check(self._lib, self._lib.opus_encoder_ctl(self._handle, _GET_BITRATE, ctypes.byref(value)))
        return value.value

    def set_bitrate(self, bps: int) -> None:
        """Aims at this bitrate from the next frame on."""
        if not BITRATES_BPS[0] <= bps <= BITRATES_BPS[1]:
            raise ValueError(f"an Opus bitrate is {BITRATES_BPS[0]} to {BITRATES_BPS[1]} bit/s, not {bps}")
        self._control(_SET_BITRATE, bps)

    def set_expected_loss(self, percent: int) -> None:
        """How many packets the receiver loses; libopus spends bits on FEC only from about 5 % on."""
        if not 0 <= percent <= 100:
            raise ValueError(f"a loss is 0 to 100 percent, not {percent}")
        self._control(_SET_EXPECTED_LOSS, percent)

    def _control(self, request: int, value: int) -> None:
        _check(self._lib, self._lib.opus_encoder_ctl(self._handle, request, ctypes.c_int32(value)))


class OpusDecoder:
    """Decodes one stream of packets, stereo mixed down; from its state it guesses what is missing."""

    def __init__(self) -> None:
        self._lib = _library()
        error = ctypes.c_int()
        self._handle = self._lib.opus_decoder_create(RATE_HZ, 1, ctypes.byref(error))
        _check(self._lib, error.value)
        weakref.finalize(self, self._lib.opus_decoder_destroy, self._handle)

    def decode(self, packet: bytes) -> Samples48k:
        """The packet's samples; raises OpusError where it is damaged."""
        if not packet:
            raise OpusError("an Opus packet has at least one byte")
        return self._decode(packet, MAX_PACKET_SAMPLES, fec=False)

    def recover(self, next_packet: bytes, samples: int = FRAME) -> Samples48k:
        """The frame before `next_packet`, from the copy of it in there; concealed where there is none."""
        if not next_packet:
            return self.conceal(samples)
        return self._decode(next_packet, samples, fec=True)

    def conceal(self, samples: int = FRAME) -> Samples48k:
        """A guess at what follows, fading over about 60 ms; comfort noise after a DTX packet. In steps of 2.5 ms."""
        return self._decode(None, samples, fec=False)

    def _decode(self, packet: bytes | None, samples: int, *, fec: bool) -> Samples48k:
        out = np.empty(samples, np.float32)
        size = 0 if packet is None else len(packet)
        count = self._lib.opus_decode_float(self._handle, packet, size, out.ctypes.data_as(_FLOATS), samples, int(fec))
        return out[: _check(self._lib, count)]


def is_dtx(packet: bytes) -> bool:
    """Whether the packet only says that the speaker is silent."""
    return len(packet) <= 2


def has_copy(packet: bytes) -> bool:
    """Whether the packet holds a copy of the frame before it (RFC 6716 section 4.2.4); told of single-frame packets."""
    if len(packet) < 2 or packet[0] & 3 or packet[0] >> 3 >= _CELT_ONLY:
        return False
    frames = (1, 1, 2, 3)[packet[0] >> 3 & 3] if packet[0] >> 3 < _HYBRID else 1  # of 20 ms, or one of 10
    flags = packet[1] >> 7 - frames  # one bit of voice activity for each, then the one that is looked for
    if packet[0] & 4:  # stereo: the same once more for the side signal
        flags |= packet[1] >> 6 - 2 * frames
    return bool(flags & 1)


def packet_samples(packet: bytes) -> int:
    """How long the packet lasts at 48 kHz, from its first bytes (RFC 6716 section 3); 0 where they make no sense."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < _HYBRID:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < _CELT_ONLY:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    if code == 3:
        frames = packet[1] & 0x3F if len(packet) > 1 else 0
    else:
        frames = 1 if code == 0 else 2
    total = frame * frames
    return total if total <= MAX_PACKET_SAMPLES else 0


def warm_up() -> None:
    """Loads and tries libopus, so that no call waits for it; raises OpusMissing."""
    _library()


@functools.cache
def _library() -> Any:
    """The first libopus that passes the self-test; raises OpusMissing."""
    tried = []
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            for function, (result, arguments) in _PROTOTYPES.items():
                getattr(library, function).restype = result
                getattr(library, function).argtypes = arguments
            _self_test(library)
        except (OSError, AttributeError, OpusError) as error:
            tried.append(f"{Path(name).name}: {error}")
        else:
            return library
    raise OpusMissing(
        f"no working libopus: tried {'; '.join(tried)}. Install the `av` wheel or the Debian package libopus0"
    )


def _candidates() -> Iterator[str]:
    """PyAV's own copy (the newest; its file name changes with each wheel), then the system's."""
    spec = importlib.util.find_spec("av")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(str(path) for path in Path(folder).parent.glob("av.libs/libopus-*.so*"))
        yield from sorted(str(path) for path in Path(folder).glob(".dylibs/libopus.*.dylib"))
    yield "libopus.so.0"


def _self_test(library: Any) -> None:
    """Encodes and decodes 200 ms of a tone: wrong builds and prototypes show here, not in a call."""
    error = ctypes.c_int()
    encoder = library.opus_encoder_create(RATE_HZ, 1, _APPLICATION_VOIP, ctypes.byref(error))
    _check(library, error.value)
    decoder = library.opus_decoder_create(RATE_HZ, 1, ctypes.byref(error))
    try:
        _check(library, error.value)
        tone = (0.5 * np.sin(2 * np.pi * 440 / RATE_HZ * np.arange(10 * FRAME))).astype(np.float32).reshape(10, FRAME)
        packet, heard = ctypes.create_string_buffer(MAX_PACKET_BYTES), np.zeros(FRAME, np.float32)
        for frame in tone:
            size = library.opus_encode_float(encoder, frame.ctypes.data_as(_FLOATS), FRAME, packet, MAX_PACKET_BYTES)
            _check(library, size)
            _check(
                library,
                library.opus_decode_float(decoder, packet.raw, size, heard.ctypes.data_as(_FLOATS), FRAME, 0),
            )
    finally:
        library.opus_encoder_destroy(encoder)
        library.opus_decoder_destroy(decoder)
    level = float(np.sqrt(np.mean(heard**2)))
    if not 0.25 < level < 0.45:  # the tone's is 0.354
        raise OpusError(f"a tone of level 0.35 came back with {level:.2f}")


def _check(library: Any, result: int) -> int:
    """`result`, or OpusError where it is a negative error code."""
    if result < 0:
        raise OpusError(library.opus_strerror(result).decode())
    return result
