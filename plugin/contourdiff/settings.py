# SPDX-License-Identifier: Apache-2.0
"""The meaning of every setting of the bundle's configs; defaults are read from the configs."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from contourdiff.bundle import config_files
from contourdiff.config_checks import COMMENT
from contourdiff.tables import markdown_table

SECTIONS = ("// paths", "// settings")
"""Comments that head the settings of a config; other entries are its components."""

GEOMETRY = {
    "axcodes": "orientation in which slices are cut, a letter for each axis of the array",
    "slice_axis": "axis along which slices are stacked, after orientation: with RAS 0 sagittal, 1 coronal, 2 axial",
}
CONTOUR = {
    "filter_classes": "gray-level classes of the background filter (multi-Otsu), 2 to 5",
    "min_object_mm2": "smaller objects are removed from the body mask, mm²",
    "max_hole_mm2": "enclosed holes of the body mask up to this area are filled, mm²",
    "contour_sigma_px": "Gaussian smoothing before the contour, pixels",
    "contour_low_threshold": "lower Canny threshold, gray levels of 0 to 255",
    "contour_high_threshold": "upper Canny threshold, gray levels of 0 to 255",
}
COMPUTATION = {
    "device": "device to compute on, such as cpu or cuda:1",
    "amp": "bfloat16; on a CPU without avx512_bf16 or amx (see lscpu) it was 100 times slower",
}

INFERENCE = {
    "dataset_dir": "folder of the CT volumes, or a DICOM folder; labels are read from labels/ in it",
    "datalist": "JSON or CSV list of cases, relative to dataset_dir; null takes the files of the folder",
    "output_dir": "folder of the results",
    "ckpt_path": "weights of the first network: a file of tensors that matches it exactly",
    "refiner_path": "weights of the second network, which refines slices from 2.2 to 1.1 mm",
    "case_suffix": "ends the case in all file names; set by contrast where there are several",
    "series_uid": "SeriesInstanceUID, where a DICOM folder holds several CT series",
    "output_ext": "format of MR, label and maps: .nii.gz, .nii, .nrrd or .mha",
    "overwrite": "translate cases again that have a result in output_dir",
    "progress": "show one line for the run; without a terminal, a line a minute",
    "stats": "CSV or Parquet file to write, with a line for each case",
    "bids_dir": "folder of a BIDS derivative dataset to write, too",
    "report": "write the pages of a report at the end of the run",
    "mr_dir": "folder of real MR, whose gray levels the report compares with",
    "seed": "seed of the noise; each seed gives a different MR of the same anatomy",
    "contrasts": "contrasts of the weights, in the order of their training; [] for a single contrast",
    "contrast": "contrast to translate to; t1,t2 writes a volume of each: <case>_t1_mr.nii.gz, <case>_t2_mr.nii.gz",
    **GEOMETRY,
    "spacing_mm": "in-plane pixel size of the network, mm; the spacing along slice_axis is kept",
    "window_hu": "CT window that is mapped to gray levels 0 to 255, Hounsfield units",
    **CONTOUR,
    "margin_px": "margin around all contours in the network's input, pixels",
    "solver": "ddim; dpm_solver (DPM-Solver++(2M), Karras spacing) for few steps; ddpm for all 1000 steps",
    "num_inference_steps": "steps of the first network, and its evaluations for each candidate",
    "num_refinement_steps": "steps of the second network, which is always solved by DDIM",
    "refinement_guidance": "classifier-free guidance of the second network; above 1 it paints fainter edges",
    "eta": "noise that DDIM adds at each step, from 0, none, to 1, as much as DDPM",
    "candidates": "candidates drawn for a slice in each round",
    "max_rounds": "rounds of candidates for a slice, at most",
    "mean_threshold": "mean gray level below which a slice without a neighbor is accepted",
    "distance_threshold": "mean squared difference to the neighbor up to which a slice is accepted, gray levels²",
    "noise_length_mm": "noise of slices d mm apart is correlated by exp(-d² / (2 length²)), mm; 0: independent",
    "unconditional": "ablation: empty contours; they still determine which slices are translated, and where",
    "fidelity_tolerance_mm": "distance within which two contours match in the fidelity check, mm",
    "fidelity_limit": "slices with a lower contour fidelity are suspect, 0 to 1; 0 disables the warning",
    "reference_flicker": "flicker of real MR to compare with, gray levels²; contourdiff-lab quality measures it",
    "save_fidelity_map": "write <case>_fidelity.nii.gz: where the MR follows its contour",
    "save_uncertainty_map": "write <case>_uncertainty.nii.gz: how much candidates differ, at least two a slice",
    "output_dtype": "data type of the MR: float32, or uint8, rounded",
    "batch_size": "candidates for each network call, halved when memory runs out; null: what fits on a GPU",
    **COMPUTATION,
    "acceleration": "lean: channels-last layout, and fewer multiplications on a CPU; null: the network as it is",
    "retain_heap": "keep freed memory in the process during inference, on a CPU with glibc; same results",
    "num_workers": "processes that read the next cases during inference; each holds a case in memory",
}

TRAIN = {
    "dataset_dir": "folder of the MR images, NIfTI",
    "datalist": "CSV or JSON file that assigns images to training and validation, relative to dataset_dir",
    "file_pattern": "pattern of the files to use, such as t1/*",
    "output_dir": "folder of weights, checkpoint, pictures and curves",
    "resume_from": "checkpoint to resume from",
    "initial_weights": "weights to start from, such as the bundle's, for fine-tuning",
    "seed": "seed of all randomness",
    "contrasts": "contrasts of one network, each with a pattern of its files; {} for a single contrast",
    "val_fraction": "share of the images that is held out without a datalist; at least one image",
    **GEOMETRY,
    "spacing_mm": "in-plane pixel size, mm; the spacing along slice_axis is kept",
    "image_size_px": "height and width of a training image, pixels",
    "upper_percentile": "percentile of a volume that becomes gray level 255; the first percentile becomes 0",
    **CONTOUR,
    "contour_dropout": "probability that a training contour is emptied; 1 trains without any condition",
    "neighbors": "give each slice its neighbor, too; set by train_neighbor_guided.json",
    "neighbor_probability": "probability that the third input channel holds the adjacent slice, if there is one",
    "slice_keys": "items of a slice that are augmented together; set by train_neighbor_guided.json",
    "fragment_dropout": "largest share of contour fragments that is removed",
    "fragment_clutter": "largest share of contour fragments that is repeated elsewhere",
    "remap_probability": "probability that gray levels are mapped by a random curve before the contour",
    "ct_like_probability": "probability that a training contour gets the faults of a CT's contour",
    "shift_px": "largest random shift along each axis, pixels",
    "bias_probability": "probability of a random coil shading, before the contour is extracted",
    "random_sigma_px": "range of the smoothing of training contours, pixels",
    "random_high_threshold": "range of the upper Canny threshold in training, gray levels; the lower one is half of it",
    "batch_size": "images for each step, of all processes together on several GPUs",
    "num_workers": "processes for augmentation and contours",
    "epoch_length": "steps of an epoch, independent of the number of images",
    "max_epochs": "epochs; the learning rate decays to 0 over all of them",
    "val_interval": "epochs between validations, and between saves of weights and checkpoint",
    "picture_interval": "epochs between pictures",
    "learning_rate": "largest learning rate of AdamW: linear warm-up, then cosine decay",
    "warmup_steps": "steps of the linear warm-up",
    "max_gradient_norm": "gradients of a larger norm are scaled down to it",
    "timestep_draws": "a timestep is the largest of this many uniform draws: 2 trains more on high noise",
    "ema_momentum": "share of the new weights in the moving average, for each step",
    **COMPUTATION,
}

SEGMENTATION_TRAIN = {
    "dataset_dir": "folder of translations with labels, or a list of folders",
    "label_map": "JSON file that joins the classes of CT and MR",
    "output_dir": "folder of weights and checkpoint",
    "resume_from": "checkpoint to resume from",
    "seed": "seed of all randomness",
    "architecture": "unet, or swin_unetr",
    "val_fraction": "share of the patients, rounded down, held out to choose the weights; 0: the last are kept",
    "patient_pattern": "its first group, in the name of a case, is the patient",
    "patients": "patients to train on; null takes all",
    "side": "side of the label map whose values the training labels have: ct or mr",
    **GEOMETRY,
    "spacing_mm": "in-plane pixel size of the network, mm",
    "image_size_px": "height and width of a training image, pixels",
    "min_label_fraction": "slices with a smaller share of labelled pixels are left out; 0 keeps all",
    "intensity_probability": "probability each of bias field, gamma, brightness, noise and blur",
    "remap_probability": "probability of random contrast: gray levels mapped by a random curve",
    "batch_size": "slices for each step",
    "num_workers": "processes for augmentation",
    "max_epochs": "epochs; the learning rate decays to 0 over all of them",
    "val_interval": "epochs between validations, and between checkpoints",
    "learning_rate": "learning rate of AdamW at the start of its cosine decay",
    **COMPUTATION,
    "amp_kwargs": "arguments of torch.autocast, for amp",
}

MEANINGS = {
    "inference": INFERENCE,
    "train": TRAIN,
    "segmentation_train": SEGMENTATION_TRAIN,
}
"""Config of the bundle -> setting -> meaning, with its unit."""

PAGE = """# Settings

