# SPDX-License-Identifier: MIT
"""VMDK end to end: pairs of grows and shrinks in the VM, read by qemu, by 7-Zip and by libvmdk, and
written to by qemu afterwards; info, probing, refusals; a disk of 60 TiB; killed runs."""
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

from conftest import (LAUNCH, TIMEOUT, best_accel, copy, host, info, launch, outcome, patch,
                      qemu_img, qemu_io, resize_request, run, sha256)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SEED = 20240604


# ---- images ----


def create_vmdk(path, size, *options):
    path.unlink(missing_ok=True)
    qemu_img("create", "-q", "-f", "vmdk", *[x for o in options for x in ("-o", o)], path,
             str(size))
    return path


def text_of(path):
    with open(path, "rb") as f:
        f.seek(512)
        return f.read(20 * 512).split(b"\0", 1)[0]


def edit_text(path, old, new):
    text = text_of(path)
    assert old in text
    patch(path, 512, text.replace(old, new, 1).ljust(20 * 512, b"\0"))


def edit_header(path, off, fmt, value):
    patch(path, off, struct.pack("<" + fmt, value))


def check_vmdk(path):
    """Header and descriptor name one size; both directories are whole and name tables that agree;
    nothing lies on anything else. Returns the size in bytes."""
    data = path.read_bytes()
    magic, _, flags, capacity, grain, at, slot, gtes, rgd, gd, overhead = struct.unpack_from(
        "<4sIIQQQQIQQQ", data)
    assert magic == b"KDMV" and overhead * 512 <= len(data)
    text = text_of(path).decode()
    assert int(re.search(r"^RW (\d+) SPARSE ", text, re.M)[1]) == capacity
    number = {k: int(v) for k, v in re.findall(r'ddb\.geometry\.(\w+) = "(\d+)"', text)}
    assert number["cylinders"] == capacity // number["heads"] // number["sectors"]
    entries = -(-capacity // (grain * gtes))
    span = -(-entries * 4 // 512)
    pieces = [(0, 1), (at, slot)] + [(d, span) for d in ([gd, rgd] if flags & 2 else [gd])]
    tables = []
    for directory in [gd, rgd] if flags & 2 else [gd]:
        names = struct.unpack_from(f"<{entries}I", data, directory * 512)
        assert all(names)
        pieces += [(n, -(-gtes * 4 // 512)) for n in names]
        tables.append(b"".join(data[n * 512:n * 512 + gtes * 4] for n in names))
    assert all(t == tables[0] for t in tables)
    named = struct.unpack(f"<{entries * gtes}I", tables[0])
    grains = -(-capacity // grain)
    assert not any(named[grains:])
    pieces += [(n, grain) for n in named if n > (1 if flags & 4 else 0)]
    pieces.sort()
    assert all(a[0] + a[1] <= b[0] for a, b in zip(pieces, pieces[1:]))
    return capacity * 512


def by_qemu(path, tmp_path):
    raw = tmp_path / "guest.raw"
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def by_7zz(path):
    return run("7zz", "e", "-so", "-tvmdk", path, check=True, text=False).stdout


def resize(path, size, *args, accel=None):
    p = launch("resize", "-f", "vmdk", *args, path, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", ""), p


def refused(path, code, *args):
    before = sha256(path)
    p = launch("resize", "--output=json", *args)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == code, p
    assert sha256(path) == before
    return json.loads(p.stdout)["error"]


# ---- pairs ----

ZEROED, COMPAT6 = "zeroed_grain=on", "compat6=on"
# name: (options, first size, grown, shrunk, fill)
SHAPES = {
    "plain": ([], 20 * MI, 33 * MI, 9 * MI, ["write -P 1 0 20M"]),
    "empty": ([], 20 * MI, 70 * MI, 3 * MI, []),
    "sparse": ([], 40 * MI, 50 * MI, 21 * MI, ["write -P 3 1M 64k", "write -P 4 39M 512"]),
    "backwards": ([], 24 * MI, 30 * MI, 11 * MI,
                  [f"write -P {30 + i} {22 - 2 * i}M 2M" for i in range(12)]),
    "inside-a-grain": ([], 20 * MI + 512, 20 * MI + 4096, 20 * MI - 512,
                       ["write -P 6 0 20M", "write -P 7 20M 512"]),
    "odd": ([], 20 * MI + 1536, 25 * MI + 512, 7 * MI + 512, ["write -P 8 0 20M"]),
    "by-a-grain": ([], 20 * MI, 20 * MI + 64 * KI, 20 * MI - 64 * KI, ["write -P 9 0 20M"]),
    "to-a-sector": ([], 8 * MI, 9 * MI, 512, ["write -P 10 0 8M"]),
    "tiny": ([], 512, MI, 512, ["write -P 11 0 512"]),
    "one-table-more": ([], 32 * MI, 32 * MI + 512, 31 * MI, ["write -P 12 0 32M"]),
    "tables": ([], 90 * MI, 200 * MI, 40 * MI, ["write -P 13 0 8M", "write -P 14 70M 20M"]),
    "directory-full": ([], 20 * MI, 4 * GI, 10 * MI, ["write -P 15 0 20M"]),
    "directory-moves": ([], 20 * MI, 4 * GI + 512, 10 * MI, ["write -P 16 0 20M"]),
    "much-larger": ([], 20 * MI, 90 * GI, 10 * MI, ["write -P 17 9M 3M"]),
    "past-2-tib": ([], 20 * MI, 3 * TI, 10 * MI, ["write -P 18 9M 3M"]),
    "zeroed": ([ZEROED], 20 * MI, 33 * MI, 9 * MI, ["write -P 19 0 20M", "write -z 2M 10M"]),
    "zeroed-odd": ([ZEROED], 20 * MI + 512, 99 * MI, 15 * MI, ["write -z 0 20M", "write 19M 1M"]),
    "workstation-6": ([COMPAT6], 20 * MI, 33 * MI, 9 * MI, ["write -P 20 0 20M"]),
    "scsi": (["adapter_type=lsilogic"], 20 * MI, 330 * MI, 9 * MI, ["write -P 21 5M 9M"]),
    "digits": ([], 48 * MI, 49 * MI, 47 * MI, ["write -P 22 40M 8M"]),
    "one-directory": (["flags"], 20 * MI, 5 * GI, 9 * MI, ["write -P 23 0 20M"]),
    "long-text": (["text"], 20 * MI, 70 * MI, 9 * MI, ["write -P 24 0 20M"]),
}


def shape_of(path, options):
    """What qemu-img does not make: no redundant directory; a text that crosses sectors."""
    if "flags" in options:
        edit_header(path, 8, "I", 1)
        edit_header(path, 48, "Q", 0)
    if "text" in options:
        edit_text(path, b"# Extent description", b"# " + b"x" * 300 + b"\n# Extent description")
        edit_text(path, b"#DDB\n", b'#DDB\r\nddb.uuid = "60 00 C2 9f"\r\n' + b"#" * 300 + b"\n")


def without_numbers(text):
    text = re.sub(rb"^RW \d+ ", b"RW N ", text, flags=re.M)
    text = re.sub(rb"CID=[0-9a-f]+", b"CID=N", text, count=1)  # qemu's writes change it
    return re.sub(rb'cylinders = "\d+"', b'cylinders = "N"', text)


def expect(path, model, tmp_path):
    """All readers show these bytes, and zeros in what rounding to a grain adds."""
    size = check_vmdk(path)
    assert info(path)["virtual-size"] == size and len(model) <= size < len(model) + 64 * KI
    qemu_img("check", "-q", "-f", "vmdk", path)
    if shutil.which("vmdkinfo"):
        assert f"({size} bytes)" in run("vmdkinfo", path, check=True).stdout
    for data in (by_qemu(path, tmp_path), by_7zz(path)):
        assert len(data) == size
        assert data[:len(model)] == model and not data[len(model):].strip(b"\0")
    return bytearray(model.ljust(size, b"\0"))


def write(path, model, *places):
    """What a guest would do: qemu writes, at the old end, across it, at the new one."""
    commands = []
    for i, (off, length) in enumerate(places):
        length = min(length, len(model))
        off = max(0, min(off, len(model) - length))
        commands.append(f"write -P {200 + i} {off} {length}")
        model[off:off + length] = bytes([200 + i]) * length
    qemu_io(path, *commands, fmt="vmdk")


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs(accel, tmp_path, shape):
    options, first, grown, shrunk, fill = SHAPES[shape]
    path = create_vmdk(tmp_path / "a.vmdk", first, *[o for o in options if "=" in o])
    shape_of(path, options)
    if fill:
        qemu_io(path, *fill, fmt="vmdk")
    text = text_of(path)
    small = grown < GI
    model = bytearray(by_qemu(path, tmp_path))
    twin = copy(path, "twin.vmdk")
    resize(path, grown, accel=accel)
    assert [l for l in text_of(path).splitlines() if b"CID" in l] == \
        [l for l in text.splitlines() if b"CID" in l]
    assert without_numbers(text_of(path)) == without_numbers(text)
    if accel == best_accel() and "text" not in options:  # the host build makes the same file
        status, events = host("resize", resize_request(twin, grown, fmt="vmdk"), twin, tmp_path)
        result = outcome(events).resize
        assert (status, result.action) == (0, "grow") and sha256(path) == sha256(twin)
        assert result.resolved_new_virtual_size == info(path)["virtual-size"] >= grown
    if small:
        model = expect(path, bytes(model.ljust(grown, b"\0")), tmp_path)
        write(path, model, (first - 1024, 512), (first - 512, 4096), (grown - 512, 512), (0, 1024))
        model = expect(path, bytes(model), tmp_path)
    else:
        size = info(path)["virtual-size"]
        assert grown <= size < grown + 64 * KI
        qemu_io(path, f"read -P 0 {grown // 2} 4M", f"write -P 201 {first - 512} 4096",
                f"write -P 202 {size - 512} 512", f"write -P 203 {grown // 2} 512", fmt="vmdk")
        qemu_io(path, f"read -P 201 {first} 3584", f"read -P 203 {grown // 2} 512",
                f"read -P 202 {size - 512} 512", fmt="vmdk")
        model[first - 512:] = bytes([201]) * 512
        if grown < TI:
            assert check_vmdk(path) == size
    length = os.stat(path).st_size
    resize(path, shrunk, "--shrink", accel=accel)
    assert os.stat(path).st_size <= length
    size = info(path)["virtual-size"]
    assert shrunk <= size < shrunk + 64 * KI
    model = expect(path, bytes(model[:size].ljust(size, b"\0")), tmp_path)
    write(path, model, (len(model) - 512, 512), (len(model) // 2, 4096), (0, 512))
    expect(path, bytes(model), tmp_path)
    # what was cut off never comes back
    resize(path, len(model) + 9 * MI, accel=accel)
    expect(path, bytes(model.ljust(len(model) + 9 * MI, b"\0")), tmp_path)
    assert without_numbers(text_of(path)) == without_numbers(text)


def test_sixty_tib(accel, tmp_path):
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI)
    qemu_io(path, "write -P 1 0 20M", fmt="vmdk")
    start = time.monotonic()
    resize(path, 60 * TI, accel=accel)
    assert time.monotonic() - start < 20
    assert info(path)["virtual-size"] == 60 * TI and os.stat(path).st_blocks * 512 < 64 * MI
    qemu_io(path, "read -P 1 0 20M", "read -P 0 30T 1M", f"write -P 3 {60 * TI - 512} 512",
            fmt="vmdk")
    start = time.monotonic()
    resize(path, 61 * TI, accel=accel)  # the tables that are there need not be read
    assert time.monotonic() - start < 5
    qemu_io(path, "read -P 1 0 20M", f"read -P 3 {60 * TI - 512} 512", "read -P 0 60T 1M",
            f"write -P 4 {61 * TI - 512} 512", fmt="vmdk")


def test_dropped_tables_are_given_back(tmp_path):
    """Tables in front of grains that a guest has written since leave a hole in the file, which costs
    the host nothing."""
    path = create_vmdk(tmp_path / "a.vmdk", 64 * MI)
    for i in range(4):
        resize(path, 512 * GI)
        length = os.stat(path).st_size
        qemu_io(path, f"write -P {i + 1} {2 * i}M 2M", fmt="vmdk")
        resize(path, 64 * MI, "--shrink")
        now = os.stat(path)
        assert now.st_size > length and now.st_blocks * 512 < (i + 1) * 2 * MI + 256 * KI
    assert check_vmdk(path) == 64 * MI
    qemu_io(path, *[f"read -P {i + 1} {2 * i}M 2M" for i in range(4)], fmt="vmdk")


# ---- info, other kinds ----


def test_info(accel, tmp_path):
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI)
    p = launch("info", "--output=json", path, accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    ours, theirs = json.loads(p.stdout), json.loads(
        qemu_img("info", "-f", "vmdk", "--output=json", path).stdout)
    data, want = ours.pop("format-specific")["data"], theirs.pop("format-specific")["data"]
    assert ours == theirs
    for key in ("cid", "parent-cid", "create-type"):
        assert data[key] == want[key]
    [extent], [theirs] = data["extents"], want["extents"]
    assert extent.pop("name") == "a.vmdk" and extent.pop("format") == "SPARSE"
    assert theirs.pop("format") == "" and extent == theirs
    assert data["grain-size"] == 64 * KI and data["redundant-grain-directory"] is True


def test_stream_optimized(tmp_path):
    kind = "streamOptimized"
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI, f"subformat={kind}")
    for args in (["30M"], ["--shrink", "10M"]):
        error = refused(path, "UNSUPPORTED_SUBFORMAT", *args[:-1], path, args[-1])
        assert kind in error and "convert" in error
    facts = json.loads(launch("info", "--output=json", path).stdout)["format-specific"]["data"]
    assert facts["create-type"] == kind


def test_an_extent_by_itself(tmp_path):
    create_vmdk(tmp_path / "a.vmdk", 20 * MI, "subformat=twoGbMaxExtentSparse")
    path = tmp_path / "a-s001.vmdk"
    refused(path, "UNSUPPORTED_SUBFORMAT", path, "30M")


# ---- refusals ----

# name: (offset, format, value) in the header, or (old, new) in the descriptor; code
BAD = {
    "gtes-0": ((44, "I", 0), "OVERLAY_CORRUPT"),
    "gtes-513": ((44, "I", 513), "OVERLAY_CORRUPT"),
    "grain-3": ((20, "Q", 3), "OVERLAY_CORRUPT"),
    "capacity-0": ((12, "Q", 0), "UNSUPPORTED_SUBFORMAT"),
    "capacity-huge": ((12, "Q", 1 << 60), "OVERLAY_CORRUPT"),
    "directory-far": ((56, "Q", 1 << 40), "OVERLAY_CORRUPT"),
    "directory-minus-1": ((56, "Q", 2**64 - 1), "OVERLAY_CORRUPT"),
    "second-directory-on-the-first": ((48, "Q", 0x1a), "OVERLAY_CORRUPT"),
    "no-cid": ((b"\nCID=", b"\nXID="), "OVERLAY_CORRUPT"),
    "negative-size": ((b"RW ", b"RW -"), "OVERLAY_CORRUPT"),
    "no-extent": ((b"RW ", b"RX "), "OVERLAY_CORRUPT"),
    "escape": ((b'"monolithicSparse"', b'"\x1b[2Jmono"'), "UNSUPPORTED_SUBFORMAT"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(tmp_path, name):
    change, code = BAD[name]
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI)
    qemu_io(path, "write -P 1 0 3M", fmt="vmdk")
    if name == "second-directory-on-the-first":
        with open(path, "rb") as f:
            change = (48, "Q", struct.unpack("<QQ", f.read(64)[48:])[1])
    (edit_text if len(change) == 2 else edit_header)(path, *change)
    for args in (["30M"], ["--shrink", "10M"]):
        assert "\x1b" not in refused(path, code, *args[:-1], path, args[-1])


def test_truncated(tmp_path):
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI)
    qemu_io(path, "write -P 1 0 4M", fmt="vmdk")
    os.truncate(path, os.stat(path).st_size - MI)
    for args in (["30M"], ["--shrink", "18M"], ["--shrink", "2M"]):
        refused(path, "OVERLAY_CORRUPT", *args[:-1], path, args[-1])


def test_requests(tmp_path):
    path = create_vmdk(tmp_path / "a.vmdk", 20 * MI)
    refused(path, "SHRINK_WITHOUT_FLAG", path, "10M")
    refused(path, "INVALID_NEW_SIZE", path, "2000T")
    for mode in ("falloc", "full", "metadata"):
        refused(path, "PREALLOCATION_UNSUPPORTED", f"--preallocation={mode}", path, "30M")
    before = sha256(path)
    resize(path, 20 * MI)
    assert sha256(path) == before


# ---- killed ----


@pytest.mark.parametrize("new", [11 * MI + 512, 900 * GI], ids=["shrink", "grow"])
def test_killed_at_any_moment(tmp_path, new):
    """SIGKILL of the launcher: the old size with all data, or the new; run again, it is done."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = create_vmdk(tmp_path / "a.vmdk", 32 * MI)
    qemu_io(path, *[f"write -P {1 + i} {(i * 7 % 16) * 2}M 2M" for i in range(16)], fmt="vmdk")
    before = by_qemu(path, tmp_path)
    done = copy(path, "done.vmdk")
    start = time.monotonic()
    resize(done, new, "--shrink")
    span = time.monotonic() - start
    final = info(done)["virtual-size"]
    seen = {32 * MI: 0, final: 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "16"))):
        victim = copy(path, "victim.vmdk")
        args = [LAUNCH, "resize", "-q", "--shrink", "--accel", best_accel(), victim, str(new)]
        p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.02, span))
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        query = ["info", "-f", "vmdk", "--output=json", victim]
        while (q := qemu_img(*query, check=False)).returncode:
            assert time.monotonic() < deadline, q.stderr
            time.sleep(0.01)
        size = json.loads(q.stdout)["virtual-size"]
        seen[size] += 1
        if size <= 32 * MI:
            assert by_qemu(victim, tmp_path) == before[:size], f"kill {i}"
        again = run(*args)
        assert (again.returncode, again.stderr) == (0, ""), f"kill {i}"
        assert check_vmdk(victim) == final
        qemu_io(victim, f"write -P 9 {final - 512} 512", fmt="vmdk")
        out = tmp_path / "head.raw"
        kept = min(final - 64 * KI, 32 * MI) // (64 * KI)
        qemu_img("dd", "-f", "vmdk", "-O", "raw", "bs=64k", f"count={kept}", f"if={victim}",
                 f"of={out}")
        assert out.read_bytes() == before[:kept * 64 * KI], f"kill {i}"
    print("killed runs left:", seen)
    assert seen[32 * MI] > 0
