# SPDX-License-Identifier: MIT
"""Images on block devices, whose length is fixed, and disks with sectors of 4096 bytes.

Loop devices; where they are not permitted the tests are skipped. Each is detached at the end of its
test.
"""
import contextlib
import hashlib
import json
import os
import shutil
import subprocess

import pytest

from conftest import (best_accel, check_status, copy, create, guest_bytes, info, launch, qemu_img,
                      qemu_io, sha256)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
LENGTH = 64 * MI


def losetup(*args):
    return subprocess.run(["losetup", *map(str, args)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=30)


def attach(path, sector):
    """The device's name. Skips the test where it cannot be had."""
    if not shutil.which("losetup"):
        pytest.skip("there is no losetup")
    p = losetup("--sector-size", sector, "--find", "--show", path)
    if p.returncode:
        pytest.skip(f"losetup: {p.stderr.strip()}")
    name = p.stdout.strip()
    said = open(f"/sys/block/{os.path.basename(name)}/queue/logical_block_size").read()
    if int(said) != sector:
        losetup("--detach", name)
        pytest.skip(f"the device has sectors of {said.strip()} bytes")
    return name


@pytest.fixture
def device(tmp_path):
    """device(sector, length=...): a fresh one, of zeros."""
    with contextlib.ExitStack() as made:
        def make(sector, length=LENGTH):
            path = tmp_path / f"device.{len(list(tmp_path.iterdir()))}"
            with open(path, "wb") as f:
                f.truncate(length)
            name = attach(path, sector)
            made.callback(losetup, "--detach", name)
            return name
        yield make


def length(name):
    with open(name, "rb") as f:
        return f.seek(0, os.SEEK_END)


def content(name):
    """A digest of all that is on it."""
    h = hashlib.sha256()
    with open(name, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def resized(name, *args, accel=None):
    p = launch("resize", *args[:-1], name, args[-1], accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")


def refused(name, code, words, *args, accel=None):
    before = content(name)
    for more in ([], ["--output=json"]):
        p = launch("resize", *more, *args[:-1], name, args[-1], accel=accel or best_accel())
        assert p.returncode == 1
    said = json.loads(p.stdout)
    assert said["code"] == code and words in said["error"], said
    assert content(name) == before and length(name) == LENGTH


@pytest.fixture(params=[512, 4096], ids=["512", "4096"])
def sector(request):
    return request.param


def test_info(accel, device, sector):
    name = create(device(sector), 20 * GI)
    said = json.loads(launch("info", "--output=json", name, accel=accel).stdout)
    assert said["format"] == "qcow2" and said["virtual-size"] == 20 * GI


@pytest.mark.parametrize("options", [[], ["cluster_size=512"], ["extended_l2=on"],
                                     ["preallocation=metadata"]],
                         ids=["default", "clusters-512", "extl2", "metadata"])
def test_grow_and_shrink(accel, device, sector, options, tmp_path):
    """A file with the same image becomes the same image."""
    name = create(device(sector), 20 * MI + 512, *options)
    qemu_io(name, "write -P 1 0 3M", "write -P 2 19M 1M", "write -P 3 20M 512", "write -z 4M 1M")
    before = guest_bytes(name, tmp_path)
    new = 20 * MI + (512 if options == ["cluster_size=512"] else 3 * MI)
    if options == ["cluster_size=512"]:  # its L1 table has room for no more than this
        new = -(-(20 * MI + 512) // (32 * KI)) * 32 * KI
    resized(name, str(new), accel=accel)
    assert length(name) == LENGTH and info(name)["virtual-size"] == new
    assert guest_bytes(name, tmp_path) == before + bytes(new - len(before))
    assert check_status(name) == 0
    for size in (9 * MI + 1536, 3 * MI, 512):
        resized(name, "--shrink", str(size), accel=accel)
        assert length(name) == LENGTH and info(name)["virtual-size"] == size
        assert guest_bytes(name, tmp_path) == before[:size] and check_status(name) == 0
    resized(name, "2M", accel=accel)
    assert guest_bytes(name, tmp_path) == before[:512] + bytes(2 * MI - 512)
    qemu_io(name, "write -P 5 0 2M", "read -P 5 0 2M")
    assert check_status(name) == 0


def test_l1_table_in_place(accel, device, sector):
    name = create(device(sector), 20 * GI)
    qemu_io(name, "write -P 1 19G 1M")
    resized(name, "4T", accel=accel)
    qemu_io(name, "read -P 1 19G 1M", f"write -P 2 {4 * TI - MI} 1M", "read -P 0 20G 64M")
    assert check_status(name) == 0 and length(name) == LENGTH
    resized(name, "--shrink", "1G", accel=accel)
    assert check_status(name) == 0 and length(name) == LENGTH


def test_snapshots(device, sector, tmp_path):
    """What must be copied finds room in the device, which is longer than its image."""
    name = create(device(sector), 600 * MI)
    qemu_io(name, "write -P 1 0 4M", "write -P 2 599M 1M")
    qemu_img("snapshot", "-c", "s", name)
    resized(name, "--shrink", "512M")
    qemu_io(name, "read -P 1 0 4M", "read -P 0 4M 508M")
    assert check_status(name) == 0
    for size in (2 * MI, MI + 512):
        resized(name, "--shrink", str(size))
        assert check_status(name) == 0 and length(name) == LENGTH
        qemu_io(name, f"read -P 1 0 {size}")
    resized(name, "600M")  # restoring a snapshot is qemu-img's business, and wants its size
    qemu_img("snapshot", "-a", "s", name)
    qemu_io(name, "read -P 1 0 4M", "read -P 0 4M 595M", "read -P 2 599M 1M")
    assert check_status(name) == 0


def test_tables_in_the_device(accel, device, sector):
    """Room for new tables is behind the image's end, not the device's; what lay there, from whoever
    had the device before, is never seen."""
    name = device(sector)
    with open(name, "r+b") as f:
        f.write(b"\x6b" * LENGTH)
    create(name, 600 * MI)
    qemu_io(name, "write -P 1 0 4M", "write -P 2 599M 1M")
    for args in (["9T"], ["--preallocation=metadata", "+20M"], ["--preallocation=falloc", "+3M"]):
        size = info(name)["virtual-size"]
        resized(name, *args[:-1], args[-1], accel=accel)
        assert check_status(name) == 0 and length(name) == LENGTH
        now = info(name)["virtual-size"]
        qemu_io(name, "read -P 1 0 4M", "read -P 2 599M 1M",
                f"read -P 0 {size} {min(now - size, 32 * MI)}")
    resized(name, "--shrink", "2049k", accel=accel)
    resized(name, "5M", accel=accel)
    qemu_io(name, "read -P 1 0 2049k", f"read -P 0 2049k {5 * KI - 2049}k", "write -P 3 0 5M")
    assert check_status(name) == 0


@pytest.mark.parametrize("args", [["--preallocation=falloc", "100M"],
                                  ["--preallocation=full", "200M"],
                                  ["--preallocation=metadata", "+65M"],
                                  ["--max-growth=1T", "--preallocation=metadata", "+65M"]],
                         ids=" ".join)
def test_no_room(accel, device, sector, args):
    """What does not fit is refused, and no option makes a device longer."""
    name = create(device(sector), 20 * MI)
    qemu_io(name, "write -P 1 0 3M")
    words = f"'{name}' is a device of {LENGTH} bytes, and the new image needs "
    refused(name, "NO_SPACE", words, *args, accel=accel)
    refused(name, "NO_SPACE", words, "--dry-run", *args, accel=accel)


# ---- VMDK ----


def on_a_device(device, sector, path, size, *options, fill=()):
    """A VMDK on a device that somebody had before; qemu has read and written it as a file."""
    qemu_img("create", "-q", "-f", "vmdk", *[x for o in options for x in ("-o", o)], path, str(size))
    qemu_io(path, *fill, fmt="vmdk")
    name = device(sector)
    with open(name, "r+b") as f:
        f.write(b"\x6b" * LENGTH)
        f.seek(0)
        f.write(path.read_bytes())
    return name


def vmdk_content(name, tmp_path):
    raw = tmp_path / "vmdk.raw"
    qemu_img("convert", "-f", "vmdk", "-O", "raw", name, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


@pytest.mark.parametrize("options", [[], ["zeroed_grain=on"]], ids=["default", "zeroed"])
def test_vmdk(accel, device, sector, options, tmp_path):
    """New tables go behind the last grain, and what lay there is not taken for entries; the image is
    the one that a file would hold."""
    path = tmp_path / "a.vmdk"
    name = on_a_device(device, sector, path, 20 * MI, *options,
                       fill=["write -P 1 0 3M", "write -P 2 19M 1M"])
    before = vmdk_content(path, tmp_path)
    for size in (40 * MI, 9 * GI):  # the directories stay; they move
        resized(name, "-f", "vmdk", str(size), accel=accel)
        p = launch("resize", "-f", "vmdk", path, str(size))
        assert (p.returncode, p.stderr) == (0, "")
        assert length(name) == LENGTH
        assert json.loads(qemu_img("info", "-f", "vmdk", "--output=json", name).stdout)[
            "virtual-size"] == size
        with open(name, "rb") as f:  # behind the image nothing has changed
            assert f.read(os.stat(path).st_size) == path.read_bytes()
            assert not f.read().strip(b"\x6b")
        qemu_io(name, "read -P 1 0 3M", "read -P 0 3M 16M", "read -P 2 19M 1M",
                f"read -P 0 20M {min(size - 20 * MI, 64 * MI)}", fmt="vmdk")
    qemu_io(name, "write -P 3 1M 1M", "write -P 1 1M 1M", fmt="vmdk")
    resized(name, "-f", "vmdk", "--shrink", "2M", accel=accel)
    assert vmdk_content(name, tmp_path) == before[:2 * MI] and length(name) == LENGTH
    resized(name, "-f", "vmdk", "70M", accel=accel)
    assert vmdk_content(name, tmp_path) == before[:2 * MI] + bytes(68 * MI)


def test_vmdk_without_room(accel, device, sector, tmp_path):
    name = on_a_device(device, sector, tmp_path / "a.vmdk", 50 * MI, fill=["write -P 1 0 50M"])
    words = f"'{name}' is a device of {LENGTH} bytes, and the new image needs "
    refused(name, "NO_SPACE", words, "-f", "vmdk", "4T", accel=accel)
    resized(name, "-f", "vmdk", "90G", accel=accel)
    qemu_io(name, "read -P 1 0 50M", "read -P 0 50M 64M", "read -P 0 89G 64M", fmt="vmdk")


def test_vmdk_whose_end_cannot_be_told(device, sector, tmp_path):
    """A grain lies past the device's end: refused, whatever would fit."""
    name = on_a_device(device, sector, tmp_path / "a.vmdk", 20 * MI, fill=["write -P 1 0 3M"])
    with open(name, "r+b") as f:
        f.seek(56)
        directory = int.from_bytes(f.read(8), "little") * 512
        f.seek(directory)
        table = int.from_bytes(f.read(4), "little") * 512
        f.seek(table)
        f.write((LENGTH // 512 + 8).to_bytes(4, "little"))
    refused(name, "OVERLAY_CORRUPT", "", "-f", "vmdk", "40M")


def test_an_odd_length(device, tmp_path):
    """The device ends inside a cluster: a grow that needs no room does not mind."""
    name = create(device(512, 5 * MI + 512), 20 * GI)
    qemu_io(name, "write -P 1 0 1M")
    resized(name, "25G")
    assert length(name) == 5 * MI + 512 and check_status(name) == 0
    qemu_io(name, "read -P 1 0 1M")


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
@pytest.mark.parametrize("args", [["--shrink", "1M"], ["--shrink", "-512"], ["65M"], ["+1G"],
                                  ["--dry-run", "--shrink", "3M"],
                                  ["--preallocation=full", "65M"]], ids=" ".join)
def test_raw(accel, device, sector, args, fmt):
    """A device has the length that it has; refused in qemu-img's words."""
    name = device(sector)
    if (fmt or "--shrink" in args) and "--preallocation=full" not in args:
        theirs = qemu_img("resize", "-f", "raw", *[a for a in args[:-1] if a != "--dry-run"], "--",
                          name, args[-1], check=False)
        assert theirs.returncode == 1
        assert theirs.stderr in ("qemu-img: Cannot resize device files\n",
                                 "qemu-img: Cannot grow device files\n")
    with open(name, "r+b") as f:
        f.write(b"x" * 8192)
    if "--preallocation=full" in args or not (fmt or "--shrink" in args):  # the guest asks first
        refused(name, "NO_SPACE", "is a device of 67108864 bytes", *args, accel=accel)
    else:
        refused(name, "INVALID_NEW_SIZE", "Cannot resize device files", *fmt, *args, accel=accel)


def test_raw_of_the_same_size(accel, device, sector):
    name = device(sector)
    for args in (["+0"], ["64M"], ["--shrink", "64M"]):
        assert launch("resize", "-f", "raw", *args[:-1], name, args[-1], accel=accel).stdout == \
            "Image resized.\n"
    assert length(name) == LENGTH


def test_an_overlay_over_a_device(accel, device, sector, tmp_path):
    """A backing file may be a device; it must lie beneath a root like any other."""
    name = device(sector, 3 * MI)
    with open(name, "r+b") as f:
        f.write(b"\x66" * (3 * MI))
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", path, str(MI + KI))
    p = launch("resize", path, "5M", accel=accel)
    assert p.returncode == 1 and "does not lie in the image's directory" in p.stderr
    p = launch("resize", "--backing-dir=/dev", path, "5M", accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    assert guest_bytes(path, tmp_path) == b"\x66" * (MI + KI) + bytes(4 * MI - KI)
    assert check_status(path) == 0


def test_a_device_in_use_or_read_only(device):
    name = create(device(512), 20 * MI)
    qemu = subprocess.Popen(["qemu-io", "-f", "qcow2", name], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)
    try:
        qemu.stdin.write("read 0 512\n")
        qemu.stdin.flush()
        while "512/512" not in (line := qemu.stdout.readline()):
            assert line
        refused(name, "LOCKED", "lock", "21M")
    finally:
        qemu.stdin.close()
        qemu.wait(timeout=30)
        qemu.stdout.close()
    subprocess.run(["blockdev", "--setro", name], check=True)
    try:
        refused(name, "READ_FAILED", "The device is not writable: Permission denied", "21M")
        assert launch("resize", "--dry-run", name, "21M").returncode == 0
    finally:
        subprocess.run(["blockdev", "--setrw", name], check=True)
    assert info(name)["virtual-size"] == 20 * MI


# ---- sectors of 4096 bytes on regular files ----


SHAPES = {  # options, old size, new size, fill
    "default": ([], 20 * MI, 900 * MI, ["write -P 1 3M 5M"]),
    "unaligned": ([], 20 * MI + 512, 30 * MI, ["write -P 2 20M 512", "write -P 3 0 1M"]),
    "clusters-512": (["cluster_size=512"], 2 * MI, 17 * MI + 512, ["write -P 4 0 2M"]),
    "clusters-1k": (["cluster_size=1k", "refcount_bits=1"], 3 * MI + 512, 40 * MI,
                    ["write -P 5 1M 1M"]),
    "extl2": (["extended_l2=on", "cluster_size=16k"], 5 * MI + 512, 300 * MI,
              ["write -P 6 1M 3k", "write -P 7 5M 512"]),
}


@pytest.mark.parametrize("mode", ["off", "metadata", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_files_with_large_sectors(accel, tmp_path, shape, mode):
    """The same file comes of it as with small ones, to the next whole block; or a clear refusal
    where its length is not a whole number of blocks."""
    options, old, new, fill = SHAPES[shape]
    if mode != "off" and (accel != best_accel() or new > 100 * MI):
        pytest.skip("too much to write, or once is enough")
    path = create(tmp_path / "a.qcow2", old, *options)
    qemu_io(path, *fill)
    args = ["-f", "qcow2", f"--preallocation={mode}"]
    if os.stat(path).st_size % 4096:
        digest = sha256(path)
        p = launch("resize", *args, "--logical-block-size=4096", path, str(new), accel=accel)
        assert p.returncode == 1 and "not a whole number of blocks of 4096 bytes" in p.stderr
        assert sha256(path) == digest
        os.truncate(path, -(-os.stat(path).st_size // 4096) * 4096)
    before = guest_bytes(path, tmp_path)
    twin = copy(path, "twin.qcow2")
    os.truncate(twin, os.stat(path).st_size)
    for name, block in ((path, 4096), (twin, 512)):
        p = launch("resize", *args, f"--logical-block-size={block}", name, str(new), accel=accel)
        assert (p.returncode, p.stderr) == (0, "")
        assert check_status(name) == 0
    ours, theirs = path.read_bytes(), twin.read_bytes()
    assert ours[:len(theirs)] == theirs and not ours[len(theirs):].strip(b"\0")
    if new < 100 * MI:
        assert guest_bytes(path, tmp_path) == before + bytes(new - old)
    if os.stat(path).st_size % 4096:
        return  # cut to the byte, so that small blocks must do from here on
    p = launch("resize", "--shrink", "--logical-block-size=4096", path, str(old // 2 // 512 * 512),
               accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    assert guest_bytes(path, tmp_path) == before[:old // 2 // 512 * 512]
    assert check_status(path) == 0
