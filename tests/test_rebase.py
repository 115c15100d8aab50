# SPDX-License-Identifier: MIT
"""rebase: the command line, unsafe mode, chains and names. qemu-img reads what was written; a parser
of the test's own looks at the header (parity B, H.2 24 to 27, I).
"""
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from conftest import (CLUSTER, LAUNCH, TIMEOUT, add_extension, be32, be64, best_accel, check_status,
                      create, guest_bytes, header, info, kvm_problem, launch, patch, qemu_img,
                      qemu_io, run, sha256)

KI, MI = 1 << 10, 1 << 20
NOBODY = 65534
FORMAT = 0xe2792aca


# ---- the test's own reading ----


def reference(path):
    """(name, format, the other extensions in order), as bytes."""
    head = header(path, 2 * MI)
    version, off, length, bits = struct.unpack_from(">IQII", head, 4)
    at = 72 if version == 2 else struct.unpack_from(">I", head, 100)[0]
    end = off if off else 1 << bits
    fmt, others = b"", []
    while at + 8 <= end:
        kind, size = struct.unpack_from(">II", head, at)
        if not kind:
            break
        data = head[at + 8:at + 8 + size]
        assert at + 8 + size <= end
        if kind == FORMAT:
            fmt = data
        else:
            others.append((kind, data))
        at += 8 + (size + 7) // 8 * 8
    assert not off or at <= off
    return head[off:off + length] if off else b"", fmt, others


def chain_of(path):
    return json.loads(qemu_img("info", "--backing-chain", "--output=json", path).stdout)


def overlay(path, name, fmt="raw", size=MI, *options):
    """An image that stands on a file which nobody has looked at."""
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", fmt,
             *[x for o in options for x in ("-o", o)], path, size)
    return path


def base_file(path, size=MI, fmt="raw", byte=0x66):
    if fmt == "raw":
        path.write_bytes(bytes([byte]) * size)
        return path
    create(path, size)
    qemu_io(path, f"write -P {byte} 0 {size}")
    return path


def rebase(path, *args, **kw):
    """Unsafe, and silent. The guest's own bytes and tables stay what they are."""
    before = Path(path).read_bytes()
    others = reference(path)[2]
    p = launch("rebase", "-u", *args, path, **kw)
    said = re.sub("instar-launch: warning: The image's internal snapshots .*\n", "", p.stderr)
    assert (p.returncode, p.stdout, said) == (0, "", "")
    assert (said != p.stderr) == (struct.unpack_from(">I", header(path), 60)[0] > 0)
    after = Path(path).read_bytes()
    cluster = 1 << struct.unpack_from(">I", before, 20)[0]
    assert len(before) == len(after) and before[cluster:] == after[cluster:]
    assert reference(path)[2] == others
    return reference(path)


