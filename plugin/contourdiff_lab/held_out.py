# SPDX-License-Identifier: Apache-2.0
"""Does a translation follow its contour? Translate held-out MR slices from their own contours and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import SSIMMetric
from monai.networks.utils import eval_mode
from torch.utils.data import Subset
from tqdm import tqdm

from contourdiff.bundle import read_config
from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.data.nifti_names import case_of
from contourdiff.inference.acceleration import fastest_acceleration
from contourdiff.inference.execution import Execution
from contourdiff.pictures import image_grid
from contourdiff.sampling import Sampler
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.neighbor_guided import first_condition
from contourdiff.sampling.noise import CandidateNoise, CandidatePlace
from contourdiff.tables import markdown_table
from contourdiff.weights import load_weights, sha256_of
from contourdiff_lab.metrics.contour_agreement import contour_agreement

MEASURES = ("precision", "recall", "f1", "ssim")
COLUMNS = (
    *(f"own_{measure}" for measure in MEASURES),
    *(f"shuffled_{measure}" for measure in MEASURES),
)

TEXTURE_CYCLES = 0.2  # a pixel


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
        num_inference_steps: of the first network.
        num_refinement_steps: steps of the second network of a cascade.
        acceleration: as of [`contourdiff.inference.acceleration.Accelerator`][].
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
    num_inference_steps: int = 50
    num_refinement_steps: int = 4
    acceleration: str | None = None

    def translations(
        self,
        solver: str = "ddim",
        num_inference_steps: int | None = None,
        num_refinement_steps: int | None = None,
    ) -> list[np.ndarray]:
        """Translate every slice from its own contour: ``(H, W)`` gray levels each.

        Steps are those of the translation unless given.
        """
        sampler = Sampler(
            self.scheduler,
            solver,
            num_inference_steps or self.num_inference_steps,
            num_refinement_steps=num_refinement_steps or self.num_refinement_steps,
        )
        execution = Execution(batch_size=self.batch_size, acceleration=self.acceleration)
        denoiser = execution.denoiser(self.network, sampler)
        noise = CandidateNoise(self.seed)
        count = len(self.dataset)
        images: list[np.ndarray] = []
        with (
            eval_mode(self.network),
            tqdm(total=count, desc="translate held-out slices", unit="slice") as progress,
        ):
            for start in range(0, count, self.batch_size):
                positions = range(start, min(start + self.batch_size, count))
                conditions = []
                places = []
                for position in positions:
                    conditions.append(first_condition(self.dataset[position]))
                    places.append(CandidatePlace(f"slice{position}", position, 0, 0))
                batch = torch.stack(conditions).float()
                translated = denoiser(batch.to(self.device), places, noise)
                images += list(translated.cpu().numpy())
                progress.update(len(positions))
        return images


def held_out_agreement(
    held_out: HeldOut, translations: Sequence[np.ndarray], tolerance_px: float = 2.0
) -> list[dict[str, Any]]:
    """Compare each translation with its slice (``own_*``) and, as a control, with another patient's (``shuffled_*``).

    Precision, recall and f1 compare the translation's contour with the given one, SSIM its gray levels with the real
    slice. The control is the ``partner``: the item at the same relative position in the next group. Each item has a
    row: ``index``, ``partner`` and the ``COLUMNS``. Translations are ``(H, W)`` gray levels in [0, 255]; for the
    tolerance see [`contourdiff_lab.metrics.contour_agreement.contour_agreement`][].

    Raises ``ValueError`` if there are fewer than two groups, or not one group for each item.
    """
    count = len(held_out.dataset)
    groups = held_out.groups
    partners = _partners(range(count) if groups is None else groups, count)
    rows = []
    for index, (translation, partner) in enumerate(zip(translations, partners, strict=True)):
        contour = np.asarray(held_out.contour(translation[None]))[0]
        row: dict[str, Any] = {"index": index, "partner": partner}
        for pairing, position in (("own", index), ("shuffled", partner)):
            item = held_out.dataset[position]
            agreement = contour_agreement(contour, np.asarray(item["contour"])[0], tolerance_px)
            row[f"{pairing}_precision"] = agreement.precision
            row[f"{pairing}_recall"] = agreement.recall
            row[f"{pairing}_f1"] = agreement.f1
            row[f"{pairing}_ssim"] = ssim(translation, gray_levels(item["image"]))
        rows.append(row)
    return rows


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """SSIM of two slices ``(H, W)`` of gray levels in [0, 255]."""
    metric = SSIMMetric(spatial_dims=2, data_range=255.0, reduction="none")
    batch = torch.as_tensor(image)[None, None]
    reference_batch = torch.as_tensor(reference)[None, None]
    return float(torch.as_tensor(metric(batch, reference_batch)))


def texture_db(image: np.ndarray) -> float:
    """Mean power of the frequencies above 0.2 cycles a pixel of a slice ``(H, W)``, in decibel; noise and texture."""
    spectrum = np.fft.fft2(image.astype(np.float64), norm="ortho")
    rows = np.fft.fftfreq(image.shape[0])
    columns = np.fft.fftfreq(image.shape[1])
    frequency = np.hypot(rows[:, None], columns)
    power = np.abs(spectrum[frequency > TEXTURE_CYCLES]) ** 2
    return float(10 * np.log10(power.mean() + 1e-12))


def gray_levels(image: Any) -> np.ndarray:
    """An image ``(1, H, W)`` in [-1, 1] -> ``(H, W)`` float32 gray levels in [0, 255]."""
    return to_gray_levels(torch.as_tensor(image)[0].float()).numpy()


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and (population) standard deviation over the rows: ``{"own_f1": {"mean": ..., "std": ...}, ...}``.

    Raises ``ValueError`` if there are no rows.
    """
    if not rows:
        raise ValueError("expected rows of held_out_agreement, got none")
    summary = {}
    for column in COLUMNS:
        values = np.array([row[column] for row in rows], dtype=np.float64)
        summary[column] = {"mean": float(values.mean()), "std": float(values.std())}
    return summary


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
    header = [f"{len(rows)} slices, mean ± std", "own contour", "another's contour"]
    cells = []
    for measure in MEASURES:
        own = summary[f"own_{measure}"]
        shuffled = summary[f"shuffled_{measure}"]
        cells.append([measure, _mean_and_std(own), _mean_and_std(shuffled)])
    better = float(np.mean([row["own_f1"] > row["shuffled_f1"] for row in rows]))
    lines = [
        markdown_table(header, cells),
        "",
        f"The f1 with the own contour is the higher one in {better:.1%} of the slices.",
        "",
    ]
    for name, value in (settings or {}).items():
        lines.append(f"- {name}: {value}")
    write_text(Path(output_dir) / "agreement.md", "\n".join(lines) + "\n")


