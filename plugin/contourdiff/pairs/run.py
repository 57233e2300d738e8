# SPDX-License-Identifier: Apache-2.0
"""A run that makes training pairs, stage by stage: shapes, their translations, and what lists them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from contourdiff.data.inputs import LABELS, Pair
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.data.volumes import scaled_voxels
from contourdiff.inference.evaluator import reason_of
from contourdiff.inference.progress import progress_bar
from contourdiff.inference.summary import FailedCasesError
from contourdiff.pairs.folder import (
    case_and_shape,
    ct_file,
    pairs_in,
    shape_name,
    write_datalist,
    write_label_map,
    write_picture,
    write_settings,
)
from contourdiff.pairs.shapes import Shapes, class_values
from contourdiff.translation import translate_path

logger = logging.getLogger(__name__)

WORK = ".shapes"
"""Folder in that of the pairs, of the shapes that are being translated; it is removed in the end."""


def has_finer_contour(number: int) -> bool:
    """Whether a shape gets the finer contour: 1, 2, 5, 6 and so on, in turn with and without an outline.

    Examples:
        >>> [number for number in range(8) if has_finer_contour(number)]
        [1, 2, 5, 6]
    """
    return number % 4 in (1, 2)


@dataclass(frozen=True)
class PairRun:
    """A run, stage by stage; each one skips what is there."""

    shapes: Shapes
    count: int
    """Of the shapes of a CT."""
    folder: Path
    targets: TranslationCases
    """Which knows the names of the pairs."""
    finer_contour: Mapping[str, float]
    """Settings of the contour of every second shape."""
    bone_values: Sequence[int] = ()
    """Of the labels of the shapes."""

    @property
    def work(self) -> Path:
        """Folder of the shapes that are being translated."""
        return self.folder / WORK

    def work_of(self, number: int) -> Path:
        """Folder of the CT of a shape: those that are translated with the same contour share one."""
        return self.work / ("finer" if has_finer_contour(number) else "plain")

    @property
    def settings(self) -> dict[str, Any]:
        """What the pairs of a folder share."""
        classes = None
        if self.shapes.label_map is not None:
            classes = list(self.shapes.label_map.classes.values())
        return {
            "seed": self.shapes.seed,
            **asdict(self.shapes.strength),
            "outline_probability": self.shapes.outline_probability,
            "margin_mm": self.shapes.margin_mm,
            "classes": classes,
            "finer_contour": dict(self.finer_contour),
            "bone_values": list(self.bone_values),
        }

    def missing(self, case: str) -> list[int]:
        """Shapes of a case that lack a pair."""
        missing = []
        for number in range(self.count):
            names = self.targets.names(shape_name(case, number))
            is_kept = all(self.targets.is_kept(name, LABELS) for name in names)
            if not is_kept or not self.ct_of(case, number).is_file():
                missing.append(number)
        return missing

    def ct_of(self, case: str, number: int) -> Path:
        """File of the CT of a shape, once its pairs are complete."""
        return ct_file(self.folder, shape_name(case, number))

    def write_shapes(self, run: Mapping[str, Any], inputs: Mapping[str, Pair]) -> dict[str, str]:
        """Warp the CT that lack pairs, after all of them were checked; why cases failed, by name."""
        unfinished = {}
        for case, pair in inputs.items():
            if self.missing(case):
                unfinished[case] = pair
        cases = TranslationCases(
            run["dataset_dir"], self.work, run["datalist"], series_uid=run.get("series_uid")
        )
        cases.check(unfinished)
        failures = dict(cases.failures)
        classes: dict[int, str] = {}
        items = []
        for item in cases.items:
            try:
                classes |= self._classes_of(item)
                items.append(item)
            except ValueError as error:
                failures[item["case"]] = str(error)
                logger.error("%s: %s", item["case"], error)
        write_settings(self.folder, self.settings, classes)
        shown = bool(run.get("progress", True))
        with (
            progress_bar(len(items), "case", shown, desc="warp: ") as bar,
            _mapping(run.get("workers")) as mapping,
        ):
            reasons = mapping(self._write_shapes_of, items)
            for item, reason in zip(items, reasons, strict=True):
                bar.update()
                if reason is not None:
                    failures[item["case"]] = reason
                    logger.error("%s: warping failed, %s", item["case"], reason)
        return failures

    def _classes_of(self, item: Mapping[str, Any]) -> dict[int, str]:
        """Values of the label of a case, and their names; ``ValueError`` without any, or if the image is no CT."""
        if item["warnings"]:
            raise ValueError(f"expected a CT in Hounsfield units: {'; '.join(item['warnings'])}")
        label_map = self.shapes.label_map
        label = self.shapes.classes_of(scaled_voxels(item["label"]))
        values = class_values(label)
        if not values:
            wanted = "a voxel above 0"
            if label_map is not None:
                wanted = f"one of the classes {list(label_map.classes.values())}"
            raise ValueError(
                f"expected {wanted} in the label of {item['case']}, found none; pass another label or leave the CT out"
            )
        names = item["classes"] or {}
        if label_map is not None:
            names = label_map.classes
        return {value: names.get(value, str(value)) for value in values}

    def _write_shapes_of(self, item: Mapping[str, Any]) -> str | None:
        """Write the shapes of a case that lack a pair; why that failed."""
        paths = {}
        for number in self.missing(item["case"]):
            file = f"{shape_name(item['case'], number)}.nii.gz"
            folder = self.work_of(number)
            if not (folder / file).is_file():
                paths[number] = (folder / file, folder / LABELS / file)
        try:
            if paths:
                self.shapes.write(item["image"], item["label"], paths)
        except Exception as error:  # of a transform, which MONAI wraps
            return reason_of(error)
        return None

    def translate(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Translate the shapes; why some failed, by name."""
        failures = self._translate(self.work_of(0), settings)
        finer = self._translate(self.work_of(1), {**settings, **self.finer_contour})
        return failures | finer

    def _translate(self, work: Path, settings: Mapping[str, Any]) -> dict[str, str]:
        files = sorted(work.glob("*.nii.gz"))
        if not files:
            return {}
        outlined = []
        for path in files:
            case, number = case_and_shape(path)
            if self.shapes.is_outlined(case, number):
                outlined.append(shape_name(case, number))
        try:
            translate_path(
                work,
                self.folder,
                outline=outlined,
                case_suffix=self.targets.case_suffix,
                **settings,
            )
        except FailedCasesError as failure:
            failed = [result for result in failure.results if result.status == "failed"]
            return {result.case: str(result.error) for result in failed}
        return {}

    def finish(self, failures: Mapping[str, str]) -> None:
        """Keep the CT of all pairs in the folder, and write datalist, label map and picture.

        What is left of the shapes is removed if all succeeded.
        """
        pairs = pairs_in(self.folder)
        for pair in pairs:
            ct = self.ct_of(pair.patient, pair.shape)
            made_of = self.work_of(pair.shape) / ct.name
            if made_of.is_file():
                ct.parent.mkdir(exist_ok=True)
                made_of.replace(ct)
        if pairs:
            write_datalist(self.folder, pairs)
            write_picture(self.folder, pairs, self.shapes.model)
        if self.shapes.label_map is not None:
            write_label_map(self.folder, self.shapes.label_map)
        if not failures:
            shutil.rmtree(self.work, ignore_errors=True)
        logger.info("%d pairs are in %s", len(pairs), self.folder.resolve())


@contextmanager
def _mapping(workers: int | None) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, or that of several processes, which share the cores."""
    if workers is None or workers == 1:
        yield map
        return
    threads = max(1, torch.get_num_threads() // workers)
    spawn = get_context("spawn")
    options: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (threads,)}
    try:
        with ProcessPoolExecutor(workers, spawn, **options) as pool:
            yield pool.map
    except BrokenExecutor as error:
        raise OSError(
            "a process that warps CT ended, perhaps for lack of memory; pass fewer workers"
        ) from error
