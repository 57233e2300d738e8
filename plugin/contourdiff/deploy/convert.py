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
from contourdiff.networks import ContourUNet
from contourdiff.sampling.solvers import PREDICTION_TYPES
from contourdiff.weights import check_keys, import_safetensors, read_weights

State = dict[str, Tensor]
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
BLOCKS = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}
BLOCKS |= {"ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0,),
    "flip_sin_to_cos": (True,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
"""Values of a ``UNet2DModel`` that MONAI's network has; the first of each is the default of diffusers."""
REQUIRED = {
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "in_channels",
    "out_channels",
}
USED = {
    "downsample_type",
    "upsample_type",
    "layers_per_block",
    "attention_head_dim",
    "norm_num_groups",
    "norm_eps",
}
USED |= {"sample_size", "dropout", "num_train_timesteps"}
RENAMED = (
    (r"^conv_in\.", "conv_in.conv."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2.conv."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.resnet_1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.resnet_2."),
    (r"^mid_block\.attentions\.0\.", "middle_block.attention."),
    (r"\.downsamplers\.0\.conv\.", ".downsampler.op.conv."),
    (r"\.upsamplers\.0\.conv\.", ".upsampler.postconv.conv."),
    (r"\.(down|up)samplers\.0\.", r".\1sampler."),
    (r"\.(conv[12])\.", r".\1.conv."),
    (r"\.conv_shortcut\.", ".skip_connection.conv."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".attn.to_q."),  # the second names are of diffusers before 0.18
    (r"\.(to_k|key)\.", ".attn.to_k."),
    (r"\.(to_v|value)\.", ".attn.to_v."),
    (r"\.(to_out\.0|proj_attn)\.", ".attn.out_proj."),
)
"""Patterns of keys of a ``UNet2DModel``, applied in order, and what stands there in MONAI."""
SCHEDULES = {
    "linear": "linear_beta",
    "scaled_linear": "scaled_linear_beta",
    "sigmoid": "sigmoid_beta",
}
PAPER_SCHEDULER = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
}
CONTOUR = {"contour_sigma_px": 0.8, "contour_low_threshold": 60.0, "contour_high_threshold": 112.0}
"""The nearest that scikit-image has to the paper's contour."""
PAPER_CONTOUR: dict[str, Any] = {
    "_target_": "contourdiff.transforms.OpenCVContourd",
    "keys": "image",
}
PAPER_CONTOUR |= {"slice_axis": "@slice_axis", "low_threshold": 80.0, "high_threshold": 150.0}


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
            and, optionally, ``scheduler``. Heads, groups and epsilon leave no trace in weights, so none is guessed.
        half: write float16.
        paper_contour: the overlay extracts the paper's contour, by OpenCV, instead of the nearest of scikit-image.
        spacing_mm: of the overlay; ``None`` leaves that of ``inference.json``.

    Returns the path of the overlay. Raises ``ValueError`` if a configuration is not supported, keys or shapes are not
    those of the network, or an output exists; ``FileNotFoundError`` if a part of ``source`` is missing; ``ImportError``
    if safetensors is needed and missing.
    """
    source, output = Path(source), Path(output)
    overlay_path = output.with_suffix(".json")
    _check_outputs(output, overlay_path)
    if spacing_mm is not None and spacing_mm <= 0:
        raise ValueError(f"spacing_mm must be positive, got {spacing_mm}")
    if source.is_dir():
        if network_def is not None:
            raise ValueError(
                f"expected network_def for a state dict alone, but {source} has a config.json; omit it"
            )
        arguments, scheduler, state = _read_diffusers(source)
    else:
        arguments, scheduler, state = _read_state_dict(source, network_def)
    state = {
        key: value.to(torch.float16 if half else torch.float32).contiguous()
        for key, value in state.items()
    }
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f"expected finite weights in {source}, got NaN or infinity in {broken[:3]}; train it again"
        )
    overlay: dict[str, Any] = {
        "_desc_": f"Overlay of inference.json: a single network, converted from {source.name}",
        "ckpt_path": _path_in_config(output),
        **dict.fromkeys(("refiner_path", "refiner_def", "refiner")),
        "contrasts": [],
        **({} if spacing_mm is None else {"spacing_mm": spacing_mm}),
        **CONTOUR,
        "network_def": {"_target_": "contourdiff.networks.ContourUNet", **arguments},
        "network": "@coarse_network",
        "scheduler": scheduler,
        **({"contour": PAPER_CONTOUR} if paper_contour else {}),
    }
    _write_weights(state, output)
    write_text(overlay_path, json.dumps(overlay, indent=4) + "\n")
    return overlay_path


def unet2d_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of [`ContourUNet`][] for the ``config.json`` of a diffusers ``UNet2DModel``.

    Raises ``ValueError`` that names the values which MONAI's network does not have.
    """
    if missing := sorted(REQUIRED - config.keys()):
        raise ValueError(f"expected the config.json of a UNet2DModel, got one without {missing}")
    channels, down = config["block_out_channels"], config["down_block_types"]
    groups, head = config.get("norm_num_groups", 32), config.get("attention_head_dim", 8)
    supported = SUPPORTED | {
        "time_embedding_dim": (None, 4 * channels[0]),
        "attn_norm_num_groups": (None, groups),
        "down_block_types": ([kind for kind in down if kind in BLOCKS],),
        "up_block_types": ([BLOCKS.get(kind) for kind in reversed(down)],),
    }
    wrong = {
        name: config[name]
        for name, values in supported.items()
        if config.get(name, values[0]) not in values
    }
    wrong |= {
        name: config[name]
        for name in config
        if name[0] != "_" and name not in USED | REQUIRED | supported.keys()
    }
    if wrong:
        named = ", ".join(f"{name}={value!r}" for name, value in list(wrong.items())[:3])
        raise ValueError(
            f"expected a UNet2DModel that MONAI's network equals, got {named}; it cannot be converted"
        )
    resnet = any(
        kind[0] == "R" or (kind[0] == "A" and config.get("downsample_type") == "resnet")
        for kind in down[:-1]
    )
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "patch_size": 1,
        "channels": channels,
        "attention_levels": [kind == "AttnDownBlock2D" for kind in down],
        "num_res_blocks": config.get("layers_per_block", 2),
        "num_head_channels": channels if head is None else head,
        "norm_num_groups": groups,
        "norm_eps": config.get("norm_eps", 1e-5),
        "resblock_updown": resnet,
        "use_flash_attention": True,
    }


