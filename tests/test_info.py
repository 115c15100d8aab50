# SPDX-License-Identifier: MIT
"""instar-launch info end to end: the same words and JSON as qemu-img info has for it."""
import json
import os
import random

import pytest

from conftest import CLUSTER, be64, copy, create, info, launch, patch, qemu_img, qemu_io, sha256

MI = 1 << 20

IMAGES = {
    "default": [],
    "v2": ["compat=0.10"],
    "512": ["cluster_size=512"],
    "2M": ["cluster_size=2M"],
    "zstd": ["compression_type=zstd"],
    "lazy": ["lazy_refcounts=on"],
    "counts-1": ["refcount_bits=1"],
    "counts-64": ["refcount_bits=64"],
    "extl2": ["extended_l2=on"],
}


def json_of(path, *args, **kw):
    p = launch("info", "--output=json", *args, path, **kw)
    assert (p.returncode, p.stderr) == (0, ""), p.stderr
    return json.loads(p.stdout)


@pytest.mark.parametrize("name", IMAGES)
def test_like_qemu_img(accel, tmp_path, name):
    path = create(tmp_path / "a.qcow2", 10 * MI, *IMAGES[name])
    qemu_io(path, "write -P 1 1M 1M")
    digest, mtime = sha256(path), os.stat(path).st_mtime_ns
    assert json_of(path, accel=accel) == info(path)
    assert launch("info", path, accel=accel).stdout == qemu_img("info", path).stdout
    assert sha256(path) == digest and os.stat(path).st_mtime_ns == mtime


def test_backing_name(accel, tmp_path):
    create(tmp_path / "base.qcow2", MI)
    path = create(tmp_path / "a.qcow2", MI, "backing_file=base.qcow2", "backing_fmt=qcow2")
    ours, theirs = json_of(path, accel=accel), info(path)
    for key in ("backing-filename", "backing-filename-format", "virtual-size"):
        assert ours[key] == theirs[key]
    assert "base.qcow2" in launch("info", path, accel=accel).stdout


def test_backing_name_cannot_spoof_the_output(accel, tmp_path):
    create(tmp_path / "base.qcow2", MI)
    path = create(tmp_path / "a.qcow2", MI, "backing_file=base.qcow2", "backing_fmt=qcow2")
    data = path.read_bytes()
    patch(path, data.index(b"base.qcow2"), b"a\nb: \x1b[1")
    out = launch("info", path, accel=accel).stdout
    assert "\nb:" not in out and "\x1b" not in out
    assert json_of(path, accel=accel)["backing-filename"]


def test_flags(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    patch(path, 72, be64(3))  # dirty and corrupt
    ours = json_of(path, accel=accel)
    assert ours["dirty-flag"] is True
    assert ours["format-specific"]["data"]["corrupt"] is True


def test_raw(accel, tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(random.Random(1).randbytes(MI + 100))
    for args in ([], ["-f", "raw"]):
        ours = json_of(path, *args, accel=accel)
        assert ours["format"] == "raw"
        assert ours["virtual-size"] == json.loads(
            qemu_img("info", "--output=json", path).stdout)["virtual-size"]


def test_not_qcow2(accel, tmp_path):
    path = tmp_path / "a.qcow2"
    path.write_bytes(bytes(CLUSTER))
    p = launch("info", "-f", "qcow2", path, accel=accel)
    assert p.returncode == 1 and "Image is not in qcow2 format" in p.stderr and not p.stdout
    p = launch("info", "-f", "qcow2", "--output=json", path, accel=accel)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "PARSE_FAILED"


def test_nothing_is_done_on_the_host(tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    p = launch("info", "--qemu", "/bin/false", path)
    assert p.returncode == 4 and p.stdout == "" and p.stderr
    assert sha256(path) == sha256(copy(path, "b.qcow2"))
