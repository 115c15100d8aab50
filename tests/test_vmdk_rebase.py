# SPDX-License-Identifier: MIT
"""rebase of VMDK overlays end to end: qemu-img, which cannot do it, reads what was written; the
descriptor is compared line by line; parents of other formats, which qemu does not read below a VMDK,
are left again by a second rebase."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

from conftest import LAUNCH, TIMEOUT, best_accel, info, launch, patch, qemu_img, qemu_io, sha256

KI, MI = 1 << 10, 1 << 20
TEXT = 512  # where qemu puts the descriptor, in 20 sectors


def make(path, size, *fill, opts=(), parent=None, fmt="vmdk"):
    options = [x for o in opts for x in ("-o", o)]
    below = ["-F", "vmdk", "-b", parent] if parent else []
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        qemu_img("create", "-q", "-f", fmt, *options, *below, path, str(size))
        if fill:
            qemu_io(path, *fill, fmt=fmt)
    finally:
        os.chdir(here)
    return path


def content(path):
    raw = path.with_suffix(".content")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def text(path):
    """Up to the NUL that ends it; qemu leaves bytes of longer ones behind that."""
    with open(path, "rb") as f:
        f.seek(TEXT)
        return f.read(10240).split(b"\0")[0].decode()


def hint(path):
    found = [l for l in text(path).splitlines() if l.startswith("parentFileNameHint=")]
    return found[0].split("=", 1)[1].strip('"') if found else None


def cid(path, key="CID"):
    found = [l for l in text(path).splitlines() if l.startswith(key + "=")]
    return int(found[0].split("=")[1], 16)


NONE = 0xffffffff


def rebase(path, *args, accel=None):
    """Silent; all lines of the descriptor but two stay."""
    def others():
        return [l for l in text(path).splitlines() if not l.startswith("parent")]
    before = others()
    p = launch("rebase", "-f", "vmdk", *args, path, accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "", ""), p
    assert others() == before
    assert not list(path.parent.glob("*.instar-undo"))


def refused(path, code, words, *args):
    before, files = sha256(path), sorted(os.listdir(path.parent))
    p = launch("rebase", "-f", "vmdk", "--output=json", *args, path)
    assert p.returncode == 1, p
    said = json.loads(p.stdout)
    assert said["code"] == code and words in said["error"], said
    assert sha256(path) == before and sorted(os.listdir(path.parent)) == files


def sound(path, data):
    """What qemu shows is this, and what it writes then is there."""
    assert content(path) == data
    qemu_img("check", "-q", "-f", "vmdk", path)
    at = len(data) // 2 // 512 * 512
    qemu_io(path, f"write -P 0x77 {at} 512", fmt="vmdk")
    assert content(path) == data[:at] + b"\x77" * 512 + data[at + 512:]


def family(tmp_path, size, **kw):
    """c over a, and b beside it; each has something that the others have not."""
    make(tmp_path / "a.vmdk", 30 * MI, "write -P 1 0 3M", "write -P 2 10M 5M", "write -P 3 29M 1M")
    make(tmp_path / "b.vmdk", 40 * MI, "write -P 1 0 1M", "write -P 9 12M 4M", "write -P 8 35M 1M")
    return make(tmp_path / "c.vmdk", size, "write -P 5 2M 100k", "write -P 6 11M 64k",
                parent="a.vmdk", **kw)


# ---- unsafe ----


def test_the_parent_moves(accel, tmp_path):
    path = family(tmp_path, 20 * MI)
    data, was = content(path), cid(path, "parentCID")
    (tmp_path / "a.vmdk").rename(tmp_path / "another name.vmdk")
    rebase(path, "-u", "-b", "another name.vmdk", "-F", "vmdk", accel=accel)
    assert hint(path) == "another name.vmdk"
    assert cid(path, "parentCID") == was
    sound(path, data)
    rebase(path, "-u", "-b", "nowhere.vmdk", "-F", "vmdk", accel=accel)  # and its CID is kept
    assert (hint(path), cid(path, "parentCID")) == ("nowhere.vmdk", was)


def test_unsafe_takes_the_cid(accel, tmp_path):
    path = family(tmp_path, 20 * MI)
    rebase(path, "-u", "-b", "b.vmdk", "-F", "vmdk", accel=accel)
    assert cid(path, "parentCID") == cid(tmp_path / "b.vmdk")
    assert content(path)[12 * MI:16 * MI] == b"\x09" * (4 * MI)
    assert info(path)["backing-filename"] == "b.vmdk"
    rebase(path, "-u", "-b", "", accel=accel)
    assert hint(path) is None and cid(path, "parentCID") == NONE
    assert content(path)[12 * MI:16 * MI] == bytes(4 * MI)
    refused(path, "NEW_BACKING_INCOMPATIBLE", "its CID", "-u", "-b", "nowhere.vmdk", "-F", "vmdk")
    rebase(path, "-u", "-b", "a.vmdk", "-F", "vmdk")
    assert cid(path, "parentCID") == cid(tmp_path / "a.vmdk")
    (tmp_path / "r").write_bytes(bytes(MI))
    rebase(path, "-u", "-b", "r", "-F", "raw")
    assert cid(path, "parentCID") == NONE and hint(path) == "r"
    assert json.loads(launch("info", "--output=json", path).stdout)["backing-filename"] == "r"


def test_a_descriptor_that_moves(accel, tmp_path):
    """Its text moves across sectors: under the journal, which is gone afterwards."""
    path = family(tmp_path, 20 * MI)
    data, old = content(path), text(path)
    lines = old.replace("createType", "#" + "x" * 300 + "\ncreateType", 1)
    patch(path, TEXT, lines.encode())
    (tmp_path / "d").mkdir()
    name = "d/" + "../d/" * 190 + "a.vmdk"
    (tmp_path / "a.vmdk").rename(tmp_path / "d/a.vmdk")
    rebase(path, "-u", "-b", name, "-F", "vmdk", accel=accel)
    assert len(name) > 900 and hint(path) == name
    sound(path, data)
    lines = text(path)
    patch(path, TEXT, (lines + "#" * (10240 - len(lines))).encode())
    refused(path, "DESCRIPTOR_TOO_LARGE", "no room", "-u", "-b", name + "x", "-F", "vmdk")
    refused(path, "BACKING_PATH_TOO_LONG", "", "-u", "-b", "x" * 1024, "-F", "vmdk")
    refused(path, "INVALID_OPTION", "quote", "-u", "-b", 'a"b', "-F", "vmdk")


# ---- safe ----


@pytest.mark.parametrize("size", [20 * MI, 30 * MI, 50 * MI - 512])
@pytest.mark.parametrize("opts", [(), ("zeroed_grain=on",)])
def test_safe(accel, tmp_path, size, opts):
    path = family(tmp_path, size, opts=opts)
    data, before = content(path), sha256(path)
    said = json.loads(launch("rebase", "--check-only", "--output=json", "-b", "b.vmdk", "-F", "vmdk",
                             path, accel=accel).stdout)
    assert sha256(path) == before
    old, new = content(tmp_path / "a.vmdk"), content(tmp_path / "b.vmdk")
    old, new = old.ljust(size, b"\0")[:size], new.ljust(size, b"\0")[:size]
    own = {2 * MI // (64 * KI), 2 * MI // (64 * KI) + 1, 11 * MI // (64 * KI)}
    grains = [g for g in range((size + 65535) // 65536)
              if g not in own and old[g << 16:g + 1 << 16] != new[g << 16:g + 1 << 16]]
    p = launch("rebase", "--output=json", "-b", "b.vmdk", "-F", "vmdk", path, accel=accel)
    done = json.loads(p.stdout)
    assert done["clusters_copied"] == said["clusters_copied"] == len(grains)
    assert (done["bytes_copied"], done["mode"]) == (said["bytes_copied"], "safe")
    assert done["overlay_format"] == "vmdk" and done["new_backing"] == "b.vmdk"
    assert cid(path, "parentCID") == cid(tmp_path / "b.vmdk")
    sound(path, data)


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "vpc", "vhdx"])
def test_a_parent_of_another_format(accel, tmp_path, fmt):
    """There and back again, and grown in between: what qemu reads in the end is what it read."""
    path = family(tmp_path, 20 * MI)
    data = content(path)
    qemu_img("convert", "-f", "vmdk", "-O", fmt, tmp_path / "b.vmdk", tmp_path / "other")
    rebase(path, "-b", "other", "-F", fmt, accel=accel)
    assert cid(path, "parentCID") == NONE
    assert hint(path) == "other"
    shown = json.loads(launch("info", "--output=json", path).stdout)
    assert shown["backing-filename"] == "other"
    rebase(path, "-b", "a.vmdk", "-F", "vmdk", accel=accel)
    sound(path, data)


def test_alone(accel, tmp_path):
    path = family(tmp_path, 50 * MI)
    data = content(path)
    rebase(path, "-b", "", accel=accel)
    (tmp_path / "a.vmdk").unlink()
    assert hint(path) is None and cid(path, "parentCID") == NONE
    assert "backing-filename" not in info(path)
    assert content(path) == data
    # and below something again: what it has not is zero, and stays so
    rebase(path, "-b", "b.vmdk", "-F", "vmdk", accel=accel)
    sound(path, data)


def test_a_link_less(tmp_path):
    make(tmp_path / "a.vmdk", 30 * MI, "write -P 1 0 8M")
    make(tmp_path / "b.vmdk", 30 * MI, "write -P 2 4M 8M", parent="a.vmdk")
    path = make(tmp_path / "c.vmdk", 30 * MI, "write -P 3 8M 1M", parent="b.vmdk")
    data = content(path)
    p = launch("rebase", "-p", "-b", "a.vmdk", "-F", "vmdk", path)
    assert p.returncode == 0 and "(100.00/100%)" in p.stdout, p
    (tmp_path / "b.vmdk").unlink()
    sound(path, data)


def test_a_qcow2_overlay_over_them(tmp_path):
    family(tmp_path, 20 * MI)
    path = tmp_path / "q.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "c.vmdk", "-F", "vmdk", path)
    p = launch("rebase", "-b", "b.vmdk", "-F", "vmdk", path)
    assert (p.returncode, p.stderr) == (0, "")
    qemu_img("compare", path, tmp_path / "c.vmdk")


def test_killed(tmp_path):
    """At any instant; then once more, to the end."""
    rng = random.Random(20)
    make(tmp_path / "a.vmdk", 400 * MI, *[f"write -P {i + 1} {i * 20}M 15M" for i in range(20)])
    path = make(tmp_path / "c.vmdk", 400 * MI, "write -P 99 5M 1M", parent="a.vmdk")
    data = content(path)
    whole = path.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", path, whole], check=True)
    start = time.monotonic()
    rebase(whole, "-b", "")
    took = time.monotonic() - start
    whole.unlink()
    killed, lengths = 0, [os.stat(path).st_size]
    for i in range(12):
        p = subprocess.Popen([LAUNCH, "rebase", "-b", "", path], stderr=subprocess.DEVNULL)
        time.sleep(rng.random() * took * (i + 1) / 12)
        p.send_signal(signal.SIGKILL)
        killed += p.wait(timeout=TIMEOUT) < 0
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        while qemu_img("check", "-q", "-f", "vmdk", path, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lengths.append(os.stat(path).st_size)
        assert content(path) == data
        if hint(path) is None:
            break
    assert killed and lengths == sorted(lengths), lengths
    rebase(path, "-b", "")
    sound(path, data)
    assert os.stat(path).st_size <= 300 * MI + 40 * MI  # what was not linked has been overwritten


# ---- of several files ----


GI = 1 << 30
SPLIT = ("subformat=twoGbMaxExtentSparse",)


def split_text(path):
    return path.read_bytes().rstrip(b"\0").decode()


def reference(path):
    found = dict(l.split("=", 1) for l in split_text(path).splitlines() if "=" in l)
    return found.get("parentFileNameHint", "").strip('"'), int(found["parentCID"], 16)


def split_rebase(path, *args, accel=None):
    before = [l for l in split_text(path).splitlines() if not l.startswith("parent")]
    p = launch("rebase", "-f", "vmdk", "--output=json", *args, path, accel=accel or best_accel())
    assert (p.returncode, p.stderr) == (0, ""), p
    assert "\0" not in split_text(path) and not list(path.parent.glob("*.instar-undo"))
    assert [l for l in split_text(path).splitlines() if not l.startswith("parent")] == before
    return json.loads(p.stdout)


@pytest.mark.parametrize("parent", [(), SPLIT])
def test_split(accel, tmp_path, parent):
    """5 GiB in three extents: data at both sides of their edges, in one of them, and in the other."""
    size = 5 * GI + 512
    old = make(tmp_path / "a.vmdk", size, "write -P 1 2047M 2M", "write -P 2 4095M 3M",
               "write -P 3 5119M 1M", f"write -P 4 {5 * GI} 512", opts=parent)
    new = make(tmp_path / "b.vmdk", 3 * GI, "write -P 5 2047M 1M", "write -P 6 0 1M", opts=parent)
    path = make(tmp_path / "c.vmdk", size, "write -P 7 2048M 64k", parent="a.vmdk", opts=SPLIT)
    alone = tmp_path / "alone.qcow2"
    qemu_img("convert", "-f", "vmdk", "-O", "qcow2", path, alone)
    def same():
        qemu_img("compare", "-f", "vmdk", "-F", "qcow2", path, alone)
        qemu_img("check", "-q", "-f", "vmdk", path)
    files = sorted(os.listdir(tmp_path))
    said = split_rebase(path, "--check-only", "-b", "b.vmdk", "-F", "vmdk", accel=accel)
    done = split_rebase(path, "-b", "b.vmdk", "-F", "vmdk", accel=accel)
    assert sorted(os.listdir(tmp_path)) == files
    # in grains: 2 MiB but one of them, 3 MiB, 1 MiB, a part of one; 1 MiB that must be hidden
    assert done["clusters_copied"] == said["clusters_copied"] == 32 - 1 + 48 + 16 + 1 + 16
    assert reference(path)[0] == "b.vmdk"
    same()
    done = split_rebase(path, "-b", "", accel=accel)
    assert done["clusters_copied"] == 0 and reference(path) == ("", NONE)
    same()
    split_rebase(path, "-u", "-b", "a" * 600, "-F", "raw", accel=accel)
    assert reference(path) == ("a" * 600, NONE)
    split_rebase(path, "-u", "-b", "a.vmdk", "-F", "vmdk", accel=accel)
    same()
    for at in (0, 2049 * MI, 4 * GI):
        qemu_io(path, f"write -P 0x5a {at} 64k", fmt="vmdk")
        qemu_io(alone, f"write -P 0x5a {at} 64k")
    same()
    old.unlink(), new.unlink()


def test_flat(tmp_path):
    make(tmp_path / "a.vmdk", MI, "write -P 1 0 64k")
    path = make(tmp_path / "f.vmdk", MI, opts=("subformat=monolithicFlat",))
    for mode in ((), ("-u",)):
        refused(path, "UNSUPPORTED_SUBFORMAT", "flat", *mode, "-b", "a.vmdk", "-F", "vmdk")


# ---- refusals ----


def test_refusals(tmp_path):
    path = family(tmp_path, 20 * MI)
    to_b = ("-b", "b.vmdk", "-F", "vmdk")
    refused(path, "LOOP", "", "-b", "c.vmdk", "-F", "vmdk")
    refused(path, "LOOP", "", "-u", "-b", "c.vmdk", "-F", "vmdk")
    (tmp_path / "d").write_text("none")
    refused(path, "PARSE_FAILED", "not in VMDK format", "-b", "d", "-F", "vmdk")
    qemu_io(tmp_path / "a.vmdk", "write 0 512", fmt="vmdk")
    refused(path, "OVERLAY_CORRUPT", "has changed", *to_b)
    (tmp_path / "a.vmdk").unlink()
    refused(path, "READ_FAILED", "a.vmdk", *to_b)
    qemu_img("convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized",
             tmp_path / "b.vmdk", tmp_path / "s.vmdk")
    refused(tmp_path / "s.vmdk", "UNSUPPORTED_SUBFORMAT", "streamOptimized", *to_b)
    rebase(tmp_path / "s.vmdk", "-u", *to_b)
    assert cid(tmp_path / "s.vmdk", "parentCID") == cid(tmp_path / "b.vmdk")
