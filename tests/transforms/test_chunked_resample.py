# SPDX-License-Identifier: Apache-2.0
"""Resampling in chunks equals MONAI's resampling to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from contourdiff.transforms.chunked_resample import ChunkedResample, sample_chunked
from helpers.volumes import oblique_affine


def tilted(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Oblique affine with a gantry tilt."""
    affine = oblique_affine(spacing_mm)
    affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("pixdim", [(-1, 2.2, 2.2), (2.2, 2.2, -1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resampling_in_chunks_changes_no_bit_there_and_back(
    mode: str, pixdim: tuple[float, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels, affine and the trace of the inverse equal those of MONAI's transform, for chunks of any size."""

    def thin(*arguments: object, **named: object) -> torch.Tensor:
        return sample_chunked(*arguments, **named, chunk_voxels=3000)  # type: ignore[arg-type]

    monkeypatch.setattr("contourdiff.transforms.chunked_resample.sample_chunked", thin)
    values = np.random.default_rng(0).normal(size=(1, 37, 61, 53)).astype(np.float32)
    volume = MetaTensor(torch.as_tensor(values), affine=torch.as_tensor(tilted((0.9, 0.8, 3.1))))
    arguments = {"mode": mode, "padding_mode": "zeros", "dtype": dtype}
    stock, chunked = Spacing(pixdim), Spacing(pixdim)
    chunked.sp_resample = ChunkedResample()
    expected, result = (transform(volume.clone(), **arguments) for transform in (stock, chunked))  # type: ignore[arg-type]
    torch.testing.assert_close(result.as_tensor(), expected.as_tensor(), rtol=0, atol=0)
    assert torch.equal(result.affine, expected.affine)
    stock_trace, trace = (image.applied_operations[-1] for image in (expected, result))
    assert {**trace["extra_info"], "src_affine": 0} == {
        **stock_trace["extra_info"],
        "src_affine": 0,
    }
    assert trace["orig_size"] == stock_trace["orig_size"]
    back, home = (
        transform.inverse(image) for transform, image in ((stock, expected), (chunked, result))
    )
    torch.testing.assert_close(home.as_tensor(), back.as_tensor(), rtol=0, atol=0)
    assert home.applied_operations == []


def test_a_result_that_exceeds_the_memory_is_refused_before_it_is_allocated() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4))
    with pytest.raises(
        ValueError,
        match=r"fits into memory, got one that is resampled to .* crop it, or check its voxel",
    ):
        ChunkedResample()(image, torch.eye(4) / 1000, (10**5, 10**5, 10**4))
