# SPDX-License-Identifier: Apache-2.0
"""Volumes between files and the scene of the real MRML library: each voxel stays at its place."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from helpers.paths import REPOSITORY
from helpers.volumes import ball_ct, oblique_affine, read_voxels, write_nifti

PYTHON = Path(
    os.environ.get("CONTOURDIFF_SLICER_PYTHON", REPOSITORY / ".venv-slicer" / "bin" / "python")
)
MODULE = REPOSITORY / "plugin" / "slicer" / "ContourDiff" / "ContourDiff"
PROGRAM = """
import json, sys
from pathlib import Path
import numpy, slicer, slicer.util, vtk

module, folder, ct, label, fidelity = sys.argv[1:]
sys.path.insert(0, module)
from ContourDiffLib import Scene

folder = Path(folder)
scene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerVolumesLogic()
logic.SetMRMLScene(scene)
node = logic.AddArchetypeVolume(ct, "ct")
transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
node.SetAndObserveTransformNodeID(transform.GetID())
Scene.write_volume(node, folder / "written.nii")
mr = Scene.read_mr(Path(ct), "mr", node)
overlay = Scene.read_fidelity(Path(fidelity), "map", node)
segmentation = Scene.read_segmentation(Path(label), "label", node)

def placed(volume):
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVolume(volume).T, slicer.util.arrayFromVTKMatrix(matrix)

voxels, affine = placed(mr)
codes, code_affine = placed(overlay)
segments = segmentation.GetSegmentation()
back = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "back")
exported = slicer.vtkSlicerSegmentationsModuleLogic.ExportAllSegmentsToLabelmapNode(segmentation, back, 0)
label_voxels, label_affine = placed(back)
numpy.savez(folder / "read.npz", voxels=voxels, affine=affine, codes=codes, code_affine=code_affine,
            exported=label_voxels, exported_affine=label_affine)
colors = overlay.GetDisplayNode().GetColorNode()
display = mr.GetDisplayNode()
try:
    Scene.read_mr(folder / "none.nii", "none", node)
    refused = ""
except ValueError as error:
    refused = str(error)
facts = {
    "window": [display.GetWindowLevelMin(), display.GetWindowLevelMax(), display.GetAutoWindowLevel()],
    "transforms": [n.GetTransformNodeID() == transform.GetID() for n in (mr, overlay, segmentation)],
    "colors": [colors.GetColorName(number) for number in range(4)],
    "segments": segments.GetNumberOfSegments(),
    "volumes": scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"),
    "refused": refused,
}
(folder / "facts.json").write_text(json.dumps(facts))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason="no environment with slicer-core, see docs/slicer.md"
    ),
]


@pytest.fixture(
    scope="module",
    params=["oblique", "flipped", "left-handed"],
)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What Slicer has read of a CT, its label and a map, and what it has written."""
    folder = tmp_path_factory.mktemp("scene")
    affines = {
        "oblique": oblique_affine((0.8, 0.9, 2.5)),
        "flipped": np.diag([-1.5, -1.25, 3.0, 1.0]),
        "left-handed": np.diag([1.0, 1.0, -1.0, 1.0]) @ oblique_affine((1.1, 0.7, 2.0)),
    }
    affine = affines[request.param]
    ct = write_nifti(folder / "ct.nii.gz", ball_ct((20, 24, 18)), affine)
    values = np.zeros((20, 24, 18), np.uint8)
    values[3:8, 5:9, 2:4] = 27
    values[10:15, 15:20, 10:16] = 31
    label = write_nifti(folder / "label.nii.gz", values, affine)
    codes = write_nifti(folder / "codes.nii.gz", (values % 4).astype(np.uint8), affine)
    command = [PYTHON, "-c", PROGRAM, MODULE, folder, ct, label, codes]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    facts = json.loads((folder / "facts.json").read_text())
    return {"folder": folder, "label": values, **facts, **np.load(folder / "read.npz")}


def assert_same_place(
    voxels: np.ndarray, affine: np.ndarray, expected: np.ndarray, place: np.ndarray
) -> None:
    """Each voxel has its value at its place, though Slicer may turn axes; to 0.001 mm."""
    index_of = np.linalg.inv(affine) @ place
    indices = np.array(list(np.ndindex(expected.shape)))
    homogeneous = np.insert(indices, 3, 1, axis=1)
    moved = (homogeneous @ index_of.T)[:, :3]
    nearest = np.rint(moved).astype(int)
    np.testing.assert_allclose(moved, nearest, atol=1e-3)
    np.testing.assert_array_equal(voxels[tuple(nearest.T)], expected[tuple(indices.T)])


def test_a_loaded_mr_has_voxels_and_affine_of_its_file(scene: dict[str, Any]) -> None:
    ct = nib.load(scene["folder"] / "ct.nii.gz")
    assert_same_place(scene["voxels"], scene["affine"], np.asarray(ct.dataobj), ct.affine)
    assert scene["window"] == [0, 255, 0]


def test_a_written_ct_has_voxels_and_affine_of_its_node(scene: dict[str, Any]) -> None:
    ct = nib.load(scene["folder"] / "ct.nii.gz")
    written = nib.load(scene["folder"] / "written.nii")
    voxels = np.asarray(written.dataobj)
    assert_same_place(voxels, written.affine, np.asarray(ct.dataobj), ct.affine)


def test_the_map_has_names_and_lies_on_the_ct(scene: dict[str, Any]) -> None:
    ct = nib.load(scene["folder"] / "ct.nii.gz")
    codes = read_voxels(scene["folder"] / "codes.nii.gz")
    assert_same_place(scene["codes"], scene["code_affine"], codes, ct.affine)
    assert scene["colors"] == ["nothing", "given and found", "invented", "lost"]


def test_the_label_is_a_segmentation_on_the_ct(scene: dict[str, Any]) -> None:
    """Exported again, its segments have the voxels of the label's values, in their order."""
    ct = nib.load(scene["folder"] / "ct.nii.gz")
    assert scene["segments"] == 2
    index_of = np.linalg.inv(scene["exported_affine"]) @ ct.affine
    occupied = np.argwhere(scene["label"])
    homogeneous = np.insert(occupied, 3, 1, axis=1)
    moved = np.rint((homogeneous @ index_of.T)[:, :3]).astype(int)
    segments = scene["exported"][tuple(moved.T)]
    values = scene["label"][tuple(occupied.T)]
    np.testing.assert_array_equal(segments, np.where(values == 27, 1, 2))
    assert np.count_nonzero(scene["exported"]) == len(occupied)


def test_nodes_follow_the_transform_of_the_ct_and_leave_no_other(scene: dict[str, Any]) -> None:
    assert scene["transforms"] == [True, True, True]
    assert scene["volumes"] == 4  # CT, MR, map, and the label that this test exports
    assert "expected a volume that Slicer can read" in scene["refused"]
