# SPDX-License-Identifier: Apache-2.0
"""A translator of slices as one ONNX graph: contour and noise in, MR out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from contourdiff import __version__
from contourdiff.bundle import config_files, read_config
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import atomic_write
from contourdiff.data.checks import check_output_dir
from contourdiff.deploy.network_export import (
    SIZES,
    TRACED_SIZE,
    check_difference,
    contour_networks,
    import_onnx,
    write_onnx,
)
from contourdiff.deploy.onnx_network import onnx_session
from contourdiff.inference.denoiser import refiner_conditions
from contourdiff.limits import SettingError, check_whole
from contourdiff.networks import CascadeUNet, ContourUNet, size_divisor_of
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.sampler import Sampler
from contourdiff.weights import sha256_of

FILE_NAME = "contour_to_mr.onnx"
TOLERANCE = 0.05
"""Gray levels by which the file may differ from the networks."""
SETTINGS = (
    "axcodes",
    "slice_axis",
    "spacing_mm",
    "window_hu",
    "filter_classes",
    "min_object_mm2",
    "max_hole_mm2",
    "contour_sigma_px",
    "contour_low_threshold",
    "contour_high_threshold",
    "margin_px",
    "noise_length_mm",
    "solver",
    "refinement_guidance",
)
"""Settings of ``inference.json`` that the file holds: contour and noise of a CT slice, and what was exported."""
STEPS = {"num_inference_steps": "steps", "num_refinement_steps": "refinement_steps"}
"""Settings that the export's arguments replace."""


