# SPDX-License-Identifier: Apache-2.0
"""Hostile weights, settings, lists, names, disks and interruptions: one clear line, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.bundle import inference_parser
from contourdiff.cli import main
from contourdiff.config_checks import CHECKS, check_values, plain_errors
from contourdiff.data.checks import check_output_dir
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.translation import translate_path
from contourdiff.weights import load_weights
from helpers.networks import TINY_NETWORK, make_tiny_network
from helpers.paths import CONFIGS
from helpers.runs import QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import OBLIQUE, ball_ct, make_dataset, write_nifti

SHORT: dict[str, Any] = {
    "num_inference_steps": 1,
    "candidates": 1,
    "max_rounds": 1,
    "progress": False,
}
CT = ball_ct((4, 20, 18))


# Weights


class Code:
    """Makes a folder when it is unpickled by a loader that lets it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def damaged(change: Callable[[dict[str, torch.Tensor], Path], object]) -> Callable[[Path], object]:
    return lambda path: change(make_tiny_network().state_dict(), path)


def cut(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])


def nan_in(state: dict[str, torch.Tensor], path: Path) -> None:
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, path)


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "expected weights at .*, found none"),
    "a folder": (lambda path: path.mkdir(), "expected weights at .*, found none"),
    "empty": (lambda path: path.touch(), "undamaged file of tensors"),
    "text": (lambda path: path.write_text("weights"), "undamaged file of tensors"),
    "truncated": (damaged(cut), "undamaged file of tensors"),
    "code": (
        lambda path: torch.save({"a": Code(path.parent / "ran")}, path),
        "undamaged file of tensors",
    ),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "expected a state dict of tensors"),
    "numbers": (lambda path: torch.save({"a": 5}, path), "expected a state dict of tensors"),
    "other keys": (
        damaged(lambda s, p: torch.save({f"x.{k}": v for k, v in s.items()}, p)),
        "of another network",
    ),
    "other shapes": (
        damaged(lambda s, p: torch.save({k: v[..., :1] for k, v in s.items()}, p)),
        "of another shape",
    ),
    "NaN": (damaged(nan_in), "expected finite weights in .*, got NaN or infinity in"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_weights_are_refused_and_run_no_code(name: str, tmp_path: Path) -> None:
    make, message = WEIGHTS[name]
    make(tmp_path / "w.pt")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_weights(make_tiny_network(), tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


# Settings

INVALID: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("seed", "margin_px", "num_workers"), (-1, 1.5, "abc", True, None)),
    **dict.fromkeys(
        ("num_inference_steps", "num_refinement_steps", "candidates", "max_rounds"),
        (0, 1.5, "a", None),
    ),
    "batch_size": (0, -1, "a", 2.5),
    **dict.fromkeys(
        ("min_object_mm2", "max_hole_mm2", "noise_length_mm", "contour_sigma_px"),
        (-1, "a", float("nan")),
    ),
    **dict.fromkeys(("contour_low_threshold", "contour_high_threshold"), (-1, 256, "a", None)),
    **dict.fromkeys(("eta", "fidelity_limit"), (-0.1, 1.1, "a", None)),
    **dict.fromkeys(
        ("mean_threshold", "distance_threshold", "fidelity_tolerance_mm"),
        (-1, float("nan"), "a", None),
    ),
    **dict.fromkeys(
        (
            "overwrite",
            "unconditional",
            "save_fidelity_map",
            "save_uncertainty_map",
            "save_dicom",
        ),
        (1, "yes", None),
    ),
    **dict.fromkeys(("amp", "retain_heap", "progress", "report"), ("no", 0, None)),
    "refinement_guidance": (-0.1, 101, "a", None),
    "slice_axis": (3, -1, "x"),
    "spacing_mm": (0, -1.1, float("inf"), "1 mm", [1, 1], None),
    "filter_classes": (1, 50, "4"),
    "reference_flicker": (-1, "a"),
    "window_hu": ([300, -200], [0, 0], [1], "a", [-200, "a"], None, 5),
    "axcodes": ("RAX", "RRS", "RA", "ras", 5, None, ["R", "A", "S"]),
    "case_suffix": ("/../../x", "a/b", "a\nb", 5, None),
    "contrast": (5, [1], {"t1": 1}),
    "outline": (1, "anna", [5], None),
    "bone_values": (1, "vertebra", [0], [1.5], None),
}
OWN_CHECKS: dict[str, tuple[Any, ...]] = {
    "solver": ("euler", 5, None),
    "acceleration": ("fast", 5),
    "noise_gray_levels": (-0.1, 256, "a", None),
    "output_dtype": ("float99", 5, None),
    "output_ext": (".dcm", "nii", None),
    "contrast": ("t3", "t1,t3"),
    "network_def": (
        {"_target_": "contourdiff.networks.NoNetwork"},
        {**TINY_NETWORK, "patch_sice": 2},
    ),
    "device": ("$torch.devise('cpu')", "$1/0", "$(", "abacus", "mps"),
    "candidates": ("$undefined",),
}


