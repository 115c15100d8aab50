# SPDX-License-Identifier: MIT
"""Scenarios of qemu-iotests that concern resize and have no place elsewhere; those that do bear
their numbers in test_shrink.py (042, 060, 061, 080, 163, 250, 292), test_preallocation.py (106, 121,
125, 175) and test_backing.py (274).
"""
import json
import os
import struct

import pytest

import test_shrink
from conftest import (best_accel, check_status, copy, create, guest_bytes, header, info, launch,
                      patch, qemu_img, qemu_io, run, same_content, sha256)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SECRET = ["--object", "secret,id=s,data=x"]
L2_OFFSET = 0x00FFFFFFFFFFFE00


def resize(path, *args, accel=None, fmt="qcow2"):
    p = launch("resize", "-f", fmt, *args[:-1], path, args[-1], accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")


def l2_entries(path, first, cnt):
    """(entry, bitmap) of clusters of an image with extended L2; (0, 0) where there is no table."""
    bits, = struct.unpack_from(">I", header(path), 20)
    l1, = struct.unpack_from(">Q", header(path), 40)
    per_table = (1 << bits) // 16
    found = []
    with open(path, "rb") as f:
        for i in range(first, first + cnt):
            f.seek(l1 + i // per_table * 8)
            table = struct.unpack(">Q", f.read(8))[0] & L2_OFFSET
            f.seek(table + i % per_table * 16)
            found.append(struct.unpack(">QQ", f.read(16).ljust(16, b"\0")) if table else (0, 0))
    return found


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "luks"])
def test_025_grow(tmp_path, fmt):
    """All of 128 MiB is written; what is gained reads zero, for others too, and stays."""
    path = tmp_path / "a"
    opts = f"driver=raw,file.filename={path}"
    if fmt == "luks":
        qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", "encrypt.format=luks", "-o",
                 "encrypt.key-secret=s", "-o", "encrypt.iter-time=10", path, "128M")
        opts = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    else:
        qemu_img("create", "-q", "-f", fmt, path, "128M")
        opts = f"driver={fmt},file.filename={path}"

    def io(*commands):
        p = run("qemu-io", *SECRET, *[x for c in commands for x in ("-c", c)], "--image-opts",
                opts, check=True)
        assert "failed" not in p.stdout + p.stderr, p.stdout + p.stderr
    io("write -P 0xc5 0 128M")
    resize(path, "384M", fmt="raw" if fmt == "raw" else "qcow2")
    for _ in range(2):
        io("length", "read -P 0xc5 0 128M", *(["read -P 0 128M 256M"] if fmt != "luks" else []))
    io("write -z 128M 256M", "read -P 0 128M 256M", "read -P 0xc5 0 128M")
    shown = json.loads(run("qemu-img", "info", "--output=json", *SECRET, "--image-opts", opts,
                           check=True).stdout)
    assert shown["virtual-size"] == 384 * MI
    if fmt != "raw":
        qemu_img("check", *SECRET, "--image-opts", opts)


def test_054_huge(tmp_path):
    """What the L1 table cannot map is refused in qemu-img's words, what it can is done."""
    path = create(tmp_path / "a.qcow2", MI, "cluster_size=512")
    digest = sha256(path)
    ours = launch("resize", "-f", "qcow2", path, "3T")
    theirs = qemu_img("resize", "-f", "qcow2", path, "3T", check=False)
    assert ours.returncode == theirs.returncode == 1 and sha256(path) == digest
    assert ours.stderr == theirs.stderr.replace("qemu-img:", "instar-launch:")
    resize(path, "128G")
    assert info(path)["virtual-size"] == 128 * GI and check_status(path) == 0
    qemu_io(path, f"write -P 1 {128 * GI - MI} 1M", f"read -P 1 {128 * GI - MI} 1M")
    assert check_status(path) == 0


@pytest.mark.parametrize("lazy", ["on", "off"])
def test_061_upgrade_and_resize(tmp_path, lazy):
    """Version 2 becomes 3, with lazy refcounts or without, and larger; the data stays."""
    path = create(tmp_path / "a.qcow2", 64 * MI, "compat=0.10")
    qemu_io(path, "write -P 0x2a 42M 64k")
    resize(path, "65M")
    qemu_img("amend", "-f", "qcow2", "-o", f"compat=1.1,lazy_refcounts={lazy}", path)
    resize(path, "128M")
    said = info(path)
    assert said["virtual-size"] == 128 * MI
    assert said["format-specific"]["data"]["lazy-refcounts"] is (lazy == "on")
    qemu_io(path, "read -P 0x2a 42M 64k", "read -P 0 64M 64M", "write -P 1 127M 64k")
    assert check_status(path) == 0
    resize(path, "--shrink", "43M")
    qemu_io(path, "read -P 0x2a 42M 64k", "read -P 0 0 42M")
    assert check_status(path) == 0


