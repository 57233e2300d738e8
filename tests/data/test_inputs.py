# SPDX-License-Identifier: Apache-2.0
"""A CT gives the same MR from a local path and from a URL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contourdiff.data.inputs import is_url
from contourdiff.translation import translate_path
from helpers.networks import TINY_NETWORK
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import make_dataset, read_voxels

OPTIONS: dict[str, Any] = {
    "overlays": ("single",),
    "network_def": TINY_NETWORK,
    "num_inference_steps": 1,
    **QUICK_SETTINGS,
}
OPTIONS |= {"candidates": 1, "max_rounds": 1, "min_object_mm2": 100.0, "progress": False}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with the interface of S3 on this machine, and a file system of its bucket ``hospital``."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e '.[s3]'")
    server = pytest.importorskip(
        "moto.server", reason="moto is not installed: pip install 'moto[server]'"
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("hospital")
    yield system
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_bucket_gives_what_the_folder_gives(
    bucket: Any, tiny_weights: Path, tmp_path: Path
) -> None:
    folder, options = (
        make_dataset(tmp_path / "ct", ("a", "b")),
        {**OPTIONS, "weights": tiny_weights},
    )
    bucket.put(str(folder), "hospital/ct", recursive=True)
    expected = translate_path(folder, tmp_path / "local", **options)
    results = translate_path("s3://hospital/ct", tmp_path / "remote", **options)
    assert [result.case for result in results] == ["a", "b"]
    for local, remote in zip(expected, results, strict=True):
        assert local.mr.read_bytes() == remote.mr.read_bytes()
        assert local.label is not None
        assert local.label.read_bytes() == Path(str(remote.label)).read_bytes()
        assert local.record.read_bytes() == remote.record.read_bytes()
    bucket.pipe("hospital/ct/c.nii.gz", b"no volume")
    with pytest.raises(ValueError, match=r"1 of 3 cases failed: c: expected a readable NIfTI file"):
        translate_path("s3://hospital/ct", tmp_path / "remote", **options)
    with pytest.raises(
        ValueError, match=r"expected a readable file at s3://hospital/ct/d.nii.gz, got FileNotFound"
    ):
        translate_path("s3://hospital/ct/d.nii.gz", tmp_path / "none", **options)


def test_a_url_begins_with_its_scheme() -> None:
    """Whatever else is no text for a config: a list may be of somebody else."""
    assert all(map(is_url, ("s3://bucket/a", "file:///a", "git+ssh://host/a")))
    assert not any(
        map(is_url, ("$print('a://b')", "@seed://a", "%a://b", "a/b://c", "C://a", Path("s3://a")))
    )


@pytest.mark.slow
def test_a_single_file_by_its_url(tiny_weights: Path, tmp_path: Path) -> None:
    folder, options = make_dataset(tmp_path / "ct", ("a",)), {**OPTIONS, "weights": tiny_weights}
    (local,) = translate_path(folder / "a.nii.gz", tmp_path / "local.nii.gz", **options)
    (remote,) = translate_path(f"file://{folder}/a.nii.gz", tmp_path / "remote.nii.gz", **options)
    np.testing.assert_array_equal(read_voxels(remote.mr), read_voxels(local.mr))
    assert Path(str(remote.ct)).read_bytes() == (folder / "a.nii.gz").read_bytes()