def refused(path, code, words, *args, status=1, **kw):
    """Refuses with these words, changes nothing, leaves nothing behind. Returns them."""
    before, was, files = sha256(path), os.stat(path), sorted(os.listdir(path.parent))
    start = time.monotonic()
    p = launch("rebase", *args, path, **kw)
    assert time.monotonic() - start < 30
    assert p.returncode == status and p.stdout == "", p
    assert p.stderr.startswith("instar-launch: ") and words in p.stderr, p.stderr
    j = launch("rebase", "--output=json", *args, path, **kw)
    assert j.returncode == status and json.loads(j.stdout)["code"] == code, j.stdout
    now = os.stat(path)
    assert sha256(path) == before
    assert (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert sorted(os.listdir(path.parent)) == files
    return p.stderr


def disks_of(p):
    """How many disks the last QEMU had, by what -v says."""
    lines = [line for line in p.stderr.split("\n") if " -blockdev " in line]
    return lines[-1].count(" -blockdev "), len(lines)


# ---- the reference ----


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_another_backing_file(accel, tmp_path, compat):
    base_file(tmp_path / "one", fmt="qcow2", byte=1)
    base_file(tmp_path / "two", byte=2)
    path = overlay(tmp_path / "a.qcow2", "one", "qcow2", MI, f"compat={compat}")
    qemu_io(path, "write -P 3 128k 64k")
    assert rebase(path, "-b", "two", "-F", "raw", accel=accel)[:2] == (b"two", b"raw")
    image = info(path)
    assert image["backing-filename"] == "two" and image["backing-filename-format"] == "raw"
    assert image["full-backing-filename"] == str(tmp_path / "two")
    data = guest_bytes(path, tmp_path)
    assert data == b"\2" * (128 * KI) + b"\3" * (64 * KI) + b"\2" * (MI - 192 * KI)
    assert check_status(path) == 0
    rebase(path, "-b", "one", "-F", "qcow2", accel=accel)
    assert guest_bytes(path, tmp_path)[:128 * KI] == b"\1" * (128 * KI)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_alone_and_back(accel, tmp_path, compat):
    path = create(tmp_path / "a.qcow2", MI, f"compat={compat}")
    assert rebase(path, "-b", "base", "-F", "raw", accel=accel)[:2] == (b"base", b"raw")
    assert rebase(path, "-b", "", accel=accel)[:2] == (b"", b"")
    assert "backing-filename" not in info(path) and check_status(path) == 0
    base_file(tmp_path / "base", fmt="qcow2")
    rebase(path, "-b", "base", "-F", "qcow2", accel=accel)
    assert len(chain_of(path)) == 2
    assert rebase(path, "-b", "", "-F", "raw")[:2] == (b"", b"")  # qemu-img ignores it there
    assert rebase(path, "-b", "") == rebase(path, "-b", "", accel=accel)  # nothing to do


def test_the_same_again(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "base")
    digest = sha256(path)
    rebase(path, "-b", "base", "-F", "raw")
    assert sha256(path) == digest


def test_names_are_relative_to_the_image(tmp_path):
    (tmp_path / "vm").mkdir()
    (tmp_path / "elsewhere").mkdir()
    base_file(tmp_path / "base")
    path = overlay(tmp_path / "vm" / "a.qcow2", "x")
    p = run(LAUNCH, "rebase", "-u", "-v", "-b", "../base", "-F", "raw", "../vm/a.qcow2",
            cwd=tmp_path / "elsewhere", check=True)
    assert disks_of(p)[0] == 2
    assert info(path)["backing-filename"] == "../base" and len(chain_of(path)) == 2
    rebase(path, "-b", str(tmp_path / "base"), "-F", "raw")
    assert info(path)["backing-filename"] == str(tmp_path / "base")


def test_an_image_named_by_a_link(tmp_path):
    """The directory of the name that was typed, as with qemu-img."""
    for d in ("real", "front"):
        (tmp_path / d).mkdir()
    base_file(tmp_path / "front" / "base", fmt="qcow2")
    overlay(tmp_path / "real" / "a.qcow2", "x")
    (tmp_path / "front" / "a.qcow2").symlink_to("../real/a.qcow2")
    p = launch("rebase", "-u", "-v", "-b", "base", "-F", "qcow2", tmp_path / "front" / "a.qcow2")
    assert p.returncode == 0 and disks_of(p)[0] == 2


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_unknown_extensions(accel, tmp_path, compat):
    """iotest 031"""
    path = create(tmp_path / "a.qcow2", MI, f"compat={compat}")
    if compat == "1.1":
        add_extension(path, 0x12345678, b"This is a test header extension")
    else:
        data = b"This is a test header extension".ljust(32, b"\0")
        patch(path, 72, be32(0x12345678) + be32(31) + data + be64(0))
    others = reference(path)[2]
    assert (0x12345678, b"This is a test header extension") in others
    assert rebase(path, "-b", "", accel=accel) == (b"", b"", others)
    name = str(tmp_path / "t.qcow2.base").encode()
    assert rebase(path, "-b", name.decode(), "-F", "host_device", accel=accel) == \
        (name, b"host_device", others)
    assert info(path)["backing-filename-format"] == "host_device"


def test_an_unknown_format_in_the_header(tmp_path):
    """iotest 114"""
    base_file(tmp_path / "base", fmt="qcow2")
    path = overlay(tmp_path / "a.qcow2", "base", "qcow2")
    at = header(path, CLUSTER).index(b"qcow2\0\0\0")
    patch(path, at - 4, be32(3) + b"foo\0\0\0\0\0")
    assert qemu_img("check", path, check=False).returncode == 1
    assert info(path)["backing-filename-format"] == "foo"
    refused(path, "INVALID_OPTION", "backing format must be specified", "-u", "-b", "base")
    rebase(path, "-b", "base", "-F", "qcow2")
    assert check_status(path) == 0 and len(chain_of(path)) == 2


def test_a_disk_of_no_size(accel, tmp_path):
    """iotest 042"""
    base = create(tmp_path / "base.qcow2", 0)
    path = create(tmp_path / "a.qcow2", 0)
    rebase(path, "-b", "base.qcow2", "-F", "qcow2", accel=accel)
    assert check_status(path) == 0 and len(chain_of(path)) == 2 and check_status(base) == 0


@pytest.mark.parametrize("kind", ["bitmaps", "snapshots", "dirty", "data-file", "luks", "ext-l2"])
def test_all_else_stays(tmp_path, kind):
    options = {"data-file": [f"data_file={tmp_path}/data"], "ext-l2": ["extended_l2=on"],
               "dirty": ["lazy_refcounts=on"]}.get(kind, [])
    path = tmp_path / "a.qcow2"
    if kind == "luks":
        qemu_img("create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o",
                 "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M")
    else:
        create(path, MI, *options)
        qemu_io(path, "write -P 7 0 128k")
    if kind == "bitmaps":
        qemu_img("bitmap", "--add", path, "b0")
    elif kind == "snapshots":
        qemu_img("snapshot", "-c", "one", path)
    elif kind == "dirty":
        patch(path, 79, b"\1")
    elif kind == "data-file":
        (tmp_path / "data").unlink()  # which nobody needs for this
    features = header(path)[72:96]
    rebase(path, "-b", "base", "-F", "raw")
    assert header(path)[72:96] == features
    assert info(path)["backing-filename"] == "base"
    rebase(path, "-b", "")
    if kind in ("bitmaps", "snapshots", "ext-l2"):
        assert check_status(path) == 0


def test_unknown_autoclear_bits(tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    patch(path, 88, be64(1 << 40))
    rebase(path, "-b", "base", "-F", "raw")
    assert header(path)[88:96] == be64(0)


def test_what_has_to_move(accel, tmp_path):
    """An extension that grows pushes those behind it over a sector's edge: the undo journal is there
    meanwhile, and gone afterwards."""
    path = create(tmp_path / "a.qcow2", MI)
    add_extension(path, 0x12345678, bytes(range(200)))
    rebase(path, "-b", "b", "-F", "raw", accel=accel)
    shown = launch("rebase", "-u", "--dry-run", "-b", "b", "-F", "host_device", path).stdout
    assert "COMMIT" not in shown and "what has to move for it" in shown
    name, fmt, others = rebase(path, "-b", "b", "-F", "host_device", accel=accel)
    assert (name, fmt) == (b"b", b"host_device") and others[-1][0] == 0x12345678
    assert os.listdir(tmp_path) == ["a.qcow2"]


def test_kills_with_a_journal(accel, tmp_path):
    """What a kill leaves is the old reference, the new one, or can be rolled back to the old one."""
    path = create(tmp_path / "a.qcow2", MI)
    add_extension(path, 0x12345678, bytes(range(200)))
    rebase(path, "-b", "b" * 600, "-F", "raw", accel=accel)
    seed = random.Random(20240608)
    for _ in range(20):
        old = reference(path)
        name, fmt = (b"c" * 600, b"host_device") if old[1] == b"raw" else (b"b" * 600, b"raw")
        p = subprocess.Popen([LAUNCH, "rebase", f"--accel={accel}", "-u", "-b", name, "-F", fmt, path])
        time.sleep(0.02 + seed.random() * 0.12)
        p.kill()
        p.wait(timeout=TIMEOUT)
        end = time.monotonic() + 10
        while (r := launch("recover", path)).returncode and "lock" in r.stderr:
            assert time.monotonic() < end, r
            time.sleep(0.02)
        assert r.returncode == 0, r
        now = reference(path)
        assert now in (old, (name, fmt, old[2]))
        assert os.listdir(tmp_path) == ["a.qcow2"]
    rebase(path, "-b", "", accel=accel)


# ---- names ----


@pytest.mark.parametrize("name", [
    "a name with spaces", "new\nline", "\xe4\xf6\xfc", "\x1b[31mred", "-dash", "json:{\"a\": 1}",
    "nbd://example.org/x", "fat:rw:/etc", "../../../../../../../../etc/hostname", "/etc/hostname",
    "./with:colon", "trailing/", "%s%n", "x" * 1023])
def test_any_name_is_stored_as_typed(tmp_path, name):
    path = overlay(tmp_path / "a.qcow2", "x")
    assert rebase(path, "-b", name, "-F", "raw")[0] == os.fsencode(name)
    p = launch("rebase", "-u", "--output=json", "-b", name, "-F", "raw", path)
    assert json.loads(p.stdout)["new_backing"].encode() == name.encode()
    if "\n" not in name and "\x1b" not in name:
        assert info(path)["backing-filename"] == name


def test_a_name_that_is_no_utf8(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    assert rebase(path, "-b", b"\xff\xfe.img".decode("utf-8", "surrogateescape"), "-F",
                  "raw")[0] == b"\xff\xfe.img"


@pytest.mark.parametrize("options, most", [
    (["cluster_size=512"], 376), (["cluster_size=512", "compat=0.10"], 416),
    (["cluster_size=1k"], 888), ([], 1023), (["cluster_size=2M"], 1023)])
def test_the_longest_name(tmp_path, options, most):
    path = create(tmp_path / "a.qcow2", MI, *options)
    why = "No space left in the file header" if most < 1023 else "Invalid argument"
    name = "n" * (most + 1)
    refused(path, "BACKING_PATH_TOO_LONG", f"Could not change the backing file to '{name}': {why}",
            "-u", "-b", name, "-F", "raw")
    assert rebase(path, "-b", "n" * most, "-F", "raw")[:2] == (b"n" * most, b"raw")
    assert info(path)["backing-filename"] == "n" * most and check_status(path) == 1  # no such file
    rebase(path, "-b", "", "-F", "raw")
    assert check_status(path) == 0


# ---- the command line ----


def test_the_format_must_be_given(tmp_path):
    """Which is said before anything is done: there is not even a QEMU."""
    path = overlay(tmp_path / "a.qcow2", "x")
    for unsafe in ([], ["-u"]):
        refused(path, "INVALID_OPTION", "Could not change the backing file to 'b': backing format "
                "must be specified", *unsafe, "-b", "b", "--qemu=/bin/false")
        for name in ("bogus", "", "RAW", "x" * 100):
            refused(path, "INVALID_OPTION", f"Invalid format name: '{name}'", *unsafe, "-b", "b",
                    "-F", name, "--qemu=/bin/false")


def test_usage(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    digest = sha256(path)
    for args, words in (((path,), "Must specify backing file (-b)"),
                        (("-u", path), "Must specify backing file (-b)"),
                        (("-b", "x", "-F", "raw"), "Expecting one image file name"),
                        (("-b", "x", "-F", "raw", path, path), "Expecting one image file name"),
                        (("-c", "-b", "x", "-F", "raw", path), "unrecognized option '-c'"),
                        (("-b", "x", "-F", "raw", "--shrink", path), "unrecognized option")):
        p = launch("rebase", *args)
        assert p.returncode == 1 and words in p.stderr and "rebase --help" in p.stderr, p.stderr
    assert sha256(path) == digest
    text = launch("rebase", "--help").stdout
    assert all(f" {o}" in text for o in ("-b,", "-F,", "-u,", "-p,", "-q,", "-f,", "--check-only"))


def test_long_options(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    p = launch("rebase", "--backing-unsafe", "--backing=y", "--backing-format=raw",
               "--format=qcow2", "--quiet", path)
    assert p.returncode == 0 and reference(path)[:2] == (b"y", b"raw")


def test_progress(accel, tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    args = ("rebase", "-u", "-b", "y", "-F", "raw", path)
    p = launch(*args, "-p", accel=accel, text=False)
    assert (p.returncode, p.stderr) == (0, b"")
    assert p.stdout == b"    (0.00/100%)\r    (100.00/100%)\r\n"
    for more in (["-q"], ["-p", "-q"], []):
        assert launch(*args, *more).stdout == ""
    assert json.loads(launch(*args, "-p", "--output=json").stdout)["mode"] == "unsafe"
    p = launch("rebase", "-p", "-u", "-b", "n" * 1023, "-F", "raw",
               create(tmp_path / "b.qcow2", MI, "cluster_size=512"), text=False)
    assert p.returncode == 1 and p.stdout == b"    (0.00/100%)\r\n"


def test_json(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    common = {"overlay": str(path), "overlay_format": "qcow2", "mode": "unsafe",
              "clusters_copied": 0, "bytes_copied": 0}
    p = launch("rebase", "-u", "--output=json", "-b", "y", "-F", "raw", path)
    assert json.loads(p.stdout) == {**common, "new_backing": "y"}
    p = launch("rebase", "-u", "--output=json", "-b", "", path)
    assert json.loads(p.stdout) == {**common, "detached": True}


def test_only_looking(accel, tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    path.chmod(0o444)
    digest = sha256(path)
    args = ("rebase", "-u", "-b", "y", "-F", "raw", path)
    p = launch(*args, "--dry-run", accel=accel)
    assert p.returncode == 0 and "COMMIT" in p.stdout
    assert re.search(r"^new backing: +y$", p.stdout, re.M)
    assert p.stdout.endswith("Dry run: nothing was written.\n")
    j = json.loads(launch(*args, "--dry-run", "--output=json").stdout)
    assert j["dry_run"] and j["new_backing"] == "y" and any(x.get("commit") for x in j["plan"])
    p = launch(*args, "--check-only", accel=accel)
    assert p.stdout == "0 clusters would be copied (0 bytes). Nothing was written.\n"
    assert json.loads(launch(*args, "--check-only", "--output=json").stdout)["check_only"]
    assert sha256(path) == digest


def test_by_hand(tmp_path):
    base_file(tmp_path / "base")
    path = overlay(tmp_path / "a.qcow2", "x")
    p = launch("rebase", "-u", "-b", "base", "-F", "raw", "--print-qemu", tmp_path / "hand", path)
    assert p.returncode == 0 and p.stdout.count("-blockdev") == 2
    script = tmp_path / "hand.sh"
    script.write_text(p.stdout)
    assert run("sh", script).returncode == 1  # twice the guest's 0, plus 1
    assert reference(path)[0] == b"base"
    p = subprocess.run([LAUNCH, "decode"], stdin=open(tmp_path / "hand" / "serial.bin"),
                       stdout=subprocess.PIPE, text=True, timeout=TIMEOUT)
    events = [json.loads(line) for line in p.stdout.splitlines()]
    assert events[-1]["outcome"]["rebase"]["mode"] == "unsafe"


# ---- what is refused ----


def test_formats_without_a_reference(tmp_path):
    for fmt in ("raw", "vpc", "vhdx"):
        path = tmp_path / f"a.{fmt}"
        qemu_img("create", "-q", "-f", fmt, path, "2M")
        for name in ("b", ""):
            refused(path, "UNSUPPORTED_FORMAT", f"Could not change the backing file to '{name}': "
                    "Operation not supported", "-u", "-f", fmt, "-b", name, "-F", "raw")


def test_a_raw_data_file(tmp_path):
    path = create(tmp_path / "a.qcow2", MI, f"data_file={tmp_path}/data", "data_file_raw=on")
    refused(path, "EXTERNAL_DATA_FILE", "Could not change the backing file", "-u", "-b", "b", "-F",
            "raw")
    rebase(path, "-b", "")


def test_a_corrupt_image(tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    patch(path, 79, b"\2")
    refused(path, "OVERLAY_CORRUPT", "Image is corrupt", "-u", "-b", "b", "-F", "raw")


HEADERS = {  # iotest 080
    "header_length": (100, be32(0xffffffff)), "header_length 2": (100, be32(0x7fffffff)),
    "extension": (116, be32(0x7fffffff)), "rt clusters": (56, be32(0xffffffff)),
    "rt clusters 2": (56, be32(0x20001)), "rt offset": (48, be64(0x12345)),
    "rt offset 2": (48, be64(0xffffffffffff0000)), "snapshots": (60, be32(0xffffffff)),
    "snapshots 2": (60, be32(0x7fffffff)), "l1 size": (36, be32(0xffffffff)),
    "l1 size 2": (36, be32(0x7fffffff)), "l1 offset": (40, be64(0x7fffffffffff0000)),
    "l1 offset 2": (40, be64(0x12345)), "name": (8, be64(0x1000) + be32(0xffffffff)),
    "name 2": (8, be64(0x10000) + be32(1)), "name 3": (8, be64(0x10001) + be32(1)),
    "name 4": (8, be64(8) + be32(8)), "cluster bits": (20, be32(63)), "version": (4, be32(4)),
    "magic": (0, b"QFI\0"), "unknown feature": (72, be64(1 << 50)),
}


@pytest.mark.parametrize("what", HEADERS)
def test_broken_headers(tmp_path, what):
    path = overlay(tmp_path / "a.qcow2", "x")
    patch(path, *HEADERS[what])
    for name in ("base", ""):
        before = sha256(path)
        p = launch("rebase", "-u", "-f", "qcow2", "-b", name, "-F", "raw", path)
        assert p.returncode == 1 and p.stdout == "" and "Could not open" in p.stderr, p
        assert sha256(path) == before


@pytest.mark.parametrize("kind", ["empty", "text", "directory", "fifo", "missing"])
def test_no_image(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"text\n" * 1000)
    p = launch("rebase", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", path, timeout=30)
    assert p.returncode == 1 and "Could not open" in p.stderr


@pytest.mark.parametrize("mode", [[], ["-u"]], ids=["safe", "unsafe"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "character device"])
def test_what_can_be_no_backing_file(tmp_path, kind, mode):
    """A fifo is not even opened: its writer would wake."""
    path = overlay(tmp_path / "a.qcow2", "x")
    base_file(tmp_path / "x")
    name = {"character device": "/dev/zero"}.get(kind, "odd")
    if kind == "fifo":
        os.mkfifo(tmp_path / "odd")
    elif kind == "directory":
        (tmp_path / "odd").mkdir()
    refused(path, "INVALID_OPTION", f"Could not open new backing file '{name}': 'file' driver "
            f"requires '{name}' to be a regular file", *mode, "-b", name, "-F", "raw")


def busy(path, *args):
    p = subprocess.Popen(["qemu-io", "-f", "qcow2", *args, path], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
    p.stdin.write("read 0 512\n")
    p.stdin.flush()
    while "512/512" not in (line := p.stdout.readline()):
        assert line
    return p


def done(p):
    p.stdin.close()
    p.wait(timeout=TIMEOUT)
    p.stdout.close()


def test_an_image_in_use(tmp_path):
    base = base_file(tmp_path / "base", fmt="qcow2")
    path = overlay(tmp_path / "a.qcow2", "base", "qcow2")
    for args in ([], ["-r"]):
        p = busy(path, *args)
        try:
            refused(path, "LOCKED", "lock", "-u", "-b", "y", "-F", "raw")
        finally:
            done(p)
    p = busy(base)  # of which nothing is needed in this mode
    try:
        rebase(path, "-b", "./base", "-F", "qcow2")
        refused(path, "LOCKED", "Could not open new backing file 'base'", "-b", "base", "-F",
                "qcow2")
    finally:
        done(p)


# ---- loops ----


@pytest.mark.parametrize("mode", [[], ["-u"]], ids=["safe", "unsafe"])
@pytest.mark.parametrize("how", ["name", "hardlink", "symlink", "absolute", "dot"])
def test_onto_itself(tmp_path, how, mode):
    base_file(tmp_path / "x")
    path = overlay(tmp_path / "a.qcow2", "x")
    name = {"name": "a.qcow2", "dot": "./a.qcow2", "absolute": str(path)}.get(how, "b")
    if how == "hardlink":
        os.link(path, tmp_path / "b")
    elif how == "symlink":
        (tmp_path / "b").symlink_to("a.qcow2")
    refused(path, "LOOP", f"Backing file '{name}' creates an infinite loop.", *mode, "-b", name,
            "-F", "qcow2")


@pytest.mark.parametrize("mode", [[], ["-u"]], ids=["safe", "unsafe"])
@pytest.mark.parametrize("names", ["ba", "bca", "bcb", "bb", "bcdefga"])
def test_loops(accel, tmp_path, names, mode):
    """a is to stand on the first, that stands on the next, and so on."""
    base_file(tmp_path / "x")
    path = overlay(tmp_path / "a", "x")
    for at, name in zip(names, names[1:]):
        if not (tmp_path / at).exists() or at == names[0]:
            overlay(tmp_path / at, name, "qcow2")
    said = refused(path, "LOOP", "creates an infinite loop.", *mode, "-b", names[0], "-F", "qcow2",
                   accel=accel)
    assert f"'{names[-1]}'" in said


# ---- chains: how far they are followed, and where they may lead ----


def test_links_that_cannot_be_had(tmp_path):
    """In unsafe mode nothing depends on them."""
    (tmp_path / "out").mkdir()
    base_file(tmp_path / "out" / "secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "garbage").write_bytes(b"no image" * 100)
    for name in ("missing", "fifo", "../out/secret", "/etc/hostname", "nbd://example.org/x"):
        (tmp_path / "vm").mkdir(exist_ok=True)
        overlay(tmp_path / "vm" / "b", name)
        path = overlay(tmp_path / "vm" / "a.qcow2", "x")
        rebase(path, "-b", "b", "-F", "qcow2")
        code = {"missing": "READ_FAILED", "fifo": "READ_FAILED"}.get(name, "POLICY_REFUSED")
        base_file(tmp_path / "vm" / "x")
        path = overlay(tmp_path / "vm" / "a.qcow2", "x")
        refused(path, code, "backing file", "-b", "b", "-F", "qcow2")
    path = overlay(tmp_path / "a.qcow2", "x")
    rebase(path, "-b", "garbage", "-F", "qcow2")
    base_file(tmp_path / "x")
    path = overlay(tmp_path / "a.qcow2", "x")
    refused(path, "PARSE_FAILED", "Could not open new backing file 'garbage': Image is not in qcow2 "
            "format", "-b", "garbage", "-F", "qcow2")
    refused(path, "UNSUPPORTED_FORMAT", "Could not open new backing file 'garbage': Unknown driver "
            "'qed'", "-b", "garbage", "-F", "qed")
    refused(path, "READ_FAILED", "Could not open new backing file 'gone': Could not open 'gone': No "
            "such file", "-b", "gone", "-F", "raw")
    refused(path, "POLICY_REFUSED", "never followed", "-b", "nbd:x", "-F", "raw")


def test_the_users_own_name_may_lead_anywhere(tmp_path):
    """What that file names obeys its own directory, and no other."""
    for d in ("vm", "templates"):
        (tmp_path / d).mkdir()
    base_file(tmp_path / "templates" / "bottom")
    overlay(tmp_path / "templates" / "top", "bottom")
    path = overlay(tmp_path / "vm" / "a.qcow2", "x")
    args = ("rebase", "-u", "-v", "-b", "../templates/top", "-F", "qcow2", path)
    p = launch(*args)
    assert p.returncode == 0 and disks_of(p) == (3, 2)
    overlay(tmp_path / "templates" / "top", "../vm/base")
    base_file(tmp_path / "vm" / "base")
    p = launch(*args)
    assert p.returncode == 0 and disks_of(p) == (2, 2) and "going on without it" in p.stderr
    p = launch(*args, "--backing-dir", tmp_path / "vm")
    assert p.returncode == 0 and disks_of(p) == (3, 2)
    p = launch(*args, "--backing-dir", tmp_path / "vm", "--no-backing")
    assert p.returncode == 0 and disks_of(p) == (2, 2)


def look(path, *args):
    """The disks that a safe rebase attaches, whatever it does then."""
    p = launch("rebase", "--dry-run", "-v", *args, path)
    return disks_of(p)[0]


def test_shared_links(tmp_path):
    base_file(tmp_path / "base", fmt="qcow2")
    overlay(tmp_path / "one", "base", "qcow2")
    overlay(tmp_path / "two", "base", "qcow2")
    path = overlay(tmp_path / "a.qcow2", "one", "qcow2")
    assert look(path, "-b", "two", "-F", "qcow2") == 4
    assert look(path, "-b", "base", "-F", "qcow2") == 3
    assert look(path, "-b", "one", "-F", "qcow2") == 3
    assert look(path, "-b", "one", "-F", "raw") == 4  # as what the user says that it is
    assert look(path, "-b", "") == 3
    assert launch("rebase", "-u", "-v", "-b", "two", "-F", "qcow2", path).returncode == 0


def links(tmp_path, prefix, count):
    """count images, each on the one before."""
    base_file(tmp_path / f"{prefix}1", 512)
    for i in range(2, count + 1):
        overlay(tmp_path / f"{prefix}{i}", f"{prefix}{i - 1}", "raw" if i == 2 else "qcow2", 512)
    return f"{prefix}{count}"


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_deep_chains(accel, machine, tmp_path):
    path = overlay(tmp_path / "a.qcow2", "x")
    args = ("rebase", "-u", "-v", "-F", "qcow2", f"--machine={machine}", path, "-b")
    name = links(tmp_path, "n", 23)
    p = launch(*args, name, accel=accel, timeout=4 * TIMEOUT)
    assert p.returncode == 0 and disks_of(p) == (24, 23)
    assert reference(path)[0] == name.encode()


def test_chains_that_are_too_deep(tmp_path):
    """Refused before anything is written; in unsafe mode nobody needs to see their ends."""
    path = overlay(tmp_path / "a.qcow2", links(tmp_path, "o", 12), "qcow2")
    name = links(tmp_path, "n", 12)
    refused(path, "CHAIN_DEPTH", "longer than 23", "-b", name, "-F", "qcow2")
    rebase(path, "-b", links(tmp_path, "n", 24), "-F", "qcow2")


# ---- where files cannot be made ----


@pytest.fixture
def plain_user():
    directory = Path(tempfile.mkdtemp())
    as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        try:
            assert launch("rebase", "--help", **as_user).returncode == 0
        except (OSError, AssertionError):
            pytest.skip("the programs are not readable for other users")
        yield directory, as_user
    finally:
        directory.chmod(0o700)
        shutil.rmtree(directory)


def test_a_directory_that_cannot_be_written(plain_user):
    """One sector needs no journal; more than one is not begun without."""
    directory, as_user = plain_user
    plain = create(directory / "plain.qcow2", MI)
    path = create(directory / "a.qcow2", MI)
    add_extension(path, 0x12345678, bytes(200))
    path.chmod(0o666)
    plain.chmod(0o666)
    directory.chmod(0o555)
    rebase(plain, "-b", "b", "-F", "raw", **as_user)
    if not as_user and not os.geteuid():
        return
    refused(path, "WRITE_FAILED", "Could not write an undo journal", "-u", "-b", "b", "-F",
            "host_device", **as_user)


def test_a_file_that_cannot_be_written(plain_user):
    directory, as_user = plain_user
    path = create(directory / "a.qcow2", MI)
    path.chmod(0o444)
    directory.chmod(0o755)
    if as_user or os.geteuid():
        refused(path, "READ_FAILED", "Permission denied", "-u", "-b", "b", "-F", "raw", **as_user)


def test_blocks_of_4096(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    os.truncate(path, 262144)
    rebase(path, "-b", "base", "-F", "raw", "--logical-block-size=4096", accel=accel)
    assert check_status(path) == 1 and info(path)["backing-filename"] == "base"


def test_a_loop_with_a_protocol(tmp_path):
    """qemu takes `file:` off a name before it opens it."""
    top = create(tmp_path / "top", MI)
    before = sha256(top)
    p = launch("rebase", "-u", "-b", "file:top", "-F", "qcow2", top)
    assert p.returncode == 1 and "creates an infinite loop" in p.stderr
    assert sha256(top) == before
    p = launch("rebase", "-u", "-b", "file:other", "-F", "qcow2", top)
    assert p.returncode == 0 and info(top)["backing-filename"] == "file:other"