Every setting of the bundle's configs, with its default. Written by `contourdiff settings all --markdown`.

Set one with `--settings name=value`, with `--name value` of `python -m monai.bundle run`, or in an overlay. An unknown
name is an error that names the nearest setting. `@name` in a default is another entry of the config; a default with
parentheses is an expression.
"""


class Setting(NamedTuple):
    """A setting of a config: its name, its default as text, and its meaning."""

    name: str
    default: str
    meaning: str


def settings_of(config: str = "inference", bundle: str | Path | None = None) -> list[Setting]:
    """Settings of ``inference``, ``train`` or ``segmentation_train``, in the order of the config.

    Raises ``KeyError`` for a setting of the config without a meaning.
    """
    (path,) = config_files(bundle, base=config)
    meanings = MEANINGS[config]
    settings = []
    section = ""
    for name, value in ConfigParser.load_config_file(path).items():
        if name.startswith(COMMENT):
            section = name
        elif section in SECTIONS and not _is_component(value):
            settings.append(Setting(name, _as_text(value), meanings[name]))
    return settings


def settings_text(config: str, bundle: str | Path | None = None) -> str:
    """Settings of a config for a terminal: ``name = default``, and below it the meaning."""
    lines = []
    for setting in settings_of(config, bundle):
        lines.append(f"{setting.name} = {setting.default}")
        lines.append(f"    {setting.meaning}")
    return "\n".join(lines) + "\n"


def settings_table(config: str, bundle: str | Path | None = None) -> str:
    """Settings of a config as a Markdown table under a heading."""
    rows = []
    for setting in settings_of(config, bundle):
        meaning = html.escape(setting.meaning, quote=False)
        rows.append((f"`{setting.name}`", f"`{setting.default}`", meaning))
    table = markdown_table(("setting", "default", "meaning"), rows)
    return f"## {config}.json\n\n{table}\n"


def settings_page(bundle: str | Path | None = None) -> str:
    """The page of all settings, Markdown."""
    tables = [settings_table(config, bundle) for config in MEANINGS]
    return "\n".join([PAGE, *tables])


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _as_text(value: Any) -> str:
    """A value of a config as a user types it; an expression without its ``$``."""
    if isinstance(value, str):
        return value.removeprefix("$") or '""'
    return json.dumps(value)
