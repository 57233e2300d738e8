# SPDX-License-Identifier: Apache-2.0
"""Does a translation follow its contour? Translate held-out MR slices from their own contours and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.metrics import SSIMMetric
from monai.networks.utils import eval_mode
from torch.utils.data import Subset
from tqdm import tqdm

from contourdiff.bundle import read_config
from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.data.nifti_names import case_of
from contourdiff.inference import denoiser_of
from contourdiff.metrics.contour_agreement import contour_agreement
from contourdiff.pictures import show_slice
from contourdiff.sampling import Sampler
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.neighbor_guided import first_condition
from contourdiff.weights import load_weights, sha256_of

MEASURES = ("precision", "recall", "f1", "ssim")
PAIRINGS = ("own", "shuffled")
COLUMNS = tuple(f"{pairing}_{measure}" for pairing in PAIRINGS for measure in MEASURES)
Row = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Held-out slices, and what translates and measures them.

    Args:
        network: called with ``(x, contour and, where items have it, an empty neighbor: (B, C, H, W), timesteps (B,))``.
        dataset: items with ``image`` in [-1, 1] and ``contour``, both ``(1, H, W)``.
        scheduler: noise scheduler of the training.
        contour: ``(1, H, W)`` gray levels in [0, 255] -> contour of that shape, as in the dataset.
        groups: patient or volume of each item, those of a group in a row; ``None``: each item is a group of its own.
        places: case and slice of each item.
        seed: seed of the noise.
        device: where the network is.
        num_refinement_steps: steps of the second network of a cascade.
    """

    network: torch.nn.Module
    dataset: Sequence[Mapping[str, Any]]
    scheduler: Any
    contour: Callable[[np.ndarray], np.ndarray]
    groups: Sequence[int] | None = None
    places: Sequence[tuple[str, int]] = ()
    batch_size: int = 8
    seed: int = 0
    device: torch.device | str = "cpu"
    num_refinement_steps: int = 4

    def translations(self, solver: str = "ddim", num_inference_steps: int = 50) -> list[np.ndarray]:
        """Translate every slice from its own contour: ``(H, W)`` gray levels each."""
        refinement = {"num_refinement_steps": self.num_refinement_steps}
        sampler = Sampler(self.scheduler, solver, num_inference_steps, **refinement)
        denoiser = denoiser_of(self.network, sampler, batch_size=self.batch_size, seed=self.seed)
        images: list[np.ndarray] = []
        bar = tqdm(total=len(self.dataset), desc="translate held-out slices", unit="slice")
        with eval_mode(self.network), bar as progress:
            for start in range(0, len(self.dataset), self.batch_size):
                positions = range(start, min(start + self.batch_size, len(self.dataset)))
                conditions = torch.stack(
                    [first_condition(self.dataset[i]) for i in positions]
                ).float()
                batch = denoiser(
                    conditions.to(self.device), [(f"slice{i}", i, 0, 0) for i in positions]
                )
                images += list(batch.cpu().numpy())
                progress.update(len(positions))
        return images


def held_out_agreement(
    held_out: HeldOut, translations: Sequence[np.ndarray], tolerance_px: float = 2.0
) -> list[Row]:
    """Compare each translation with its slice (``own_*``) and, as a control, with another patient's (``shuffled_*``).

    Precision, recall and f1 compare the translation's contour with the given one, SSIM its gray levels with the real
    slice. The control is the ``partner``: the item at the same relative position in the next group. Each item has a
    row: ``index``, ``partner`` and the ``COLUMNS``. Translations are ``(H, W)`` gray levels in [0, 255]; for the
    tolerance see [`contourdiff.metrics.contour_agreement.contour_agreement`][].

    Raises ``ValueError`` if there are fewer than two groups, or not one group for each item.
    """
    count = len(held_out.dataset)
    partners = _partners(range(count) if held_out.groups is None else held_out.groups, count)
    rows: list[Row] = []
    for index, (translation, partner) in enumerate(zip(translations, partners, strict=True)):
        row: Row = {"index": index, "partner": partner}
        contour = np.asarray(held_out.contour(translation[None]))[0]
        for pairing, position in zip(PAIRINGS, (index, partner), strict=True):
            item = held_out.dataset[position]
            agreement = contour_agreement(contour, np.asarray(item["contour"])[0], tolerance_px)
            values = (*agreement, ssim(translation, gray_levels(item["image"])))
            row |= {
                f"{pairing}_{name}": value for name, value in zip(MEASURES, values, strict=True)
            }
        rows.append(row)
    return rows


def ssim(image: np.ndarray, other: np.ndarray) -> float:
    """SSIM of two slices ``(H, W)`` of gray levels in [0, 255]."""
    metric = SSIMMetric(spatial_dims=2, data_range=255.0, reduction="none")
    return float(
        torch.as_tensor(metric(*(torch.as_tensor(each)[None, None] for each in (image, other))))
    )


