"""22.05 to 48 kHz: what is there is kept, nothing is added, and the pieces do not show."""

import numpy as np
import pytest

from webrtc.upsample import DELAY_S, RATE_IN_HZ, RATE_OUT_HZ, Samples, Upsampler


def tone(hz: float, seconds: float = 1.0) -> Samples:
    samples: Samples = np.sin(2 * np.pi * hz / RATE_IN_HZ * np.arange(round(seconds * RATE_IN_HZ))).astype(np.float32)
    return samples


def spectrum_db(samples: Samples) -> Samples:
    """Of one second: by Hz, against a full tone."""
    window = np.hanning(len(samples))
    level: Samples = 20 * np.log10(np.abs(np.fft.rfft(samples * window)) / window.sum() * 2 + 1e-9)
    return level


@pytest.mark.parametrize("hz", [100, 1000, 5000, 8000, 9000, 9700])
def test_speech_is_kept_up_to_its_edge(hz: int) -> None:
    heard = Upsampler()(tone(hz, 1.2))[4800:][:48000]
    assert spectrum_db(heard)[hz] == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("hz", [100, 5000, 9000, 10500])
def test_nothing_is_added(hz: int) -> None:
    heard = spectrum_db(Upsampler()(tone(hz, 1.2))[4800:][:48000])
    heard[hz - 20 : hz + 20] = -100
    assert heard.max() < -55


def test_the_delay_is_the_filters_alone() -> None:
    click = np.zeros(22050, np.float32)
    click[11025] = 1
    heard = Upsampler()(click)
    assert len(heard) == 48000
    assert np.argmax(np.abs(heard)) == pytest.approx((0.5 + DELAY_S) * RATE_OUT_HZ, abs=1)


def test_how_the_sound_is_cut_changes_nothing() -> None:
    sound = np.random.default_rng(4).normal(0, 0.2, 20000).astype(np.float32)
    sizes = np.random.default_rng(5).integers(0, 700, 200)
    pieces, upsample = np.split(sound, np.cumsum(sizes[sizes.cumsum() < 20000])), Upsampler()
    heard = np.concatenate([upsample(piece) for piece in pieces])
    np.testing.assert_allclose(heard, Upsampler()(sound), atol=1e-6)


def test_20_ms_in_are_20_ms_out() -> None:
    upsample = Upsampler()
    assert [len(upsample(np.zeros(441, np.float32))) for _ in range(5)] == [960] * 5
