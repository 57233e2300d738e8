# SPDX-License-Identifier: Apache-2.0
"""Small volumes of any shape, spacing, orientation and data type: the same grid comes out, and the same label."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from helpers.runs import run_tiny_inference
from helpers.volumes import ball_ct, read_voxels

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

SHORT = {
    "num_inference_steps": 1,
    "candidates": 1,
    "max_rounds": 1,
    "progress": False,
    "preview": None,
}
DTYPES = ("i2", "i4", "f4", "f8")
LABELS = ("u1", "i2", "u2", "i4", "i8", "f4")

volumes = st.builds(
    dict,
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    flips=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    shear=st.floats(-0.5, 0.5) | st.just(0.0),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    order=st.permutations(range(3)),
    dtype=st.sampled_from(DTYPES),
    label=st.sampled_from(LABELS),
    form=st.sampled_from(("sform", "qform", "both", "none")),
    zipped=st.booleans(),
)


def write(folder: Path, case: str, drawn: dict) -> None:
    """A CT and its label with the properties that were drawn."""
    ct = np.transpose(ball_ct(drawn["shape"]), drawn["order"])
    label = np.random.default_rng(0).integers(0, 120, ct.shape).astype(drawn["label"])
    affine = np.eye(4)
    shear = np.eye(3)
    shear[0, 2] = drawn["shear"] if drawn["form"] == "sform" else 0
    turn = Rotation.from_euler("xyz", drawn["angles"], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(drawn["spacing"], drawn["flips"])) @ shear
    affine[:3, 3] = drawn["origin"]
    for path, data in (
        (folder / case, ct.astype(drawn["dtype"])),
        (folder / "labels" / case, label),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(data, affine, dtype=data.dtype)
        image.set_qform(affine, int(drawn["form"] in ("qform", "both")))
        image.set_sform(affine, 2 * (drawn["form"] in ("sform", "both")))
        nib.save(image, f"{path}.nii{'.gz' if drawn['zipped'] else ''}")


@contextmanager
def without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
@hypothesis.settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
)
@hypothesis.given(drawn=st.lists(volumes, min_size=4, max_size=6))
def test_any_volume_keeps_its_grid_and_its_label(tiny_weights: Path, drawn: list[dict]) -> None:
    with TemporaryDirectory() as folder, without_warnings():
        source, output = Path(folder) / "ct", Path(folder) / "mr"
        for number, one in enumerate(drawn):
            write(source, str(number), one)
        with suppress(ValueError):  # of volumes without a contour, which are refused
            run_tiny_inference(source, output, tiny_weights, **SHORT)
        rows = {row["case"]: row for row in json.loads((output / "run.json").read_text())["cases"]}
        for path in [path for path in source.iterdir() if path.is_file()]:
            case = path.name.split(".")[0]
            if rows[case]["status"] == "failed":
                assert "expected slices with a contour" in rows[case]["error"]
                assert not (output / f"{case}_mr.nii.gz").exists()
                continue
            ct, mr = nib.load(path), nib.load(output / f"{case}_mr.nii.gz")
            assert mr.shape == ct.shape
            np.testing.assert_array_equal(mr.affine, ct.affine)
            assert np.isfinite(read_voxels(output / f"{case}_mr.nii.gz")).all()
            label, written = path.parent / "labels" / path.name, output / f"{case}_label.nii.gz"
            np.testing.assert_array_equal(read_voxels(written), read_voxels(label))
            assert nib.load(written).get_data_dtype() == nib.load(label).get_data_dtype()
            np.testing.assert_array_equal(nib.load(written).affine, nib.load(label).affine)
