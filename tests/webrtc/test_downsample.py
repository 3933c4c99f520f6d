"""48 to 16 kHz: what fits is kept, what does not is taken out, and the pieces do not show."""

import numpy as np
import pytest

from webrtc.downsample import DELAY_S, Downsampler, Samples

RATE_HZ = 48000


def tone(hz: float, duration_s: float = 1.0) -> Samples:
    return np.sin(2 * np.pi * hz * np.arange(round(duration_s * RATE_HZ)) / RATE_HZ).astype(np.float32)


def gain_db(hz: float) -> float:
    settled = Downsampler()(tone(hz))[1600:]
    return 20 * float(np.log10(np.sqrt(2 * np.mean(settled**2))))


@pytest.mark.parametrize("hz", [60, 440, 3000, 5000, 6500, 7000])
def test_speech_passes(hz: float) -> None:
    assert abs(gain_db(hz)) < 0.1


@pytest.mark.parametrize("hz", [8050, 8500, 9500, 12000, 15900, 20000])
def test_what_would_fold_back_does_not(hz: float) -> None:
    assert gain_db(hz) < -60


@pytest.mark.parametrize("piece", [3, 120, 480, 960, 2880])
def test_the_pieces_do_not_show(piece: int) -> None:
    sound = np.random.default_rng(1).standard_normal(5760).astype(np.float32)
    whole = Downsampler()(sound)
    downsampler = Downsampler()
    pieces = [downsampler(sound[at : at + piece]) for at in range(0, len(sound), piece)]
    assert {len(part) for part in pieces} == {piece // 3}
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_nothing_is_held_back_but_the_filters_delay() -> None:
    click = np.zeros(960, np.float32)
    click[480] = 1
    heard = Downsampler()(click)
    assert abs(int(np.argmax(np.abs(heard))) - (480 / RATE_HZ + DELAY_S) * 16000) <= 1
    assert len(Downsampler()(click[:0])) == 0


def test_a_number_that_is_no_multiple_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3, not 100"):
        Downsampler()(np.zeros(100, np.float32))
