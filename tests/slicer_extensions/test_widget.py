# SPDX-License-Identifier: Apache-2.0
"""What the buttons of the module do, with stand-ins for Qt and the scene: no window of Slicer is at hand."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers.paths import REPOSITORY

MODULE = REPOSITORY / "plugin" / "slicer" / "ContourDiff" / "ContourDiff"
OURS = ("ContourDiff", "ContourDiffLib", "ContourDiffLib.Scene")
SLEEP = (
    "import sys, time; print('a: 3 of 9 slices, 0', file=sys.stderr, flush=True); time.sleep(60)"
)


class Part:
    """Any widget: it takes all calls and attributes."""

    def __init__(self, *_: Any) -> None:
        self.logged: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def appendPlainText(self, text: str) -> None:  # noqa: N802
        self.logged.append(text)


class Node(Part):
    """A node of the scene."""

    def __init__(self, name: str, kind: str = "vtkMRMLScalarVolumeNode") -> None:
        super().__init__()
        self.name = name
        self.kind = kind

    def GetName(self) -> str:  # noqa: N802
        return self.name

    def IsA(self, kind: str) -> bool:  # noqa: N802
        return kind == self.kind

    def GetScene(self) -> object:  # noqa: N802
        return self


class Base:
    """Of the classes that a module derives from."""

    def __init__(self, parent: Any = None) -> None:
        self.layout = Part()

    def setup(self) -> None:
        pass


@pytest.fixture
def slicer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The modules that Slicer has, and what they were asked for."""
    slicer = ModuleType("slicer")
    slicer.errors = []
    slicer.layers = {}
    slicer.installed = []
    slicer.consent = True

    @contextmanager
    def try_with_error_display(message: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            slicer.errors.append(str(error))

    def temp_directory() -> str:
        folder = tmp_path / f"temporary{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return str(folder)

    slicer.util = SimpleNamespace(
        tryWithErrorDisplay=try_with_error_display,
        tempDirectory=temp_directory,
        startupEnvironment=lambda: dict(os.environ),
        setSliceViewerLayers=lambda **layers: slicer.layers.update(layers),
        confirmOkCancelDisplay=lambda text: slicer.consent,
        errorDisplay=slicer.errors.append,
        pip_install=slicer.installed.append,
    )
    slicer.mrmlScene = Part()
    slicer.qMRMLNodeComboBox = Part
    tree = Part()
    slicer.vtkMRMLSubjectHierarchyNode = SimpleNamespace(GetSubjectHierarchyNode=lambda scene: tree)
    scripted = ModuleType("slicer.ScriptedLoadableModule")
    for name in ("", "Widget", "Test"):
        setattr(scripted, f"ScriptedLoadableModule{name}", Base)
    widgets = ("QFormLayout", "QComboBox", "QSpinBox", "QCheckBox", "QPushButton")
    qt = SimpleNamespace(**dict.fromkeys((*widgets, "QProgressBar", "QPlainTextEdit"), Part))
    qt.QTimer = Part
    torch = SimpleNamespace(torchInstalled=lambda: True)
    stand_ins = {
        "slicer": slicer,
        "slicer.ScriptedLoadableModule": scripted,
        "qt": qt,
        "ctk": SimpleNamespace(ctkCollapsibleButton=Part),
        "PyTorchUtils": SimpleNamespace(PyTorchUtilsLogic=lambda: torch),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(str(MODULE))
    yield slicer
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.fixture
def module(slicer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a scene that writes and reads nothing."""
    module = importlib.import_module("ContourDiff")
    monkeypatch.setattr(module.Scene, "write_volume", lambda node, path: path.write_text("ct"))
    for kind in ("mr", "fidelity", "segmentation"):
        monkeypatch.setattr(
            module.Scene, f"read_{kind}", lambda path, name, ct: Node(f"{name} of {path.name}")
        )
    return module


@pytest.fixture
def widget(module: ModuleType) -> Any:
    widget = module.ContourDiffWidget()
    widget.setup()
    widget.ct.currentNode = lambda: Node("anna")
    widget.label.currentNode = lambda: Node("label", "vtkMRMLLabelMapVolumeNode")
    widget.contrast.currentText = "T2"
    widget.speed.currentText = "Fast"
    widget.seed.value = 4
    widget.fidelity.checked = True
    return widget


def start(widget: Any, module: ModuleType, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press the button; a Python program takes the place of the command."""
    requests = []

    def command(request: Any, python: str) -> list[str]:
        requests.append(request)
        return [sys.executable, "-c", program]

    monkeypatch.setattr(module.Request, "command", command)
    widget.onButton()
    (widget.request,) = requests


def finish(widget: Any) -> None:
    for _ in range(2000):
        if widget.translation is None:
            return
        widget.onTimer()
        time.sleep(0.02)
    pytest.fail("the translation has not ended")


def test_the_button_translates_what_was_chosen_and_shows_it(
    widget: Any, module: ModuleType, slicer: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "a_fidelity.nii.gz").write_text("map")
    mr = str(tmp_path / "a_mr.nii.gz")
    entry = {"status": "translated", "contrast": None, "mr": mr, "label": "l.nii", "error": None}
    answer = json.dumps({"results": [{**entry, "warnings": ["suspicious"]}]})
    start(widget, module, f"print({answer!r})", monkeypatch)
    assert widget.button.text == "Cancel"
    request = widget.request
    assert (request.contrast, request.speed, request.seed) == ("t2", "fast", 4)
    assert request.ct.name == request.label.name == "anna.nii"
    assert request.fidelity
    finish(widget)
    assert slicer.errors == []
    assert widget.button.text == "Translate"
    names = {name: getattr(node, "name", node) for name, node in slicer.layers.items()}
    assert names == {
        "background": "anna",
        "foreground": "anna T2 synthetic MR of a_mr.nii.gz",
        "foregroundOpacity": 1.0,
        "label": "anna T2 synthetic MR fidelity of a_fidelity.nii.gz",
        "labelOpacity": 0.6,
    }
    assert widget.log.logged == ["suspicious"]
    assert not request.ct.parent.exists()


def test_a_failure_is_told_and_no_volume_is_shown(
    widget: Any, module: ModuleType, slicer: ModuleType, monkeypatch: Any
) -> None:
    start(widget, module, "import sys; sys.exit('error: no CT in HU')", monkeypatch)
    finish(widget)
    assert widget.log.logged == ["error: no CT in HU"]
    assert (slicer.layers, slicer.errors) == ({}, ["no CT in HU"])


def test_the_button_cancels_what_runs(
    widget: Any, module: ModuleType, slicer: ModuleType, monkeypatch: Any
) -> None:
    start(widget, module, SLEEP, monkeypatch)
    while not widget.translation.total:
        widget.onTimer()
        time.sleep(0.02)
    assert widget.bar.value == 3
    widget.onButton()
    finish(widget)
    assert widget.log.logged == ["cancelled"]
    assert slicer.layers == {}


def test_without_a_ct_nothing_starts(widget: Any, slicer: ModuleType) -> None:
    widget.ct.currentNode = lambda: None
    widget.onButton()
    assert widget.translation is None
    assert slicer.errors == ["expected a CT, got none; choose a volume"]


def test_the_package_is_installed_after_a_question_and_keeps_what_slicer_has(
    module: ModuleType, slicer: ModuleType, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module.Requirements, "PACKAGE", "absent-package")
    monkeypatch.setattr(module.Requirements, "missing", lambda: ["monai>=1.5"])
    slicer.consent = False
    with pytest.raises(RuntimeError, match="got no consent"):
        module.install()
    assert slicer.installed == []
    slicer.consent = True
    module.install()
    package, others = slicer.installed
    assert package == ["--no-deps", "absent-package"]
    assert (others[0], others[2:]) == ("--constraint", ["monai>=1.5"])
    assert "numpy==" in Path(others[1]).read_text()
    monkeypatch.delitem(sys.modules, "PyTorchUtils")
    with pytest.raises(RuntimeError, match="expected the extension PyTorch"):
        module.install()
