# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app behind a real server: what it serves is what the bundle writes."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK

from contourdiff.bundle import run_inference_config
from contourdiff.phantom import write_phantom
from contourdiff.segmentation.model_bundle import train_model
from contourdiff.segmentation.results import segment
from helpers.paths import REPOSITORY
from helpers.segmentation import AFFINE, SMALL, mr_with_bone, write_pairs, write_small_bundle
from helpers.volumes import OBLIQUE, ball_ct, read_voxels, write_nifti

PYTHON = Path(
    os.environ.get("CONTOURDIFF_LABEL_PYTHON", REPOSITORY / ".venv-label" / "bin" / "python")
)
SETTINGS = {
    "num_inference_steps": 2,
    "num_refinement_steps": 1,
    "acceleration": "lean",  # the two environments need not have the same OpenVINO
    "amp": False,
}
WRITTEN = shutil.ignore_patterns("bin", "logs", "model", "__pycache__")
"""What a server writes into its app."""
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
CLIENT = """
import json, sys
from monailabel.client import MONAILabelClient
print(MONAILabelClient(sys.argv[1], sys.argv[2]).infer("contourdiff_t1", "anna", json.loads(sys.argv[3]))[0])
"""
"""The client that the module of 3D Slicer has a copy of."""
REFUSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from lib.infers.translation import translation_tasks

reasons = {}
for name, value in json.loads(sys.argv[2]).items():
    try:
        translation_tasks({name: value})
    except ValueError as error:
        reasons[name] = str(error)
print(json.dumps(reasons))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason="no environment with MONAI Label, see docs/monai_label.md"
    ),
]


def environment(folder: Path) -> dict[str, str]:
    """Variables of a process whose files are in ``folder``."""
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "plugin"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
    }


def start(folder: Path, **conf: object) -> tuple[subprocess.Popen, str, Path]:
    """A server, its address and its log; it runs on a copy of the app, into which MONAI Label writes."""
    app = shutil.copytree(REPOSITORY / "plugin" / "label_app", folder / "app", ignore=WRITTEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        PYTHON,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        app,
    ]
    command += ["--studies", folder / "studies", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in conf.items():
        command += ["--conf", name, str(value)]
    (folder / "tmp").mkdir()
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=environment(folder)
        )
    return server, f"http://127.0.0.1:{port}", log


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    return write_phantom(folder, "anna", shape=(3, 80, 70), spacing_mm=(13.0, 2.0, 2.2))