def test_every_setting_is_tried() -> None:
    assert set(CHECKS) <= {*INVALID, *OWN_CHECKS}
    names = list(json.loads((CONFIGS / "inference.json").read_text()))
    start = names.index("// settings") + 1
    section = names[
        start : next(at for at in range(start, len(names)) if names[at].startswith("//"))
    ]
    assert set(section) - {*INVALID, *OWN_CHECKS} == {"contrasts"}


def refuse(name: str, value: Any) -> None:
    """Check a setting as a run does, by its name or as its component is built."""
    if name in CHECKS:
        check_values({name: value})
        return
    parser = inference_parser("ct", "mr", **{name: value})
    with plain_errors():
        parser.get_parsed_content("inferer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in INVALID.items() for value in values]
)
def test_a_value_out_of_range_or_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^expected {name} to be .*, got .*; pass another"
    ) as error:
        refuse(name, value)
    assert "\n" not in str(error.value)


def test_the_values_of_all_configs_are_in_range() -> None:
    for path in CONFIGS.glob("*.json"):
        config = json.loads(path.read_text())
        if path.stem.startswith(("train", "segmentation", "evaluate")):
            continue
        check_values(
            {k: v for k, v in config.items() if k in CHECKS and not str(v).startswith(("$", "@"))}
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, INVALID[name][0])
            for name in ("spacing_mm", "case_suffix", "window_hu", "contrast")
        ),
        *((name, value) for name, values in OWN_CHECKS.items() for value in values),
        ("spacing_m", 1.1),
    ],
)
def test_a_bad_setting_stops_the_run_before_any_work(
    name: str, value: Any, tiny_weights: Path, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", CT, OBLIQUE)
    options = {"contrasts": ["t1", "t2"]} if name == "contrast" else {}
    with pytest.raises((ValueError, ImportError)) as error:
        run_tiny_inference(
            tmp_path / "ct", tmp_path / "mr", tiny_weights, **{**SHORT, **options, name: value}
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mr").exists() or not list((tmp_path / "mr").iterdir())


def test_a_broken_overlay_is_named(tiny_weights: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "ct", ("a",))
    (tmp_path / "o.json").write_text('{"seed": 1,')
    with pytest.raises(ValueError, match=r"o\.json"):
        run_tiny_inference(
            tmp_path / "ct",
            tmp_path / "mr",
            tiny_weights,
            overlays=("single", str(tmp_path / "o.json")),
        )


# Lists


LISTS: dict[str, tuple[str, str]] = {
    "broken JSON": ('{"testing": [', "expected JSON in the datalist"),
    "not UTF-8": ("\udcff", "expected JSON in the datalist"),
    "nested": ("[" * 100_000, "expected JSON in the datalist"),
    "a list": ("[]", "expected a JSON object with lists of cases"),
    "no section": ('{"training": []}', "expected the list 'testing'"),
    "empty": ('{"testing": []}', "expected volumes"),
    "no list": ('{"testing": "a.nii.gz"}', "expected a list of cases, got str"),
    "a number": (
        '{"testing": [5]}',
        'expected {"image": path, "label": path} for each case, got 5',
    ),
    "no image": ('{"testing": [{"label": "a.nii.gz"}]}', 'expected {"image": path'),
    "null": ('{"testing": [null]}', 'expected {"image": path'),
    "a label of numbers": (
        '{"testing": [{"image": "a.nii.gz", "label": 5}]}',
        'expected {"image": path',
    ),
    "twice": (
        '{"testing": ["a.nii.gz", "sub/../a.nii.gz"]}',
        r"expected one file a case, got twice: \['a'\]",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_bad_datalist_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    text, message = LISTS[name]
    write_nifti(tmp_path / "a.nii.gz", CT, OBLIQUE)
    (tmp_path / "list.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        TranslationCases(tmp_path, tmp_path / "mr", "list.json").check()
    with pytest.raises(FileNotFoundError, match="expected a datalist at"):
        TranslationCases(tmp_path, tmp_path / "mr", "no.json").check()


def test_entries_of_a_list_may_lie_anywhere_and_each_bad_one_is_named(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    write_nifti(inside / "a.nii.gz", CT, OBLIQUE)
    write_nifti(outside / "b.nii.gz", CT, OBLIQUE)
    write_nifti(outside / "c.nii.gz", CT, OBLIQUE)
    entries = [
        "a.nii.gz",
        str(outside / "b.nii.gz"),
        "../out/c.nii.gz",
        "gone.nii.gz",
        "..",
        "notes.txt",
        "/dev/zero",
    ]
    cases = TranslationCases(
        inside, tmp_path / "mr", [*entries, {"image": "d.nii.gz", "label": "/dev/stdin"}]
    )
    (inside / "notes.txt").touch()
    write_nifti(inside / "d.nii.gz", CT, OBLIQUE)
    cases.check()
    assert [Path(item["image"]).name for item in cases.items] == [
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
    ]
    assert cases.failures.keys() == {"gone", "..", "notes.txt", "zero", "d"}
    assert all(
        reason.startswith("expected ") and "got" in reason for reason in cases.failures.values()
    )


# Names


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["$open('ran', 'w').close()", "a#1", "@seed", "%x", "x@##y", "-rf", "UP"]
)
def test_a_name_is_a_name_and_never_an_expression(
    case: str, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    end = ".NII.GZ" if case == "UP" else ".nii.gz"
    write_nifti(Path("tmp.nii.gz"), CT, OBLIQUE).rename(f"{case}{end}")
    options = {
        "overlays": ["single"],
        "network_def": TINY_NETWORK,
        "min_object_mm2": 100.0,
        **SHORT,
        **QUICK_SETTINGS,
    }
    translation = translate_path(f"{case}{end}", "mr", weights=tiny_weights, **options)[0]
    assert (translation.case, translation.mr) == (case, Path("mr") / f"{case}_mr.nii.gz")
    assert translation.mr.is_file()
    assert {path.name for path in tmp_path.iterdir()} == {f"{case}{end}", "mr"}


@pytest.mark.slow
def test_a_file_in_upper_case_is_written_as_it_was_asked_for(
    tiny_weights: Path, tmp_path: Path
) -> None:
    source = write_nifti(tmp_path / "a.nii.gz", CT, OBLIQUE)
    options = {
        "overlays": ["single"],
        "network_def": TINY_NETWORK,
        "min_object_mm2": 100.0,
        **SHORT,
        **QUICK_SETTINGS,
    }
    translated = translate_path(source, tmp_path / "MR.NII.GZ", weights=tiny_weights, **options)[0]
    assert translated.mr == tmp_path / "MR.NII.GZ"
    assert nib.load(translated.mr).shape == CT.shape
    other = write_nifti(tmp_path / "b.nii.gz", CT, OBLIQUE)
    with pytest.raises(ValueError, match=r"expected no file at .*MR\.NII\.GZ, found .*MR\.json"):
        translate_path(other, tmp_path / "MR.NII.GZ", weights=tiny_weights, **options)


# Disks


def test_outputs_go_to_a_folder_of_their_own_that_can_be_written(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", CT, OBLIQUE)
    with pytest.raises(ValueError, match="expected an output folder other than the input"):
        TranslationCases(tmp_path / "ct", tmp_path / "ct").check()
    for path in (
        tmp_path / "ct" / "a.nii.gz",
        tmp_path / "ct" / "a.nii.gz" / "below",
        Path("/proc/contourdiff"),
    ):
        with pytest.raises(
            ValueError, match=f"expected a folder to write to at {path}, got: .*pass another"
        ):
            check_output_dir(path)


PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from helpers.networks import TINY_NETWORK
from contourdiff.cli import main
from contourdiff.inference.inferer import VolumeInferer
{before}
main(["translate", "ct", "mr", "--overlays", "single", "--weights", {weights!r}, "--settings", "num_inference_steps=1",
      "candidates=1", "max_rounds=1", "min_object_mm2=100", "filter_classes=3", "network_def={network}"])
"""


def program(before: str, weights: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with some code before it, on the cases ``a`` (large) and ``b`` (small)."""
    noise = np.random.default_rng(0).normal(0, 30, (6, 60, 56))
    write_nifti(
        folder / "ct" / "a.nii.gz", (ball_ct((6, 60, 56)) + noise).astype(np.int16), OBLIQUE
    )
    write_nifti(folder / "ct" / "b.nii.gz", CT, OBLIQUE)
    network = json.dumps(TINY_NETWORK).replace('"', '\\"')
    path = [str(Path(__file__).parents[1]), *sys.path]
    text = PROGRAM.format(
        path=path, before=textwrap.dedent(before), weights=str(weights), network=network
    )
    return subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=300
    )


LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
INTERRUPT = """
translate = VolumeInferer.translate
def interrupted(self, *args, **options):
    if args[0][0].meta["filename_or_obj"].endswith("b.nii.gz"):
        try:
            os.kill(os.getpid(), signal.{first})
        finally:
            os.kill(os.getpid(), signal.{second})  # while the first one is unwinding
            Path("unwound").touch()
    return translate(self, *args, **options)
VolumeInferer.translate = interrupted
"""


@pytest.mark.slow
def test_a_full_disk_fails_the_case_alone(tiny_weights: Path, tmp_path: Path) -> None:
    done = program(LIMIT, tiny_weights, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "a: failed, OSError: [Errno 27] File too large" in done.stderr
    assert "1 translated, 0 kept, 1 failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "mr").iterdir()} == {
        "b_mr.nii.gz",
        "b_mr.json",
        "b_mr.png",
        "run.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "status"), [("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGINT", 143)]
)
def test_a_signal_ends_the_run_cleanly_and_a_second_one_too(
    first: str, second: str, status: int, tiny_weights: Path, tmp_path: Path
) -> None:
    done = program(INTERRUPT.format(first=first, second=second), tiny_weights, tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
    assert (tmp_path / "unwound").exists()
    assert {path.name for path in (tmp_path / "mr").iterdir()} == {
        "a_mr.nii.gz",
        "a_mr.json",
        "a_mr.png",
    }


# Faults while it runs


@pytest.mark.slow
def test_a_file_that_vanishes_or_memory_that_ends_fails_its_case_alone(
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in "abc":
        write_nifti(tmp_path / "ct" / f"{name}.nii.gz", CT, OBLIQUE)
    check, translate = TranslationCases.check, VolumeInferer.translate

    def checked(self: TranslationCases, *arguments: Any) -> None:
        check(self, *arguments)
        (tmp_path / "ct" / "a.nii.gz").unlink()

    def without_memory(self: VolumeInferer, inputs: Any, *given: Any, **options: Any) -> Any:
        if inputs[0].meta["filename_or_obj"].endswith("b.nii.gz"):
            raise MemoryError
        return translate(self, inputs, *given, **options)

    monkeypatch.setattr(TranslationCases, "check", checked)
    monkeypatch.setattr(VolumeInferer, "translate", without_memory)
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match="2 of 3 cases failed"):
        run_tiny_inference(tmp_path / "ct", tmp_path / "mr", tiny_weights, **SHORT)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("a: failed, ") and "a.nii.gz" in line for line in lines)
    assert (
        "b: failed, expected enough memory for the case, got a MemoryError; crop the volume"
        in "\n".join(lines)
    )
    assert not any("Traceback" in line for line in lines)
    assert {path.name for path in (tmp_path / "mr").iterdir()} == {
        "c_mr.nii.gz",
        "c_mr.json",
        "c_mr.png",
        "run.json",
    }


def test_the_command_line_ends_with_one_line_for_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["translate", str(tmp_path / "nowhere"), str(tmp_path / "mr")])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected a CT file")
    with pytest.raises(SystemExit) as stop:
        main(["translate", "--no-such-option"])
    assert stop.value.code == 2
