# SPDX-License-Identifier: Apache-2.0
"""Does a translation follow its contour? Held-out MR slices are translated from their own contours and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.metrics import SSIMMetric
from monai.networks.utils import eval_mode
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from contourdiff.data.atomic import atomic_write, write_csv, write_text
from contourdiff.data.cases import case_of
from contourdiff.metrics.contour_agreement import contour_agreement
from contourdiff.sampling.neighbor_guided import first_condition
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.solvers import ddim
from contourdiff.weights import load_weights, sha256_of

MEASURES = ("precision", "recall", "f1", "ssim")
PAIRINGS = ("own", "shuffled")
COLUMNS = tuple(f"{pairing}_{measure}" for pairing in PAIRINGS for measure in MEASURES)

Row = dict[str, Any]


def held_out_agreement(
    network: nn.Module,
    dataset: Sequence[Mapping[str, Any]],
    alphas_cumprod: torch.Tensor,
    *,
    prediction_type: str,
    contour: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[int] | None = None,
    num_inference_steps: int = 50,
    batch_size: int = 8,
    seed: int = 0,
    tolerance_px: float = 2.0,
    device: torch.device | str = "cpu",
    on_translation: Callable[[int, np.ndarray], None] | None = None,
    solve: Callable[..., torch.Tensor] = ddim,
) -> list[Row]:
    """Translate the contour of each slice and compare the result with that slice and, as a control, with another's.

    ``own_*`` columns compare the translation of item i with item i: its contour with the given contour (precision,
    recall, f1), its gray levels with the real slice (SSIM). ``shuffled_*`` columns compare the same translation with
    its partner, the item at the same relative position in the next group: what agreement comes by chance.

    Args:
        network: called with ``(cat[x, contour] (B, 2, H, W), timesteps (B,))``; an empty neighbor follows the contour
            where items have a ``neighbor``.
        dataset: items with ``image`` in [-1, 1] and ``contour``, both ``(1, H, W)``.
        alphas_cumprod: ``(T,)`` cumulative products of the training schedule.
        prediction_type: what the network was trained to predict, ``"epsilon"`` or ``"v_prediction"``.
        contour: ``(1, H, W)`` gray levels in [0, 255] -> contour of that shape, as the contours of the dataset.
        groups: for each item, the number of its patient or volume; items of a group stand together. Without it each
            item is a group of its own, so that the partner of item i is item i + 1, of the last the first.
        num_inference_steps: steps of the solver.
        batch_size: slices that are translated together; the result does not depend on it.
        seed: seed of the noise.
        tolerance_px: see :func:`contourdiff.metrics.contour_agreement.contour_agreement`.
        device: where the network is.
        on_translation: called with each item's position and translation, ``(H, W)`` gray levels in [0, 255].
        solve: :func:`contourdiff.sampling.solvers.ddim` or :func:`contourdiff.sampling.solvers.dpm_solver`.

    Returns:
        One row for each item: ``index``, ``partner`` and the columns named in ``COLUMNS``.

    Raises:
        ValueError: if there are fewer than two groups, or not one group for each item.
    """
    partners = _partners(list(range(len(dataset))) if groups is None else groups, len(dataset))
    ssim = SSIMMetric(spatial_dims=2, data_range=255.0, reduction="none")
    rows: list[Row] = []
    with eval_mode(network), tqdm(total=len(dataset), desc="translate held-out slices", unit="slice") as progress:
        for start in range(0, len(dataset), batch_size):
            positions = range(start, min(start + batch_size, len(dataset)))
            contours = torch.stack([first_condition(dataset[i]) for i in positions]).float().to(device)
            keys = [CandidateKey(seed, f"slice{i}", i, 0, 0) for i in positions]
            translations = solve(
                lambda x, t, given=contours: network(torch.cat([x, given], dim=1), t),  # type: ignore[misc]
                NoiseStream(keys, (1, *contours.shape[2:]), device).draw(),
                alphas_cumprod=alphas_cumprod,
                num_inference_steps=num_inference_steps,
                prediction_type=prediction_type,
            )
            for i, translation in zip(positions, _gray_levels(translations), strict=True):
                row: Row = {"index": i, "partner": partners[i]}
                for pairing, position in zip(PAIRINGS, (i, partners[i]), strict=True):
                    row |= _compare(translation, dataset[position], contour, ssim, tolerance_px, pairing)
                rows.append(row)
                if on_translation is not None:
                    on_translation(i, translation[0].numpy())
            progress.update(len(positions))
    return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and (population) standard deviation over the rows: ``{"own_f1": {"mean": ..., "std": ...}, ...}``.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected rows of held_out_agreement, got none")
    values = {column: np.array([row[column] for row in rows], dtype=np.float64) for column in COLUMNS}
    return {column: {"mean": float(value.mean()), "std": float(value.std())} for column, value in values.items()}


def write_agreement(
    rows: Sequence[Mapping[str, Any]], output_dir: str | Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``agreement.csv`` (a line for each slice) and ``agreement.md`` (the summary), each whole or not at all.

    Args:
        rows: what :func:`held_out_agreement` returned.
        output_dir: folder to write to, made if need be.
        settings: what the numbers depend on (weights, steps, tolerance), listed below the summary.
    """
    summary = summarize(rows)
    write_csv(Path(output_dir) / "agreement.csv", rows)
    lines = [f"| {len(rows)} slices, mean ± std | own contour | another's contour |", "|---|---|---|"]
    for measure in MEASURES:
        cells = [summary[f"{pairing}_{measure}"] for pairing in PAIRINGS]
        lines.append(f"| {measure} | " + " | ".join(f"{cell['mean']:.3f} ± {cell['std']:.3f}" for cell in cells) + " |")
    better = float(np.mean([row["own_f1"] > row["shuffled_f1"] for row in rows]))
    lines += ["", f"The f1 with the own contour is the higher one in {better:.1%} of the slices.", ""]
    lines += [f"- {name}: {value}" for name, value in (settings or {}).items()]
    write_text(Path(output_dir) / "agreement.md", "\n".join(lines) + "\n")


