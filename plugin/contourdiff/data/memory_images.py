# SPDX-License-Identifier: Apache-2.0
"""Images in memory, of nibabel, SimpleITK, ITK or MONAI, as NIfTI files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from contourdiff.data.itk_files import voxels_and_affine
from contourdiff.data.volumes import write_volume


def write_image(image: Any, path: Path) -> Path:
    """Write an image in memory as NIfTI, and return its path.

    Raises:
        TypeError: for another kind of image.
        ValueError: if it is no volume of numbers, or has no affine.
    """
    if isinstance(image, MetaTensor):
        voxels, affine = _numpy_of(image), image.affine.cpu().numpy()
    elif isinstance(image, SpatialImage):
        voxels, affine = np.asanyarray(image.dataobj), image.affine
    elif isinstance(image, sitk.Image) or type(image).__module__.startswith("itk"):
        voxels, affine = voxels_and_affine(image, "the image in memory")
    else:
        raise TypeError(
            f"expected a path, a nibabel, SimpleITK or ITK image or a MetaTensor, got {type(image)}"
        )
    if affine is None:
        raise ValueError("expected an image with an affine, got none; give it one, in mm")
    write_volume(voxels, affine, path)
    return path


def _numpy_of(image: MetaTensor) -> np.ndarray:
    """Voxels without the axis of a single channel; floats of 16 bits, which numpy may not have, as float32."""
    tensor = image.as_tensor().detach().cpu()
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    return tensor.resolve_conj().numpy()


def read_image(path: Path, like: Any) -> Any:
    """Read a translation as an image of the same kind and with the geometry of ``like``; ``None`` is nibabel's."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    if like is None:
        return nib.Nifti1Image(voxels, image.affine, image.header)
    if isinstance(like, MetaTensor):
        tensor = torch.as_tensor(voxels).reshape(like.shape)
        return MetaTensor(tensor, affine=like.affine.clone(), meta=dict(like.meta))
    if isinstance(like, SpatialImage):
        return nib.Nifti1Image(voxels.reshape(like.shape), like.affine)
    axes = len(like.GetSpacing())
    in_itk_order = np.ascontiguousarray(
        voxels.reshape(*voxels.shape, *[1] * (axes - 3)).transpose()
    )
    if isinstance(like, sitk.Image):
        mr = sitk.GetImageFromArray(in_itk_order, isVector=False)
    else:
        import itk

        mr = itk.image_from_array(in_itk_order)
    mr.CopyInformation(like)
    return mr
