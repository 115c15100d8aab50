# SPDX-License-Identifier: MIT
"""instar-launch resize --shrink: what stays, what goes, and that what went never comes back."""
import json
import os
import random
import signal
import struct
import subprocess
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, be32, be64, best_accel, check_status, copy, create,
                      guest_bytes, has_extended_l2, header, host, info, launch, outcome, patch,
                      qemu_img, qemu_io, resize_request, run, same_content, sha256, size_by_7zz,
                      size_by_qcowinfo)

KI, MI, GI, TI, PI = 1 << 10, 1 << 20, 1 << 30, 1 << 40, 1 << 50
SEED = 20240301
SECRET = ["--object", "secret,id=s,data=x"]
REFUSAL_CODES = {"PARSE_FAILED", "OVERLAY_CORRUPT", "INCONSISTENT", "UNSUPPORTED_FEATURE",
                 "READ_FAILED", "POLICY_REFUSED", "BACKING_PATH_TOO_LONG"}


def compressed(path, kind, size):
    raw = path.parent / "source.raw"
    r = random.Random(SEED)
    raw.write_bytes(b"".join(r.randbytes(5000) + b"words" * 12000 for _ in range(size // 65000 + 1))
                    [:size])
    version = ["compat=0.10"] if kind == "zlib-v2" else [f"compression_type={kind}"]
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *[x for o in version for x in ("-o", o)],
             raw, path)
    raw.unlink()


# name: (options of qemu-img create or kind of compression, old size, new size, fill)
SHAPES = {
    "aligned": ([], 4 * MI, MI, ["write -P 1 0 4M"]),
    "into-a-cluster": ([], 4 * MI, MI + 37 * KI + 512, ["write -P 2 0 4M"]),
    "to-512": ([], 4 * MI, 512, ["write -P 3 0 4M"]),
    "by-512": ([], 4 * MI, 4 * MI - 512, ["write -P 4 0 4M"]),
    "unaligned-both": ([], 4 * MI - 512, MI + 512, ["write -P 5 0 3M", "write -P 6 3M 1048064"]),
    "empty": ([], 4 * GI, MI, []),
    "v2": (["compat=0.10"], 4 * MI, MI + 512, ["write -P 6 0 4M"]),
    "clusters-512": (["cluster_size=512"], 4 * MI, MI + 1024, ["write -P 7 0 4M"]),
    "clusters-4k": (["cluster_size=4k"], 12 * MI, 3 * MI + 512, ["write -P 8 1M 10M"]),
    "clusters-2M": (["cluster_size=2M"], 20 * MI, 5 * MI, ["write -P 9 3M 3M", "write 18M 64k"]),
    "counts-1": (["refcount_bits=1", "cluster_size=1k"], 8 * MI, 2 * MI + 512,
                 ["write -P 10 0 8M"]),
    "counts-64": (["refcount_bits=64", "cluster_size=1k"], 8 * MI, 2 * MI + 512,
                  ["write -P 11 0 8M"]),
    "extl2": (["extended_l2=on", "cluster_size=16k"], 20 * MI, 5 * MI + 512,
              ["write -P 12 0 7M", "write -z 5M 64k", "write -P 13 9M 3k", "write -P 14 19M 1M",
               "write -P 15 5119k 2k"]),
    "extl2-64k": (["extended_l2=on"], 20 * MI, 5 * MI + 9 * KI,
                  ["write -P 12 0 7M", "write -z 5M 6k", "write -P 14 19M 1M"]),
    "preallocated": (["preallocation=metadata"], 20 * MI, 5 * MI, ["write -P 16 3M 4M"]),
    "preallocated-full": (["preallocation=full"], 8 * MI, 2 * MI + 512, ["write -P 17 1M 4M"]),
    "zeros": ([], 20 * MI, 5 * MI + 512,
              ["write -P 18 4M 4M", "write -z 4M 2M", "write -z 12M 4M", "write -P 19 19M 1M"]),
    "zeros-at-the-end": ([], 20 * MI, 5 * MI + 512,
                         ["write -P 18 4M 4M", "write -z 5M 64k", "write -P 19 5184k 1k"]),
    "many-l1-entries": (["cluster_size=512"], 12 * MI, 3 * MI,
                        [f"write -P {20 + i} {i}M 3k" for i in range(12)]),
    "descending": ([], 16 * MI, 6 * MI, [f"write -P {30 + i} {15 - i}M 1M" for i in range(16)]),
    "zlib": ("zlib", 3 * MI, MI, []),
    "zlib-unaligned": ("zlib", 3 * MI, MI + 33 * KI, []),
    "zlib-v2": ("zlib-v2", 3 * MI, MI + 33 * KI, []),
    "zstd": ("zstd", 3 * MI, MI, []),
    "zstd-unaligned": ("zstd", 3 * MI, MI + 33 * KI, []),
}
CHEAP_UNDER_TCG = {"into-a-cluster", "v2", "extl2", "zeros", "zstd-unaligned", "zlib-unaligned"}


def make(tmp_path, shape):
    options, old, new, commands = SHAPES[shape]
    path = tmp_path / "a.qcow2"
    if isinstance(options, str):
        compressed(path, options, old)
    else:
        create(path, old, *options)
    if commands:
        qemu_io(path, *commands)
    return path, old, new


def shrink(path, new, *args, accel=None):
    p = launch("resize", "-f", "qcow2", "--shrink", *args, path, str(new),
               accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")


def tables(path):
    """(l1_size, L1 entries, refcount table entries)"""
    with open(path, "rb") as f:
        head = f.read(112)
        l1_size, l1, rt, rt_clusters = struct.unpack_from(">IQQI", head, 36)
        f.seek(l1)
        l1_entries = struct.unpack(f">{l1_size}Q", f.read(l1_size * 8).ljust(l1_size * 8, b"\0"))
        f.seek(rt)
        n = (rt_clusters << struct.unpack_from(">I", head, 20)[0]) // 8
        return l1_size, l1_entries, struct.unpack(f">{n}Q", f.read(n * 8))


def no_empty_refcount_blocks(path):
    cluster = info(path)["cluster-size"]
    with open(path, "rb") as f:
        for off in tables(path)[2]:
            f.seek(off)
            assert not off or f.read(cluster).strip(b"\0")


@pytest.mark.parametrize("shape", SHAPES)
def test_shrink(accel, tmp_path, shape):
    if accel == "tcg" and shape not in CHEAP_UNDER_TCG and best_accel() == "kvm":
        pytest.skip("under KVM only, to save time")
    path, old, new = make(tmp_path, shape)
    small = old <= 64 * MI
    before = guest_bytes(path, tmp_path) if small else None
    length = os.stat(path).st_size
    if accel == best_accel():
        twin = copy(path, "twin.qcow2")
        status, events = host("resize", resize_request(twin, new, shrink=True), twin, tmp_path)
        result = outcome(events).resize
        assert (status, result.action, result.resolved_new_virtual_size) == (0, "shrink", new)
    shrink(path, new, accel=accel)
    if accel == best_accel():  # the host build makes the same file
        assert result.file_size_after == os.stat(path).st_size == os.stat(twin).st_size
        assert sha256(path) == sha256(twin)
    assert info(path)["virtual-size"] == new and check_status(path) == 0
    if not has_extended_l2(path) and not shape.startswith("zstd"):  # which they cannot read
        assert size_by_qcowinfo(path) == new
        if not shape.startswith("zeros"):
            assert size_by_7zz(path) == new
    # a compressed cluster at the new end is unpacked into one more
    length += 65536 if shape in ("zlib-unaligned", "zlib-v2", "zstd-unaligned") else 0
    assert os.stat(path).st_size <= (length + 65535) // 65536 * 65536
    no_empty_refcount_blocks(path)
    if not small:
        return
    assert guest_bytes(path, tmp_path) == before[:new]
    # neither our own grow nor qemu-img's shows what was there
    twin = copy(path, "twin.qcow2")
    qemu_img("resize", "-q", "-f", "qcow2", twin, str(old))
    assert launch("resize", "-f", "qcow2", path, str(old), accel=accel).returncode == 0
    for grown in (path, twin):
        after = guest_bytes(grown, tmp_path)
        assert after[:new] == before[:new] and not after[new:].strip(b"\0")
        assert check_status(grown) == 0
    qemu_io(path, f"write -P 0xee {old - 512} 512")
    assert check_status(path) == 0


@pytest.mark.parametrize("size", [16 * TI, 2 * PI], ids=["16T", "2P"])
def test_large_and_empty(accel, tmp_path, size):
    """qemu-img writes a table for every hole first: minutes, or never."""
    if size == 2 * PI and accel != best_accel():
        pytest.skip("once is enough")
    path = create(tmp_path / "a.qcow2", size)
    qemu_io(path, "write -P 7 0 64k", f"write -P 8 {size - MI} 1M")
    start = time.monotonic()
    shrink(path, GI, accel=accel)
    assert time.monotonic() - start < 10
    assert os.stat(path).st_blocks * 512 < 8 * MI
    qemu_io(path, "read -P 7 0 64k", "read -P 0 64k 900M")
    assert check_status(path) == 0 and info(path)["virtual-size"] == GI


def test_file_is_truncated_and_punched(accel, tmp_path):
    """What is freed at the end shortens the file, what is freed in the middle gives blocks back."""
    path = create(tmp_path / "a.qcow2", 16 * MI)
    qemu_io(path, "write -P 1 0 16M")
    shrink(path, MI, accel=accel)
    assert os.stat(path).st_size < 2 * MI and os.stat(path).st_blocks * 512 < 2 * MI
    path = create(tmp_path / "b.qcow2", 16 * MI)
    qemu_io(path, "write -P 1 8M 8M", "write -P 2 0 8M")
    stat = os.stat(path)
    shrink(path, 8 * MI, accel=accel)
    now = os.stat(path)
    assert now.st_size <= stat.st_size
    # a block or two of the host's own extents may come with the holes
    assert (stat.st_blocks - now.st_blocks) * 512 >= 8 * MI - (64 << 10)
    qemu_io(path, "read -P 2 0 8M")


# ---- snapshots ----


@pytest.mark.parametrize("new", [MI, MI + 37 * KI], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("options", [[], ["cluster_size=4k", "refcount_bits=64"],
                                     ["cluster_size=16k", "extended_l2=on"]],
                         ids=["default", "4k-64", "extl2"])
def test_snapshots(tmp_path, options, new):
    path = create(tmp_path / "a.qcow2", 4 * MI, *options)
    qemu_io(path, "write -P 1 0 4M")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 0 64k", "write -z 2M 256k")
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 3 1M 64k")
    content = guest_bytes(path, tmp_path)
    states = {}
    for name in ("one", "two"):
        whole = copy(path, "whole.qcow2")
        qemu_img("snapshot", "-a", name, whole)
        states[name] = guest_bytes(whole, tmp_path)
    shrink(path, new)
    assert check_status(path) == 0
    assert guest_bytes(path, tmp_path) == content[:new]
    twin = copy(path, "twin.qcow2")
    assert launch("resize", twin, "4M").returncode == 0
    assert guest_bytes(twin, tmp_path) == content[:new] + bytes(4 * MI - new)
    for image in (path, twin):
        for name, state in states.items():
            qemu_img("snapshot", "-a", name, image)
            assert check_status(image) == 0
            assert guest_bytes(image, tmp_path) == state


def test_resize_between_snapshots(tmp_path):
    """qemu-iotests 061: versions, snapshots and sizes."""
    path = create(tmp_path / "a.qcow2", 32 * MI, "compat=0.10")
    qemu_io(path, "write -P 1 24M 64k")
    qemu_img("snapshot", "-c", "small", path)
    digest = sha256(path)
    for args in (["64M"], ["--shrink", "16M"]):
        p = launch("resize", "-f", "qcow2", "--output=json", *args[:-1], path, args[-1])
        assert p.returncode == 1 and json.loads(p.stdout)["code"] == "UNSUPPORTED_FEATURE"
    assert sha256(path) == digest
    qemu_img("amend", "-f", "qcow2", "-o", "compat=1.1", path)
    assert launch("resize", path, "128M").returncode == 0
    qemu_io(path, "write -P 2 100M 64k")
    qemu_img("snapshot", "-c", "large", path)
    shrink(path, 64 * MI)
    assert check_status(path) == 0
    qemu_io(path, "read -P 1 24M 64k", "read -P 0 32M 32M")
    qemu_img("snapshot", "-a", "large", path)
    assert info(path)["virtual-size"] == 128 * MI
    qemu_io(path, "read -P 1 24M 64k", "read -P 2 100M 64k")
    qemu_img("snapshot", "-a", "small", path)
    assert info(path)["virtual-size"] == 32 * MI and check_status(path) == 0
    qemu_img("snapshot", "-d", "large", path)
    qemu_img("snapshot", "-d", "small", path)
    qemu_img("amend", "-f", "qcow2", "-o", "compat=0.10", path)
    assert check_status(path) == 0


# ---- overlays ----


@pytest.mark.parametrize("new", [512 * KI, 520 * KI])
@pytest.mark.parametrize("options", [[], ["compat=0.10"], ["extended_l2=on"]],
                         ids=["default", "v2", "extl2"])
def test_overlay(tmp_path, options, new):
    """qemu-iotests 292: after shrink and grow neither the overlay's old bytes nor the base's."""
    base = create(tmp_path / "base.qcow2", MI)
    qemu_io(base, "write -P 0x11 0 1M")
    path = create(tmp_path / "a.qcow2", MI, "backing_file=base.qcow2", "backing_fmt=qcow2",
                  *options)
    qemu_io(path, "write -P 0x22 0 1M")
    digest = sha256(base)
    shrink(path, new)
    assert check_status(path) == 0 and sha256(base) == digest
    assert launch("resize", path, "567K").returncode == 0
    qemu_io(path, f"read -P 0x22 0 {new}", f"read -P 0 {new} {567 * KI - new}")
    assert check_status(path) == 0
    if new % (64 * KI):  # all in one cluster, so one extent
        lines = qemu_img("map", "-f", "qcow2", path).stdout.splitlines()
        assert len(lines) == 2 and lines[1].split()[1] == "0x8dc00"


def test_overlay_that_shows_its_base_at_the_new_end(tmp_path):
    """The last cluster is a hole: what the base holds there must not show after a grow."""
    base = create(tmp_path / "base.qcow2", MI)
    qemu_io(base, "write -P 0x11 0 1M")
    path = create(tmp_path / "a.qcow2", MI, "backing_file=base.qcow2", "backing_fmt=qcow2")
    shrink(path, 520 * KI)
    assert launch("resize", path, "1M").returncode == 0
    qemu_io(path, "read -P 0x11 0 520k", "read -P 0 520k 504k")
    assert check_status(path) == 0


def test_shrink_opens_no_backing_file(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "absent", "-F", "raw", path, "4M")
    shrink(path, MI, "--no-backing")
    assert info(path)["virtual-size"] == MI


# ---- encrypted ----


def test_luks(tmp_path):
    """Without the key nothing can be zeroed, so the new end must be a cluster's."""
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o",
             "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "4M")
    opts = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"

    def io(*commands):
        p = run("qemu-io", *SECRET, *[x for c in commands for x in ("-c", c)], "--image-opts",
                opts, check=True)
        assert "failed" not in p.stdout + p.stderr, p.stdout + p.stderr
    io("write -P 0x44 0 4M")
    digest = sha256(path)
    p = launch("resize", "--shrink", "-f", "qcow2", path, "545K")
    assert p.returncode == 1 and "encrypted" in p.stderr
    p = launch("resize", "--output=json", "--shrink", "-f", "qcow2", path, "545K")
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "LUKS_UNSUPPORTED"
    assert sha256(path) == digest
    shrink(path, MI)
    io("read -P 0x44 0 1M")
    qemu_img("check", *SECRET, "--image-opts", opts)
    assert info(path)["virtual-size"] == MI and info(path)["encrypted"]


# ---- flags, raw ----


def test_flag_and_size(tmp_path):
    path = create(tmp_path / "a.qcow2", 4 * MI)
    digest = sha256(path)
    for args, code in ((["1M"], "SHRINK_WITHOUT_FLAG"), (["--shrink", "0"], "INVALID_NEW_SIZE"),
                       (["--shrink", "-4M"], "INVALID_NEW_SIZE"),
                       (["--shrink", "1000"], "INVALID_NEW_SIZE"),
                       (["--dry-run", "1M"], "SHRINK_WITHOUT_FLAG")):
        p = launch("resize", "-f", "qcow2", "--output=json", *args[:-1], "--", path, args[-1])
        assert p.returncode == 1 and json.loads(p.stdout)["code"] == code, args
        assert sha256(path) == digest
    for size in ("4M", "+0"):  # is no shrink, and --shrink does no harm
        p = launch("resize", "-f", "qcow2", "--shrink", path, size)
        assert (p.returncode, p.stderr) == (0, "") and sha256(path) == digest
    assert launch("resize", "--shrink", "-f", "qcow2", path, "5M").returncode == 0
    p = launch("resize", "--output=json", "--shrink", "-f", "qcow2", path, "1M")
    shown = json.loads(p.stdout)
    assert (shown["action"], shown["old_virtual_size"], shown["new_virtual_size"]) == \
        ("shrink", 5 * MI, MI)


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
@pytest.mark.parametrize("old,new", [(4 * MI, MI), (4 * MI, MI + 1), (MI + 511, 999), (700, 1)])
def test_raw(tmp_path, fmt, old, new):
    path = tmp_path / "a.raw"
    data = random.Random(SEED).randbytes(old)
    path.write_bytes(data)
    p = launch("resize", *fmt, path, str(new))
    assert p.returncode == 1 and "--shrink" in p.stderr and path.read_bytes() == data
    p = launch("resize", *fmt, "--shrink", path, str(new))
    assert (p.returncode, p.stdout) == (0, "Image resized.\n")
    assert bool(fmt) == (p.stderr == "")
    if not fmt:
        assert p.stderr.splitlines()[0].endswith("and probing guessed raw.")
        assert p.stderr.count("\n") == 3
    assert path.read_bytes() == data[:new]
    p = launch("resize", *fmt, path, str(old))
    assert p.returncode == 0 and path.read_bytes() == data[:new] + bytes(old - new)


# ---- from qemu-iotests ----


@pytest.mark.parametrize("fill", ["empty", "sequential", "random"])
@pytest.mark.parametrize("cluster,bits,old,new", [("512", 64, 3 * MI, MI),
                                                  ("64k", 16, 128 * MI, 10 * MI),
                                                  ("1M", 1, 128 * MI, 10 * MI)])
def test_163(tmp_path, cluster, bits, old, new, fill):
    path = create(tmp_path / "a.qcow2", old, f"cluster_size={cluster}", f"refcount_bits={bits}")
    step = old // 128
    order = list(range(128))
    if fill == "random":
        random.Random(SEED).shuffle(order)
    if fill != "empty":
        qemu_io(path, *[f"write -P {1 + i} {i * step} {min(step, 128 * KI)}" for i in order])
    path, reference = (copy(path, n) for n in ("b.qcow2", "reference.qcow2"))  # alike in holes
    shrink(path, new)
    qemu_img("resize", "-q", "--shrink", "-f", "qcow2", reference, str(new))
    assert info(path)["virtual-size"] == new and same_content(path, reference)
    size = info(path)["cluster-size"]
    needed = -(-new // (size * (size // 8)))
    assert not any(tables(path)[1][needed:])
    no_empty_refcount_blocks(path)
    assert check_status(path) == 0
    assert os.stat(path).st_blocks <= os.stat(reference).st_blocks + 2 * size // 512


@pytest.mark.parametrize("options", [[], ["preallocation=metadata"]], ids=["plain", "metadata"])
def test_250(accel, tmp_path, options):
    """Data of both ends, in the wrong order in the file: the end's is punched out."""
    path = create(tmp_path / "a.qcow2", 2100 * MI, "cluster_size=1M", *options)
    qemu_io(path, "write -P 1 2084M 16M", "write -P 2 0 5M")
    blocks = os.stat(path).st_blocks
    shrink(path, 5 * MI, accel=accel)
    assert (blocks - os.stat(path).st_blocks) * 512 >= 15 * MI
    qemu_io(path, "read -P 2 0 5M")
    assert check_status(path) == 0


# name: (options, [(reftable index, entry)], length that the file gets)
BAD_BLOCKS = {
    "far-away": ([], [(1, 0x00FFFFFF00000000)], 0),
    "behind-the-end": (["refcount_bits=1"], [(1, 0x1000000000)], 0),
    "not-covered": (["refcount_bits=1"], [(1, 0x1000000000)], 0x1000010000),
    "covered-by-an-unaligned-one": (["refcount_bits=1"], [(1, 0x1000000000), (2, 0x200)], 0),
    "unaligned-in-a-longer-file": (["refcount_bits=1"], [(1, 0x1000000000), (2, 0x200)],
                                   0x1000010000),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_060_bad_refcount_blocks(tmp_path, name):
    """Refused before anything changes, and without marking the image; works once repaired."""
    options, entries, length = BAD_BLOCKS[name]
    path = create(tmp_path / "a.qcow2", 64 * MI, *options)
    qemu_io(path, "write -P 1 0 1M", "write -P 2 60M 1M")
    rt, = struct.unpack_from(">Q", header(path), 48)
    for i, entry in entries:
        patch(path, rt + 8 * i, be64(entry))
    if length:
        os.truncate(path, length)
    digest = sha256(path) if not length else header(path, MI)
    p = launch("resize", "-f", "qcow2", "--shrink", path, "32M")
    assert p.returncode == 1 and p.stderr.startswith("instar-launch: ") and p.stdout == ""
    p = launch("resize", "-f", "qcow2", "--output=json", "--shrink", path, "32M")
    assert p.returncode == 1
    assert json.loads(p.stdout)["code"] in ("INCONSISTENT", "OVERLAY_CORRUPT")
    assert digest == (sha256(path) if not length else header(path, MI))
    assert not length or os.stat(path).st_size == length
    for _ in range(2):
        qemu_img("check", "-q", "-f", "qcow2", "-r", "all", path, check=False)
    assert check_status(path) == 0
    shrink(path, 32 * MI)
    assert check_status(path) == 0
    qemu_io(path, "read -P 1 0 1M", "read -P 0 1M 31M")


@pytest.mark.parametrize("entries", [(0, 1), (1, 7), (0, "new")])
@pytest.mark.parametrize("size", ["100k", "100864"])
def test_refcount_blocks_that_are_one(tmp_path, entries, size):
    """Two entries of the refcount table name the same block: what one frees, the other counts."""
    path = create(tmp_path / "a.qcow2", MI, "cluster_size=512")
    qemu_io(path, "write -P 1 0 1M")
    rt, = struct.unpack_from(">Q", header(path), 48)
    table = tables(path)[2]
    keep, other = entries
    other = table.index(0) if other == "new" else other
    assert table[keep] and (table[other] or entries[1] == "new")
    patch(path, rt + 8 * other, be64(table[keep]))
    patch(path, 88, be64(1 << 50))  # not even this is cleared
    digest, stat = sha256(path), os.stat(path)
    p = launch("resize", "-f", "qcow2", "--output=json", "--shrink", path, size)
    assert p.returncode == 1
    said = json.loads(p.stdout)
    assert said["code"] == "OVERLAY_CORRUPT" and "Two refcount blocks stand at" in said["error"]
    assert sha256(path) == digest and os.stat(path).st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("options", [[], ["compat=0.10"], ["cluster_size=512"]])
def test_042_no_size(tmp_path, options):
    path = create(tmp_path / "a.qcow2", 0, *options)
    assert check_status(path) == 0
    digest = sha256(path)
    for args in (["0"], ["--shrink", "0"], ["+0"], ["--shrink", "-1"]):
        p = launch("resize", "-f", "qcow2", *args[:-1], "--", path, args[-1])
        assert p.returncode == 1 and "New image size must be positive" in p.stderr
        assert sha256(path) == digest
    assert launch("resize", "-f", "qcow2", path, "+1M").returncode == 0
    qemu_io(path, "write -P 1 0 1M")
    shrink(path, 512)
    assert check_status(path) == 0 and guest_bytes(path, tmp_path) == b"\1" * 512


def at_snapshot(offset, value):
    def change(path):
        patch(path, struct.unpack_from(">Q", header(path), 64)[0] + offset, value)
    return change


def in_l2(value):
    def change(path):
        patch(path, tables(path)[1][0] & 0x00FFFFFFFFFFFE00, value)
    return change


def fields(*pairs):
    def change(path):
        for off, value in pairs:
            patch(path, off, value)
    return change


EXT = (104, be32(0x12345678) + be32(0x7FFFFFFF))
ALL = b"\xff" * 4
# name: (change, must it be refused: None where the field does not matter to a resize)
FUZZ_080 = {
    "header-length-ffffffff": (fields((100, ALL)), True),
    "header-length-7fffffff": (fields((100, be32(0x7FFFFFFF))), True),
    "extension-length": (fields(EXT), True),
    "extension-length-backing-in-front": (fields(EXT, (8, be64(0x68)), (16, be32(1))), True),
    "extension-length-backing-far": (fields(EXT, (8, be64(2**63 - 1)), (16, be32(1))), True),
    "extension-length-backing-all": (fields(EXT, (8, ALL + ALL), (16, be32(1))), True),
    "reftable-clusters-ffffffff": (fields((56, ALL)), True),
    "reftable-clusters-20001": (fields((56, be32(0x20001))), True),
    "reftable-offset-unaligned": (fields((48, be64(0x1234567890ABCDEF))), True),
    "reftable-offset-huge": (fields((48, be64(0xFFFFFFFFFFFF0000))), True),
    "snapshots-ffffffff": (fields((60, ALL)), True),
    "snapshots-7fffffff": (fields((60, be32(0x7FFFFFFF))), True),
    "snapshots-offset-overflow": (fields((60, be32(0xFFFF)), (64, be64(0xFFFFFFFFFFFF0000))),
                                  True),
    "snapshots-offset-unaligned": (fields((64, be64(0x1234567890ABCDEF))), True),
    "l1-size-ffffffff": (fields((36, ALL)), True),
    "l1-size-7fffffff": (fields((36, be32(0x7FFFFFFF))), True),
    "l1-offset-huge": (fields((40, be64(0x7FFFFFFFFFFF0000))), True),
    "l1-offset-unaligned": (fields((40, be64(0x1234567890ABCDEF))), True),
    "l1-size-0": (fields((36, be32(0))), True),
    "backing-size-ffffffff": (fields((8, be64(0x1000)), (16, ALL)), True),
    "l2-entry-huge": (in_l2(be64(0xBFFFFFFFFFFF0000)), None),
    "snapshot-l1-offset-unaligned": (at_snapshot(0, be64(0x1234567890ABCDEF)), None),
    "snapshot-l1-size": (at_snapshot(8, be32(0x10000000)), None),
}


@pytest.mark.parametrize("name", FUZZ_080)
def test_080_fuzzed_fields(tmp_path, name):
    change, must = FUZZ_080[name]
    path = create(tmp_path / "a.qcow2", 64 * MI)
    qemu_io(path, "write -P 1 0 128k", "write -P 2 40M 64k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 3 0 64k")
    change(path)
    digest, length = sha256(path), os.stat(path).st_size
    for args in (["--shrink", "32M"], ["--shrink", "31M"], ["3G"]):
        victim = copy(path, "victim.qcow2")
        os.truncate(victim, length)
        p = launch("resize", "-f", "qcow2", "--output=json", *args[:-1], victim, args[-1])
        assert p.returncode == 1 or (p.returncode == 0 and not must), (args, p)
        if p.returncode:
            said = json.loads(p.stdout)
            assert said["code"] in REFUSAL_CODES and said["error"], (args, p)
            assert sha256(victim) == digest
        assert os.stat(victim).st_size <= length + 4 * MI


# ---- killed ----


def test_killed_at_any_moment(tmp_path):
    """SIGKILL of the launcher: old size with all data, or new size with what remains; leaks at
    most; and it can be run again."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = create(tmp_path / "a.qcow2", 8 * MI, "cluster_size=512")
    qemu_io(path, *[f"write -P {1 + i} {(i * 37 % 64) * 128}k 128k" for i in range(64)])
    new = 3 * MI + 512
    original, done = copy(path, "original.qcow2"), copy(path, "done.qcow2")
    start = time.monotonic()
    shrink(done, new)
    span = time.monotonic() - start
    content = {8 * MI: guest_bytes(original, tmp_path), new: guest_bytes(done, tmp_path)}
    assert content[new] == content[8 * MI][:new]
    seen = {8 * MI: 0, new: 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "40"))):
        victim = copy(original, "victim.qcow2")
        p = subprocess.Popen([LAUNCH, "resize", "-q", "--shrink", "--accel", best_accel(), victim,
                              str(new)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.02, span))
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        while (status := check_status(victim)) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status in (0, 3), f"kill {i}"
        size = info(victim)["virtual-size"]
        assert guest_bytes(victim, tmp_path) == content[size], f"kill {i}"
        seen[size] += 1
        if i % 4:
            continue
        # it can be finished, and even then what was cut off does not come back
        again = launch("resize", "-q", "--shrink", victim, str(new))
        assert (again.returncode, again.stderr) == (0, "")
        assert check_status(victim) in (0, 3)
        assert launch("resize", "-q", victim, "8M").returncode == 0
        assert guest_bytes(victim, tmp_path) == content[new] + bytes(8 * MI - new), f"kill {i}"
    print("killed runs left:", seen)
    assert seen[8 * MI] > 0
