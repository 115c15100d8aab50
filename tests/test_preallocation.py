# SPDX-License-Identifier: MIT
"""instar-launch resize --preallocation: how long the file gets, and what of it is really there."""
import json
import os
import random

import pytest

from conftest import (best_accel, check_status, copy, create, guest_bytes, host, info, launch,
                      outcome, qemu_img, qemu_io, resize_request, run, sha256)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
MODES = ["off", "metadata", "falloc", "full"]
NODES = 8192  # what the host's file system may need for its own tables, when extents are split
SECRET = ["--object", "secret,id=s,data=x"]


def allocated(path):
    with open(path, "rb") as f:
        os.fsync(f.fileno())  # what is only delayed is not counted yet
        return os.fstat(f.fileno()).st_blocks * 512


def grow(path, size, mode, *args, fmt="qcow2", accel=None):
    p = launch("resize", "-f", fmt, f"--preallocation={mode}", *args, path, str(size),
               accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")


# What qemu-img 7.2 makes: options, old size, new size, data, mode: length, allocated bytes. Exact
# where its refcount table does not move, and is not made anew: there is but one tight layout.
GOLDEN = [
    ([], MI, 4 * MI, 0, "off", 196616, 200704, False),
    ([], MI, 4 * MI, 0, "metadata", 3473408, 266240, True),
    ([], MI, 4 * MI, 0, "falloc", 3473408, 3411968, False),
    ([], MI, 4 * MI, 0, "full", 3473408, 3411968, False),
    ([], MI, 4 * MI, 64, "off", 393216, 331776, True),
    ([], MI, 4 * MI, 64, "metadata", 3538944, 331776, True),
    ([], MI, 4 * MI, 64, "falloc", 3604480, 3543040, False),
    ([], MI, 4 * MI, 64, "full", 3604480, 3543040, False),
    ([], GI, 10 * GI, 0, "off", 262304, 204800, False),
    ([], GI, 1024 * GI, 0, "off", 278528, 217088, False),
    (["cluster_size=512"], MI, 16 * MI, 64, "off", 72704, 73728, False),
    (["cluster_size=512"], MI, 16 * MI, 64, "metadata", 16138240, 2109440, False),
    (["cluster_size=512"], MI, 16 * MI, 64, "falloc", 16109568, 16113664, False),
    (["cluster_size=4k"], MI, 16 * MI, 64, "metadata", 15851520, 126976, True),
    (["cluster_size=4k", "refcount_bits=1"], MI, 16 * MI, 64, "metadata", 15847424, 122880, True),
    (["cluster_size=4k", "refcount_bits=64"], MI, 16 * MI, 64, "metadata", 15876096, 151552, True),
    (["cluster_size=2M"], MI, 16 * MI, 64, "off", 12582912, 10489856, True),
    (["cluster_size=2M"], MI, 16 * MI, 64, "metadata", 27262976, 10489856, True),
    (["cluster_size=2M"], MI, 16 * MI, 64, "falloc", 31457280, 29364224, False),
]


def golden_id(row):
    options, old, new, data, mode = row[:5]
    return "-".join([*[o.split("=")[1] for o in options], str(old), str(new), str(data), mode])


@pytest.mark.parametrize("row", GOLDEN, ids=golden_id)
def test_golden_table(accel, tmp_path, row):
    options, old, new, data, mode, length, blocks, exact = row
    if accel != best_accel() and (options or mode == "off"):
        pytest.skip("once is enough")
    path = create(tmp_path / "a.qcow2", old, *options)
    if data:
        qemu_io(path, f"write -P 7 0 {data}k")
    grow(path, new, mode, accel=accel)
    got, cluster = os.stat(path).st_size, info(path)["cluster-size"]
    print(f"length {got} (qemu-img {length}), allocated {allocated(path)} (qemu-img {blocks})")
    if exact:
        # eight L1 entries fit their cluster of 4k: qemu-img moves the table all the same
        assert got == length - (cluster if cluster == 4 * KI else 0)
    else:
        assert got <= length + 4 * cluster
    if mode in ("falloc", "full"):  # its new refcount table takes a cluster, wholly written
        assert allocated(path) >= blocks - max(cluster, length - got)
        assert allocated(path) >= new - old
    assert check_status(path) == 0 and info(path)["virtual-size"] == new
    if new > GI:
        return
    qemu_io(path, f"read -P 7 0 {data}k" if data else "read -P 0 0 64k",
            f"read -P 0 {data}k {new - data * KI}")
    # writing all of the new area takes nothing more from the host
    before = allocated(path)
    qemu_io(path, f"write -P 8 {old} {new - old}", f"read -P 8 {old} {new - old}")
    if mode != "off":
        assert os.stat(path).st_size == got
    if mode in ("falloc", "full"):
        assert allocated(path) <= before + NODES
    assert check_status(path) == 0


SHAPES = {
    "default": ([], MI + 512, 5 * MI),
    "v2": (["compat=0.10"], MI + 512, 5 * MI),
    "clusters-512": (["cluster_size=512"], 700 * KI, 3 * MI + 512),
    "counts-1": (["refcount_bits=1", "cluster_size=1k"], 700 * KI, 9 * MI),
    "counts-64": (["refcount_bits=64", "cluster_size=512"], 700 * KI, 3 * MI),
    "extl2": (["extended_l2=on", "cluster_size=16k"], MI + 3 * KI, 9 * MI),
    "l1-moves": (["cluster_size=512"], 64 * KI, 20 * MI),
    "cluster-2M": (["cluster_size=2M"], 3 * MI, 9 * MI),
}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("shape", SHAPES)
def test_content(tmp_path, shape, mode):
    """Data, zeros after it, no more than there should be; the host build makes the same file."""
    options, old, new = SHAPES[shape]
    path = create(tmp_path / "a.qcow2", old, *options)
    qemu_io(path, f"write -P 1 {old // 1024 * 512} {old - old // 1024 * 512}")
    before = guest_bytes(path, tmp_path)
    twin, theirs = copy(path, "twin.qcow2"), copy(path, "theirs.qcow2")
    grow(path, new, mode)
    assert guest_bytes(path, tmp_path) == before + bytes(new - old)
    assert check_status(path) == 0 and info(path)["virtual-size"] == new
    qemu_img("resize", "-q", "-f", "qcow2", f"--preallocation={mode}", theirs, str(new))
    limit = os.stat(theirs).st_size + 4 * info(path)["cluster-size"]
    assert os.stat(path).st_size <= limit
    extents = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", path).stdout)
    assert all("offset" in e for e in extents if e["start"] >= old), "not all is mapped"

    import instar_pb2
    request = resize_request(twin, new)
    request.resize.preallocation = instar_pb2.Preallocation.Value("PREALLOCATION_" + mode.upper())
    status, events = host("resize", request, twin, tmp_path)
    assert status == 0 and outcome(events).resize.file_size_after == os.stat(path).st_size
    assert sha256(path) == sha256(twin)


@pytest.mark.parametrize("cluster", ["512", "64k"])
@pytest.mark.parametrize("made", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_125_sizes(tmp_path, mode, made, cluster):
    """Once the new area is preallocated, writing to it lengthens nothing."""
    for old, more in ((16, 48), (48, 80)) if mode != "full" else ((80, 16), (16, 80)):
        path = create(tmp_path / "a.qcow2", old * KI, f"cluster_size={cluster}",
                      f"preallocation={made}")
        qemu_io(path, f"write -P 1 0 {old}k")
        grow(path, f"+{more}K", mode)
        length, blocks = os.stat(path).st_size, allocated(path)
        qemu_io(path, f"write -P 2 {old}k {more}k", f"read -P 1 0 {old}k",
                f"read -P 2 {old}k {more}k")
        assert mode == "off" or os.stat(path).st_size <= length
        assert mode in ("off", "metadata") or allocated(path) <= blocks + NODES
        assert check_status(path) == 0


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("old", [31, 33])
@pytest.mark.parametrize("new", [96, 128])
def test_125_unaligned_overlay(accel, tmp_path, new, old, mode):
    base = tmp_path / "base"
    base.write_bytes(b"\1" * (128 * KI))
    path = create(tmp_path / "a.qcow2", old * KI, "backing_file=base", "backing_fmt=raw")
    grow(path, new * KI, mode, accel=accel)
    data = guest_bytes(path, tmp_path)
    assert data == b"\1" * (old * KI) + bytes((new - old) * KI)
    assert os.stat(path).st_size == 7 * 64 * KI
    assert check_status(path) == 0
    qemu_io(path, f"write -P 2 {old}k {new - old}k")
    assert os.stat(path).st_size == 7 * 64 * KI and check_status(path) == 0


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("options", [[], ["compat=0.10"], ["extended_l2=on"], ["cluster_size=4k"]],
                         ids=["default", "v2", "extl2", "4k"])
@pytest.mark.parametrize("old", [MI, MI + 3 * KI])
def test_overlay(tmp_path, old, options, mode):
    """The base is longer: what is preallocated hides it."""
    base = tmp_path / "base"
    base.write_bytes(b"\1" * (3 * MI))
    path = create(tmp_path / "a.qcow2", old, "backing_file=base", "backing_fmt=raw", *options)
    grow(path, 5 * MI, mode)
    assert guest_bytes(path, tmp_path) == b"\1" * old + bytes(5 * MI - old)
    assert check_status(path) == 0
    length, blocks = os.stat(path).st_size, allocated(path)
    qemu_io(path, f"write -P 2 {old} {5 * MI - old}", f"read -P 1 0 {old}")
    assert os.stat(path).st_size == length and check_status(path) == 0
    assert mode == "metadata" or allocated(path) <= blocks + NODES


@pytest.mark.parametrize("mode", ["falloc", "full"])
@pytest.mark.parametrize("options", [[], ["cluster_size=2M"], ["extended_l2=on"]],
                         ids=["default", "2M", "extl2"])
def test_last_cluster_is_a_hole(tmp_path, options, mode):
    """It is preallocated too, as a whole, and the host has room for all of it."""
    path = create(tmp_path / "a.qcow2", MI + 3 * KI, *options)
    grow(path, 5 * MI, mode)
    length, blocks = os.stat(path).st_size, allocated(path)
    qemu_io(path, f"write -P 2 {MI + 3 * KI} {4 * MI - 3 * KI}")
    assert os.stat(path).st_size == length and allocated(path) <= blocks + NODES
    assert check_status(path) == 0


@pytest.mark.parametrize("mode", MODES[1:])
def test_last_cluster(tmp_path, mode):
    """Old bytes behind the end, a compressed cluster, one that a snapshot shares."""
    stale = create(tmp_path / "stale.qcow2", MI)
    qemu_io(stale, "write -P 0xaa 0 1M")
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"\xaa" * MI)
    packed = tmp_path / "packed.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, packed)
    for path in (stale, packed):
        qemu_img("resize", "-q", "--shrink", "-f", "qcow2", path, "545K")
    shared = copy(stale, "shared.qcow2")
    qemu_img("snapshot", "-c", "s", shared)
    for path in (stale, packed, shared):
        grow(path, 2 * MI, mode)
        assert guest_bytes(path, tmp_path) == b"\xaa" * (545 * KI) + bytes(2 * MI - 545 * KI)
        assert check_status(path) == 0
    qemu_img("snapshot", "-a", "s", shared)
    assert guest_bytes(shared, tmp_path) == b"\xaa" * (545 * KI) and check_status(shared) == 0


@pytest.mark.parametrize("size", ["64512K", "64513K"])
def test_121(tmp_path, size):
    """The next writes need a longer refcount table."""
    path = create(tmp_path / "a.qcow2", size, "cluster_size=1k", "preallocation=metadata")
    grow(path, "65M", "metadata")
    qemu_io(path, "write -P 1 0 128k", "write -P 2 60M 5M", "read -P 2 60M 5M")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -P 3 30M 5M")
    assert check_status(path) == 0


def test_step_by_step(tmp_path):
    """Many grows in a row stay as tight as one."""
    path, once = (create(tmp_path / n, MI, "cluster_size=4k") for n in ("a.qcow2", "b.qcow2"))
    for i in range(12):
        grow(path, "+300K", MODES[i % 3 + 1])
        assert check_status(path) == 0
    grow(once, MI + 12 * 300 * KI, "metadata")
    assert os.stat(path).st_size <= os.stat(once).st_size + 12 * 4096
    assert not guest_bytes(path, tmp_path).strip(b"\0")


def test_larger(accel, tmp_path):
    """More than one batch of clusters."""
    path = create(tmp_path / "a.qcow2", MI)
    grow(path, 6 * GI, "metadata", accel=accel)
    assert check_status(path) == 0
    assert 6 * GI - MI <= os.stat(path).st_size <= 6 * GI + 3 * MI
    assert allocated(path) < 4 * MI
    path = create(tmp_path / "b.qcow2", MI)
    grow(path, 600 * MI, "falloc", accel=accel)
    assert check_status(path) == 0 and allocated(path) >= 599 * MI
    qemu_io(path, "read -P 0 0 600M")


def test_luks(tmp_path):
    """Zeros that are written without the key would not read as zeros."""
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o",
             "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M")
    digest = sha256(path)
    for mode in MODES[1:]:
        p = launch("resize", "-f", "qcow2", f"--preallocation={mode}", "--output=json", path, "2M")
        assert p.returncode == 1 and json.loads(p.stdout)["code"] == "LUKS_UNSUPPORTED"
        assert sha256(path) == digest


