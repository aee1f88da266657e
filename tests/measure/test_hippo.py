"""The figure of HiPPO is drawn, and more coefficients keep more."""

from pathlib import Path

from equilm.measure.hippo import draw


def test_more_coefficients_keep_more(tmp_path: Path) -> None:
    errors = draw(tmp_path / "hippo.png")
    assert (tmp_path / "hippo.png").stat().st_size > 10_000
    for measure in ("legs", "legt"):
        assert errors[f"{measure} 8"] > errors[f"{measure} 32"]
    assert errors["legs 32"] < 0.01
    assert errors["legt 32"] < 0.01
