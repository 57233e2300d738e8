# SPDX-License-Identifier: Apache-2.0
"""CT to synthetic MR for SlicerModalityConverter, a class for all contrasts."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from ModalityConverterLib.ModelBase import BaseModel, register_model
from ModalityConverterLib.Utils.modelLoadUtils import import_onnx_model

KEY = "contourdiff_ct2mr"
"""The models are called this, with a name of `CONTRASTS` behind it."""
CONTRASTS = {"t1": "t1", "t2": "t2", "space": "t2_space"}
"""No name begins with another one, because the extension looks for files that begin with it."""
REQUIREMENT = "scikit-image>=0.26"


@register_model(f"{KEY}_t1")
@register_model(f"{KEY}_t2")
@register_model(f"{KEY}_space")
class ContourDiffModel(BaseModel):
    """Translate a CT by the file ``<key>.onnx``, which ``contourdiff export --single`` writes."""

    def _loadModelFromPath(self, modelPath: str) -> Any:
        """Session of the file; ``RuntimeError`` without scikit-image 0.26, or if the file cannot be loaded."""
        try:
            from .ContourDiffVolume import facts_of
        except ImportError as error:
            raise RuntimeError(
                f"expected {REQUIREMENT}, got: {error}; in the console of a Slicer with Python 3.11 or newer: "
                f'slicer.util.pip_install("{REQUIREMENT}")'
            ) from error
        try:
            session = import_onnx_model(modelPath=modelPath, device=self.device)
            facts_of(session)
        except Exception as error:  # of a runtime, on any bytes
            raise RuntimeError(
                f"expected a file of contourdiff export --single at {modelPath}, got: {error}"
            ) from error
        return session

    def runInference(
        self,
        inputVolume: Any,
        outputVolume: Any,
        inputMask: Any = None,
        showAllFiles: bool = True,
    ) -> Any:
        """Set ``outputVolume`` to the MR on the grid of ``inputVolume``, 0 outside ``inputMask``; its voxels.

        Volumes are scalar volume nodes, the input in Hounsfield units. ``showAllFiles`` has no effect: there are no
        others. Raises ``ValueError`` for a mask on another grid, and as ``translate_volume``;
        ``RuntimeError`` for a volume without a place.
        """
        from .ContourDiffVolume import translate_volume

        if not hasattr(inputVolume, "GetIJKToRASMatrix"):
            raise RuntimeError(
                "expected a volume with spacing and orientation, got its voxels alone, as newer versions of "
                "SlicerModalityConverter pass them; use its version e67d217, or the module ContourDiff"
            )
        matrix = vtk.vtkMatrix4x4()
        inputVolume.GetIJKToRASMatrix(matrix)
        affine = slicer.util.arrayFromVTKMatrix(matrix)
        voxels = slicer.util.arrayFromVolume(inputVolume).transpose()
        mask = None
        if inputMask is not None:
            mask = slicer.util.arrayFromVolume(inputMask).transpose()
            if mask.shape != voxels.shape:
                raise ValueError(
                    f"expected a mask on the grid of the CT, {voxels.shape}, got {mask.shape}; resample it"
                )
        contrast = CONTRASTS[self.modelKey.removeprefix(f"{KEY}_")]
        mr = translate_volume(voxels, affine, self.model, contrast, _show_progress)
        if mask is not None:
            mr[mask == 0] = 0
        slicer.util.updateVolumeFromArray(outputVolume, mr.transpose())
        outputVolume.CopyOrientation(inputVolume)
        _show(outputVolume)
        return mr


def _show_progress(done: int, count: int) -> None:
    slicer.util.showStatusMessage(f"contourdiff: slice {done} of {count}")
    slicer.app.processEvents()


def _show(volume: Any) -> None:
    """Show a volume with the window of its gray levels."""
    volume.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0, 255)
    slicer.util.setSliceViewerLayers(background=volume, foreground=None)