def test_max_growth(tmp_path):
    """Preallocation is growth that the request explains; a limit of one's own still holds."""
    path = create(tmp_path / "a.qcow2", MI)
    grow(path, 300 * MI, "falloc")
    path = create(tmp_path / "b.qcow2", MI)
    digest = sha256(path)
    for mode in MODES[1:]:
        p = launch("resize", "-f", "qcow2", f"--preallocation={mode}", "--max-growth=1M",
                   "--output=json", path, "300M")
        assert p.returncode == 1 and json.loads(p.stdout)["error"]
        assert info(path)["virtual-size"] == MI and check_status(path) == 0
    assert sha256(path) == digest


# ---- raw ----


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
@pytest.mark.parametrize("made", ["off", "falloc", "full"])
@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_106_raw(tmp_path, mode, made, fmt):
    path = tmp_path / "a.raw"
    qemu_img("create", "-q", "-f", "raw", "-o", f"preallocation={made}", path, "128K")
    p = launch("resize", *fmt, f"--preallocation={mode}", path, "+256K")
    assert p.returncode == 0 and os.stat(path).st_size == 384 * KI
    assert (p.stderr == "") == bool(fmt)
    want = (made != "off") * 128 * KI + (mode != "off") * 256 * KI
    assert allocated(path) >= want
    assert mode != "off" or made != "off" or allocated(path) <= 16 * KI
    assert path.read_bytes() == bytes(384 * KI)
    p = launch("resize", *fmt, f"--preallocation={mode}", "--shrink", path, "-256K")
    if mode == "off":
        assert p.returncode == 0 and os.stat(path).st_size == 128 * KI
    else:
        assert p.returncode == 1 and os.stat(path).st_size == 384 * KI
        assert "Preallocation can only be used for growing images" in p.stderr


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_106_raw_at_2g(accel, tmp_path, mode, fmt):
    path = tmp_path / "a.raw"
    with open(path, "wb") as f:
        f.truncate(2 * GI)
    p = launch("resize", *fmt, f"--preallocation={mode}", path, "+256K", accel=accel)
    assert p.returncode == 0 and os.stat(path).st_size == 2 * GI + 256 * KI
    assert (256 * KI if mode != "off" else 0) <= allocated(path) <= 1 * MI


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
@pytest.mark.parametrize("old,new", [(0, 4096), (0, MI), (0, 1), (700, 1025), (511, 513),
                                     (MI + 1, 2 * MI + 3)])