def agreement_picture(
    rows: Sequence[Mapping[str, Any]],
    dataset: Sequence[Mapping[str, Any]],
    translations: Mapping[int, np.ndarray],
    contour: Callable[[np.ndarray], np.ndarray],
    path: str | Path,
) -> None:
    """Draw the best, the median and the worst slice by own f1: real MR, contour, translation, translation's contour.

    Args:
        rows: what :func:`held_out_agreement` returned.
        dataset: the dataset that it was called with.
        translations: position -> ``(H, W)`` gray levels, as ``on_translation`` received them.
        contour: the contour that it was called with.
        path: PNG file to write, whole or not at all.
    """
    ranked = sorted(rows, key=lambda row: -row["own_f1"])
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    figure = Figure(figsize=(7.5, 10.4))
    axes = figure.subplots(4, len(chosen), squeeze=False)
    for column, (name, row) in enumerate(chosen.items()):
        item, translation = dataset[row["index"]], translations[row["index"]]
        pictures = {
            "real MR": _gray_levels(torch.as_tensor(item["image"]))[0].numpy(),
            "its contour": 255 * np.asarray(item["contour"])[0],
            "translation of that contour": translation,
            "the translation's contour": 255 * np.asarray(contour(translation[None]))[0],
        }
        for axis, (title, picture) in zip(axes[:, column], pictures.items(), strict=True):
            axis.imshow(np.asarray(picture).T, cmap="gray", origin="lower", vmin=0, vmax=255)
            axis.set_axis_off()
            axis.set_title(title, fontsize=8, loc="left")
        axes[0, column].set_title(f"{name}, f1 {row['own_f1']:.2f}\nreal MR", fontsize=8, loc="left")
    figure.tight_layout()
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=100, format="png")


def evaluate_bundle(
    train_config: str | Sequence[str],
    weights: str,
    output_dir: str,
    *,
    num_inference_steps: int = 50,
    tolerance_px: float = 2.0,
    max_slices: int | None = None,
    **overrides: Any,
) -> dict[str, dict[str, float]]:
    """Agreement of trained weights on the validation slices of a training config, written to ``output_dir``.

    Network, noise schedule, contour, ``batch_size``, ``seed`` and ``device`` are those of the config.

    Args:
        train_config: the training config, or it and its overlays.
        weights: state dict to evaluate.
        output_dir: folder for ``agreement.csv``, ``agreement.md`` and ``agreement.png``.
        num_inference_steps: DDIM steps.
        tolerance_px: see :func:`contourdiff.metrics.contour_agreement.contour_agreement`.
        max_slices: translate this many slices, evenly spread over the dataset; ``None`` takes all.
        overrides: entries of the config to replace, such as ``dataset_dir``, ``datalist`` and ``file_pattern``.

    Returns:
        What :func:`summarize` returns.

    Raises:
        ValueError: for an override that the config does not have, or if all slices are of one volume.
    """
    held_out = held_out_slices(train_config, weights, max_slices, overrides)
    translations: dict[int, np.ndarray] = {}
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "tolerance_px": tolerance_px}
    settings["seed"] = held_out.seed
    rows = held_out_agreement(**held_out.arguments, on_translation=translations.__setitem__, **settings)
    for row, (case, position) in zip(rows, held_out.places, strict=True):
        row |= {"case": case, "slice": position}
    write_agreement(rows, output_dir, settings | {"weights (SHA-256)": sha256_of(weights)})
    dataset, contour = held_out.arguments["dataset"], held_out.arguments["contour"]
    agreement_picture(rows, dataset, translations, contour, Path(output_dir) / "agreement.png")
    return summarize(rows)


