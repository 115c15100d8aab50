# SPDX-License-Identifier: MIT
"""streamOptimized VMDKs as links of a chain, end to end: an overlay that is rebased away from one
keeps what it showed, byte for byte; grains that lie are refused, and nothing has changed."""
import json
import random
import struct

import pytest

from conftest import best_accel, create, guest_bytes, launch, qemu_img, qemu_io, sha256

KI, MI = 1 << 10, 1 << 20
SEED = 20240613


def stream(path, size):
    """Bytes of every kind, and its content."""
    rng = random.Random(SEED)
    data = b"".join(rng.choice([bytes(64 * KI), rng.randbytes(64 * KI), b"ab" * (32 * KI)])
                    for _ in range(size // (64 * KI)))
    raw = path.with_suffix(".raw")
    raw.write_bytes(data)
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
    raw.unlink()
    return data


def overlay(path, name, fmt):
    qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", fmt, path)
    qemu_io(path, "write -P 7 1M 1M", "write -P 8 5M 512", "write -z 6M 64k")
    return path


@pytest.mark.parametrize("child", [False, True], ids=["stream", "child-of-a-stream"])
def test_rebase(accel, tmp_path, child):
    below = stream(tmp_path / "s.vmdk", 9 * MI)
    name = "s.vmdk"
    if child:
        name = "c.vmdk"
        qemu_img("create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "s.vmdk", tmp_path / name)
        qemu_io(tmp_path / name, "write -P 9 3M 1M", fmt="vmdk")
        below = below[:3 * MI] + b"\x09" * MI + below[4 * MI:]
    path = overlay(tmp_path / "a.qcow2", tmp_path / name, "vmdk")
    before = guest_bytes(path, tmp_path)
    assert before[:MI] == below[:MI] and before[3 * MI:5 * MI] == below[3 * MI:5 * MI]
    create(tmp_path / "new.qcow2", 9 * MI)
    qemu_io(tmp_path / "new.qcow2", "write -P 5 0 4M")
    for args in (["-b", "new.qcow2", "-F", "qcow2"], ["-b", ""]):
        p = launch("rebase", *args, path, accel=accel)
        assert (p.returncode, p.stderr) == (0, ""), p
        assert guest_bytes(path, tmp_path) == before
    qemu_img("check", "-q", path)


# name: what is written over the first grain's marker or stream
LIES = {
    "lba": (0, struct.pack("<Q", 12800)),
    "no-size": (8, bytes(4)),
    "size": (8, struct.pack("<I", 1 << 30)),
    "cut": (8, struct.pack("<I", 40)),
    "noise": (20, b"\xa5" * 40),
}


@pytest.mark.parametrize("lie", LIES)
def test_grains_that_lie(tmp_path, lie):
    stream(tmp_path / "s.vmdk", 2 * MI)
    data = bytearray((tmp_path / "s.vmdk").read_bytes())
    directory, = struct.unpack_from("<Q", data, 56)
    table, = struct.unpack_from("<I", data, directory * 512)
    grain = next(g for g in struct.unpack_from("<32I", data, table * 512) if g) * 512
    qemu_img("create", "-q", "-f", "qcow2", "-b", "s.vmdk", "-F", "vmdk", tmp_path / "a.qcow2")
    at, new = LIES[lie]
    data[grain + at:grain + at + len(new)] = new
    (tmp_path / "s.vmdk").write_bytes(data)
    before = [sha256(tmp_path / name) for name in ("s.vmdk", "a.qcow2")]
    p = launch("rebase", "--output=json", "-b", "", tmp_path / "a.qcow2", accel=best_accel())
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "OVERLAY_CORRUPT", p
    assert [sha256(tmp_path / name) for name in ("s.vmdk", "a.qcow2")] == before
