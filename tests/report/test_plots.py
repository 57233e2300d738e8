# SPDX-License-Identifier: Apache-2.0
"""Plots are elements of a page: no address, no id twice; histograms are those of the voxels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from contourdiff.report import plots
from contourdiff.report.cases import Case, read_cohort
from helpers.volumes import write_nifti


def test_plots_of_a_case_share_a_page(reported: Path) -> None:
    case = next(case for case in read_cohort(reported) if case.name == "a")
    drawn = [
        plots.fidelity_by_slice(case),
        plots.neighbor_distances(case),
        plots.gray_levels(case, np.ones(64)),
    ]
    drawn += [plots.distribution(name, [1.0, 2.0], name).svg for name in ("one", "two")]
    ids = re.findall(r'\bid="([^"]*)"', "".join(drawn))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', "".join(drawn))) <= set(ids)
    for svg in drawn:
        assert svg.startswith("<svg")
        assert "http" not in svg
    for text, svg in zip(("limit 0.5", "threshold 2000", "real MR"), drawn, strict=False):
        assert text in svg
    assert "suspect" in drawn[0]


def test_a_case_without_values_has_plots(tmp_path: Path) -> None:
    case = Case("a", tmp_path, {"case": "a", "slices": []})
    for draw in (plots.fidelity_by_slice, plots.neighbor_distances):
        assert draw(case).startswith("<svg")
    assert plots.gray_levels(case, None).startswith("<svg")


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-3.0, 7.0], list(range(1000))])
def test_values_of_a_distribution_lie_within_its_axis(values: list[float]) -> None:
    drawn = plots.distribution("flicker", values, "flicker")
    assert drawn.low < min(values) <= max(values) < drawn.high


def test_real_mr_is_scaled_by_its_percentiles(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4000, 20 * 21 * 22, dtype=np.float32).reshape(20, 21, 22)
    paths = [write_nifti(tmp_path / f"{n}.nii.gz", ramp * (n + 1), np.eye(4)) for n in range(2)]
    histogram = plots.real_histogram(paths)
    assert histogram.sum() == pytest.approx(100)
    np.testing.assert_allclose(
        histogram[:-1], 94 / 99 * 100 / 64, rtol=0.05
    )  # flat, up to the brightest 5 %
    np.testing.assert_allclose(plots.real_histogram(paths[:1]), histogram, atol=0.1)