def gray_levels(image: Any) -> np.ndarray:
    """An image ``(1, H, W)`` in [-1, 1] -> ``(H, W)`` float32 gray levels in [0, 255]."""
    return to_gray_levels(torch.as_tensor(image)[0].float()).numpy()


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and (population) standard deviation over the rows: ``{"own_f1": {"mean": ..., "std": ...}, ...}``.

    Raises ``ValueError`` if there are no rows.
    """
    if not rows:
        raise ValueError("expected rows of held_out_agreement, got none")
    values = {
        column: np.array([row[column] for row in rows], dtype=np.float64) for column in COLUMNS
    }
    return {
        column: {"mean": float(value.mean()), "std": float(value.std())}
        for column, value in values.items()
    }


def write_agreement(
    rows: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the rows to ``agreement.csv`` and their summary to ``agreement.md``, each whole or not at all.

    ``settings`` is what the numbers depend on (weights, steps, tolerance), listed below the summary.
    """
    summary = summarize(rows)
    write_csv(Path(output_dir) / "agreement.csv", rows)
    lines = [
        f"| {len(rows)} slices, mean ± std | own contour | another's contour |",
        "|---|---|---|",
    ]
    for measure in MEASURES:
        cells = [
            "{mean:.3f} ± {std:.3f}".format(**summary[f"{pairing}_{measure}"])
            for pairing in PAIRINGS
        ]
        lines.append(f"| {' | '.join([measure, *cells])} |")
    better = float(np.mean([row["own_f1"] > row["shuffled_f1"] for row in rows]))
    lines += [
        "",
        f"The f1 with the own contour is the higher one in {better:.1%} of the slices.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in (settings or {}).items()]
    write_text(Path(output_dir) / "agreement.md", "\n".join(lines) + "\n")


def agreement_picture(
    rows: Sequence[Mapping[str, Any]],
    held_out: HeldOut,
    translations: Sequence[np.ndarray],
    path: str | Path,
) -> None:
    """Draw the best, the median and the worst slice by own f1: real MR, contour, translation, translation's contour."""
    ranked = sorted(rows, key=lambda row: -row["own_f1"])
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    figure = Figure(figsize=(7.5, 10.4))
    axes = figure.subplots(4, len(chosen), squeeze=False)
    for column, (name, row) in zip(axes.T, chosen.items(), strict=True):
        item, translation = held_out.dataset[row["index"]], translations[row["index"]]
        show_slice(
            column[0], gray_levels(item["image"]), f"{name}, f1 {row['own_f1']:.2f}\nreal MR"
        )
        show_slice(column[1], 255 * np.asarray(item["contour"])[0], "its contour")
        show_slice(column[2], translation, "translation of that contour")
        show_slice(
            column[3],
            255 * np.asarray(held_out.contour(translation[None]))[0],
            "the translation's contour",
        )
    figure.tight_layout()
    save_figure(figure, path, dpi=100)


def evaluate_bundle(
    train_config: str | Sequence[str],
    weights: str,
    output_dir: str,
    *,
    num_inference_steps: int = 50,
    tolerance_px: float = 2.0,
    max_slices: int | None = None,
    inference: Sequence[str] | None = None,
    translation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, dict[str, float]]:
    """[`summarize`][] trained weights on the validation slices of a training config, and write the agreement.

    Args:
        train_config: the training config, or it and its overlays.
        weights: state dict to evaluate.
        output_dir: folder for ``agreement.csv``, ``agreement.md`` and ``agreement.png``.
        num_inference_steps: DDIM steps.
        tolerance_px: see [`held_out_agreement`][].
        max_slices: translate this many slices, evenly spread over the dataset; ``None`` takes all.
        inference: ``inference.json`` and its overlays, for a network as it translates, such as a cascade; ``None``
            takes the network of the training config, for a network of one resolution.
        translation: settings of ``inference``, such as ``contrast``.
        settings: settings of the config, such as ``dataset_dir``, ``datalist`` and ``file_pattern``.

    Raises ``ValueError`` for a setting that the config does not have, or if all slices are of one volume.
    """
    held_out = held_out_slices(train_config, weights, max_slices, settings, inference, translation)
    translations = held_out.translations(num_inference_steps=num_inference_steps)
    rows = held_out_agreement(held_out, translations, tolerance_px)
    for row, (case, position) in zip(rows, held_out.places, strict=True):
        row |= {"case": case, "slice": position}
    basis = {
        "num_inference_steps": num_inference_steps,
        "tolerance_px": tolerance_px,
        "seed": held_out.seed,
    }
    write_agreement(rows, output_dir, basis | {"weights (SHA-256)": sha256_of(weights)})
    agreement_picture(rows, held_out, translations, Path(output_dir) / "agreement.png")
    return summarize(rows)


def held_out_slices(
    train_config: str | Sequence[str],
    weights: str,
    max_slices: int | None,
    settings: Mapping[str, Any],
    inference: Sequence[str] | None = None,
    translation: Mapping[str, Any] | None = None,
) -> HeldOut:
    """Held-out slices of a training config; arguments and errors as in [`evaluate_bundle`][]."""
    parsed = read_config(train_config, settings).get_parsed_content
    device, slices = parsed("device"), parsed("validate#slices")
    count = len(slices) if max_slices is None else min(max_slices, len(slices))
    chosen = [int(position) for position in np.linspace(0, len(slices) - 1, count).round()]
    index = [slices.index[position] for position in chosen]
    options = {name: parsed(name) for name in ("batch_size", "seed")}
    if inference is None:
        network = load_weights(parsed("network_def"), weights).to(device)
    else:
        own = {**(translation or {}), "ckpt_path": str(weights), "device": device}
        parser = read_config(inference, own)
        network = parser.get_parsed_content("network")
        options["num_refinement_steps"] = parser.get_parsed_content("num_refinement_steps")
    return HeldOut(
        network,
        Subset(slices, chosen),  # type: ignore[arg-type]  # a sequence in all but name
        parsed("scheduler"),
        parsed("contour").transform,
        groups=[volume for volume, _ in index],
        places=[
            (case_of(slices.volumes.data[volume]["image"]), position) for volume, position in index
        ],
        device=device,
        **options,
    )


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
    partners, (first, *following) = [0] * count, members.values()
    for own, others in zip(members.values(), [*following, first], strict=True):
        for rank, position in enumerate(own):
            partners[position] = others[rank * len(others) // len(own)]
    return partners
