# SPDX-License-Identifier: Apache-2.0
"""Weights from elsewhere: diffusers and monai-generative become weights of a ContourUNet and an overlay."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contourdiff.data.atomic import atomic_write, write_text
from contourdiff.limits import check_number
from contourdiff.networks import ContourUNet
from contourdiff.sampling.solvers import PREDICTION_TYPES
from contourdiff.weights import check_finite, check_keys, import_safetensors, read_weights

Entries = dict[str, Any]
State = dict[str, Tensor]

WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
FORMATS = json.loads(
    Path(__file__).with_name("checkpoint_formats.json").read_text(encoding="utf-8")
)
"""What MONAI's network has of others: arguments of a ``UNet2DModel``, and patterns of keys, applied in order.

``supported`` has the values that MONAI's network has, that of diffusers' default first; ``up_blocks`` the way up that
belongs to each way down. Attention of monai-generative 0.2.3 had an output layer, ``proj_attn``, never applied.
"""
UNET2D = FORMATS["unet2d"]
SCHEDULES = ("linear", "scaled_linear", "sigmoid")
PAPER_SCHEDULER = {"beta_schedule": "linear"}
CONTOUR = {"contour_sigma_px": 0.8, "contour_low_threshold": 60.0, "contour_high_threshold": 112.0}
"""The nearest that scikit-image has to the paper's contour."""
PAPER_CONTOUR = {
    "_target_": "contourdiff.transforms.OpenCVContourd",
    "keys": "image",
    "slice_axis": "@slice_axis",
    "low_threshold": 80.0,
    "high_threshold": 150.0,
}


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    network_def: str | Path | None = None,
    half: bool = False,
    paper_contour: bool = False,
    spacing_mm: float | None = None,
) -> Path:
    """Write weights of this project and, beside them, ``<stem>.json``, an overlay of ``inference.json`` that uses them.

    Args:
        source: folder of a diffusers ``UNet2DModel`` or of a pipeline with one, or a state dict of a
            ``DiffusionModelUNet`` of monai-generative 0.2.3 or MONAI, ``.pt`` or ``.safetensors``.
        output: weights file to write, ``.pt`` or ``.safetensors``.
        network_def: for a state dict, a JSON file with the arguments of its network, or with entries ``network_def``
            and, optionally, ``scheduler``.
        half: write float16.
        paper_contour: the overlay extracts the paper's contour, by OpenCV, instead of the nearest of scikit-image.
        spacing_mm: of the overlay; ``None`` leaves that of ``inference.json``.

    Returns the path of the overlay. Raises ``ValueError`` if a configuration is not supported, keys or shapes are not
    those of the network, or an output exists; ``FileNotFoundError`` and ``ImportError`` as [`read_weights`][].
    """
    source = Path(source)
    output = Path(output)
    overlay_path = output.with_suffix(".json")
    _check_outputs(output, overlay_path)
    if spacing_mm is not None:
        check_number("spacing_mm", spacing_mm, 0.01, 100)
    if not source.is_dir():
        arguments, scheduler, state = _read_state_dict(source, network_def)
    elif network_def is None:
        arguments, scheduler, state = _read_diffusers(source)
    else:
        raise ValueError(
            f"expected network_def for a state dict alone, but {source} has a config.json; omit it"
        )
    check_keys(_shapes(arguments), state, source)
    dtype = torch.float16 if half else torch.float32
    state = {key: value.to(dtype).contiguous() for key, value in state.items()}
    check_finite(state, source)
    overlay: Entries = {
        "_desc_": f"Overlay of inference.json: a single network, converted from {source.name}",
        "ckpt_path": _path_in_config(output),
        "refiner_path": None,
        "refiner_def": None,
        "refiner": None,
        "contrasts": [],
        "spacing_mm": spacing_mm,
        **CONTOUR,
        "network_def": {"_target_": "contourdiff.networks.ContourUNet", **arguments},
        "network": "@coarse_network",
        "scheduler": scheduler,
        "contour": PAPER_CONTOUR,
    }
    if spacing_mm is None:
        del overlay["spacing_mm"]
    if not paper_contour:
        del overlay["contour"]
    _write_weights(state, output)
    write_text(overlay_path, json.dumps(overlay, indent=4) + "\n")
    return overlay_path