class ContourToMR(nn.Module):
    """All that a translation computes of a candidate: networks, their steps, and the scaling to gray levels.

    ``network`` is a [`contourdiff.networks.CascadeUNet`][], or a network that is given noisy image and contour;
    ``sampler`` draws no noise but the first.

    Attributes:
        factor: height and width of ``contour`` by those of ``noise``; 1 for a single network.
        input_names: ``contour (N, 1, H, W)`` of 0 and 1; ``noise (N, 1, H / factor, W / factor)``, standard normal; for
            a cascade ``refiner_noise (N, 1, H, W)``; with ``contrasts`` ``class_labels (N,)``, positions in them.
    """

    def __init__(self, network: nn.Module, sampler: Sampler, contrasts: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.sampler = sampler
        self.factor = 1
        self.input_names = ["contour", "noise"]
        if isinstance(network, CascadeUNet):
            self.factor = network.factor
            self.input_names.append("refiner_noise")
        if contrasts:
            self.input_names.append("class_labels")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Gray levels in [0, 255], ``(N, 1, H, W)``, of inputs in the order of ``input_names``."""
        named = dict(zip(self.input_names, inputs, strict=True))
        contour = named["contour"]
        noise = named["noise"]
        labels = {}
        if "class_labels" in named:
            labels["class_labels"] = named["class_labels"]
        if not isinstance(self.network, CascadeUNet):
            return _painted(self.network, self.sampler, contour, noise, **labels)
        folded = pixel_unshuffle(contour, self.factor)
        coarse = _painted(self.network.coarse, self.sampler, folded, noise, **labels)
        conditions = refiner_conditions(contour, coarse, self.factor)
        refinement = self.sampler.refinement
        return _painted(self.network.refiner, refinement, conditions, named["refiner_noise"])


def _painted(
    network: nn.Module, sampler: Sampler, conditions: Tensor, noise: Tensor, **labels: Tensor
) -> Tensor:
    """Gray levels ``(N, 1, H, W)`` of a network's steps from ``noise``, as those of a ``Denoiser``."""

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        both = torch.cat([x, conditions], dim=1)
        prediction: Tensor = network(both, timesteps, **labels)
        return prediction

    images = sampler(predict, lambda: noise)
    return to_gray_levels(images).clamp(0, 255)


def export_single_graph(
    output_dir: str | Path,
    *,
    steps: int = 1,
    refinement_steps: int | None = None,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> dict[Path, float]:
    """Write ``contour_to_mr.onnx``, a translator of slices that needs no code of this package.

    Inputs are those of [`ContourToMR`][], float32, and int64 for ``class_labels``; the output is ``mr (N, 1, H, W)``,
    gray levels in [0, 255]. Batch, height and width are free; height and width must be multiples of ``size_divisor``.
    That, ``contrasts``, ``factor``, the settings that make a contour of a CT slice, the steps and the SHA-256 of the
    weights are stored in the file, each as JSON.

    Args:
        output_dir: folder of the file.
        steps: evaluations of the first network.
        refinement_steps: evaluations of the second network of a cascade, by default 1.
        bundle: see [`contourdiff.bundle.find_bundle`][].
        overlays: names of overlays of ``inference.json``, such as ``"single"``.
        settings: of ``inference.json``, such as ``ckpt_path="model.pt"``.

    Returns the file, and its largest difference to the networks in gray levels. Raises ``ValueError`` if that exceeds
    0.05, and for steps out of range, a solver that draws noise, or networks that see more than a contour;
    ``ImportError`` without onnx or onnxruntime, ``OSError`` or ``ValueError`` for the weights.
    """
    second_steps = 1 if refinement_steps is None else refinement_steps
    check_whole("steps", steps, 1, 1000)
    check_whole("refinement_steps", second_steps, 1, 1000)
    for name, argument in STEPS.items():
        if name in settings:
            raise SettingError(
                f"expected {argument} in place of {name}, got {name}={settings[name]}; leave it out"
            )
    import_onnx()
    check_output_dir(output_dir)
    entries = {
        "device": "$torch.device('cpu')",
        **settings,
        "num_inference_steps": steps,
        "num_refinement_steps": second_steps,
    }
    parser = read_config(config_files(bundle, overlays), entries)
    with plain_errors():
        sampler: Sampler = parser.get_parsed_content("sampler")
        _check_deterministic(sampler)
        networks = contour_networks(parser)
        network: nn.Module = parser.get_parsed_content("network")
        facts = _facts(parser, networks)
    is_cascade = isinstance(network, CascadeUNet)
    if refinement_steps is not None and not is_cascade:
        raise SettingError(
            f"expected a cascade for refinement_steps, got a single network and {refinement_steps}; leave them out"
        )
    if not is_cascade:
        _check_conditions(networks["model"])
    module = ContourToMR(network, sampler, networks["model"].contrasts).eval()
    path = Path(output_dir) / FILE_NAME
    with atomic_write(path) as partial, torch.no_grad(), warnings.catch_warnings():
        # tracing and its ONNX export are deprecated; their result is checked
        warnings.simplefilter("ignore")
        facts["factor"] = module.factor
        _write(module, partial, facts)
        difference = _largest_difference(module, partial, facts)
        check_difference(path, difference, TOLERANCE)
    return {path: difference}


def _check_deterministic(sampler: Sampler) -> None:
    if sampler.solver == "ddpm" or sampler.eta > 0:
        raise SettingError(
            "expected a solver that draws no noise between its steps, got "
            f"solver={sampler.solver}, eta={sampler.eta:g}; leave out solver and eta"
        )


def _check_conditions(network: ContourUNet) -> None:
    channels = network.in_channels // network.patch_size**2
    if channels != 2:
        raise ValueError(
            f"expected a network of 2 channels, noisy image and contour, got {channels}; "
            "neighbor-guided networks cannot be exported as one graph, leave out --single"
        )


def _facts(parser: ConfigParser, networks: dict[str, ContourUNet]) -> dict[str, Any]:
    """What a user of the file has to know."""
    facts = {name: parser.get_parsed_content(name) for name in SETTINGS}
    facts["contour"] = parser.get("contour")["_target_"].rpartition(".")[2]
    facts["contrasts"] = list(networks["model"].contrasts)
    facts["size_divisor"] = size_divisor_of(parser.get_parsed_content("network"))
    facts["steps"] = parser.get_parsed_content("num_inference_steps")
    paths = {"model": "ckpt_path"}
    if "refiner" in networks:
        facts["refinement_steps"] = parser.get_parsed_content("num_refinement_steps")
        paths["refiner"] = "refiner_path"
    weights = {}
    for name, entry in paths.items():
        weights[name] = sha256_of(parser.get_parsed_content(entry))
    facts["weights_sha256"] = weights
    facts["contourdiff"] = __version__
    return facts


def _inputs(
    module: ContourToMR, size: tuple[int, int, int], facts: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Random inputs of a batch, height and width; the last two in units of the divisor."""
    batch, height, width = size
    height *= facts["size_divisor"]
    width *= facts["size_divisor"]
    generator = torch.Generator().manual_seed(0)
    contour = torch.rand(batch, 1, height, width, generator=generator) < 0.1
    small = (batch, 1, height // module.factor, width // module.factor)
    labels = torch.arange(batch) % max(len(facts["contrasts"]), 1)
    tensors = {
        "contour": contour.float(),
        "noise": torch.randn(small, generator=generator),
        "refiner_noise": torch.randn(contour.shape, generator=generator),
        "class_labels": labels,
    }
    return tuple(tensors[name] for name in module.input_names)


def _write(module: ContourToMR, path: Path, facts: dict[str, Any]) -> None:
    image_axes = {0: "batch", 2: "height", 3: "width"}
    axes: dict[str, dict[int, str]] = dict.fromkeys((*module.input_names, "mr"), image_axes)
    if module.factor > 1:
        axes["noise"] = {0: "batch", 2: "small_height", 3: "small_width"}
    if "class_labels" in axes:
        axes["class_labels"] = {0: "batch"}
    inputs = _inputs(module, TRACED_SIZE, facts)
    write_onnx(module, inputs, module.input_names, "mr", axes, path, facts)


def _largest_difference(module: ContourToMR, path: Path, facts: dict[str, Any]) -> float:
    """Largest difference in gray levels of a file to its module, at ``SIZES``."""
    session = onnx_session(path)
    differences = []
    for size in SIZES:
        inputs = _inputs(module, size, facts)
        arrays = [tensor.numpy() for tensor in inputs]
        named = dict(zip(module.input_names, arrays, strict=True))
        (mr,) = session.run(["mr"], named)
        difference = torch.from_numpy(mr) - module(*inputs)
        differences.append(float(difference.abs().max()))
    return max(differences)
