# SPDX-License-Identifier: Apache-2.0
"""Volumes between the scene of 3D Slicer and files; only classes of MRML, so that no window is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

WINDOW = (0.0, 255.0)
"""Gray levels of an MR that are shown black and white."""
FIDELITY_COLORS = {
    1: ("given and found", (0.2, 0.8, 0.3)),
    2: ("invented", (0.9, 0.2, 0.2)),
    3: ("lost", (0.2, 0.5, 1.0)),
}
"""Names and colors of the values of a fidelity map."""


def write_volume(node: Any, path: Path) -> None:
    """Write a volume node as NIfTI, on its own grid: a transform above it is not applied.

    Raises:
        ValueError: if Slicer cannot write it.
    """
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.UseCompressionOff()
    if not storage.WriteData(node):
        raise ValueError(
            f"expected a volume that can be written as NIfTI, got {node.GetName()}; save it by hand to see why"
        )


def read_volume(path: Path, name: str, like: Any, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """A new node with the volume of a file, under the transform of the node ``like``.

    Raises:
        ValueError: if Slicer cannot read it.
    """
    scene = like.GetScene()
    node = scene.AddNewNodeByClass(kind, name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        scene.RemoveNode(node)
        raise ValueError(f"expected a volume that Slicer can read at {path}, got another file")
    node.SetAndObserveTransformNodeID(like.GetTransformNodeID())
    return node


def read_mr(path: Path, name: str, ct: Any) -> Any:
    """The MR of a CT as a volume node, its window set."""
    node = read_volume(path, name, ct)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(*WINDOW)
    return node


def read_fidelity(path: Path, name: str, ct: Any) -> Any:
    """The fidelity map of an MR as a label map node with a color and a name for each value."""
    node = read_volume(path, name, ct, "vtkMRMLLabelMapVolumeNode")
    colors = ct.GetScene().AddNewNodeByClass("vtkMRMLColorTableNode", f"{name} colors")
    colors.SetTypeToUser()
    colors.SetNumberOfColors(max(FIDELITY_COLORS) + 1)
    colors.SetColor(0, "nothing", 0.0, 0.0, 0.0, 0.0)
    for value, (text, color) in FIDELITY_COLORS.items():
        colors.SetColor(value, text, *color, 1.0)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    return node


def read_segmentation(path: Path, name: str, ct: Any) -> Any:
    """A label as a segmentation node, a segment for each value, on the grid of the CT."""
    label = read_volume(path, name, ct, "vtkMRMLLabelMapVolumeNode")
    scene = ct.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.ImportLabelmapToSegmentationNode(label, node)
    node.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    scene.RemoveNode(label)
    return node
