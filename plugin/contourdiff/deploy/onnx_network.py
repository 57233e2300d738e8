# SPDX-License-Identifier: Apache-2.0
"""A denoising network that is run by onnxruntime from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contourdiff.extras import import_extra
from contourdiff.networks import contrast_label


class OnnxNetwork(nn.Module):
    """Stands for a [`contourdiff.networks.ContourUNet`][] in inference; onnxruntime computes it on the CPU.

    It uses as many threads as torch does when it is built. ``path`` is a file of
    [`contourdiff.deploy.network_export.export_networks`][]; for ``contrast`` see
    [`contourdiff.networks.ContourUNet`][]. Raises ``FileNotFoundError`` without the file, ``ValueError`` if it is
    damaged or of another origin, or for an unknown contrast, ``ImportError`` without onnxruntime.
    """

    def __init__(self, path: str | Path, contrast: str | None = None) -> None:
        super().__init__()
        self._path = Path(path)
        self._session = onnx_session(self._path)
        facts = self._session.get_modelmeta().custom_metadata_map
        if not {"size_divisor", "contrasts"} <= facts.keys():
            raise ValueError(
                f"expected {path} to name its size_divisor and contrasts; write it by contourdiff export"
            )
        self.size_divisor = int(facts["size_divisor"])
        self.contrasts: tuple[str, ...] = tuple(json.loads(facts["contrasts"]))
        self._label = contrast_label(self.contrasts, contrast)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        """Nothing in it can be changed or copied."""
        return self

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Output for ``x (B, C, H, W)`` at ``timesteps (B,)``: ``(B, 1, H, W)`` float32, on the device of ``x``.

        ``class_labels (B,)`` are positions in ``contrasts``; a file without contrasts has the label 0 alone. Raises
        ``ValueError`` for another label.
        """
        default = torch.full_like(timesteps, self._label)
        labels = default if class_labels is None else class_labels
        last = max(len(self.contrasts) - 1, 0)
        if labels.min() < 0 or labels.max() > last:
            raise ValueError(
                f"expected class labels from 0 to {last}, as {self._path.name} has the contrasts "
                f"{list(self.contrasts)}, got {labels.tolist()}; export a network with that contrast"
            )
        inputs = {
            "x": x.detach().float().cpu().contiguous().numpy(),
            "timesteps": timesteps.long().cpu().numpy(),
        }
        if self.contrasts:
            inputs["class_labels"] = labels.long().cpu().numpy()
        (pred,) = self._session.run(["pred"], inputs)
        return torch.from_numpy(pred).to(x.device)


def onnx_session(path: Path) -> Any:
    """Session of onnxruntime on the CPU, with as many threads as torch has; errors are those of [`OnnxNetwork`][]."""
    onnxruntime = import_extra("onnxruntime", "ONNX files are run by onnxruntime", "onnx")
    if not path.is_file():
        raise FileNotFoundError(
            f"expected an ONNX file at {path}, found none; write it by contourdiff export"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        first_line = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"expected {path} to be an ONNX file; reading it failed: {first_line}"
        ) from error