class HeldOut(NamedTuple):
    """Held-out slices of a training config and the network to translate them: what :func:`held_out_agreement` wants.

    ``arguments`` are its keyword arguments; ``places`` the case and slice of each item; ``seed`` the config's.
    """

    arguments: dict[str, Any]
    places: list[tuple[str, int]]
    seed: int


def held_out_slices(
    train_config: str | Sequence[str], weights: str, max_slices: int | None, overrides: Mapping[str, Any]
) -> HeldOut:
    """Load what :func:`evaluate_bundle` evaluates; arguments and errors are told there."""
    parser = parsed_config(train_config, overrides)
    device, scheduler = parser.get_parsed_content("device"), parser.get_parsed_content("scheduler")
    network = load_weights(parser.get_parsed_content("network_def"), weights).to(device)
    slices = parser.get_parsed_content("validate#dataset")
    count = len(slices) if max_slices is None else min(max_slices, len(slices))
    chosen = [int(position) for position in np.linspace(0, len(slices) - 1, count).round()]
    index = [slices.index[position] for position in chosen]
    arguments = {
        "network": network,
        "dataset": Subset(slices, chosen),
        "alphas_cumprod": scheduler.alphas_cumprod,
        "prediction_type": str(scheduler.prediction_type),
        "contour": parser.get_parsed_content("contour").transform,
        "groups": [volume for volume, _ in index],
        "batch_size": parser.get_parsed_content("batch_size"),
        "device": device,
    }
    places = [(case_of(slices.volumes.data[volume]["image"]), position) for volume, position in index]
    return HeldOut(arguments, places, parser.get_parsed_content("seed"))


def parsed_config(train_config: str | Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Config of the given files with knobs changed; a knob that they do not have is refused."""
    parser = ConfigParser()
    parser.read_config(train_config)
    known = set(parser.get())
    unknown = [name for name in overrides if name.split("::")[0].split("#")[0] not in known]
    if unknown:
        raise ValueError(f"expected overrides of entries of {train_config}, which has no {unknown}; check the spelling")
    parser.update(dict(overrides))
    return parser


def _partners(groups: Sequence[int], count: int) -> list[int]:
    """For each item the item at the same relative position in the next group, of the last group in the first."""
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    if len(groups) != count or len(members) < 2:
        raise ValueError(
            f"expected a group for each of {count} slices and two groups or more to shuffle between, "
            f"got {len(groups)} in {len(members)} groups; hold out more patients"
        )
    names = list(members)
    partners = [0] * count
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        own, others = members[name], members[following]
        for rank, position in enumerate(own):
            partners[position] = others[rank * len(others) // len(own)]
    return partners


def _compare(
    translation: torch.Tensor,
    item: Mapping[str, Any],
    contour: Callable[[np.ndarray], np.ndarray],
    ssim: SSIMMetric,
    tolerance_px: float,
    pairing: str,
) -> dict[str, float]:
    """Columns of one pairing: ``translation (1, H, W)`` in gray levels against ``item``."""
    found, given = np.asarray(contour(translation.numpy())), np.asarray(item["contour"])
    agreement = contour_agreement(found[0], given[0], tolerance_px)
    real = _gray_levels(torch.as_tensor(item["image"]))
    similarity = float(torch.as_tensor(ssim(translation[None], real[None])))
    return {f"{pairing}_{name}": value for name, value in zip(MEASURES, (*agreement, similarity), strict=True)}


def _gray_levels(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 255], on the CPU."""
    return (x.detach().float().cpu() + 1) * 127.5