def unet2d_arguments(config: Mapping[str, Any]) -> Entries:
    """Arguments of [`ContourUNet`][] for the ``config.json`` of a diffusers ``UNet2DModel``, or ``ValueError``."""
    missing = sorted(set(UNET2D["needed"]) - config.keys())
    if missing:
        raise ValueError(f"expected the config.json of a UNet2DModel, got one without {missing}")
    values = {**UNET2D["defaults"], **config}
    channels = values["block_out_channels"]
    down = values["down_block_types"]
    up_blocks = UNET2D["up_blocks"]
    supported = {
        **UNET2D["supported"],
        "time_embedding_dim": (None, 4 * channels[0]),
        "attn_norm_num_groups": (None, values["norm_num_groups"]),
        "down_block_types": ([kind for kind in down if kind in up_blocks],),
        "up_block_types": ([up_blocks.get(kind) for kind in reversed(down)],),
    }
    readable = {*supported, *UNET2D["needed"], *UNET2D["defaults"], *UNET2D["unused"]}
    unsupported = [
        name for name, good in supported.items() if values.get(name, good[0]) not in good
    ]
    unsupported += [name for name in config if name not in readable and name[0] != "_"]
    if unsupported:
        listed = ", ".join(f"{name}={values[name]!r}" for name in unsupported[:3])
        raise ValueError(
            f"expected a UNet2DModel that MONAI's network equals, got {listed}; it cannot be converted"
        )
    resampling = ["ResnetDownsampleBlock2D"]
    if values["downsample_type"] == "resnet":
        resampling.append("AttnDownBlock2D")
    head_channels = values["attention_head_dim"]
    return {
        "in_channels": values["in_channels"],
        "out_channels": values["out_channels"],
        "patch_size": 1,
        "channels": channels,
        "attention_levels": [kind == "AttnDownBlock2D" for kind in down],
        "num_res_blocks": values["layers_per_block"],
        "num_head_channels": channels if head_channels is None else head_channels,
        "norm_num_groups": values["norm_num_groups"],
        "norm_eps": values["norm_eps"],
        "resblock_updown": any(kind in resampling for kind in down[:-1]),
        "use_flash_attention": True,
    }


def unet2d_state(state: Mapping[str, Tensor]) -> State:
    """State dict of a diffusers ``UNet2DModel`` with MONAI's keys; others stay, ``ValueError`` if two become one."""
    return _renamed(state, UNET2D["keys"])


def scheduler_entry(config: Mapping[str, Any]) -> Entries:
    """Entry ``scheduler`` of a config for the ``scheduler_config.json`` of diffusers: what training depends on.

    Raises ``ValueError`` for betas or a prediction that are not supported.
    """
    schedule = config.get("beta_schedule")
    prediction = config.get("prediction_type", "epsilon")
    names = [name for name in ("trained_betas", "rescale_betas_zero_snr") if config.get(name)]
    unsupported = {name: config[name] for name in names}
    if prediction not in PREDICTION_TYPES:
        unsupported["prediction_type"] = prediction
    if schedule not in SCHEDULES:
        unsupported["beta_schedule"] = schedule
    if unsupported:
        raise ValueError(
            f"expected betas {SCHEDULES} and a prediction of {PREDICTION_TYPES}, got {unsupported}"
        )
    return {
        "_target_": "DDPMScheduler",
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "schedule": f"{schedule}_beta",
        "beta_start": config.get("beta_start", 1e-4),
        "beta_end": config.get("beta_end", 0.02),
        "prediction_type": prediction,
    }


