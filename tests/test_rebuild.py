# SPDX-License-Identifier: MIT
"""Images of a writer that was killed: refcounts are rebuilt first, then the resize goes on."""
import json
import os
import random
import signal
import struct
import subprocess
import time

import pytest

from conftest import (TIMEOUT, be64, check_status, copy, create, guest_bytes, has_extended_l2,
                      header, host, info, launch, outcome, patch, qemu_img, qemu_io, resize_request,
                      run, same_content, sha256, size_by_7zz)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
SEED = 20240302
SAID = "Rebuilding refcount structure\n"


def die_writing(path, *commands):
    """qemu-io writes, and dies with what it had not flushed."""
    options = [x for c in commands for x in ("-c", c)]
    p = run("qemu-io", "-f", "qcow2", *options, "-c", "abort", path)
    assert p.returncode < 0 or p.returncode == 134, p.stderr
    assert is_dirty(path)


def is_dirty(path):
    return bool(header(path)[79] & 1)


def lazy(path, size, *options):
    return create(path, size, "lazy_refcounts=on", *options)


# name: (options, old size, new size, what is written in peace, by the one that dies)
SHAPES = {
    "plain": ([], 64 * MI, 5 * GI, [], ["write -P 1 0 3M", "write -P 2 40M 1M"]),
    "unaligned": ([], 8 * MI + 512, 9 * MI, ["write -P 3 0 1M"], ["write -P 4 7M 1049088"]),
    "clusters-512": (["cluster_size=512"], 4 * MI, 40 * MI, [], ["write -P 5 0 2M"]),
    "clusters-2M": (["cluster_size=2M"], 64 * MI, 99 * GI, ["write 1M 1M"], ["write -P 6 9M 9M"]),
    "counts-1": (["refcount_bits=1", "cluster_size=4k"], 16 * MI, 9 * GI, [], ["write -P 7 0 8M"]),
    "counts-64": (["refcount_bits=64", "cluster_size=1k"], 8 * MI, 90 * MI, ["write -P 8 1M 1M"],
                  ["write -P 9 4M 3M", "write -z 1M 100k"]),
    "extl2": (["extended_l2=on", "cluster_size=16k"], 20 * MI, 40 * GI,
              ["write -P 10 0 1M", "write -z 0 5k"], ["write -P 11 5M 3k", "write -P 12 9M 1M"]),
    "preallocated": (["preallocation=metadata"], 20 * MI, 25 * MI, ["write -P 13 3M 4M"],
                     ["discard 2M 9M", "write -P 14 5M 1M"]),
    "zeros": ([], 20 * MI, 25 * MI, ["write -P 14 4M 4M", "write -z 4M 2M"],
              ["write -z 12M 4M", "write -P 15 5M 1M", "discard 6M 1M"]),
}
CHEAP_UNDER_TCG = {"plain", "unaligned", "counts-1", "extl2"}


