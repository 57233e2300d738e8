# SPDX-License-Identifier: Apache-2.0
"""The paper's experiment as a table: translate, train a segmentation network, test it on real MR, row by row."""

from __future__ import annotations

import logging
from pathlib import Path

from contourdiff_lab.experiment.cells import score_cell, write_labelled_ct, write_translations
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.plan_inputs import read_inputs
from contourdiff_lab.experiment.plan_record import plan_entries, record_plan
from contourdiff_lab.experiment.report import write_report
from contourdiff_lab.experiment.rows import TABLE

logger = logging.getLogger(__name__)


def run_experiment(plan: ExperimentPlan) -> Path:
    """Run what is missing of a plan, write ``table.csv``, ``table.md`` and its pictures, and return ``table.md``.

    Segmentation is learned from the labelled slices of the CT (``<output_dir>/ct``), in ``upper_bound`` from the other
    patients' MR. Every cell (row, architecture, seed of the translation, seed of the training) has a folder with
    weights, and scores and predictions of each group. A finished cell is kept, an interrupted one resumes from its last
    checkpoint. For the cells see [`contourdiff_lab.experiment.plan.ExperimentPlan.cells`][].

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for a plan that contradicts itself or the folder.
    """
    inputs = read_inputs(plan)
    record_plan(Path(plan.output_dir) / "plan.json", plan_entries(plan, inputs))
    write_labelled_ct(plan, inputs)
    cells = plan.cells()
    for number, cell in enumerate(cells, start=1):
        logger.info(
            "cell %d of %d: %s, translation seed %d, %s, seed %d", number, len(cells), *cell
        )
        write_translations(plan, inputs, cell)
        score_cell(plan, inputs, cell)
    return write_report(
        Path(plan.output_dir),
        plan.groups,
        plan.mr_dir,
        first=tuple(TABLE),
        inference={
            "bundle": plan.bundle,
            "overlays": plan.overlays,
            "settings": plan.translation,
        },
    )
