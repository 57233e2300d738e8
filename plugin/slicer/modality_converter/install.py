# SPDX-License-Identifier: Apache-2.0
"""Add the model to a copy of SlicerModalityConverter: ``python install.py MODULE_FOLDER contour_to_mr.onnx``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE = {
    "ContourDiffModel.py": HERE / "ContourDiffModel.py",
    "ContourDiffVolume.py": HERE / "ContourDiffVolume.py",
    "ContourDiffContours.py": HERE.parents[1] / "contourdiff" / "contours.py",
}
"""Modules beside the models of the extension; the contour is the one of the translator."""
MODELS = Path("Resources") / "Models"
CLASSES = Path("ModalityConverterLib") / "ModelsImpl"


def install(module: Path, graph: Path) -> list[Path]:
    """Copy classes and file into the module ``ModalityConverter``, and enter the models in its ``metadata.json``.

    Args:
        module: folder with ``ModalityConverter.py``.
        graph: file of ``contourdiff export --single``.

    Returns the files that were written. Raises ``FileNotFoundError`` if either is absent.
    """
    listed = module / MODELS / "metadata.json"
    for path in (listed, module / CLASSES, graph):
        if not path.exists():
            raise FileNotFoundError(
                "expected the folder of ModalityConverter.py and a file of contourdiff export --single, "
                f"found no {path}; pass others"
            )
    written = []
    for name, source in CODE.items():
        written.append(Path(shutil.copyfile(source, module / CLASSES / name)))
    ours = json.loads((HERE / "metadata.json").read_text(encoding="utf-8"))
    models = json.loads(listed.read_text(encoding="utf-8"))
    for key in ours:
        written.append(Path(shutil.copyfile(graph, module / MODELS / f"{key}.onnx")))
    listed.write_text(json.dumps({**models, **ours}, indent=4) + "\n", encoding="utf-8")
    return [*written, listed]


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, and print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path, help="folder with ModalityConverter.py")
    parser.add_argument("graph", type=Path, help="file of contourdiff export --single")
    try:
        for path in install(**vars(parser.parse_args(arguments))):
            sys.stdout.write(f"{path}\n")
    except OSError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
