# SPDX-License-Identifier: MIT
"""instar-launch resize on images with persistent bitmaps: which bits are set is asked of QEMU, which
exports a bitmap over NBD. The scenario of iotest 246; twins that qemu-img resizes; refusals; kills."""
import json
import os
import random
import signal
import struct
import subprocess
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, be32, be64, best_accel, check_status, copy, create, header,
                      info, launch, patch, qemu_img, qemu_io, run, same_content, sha256)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SEED = 20240509
HINT = "Try block-dirty-bitmap-remove to delete this bitmap from disk"


def bitmaps(path):
    """[(name, granularity, flags)], as qemu-img lists them."""
    listed = info(path)["format-specific"]["data"].get("bitmaps", [])
    return [(b["name"], b["granularity"], b["flags"]) for b in listed]


def dirty(path, name):
    """The ranges of the disk, in bytes, that the bitmap calls dirty."""
    sock = path.parent / "nbd.sock"
    server = subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-B", name, "-k", sock, path],
                              stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not sock.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        node = f"driver=nbd,server.type=unix,server.path={sock},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
        extents = json.loads(qemu_img("map", "--output=json", "--image-opts", node).stdout)
        server.wait(timeout=TIMEOUT)  # it serves one client
    finally:
        server.kill()
        server.wait()
        sock.unlink(missing_ok=True)
    assert sum(x["length"] for x in extents) == info(path)["virtual-size"]
    return [(x["start"], x["start"] + x["length"]) for x in extents if not x["data"]]


def below(ranges, end):
    return [(a, min(b, end)) for a, b in ranges if a < end]


def with_bitmaps(path, size, granularities, writes=(), *options):
    create(path, size, *options)
    for g in granularities:
        qemu_img("bitmap", "--add", "-g", g, path, f"b{g}")
    if writes:
        qemu_io(path, *writes)  # the bitmaps are enabled: what is written gets dirty
    return path


def directory(path):
    """The offset of the bitmap directory, from the header extension."""
    head = header(path, 65536)
    at = struct.unpack_from(">I", head, 100)[0]
    while struct.unpack_from(">I", head, at)[0] != 0x23852875:
        at += 8 + (struct.unpack_from(">I", head, at + 4)[0] + 7) // 8 * 8
    return struct.unpack_from(">Q", head, at + 8 + 16)[0]


# ---- iotest 246 ----


def test_grow_and_shrink(accel, tmp_path):
    grains = [32 * KI, 64 * KI, 128 * KI]
    path = with_bitmaps(tmp_path / "a.qcow2", 64 * GI, grains,
                        ["write -q -P 1 0 1M", "write -q -P 2 1G 100k", "write -q -P 3 49G 2M",
                         "write -q -P 4 63G 3M", "write -q -P 5 65535M 1M"])
    qemu_img("bitmap", "--disable", path, f"b{grains[1]}")
    listed = bitmaps(path)
    assert len(listed) == 3 and listed[1][2] == []
    before = {g: dirty(path, f"b{g}") for g in grains}
    assert all(len(before[g]) >= 5 for g in grains)
    for size, shrink in ((70 * GI, []), (50 * GI, ["--shrink"]), (50 * GI + 5 * MI + 512, [])):
        p = launch("resize", *shrink, path, str(size), accel=accel)
        assert p.returncode == 0, p.stderr
        assert bitmaps(path) == listed and check_status(path) == 0
        assert info(path)["virtual-size"] == size
        for g in grains:
            before[g] = below(before[g], size)
            assert dirty(path, f"b{g}") == before[g], (size, g)
    assert 49 * GI < before[grains[0]][-1][1] < 50 * GI
    # and QEMU goes on with them: new ones, old ones, none
    qemu_io(path, "write -q -P 6 50G 5M", "read -q -P 1 0 1M", "read -q -P 3 49G 2M")
    assert dirty(path, f"b{grains[0]}") == before[grains[0]] + [(50 * GI, 50 * GI + 5 * MI)]
    assert dirty(path, f"b{grains[1]}") == before[grains[1]]
    qemu_img("bitmap", "--add", path, "new")
    for name, _, _ in bitmaps(path):
        qemu_img("bitmap", "--remove", path, name)
    assert bitmaps(path) == [] and check_status(path) == 0


# ---- twins ----

