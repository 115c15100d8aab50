# SPDX-License-Identifier: MIT
"""instar-launch resize of images that keep their data in another file, in a real VM.

tests/test_files.py has the launcher's side with a QEMU that lies; tests/test_qcow2_data.c the
crash states.
"""
import json
import os
import random

import pytest

from conftest import (best_accel, check_status, guest_bytes, info, launch, patch, qemu_img, qemu_io,
                      sha256)

KI, MI = 1 << 10, 1 << 20
SEED = 0x5be0cd19


def make(tmp_path, size, raw, *options, backing=None, writes=6):
    """disk.qcow2 with its data in disk.data, and something written here and there. The name is
    absolute: qemu looks for a relative one in its own directory, not in the image's."""
    disk = tmp_path / "disk.qcow2"
    opts = [f"data_file={tmp_path}/disk.data,data_file_raw={'on' if raw else 'off'}", *options]
    args = [x for o in opts for x in ("-o", o)]
    if backing:
        (tmp_path / "base.raw").write_bytes(b"\x66" * backing)
        args += ["-b", "base.raw", "-F", "raw"]
    qemu_img("create", "-q", "-f", "qcow2", *args, disk, size, cwd=tmp_path)
    rng = random.Random(SEED)
    for i in range(writes):
        off = rng.randrange(size // 512) * 512
        n = min(rng.randrange(1, 300) * 512, size - off)
        qemu_io(disk, f"write -P {i + 1} {off} {n}")
    return disk


def resize(disk, size, *args, accel=None):
    p = launch("resize", "-f", "qcow2", *args, disk, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")


def sound(disk, content, raw):
    """The content, by qemu-img; the data file ends with the disk and, if raw, is the disk."""
    data = disk.with_suffix(".data")
    assert check_status(disk) == 0
    assert guest_bytes(disk, disk.parent) == content
    assert data.stat().st_size == len(content)
    assert not raw or data.read_bytes() == content


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("options", [["cluster_size=4k"], ["cluster_size=64k"],
                                     ["extended_l2=on"]])
def test_there_and_back(tmp_path, accel, raw, options):
    size = 5 * MI + 1536
    disk = make(tmp_path, size, raw, *options)
    content = guest_bytes(disk, tmp_path)
    resize(disk, 9 * MI + 512, accel=accel)
    content += bytes(9 * MI + 512 - size)
    sound(disk, content, raw)
    resize(disk, 2 * MI + 33 * KI + 512, "--shrink", accel=accel)
    content = content[:2 * MI + 33 * KI + 512]
    sound(disk, content, raw)
    resize(disk, 4 * MI, accel=accel)
    sound(disk, content + bytes(4 * MI - len(content)), raw)
    qemu_io(disk, f"write -P 77 {3 * MI} {MI}", f"read -P 77 {3 * MI} {MI}")
    assert check_status(disk) == 0


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocation_is_the_data_files(tmp_path, raw, mode):
    disk = make(tmp_path, 3 * MI + 512, raw)
    data, content = disk.with_suffix(".data"), guest_bytes(disk, tmp_path)
    resize(disk, 6 * MI, "--preallocation", mode)
    sound(disk, content + bytes(6 * MI - len(content)), raw)
    extents = json.loads(qemu_img("map", "--output=json", disk).stdout)
    assert all(x["present"] for x in extents if x["start"] >= 3 * MI + 512)
    if mode != "metadata":
        assert data.stat().st_blocks * 512 >= 3 * MI - 512 - 64 * KI


def test_a_raw_data_file_is_mapped_throughout(tmp_path):
    """As by qemu-img: the two results have the same map."""
    disk = make(tmp_path, MI, True, writes=0)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    other = make(theirs, MI, True, writes=0)
    resize(disk, 3 * MI)
    qemu_img("resize", "-f", "qcow2", other, "3M")
    maps = [json.loads(qemu_img("map", "--output=json", d).stdout) for d in (disk, other)]
    assert [[(x["start"], x["length"], x["present"], x.get("offset")) for x in m]
            for m in maps][0] == [(x["start"], x["length"], x["present"], x.get("offset"))
                                  for x in maps[1]]


def test_what_the_data_file_has_past_the_disk_is_not_seen(tmp_path, accel):
    """iotest 244 appends to a raw data file; a device is longer than its disk from the start. The
    disk and the file stay equal, and the new area reads zero."""
    disk = make(tmp_path, MI, True, writes=0)
    data = disk.with_suffix(".data")
    data.write_bytes(b"\x2a" * MI + b"\x2b" * MI)
    resize(disk, 2 * MI, accel=accel)
    sound(disk, b"\x2a" * MI + bytes(MI), True)


def test_an_overlay_with_a_data_file(tmp_path, accel):
    size = MI + 33 * KI + 512
    disk = make(tmp_path, size, False, backing=3 * MI, writes=2)
    content = guest_bytes(disk, tmp_path)
    resize(disk, 4 * MI, accel=accel)
    sound(disk, content + bytes(4 * MI - size), False)


def test_a_backing_image_with_a_data_file(tmp_path, accel):
    """Read where the overlay ends inside a cluster that shows it; never written."""
    base = make(tmp_path, 3 * MI, True)
    over = tmp_path / "over.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", over,
             MI + 512, cwd=tmp_path)
    content = guest_bytes(over, tmp_path)
    before = sha256(base), sha256(base.with_suffix(".data"))
    resize(over, 4 * MI, accel=accel)
    assert guest_bytes(over, tmp_path) == content + bytes(3 * MI - 512)
    assert check_status(over) == 0
    assert (sha256(base), sha256(base.with_suffix(".data"))) == before


def test_dry_run_touches_neither_file(tmp_path):
    disk = make(tmp_path, MI, True)
    data = disk.with_suffix(".data")
    data.chmod(0o444)
    before = sha256(disk), sha256(data), data.stat().st_mtime_ns
    for args in (["+1M"], ["--shrink", "512k"]):
        p = launch("resize", "-f", "qcow2", "--dry-run", "--output=json", disk, *args)
        plan = json.loads(p.stdout)["plan"]
        assert p.returncode == 0
        assert args[0] == "--shrink" or any(x["slot"] == 1 for x in plan)
    assert before == (sha256(disk), sha256(data), data.stat().st_mtime_ns)


def refused(disk, code, words, *args, size="+1M"):
    data = disk.with_suffix(".data")
    before = sha256(disk), sha256(data)
    p = launch("resize", "-f", "qcow2", "--output=json", *args, disk, size, accel=best_accel())
    assert p.returncode == 1
    error = json.loads(p.stdout)
    assert error["code"] == code and words in error["error"]
    assert (sha256(disk), sha256(data)) == before


def test_refusals(tmp_path):
    disk = make(tmp_path, MI, True)
    refused(disk, "POLICY_REFUSED", "--no-backing", "--no-backing")
    held = header_with_l2(disk)
    patch(disk, held + 8, (1 << 63 | 5 << 16).to_bytes(8, "big"))
    refused(disk, "OVERLAY_CORRUPT", "is invalid", "--shrink", size="100k")


@pytest.mark.parametrize("victim", ["qcow2", "vmdk", "vhdx", "vpc"])
def test_somebody_elses_image_is_no_data_file(tmp_path, victim):
    """A hostile image names its neighbour, which a resize would cut, or zero."""
    disk = make(tmp_path, MI, True, writes=0)
    data = disk.with_suffix(".data")
    data.unlink()
    qemu_img("create", "-q", "-f", victim, data, "8M")
    for args in ([], ["--shrink"]):
        refused(disk, "EXTERNAL_DATA_FILE", "is an image of its own", *args,
                size="512k" if args else "+1M")


def header_with_l2(disk):
    """Where the first L2 table stands."""
    with open(disk, "rb") as f:
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        return int.from_bytes(f.read(8), "big") & 0xfffffffffffe00


def test_no_name_for_the_data_file(tmp_path):
    disk = make(tmp_path, MI, True)
    with open(disk, "r+b") as f:
        head = f.read(4096)
        at = head.index(b"\x44\x41\x54\x41")
        f.seek(at)
        f.write(b"\x55\x41\x54\x41")  # an extension that nobody knows
    refused(disk, "EXTERNAL_DATA_FILE", "'data-file' is required for this image")


def test_shrink_unallocated(tmp_path):
    disk = make(tmp_path, 4 * MI, False, writes=0)
    qemu_io(disk, "write -P 9 2M 64k")
    refused(disk, "SHRINK_BELOW_ALLOCATED", f"first at byte {2 * MI} of the disk",
            "--shrink=unallocated", size="1M")
    resize(disk, 3 * MI, "--shrink=unallocated")
    assert info(disk)["virtual-size"] == 3 * MI


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_of_another_user(tmp_path):
    """Whose image it is may not have root write somebody else's file."""
    disk = make(tmp_path, 2 * MI, True)
    data = tmp_path / "disk.data"
    os.chown(disk, 1000, 1000)
    os.chown(data, 1001, 1001)
    before = sha256(disk), sha256(data)
    for words in (["+1M"], ["--shrink", "1M"], ["--dry-run", "+1M"]):
        p = launch("resize", "--output=json", disk, *words)
        out = json.loads(p.stdout)
        assert p.returncode == 1 and out["code"] == "POLICY_REFUSED"
        assert "belongs to another user than the image" in out["error"]
    assert (sha256(disk), sha256(data)) == before
    os.chown(data, 1000, 1000)
    resize(disk, 3 * MI)
