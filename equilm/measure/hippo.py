"""HiPPO, drawn: a signal, and what its coefficients keep of it.

    python -m equilm.measure.hippo docs/hippo.png

The mathematics is in `equilm/ops/hippo.py`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from equilm.ops.hippo import Measure, project, reconstruct
from equilm.report.plot import canvas
from equilm.report.style import LIGHT, LINES, style

SAMPLES, WINDOW = 2_000, 500


def signal(samples: int) -> Tensor:
    """Return white noise below ten periods, as HiPPO's authors draw it: (samples,)."""
    spectrum = torch.zeros(samples // 2 + 1, dtype=torch.complex128)
    generator = torch.Generator().manual_seed(4)
    spectrum[:10] = torch.randn(10, dtype=torch.complex128, generator=generator)
    wave = torch.fft.irfft(spectrum, samples)
    return wave / wave.abs().max()


def draw(path: Path) -> dict[str, float]:
    """Write the figure; return the mean error of each curve, as a share of the largest value."""
    wave, errors = signal(SAMPLES), {}
    time = torch.arange(SAMPLES) / SAMPLES
    rows: list[tuple[Measure, int | None, str]] = [
        ("legs", None, "LegS: all of the past, scaled"),
        ("legt", WINDOW, "LegT: the last quarter"),
    ]
    with style():
        figure, axes = canvas(2, height=4, share_x=True)
        for axis, (measure, window, title) in zip(axes, rows, strict=True):
            axis.plot(time, wave, color=LIGHT["muted"], linewidth=0.8, label="signal")
            length = window or SAMPLES
            for colour, size in zip(LINES, (8, 16, 32), strict=False):
                kept = project(wave, size, measure, window=window)[-1]
                curve = reconstruct(kept, length)
                error = float((curve - wave[-length:]).abs().mean())
                errors[f"{measure} {size}"] = error
                label = f"{size} coefficients, mean error {error:.0e}"
                axis.plot(time[-length:], curve, color=colour, linewidth=1, label=label)
            axis.set_title(title)
            axis.set_ylim(-1.8, 1.2)
            axis.legend(loc="lower left", frameon=False, fontsize=7, ncols=2)
        axes[-1].set_xlabel("time")
        figure.savefig(path, facecolor=LIGHT["paper"])
    return errors


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m equilm.measure.hippo FILE.png")
    for name, error in draw(Path(sys.argv[1])).items():
        print(f"{name:>8}  {error:.1e}")