# name: (old size, new size, granularities, writes, options of create, more arguments)
TWINS = {
    "clusters-512": (3 * MI, 9 * MI, [512, KI], ["write -q 0 1k", "write -q 2M 1M"],
                     ["cluster_size=512"], []),
    "clusters-512-tables": (200 * MI, 600 * MI, [512, 4 * KI], ["write -q 1M 70k", "write -q 199M 1M"],
                            ["cluster_size=512"], []),
    "clusters-4k": (99 * MI + 512, 4 * GI, [512, 64 * KI], ["write -q 90M 9M"],
                    ["cluster_size=4k"], []),
    "clusters-2M": (99 * MI, TI, [64 * KI, 2 * GI], ["write -q 90M 9M"],
                    ["cluster_size=2M"], []),
    "counts-1": (20 * MI, 200 * MI, [512], ["write -q 3M 9M"],
                 ["cluster_size=512", "refcount_bits=1"], []),
    "counts-64": (20 * MI, 200 * MI, [512], ["write -q 3M 9M"],
                  ["cluster_size=512", "refcount_bits=64"], []),
    "extended-l2": (20 * MI + 512, 90 * MI, [32 * KI], ["write -q 3M 9M"], ["extended_l2=on"], []),
    "preallocated": (20 * MI, 30 * MI, [64 * KI], ["write -q 3M 9M"], [],
                     ["--preallocation=metadata"]),
    "large": (64 * GI, 300 * GI, [4 * KI, MI], ["write -q 3M 9M", "write -q 60G 1M"], [], []),
}


def twins(path, args, size, accel):
    """Resizes by both programs; the same bitmaps, bits and content after it."""
    names = [b[0] for b in bitmaps(path)]
    twin = copy(path, "twin.qcow2")
    qemu_img("resize", "-q", "-f", "qcow2", *args, twin, size)
    p = launch("resize", *args, path, str(size), accel=accel)
    assert p.returncode == 0, p.stderr
    assert bitmaps(path) == bitmaps(twin) and [b[0] for b in bitmaps(path)] == names
    assert check_status(path) == 0 and same_content(path, twin)
    for b in names:
        assert dirty(path, b) == dirty(twin, b)


@pytest.mark.parametrize("name", TWINS)
def test_as_qemu_img_does(tmp_path, name):
    old, new, grains, writes, options, args = TWINS[name]
    path = with_bitmaps(tmp_path / "a.qcow2", old, grains, writes, *options)
    twins(path, args, new, None)
    listed = bitmaps(path)
    before = {b: dirty(path, b) for b, _, _ in listed}
    assert all(before.values())
    # qemu-img would take minutes for these with small clusters
    for size in (old // 512 // 3 * 512 + 512, 64 * KI):
        p = launch("resize", "--shrink", path, str(size))
        assert p.returncode == 0, p.stderr
        assert bitmaps(path) == listed and check_status(path) == 0
        for b in before:
            assert dirty(path, b) == below(before[b], size)


def test_with_snapshots(accel, tmp_path):
    path = with_bitmaps(tmp_path / "a.qcow2", 9 * MI + 512, [64 * KI], ["write -q -P 1 0 9M"])
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -q -P 2 3M 1M")
    twins(path, [], 40 * MI, accel)
    twins(path, ["--shrink"], 3 * MI + 512, accel)
    qemu_img("bitmap", "--remove", path, f"b{64 * KI}")  # or qemu-img refuses what follows
    qemu_img("snapshot", "-a", "s", path)
    assert info(path)["virtual-size"] == 9 * MI + 512 and check_status(path) == 0
    qemu_io(path, "read -q -P 1 0 9M")


def test_with_a_longer_backing_file(accel, tmp_path):
    base = create(tmp_path / "base.qcow2", 8 * MI)
    qemu_io(base, "write -q -P 1 0 8M")
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path, str(MI + 512))
    qemu_img("bitmap", "--add", "-g", "512", path, "b")
    qemu_io(path, "write -q -P 2 64k 64k")
    p = launch("resize", path, str(9 * MI), accel=accel)
    assert p.returncode == 0, p.stderr
    assert check_status(path) == 0 and dirty(path, "b") == [(64 * KI, 128 * KI)]
    qemu_io(path, "read -q -P 1 0 64k", "read -q -P 2 64k 64k", "read -q -P 1 1M 512",
            f"read -q -P 0 {MI + 512} {8 * MI - 512}")


# ---- refused, ignored, shown ----