def _renamed(state: Mapping[str, Tensor], renaming: Mapping[str, str]) -> State:
    renamed: State = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in renaming.items():
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(
                f"expected one key for {name}, got {key} beside another; the weights are damaged"
            )
        renamed[name] = value
    return renamed


def _read_diffusers(source: Path) -> tuple[Entries, Entries, State]:
    """Arguments, scheduler and state dict of a folder with ``config.json`` or of a pipeline with ``unet/``."""
    folder = source / "unet" if (source / "unet").is_dir() else source
    arguments = unet2d_arguments(_read_json(folder / "config.json"))
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    entry = scheduler_entry(_read_json(scheduler) if scheduler.is_file() else PAPER_SCHEDULER)
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return arguments, entry, unet2d_state(read_weights(folder / name))
    raise FileNotFoundError(
        f"expected {' or '.join(WEIGHTS_FILES)} in {folder}, found neither; save it whole"
    )


def _read_state_dict(
    source: Path, network_def: str | Path | None
) -> tuple[Entries, Entries, State]:
    """Arguments, scheduler and state dict of a file, whose network ``network_def`` describes."""
    state = read_weights(source)
    if network_def is None:
        raise ValueError(
            f"expected the network_def of the state dict {source}, got none: weights do not show heads, groups and "
            "epsilon; pass --network_def FILE.json with its arguments"
        )
    entries = _read_json(Path(network_def))
    arguments = {"in_channels": 2, "out_channels": 1, **entries.get("network_def", entries)}
    arguments = {name: value for name, value in arguments.items() if name[0] != "_"}
    if "num_channels" in arguments:  # the name in monai-generative
        arguments["channels"] = arguments.pop("num_channels")
    for name in ("with_conditioning", "num_class_embeds", "contrasts"):
        if arguments.get(name):
            raise ValueError(
                f"expected a network without classes and cross-attention, got {name}={arguments[name]} in {network_def}"
            )
    if "middle_block.attention.to_q.weight" in state:
        arguments.update(include_fc=False, use_combined_linear=False)
        state = {key: value for key, value in state.items() if ".proj_attn." not in key}
        state = _renamed(state, FORMATS["monai_generative"]["keys"])
    return arguments, entries.get("scheduler") or scheduler_entry(PAPER_SCHEDULER), state


def _shapes(arguments: Mapping[str, Any]) -> State:
    """State dict, without values, of the network with these arguments."""
    channels = arguments["in_channels"], arguments["out_channels"]
    if channels != (2, 1):
        raise ValueError(
            "expected in_channels 2 (noisy slice and contour) and out_channels 1, "
            f"got {channels[0]} and {channels[1]}; other networks cannot be converted"
        )
    try:
        with torch.device("meta"):
            return ContourUNet(**arguments).state_dict()
    except TypeError as error:
        raise ValueError(
            f"expected arguments of ContourUNet, got {dict(arguments)}: {error}"
        ) from error


def _read_json(path: Path) -> Entries:
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, found none; see docs/convert.md")
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(entries).__name__}")
    return entries


def _check_outputs(output: Path, overlay: Path) -> None:
    if output.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"expected an output *.pt or *.safetensors, got {output}")
    existing = [str(path) for path in (output, overlay) if path.exists()]
    if existing:
        raise ValueError(
            f"expected new files, found {existing}; remove them or choose another name"
        )
    if output.suffix == ".safetensors":
        import_safetensors()


def _path_in_config(output: Path) -> str:
    """``ckpt_path`` of an overlay: relative to the bundle for weights inside a bundle, else absolute."""
    path = output.resolve()
    for root in path.parents:
        if (root / "configs" / "inference.json").is_file():
            return f"$@bundle_root + '/{path.relative_to(root).as_posix()}'"
    return str(path)


def _write_weights(state: State, path: Path) -> None:
    with atomic_write(path) as aside:
        if path.suffix == ".safetensors":
            content = import_safetensors().save(state)
            aside.write_bytes(content)  # save_file allows only the owner to read
        else:
            torch.save(state, aside)