def resized_alike(path, new, accel, *options):
    """Ours and qemu-img's own, which repairs as it opens: both clean, both the same."""
    twin = copy(path, "twin.qcow2")
    qemu_img("resize", "-q", *options, "-f", "qcow2", twin, str(new))
    p = launch("resize", *options, path, str(new), accel=accel)
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", SAID)
    assert not is_dirty(path) and check_status(path) == 0
    assert info(path)["virtual-size"] == new
    assert info(path)["format-specific"]["data"]["lazy-refcounts"]
    assert same_content(path, twin)
    if not has_extended_l2(path) and "backing-filename" not in info(path):
        assert size_by_7zz(path) == new


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["grow", "shrink"])
def test_killed_writer(accel, tmp_path, shape, way):
    if accel == "tcg" and shape not in CHEAP_UNDER_TCG:
        pytest.skip("KVM's run of it is enough")
    options, old, new, peace, war = SHAPES[shape]
    path = lazy(tmp_path / "a.qcow2", old, *options)
    if peace:
        qemu_io(path, *peace)
    die_writing(path, *war)
    if way == "grow":
        resized_alike(path, new, accel)
    else:
        resized_alike(path, old // 3 // 512 * 512, accel, "--shrink")
    qemu_io(path, "write -P 77 512 64k", "read -P 77 512 64k")  # it is in use again
    assert check_status(path) == 0


def test_the_damage_is_real(tmp_path):
    path = lazy(tmp_path / "a.qcow2", 64 * MI)
    die_writing(path, "write -P 1 0 3M")
    assert check_status(path) == 2


@pytest.mark.parametrize("way", [["+1G"], ["--shrink", "1537K"]])
def test_snapshots(accel, tmp_path, way):
    path = lazy(tmp_path / "a.qcow2", 8 * MI, "cluster_size=4k")
    for i in range(3):
        qemu_io(path, f"write -P {i + 1} {i}M 2M", f"write -z {i + 4}M 100k")
        qemu_img("snapshot", "-c", f"s{i}", path)
    die_writing(path, "write -P 9 1M 1000k", "write -P 8 6M 1M")
    before = [snapshot(path, f"s{i}", tmp_path) for i in range(3)]
    twin = copy(path, "twin.qcow2")
    p = launch("resize", *way[:-1], path, way[-1], accel=accel)
    assert (p.returncode, p.stderr) == (0, SAID), p.stderr
    qemu_img("resize", "-q", *way[:-1], "-f", "qcow2", twin, way[-1])
    assert check_status(path) == 0 and same_content(path, twin)
    for i in range(3):
        qemu_img("snapshot", "-a", f"s{i}", path)
        assert check_status(path) == 0 and guest_bytes(path, tmp_path) == before[i]


def snapshot(path, name, tmp_path):
    raw = tmp_path / "snapshot.raw"
    qemu_img("convert", "-f", "qcow2", "-l", name, "-O", "raw", path, raw)
    return raw.read_bytes()


def test_compressed(accel, tmp_path):
    raw = tmp_path / "source.raw"
    r = random.Random(SEED)
    raw.write_bytes(b"".join(r.randbytes(5000) + b"words" * 12000 for _ in range(60)))
    path = tmp_path / "a.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "lazy_refcounts=on", raw, path)
    die_writing(path, "write -P 9 1M 640k")
    resized_alike(path, 6 * GI, accel)


def test_overlay(accel, tmp_path):
    base = create(tmp_path / "base.qcow2", 8 * MI)
    qemu_io(base, "write -P 1 0 8M")
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "-b", base, "-F", "qcow2",
             path, "4M")
    die_writing(path, "write -P 2 1M 1M")
    resized_alike(path, 20 * MI, accel)


def test_sigkill(tmp_path):
    """A writer killed at any time from its first allocation on."""
    r = random.Random(SEED)
    for i in range(8):
        path = lazy(tmp_path / f"{i}.qcow2", 256 * MI, "cluster_size=4k")
        p = subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, text=True)
        for k in range(400):
            p.stdin.write(f"aio_write -P {1 + k % 255} {r.randrange(60000) * 4}k 12k\n")
        p.stdin.write("aio_flush\n" if i % 2 else "")
        p.stdin.flush()
        until = time.monotonic() + TIMEOUT
        while not is_dirty(path) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(r.uniform(0, 0.1))
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdin.close()
        resized_alike(path, GI, None)
        (tmp_path / "twin.qcow2").unlink()


# ---- what is said ----


def damaged(tmp_path, *options):
    path = lazy(tmp_path / "a.qcow2", 64 * MI, *options)
    die_writing(path, "write -P 1 0 3M")
    return path


def test_json(tmp_path):
    path = damaged(tmp_path)
    p = launch("resize", "--output=json", path, "+1G")
    answer = json.loads(p.stdout)
    assert p.returncode == 0 and p.stderr == ""
    assert answer["refcounts_rebuilt"] is True and answer["action"] == "grow"
    assert answer["new_file_size"] == os.stat(path).st_size
    answer = json.loads(launch("resize", "--output=json", path, "+1G").stdout)
    assert "refcounts_rebuilt" not in answer


def test_quiet_still_says_so(tmp_path):
    p = launch("resize", "-q", damaged(tmp_path), "+1G")
    assert (p.returncode, p.stdout, p.stderr) == (0, "", SAID)