def wait_until_it_answers(server: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(480):
        if server.poll() is not None:
            break
        try:
            requests.get(f"{url}/info/", timeout=60).raise_for_status()
            return
        except requests.ConnectionError:
            time.sleep(0.25)
    pytest.fail(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the server: studies, sessions and temporary files."""
    return tmp_path_factory.mktemp("label")


@pytest.fixture(scope="module")
def url(case: Path, folder: Path) -> Iterator[str]:
    server, url, log = start(folder, **SETTINGS)
    try:
        wait_until_it_answers(server, url, log)
        upload(url, "anna", case.read_bytes())
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def by_bundle(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("mr")
    options: dict[str, Any] = {**SETTINGS, "logging_file": False}
    return run_inference_config(
        case.parent, output_dir, overlays=("fast",), contrast="t1,t2", **options
    )


def upload(url: str, image: str, content: bytes) -> None:
    files = {"file": (f"{image}.nii.gz", content)}
    answer = requests.put(f"{url}/datastore/", params={"image": image}, files=files, timeout=60)
    assert answer.json() == {"image": image}


def infer(url: str, model: str, image: str = "anna", /, **params: object) -> requests.Response:
    query = {"image": image, "output": "image"}
    return requests.post(
        f"{url}/infer/{model}", params=query, data={"params": json.dumps(params)}, timeout=300
    )


def test_every_contrast_is_a_model_without_labels(url: str) -> None:
    info = requests.get(f"{url}/info/", timeout=60).json()
    assert info["labels"] == []
    assert {name: (model["type"], model["labels"]) for name, model in info["models"].items()} == {
        "contourdiff_t1": ("others", {}),
        "contourdiff_t2": ("others", {}),
        "contourdiff_t2_space": ("others", {}),
    }


def test_files_served_at_once_are_those_of_the_bundle_bit_for_bit(
    url: str, by_bundle: Path
) -> None:
    with ThreadPoolExecutor(3) as pool:
        t1, t2, again = pool.map(
            lambda name: infer(url, name), ["contourdiff_t1", "contourdiff_t2", "contourdiff_t1"]
        )
    assert t1.content == (by_bundle / "anna_t1_mr.nii.gz").read_bytes()
    assert t2.content == (by_bundle / "anna_t2_mr.nii.gz").read_bytes()
    assert again.content == t1.content
    assert read_voxels(by_bundle / "anna_t1_mr.nii.gz").dtype == np.float32


def test_a_seed_of_the_request_is_the_seed_of_the_bundle_and_lasts_for_the_request(
    url: str, case: Path, by_bundle: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**SETTINGS, "logging_file": False}
    run_inference_config(case.parent, tmp_path, overlays=("fast",), seed=7, **options)
    assert (
        infer(url, "contourdiff_t1", seed=7).content == (tmp_path / "anna_mr.nii.gz").read_bytes()
    )
    assert infer(url, "contourdiff_t1").content == (by_bundle / "anna_t1_mr.nii.gz").read_bytes()


def test_what_slicer_asks_for_has_the_gray_levels_and_the_grid(
    url: str, case: Path, by_bundle: Path, tmp_path: Path
) -> None:
    call = [PYTHON, "-c", CLIENT, url, tmp_path, json.dumps(SLICER)]
    path = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1]
    image, ct = SimpleITK.ReadImage(path), SimpleITK.ReadImage(str(case))
    gray_levels = SimpleITK.GetArrayFromImage(image).T
    assert path.endswith(".nrrd")
    assert gray_levels.dtype == np.uint8
    np.testing.assert_array_equal(gray_levels, read_voxels(by_bundle / "anna_t1_mr.nii.gz").round())
    assert len(np.unique(gray_levels)) > 100
    for of in (SimpleITK.Image.GetSpacing, SimpleITK.Image.GetOrigin, SimpleITK.Image.GetDirection):
        np.testing.assert_allclose(of(image), of(ct), atol=1e-4)


def test_bad_requests_have_a_status_and_a_reason_and_the_server_lives(
    url: str, folder: Path, case: Path, by_bundle: Path
) -> None:
    ct = nib.load(case)
    mr = nib.Nifti1Image(np.asarray(ct.dataobj).clip(0, 255).astype(np.uint8), ct.affine)
    upload(url, "mr", gzip.compress(mr.to_bytes()))
    upload(url, "torn", case.read_bytes()[:2000])
    small = nib.Nifti1Image(ball_ct((10, 12, 10)), OBLIQUE)
    upload(url, "small", gzip.compress(small.to_bytes()))
    bad = {
        "expected one of the models": infer(url, "contourdiff_ct"),
        "expected the id of an image": infer(url, "contourdiff_t1", "otto"),
        "it is probably not CT": infer(url, "contourdiff_t1", "mr"),
        "expected a readable NIfTI file": infer(url, "contourdiff_t1", "torn"),
        "expected slices with a contour, got none in 10 slices: the largest": infer(
            url, "contourdiff_t2", "small"
        ),
        "expected seed to be a whole number": infer(url, "contourdiff_t1", seed="x"),
        "from 0 to 9223372036854775807, got -1": infer(url, "contourdiff_t1", seed=-1),
        "got True": infer(url, "contourdiff_t1", seed=True),
        "got ['sede']": infer(url, "contourdiff_t1", sede=1),
        "expected result_extension": infer(url, "contourdiff_t1", result_extension=".png"),
        "dtype must be": infer(url, "contourdiff_t1", result_dtype="int16"),
    }
    assert [answer.status_code for answer in bad.values()] == [404, 404] + 9 * [422]
    for reason, answer in bad.items():
        assert reason in answer.json()["detail"]
        assert not any(str(path) in answer.text for path in (folder, case.parent, REPOSITORY))
    assert infer(url, "contourdiff_t1").content == (by_bundle / "anna_t1_mr.nii.gz").read_bytes()


def test_no_file_beside_studies_sessions_and_uploads_is_served(
    url: str, folder: Path, case: Path
) -> None:
    (folder / "studies" / "link").mkdir(exist_ok=True)
    (folder / "sessions").mkdir(exist_ok=True)
    (folder / "sessions" / "link.nii.gz").symlink_to(case)
    outside = [
        str(case),
        str(folder / "studies" / "anna.nii.gz"),
        os.path.relpath(case, folder),
        f"{folder}/sessions/../../{case.parent.name}/{case.name}",
        str(folder / "sessions" / "link.nii.gz"),
        str(folder / "sessions"),
        "../studies/anna",
        f"file://{case}",
        str(case.with_name("missing.nii.gz")),
        "",
    ]
    answers = [infer(url, "contourdiff_t1", image) for image in outside if image]
    answers += [infer(url, "contourdiff_t1", image=image) for image in outside]
    answers += [infer(url, "contourdiff_t1", image=value) for value in (None, [1])]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1
    assert "expected the id of an image in the studies, a session or an upload" in answers[0].text


def test_a_session_and_an_upload_are_translated_and_leave_no_file(
    url: str, folder: Path, case: Path
) -> None:
    before = set((folder / "tmp").rglob("*"))  # the file of an earlier request may be about to go
    name = ("ct.nii.gz", case.read_bytes())
    session = requests.put(f"{url}/session/", files={"files": name}, timeout=60).json()
    query = {"session_id": session["session_id"], "output": "image"}
    url_of_model = f"{url}/infer/contourdiff_t1"
    for fields, files in (
        (query, {}),
        ({"output": "image"}, {"file": name}),
        ({"output": "all"}, {"file": name}),
        ({"output": "json"}, {"file": name}),
    ):
        answer = requests.post(url_of_model, params=fields, files=files, timeout=300)
        assert answer.status_code == 200
    torn = ("ct.nii.gz", case.read_bytes()[:2000])
    answer = requests.post(url_of_model, files={"file": torn, "label": name}, timeout=300)
    assert answer.status_code == 422
    assert str(folder) not in answer.text
    assert requests.post(f"{url}/infer/none", files={"file": name}, timeout=60).status_code == 404
    assert set((folder / "tmp").rglob("*")) <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_within_seconds_while_it_translates(
    number: signal.Signals, case: Path, tmp_path: Path
) -> None:
    server, url, log = start(tmp_path, num_inference_steps=900, num_refinement_steps=90)
    try:
        wait_until_it_answers(server, url, log)
        upload(url, "anna", case.read_bytes())
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(infer, url, "contourdiff_t1")
            for _ in range(120):
                if "Infer Request (final)" in log.read_text():
                    break
                time.sleep(0.25)
            time.sleep(2)
            assert not answer.done()
            server.send_signal(number)
            server.wait(timeout=15)
            assert answer.result().status_code == 503
        assert not any(path.is_dir() for path in (tmp_path / "tmp").iterdir())
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()
        server.wait()


def test_settings_that_the_command_refuses_are_refused(tmp_path: Path) -> None:
    reasons = {
        "contrst": "expected settings of the config, got 'contrst'; did you mean contrast?",
        "seed": "expected seed to be a whole number from 0 to 9223372036854775807, got -1; pass another",
        "filter_classes": "expected filter_classes to be a whole number from 2 to 5, got 9; pass another",
    }
    refused = {"contrst": "t1", "seed": "-1", "filter_classes": "9"}
    (tmp_path / "tmp").mkdir()
    call = [PYTHON, "-c", REFUSE, REPOSITORY / "plugin" / "label_app", json.dumps(refused)]
    printed = subprocess.run(
        call, env=environment(tmp_path), capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed.splitlines()[-1]) == reasons


def test_a_server_that_does_not_start_says_why_in_one_line(tmp_path: Path) -> None:
    """Its exception may be printed, too, or not: that differs between versions of uvicorn and starlette."""
    server, _, log = start(tmp_path, filter_classes=9)
    assert server.wait(timeout=120) != 0
    reason = "expected filter_classes to be a whole number from 2 to 5, got 9; pass another"
    lines = [line for line in log.read_text().splitlines() if "[ERROR] (main:" in line]
    assert [line.split(" - ", 1)[1] for line in lines] == [f"the server does not start: {reason}"]


def test_a_segmentation_network_is_served_with_its_classes_as_its_command_segments(
    tmp_path: Path,
) -> None:
    model = write_small_bundle(tmp_path / "model")
    train_model(model, write_pairs(tmp_path / "pairs"), steps=30, **SMALL)
    gray, _ = mr_with_bone(9)
    mr = write_nifti(tmp_path / "otto.nii.gz", gray, AFFINE)
    (expected,) = segment(model, mr, tmp_path / "out", device="cpu")
    server, url, log = start(tmp_path, segmentation=model, **SETTINGS)
    try:
        wait_until_it_answers(server, url, log)
        served = requests.get(f"{url}/info/", timeout=60).json()["models"]["segmentation"]
        assert (served["type"], served["labels"]) == ("segmentation", {"bone": 1})
        upload(url, "otto", mr.read_bytes())
        result = tmp_path / "served.nii.gz"
        for _ in range(2):
            answer = infer(url, "segmentation", "otto", device="cpu")
            assert answer.status_code == 200, answer.text
            result.write_bytes(answer.content)
            np.testing.assert_array_equal(read_voxels(result), read_voxels(expected))
        np.testing.assert_allclose(nib.load(result).affine, AFFINE, atol=1e-4)
        upload(url, "torn", mr.read_bytes()[:2000])
        assert infer(url, "segmentation", "torn").status_code == 422
    finally:
        server.terminate()
        server.wait(timeout=60)
