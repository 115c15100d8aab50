# SPDX-License-Identifier: MIT
"""VMDKs of several files end to end: pairs of grows and shrinks in the VM, read by qemu, by 7-Zip and
by libvmdk, and written to by qemu afterwards; which files come and go; info; names that lead
elsewhere, and every other refusal; killed runs."""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, best_accel, info, launch, qemu_img, qemu_io, run)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
SEED = 20240611
SPARSE, FLATS, FLAT = "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"


# ---- images ----


def create(path, kind, size, *options):
    opts = [f"subformat={kind}", *options]
    qemu_img("create", "-q", "-f", "vmdk", *[x for o in opts for x in ("-o", o)], path, str(size))
    return path


def text_of(path):
    return path.read_bytes().split(b"\0", 1)[0]


def edit(path, old, new):
    text = text_of(path)
    assert old in text
    path.write_bytes(text.replace(old, new, 1))


def lines_of(path):
    return [(int(m[1]), m[2].decode(), m[3].decode()) for m in
            re.finditer(rb'^RW (\d+) (\w+) "([^"]*)"', text_of(path), re.M)]


def check_sparse(path):
    """Both directories of an extent are whole, name tables that agree, and nothing lies on anything
    else. Returns its sectors."""
    data = path.read_bytes()
    magic, _, flags, capacity, grain, at, slot, gtes, rgd, gd, overhead = struct.unpack_from(
        "<4sIIQQQQIQQQ", data)
    assert magic == b"KDMV" and overhead * 512 <= len(data)
    entries = -(-capacity // (grain * gtes))
    span = -(-entries * 4 // 512)
    pieces = [(0, 1)] + [(d, span) for d in ([gd, rgd] if flags & 2 else [gd])]
    pieces += [(at, slot)] if slot else []
    tables = []
    for directory in [gd, rgd] if flags & 2 else [gd]:
        names = struct.unpack_from(f"<{entries}I", data, directory * 512)
        assert all(names)
        pieces += [(n, -(-gtes * 4 // 512)) for n in names]
        tables.append(b"".join(data[n * 512:n * 512 + gtes * 4] for n in names))
    assert all(t == tables[0] for t in tables)
    named = struct.unpack(f"<{entries * gtes}I", tables[0])
    assert not any(named[-(-capacity // grain):])
    pieces += [(n, grain) for n in named if n > (1 if flags & 4 else 0)]
    pieces.sort()
    assert all(a[0] + a[1] <= b[0] for a, b in zip(pieces, pieces[1:]))
    return capacity


def check_set(path):
    """Lines against files, geometry, and that nothing else lies there. Returns the size in bytes."""
    total, names = 0, []
    for sectors, kind, name in lines_of(path):
        file = path.parent / name
        if kind == "SPARSE":
            assert check_sparse(file) == sectors
        else:
            assert file.stat().st_size == sectors * 512
        total += sectors
        names.append(name)
    number = {k: int(v) for k, v in re.findall(rb'ddb\.geometry\.(\w+) = "(\d+)"', text_of(path))}
    assert number[b"cylinders"] == total // number[b"heads"] // number[b"sectors"]
    stem = path.name[:-5]
    assert sorted(names) == sorted(p.name for p in path.parent.glob(f"{stem}-*.vmdk"))
    return total * 512


def without_numbers(path):
    text = re.sub(rb"^RW \d+ .*\n", b"", text_of(path), flags=re.M)
    text = re.sub(rb"CID=[0-9a-f]+", b"CID=N", text, count=1)  # qemu's writes change it
    return re.sub(rb'cylinders = "\d+"', b'cylinders = "N"', text)


def resize(path, size, *args, accel=None):
    p = launch("resize", "-f", "vmdk", *args, path, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", ""), p


def digest(path):
    """Of a file, whose holes are passed over: flat extents have gigabytes of them."""
    h, size = hashlib.sha256(), path.stat().st_size
    h.update(b"%d" % size)
    with open(path, "rb") as f:
        at = 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            data = os.pread(f.fileno(), min(end - at, 1 << 20), at)
            if data.strip(b"\0"):
                h.update(b"%d" % at + data)
            at += len(data)
    return h.hexdigest()


def files(directory):
    """Everything there is, with its bytes; links by what they say."""
    found = {}
    for p in sorted(directory.iterdir()):
        mode = p.lstat().st_mode
        found[p.name] = (mode, os.readlink(p) if p.is_symlink() else
                         digest(p) if p.is_file() else None)
    return found


def refused(path, code, *args, verb="resize"):
    before = files(path.parent)
    p = launch(verb, "--output=json", *args)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == code, p
    assert files(path.parent) == before
    return json.loads(p.stdout)["error"]


# ---- pairs ----

SHAPES = {
    "flat": (FLAT, [], 20 * MI, 33 * MI, 9 * MI, ["write -P 1 0 20M"]),
    "flat-odd": (FLAT, [], 20 * MI + 512, 5 * GI + 512, 7 * MI + 1024, ["write -P 2 0 20M"]),
    "flat-scsi": (FLAT, ["adapter_type=lsilogic"], MI, 90 * GI, 512, ["write -P 3 0 1M"]),
    "flats": (FLATS, [], 20 * MI, 70 * MI, 3 * MI, ["write -P 4 0 20M"]),
    "flats-new": (FLATS, [], 20 * MI, 2 * GI + 64 * MI, 10 * MI + 512, ["write -P 5 0 20M"]),
    "flats-more": (FLATS, [], 5 * GI, 8 * GI + 512, 3 * GI, ["write -P 6 2047M 2M",
                                                          "write -P 7 4095M 1025M"]),
    "sparse": (SPARSE, [], 20 * MI, 33 * MI, 9 * MI, ["write -P 8 0 20M"]),
    "sparse-odd": (SPARSE, [], 20 * MI + 1536, 25 * MI, 7 * MI + 512, ["write -P 9 0 20M"]),
    "sparse-by-a-sector": (SPARSE, [], 2 * GI, 2 * GI + 512, 2 * GI - 512,
                           ["write -P 10 2000M 48M"]),
    "sparse-new": (SPARSE, [], 20 * MI, 6 * GI, 10 * MI, ["write -P 11 0 20M"]),
    "sparse-more": (SPARSE, [], 5 * GI, 9 * GI, 4 * GI + 512, ["write -P 12 2040M 20M",
                                                             "write -P 13 4090M 20M"]),
    "sparse-whole": (SPARSE, [], 6 * GI, 10 * GI, 4 * GI, ["write -P 14 6100M 40M"]),
    "sparse-zeroed": (SPARSE, ["zeroed_grain=on"], 20 * MI, 5 * GI, 9 * MI,
                      ["write -P 15 0 20M", "write -z 2M 10M"]),
    "sparse-many": (SPARSE, ["compat6=on"], 3 * GI, 45 * GI, GI, ["write -P 16 2047M 2M"]),
}


class Model:
    """What the disk should hold, as a sparse raw file."""

    def __init__(self, path, tmp_path):
        self.path, self.raw = path, tmp_path / "model.raw"
        qemu_img("convert", "-f", "vmdk", "-O", "raw", path, self.raw)

    def resize(self, size):
        os.truncate(self.raw, size)

    def write(self, *places):
        """What a guest would do: qemu writes, and so do we."""
        size, commands = self.raw.stat().st_size, []
        for i, (off, length) in enumerate(places):
            length = min(length, size)
            off = max(0, min(off, size - length))
            commands.append(f"write -P {200 + i} {off} {length}")
            with open(self.raw, "r+b") as f:
                f.seek(off)
                f.write(bytes([200 + i]) * length)
        qemu_io(self.path, *commands, fmt="vmdk")

    def expect(self):
        """All readers show these bytes, and zeros in what rounding to a grain adds."""
        size = check_set(self.path)
        assert info(self.path)["virtual-size"] == size
        assert 0 <= size - self.raw.stat().st_size < 64 * KI
        self.resize(size)
        p = qemu_img("compare", "-f", "vmdk", "-F", "raw", self.path, self.raw, check=False)
        assert p.returncode == 0, p.stdout
        qemu_img("check", "-q", "-f", "vmdk", self.path)
        listing = run("7zz", "l", "-slt", self.path, check=True).stdout
        assert int(re.findall(r"^Size = (\d+)", listing, re.M)[-1]) == size
        if shutil.which("vmdkinfo"):
            out = run("vmdkinfo", self.path, check=True).stdout
            assert f"({size} bytes)" in out
            assert f"Number of extents:\t\t{len(lines_of(self.path))}" in out
        if size < 80 * MI:
            data = run("7zz", "e", "-so", self.path, check=True, text=False).stdout
            assert data == self.raw.read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs(accel, tmp_path, shape):
    kind, options, first, grown, shrunk, fill = SHAPES[shape]
    home = tmp_path / "home"
    home.mkdir()
    path = create(home / "my disk.vmdk", kind, first, *options)
    qemu_io(path, *fill, fmt="vmdk")
    text, cid = without_numbers(path), re.findall(rb".*CID=.*", text_of(path))
    model = Model(path, tmp_path)
    resize(path, grown, accel=accel)
    assert re.findall(rb".*CID=.*", text_of(path)) == cid
    model.resize(grown)
    model.expect()
    size = model.raw.stat().st_size
    model.write((first - 512, 4096), (first - 1024, 512), (size - 512, 512), (size // 2, 4096),
                (2 * GI - 512, 1024), (0, 512))
    model.expect()
    assert without_numbers(path) == text
    resize(path, shrunk, "--shrink", accel=accel)
    model.resize(shrunk)
    size = check_set(path)
    with open(model.raw, "r+b") as f:  # what is kept for the rest of the last grain
        f.seek(shrunk)
        f.write(read(path, shrunk, size - shrunk, tmp_path))
    model.expect()
    model.write((size - 512, 512), (size // 2, 4096), (0, 512))
    model.expect()
    resize(path, size + 9 * MI, accel=accel)  # what was cut off never comes back
    model.resize(size + 9 * MI)
    model.expect()
    assert without_numbers(path) == text


def read(path, off, length, tmp_path):
    out = tmp_path / "piece.raw"
    if length == 0:
        return b""
    qemu_img("dd", "-f", "vmdk", "-O", "raw", "bs=512", f"skip={off // 512}",
             f"count={(off + length) // 512}", f"if={path}", f"of={out}")
    data = out.read_bytes()
    out.unlink()
    assert len(data) == length
    return data


@pytest.mark.parametrize("kind", [SPARSE, FLATS])
def test_7zip_reads_all_of_it(tmp_path, kind):
    path = create(tmp_path / "a.vmdk", kind, 90 * MI)
    qemu_io(path, "write -P 1 80M 10M", fmt="vmdk")
    resize(path, 2 * GI + 30 * MI)
    qemu_io(path, "write -P 2 2047M 2M", "write -P 3 2077M 1M", fmt="vmdk")
    h, want = hashlib.sha256(), hashlib.sha256()
    p = subprocess.Popen(["7zz", "e", "-so", str(path)], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    while chunk := p.stdout.read(1 << 20):
        h.update(chunk)
    p.wait(timeout=TIMEOUT)
    for i in range(2078):
        want.update(bytes([1 if 80 <= i < 90 else 2 if i in (2047, 2048) else 3 if i == 2077 else 0])
                    * MI)
    assert h.hexdigest() == want.hexdigest()


# ---- which files there are ----


@pytest.mark.parametrize("machine", ["microvm", "q35", "pc"])
def test_as_many_as_there_are_slots(accel, tmp_path, machine):
    path = create(tmp_path / "a.vmdk", SPARSE, 44 * GI)
    resize(path, 46 * GI, "--machine", machine, accel=accel)
    assert check_set(path) == 46 * GI and len(lines_of(path)) == 23
    error = refused(path, "INVALID_NEW_SIZE", "--accel", accel, path, "47G")
    assert "24 extents" in error and "23" in error
    resize(path, GI, "--shrink", "--machine", machine, accel=accel)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-s001.vmdk", "a.vmdk"]


def test_more_than_there_are_slots(tmp_path):
    path = create(tmp_path / "a.vmdk", FLATS, 48 * GI)
    error = refused(path, "UNSUPPORTED_FEATURE", path, "50G")
    assert "24 extents" in error and "23" in error


def test_new_files(tmp_path):
    """They are named after the image, step over what is there, and are as the image is."""
    path = create(tmp_path / "x.y.vmdk", SPARSE, 2 * GI)
    (tmp_path / "x.y-s002.vmdk").write_text("somebody's")
    os.symlink("nowhere", tmp_path / "x.y-s003.vmdk")
    os.chmod(path, 0o640)
    for of_it in (path, tmp_path / "x.y-s001.vmdk"):
        os.chown(of_it, 1234, 2345) if os.geteuid() == 0 else None
    resize(path, 5 * GI)
    assert [l[2] for l in lines_of(path)] == ["x.y-s001.vmdk", "x.y-s004.vmdk", "x.y-s005.vmdk"]
    assert (tmp_path / "x.y-s002.vmdk").read_text() == "somebody's"
    st, new = path.stat(), (tmp_path / "x.y-s004.vmdk").stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (st.st_mode, st.st_uid, st.st_gid)
    assert info(path)["virtual-size"] == 5 * GI
    resize(path, GI, "--shrink")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "x.y-s001.vmdk", "x.y-s002.vmdk", "x.y-s003.vmdk", "x.y.vmdk"]


def test_a_file_that_moved_is_left(tmp_path):
    """A link in the image's directory is no file of its: it is not removed."""
    path = create(tmp_path / "a.vmdk", FLATS, 3 * GI)
    os.rename(tmp_path / "a-f002.vmdk", tmp_path / "other")
    os.symlink("other", tmp_path / "a-f002.vmdk")
    p = launch("resize", "--shrink", path, "1G")
    assert p.returncode == 0 and "a-f002.vmdk" in p.stderr and "is left" in p.stderr
    assert (tmp_path / "other").exists() and (tmp_path / "a-f002.vmdk").is_symlink()
    assert info(path)["virtual-size"] == GI


def test_what_fails_leaves_no_file(tmp_path):
    path = create(tmp_path / "a.vmdk", SPARSE, 20 * MI)
    refused(path, "NO_SPACE", "--max-growth=1K", path, "9G")
    os.chmod(tmp_path, 0o555)
    if os.geteuid():
        refused(path, "WRITE_FAILED", path, "9G")
    os.chmod(tmp_path, 0o755)
    quoted = create(tmp_path / 'a"b.vmdk', SPARSE, 20 * MI)
    edit(quoted, b'a"b-s001', b"a-s001")
    assert "named after" in refused(quoted, "INVALID_OPTION", quoted, "9G")


def test_dry_run(tmp_path):
    path = create(tmp_path / "a.vmdk", SPARSE, 20 * MI)
    before = files(tmp_path)
    p = launch("resize", "--dry-run", "--output=json", path, "5G")
    assert (p.returncode, p.stderr) == (0, "")
    out = json.loads(p.stdout)
    assert [f["filename"] for f in out["other_files"]][1:] == ["a-s002.vmdk", "a-s003.vmdk"]
    assert {x["slot"] for x in out["plan"]} == {0, 1, 2, 3}
    assert files(tmp_path) == before
    p = launch("resize", "--dry-run", path, "5G")
    assert "a new extent" in p.stdout and "(extent 3)" in p.stdout


def test_shrink_of_what_is_not_allocated(tmp_path):
    path = create(tmp_path / "a.vmdk", SPARSE, 5 * GI)
    qemu_io(path, "write -P 1 2500M 64k", fmt="vmdk")
    assert str(2500 * MI) in refused(path, "SHRINK_BELOW_ALLOCATED", "--shrink=unallocated", path,
                                     "2G")
    p = launch("resize", "--shrink=unallocated", "--output=json", path, "3G")
    out = json.loads(p.stdout)
    assert out["removed_files"] == [str(tmp_path / "a-s003.vmdk")]
    assert [f["slot"] for f in out["other_files"]] == [1, 2] and out["action"] == "shrink"
    assert check_set(path) == 3 * GI


def test_noop_and_mending(tmp_path):
    path = create(tmp_path / "a.vmdk", SPARSE, 5 * GI)
    before = files(tmp_path)
    resize(path, 5 * GI)
    assert files(tmp_path) == before
    edit(path, b"RW 2097152", b"RW 2097000")  # the header rules, as in qemu
    assert info(path)["virtual-size"] == 5 * GI
    assert json.loads(launch("info", "--output=json", path).stdout)["dirty-flag"] is True
    resize(path, 5 * GI)
    assert check_set(path) == 5 * GI


# ---- info ----


@pytest.mark.parametrize("kind", [SPARSE, FLATS, FLAT])
def test_info(accel, tmp_path, kind):
    path = create(tmp_path / "a.vmdk", kind, 5 * GI)
    p = launch("info", "--output=json", path, accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    ours, theirs = json.loads(p.stdout), json.loads(
        qemu_img("info", "-f", "vmdk", "--output=json", path).stdout)
    data, want = ours.pop("format-specific")["data"], theirs.pop("format-specific")["data"]
    assert ours == theirs
    names = [x.pop("name") for x in data["extents"]]
    assert data == want and names == [l[2] for l in lines_of(path)]
    if shutil.which("vmdkinfo"):
        out = run("vmdkinfo", path, check=True).stdout
        assert re.findall(r"Filename:\s+(\S+)", out) == names
    human = launch("info", path, accel=accel).stdout
    assert f"create type: {kind}" in human and f"filename: {tmp_path}/{names[0]}" in human


# ---- ESX ----


def test_vmfs(tmp_path):
    path = create(tmp_path / "a.vmdk", FLAT, 20 * MI)
    edit(path, b'FLAT "a-flat.vmdk" 0', b'VMFS "a-flat.vmdk"')
    edit(path, b"monolithicFlat", b"vmfs")
    ours = json.loads(launch("info", "--output=json", path).stdout)
    assert ours["virtual-size"] == 20 * MI == info(path)["virtual-size"]
    for args in (["30M"], ["--shrink", "10M"]):
        assert "convert" in refused(path, "UNSUPPORTED_SUBFORMAT", *args[:-1], path, args[-1])


def test_cowd(tmp_path):
    path = create(tmp_path / "a.vmdk", FLAT, 9000 * 512)
    edit(path, b'FLAT "a-flat.vmdk" 0', b'VMFSSPARSE "a-delta.vmdk"')
    edit(path, b"monolithicFlat", b"vmfsSparse")
    (tmp_path / "a-flat.vmdk").unlink()
    head = struct.pack("<4s7I", b"COWD", 1, 3, 9000, 1, 4, 3, 50).ljust(2048, b"\0")
    (tmp_path / "a-delta.vmdk").write_bytes(head + bytes(30000))
    ours = json.loads(launch("info", "--output=json", path).stdout)
    theirs = info(path)
    assert ours["virtual-size"] == theirs["virtual-size"] == 9000 * 512
    assert ours["cluster-size"] == theirs["cluster-size"] == 512
    for args in (["30M"], ["--shrink", "1M"]):
        assert "convert" in refused(path, "UNSUPPORTED_SUBFORMAT", *args[:-1], path, args[-1])


# ---- refusals ----

# name: (kind, old, new in the descriptor), code
BAD = {
    "absolute": (FLAT, b'"a-flat.vmdk"', b'"/etc/passwd"', "POLICY_REFUSED"),
    "absolute-inside": (FLAT, b'"a-', b'"%HOME%/a-', "POLICY_REFUSED"),
    "dot-dot": (FLAT, b'"a-flat.vmdk"', b'"../secret"', "POLICY_REFUSED"),
    "dot-dot-alone": (FLAT, b'"a-flat.vmdk"', b'".."', "POLICY_REFUSED"),
    "slash": (FLAT, b'"a-flat.vmdk"', b'"sub/a-flat.vmdk"', "POLICY_REFUSED"),
    "here": (FLAT, b'"a-flat.vmdk"', b'"./a-flat.vmdk"', "POLICY_REFUSED"),
    "directory": (FLAT, b'"a-flat.vmdk"', b'"sub"', "READ_FAILED"),
    "fifo": (FLAT, b'"a-flat.vmdk"', b'"fifo"', "READ_FAILED"),
    "link-out": (FLAT, b'"a-flat.vmdk"', b'"out"', "POLICY_REFUSED"),
    "link-up": (FLAT, b'"a-flat.vmdk"', b'"up"', "POLICY_REFUSED"),
    "link-loop": (FLAT, b'"a-flat.vmdk"', b'"loop"', "POLICY_REFUSED"),
    "missing": (FLAT, b'"a-flat.vmdk"', b'"missing"', "READ_FAILED"),
    "escape": (FLAT, b'"a-flat.vmdk"', b'"\x1b[2J"', "READ_FAILED"),
    "protocol": (FLAT, b'"a-flat.vmdk"', b'"nbd:localhost:1"', "READ_FAILED"),
    "its-own-descriptor": (FLAT, b'"a-flat.vmdk"', b'"a.vmdk"', "LOOP"),
    "shared": (FLATS, b"a-f002.vmdk", b"a-f001.vmdk", "LOOP"),
    "shared-by-a-link": (FLATS, b"a-f002.vmdk", b"to-f001", "LOOP"),
    "shorter": (FLAT, b"RW 40960", b"RW 40961", "OVERLAY_CORRUPT"),
    "offset-past-the-end": (FLAT, b'" 0', b'" 1', "OVERLAY_CORRUPT"),
    "no-usable-extent": (FLAT, b"RW ", b"# ", "OVERLAY_CORRUPT"),
    "read-only": (FLAT, b"RW ", b"RDONLY ", "UNSUPPORTED_SUBFORMAT"),
    "zero-extent": (FLAT, b'FLAT "a-flat.vmdk" 0', b"ZERO", "OVERLAY_CORRUPT"),
    "negative": (FLAT, b"RW ", b"RW -", "OVERLAY_CORRUPT"),
    "huge": (FLAT, b"RW 40960", b"RW 36028797018963967", "OVERLAY_CORRUPT"),
    "more-than-64-bits": (FLAT, b"RW ", b"RW 99999999999999999999", "OVERLAY_CORRUPT"),
    "no-cid": (FLAT, b"\nCID=", b"\nXID=", "OVERLAY_CORRUPT"),
    "no-parent-cid": (SPARSE, b"parentCID=", b"p=", "OVERLAY_CORRUPT"),
    "flat-in-sparse": (SPARSE, b"SPARSE", b"FLAT", "OVERLAY_CORRUPT"),
    "no-header": (SPARSE, b"a-s001.vmdk", b"plain", "OVERLAY_CORRUPT"),
    "another-type": (SPARSE, b"twoGbMaxExtentSparse", b"custom", "UNSUPPORTED_SUBFORMAT"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(tmp_path, name):
    kind, old, new, code = BAD[name]
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s" * 40000)
    path = create(home / "a.vmdk", kind, 3 * GI if kind == FLATS else 20 * MI)
    for link, to in (("out", tmp_path / "secret"), ("up", "../secret"), ("loop", "loop"),
                     ("to-f001", "a-f001.vmdk")):
        os.symlink(to, home / link)
    os.mkfifo(home / "fifo")
    (home / "plain").write_bytes(bytes(MI))
    edit(path, old, new.replace(b"%HOME%", str(home).encode()))
    for args in (["30M"], ["--shrink", "10M"], ["5G"]):
        error = refused(path, code, *args[:-1], path, args[-1])
        assert "\x1b" not in error
    refused(path, code, path, verb="info")
    assert (tmp_path / "secret").read_bytes() == b"s" * 40000


def test_harmless_oddities(tmp_path):
    """CRLF, no NUL, no end of the last line, zeros behind the text, links within the directory."""
    path = create(tmp_path / "a.vmdk", SPARSE, 20 * MI)
    qemu_io(path, "write -P 1 0 20M", fmt="vmdk")
    path.write_bytes(text_of(path).replace(b"\n", b"\r\n").rstrip() + bytes(2000))
    os.rename(tmp_path / "a-s001.vmdk", tmp_path / "b")
    os.symlink("b", tmp_path / "a-s001.vmdk")
    resize(path, 3 * GI)
    text = text_of(path)
    assert text.count(b"\r\n") == text.count(b"\n") and b'"a-s002.vmdk"\r\n' in text
    assert path.stat().st_size > len(text) + 1000  # the zeros are still there
    assert info(path)["virtual-size"] == 3 * GI
    qemu_io(path, "read -P 1 0 20M", f"read -P 0 20M 100M", f"write -P 4 {3 * GI - 512} 512",
            fmt="vmdk")


@pytest.mark.parametrize("kind,other,code", [
    (FLAT, "qcow2", "POLICY_REFUSED"), (FLAT, "vmdk", "POLICY_REFUSED"),
    (SPARSE, "vmdk", "POLICY_REFUSED"), (SPARSE, "qcow2", "OVERLAY_CORRUPT")])
def test_a_neighbours_image(tmp_path, kind, other, code):
    """A hostile descriptor names another image in its directory: it is not written to."""
    path = create(tmp_path / "a.vmdk", kind, 20 * MI)
    qemu_img("create", "-q", "-f", other, tmp_path / "b", "40M")
    os.truncate(tmp_path / "b", 20 * MI)
    edit(path, lines_of(path)[0][2].encode(), b"b")
    for args in (["30M"], ["--shrink", "10M"], ["--dry-run", "30M"]):
        refused(path, code, *args[:-1], path, args[-1])


def test_truncated_extent(tmp_path):
    path = create(tmp_path / "a.vmdk", SPARSE, 20 * MI)
    qemu_io(path, "write -P 1 0 4M", fmt="vmdk")
    extent = tmp_path / "a-s001.vmdk"
    os.truncate(extent, extent.stat().st_size - MI)
    for args in (["30M"], ["5G"], ["--shrink", "18M"], ["--shrink", "2M"]):
        refused(path, "OVERLAY_CORRUPT", *args[:-1], path, args[-1])


def test_in_use(tmp_path):
    """Each file is locked as the image is."""
    path = create(tmp_path / "a.vmdk", FLATS, 3 * GI)
    p = subprocess.Popen(["qemu-io", "-f", "raw", str(tmp_path / "a-f002.vmdk")],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdin.write(b"length\n")
    p.stdin.flush()
    p.stdout.readline()
    try:
        refused(path, "LOCKED", path, "4G")
    finally:
        p.communicate(b"quit\n", timeout=TIMEOUT)
    resize(path, 4 * GI)


def test_no_backing(tmp_path):
    path = create(tmp_path / "a.vmdk", FLAT, 20 * MI)
    assert "--no-backing" in refused(path, "POLICY_REFUSED", "--no-backing", path, "30M")


def test_requests(tmp_path):
    path = create(tmp_path / "a.vmdk", FLATS, 20 * MI)
    refused(path, "SHRINK_WITHOUT_FLAG", path, "10M")
    for mode in ("falloc", "full", "metadata"):
        refused(path, "PREALLOCATION_UNSUPPORTED", f"--preallocation={mode}", path, "30M")
    create(tmp_path / "base.vmdk", "monolithicSparse", 20 * MI)
    child = tmp_path / "child.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={SPARSE}", "-F", "vmdk", "-b",
             tmp_path / "base.vmdk", child)
    for args in (["30M"], ["--shrink", "10M"]):
        assert "parent" in refused(child, "UNSUPPORTED_SUBFORMAT", *args[:-1], child, args[-1])


# ---- killed ----


@pytest.mark.parametrize("kind", [SPARSE, FLATS])
@pytest.mark.parametrize("new", [GI + 512, 9 * GI, 30 * GI], ids=["shrink", "grow", "journal"])
def test_killed_at_any_moment(tmp_path, kind, new):
    """SIGKILL of the launcher: all data, and the old size, the new, or, of sparse ones, that of the
    extents that stay; run again, it is done. A descriptor of several sectors is journalled."""
    rng = random.Random(SEED)
    print("seed", SEED)
    home = tmp_path / "home"
    home.mkdir()
    path = create(home / "a.vmdk", kind, 5 * GI)
    qemu_io(path, *[f"write -P {1 + i} {i * 500 + 100}M 4M" for i in range(10)], fmt="vmdk")
    pristine = tmp_path / "pristine"
    run("cp", "-r", "--sparse=always", home, pristine, check=True)
    start = time.monotonic()
    resize(path, new, "--shrink")
    span = time.monotonic() - start
    final = info(path)["virtual-size"]
    kept = min(final, 5 * GI)
    reads = [f"read -P {1 + i} {i * 500 + 100}M 4M" for i in range(10)
             if (i * 500 + 104) * MI <= kept]
    seen = {}
    for i in range(int(os.environ.get("INSTAR_KILLS", "12"))):
        shutil.rmtree(home)
        run("cp", "-r", "--sparse=always", pristine, home, check=True)
        args = [LAUNCH, "resize", "-q", "--shrink", "--accel", best_accel(), path, str(new)]
        p = subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3 * span, 1.05 * span))
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        while (r := run(LAUNCH, "recover", path)).returncode:
            assert time.monotonic() < deadline, r.stderr
            time.sleep(0.01)
        while True:
            q = qemu_img("info", "-f", "vmdk", "--output=json", path, check=False)
            again = run(*args[:2], "--dry-run", path, str(new), "--shrink")
            if q.returncode == 0 and again.returncode == 0:
                break
            assert time.monotonic() < deadline, (q.stderr, again.stderr)
            time.sleep(0.01)
        size = json.loads(q.stdout)["virtual-size"]
        seen[size] = seen.get(size, 0) + 1
        assert min(final, 5 * GI) <= size <= max(final, 5 * GI)
        assert kind == SPARSE or size in (final, 5 * GI)
        qemu_io(path, *reads, fmt="vmdk")
        again = run(*args)
        assert (again.returncode, [l for l in again.stderr.splitlines() if "Rolled back" not in l]) \
            == (0, []), f"kill {i}: {again.stderr}"
        assert info(path)["virtual-size"] == final, f"kill {i}"
        qemu_io(path, *reads, f"write -P 9 {final - 512} 512", fmt="vmdk")
    print("killed runs left:", seen)
    assert seen[5 * GI] > 0