def _mean_and_std(figures: Mapping[str, float]) -> str:
    return f"{figures['mean']:.3f} ± {figures['std']:.3f}"


def agreement_picture(
    rows: Sequence[Mapping[str, Any]],
    held_out: HeldOut,
    translations: Sequence[np.ndarray],
    path: str | Path,
) -> None:
    """Draw the best, the median and the worst slice by own f1: real MR, contour, translation, translation's contour."""
    ranked = sorted(rows, key=lambda row: -row["own_f1"])
    shown = {
        "best": ranked[0],
        "median": ranked[len(ranked) // 2],
        "worst": ranked[-1],
    }
    titles = []
    columns = []
    for name, row in shown.items():
        item = held_out.dataset[row["index"]]
        image = translations[row["index"]]
        titles.append(f"{name}, f1 {row['own_f1']:.2f}\nreal MR")
        columns.append(
            [
                gray_levels(item["image"]),
                255 * np.asarray(item["contour"])[0],
                image,
                255 * np.asarray(held_out.contour(image[None]))[0],
            ]
        )
    figure = image_grid(
        list(zip(*columns, strict=True)),
        [
            titles,
            ["its contour"] * 3,
            ["translation of that contour"] * 3,
            ["the translation's contour"] * 3,
        ],
        cell_inches=(2.5, 2.6),
    )
    save_figure(figure, path, dpi=100)


def evaluate_bundle(
    train_config: str | Sequence[str],
    weights: str,
    output_dir: str,
    *,
    num_inference_steps: int | None = None,
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
        num_inference_steps: DDIM steps; ``None`` takes those of ``inference``, or 50 without it.
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
        row["case"] = case
        row["slice"] = position
    basis = {
        "num_inference_steps": num_inference_steps or held_out.num_inference_steps,
        "tolerance_px": tolerance_px,
        "seed": held_out.seed,
        "weights (SHA-256)": sha256_of(weights),
    }
    write_agreement(rows, output_dir, basis)
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
    device = parsed("device")
    slices = parsed("validate#slices")
    count = len(slices) if max_slices is None else min(max_slices, len(slices))
    positions = np.linspace(0, len(slices) - 1, count).round().astype(int).tolist()
    groups = []
    places = []
    for position in positions:
        volume, slice_index = slices.index[position]
        groups.append(volume)
        image = slices.volumes.data[volume]["image"]
        places.append((case_of(image), slice_index))
    if inference is None:
        network = load_weights(parsed("network_def"), weights).to(device)
        steps = {}
    else:
        overrides = {**(translation or {}), "ckpt_path": str(weights), "device": device}
        translator = read_config(inference, overrides)
        network = translator.get_parsed_content("network")
        names = ("num_inference_steps", "num_refinement_steps")
        steps = {name: translator.get_parsed_content(name) for name in names}
    return HeldOut(
        network=network,
        dataset=Subset(slices, positions),  # type: ignore[arg-type]  # a sequence in all but name
        scheduler=parsed("scheduler"),
        contour=parsed("contour").transform,
        groups=groups,
        places=places,
        batch_size=parsed("batch_size"),
        seed=parsed("seed"),
        device=device,
        **steps,
        acceleration=fastest_acceleration(device),
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
    in_order = list(members.values())
    partners = [0] * count
    for number, positions in enumerate(in_order):
        following = in_order[(number + 1) % len(in_order)]
        for rank, position in enumerate(positions):
            partners[position] = following[rank * len(following) // len(positions)]
    return partners
