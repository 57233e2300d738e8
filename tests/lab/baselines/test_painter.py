# SPDX-License-Identifier: Apache-2.0
"""A generator paints the slices that have a contour, and its fidelity is measured as that of the translator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from contourdiff.inference import Execution, VolumeInferer
from contourdiff.metrics.contour_fidelity import ContourFidelityCheck
from contourdiff.transforms import Contour
from contourdiff_lab.baselines.generators import ResnetGenerator
from contourdiff_lab.baselines.painter import GeneratorPainter
from helpers.volumes import ball_ct

CONTOUR = Contour(slice_axis=0, sigma_px=1.0, low_threshold=20.0, high_threshold=40.0)


@pytest.fixture
def ct() -> MetaTensor:
    """Gray levels (1, H, W, D) of a body in air, without a body in the first two slices and the last."""
    levels = np.clip((ball_ct((10, 41, 38)) + 200) / 500 * 255, 0, 255).astype(np.float32)
    levels[:2] = 0
    return MetaTensor(torch.from_numpy(levels)[None], meta={"filename_or_obj": "ct/ball.nii.gz"})


class Inverted(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -images, {"attention": images}


def inferer(execution: Execution | None = None, margin_px: int = 8) -> VolumeInferer:
    painter = GeneratorPainter(CONTOUR, execution or Execution())
    return VolumeInferer(painter, margin_px=margin_px, progress=False)


def fidelity(ct: MetaTensor, network: nn.Module) -> dict[str, object]:
    (result,) = inferer().translate([ct], network)
    check = ContourFidelityCheck(CONTOUR, tolerance_mm=1.0, limit=0.5)
    return check(result.contours, result.gray_levels[0], box=result.box).summary()


def test_a_generator_that_changes_nothing_returns_the_ct_in_the_box(ct: MetaTensor) -> None:
    (result,) = inferer(margin_px=3).translate([ct], nn.Identity())
    assert result.case == "ball"
    assert [choice is None for choice in result.choices] == [True] * 2 + [False] * 7 + [True]
    expected = torch.zeros_like(ct)
    expected[0][result.box] = ct[0][result.box]
    expected[0, [index for index, choice in enumerate(result.choices) if choice is None]] = 0
    torch.testing.assert_close(
        result.gray_levels.as_tensor(), expected.as_tensor(), atol=1e-4, rtol=0
    )
    assert torch.equal(result.contours, CONTOUR(ct)[0].as_tensor())


def test_fidelity_tells_a_faithful_generator_from_one_that_loses_or_invents(ct: MetaTensor) -> None:
    """The contour does not depend on the sign of an edge; a blank loses all; noise is invented."""
    faithful = fidelity(ct, nn.Identity())
    inverted = fidelity(ct, Inverted())
    blank = fidelity(ct, nn.Threshold(2, 0))
    assert faithful["fidelity_median"] == 1
    assert inverted["fidelity_median"] > 0.9  # type: ignore[operator]
    assert (blank["fidelity_median"], blank["lost_median"], blank["invented_median"]) == (0, 1, 0)
    torch.manual_seed(0)
    assert fidelity(ct, nn.Dropout(0.5).train())["invented_median"] > 0.2  # type: ignore[operator]


def test_a_translation_depends_on_the_batch_size_by_rounding_alone(ct: MetaTensor) -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(channels=4, blocks=1).eval()
    results = []
    for size, calls in ((1, 7), (3, 3), (None, 1)):
        (result,) = inferer(Execution(batch_size=size)).translate([ct], network)
        assert (result.network_calls, result.batch_size) == (calls, size or 8)
        results.append(result)
    for result in results[1:]:
        torch.testing.assert_close(result.gray_levels, results[0].gray_levels, atol=1e-3, rtol=0)
    (in_bfloat16,) = inferer(Execution(amp=True)).translate([ct], network)
    assert 0 < (in_bfloat16.gray_levels - results[0].gray_levels).abs().max() < 16