@pytest.mark.parametrize("name", test_shrink.FUZZ_080)
def test_080_info(tmp_path, name):
    """`info` of each fuzzed image: facts, or a refusal in words; and it changes nothing."""
    change, _ = test_shrink.FUZZ_080[name]
    path = create(tmp_path / "a.qcow2", 64 * MI)
    qemu_io(path, "write -P 1 0 128k", "write -P 2 40M 64k")
    qemu_img("snapshot", "-c", "s", path)
    change(path)
    digest = sha256(path)
    p = launch("info", "-f", "qcow2", "--output=json", path)
    said = json.loads(p.stdout)
    assert p.returncode in (0, 1) and p.stderr == ""
    if p.returncode:
        assert said["code"] in test_shrink.REFUSAL_CODES and said["error"]
    else:
        assert said["virtual-size"] == 64 * MI
    assert sha256(path) == digest


def test_107_l1_updates(tmp_path):
    """The L1 table is written anew by others after a grow, and read back by them."""
    path = create(tmp_path / "a.qcow2", 32 * KI * 64, "cluster_size=512")
    qemu_io(path, "write -P 1 0 2M")
    resize(path, str(32 * KI * 200))
    commands = [f"write -P {1 + i} {i * 32}k 512" for i in range(64, 200, 7)]
    qemu_io(path, *commands)
    qemu_io(path, *[c.replace("write", "read") for c in commands], "read -P 1 0 2M")
    assert check_status(path) == 0
    resize(path, "--shrink", str(32 * KI * 100))
    qemu_io(path, *[c.replace("write", "read") for c in commands[:5]], "read -P 1 0 2M")
    assert check_status(path) == 0


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("old", [MI, MI + 2 * KI, MI + 3 * KI], ids=["aligned", "sub", "inside"])
def test_271_grow(tmp_path, old, mode):
    """Extended L2: the bitmaps of what is preallocated, content, and what qemu-img makes of it."""
    path = create(tmp_path / "a.qcow2", old, "extended_l2=on")
    qemu_io(path, "write -P 1 0 3k", "write -z 66k 4k", f"write -P 2 {old - KI} 1k")
    before = guest_bytes(path, tmp_path)
    theirs = copy(path, "theirs.qcow2")
    resize(path, f"--preallocation={mode}", str(2 * MI))
    qemu_img("resize", "-q", "-f", "qcow2", f"--preallocation={mode}", theirs, str(2 * MI))
    assert guest_bytes(path, tmp_path) == before + bytes(2 * MI - old)
    assert same_content(path, theirs) and check_status(path) == 0
    new = l2_entries(path, 17, 15)  # clusters that are wholly new
    if mode == "off":
        assert new == [(0, 0)] * 15
    else:
        assert all(entry & L2_OFFSET and entry >> 63 and bitmap == 0xFFFFFFFF
                   for entry, bitmap in new)
    assert l2_entries(path, 0, 2)[0][1] == 3  # two subclusters of data
    assert l2_entries(path, 1, 1) == [(0, 0b110 << 32)]
    qemu_io(path, f"write -P 7 {old} {2 * MI - old}", f"read -P 2 {old - KI} 1k")
    assert check_status(path) == 0


@pytest.mark.parametrize("new", [4 * KI, 70 * KI, 69 * KI + 512, 34 * KI])
def test_271_shrink(tmp_path, new):
    """Past the new end no subcluster is mapped in what remains, and zeros come back."""
    path = create(tmp_path / "a.qcow2", MI, "extended_l2=on")
    qemu_io(path, "write -P 1 0 1M", "write -z 32k 4k")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", tmp_path / "b.qcow2", "1M")
    before = guest_bytes(path, tmp_path)
    resize(path, "--shrink", str(new))
    assert check_status(path) == 0 and guest_bytes(path, tmp_path) == before[:new]
    end = -(-new // (64 * KI))
    assert l2_entries(path, end, 16 - end) == [(0, 0)] * (16 - end)
    resize(path, "1M")
    assert guest_bytes(path, tmp_path) == before[:new] + bytes(MI - new)
    assert check_status(path) == 0


def test_271_measured(tmp_path):
    """A grow with everything allocated takes no more than qemu-img measures for such an image."""
    path = create(tmp_path / "a.qcow2", MI, "extended_l2=on")
    resize(path, "--preallocation=metadata", "64M")
    said = json.loads(qemu_img("measure", "--output=json", "--size", "64M", "-O", "qcow2", "-o",
                               "extended_l2=on").stdout)
    assert os.stat(path).st_size <= said["fully-allocated"]


@pytest.mark.parametrize("value", [0x1000000000000, 1 << 55])
def test_138_far_clusters(tmp_path, value):
    """Data that an entry puts far behind the file costs neither time nor memory."""
    path = create(tmp_path / "a.qcow2", 2 * MI)
    qemu_io(path, "write -P 1 0 2M")
    l1, = struct.unpack_from(">Q", header(path), 40)
    l2, = struct.unpack_from(">Q", header(path, l1 + 8), l1)
    patch(path, (l2 & L2_OFFSET) + 8 * 20, struct.pack(">Q", value | 1 << 63))
    length = os.stat(path).st_size
    for args in (["3M"], ["--shrink", "1M"]):
        now = copy(path, "now.qcow2")
        os.truncate(now, length)
        p = launch("resize", "-f", "qcow2", *args[:-1], now, args[-1])
        assert p.returncode == 0 or p.stderr.startswith("instar-launch: ")
        assert os.stat(now).st_size <= length + MI
        if p.returncode:
            assert sha256(now) == sha256(path)
        else:
            qemu_io(now, "read -P 1 0 1M")
