# SPDX-License-Identifier: MIT
"""rebase, safely: whatever the chains are, the overlay's disk shows afterwards what it showed. The
oracle is qemu-img, which reads it through the old chain before and through the new one after
(parity B.3, B.4, H.2 17 to 23, 26).
"""
import json
import os
import random
import resource
import signal
import subprocess
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, best_accel, check_status, create, info, launch, qemu_img,
                      qemu_io, run, same_content, sha256)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30


def overlay(path, name, fmt="qcow2", size=None, *options):
    qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", fmt,
             *[x for o in options for x in ("-o", o)], path, *([size] if size else []))
    return path


def image(path, fmt, size, *writes, options=()):
    """One of a format, with qemu-io's writes in it."""
    qemu_img("create", "-q", "-f", fmt, *[x for o in options for x in ("-o", o)], path, size)
    if writes:
        qemu_io(path, *writes, fmt=fmt)
    return path


def flatten(path, to):
    qemu_img("convert", "-f", "qcow2", "-O", "qcow2", path, to)
    return to


def allocation(path, cluster=64 * KI):
    """{cluster: "data" or "zero"} of what the overlay itself has."""
    found = {}
    for x in json.loads(qemu_img("map", "--output=json", path).stdout):
        if x["depth"] == 0:
            for at in range(x["start"] // cluster, -(-(x["start"] + x["length"]) // cluster)):
                found[at] = "data" if x["data"] else "zero"
    return found


def rebase(path, name, fmt=None, *args, clusters=None, status=0, **kw):
    """Silent; the disk shows the same, refcounts are exact, and nothing is left over. The result."""
    before = flatten(path, path.parent / "before.qcow2")
    files = sorted(os.listdir(path.parent))
    words = ("-b", name, *(["-F", fmt] if fmt else []), *args, path)
    looked = json.loads(launch("rebase", "--check-only", "--output=json", *words, **kw).stdout)
    p = launch("rebase", "--output=json", *words, **kw)
    assert (p.returncode, p.stderr) == (0, ""), p
    result = json.loads(p.stdout)
    assert result["mode"] == "safe"
    for key in ("clusters_copied", "bytes_copied"):
        assert looked[key] == result[key], key
    assert same_content(before, path), qemu_img("compare", before, path, check=False).stdout
    assert check_status(path) == status
    assert sorted(os.listdir(path.parent)) == files
    now = info(path)
    assert now.get("backing-filename") == (name or None)
    assert now.get("backing-filename-format") == (fmt if name else None)
    if clusters is not None:
        assert result["clusters_copied"] == clusters
    before.unlink()
    return result


# ---- qemu's own scenarios ----


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_all_combinations(accel, tmp_path, compat):
    """iotest 024: old base, new base and overlay have each cluster or not."""
    put = {"old": 0x11, "new": 0x22, "top": 0x33}
    writes = {name: [f"write -P {byte} {i * 64}k 64k" for i in range(8) if i >> bit & 1]
              for bit, (name, byte) in enumerate(put.items())}
    image(tmp_path / "old", "qcow2", "1M", *writes["old"])
    image(tmp_path / "new", "qcow2", "1M", *writes["new"])
    path = overlay(tmp_path / "top", "old", "qcow2", None, f"compat={compat}")
    qemu_io(path, *writes["top"])
    rebase(path, "new", "qcow2", accel=accel, clusters=3)
    zero = "data" if compat == "0.10" else "zero"
    assert allocation(path) == {1: "data", 2: zero, 3: "data", **{i: "data" for i in range(4, 8)}}


def test_what_is_equal_stays_where_it_is(accel, tmp_path):
    """iotest 024, from another directory."""
    (tmp_path / "sub").mkdir()
    same = "write -P 7 64k 64k"
    image(tmp_path / "sub" / "old", "qcow2", "1M", same, "write -P 1 0 64k")
    image(tmp_path / "new", "qcow2", "1M", same, "write -P 2 128k 64k")
    path = overlay(tmp_path / "sub" / "top", "old", "qcow2")
    rebase(path, "../new", "qcow2", accel=accel, clusters=2, cwd=tmp_path)
    assert allocation(path) == {0: "data", 2: "zero"}


def test_an_overlay_longer_than_its_old_base(accel, tmp_path):
    """iotest 024: what no one had is zero, whatever the new base has there."""
    image(tmp_path / "old", "qcow2", 128 * KI + 512, "write -P 1 0 128k")
    image(tmp_path / "new", "qcow2", "256k", "write -P 2 0 256k")
    path = overlay(tmp_path / "top", "old", "qcow2", "256k")
    rebase(path, "new", "qcow2", accel=accel, clusters=4)


def test_clusters_of_other_sizes(tmp_path):
    """iotest 024: the overlay's are twice as large. And half, and a multiple, and all the way."""
    image(tmp_path / "old", "qcow2", "1M", "write -P 1 0 64k", "write -P 1 448k 64k")
    image(tmp_path / "new", "qcow2", "1M", "write -P 1 448k 64k")
    for size, clusters in (("128k", 1), ("512", 128), ("32k", 2), ("2M", 1)):
        path = overlay(tmp_path / "top", "old", "qcow2", None, f"cluster_size={size}")
        rebase(path, "new", "qcow2", clusters=clusters)


@pytest.mark.parametrize("more", [0, 512, 1536])
def test_beyond_the_base(accel, tmp_path, more):
    """iotest 028: a base that ends a GiB before the overlay."""
    size = 4 * GI + more
    writes = [f"write -P 1 {3 * GI - 64 * KI} 64k"]
    image(tmp_path / "old", "qcow2", 3 * GI, *writes)
    image(tmp_path / "new", "qcow2", size, f"write -P 9 {3 * GI - 32 * KI} 128k",
          f"write -P 9 {size - 4096} 4096")
    path = overlay(tmp_path / "top", "old", "qcow2", size)
    qemu_io(path, f"write -P 3 {3 * GI + MI} 64k")
    rebase(path, "new", "qcow2", accel=accel)


def test_zero_clusters_of_the_overlay(accel, tmp_path):
    """iotest 050"""
    image(tmp_path / "old", "qcow2", "1M", "write -P 0x40 0 1M")
    image(tmp_path / "new", "qcow2", "1M", "write -P 0x5a 0 1M")
    path = overlay(tmp_path / "top", "old")
    qemu_io(path, "write -z 0 256k", "write -z -u 512k 128k")
    rebase(path, "new", "qcow2", accel=accel, clusters=10)
    assert allocation(path)[0] == "zero" and allocation(path)[8] == "zero"


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_an_overlay_that_stood_alone(accel, tmp_path, compat):
    """iotest 252; of version 2, qemu-img makes holes of what must be zeros."""
    path = create(tmp_path / "top", "384k", f"compat={compat}")
    qemu_io(path, "write -P 3 0 128k", *(["write -z 128k 128k"] if compat == "1.1" else []))
    rebase(path, "", clusters=0, accel=accel)
    image(tmp_path / "new", "qcow2", "384k", "write -P 0x11 0 64k", "write -P 0x11 128k 64k",
          "write -P 0x11 256k 64k")
    rebase(path, "new", "qcow2", clusters=1 if compat == "1.1" else 2, accel=accel)
    assert 5 not in allocation(path)


def test_disks_of_no_size(tmp_path):
    """iotest 042"""
    create(tmp_path / "base", 0)
    rebase(create(tmp_path / "top", 0), "base", "qcow2", clusters=0)
    create(tmp_path / "long", MI)
    rebase(create(tmp_path / "top", 0), "long", "qcow2", clusters=0)
    path = create(tmp_path / "top", MI)
    qemu_io(path, "write -P 1 0 1M")
    rebase(path, "base", "qcow2", clusters=0)


# ---- what the new one is ----


def test_to_a_base_further_down(accel, tmp_path):
    """What stands between them is copied, and nothing else is even looked at."""
    image(tmp_path / "base", "qcow2", "64M", "write -P 1 0 10M")
    qemu_io(overlay(tmp_path / "mid", "base"), "write -P 2 1M 128k", "write -z 3M 64k")
    path = overlay(tmp_path / "top", "mid")
    rebase(path, "base", "qcow2", clusters=3, accel=accel)
    rebase(path, "mid", "qcow2", clusters=0, accel=accel)
    rebase(path, "./mid", "qcow2", clusters=0)


def test_the_same_file_as_of_another_format(tmp_path):
    """qemu-img takes it for what it is already, and stores what it was told."""
    image(tmp_path / "base", "qcow2", "1M", "write -P 1 0 64k")
    path = overlay(tmp_path / "top", "base")
    assert rebase(path, "base", "raw")["clusters_copied"] > 0


def test_the_same_file_in_another_place(tmp_path):
    """A name that it holds means another file there."""
    (tmp_path / "b").mkdir()
    image(tmp_path / "base", "qcow2", "1M", "write -P 1 0 64k")
    image(tmp_path / "b" / "base", "qcow2", "1M", "write -P 2 0 64k", "write -P 3 128k 64k")
    overlay(tmp_path / "mid", "base")
    os.link(tmp_path / "mid", tmp_path / "b" / "mid")
    path = overlay(tmp_path / "top", "mid")
    rebase(path, "b/mid", "qcow2", clusters=2)
    rebase(path, "./mid", "qcow2", "--backing-dir", tmp_path / "b", clusters=0)


def test_detached(accel, tmp_path):
    image(tmp_path / "base", "qcow2", "64M", "write -P 1 0 3M", "write -P 2 63M 1M")
    path = overlay(tmp_path / "top", "base")
    qemu_io(path, "write -P 3 1M 1M")
    rebase(path, "", clusters=48, accel=accel)
    (tmp_path / "base").unlink()
    assert check_status(path) == 0


@pytest.mark.parametrize("new", ["raw", "qcow2", "vpc", "vhdx", "vmdk"])
@pytest.mark.parametrize("old", ["raw", "qcow2", "vpc", "vhdx", "vmdk"])
def test_formats(tmp_path, old, new):
    """Each onto each; disks are of a size that a VHD's geometry can say."""
    size = {"options": ["force_size=on"]}
    image(tmp_path / "old", old, "4M", "write -P 1 0 100k", "write -P 5 1M 1M",
          **(size if old == "vpc" else {}))
    image(tmp_path / "new", new, "4M", "write -P 5 1M 512k", "write -P 9 3M 512k",
          **(size if new == "vpc" else {}))
    path = overlay(tmp_path / "top", "old", old)
    qemu_io(path, "write -P 3 50k 30k")
    rebase(path, "new", new, clusters=16)


@pytest.mark.parametrize("kind", ["zlib", "zstd", "vmdk"])
def test_compressed_bases(accel, tmp_path, kind):
    image(tmp_path / "plain", "qcow2", "8M", "write -P 1 0 3M", "write -P 2 5M 64k")
    args = {"zstd": ("qcow2", "compression_type=zstd"), "zlib": ("qcow2", "cluster_size=32k"),
            "vmdk": ("vmdk", "subformat=streamOptimized")}[kind]
    qemu_img("convert", "-c", "-f", "qcow2", "-O", args[0], "-o", args[1], tmp_path / "plain",
             tmp_path / "old")
    image(tmp_path / "new", "raw", "8M")
    rebase(overlay(tmp_path / "top", "old", args[0]), "new", "raw", clusters=49, accel=accel)


@pytest.mark.parametrize("options", [["extended_l2=on"], ["refcount_bits=1"], ["refcount_bits=64"],
                                     ["cluster_size=2M"], ["cluster_size=512"],
                                     ["compression_type=zstd"], ["lazy_refcounts=on"]], ids=str)
def test_overlays(accel, tmp_path, options):
    image(tmp_path / "old", "qcow2", "32M", "write -P 1 10k 300k", "write -P 2 20M 3M")
    image(tmp_path / "new", "qcow2", "32M", "write -P 2 20M 1M", "write -P 7 30M 1M")
    path = overlay(tmp_path / "top", "old", "qcow2", None, *options)
    qemu_io(path, "write -P 3 100k 20k", "write -P 3 21M 512")
    rebase(path, "new", "qcow2", accel=accel)


def test_data_files(accel, tmp_path):
    """The overlay's own, which grows; and those of both chains."""
    for name in ("old", "new"):
        create(tmp_path / name, "4M", f"data_file={tmp_path}/{name}.data")
        qemu_io(tmp_path / name, f"write -P {len(name)} 1M 1M", f"write -P {ord(name[0])} 2M 1M")
    path = overlay(tmp_path / "top", "old", "qcow2", None, f"data_file={tmp_path}/top.data")
    rebase(path, "new", "qcow2", clusters=16, accel=accel)
    rebase(path, "", clusters=16)


def test_large_blocks(accel, tmp_path):
    image(tmp_path / "old", "qcow2", "8M", "write -P 5 512 5M")
    image(tmp_path / "new", "raw", "8M", "write -P 6 1M 512")
    path = overlay(tmp_path / "top", "old")
    for name in ("old", "top"):
        run("truncate", "-s", "%4096", tmp_path / name, check=True)
    rebase(path, "new", "raw", "--logical-block-size=4096", accel=accel)


def test_progress(tmp_path):
    """Small tables are many epochs."""
    image(tmp_path / "old", "qcow2", "8M", "write -P 1 0 8M", options=["cluster_size=512"])
    path = overlay(tmp_path / "top", "old", "qcow2", None, "cluster_size=512")
    p = launch("rebase", "-p", "-b", "", path, text=False)
    assert (p.returncode, p.stderr) == (0, b"")
    lines = p.stdout.split(b"\r")
    assert lines[0] == b"    (0.00/100%)" and lines[-2:] == [b"    (100.00/100%)", b"\n"]
    done = [float(line.split(b"(")[1].split(b"/")[0]) for line in lines[:-1]]
    assert done == sorted(done)


def test_a_plan_is_shown(tmp_path):
    image(tmp_path / "old", "qcow2", "8M", "write -P 1 0 1M")
    path = overlay(tmp_path / "top", "old")
    digest = sha256(path)
    p = launch("rebase", "--dry-run", "-b", "", path)
    assert p.returncode == 0 and "copied:       16 clusters (1048576 bytes)" in p.stdout
    assert "COMMIT: what the image stands on" in p.stdout and sha256(path) == digest


def test_snapshots(accel, tmp_path):
    """Tables and clusters that they share are not written to; that what they do not hold is the new
    base's from now on, as with qemu-img, is said."""
    image(tmp_path / "old", "qcow2", "8M", "write -P 1 0 8M")
    path = overlay(tmp_path / "top", "old")
    qemu_io(path, "write -P 3 0 1M")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 4 512k 1M")
    image(tmp_path / "new", "raw", "8M", "write -P 1 7M 1M")
    before = flatten(path, tmp_path / "before.qcow2")
    p = launch("rebase", "-b", "new", "-F", "raw", path, accel=accel)
    assert p.returncode == 0 and p.stderr.startswith("instar-launch: warning: The image's internal "
                                                     "snapshots"), p
    assert same_content(before, path) and check_status(path) == 0
    answer = json.loads(launch("rebase", "--output=json", "-u", "-b", "./new", "-F", "raw",
                               path).stdout)
    assert "snapshots" in answer["warning"]
    assert launch("rebase", "-q", "-b", "new", "-F", "raw", path).stderr == ""
    qemu_img("snapshot", "-a", "one", path)
    qemu_io(path, "read -P 3 0 1M", "read -P 0 1M 6M", "read -P 1 7M 1M")


def test_a_differencing_disk(accel, tmp_path):
    """What it does not hold is its parent's: not zeros."""
    vhd = image(tmp_path / "child.vhd", "vpc", "4M", options=["force_size=on"])
    for at in (0, os.path.getsize(vhd) - 512):
        footer = bytearray(vhd.read_bytes()[at:at + 512])
        footer[60:64] = bytes([0, 0, 0, 4])
        footer[64:68] = bytes(4)
        footer[64:68] = (~sum(footer) & 0xffffffff).to_bytes(4, "big")
        with open(vhd, "r+b") as f:
            f.seek(at)
            f.write(footer)
    image(tmp_path / "base", "raw", "4M", "write -P 1 0 64k")
    top = overlay(tmp_path / "top", "base", "raw")
    digest = sha256(top)
    p = launch("rebase", "-b", "child.vhd", "-F", "vpc", top, accel=accel)
    assert p.returncode == 1 and p.stderr == "instar-launch: Could not open new backing file " \
        "'child.vhd': It is a differencing disk, and its parent cannot be read\n"
    assert sha256(top) == digest
    assert launch("rebase", "-u", "-b", "child.vhd", "-F", "vpc", top).returncode == 0
    p = launch("rebase", "--output=json", "-b", "base", "-F", "raw", top)
    answer = json.loads(p.stdout)
    assert answer["code"] == "UNSUPPORTED_SUBFORMAT" and str(vhd) in answer["error"]


# ---- what goes wrong ----


def test_nothing_is_done_half(tmp_path):
    """A file that may not grow: refused, or as it was."""
    image(tmp_path / "old", "qcow2", "64M", "write -P 1 0 64M")
    path = overlay(tmp_path / "top", "old")
    before = flatten(path, tmp_path / "before.qcow2")
    p = launch("rebase", "-b", "", "--max-growth=10M", path)
    assert p.returncode == 1 and "its limit is" in p.stderr
    assert same_content(before, path) and check_status(path) in (0, 3)
    limit = os.stat(path).st_size + 20 * MI
    p = launch("rebase", "-b", "", path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert p.returncode == 1, p
    assert same_content(before, path) and check_status(path) in (0, 3)
    assert info(path)["backing-filename"] == "old"
    rebase(path, "", status=check_status(path))


def test_kills(accel, tmp_path):
    """At any instant: the disk shows what it showed, and another run goes on."""
    image(tmp_path / "old", "qcow2", "256M", "write -P 1 0 200M", options=["cluster_size=4k"])
    path = overlay(tmp_path / "top", "old", "qcow2", None, "cluster_size=4k")
    before = flatten(path, tmp_path / "before.qcow2")
    seed, killed = random.Random(20240607), 0
    for i in range(8):  # the first while the VM starts, on the quickest machine, too
        p = subprocess.Popen([LAUNCH, "rebase", f"--accel={accel}", "-b", "", path])
        time.sleep(0.02 + i * (0.03 + seed.random() * 0.05))
        p.send_signal(signal.SIGKILL)
        killed += p.wait(timeout=TIMEOUT) == -signal.SIGKILL
        end = time.monotonic() + 10
        while (left := qemu_img("check", "-f", "qcow2", path, check=False)).returncode == 1 and \
                "lock" in left.stderr and time.monotonic() < end:
            time.sleep(0.05)
        assert left.returncode in (0, 3), left
        assert same_content(before, path)
    assert killed
    p = launch("rebase", "-b", "", path, accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    assert same_content(before, path) and check_status(path) in (0, 3)
    assert "backing-filename" not in info(path)


# ---- by chance ----

FORMATS = ["raw", "qcow2", "qcow2", "vhdx", "vmdk", "vpc"]


def random_writes(seed, size, cnt):
    for _ in range(cnt):
        at = seed.randrange(0, size, 512)
        n = min(seed.choice([512, 4 * KI, 64 * KI, 200 * KI]), size - at)
        yield f"write -P {seed.randrange(1, 4) * 0x11} {at} {n // 512 * 512}"


def random_chain(seed, directory, prefix, size, bottom=None):
    """The top of a chain: its name and format."""
    name, fmt = bottom or (None, None)
    for i in range(seed.randrange(0 if bottom else 1, 4)):
        this, own = f"{prefix}{i}", max(512, size + seed.choice([0, 0, 512, -4096, 65536, -70144]))
        path = directory / this
        if name is None:
            fmt = seed.choice(FORMATS)
            options = ["-o", "force_size=on"] if fmt == "vpc" else []
            qemu_img("create", "-q", "-f", fmt, *options, path, own)
        else:
            kind = seed.choice([["cluster_size=4k"], ["cluster_size=64k"], ["compat=0.10"],
                                ["extended_l2=on"], ["cluster_size=2M"]])
            overlay(path, name, fmt, own, *kind)
            fmt = "qcow2"
        if own >= 512:
            qemu_io(path, *random_writes(seed, own, seed.randrange(0, 6)), fmt=fmt)
        name = this
    return name, fmt


@pytest.mark.parametrize("number", range(20))
def test_random(accel, tmp_path, number):
    """20 under each: chains of one to four links, some of which they share."""
    seed = random.Random(number * 7919 + 1)
    size = seed.randrange(512, 6 * MI, 512)
    shared = random_chain(seed, tmp_path, "s", size) if seed.random() < 0.4 else None
    old, old_fmt = random_chain(seed, tmp_path, "o", size, shared)
    new, new_fmt = ("", None) if seed.random() < 0.15 else \
        random_chain(seed, tmp_path, "n", size, shared)
    kind = seed.choice([["cluster_size=512"], ["cluster_size=64k"], ["compat=0.10"],
                        ["extended_l2=on"], ["refcount_bits=1"], ["cluster_size=1M"]])
    path = overlay(tmp_path / "top", old, old_fmt, size, *kind)
    qemu_io(path, *random_writes(seed, size, seed.randrange(0, 5)))
    rebase(path, new, new_fmt, accel=accel)


# ---- VMDK, which qemu-img does not rebase ----


def vmdk_overlay(path, name):
    qemu_img("create", "-q", "-f", "vmdk", "-b", name, "-F", "vmdk", path)
    return path


def same_vmdk(before, path):
    return qemu_img("compare", "-f", "raw", "-F", "vmdk", before, path, check=False).returncode == 0


def test_counting_before_a_repair(accel, tmp_path):
    """--check-only of an image that must be repaired first tells what will be copied after it."""
    image(tmp_path / "old", "qcow2", "1M", "write -P 1 0 192k")
    image(tmp_path / "new", "qcow2", "1M", "write -P 2 512k 128k")
    path = overlay(tmp_path / "top", "old", "qcow2", None, "lazy_refcounts=on")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 64k 64k", "-c", "abort", path)
    assert path.read_bytes()[79] & 1
    before, words = sha256(path), ("--output=json", "-b", "new", "-F", "qcow2", path)
    looked = json.loads(launch("rebase", "--check-only", *words, accel=accel).stdout)
    assert looked["clusters_copied"] == 4 and sha256(path) == before
    done = json.loads(launch("rebase", *words, accel=accel).stdout)
    assert done["refcounts_rebuilt"] and done["clusters_copied"] == 4
    assert looked["bytes_copied"] == done["bytes_copied"] == 128 * KI


def test_vmdk(accel, tmp_path):
    image(tmp_path / "old.vmdk", "vmdk", "8M", "write -P 1 0 3M", "write -P 5 4M 1M")
    image(tmp_path / "new.vmdk", "vmdk", "8M", "write -P 5 4M 1M", "write -P 9 6M 1M")
    path = vmdk_overlay(tmp_path / "top.vmdk", "old.vmdk")
    qemu_io(path, "write -P 3 1M 100k", fmt="vmdk")
    before = tmp_path / "before.raw"
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, before)
    words = ("-b", "new.vmdk", "-F", "vmdk", path)
    looked = json.loads(launch("rebase", "--check-only", "--output=json", *words).stdout)
    result = json.loads(launch("rebase", "--output=json", *words, accel=accel).stdout)
    assert result["overlay_format"] == "vmdk" and result["clusters_copied"] == 48 + 16 - 2
    assert looked["clusters_copied"] == result["clusters_copied"]
    assert same_vmdk(before, path)
    assert qemu_img("check", "-f", "vmdk", path).returncode == 0
    assert info(path)["backing-filename"] == "new.vmdk"
    p = launch("rebase", "-b", "", path, accel=accel)
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")
    assert same_vmdk(before, path) and "backing-filename" not in info(path)


def test_vmdk_unsafe(accel, tmp_path):
    """The new parent's CID is stored; qemu reads nothing of a parent that has another."""
    for name, byte in (("old.vmdk", 1), ("new.vmdk", 2)):
        image(tmp_path / name, "vmdk", "8M", f"write -P {byte} 0 8M")
    path = vmdk_overlay(tmp_path / "top.vmdk", "old.vmdk")
    p = launch("rebase", "-u", "-b", "./new.vmdk", "-F", "vmdk", path, accel=accel)
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")
    assert info(path)["backing-filename"] == "./new.vmdk"
    qemu_io(path, "read -P 2 0 8M", fmt="vmdk")
    digest = sha256(path)
    for name, code, words in (("n" * 1024, "BACKING_PATH_TOO_LONG", "Invalid argument"),
                              ('a"b', "INVALID_OPTION", "quote"), ("a\nb", "INVALID_OPTION", "")):
        p = launch("rebase", "-u", "--output=json", "-b", name, "-F", "vmdk", path)
        assert json.loads(p.stdout)["code"] == code and words in p.stdout and p.returncode == 1
    assert sha256(path) == digest
    assert launch("rebase", "-u", "-b", "", path, accel=accel).returncode == 0
    assert "backing-filename" not in info(path)
    qemu_io(path, "read -P 0 0 8M", fmt="vmdk")


def test_a_base_that_is_cut_meanwhile(accel, tmp_path):
    """What was read as data must still be there when the reference changes."""
    top = None
    for _ in range(3):  # the cut may come too late
        old = image(tmp_path / "old", "raw", 192 * MI, "write -P 1 0 192M")
        create(tmp_path / "new", 192 * MI)
        top = overlay(tmp_path / "top", "old", "raw")
        length = top.stat().st_size
        p = subprocess.Popen([LAUNCH, "rebase", f"--accel={accel}", "-b", "new", "-F", "qcow2",
                              top], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + TIMEOUT
        while p.poll() is None and top.stat().st_size == length and time.monotonic() < until:
            time.sleep(0.001)
        if p.poll() is None:
            os.truncate(old, 160 * MI)
        out, err = p.communicate(timeout=TIMEOUT)
        if p.returncode:
            break
        qemu_io(top, "read -P 1 0 160M")
    assert p.returncode == 1 or p.returncode == 4, (out, err)
    assert "old' was written to while it was read; retry" in err
    assert info(top)["backing-filename"] == "old"
    qemu_io(top, "read -P 1 0 160M")
    assert check_status(top) in (0, 3)


def test_a_base_that_was_cut_before(accel, tmp_path):
    image(tmp_path / "old", "qcow2", 8 * MI, "write -P 1 0 8M")
    top = overlay(tmp_path / "top", "old")
    os.truncate(tmp_path / "old", (tmp_path / "old").stat().st_size - 3000000)
    before = sha256(top)
    p = launch("rebase", "-b", "", top, accel=accel)
    assert p.returncode == 1 and "A backing file has been truncated" in p.stderr
    assert info(top)["backing-filename"] == "old" and sha256(top) == before
