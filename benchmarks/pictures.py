"""Spectrograms that a person can look at: source, target and conversion below each other."""

from pathlib import Path

import numpy as np

from benchmarks.judges import Floats, JudgeMissing

N_FFT, HOP = 1024, 256
HIGHEST_HZ = 8000
RANGE_DB = 80.0
INCHES, DOTS_PER_INCH = (8.0, 6.0), 72


def spectrogram_db(samples: Floats) -> Floats:
    """Power [frequencies, frames] in dB below the loudest cell, cut at -80 dB."""
    padded = np.pad(samples, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP] * np.hanning(N_FFT)
    power = np.abs(np.fft.rfft(frames)).T ** 2
    return np.asarray(np.maximum(10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-12), -RANGE_DB), np.float32)


def draw(path: Path, rows: dict[str, Floats], sample_rate: int) -> None:
    """A PNG with one spectrogram for each titled recording; JudgeMissing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JudgeMissing("pictures need matplotlib: pip install 'seedvc-serve[quality]'") from error
    longest_s = max(len(samples) for samples in rows.values()) / sample_rate
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    for axes, (title, samples) in zip(figure.subplots(len(rows), sharex=True), rows.items(), strict=True):
        extent = (0.0, len(samples) / sample_rate, 0.0, sample_rate / 2)
        axes.imshow(spectrogram_db(samples), origin="lower", aspect="auto", cmap="magma", extent=extent)
        axes.set(title=title, ylabel="Hz", xlim=(0, longest_s), ylim=(0, HIGHEST_HZ))
    axes.set_xlabel("s")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