def unet2d_state(state: Mapping[str, Tensor]) -> State:
    """State dict of a diffusers ``UNet2DModel`` with MONAI's keys; values are unchanged, unknown keys are kept."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(
                f"expected one key for {name}, got {key} beside another; the weights are damaged"
            )
        renamed[name] = value
    return renamed


def scheduler_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """Entry ``scheduler`` of a config for the ``scheduler_config.json`` of diffusers: what training depends on.

    Solver, steps, spacing and clipping are settings of the translation, and not taken over. Raises ``ValueError`` for
    betas or a prediction that are not supported.
    """
    wrong = {
        name: config[name]
        for name in ("trained_betas", "rescale_betas_zero_snr")
        if config.get(name)
    }
    prediction = config.get("prediction_type", "epsilon")
    wrong |= {} if prediction in PREDICTION_TYPES else {"prediction_type": prediction}
    schedule = config.get("beta_schedule")
    wrong |= {} if schedule in SCHEDULES else {"beta_schedule": schedule}
    if wrong:
        raise ValueError(
            f"expected betas {list(SCHEDULES)} and a prediction of {PREDICTION_TYPES}, got {wrong}"
        )
    return {
        "_target_": "DDPMScheduler",
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "schedule": SCHEDULES[config["beta_schedule"]],
        "beta_start": config.get("beta_start", 1e-4),
        "beta_end": config.get("beta_end", 0.02),
        "prediction_type": prediction,
    }


def generative_state(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> State:
    """State dict of a ``DiffusionModelUNet`` of monai-generative 0.2.3 with MONAI's keys, by ``load_old_state_dict``.

    Its attention had an output layer, ``proj_attn``, that was never applied: those keys are left out, and
    ``arguments`` must have ``include_fc=False``. Raises ``ValueError`` unless every other key has its counterpart.
    """
    network, left = _network(arguments), dict(state)
    expected = "expected weights of a monai-generative network with the given network_def"
    try:
        network.load_old_state_dict(left)  # takes what it finds out of ``left``
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{expected}, got {' '.join(str(error).split())[:300]}") from error
    renamed = network.state_dict()
    unknown, count = [key for key in left if ".proj_attn." not in key], len(state) - len(left)
    if unknown or count != len(renamed):  # what is absent would keep the values of a new network
        raise ValueError(
            f"{expected}, got {count} of {len(renamed)} keys and {len(unknown)} unknown {unknown[:3]}"
        )
    return renamed


def _read_diffusers(source: Path) -> tuple[dict[str, Any], dict[str, Any], State]:
    """Arguments, scheduler and state dict of a folder with ``config.json`` or of a pipeline with ``unet/``."""
    folder = source / "unet" if (source / "unet").is_dir() else source
    arguments = unet2d_arguments(_read_json(folder / "config.json"))
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    entry = scheduler_entry(_read_json(scheduler) if scheduler.is_file() else PAPER_SCHEDULER)
    files = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"expected {' or '.join(WEIGHTS_FILES)} in {folder}, found neither; save it whole"
        )
    state = unet2d_state(read_weights(files[0]))
    check_keys(_network(arguments, "meta").state_dict(), state, files[0])
    return arguments, entry, state


def _read_state_dict(
    source: Path, network_def: str | Path | None
) -> tuple[dict[str, Any], dict[str, Any], State]:
    """Arguments, scheduler and state dict of a file, whose network ``network_def`` describes."""
    state = read_weights(source)
    if network_def is None:
        hint = "weights do not show heads, groups and epsilon; pass --network_def FILE.json with its arguments"
        raise ValueError(f"expected the network_def of the state dict {source}, got none: {hint}")
    entries = _read_json(Path(network_def))
    given = {
        name: value for name, value in entries.get("network_def", entries).items() if name[0] != "_"
    }
    arguments = {"in_channels": 2, "out_channels": 1, **given}
    if "num_channels" in arguments:  # the name in monai-generative
        arguments["channels"] = arguments.pop("num_channels")
    if wrong := {
        n: arguments[n]
        for n in ("with_conditioning", "num_class_embeds", "contrasts")
        if arguments.get(n)
    }:
        raise ValueError(
            f"expected a network without classes and cross-attention, got {wrong} in {network_def}"
        )
    if "middle_block.attention.to_q.weight" in state:
        arguments |= {"include_fc": False, "use_combined_linear": False}
        state = generative_state(state, arguments)
    check_keys(_network(arguments, "meta").state_dict(), state, source)
    return arguments, entries.get("scheduler") or scheduler_entry(PAPER_SCHEDULER), state


def _network(arguments: Mapping[str, Any], device: str = "cpu") -> ContourUNet:
    if (shape := (arguments.get("in_channels"), arguments.get("out_channels"))) != (2, 1):
        raise ValueError(
            f"expected in_channels 2 (noisy slice and contour) and out_channels 1, got {shape[0]} and {shape[1]}; "
            "other networks cannot be converted"
        )
    try:
        with torch.device(device):
            return ContourUNet(**arguments)
    except TypeError as error:
        raise ValueError(
            f"expected arguments of ContourUNet, got {dict(arguments)}: {error}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}, found none; see 'Weights from elsewhere' in docs/train.md"
        )
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(entries).__name__}")
    return entries


def _check_outputs(output: Path, overlay: Path) -> None:
    if output.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"expected an output *.pt or *.safetensors, got {output}")
    if existing := [str(path) for path in (output, overlay) if path.exists()]:
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
            aside.write_bytes(
                import_safetensors().torch.save(state)
            )  # save_file allows only the owner to read
        else:
            torch.save(state, aside)