@pytest.mark.parametrize("args", [["+1M"], ["--shrink", "-512k"]], ids=["grow", "shrink"])
def test_in_use(accel, tmp_path, args):
    path = with_bitmaps(tmp_path / "a.qcow2", 9 * MI, [64 * KI, MI], ["write -q 0 1M"])
    patch(path, directory(path) + 12, be32(1))
    twin = copy(path, "twin.qcow2")
    before, mtime = sha256(path), os.stat(path).st_mtime_ns
    ours = launch("resize", *args[:-1], "--", path, args[-1], accel=accel)
    theirs = qemu_img("resize", *args[:-1], "-f", "qcow2", "--", twin, args[-1], check=False)
    assert ours.returncode == theirs.returncode == 1
    line = f"Bitmap 'b{64 * KI}' is inconsistent and cannot be used\n"
    assert ours.stderr == f"instar-launch: {line}instar-launch: {HINT}\n"
    assert theirs.stderr == f"qemu-img: {line}{HINT}\n"
    assert sha256(path) == before and os.stat(path).st_mtime_ns == mtime
    p = launch("resize", "--output=json", *args[:-1], "--", path, args[-1], accel=accel)
    assert json.loads(p.stdout)["code"] == "BITMAPS_UNSUPPORTED"
    qemu_img("bitmap", "--remove", path, f"b{64 * KI}")
    assert launch("resize", *args[:-1], "--", path, args[-1], accel=accel).returncode == 0
    assert dirty(path, f"b{MI}") == [(0, MI)] and check_status(path) == 0


def test_in_use_after_a_kill(tmp_path):
    """The dirty bit is set as well, and yet nothing is repaired for a request that is refused."""
    path = with_bitmaps(tmp_path / "a.qcow2", 9 * MI, [64 * KI], ["write -q 0 1M"])
    patch(path, directory(path) + 12, be32(1))
    patch(path, 79, b"\1")
    before = sha256(path)
    for args in (["20M"], ["--shrink", "5M"]):
        p = launch("resize", "--output=json", *args[:-1], path, args[-1])
        assert p.returncode == 1 and json.loads(p.stdout)["code"] == "BITMAPS_UNSUPPORTED"
        assert sha256(path) == before


def test_stale(accel, tmp_path):
    """What some other program has made stale is left as it is, and leaks, as it did before."""
    path = with_bitmaps(tmp_path / "a.qcow2", 9 * MI, [64 * KI], ["write -q -P 1 0 1M"])
    patch(path, 88, be64(0))
    at = directory(path)
    entry = path.read_bytes()[at:at + 64]
    p = launch("resize", path, "20M", accel=accel)
    assert p.returncode == 0, p.stderr
    assert header(path)[88:96] == be64(0) and path.read_bytes()[at:at + 64] == entry
    assert info(path)["virtual-size"] == 20 * MI and bitmaps(path) == []
    qemu_img("check", "-q", "-r", "leaks", "-f", "qcow2", path)
    qemu_io(path, "read -q -P 1 0 1M", f"read -q -P 0 1M {19 * MI}")


def test_dry_run(tmp_path):
    path = with_bitmaps(tmp_path / "a.qcow2", 9 * MI, [64 * KI])
    before = sha256(path)
    p = launch("resize", "--dry-run", path, "20M")
    assert p.returncode == 0 and "bitmaps are stale while" in p.stdout
    assert sha256(path) == before


# ---- killed ----


def test_killed_at_any_moment(tmp_path):
    """The bitmaps are right, or declared stale; the rest as without bitmaps."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = with_bitmaps(tmp_path / "a.qcow2", 200 * MI, [512, 4 * KI],
                        ["write -q -P 1 1M 70k", "write -q -P 2 199M 1M"], "cluster_size=512")
    want = dirty(path, "b512")
    original = copy(path, "original.qcow2")
    seen = {"valid": 0, "stale": 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "24"))):
        victim = copy(original, "victim.qcow2")
        p = subprocess.Popen([LAUNCH, "resize", "-q", "--accel", best_accel(), victim, "600M"],
                             stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.random() * 0.08)
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        while (status := check_status(victim)) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status in (0, 3), f"kill {i}"
        size = info(victim)["virtual-size"]
        assert size in (200 * MI, 600 * MI) and same_content(victim, original), f"kill {i}"
        if bitmaps(victim):
            assert dirty(victim, "b512") == want, f"kill {i}"
        else:
            assert size == 200 * MI
        seen["valid" if bitmaps(victim) else "stale"] += 1
        assert launch("resize", "-q", victim, "600M").returncode == 0
        assert check_status(victim) in (0, 3) and same_content(victim, original)
    print("killed runs left bitmaps:", seen)
    assert seen["valid"] > 0
