# SPDX-License-Identifier: Apache-2.0
"""The networks as TorchScript or ONNX files, traced with the timesteps as an input."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from monai.networks import convert_to_onnx
from torch import Tensor, nn

from contourdiff.bundle import config_files, read_config
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import atomic_write
from contourdiff.deploy.onnx_network import OnnxNetwork
from contourdiff.networks import CascadeUNet, ContourUNet

TIMESTEPS = (0, 17, 500, 999)
SIZES = ((1, 4, 4), (3, 8, 6))
"""Batch, height and width that a file is checked at, in ``size_divisor`` pixels; it is traced at another size."""
TRACED_SIZE = (2, 6, 4)
OPSET = 17
Inputs = tuple[Tensor, ...]


def export_networks(
    output_dir: str | Path,
    file_format: str = "onnx",
    *,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> dict[Path, float]:
    """Write ``model`` and, for a cascade, ``refiner`` as files that need no code of this package.

    Inputs are ``x (B, C, H, W)`` float32, ``timesteps (B,)`` int64 and, for a network of several contrasts,
    ``class_labels (B,)`` int64; the output is ``pred (B, 1, H, W)``. Batch, height and width are free; height and width
    must be multiples of ``size_divisor``. That and ``contrasts`` are stored in the file.

    Args:
        output_dir: folder of the files.
        file_format: ``"torchscript"`` (``.ts``) or ``"onnx"`` (``.onnx``).
        bundle: see [`contourdiff.bundle.find_bundle`][].
        overlays: names of overlays of ``inference.json``, such as ``"single"``.
        settings: settings of ``inference.json``, such as ``ckpt_path="model.pt"``.

    Returns the files and, for each, the largest difference from the network at two sizes and several timesteps: 0 for
    TorchScript. Raises ``ValueError`` if it is larger, 1e-4 for ONNX, or for another format, ``ImportError`` without
    onnx or onnxruntime, and what loading the weights raises.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {list(FORMATS)}, got {file_format!r}")
    suffix, write, load, tolerance = FORMATS[file_format]
    parser = read_config(
        config_files(bundle, overlays), {"device": "$torch.device('cpu')", **settings}
    )
    with plain_errors():
        network = parser.get_parsed_content("network")
    parts = {"model": network}
    if isinstance(network, CascadeUNet):
        parts = {
            "model": network.coarse,
            "refiner": parser.get_parsed_content("refiner"),
        }  # without guidance
    if unfit := [
        type(part).__name__ for part in parts.values() if not isinstance(part, ContourUNet)
    ]:
        raise ValueError(
            f"expected networks of the class ContourUNet, got {unfit}; leave out the overlay onnx"
        )
    differences = {}
    for name, part in parts.items():
        path = Path(output_dir) / f"{name}{suffix}"
        with atomic_write(path) as aside, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # tracing and its ONNX export are deprecated; their result is checked
            write(part, aside)
            differences[path] = largest_difference(part, load(aside))
            if not differences[path] <= tolerance:
                raise ValueError(
                    f"expected {path.name} to differ from its network by at most {tolerance}, got "
                    f"{differences[path]:.3g}; use the versions of torch and onnxruntime in constraints.txt"
                )
    return differences


@torch.no_grad()
def largest_difference(network: ContourUNet, exported: Callable[..., Tensor]) -> float:
    """Largest absolute difference of ``exported(x, timesteps[, class_labels])`` at ``SIZES`` and ``TIMESTEPS``."""
    named = _named(network)
    pairs = ((named(*inputs), exported(*inputs)) for inputs in _checks(network))
    return max(float((expected - got).abs().max()) for expected, got in pairs)


def _checks(network: ContourUNet) -> Iterator[Inputs]:
    for size in SIZES:
        for timestep in TIMESTEPS:
            yield _inputs(network, size, timestep)


def _inputs(network: ContourUNet, size: tuple[int, int, int], timestep: int) -> Inputs:
    batch, *sides = size
    channels = network.in_channels // network.patch_size**2
    shape = (batch, channels, *(side * network.size_divisor for side in sides))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(timestep))
    timesteps = torch.full((batch,), timestep)
    return (
        (x, timesteps, torch.arange(batch) % len(network.contrasts))
        if network.contrasts
        else (x, timesteps)
    )


class _Labelled(nn.Module):
    """The network with ``class_labels`` as third argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        out: Tensor = self.network(x, timesteps, class_labels=class_labels)
        return out


def _named(network: ContourUNet) -> nn.Module:
    return (_Labelled(network) if network.contrasts else network).eval()


def _facts(network: ContourUNet) -> dict[str, Any]:
    return {"size_divisor": network.size_divisor, "contrasts": list(network.contrasts)}


def _write_torchscript(network: ContourUNet, path: Path) -> None:
    traced = torch.jit.trace(_named(network), _inputs(network, TRACED_SIZE, 500), check_trace=False)
    save_net_with_metadata(traced, str(path), meta_values=_facts(network))


def _write_onnx(network: ContourUNet, path: Path) -> None:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files are written with onnx; pip install 'contourdiff[onnx]'"
        ) from error
    inputs = _inputs(network, TRACED_SIZE, 500)
    names = ("x", "timesteps", "class_labels")[: len(inputs)]
    image = {0: "batch", 2: "height", 3: "width"}
    model = convert_to_onnx(
        _named(network),
        inputs,
        input_names=names,
        output_names=("pred",),
        opset_version=OPSET,
        dynamic_axes={name: {0: "batch"} for name in names} | {"x": image, "pred": image},
        filename=str(path),
        dynamo=False,  # needs no onnxscript
    )
    onnx.helper.set_model_props(
        model, {name: json.dumps(value) for name, value in _facts(network).items()}
    )
    onnx.save(model, str(path))


FORMATS: dict[
    str,
    tuple[str, Callable[[ContourUNet, Path], None], Callable[[Path], Callable[..., Tensor]], float],
] = {
    "torchscript": (".ts", _write_torchscript, torch.jit.load, 0.0),
    "onnx": (".onnx", _write_onnx, OnnxNetwork, 1e-4),
}