def test_dry_run(tmp_path):
    path = damaged(tmp_path)
    before = sha256(path)
    p = launch("resize", "--dry-run", path, "+1G")
    assert p.returncode == 0 and p.stderr == "" and sha256(path) == before
    assert "COMMIT: the new refcounts" in p.stdout and "COMMIT: the new size" in p.stdout
    plan = json.loads(launch("resize", "--dry-run", "--output=json", path, "+1G").stdout)
    assert plan["more"] is False and {x["epoch"] for x in plan["plan"]} == {0, 1}
    assert [x["offset"] for x in plan["plan"] if x.get("commit")] == [48, 24]
    assert sha256(path) == before


def test_on_the_host(tmp_path):
    """The host build does the same as the VM, to the byte."""
    path = damaged(tmp_path, "cluster_size=4k")
    twin = copy(path, "twin.qcow2")
    assert launch("resize", path, "1G").returncode == 0
    status, events = host("resize", resize_request(twin, GI), twin, tmp_path)
    assert status == 0 and outcome(events).resize.rebuilt
    assert sha256(path) == sha256(twin)


# ---- refused ----


def refused(path, *args, code, words):
    before = sha256(path)
    p = launch("resize", "--output=json", path, *args)
    answer = json.loads(p.stdout)
    assert p.returncode == 1 and answer["code"] == code and words in answer["error"], answer
    assert sha256(path) == before


def test_refused_before_anything_is_repaired(tmp_path):
    path = damaged(tmp_path, "cluster_size=512")
    refused(path, "200G", code="INVALID_NEW_SIZE", words="Failed to grow the L1 table")
    refused(path, "+1", code="INVALID_NEW_SIZE", words="multiple of 512")
    refused(path, "1M", code="SHRINK_WITHOUT_FLAG", words="--shrink")
    refused(path, "+1G", "--max-growth=512", code="NO_SPACE", words="--max-growth=")
    # the stage alone would be within this limit; preallocation, later, is not
    refused(path, "+1G", "--preallocation=full", "--max-growth=8M", code="NO_SPACE",
            words="--max-growth=")


def l2_table(path):
    l1 = struct.unpack_from(">Q", header(path), 40)[0]
    with open(path, "rb") as f:
        f.seek(l1)
        return struct.unpack(">Q", f.read(8))[0] & ((1 << 56) - 512)


@pytest.mark.parametrize("entry, words", [
    (lambda l2: 1 << 63 | l2, "used twice"),
    (lambda l2: 1 << 63 | 0x10000, "misplaced"),
    (lambda l2: 1 << 63 | 1 << 45, "misplaced"),
    (lambda l2: 1 << 60, "invalid"),
])
def test_corrupt_besides(tmp_path, entry, words):
    path = damaged(tmp_path)
    l2 = l2_table(path)
    patch(path, l2 + 8 * 900, be64(entry(l2)))
    refused(path, "+1G", code="OVERLAY_CORRUPT", words=words)


def test_refused_after_the_repair(tmp_path):
    """What the disk ends in is encrypted and would have to be zeroed."""
    path = tmp_path / "a.qcow2"
    secret = ["--object", "secret,id=s,data=x"]
    opts = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", "encrypt.format=luks,"
             "encrypt.key-secret=s,encrypt.iter-time=10,lazy_refcounts=on", path, "1025K")
    run("qemu-io", *secret, "--image-opts", "-c", "write -P 5 0 1025k", "-c", "abort", opts)
    assert is_dirty(path)
    p = launch("resize", path, "+1G")
    assert p.returncode == 1 and "encrypted" in p.stderr
    assert p.stderr.endswith("it is repaired, and has its old size and all its data.\n")
    assert "old size or" not in p.stderr
    assert not is_dirty(path) and info(path)["virtual-size"] == 1025 * KI
    qemu_img("check", *secret, "--image-opts", opts)
    run("qemu-io", *secret, "--image-opts", "-c", "read -P 5 0 1025k", opts, check=True)