def test_175_raw_lengths(tmp_path, old, new, mode, fmt):
    """Exact to the byte, whatever the mode; nothing but zeros after what was there."""
    path = tmp_path / "a.raw"
    data = b"\0" + random.Random(old).randbytes(old)[1:] if old else b""
    path.write_bytes(data)
    p = launch("resize", *fmt, f"--preallocation={mode}", path, str(new))
    assert p.returncode == 0, p.stderr
    assert path.read_bytes() == data + bytes(new - old)
    if mode != "off":
        assert allocated(path) >= new
    elif not old:
        assert allocated(path) <= 4096


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_raw_without_room_for_it(tmp_path, mode):
    """On a file system that is too small, the old length stays. No VM is needed, or there."""
    fs = tmp_path / "fs"
    fs.mkdir()
    p = run("mount", "-t", "tmpfs", "-o", "size=2M", "none", fs)
    if p.returncode:
        pytest.skip(f"no tmpfs: {p.stderr}")
    try:
        path = fs / "a.raw"
        path.write_bytes(b"\xaa" * 1000)
        p = launch("resize", "-f", "raw", "--qemu=/nowhere", "--preallocation", mode, path, "4M")
        assert p.returncode == 1
        assert p.stderr.startswith("instar-launch: Could not preallocate data for the new area: ")
        assert path.read_bytes() == b"\xaa" * 1000
        p = launch("resize", "-f", "raw", "--qemu=/nowhere", "--preallocation", mode, path, "1M")
        assert (p.returncode, p.stdout) == (0, "Image resized.\n")
        assert path.read_bytes() == b"\xaa" * 1000 + bytes(MI - 1000)
        assert path.stat().st_blocks * 512 >= MI
    finally:
        run("umount", fs, check=True)


