# SPDX-License-Identifier: Apache-2.0
"""Write the result of a request."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from monailabel.transform.writer import Writer
from torch import Tensor

from contourdiff.data.nifti import save_like

NIFTI = (".nii.gz", ".nii")


def write_result(
    data: Mapping[str, Any], pred: Tensor, extension: str, dtype: str, record: dict[str, Any]
) -> tuple[str, dict]:
    """Write ``pred (H, W, D)``: NIfTI with the header of ``data["image_path"]``, anything else by MONAI Label.

    Returns the path of a temporary file, and ``record``, which the client gets, too.
    """
    if extension not in NIFTI:
        result = {
            **data,
            "pred": pred,
            "result": record,
            "result_extension": extension,
            "result_dtype": dtype,
        }
        return Writer(label="pred", json="result")(result)
    handle, path = tempfile.mkstemp(suffix=extension)
    os.close(handle)
    try:
        save_like(pred.numpy(), data["image_path"], path)
    except OSError:
        os.unlink(path)
        raise
    return path, record
