# SPDX-License-Identifier: Apache-2.0
"""The networks as TorchScript or ONNX files, traced with the timesteps as an input."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from monai.networks import convert_to_onnx
from torch import Tensor, nn

from contourdiff.bundle import config_files, read_config
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import atomic_write
from contourdiff.deploy.onnx_network import OnnxNetwork
from contourdiff.extras import import_extra
from contourdiff.limits import check_choice
from contourdiff.networks import CascadeUNet, ContourUNet

TIMESTEPS = (0, 17, 500, 999)
SIZES = ((1, 4, 4), (3, 8, 6))
"""Batch, height and width that a file is checked at, in ``size_divisor`` pixels; it is traced at another size."""
TRACED_SIZE = (2, 6, 4)
OPSET = 17


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
        settings: of ``inference.json``, such as ``ckpt_path="model.pt"``.

    Returns the files and, for each, the [`largest_difference`][]; raises ``ValueError`` if it exceeds 0, 1e-4 for ONNX,
    or for another format, ``ImportError`` without onnx or onnxruntime, ``OSError`` or ``ValueError`` for the weights.
    """
    check_choice("file_format", file_format, FORMATS)
    target = FORMATS[file_format]
    files = config_files(bundle, overlays)
    parser = read_config(files, {"device": "$torch.device('cpu')", **settings})
    with plain_errors():
        networks = contour_networks(parser)
    differences = {}
    for name, network in networks.items():
        path = Path(output_dir) / f"{name}{target.suffix}"
        with atomic_write(path) as partial, torch.no_grad(), warnings.catch_warnings():
            # tracing and its ONNX export are deprecated; their result is checked
            warnings.simplefilter("ignore")
            target.write(network, partial)
            differences[path] = largest_difference(network, target.load(partial))
            check_difference(path, differences[path], target.tolerance)
    return differences


def check_difference(path: Path, difference: float, tolerance: float) -> None:
    """Raise ``ValueError`` if a file differs from its network by more than ``tolerance``."""
    if not difference <= tolerance:
        raise ValueError(
            f"expected {path.name} to differ from its network by at most {tolerance}, got {difference:.3g}; "
            "use the versions of torch and onnxruntime in constraints.txt"
        )


@torch.no_grad()
def largest_difference(network: ContourUNet, exported: Callable[..., Tensor]) -> float:
    """Largest absolute difference of ``exported(x, timesteps[, class_labels])`` at ``SIZES`` and ``TIMESTEPS``."""
    positional = _positional(network)
    differences = []
    for size, timestep in product(SIZES, TIMESTEPS):
        inputs = _inputs(network, size, timestep)
        difference = positional(*inputs) - exported(*inputs)
        differences.append(float(difference.abs().max()))
    return max(differences)


def contour_networks(parser: ConfigParser) -> dict[str, ContourUNet]:
    """Networks of a config: ``model`` and, of a cascade, ``refiner``, which is without guidance.

    Raises ``ValueError`` for networks that are files already.
    """
    network = parser.get_parsed_content("network")
    networks = {"model": network}
    if isinstance(network, CascadeUNet):
        networks = {"model": network.coarse, "refiner": parser.get_parsed_content("refiner")}
    kinds = [type(network).__name__ for network in networks.values()]
    if not all(isinstance(network, ContourUNet) for network in networks.values()):
        raise ValueError(
            f"expected networks of the class ContourUNet, got {kinds}; leave out the overlay onnx"
        )
    return networks


def _inputs(network: ContourUNet, size: tuple[int, int, int], timestep: int) -> tuple[Tensor, ...]:
    batch, height, width = size
    channels = network.in_channels // network.patch_size**2
    height *= network.size_divisor
    width *= network.size_divisor
    generator = torch.Generator().manual_seed(timestep)
    x = torch.randn(batch, channels, height, width, generator=generator)
    timesteps = torch.full((batch,), timestep)
    if not network.contrasts:
        return x, timesteps
    return x, timesteps, torch.arange(batch) % len(network.contrasts)


class _Labelled(nn.Module):
    """The network with ``class_labels`` as third argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        out: Tensor = self.network(x, timesteps, class_labels=class_labels)
        return out


def _positional(network: ContourUNet) -> nn.Module:
    """The network, called with the inputs of its file."""
    positional = _Labelled(network) if network.contrasts else network
    return positional.eval()


def _facts(network: ContourUNet) -> dict[str, Any]:
    return {"size_divisor": network.size_divisor, "contrasts": list(network.contrasts)}


def _write_torchscript(network: ContourUNet, path: Path) -> None:
    inputs = _inputs(network, TRACED_SIZE, 500)
    traced = torch.jit.trace(_positional(network), inputs, check_trace=False)
    save_net_with_metadata(traced, str(path), meta_values=_facts(network))


def _write_onnx(network: ContourUNet, path: Path) -> None:
    inputs = _inputs(network, TRACED_SIZE, 500)
    image_axes = {0: "batch", 2: "height", 3: "width"}
    axes = {"x": image_axes, "timesteps": {0: "batch"}, "pred": image_axes}
    if network.contrasts:
        axes["class_labels"] = {0: "batch"}
    names = ("x", "timesteps", "class_labels")[: len(inputs)]
    write_onnx(_positional(network), inputs, names, "pred", axes, path, _facts(network))


def import_onnx() -> Any:
    """``onnx``; ``ImportError`` that names what to install if it is missing."""
    return import_extra("onnx", "ONNX files are written with onnx", "onnx")


def write_onnx(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_name: str,
    axes: Mapping[str, Mapping[int, str]],
    path: Path,
    facts: Mapping[str, Any],
) -> None:
    """Trace a network with ``inputs`` and write it, with ``facts`` as JSON in its metadata properties.

    ``axes`` are those of inputs and output that are free, with their names.
    """
    onnx = import_onnx()
    model = convert_to_onnx(
        network,
        inputs,
        input_names=list(input_names),
        output_names=[output_name],
        opset_version=OPSET,
        dynamic_axes=axes,
        filename=str(path),
        dynamo=False,  # needs no onnxscript
    )
    properties = {name: json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


class _Format(NamedTuple):
    """How networks are written and read back, and how far their outputs may differ."""

    suffix: str
    write: Callable[[ContourUNet, Path], None]
    load: Callable[[Path], Callable[..., Tensor]]
    tolerance: float


FORMATS = {
    "torchscript": _Format(".ts", _write_torchscript, torch.jit.load, 0.0),
    "onnx": _Format(".onnx", _write_onnx, OnnxNetwork, 1e-4),
}