@pytest.mark.parametrize("fmt", [["-f", "raw"], []], ids=["raw", "guessed"])
def test_raw_has_no_metadata(accel, tmp_path, fmt):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data" * KI)
    stat = os.stat(path)
    theirs = qemu_img("resize", "-f", "raw", "--preallocation=metadata", path, "1M", check=False)
    ours = launch("resize", *fmt, "--preallocation=metadata", path, "1M", accel=accel)
    assert ours.returncode == theirs.returncode == 1
    assert ours.stderr.splitlines()[-1] == \
        theirs.stderr.splitlines()[-1].replace("qemu-img:", "instar-launch:")
    p = launch("resize", *fmt, "--preallocation=metadata", "--output=json", path, "1M",
               accel=accel)
    assert json.loads(p.stdout)["code"] == "PREALLOCATION_UNSUPPORTED"
    assert path.read_bytes() == b"data" * KI
    assert os.stat(path).st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("mode", MODES[1:])
def test_not_for_shrinking(tmp_path, mode, fmt):
    path = tmp_path / "a"
    qemu_img("create", "-q", "-f", fmt, path, "4M")
    digest = sha256(path)
    p = launch("resize", "-f", fmt, "--shrink", f"--preallocation={mode}", path, "1M")
    theirs = qemu_img("resize", "-f", fmt, "--shrink", f"--preallocation={mode}", path, "1M",
                      check=False)
    assert p.returncode == theirs.returncode == 1
    assert p.stderr == theirs.stderr.replace("qemu-img:", "instar-launch:")
    p = launch("resize", "-f", fmt, "--shrink", f"--preallocation={mode}", "--output=json", path,
               "1M")
    assert json.loads(p.stdout)["code"] == "INVALID_OPTION"
    assert sha256(path) == digest


@pytest.fixture
def small(tmp_path):
    """A file system of 1 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    p = run("mount", "-t", "tmpfs", "-o", "size=1m", "none", where)
    if p.returncode:
        pytest.skip("mount: " + p.stderr.strip())
    yield where
    run("umount", where, check=True)


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_no_room(small, accel, how):
    """virtio-blk says that a request failed, QEMU says why."""
    path = create(small / "a.qcow2", 64 * MI)
    (small / "rest").write_bytes(bytes(600 * KI))
    p = launch("resize", f"--preallocation={how}", "--output=json", path, "+64M", accel=accel)
    out = json.loads(p.stdout)
    assert p.returncode == 1 and out["code"] == "NO_SPACE"
    assert "The host's reason: No space left on device.\n" in out["error"]
    assert check_status(path) == 0 and info(path)["virtual-size"] == 64 * MI
