# SPDX-License-Identifier: Apache-2.0
"""The memory of a translation: a few copies of the volume, whatever the number of slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, ResampleToMatch, Spacingd
from scipy.spatial.transform import Rotation

from contourdiff.data.planes import SLAB_SLICES, ResampledPlanes
from contourdiff.transforms import ChunkedSpacingd
from contourdiff.transforms.in_plane_resample import sample_chunked
from helpers import TINY_NETWORK, ball_ct, write_nifti

PLANE = (320, 320)
SLICES = (100, 500)
COPIES = 3.0
"""Float32 copies of the volume that may lie in memory together at the peak, everything counted; 2.6 by measure."""

CHILD = """
import json, re, sys
from pathlib import Path
from contourdiff.bundle import translate

dataset_dir, output_dir, settings = json.loads(sys.argv[1])
translate(dataset_dir, output_dir, **settings)
print("peak in kB:", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def write_body(folder: Path, slices: int) -> Path:
    """A CT of so many equal slices, with a label; no larger array is made than the CT itself."""
    ct = np.repeat(ball_ct((3, *PLANE))[1:2], slices, axis=0)
    write_nifti(folder / "ct" / "a.nii.gz", ct, np.eye(4))
    write_nifti(folder / "ct" / "labels" / "a.nii.gz", (ct > 300).astype(np.uint8), np.eye(4))
    return folder


def peak_mb(folder: Path, weights: Path) -> float:
    """The most memory that a process of its own held to translate the folder."""
    settings = {
        "network_def": TINY_NETWORK,
        "ckpt_path": str(weights),
        "num_inference_steps": 1,
        "batch_size": 1,
        "candidates": 1,
        "max_rounds": 1,
        "report#columns": 1,
        "logging_file": False,
    }
    told = json.dumps([str(folder / "ct"), str(folder / "mr"), settings])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, told], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.rsplit("peak in kB:", 1)[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_memory_is_a_few_copies_of_the_volume(tiny_weights: Path, tmp_path: Path) -> None:
    """Beyond a smaller volume, whose run holds code, network and batch, memory grows with the volume alone."""
    volumes = [slices * PLANE[0] * PLANE[1] * 4 / 1e6 for slices in SLICES]
    peaks = [peak_mb(write_body(tmp_path / str(slices), slices), tiny_weights) for slices in SLICES]
    told = f"peaks of {peaks} MB for volumes of {volumes} MB in float32"
    assert peaks[1] - peaks[0] <= COPIES * (volumes[1] - volumes[0]), told


def tilted(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Affine of a turned volume with a gantry tilt."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (11, -7, 5), degrees=True).as_matrix() * spacing_mm
    affine[:3, 2] += 0.3 * affine[:3, 1]
    affine[:3, 3] = (7.1, -31.7, 12.9)
    return affine


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("pixdim", [(-1, 2.2, 2.2), (2.2, 2.2, -1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slabs_change_no_bit_there_and_back(
    mode: str, pixdim: tuple[float, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels, affine and what is noted for the inverse are those of MONAI's transform, however thin the slabs are."""

    def thin(*arguments: object, **named: object) -> torch.Tensor:
        return sample_chunked(*arguments, **named, chunk_voxels=3000)  # type: ignore[arg-type]

    monkeypatch.setattr("contourdiff.transforms.in_plane_resample.sample_chunked", thin)
    values = np.random.default_rng(0).normal(size=(1, 37, 61, 53)).astype(np.float32)
    volume = MetaTensor(torch.as_tensor(values), affine=torch.as_tensor(tilted((0.9, 0.8, 3.1))))
    arguments = {"keys": "image", "pixdim": pixdim, "mode": mode, "padding_mode": "zeros", "dtype": dtype}
    stock, slabs = Spacingd(**arguments), ChunkedSpacingd(**arguments)
    expected, result = (transform({"image": volume.clone()})["image"] for transform in (stock, slabs))
    torch.testing.assert_close(result.as_tensor(), expected.as_tensor(), rtol=0, atol=0)
    assert torch.equal(result.affine, expected.affine)
    noted, told = (image.applied_operations[-1] for image in (expected, result))
    assert {**told["extra_info"], "src_affine": 0} == {**noted["extra_info"], "src_affine": 0}
    assert told["orig_size"] == noted["orig_size"]
    back, home = (t.inverse({"image": image})["image"] for t, image in ((stock, expected), (slabs, result)))
    torch.testing.assert_close(home.as_tensor(), back.as_tensor(), rtol=0, atol=0)
    assert home.applied_operations == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_is_the_slice_of_the_whole_volume_resampled(axis: int, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "case.nii.gz", ball_ct((20, 30, 26)), tilted((3.0, 2.5, 3.1)))
    volume = LoadImage(image_only=True, ensure_channel_first=True)(path)
    pixdim = [-1.0 if other == axis else 2.2 for other in range(3)]
    target = Spacingd("image", pixdim=pixdim)({"image": volume})["image"]
    whole = ResampleToMatch(mode="bilinear", padding_mode="zeros")(((volume + 200) / 500).clamp(0, 1), target)
    of_file, of_volume = (ResampledPlanes(source, window=(-200, 300)) for source in (path, volume))
    for position in range(target.shape[1 + axis]):
        plane = of_file.plane(target, axis, position, "bilinear")
        np.testing.assert_allclose(plane, np.asarray(whole[0]).take(position, axis=axis), atol=1e-6)
        np.testing.assert_array_equal(of_volume.plane(target, axis, position, "bilinear"), plane)


@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -10)])
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_a_file_in_slabs_is_the_file(name: str, scaling: tuple[float, float], tmp_path: Path) -> None:
    """More slices than are read at a time; scaled or not, zipped or not."""
    stored = np.random.default_rng(0).integers(-999, 2000, (4, 5, 2 * SLAB_SLICES + 3)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / name)
    volume = MetaTensor(torch.as_tensor(nib.load(tmp_path / name).get_fdata(dtype=np.float32))[None], affine=np.eye(4))
    planes = ResampledPlanes(tmp_path / name)
    for position in range(stored.shape[2]):
        plane = planes.plane(volume, 2, position, "nearest")
        np.testing.assert_allclose(plane, np.asarray(volume[0, ..., position]), rtol=1e-6)
    assert isinstance(planes._stored, np.memmap) == (name == "case.nii")  # not read before it is wanted
