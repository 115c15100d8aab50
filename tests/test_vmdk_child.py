# SPDX-License-Identifier: MIT
"""VMDK overlays end to end: grown and shrunk, read and written to by qemu afterwards; the chain is
opened by the names in the descriptors, within the path policy; what it must not show, and what is
not the parent."""
import json
import os

import pytest

from conftest import best_accel, info, launch, qemu_img, qemu_io, sha256

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
OUTSIDE = "does not lie in the image's directory"


def make(path, size, *options, fill=()):
    qemu_img("create", "-q", "-f", "vmdk", *[x for o in options for x in ("-o", o)], path,
             str(size))
    if fill:
        qemu_io(path, *fill, fmt="vmdk")
    return path


def child_of(path, parent, size=None, *options, fill=()):
    """Its descriptor names the parent as `parent` is written here."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        qemu_img("create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", parent,
                 *[x for o in options for x in ("-o", o)], path, *([str(size)] if size else []))
        if fill:
            qemu_io(path, *fill, fmt="vmdk")
    finally:
        os.chdir(here)
    return path


def content(path):
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def resize(path, size, *args, accel=None):
    p = launch("resize", "-f", "vmdk", *args, path, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", ""), p


def refused(path, code, words, *args):
    before = sha256(path)
    p = launch("resize", "-f", "vmdk", "--output=json", *args[:-1], path, args[-1])
    assert p.returncode == 1, p
    said = json.loads(p.stdout)
    assert (said["code"], sha256(path)) == (code, before) and words in said["error"], said


def family(tmp_path, size, *options):
    """A child of so many bytes over 30 MiB of parent, over 40 MiB of grandparent."""
    make(tmp_path / "a.vmdk", 40 * MI, fill=["write -P 1 0 40M"])
    child_of(tmp_path / "b.vmdk", "a.vmdk", 30 * MI, fill=["write -P 2 1M 1M", "write -P 2 25M 4M"])
    return child_of(tmp_path / "c.vmdk", "b.vmdk", size, *options,
                    fill=["write -P 3 0 64k", "write -P 3 2M 1M", f"write -P 3 {size - 512} 512"])


@pytest.mark.parametrize("size", [20 * MI, 24 * MI + 64 * KI, 30 * MI, 33 * MI])
def test_grow_and_shrink(accel, tmp_path, size):
    """Behind the old end nothing of the parents is seen, nor of the child's own past."""
    path = family(tmp_path, size, "zeroed_grain=on")
    parents = {p: sha256(p) for p in (tmp_path / "a.vmdk", tmp_path / "b.vmdk")}
    before = content(path)
    for new in (38 * MI, 90 * MI):
        resize(path, new, accel=accel)
        assert info(path)["virtual-size"] == new
        assert content(path) == before + bytes(new - size)
    qemu_img("check", "-q", "-f", "vmdk", path)
    qemu_io(path, f"write -P 9 {size - 512} 1024", f"write -P 8 {90 * MI - 512} 512", fmt="vmdk")
    before = before[:-512] + b"\x09" * 1024
    now = content(path)
    assert now[:len(before)] == before and now[-512:] == b"\x08" * 512
    assert not now[len(before):-512].strip(b"\0")
    resize(path, 9 * MI, "--shrink", accel=accel)
    assert content(path) == before[:9 * MI]
    resize(path, 35 * MI, accel=accel)
    assert content(path) == before[:9 * MI] + bytes(26 * MI)
    assert {p: sha256(p) for p in parents} == parents


def test_a_parent_that_was_grown(accel, tmp_path):
    """Its new end holds nothing: that needs no hiding, and thus no flag."""
    parent = make(tmp_path / "a.vmdk", 20 * MI, fill=["write -P 1 0 20M"])
    path = child_of(tmp_path / "b.vmdk", "a.vmdk", fill=["write -P 2 3M 1M"])
    before = content(path)
    resize(parent, 50 * MI, accel=accel)
    resize(path, 50 * MI, accel=accel)
    assert content(path) == before + bytes(30 * MI)


def test_a_stream_as_parent(tmp_path):
    raw = tmp_path / "raw"
    raw.write_bytes(b"\x05" * (20 * MI))
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, tmp_path / "a.vmdk")
    path = child_of(tmp_path / "b.vmdk", "a.vmdk", 12 * MI, "zeroed_grain=on")
    resize(path, 25 * MI)
    assert content(path) == b"\x05" * (12 * MI) + bytes(13 * MI)


def test_what_cannot_be_hidden(tmp_path):
    path = family(tmp_path, 20 * MI)
    refused(path, "UNSUPPORTED_SUBFORMAT", "zeroed grains", "30M")
    before = content(path)
    resize(path, 5 * MI, "--shrink")
    assert content(path) == before[:5 * MI]


def test_not_the_parent(tmp_path):
    """The parent was written to; it is no VMDK; it is not there; it is the child."""
    path = family(tmp_path, 20 * MI, "zeroed_grain=on")
    qemu_io(tmp_path / "b.vmdk", "write -P 9 0 512", fmt="vmdk")
    refused(path, "OVERLAY_CORRUPT", "has changed", "30M")
    (tmp_path / "b.vmdk").write_bytes(b"\x06" * MI)
    refused(path, "PARSE_FAILED", "Image not in VMDK format", "30M")
    (tmp_path / "b.vmdk").unlink()
    refused(path, "READ_FAILED", "b.vmdk", "30M")
    os.symlink("c.vmdk", tmp_path / "b.vmdk")
    refused(path, "LOOP", "creates an infinite loop", "30M")
    resize(path, 19 * MI, "--shrink")


def test_names_that_lead_away(tmp_path):
    (tmp_path / "d").mkdir()
    make(tmp_path / "a.vmdk", 30 * MI)
    for name in ("../a.vmdk", str(tmp_path / "a.vmdk")):
        path = child_of(tmp_path / "d" / "b.vmdk", name)
        refused(path, "POLICY_REFUSED", OUTSIDE, "40M")
        refused(path, "POLICY_REFUSED", "", "--no-backing", "40M")
        resize(path, 40 * MI, f"--backing-dir={tmp_path}")
        assert info(path)["virtual-size"] == 40 * MI


def test_info(tmp_path):
    """The parent's name is shown, and never followed."""
    path = family(tmp_path, 20 * MI)
    theirs = json.loads(qemu_img("info", "-f", "vmdk", "--output=json", path).stdout)
    (tmp_path / "b.vmdk").unlink()
    ours = json.loads(launch("info", "--output=json", path).stdout)
    for key in ("backing-filename", "full-backing-filename", "virtual-size"):
        assert ours[key] == theirs[key]
    data = ours["format-specific"]["data"]
    assert data["parent-cid"] == theirs["format-specific"]["data"]["parent-cid"]
