# SPDX-License-Identifier: MIT
"""VHD end to end: pairs of grows and shrinks in the VM, read by qemu and by 7-Zip, and written to
by qemu afterwards; info, probing, refusals; the largest disk; killed runs."""
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, best_accel, copy, host, info, launch, outcome, patch,
                      qemu_img, qemu_io, resize_request, run, sha256)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
SEED = 20240511
CHS_MAX = 65535 * 16 * 255 * 512


# ---- images ----


def create_vhd(path, size, *options):
    path.unlink(missing_ok=True)
    qemu_img("create", "-q", "-f", "vpc", *[x for o in options for x in ("-o", o)], path, str(size))
    return path


def right_sum(data, field):
    return ~(sum(data) - sum(data[field:field + 4])) & 0xFFFFFFFF


def patch_footers(path, off, data, which=("head", "tail")):
    """Changes both footers (of a fixed disk, the one it has) and sets their checksums right."""
    end = os.stat(path).st_size - 512
    for name in which:
        at = 0 if name == "head" else end
        with open(path, "rb") as f:
            f.seek(at)
            footer = bytearray(f.read(512))
        if footer[:8] != b"conectix":
            continue
        footer[off:off + len(data)] = data
        footer[64:68] = struct.pack(">I", right_sum(footer, 64))
        patch(path, at, bytes(footer))


def check_vhd(path, slack=False):
    """Both footers are one, all checksums right, no block over another, the footer right behind the
    last structure. Returns (current_size, product of the geometry in bytes)."""
    data = path.read_bytes()
    tail = data[-512:]
    assert tail[:8] == b"conectix" and struct.unpack_from(">I", tail, 64)[0] == right_sum(tail, 64)
    current, cylinders, heads, spt, kind = struct.unpack_from(">QHBBI", tail, 48)
    product = cylinders * heads * spt * 512
    if kind == 2:
        assert len(data) == current + 512
        return current, product
    assert data[:512] == tail
    at = struct.unpack_from(">Q", tail, 16)[0]
    header = data[at:at + 1024]
    assert header[:8] == b"cxsparse"
    table, _, entries, block, checksum = struct.unpack_from(">QIIII", header, 16)
    assert checksum == right_sum(header, 36) and entries * block >= max(current, 1)
    bat = struct.unpack_from(f">{entries}I", data, table)
    span = block + max(512, (block // 4096 + 511) // 512 * 512)
    pieces = sorted([(0, 512), (at, at + 1024), (table, (table + entries * 4 + 511) // 512 * 512)] +
                    [(e * 512, e * 512 + span) for e in bat if e != 0xFFFFFFFF])
    assert all(a[1] <= b[0] for a, b in zip(pieces, pieces[1:]))
    assert pieces[-1][1] == len(data) - 512 or slack
    return current, product


def info_size(path):
    """A fixed disk is one to whom its format is told."""
    return json.loads(qemu_img("info", "-f", "vpc", "--output=json", path).stdout)["virtual-size"]


def by_qemu(path, tmp_path):
    raw = tmp_path / "guest.raw"
    qemu_img("convert", "-f", "vpc", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def by_7zz(path):
    return run("7zz", "e", "-so", path, check=True, text=False).stdout


def resize(path, size, *args, accel=None):
    p = launch("resize", "-f", "vpc", *args, path, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", ""), p


def refused(path, code, *args):
    before = sha256(path)
    p = launch("resize", "--output=json", *args)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == code, p
    assert sha256(path) == before


# ---- pairs ----

ON, OFF = "force_size=on", "force_size=off"
# name: (options, creator or None, first size, grown, shrunk, fill)
SHAPES = {
    "plain": ([OFF], None, 20 * MI, 33 * MI, 9 * MI, ["write -P 1 0 20M"]),
    "exact": ([ON], None, 20 * MI, 33 * MI, 9 * MI, ["write -P 2 0 20M"]),
    "empty": ([OFF], None, 20 * MI, 70 * MI, 3 * MI, []),
    "empty-exact": ([ON], None, 20 * MI, 70 * MI, MI, []),
    "sparse": ([OFF], None, 40 * MI, 50 * MI, 21 * MI, ["write -P 3 1M 64k", "write -P 4 39M 512"]),
    "sparse-exact": ([ON], None, 40 * MI, 50 * MI, 21 * MI, ["write -P 5 1M 64k", "write 39M 64k"]),
    "backwards": ([ON], None, 24 * MI, 30 * MI, 11 * MI,
                  [f"write -P {30 + i} {22 - 2 * i}M 2M" for i in range(12)]),
    "backwards-odd": ([ON], None, 24 * MI - 512, 30 * MI + 512, 11 * MI + 512,
                      [f"write -P {50 + i} {22 - 2 * i}M 1M" for i in range(12)]),
    "inside-a-block": ([ON], None, 20 * MI + 512, 20 * MI + 4096, 20 * MI + 1024,
                       ["write -P 6 0 20M", "write -P 7 20M 512"]),
    "by-a-sector": ([ON], None, 20 * MI, 20 * MI + 512, 20 * MI - 512, ["write -P 8 0 20M"]),
    "to-a-sector": ([ON], None, 8 * MI, 9 * MI, 512, ["write -P 9 0 8M"]),
    "tiny": ([OFF], None, 512, MI, 512, ["write -P 10 0 512"]),
    "tiny-exact": ([ON], None, 512, 5 * MI, 1024, ["write -P 11 0 512"]),
    "much-larger": ([OFF], None, 20 * MI, 90 * GI, 10 * MI, ["write -P 12 0 20M"]),
    "past-chs": ([OFF], None, 20 * MI, 200 * GI, 10 * MI, ["write -P 13 9M 3M"]),
    "past-chs-exact": ([ON], None, 20 * MI, 200 * GI, 10 * MI, ["write -P 14 9M 3M"]),
    "hyper-v": ([OFF], b"win ", 20 * MI, 27 * MI, 7 * MI, ["write -P 15 0 20M"]),
    "virtual-pc": ([OFF], b"vpc ", 20 * MI, 27 * MI, 7 * MI, ["write -P 16 0 20M"]),
    "virtualbox": ([OFF], b"vbox", 20 * MI, 27 * MI, 7 * MI, ["write -P 17 0 20M"]),
    "azure": ([OFF], b"wa\0\0", 20 * MI, 27 * MI, 7 * MI, ["write -P 18 0 20M"]),
    "xen": ([OFF], b"tap\0", 20 * MI, 27 * MI, 7 * MI, ["write -P 19 0 20M"]),
    "citrix": ([OFF], b"CTXS", 20 * MI, 27 * MI, 7 * MI + 512, ["write -P 20 1M 3M"]),
    "virtual-server": ([OFF], b"vs  ", 20 * MI, 27 * MI, 7 * MI, ["write -P 21 0 20M"]),
    "disk2vhd": ([OFF], b"d2v ", 20 * MI, 27 * MI, 7 * MI, ["write -P 22 19M 1M"]),
}


def expect(path, model, tmp_path, old_size=None):
    """Both readers show these bytes; the size may be more, by a geometry's rounding, of zeros."""
    current, product = check_vhd(path)
    assert info_size(path) == current and current >= len(model)
    by_geometry = path.read_bytes()[28:32] in (b"qemu", b"vpc ") and product < CHS_MAX
    assert current - len(model) < 2 * MI and (product == current or not by_geometry)
    for data in (by_qemu(path, tmp_path), by_7zz(path)):
        assert len(data) == current
        assert data[:len(model)] == model and not data[len(model):].strip(b"\0")
    return bytearray(model.ljust(current, b"\0"))


def write(path, model, *places):
    """What a guest would do: qemu writes, at the old end, across it, at the new one."""
    commands = []
    for i, (off, length) in enumerate(places):
        length = min(length, len(model))
        off = max(0, min(off, len(model) - length))
        commands.append(f"write -P {200 + i} {off} {length}")
        model[off:off + length] = bytes([200 + i]) * length
    qemu_io(path, *commands, fmt="vpc")


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs(accel, tmp_path, shape):
    options, creator, first, grown, shrunk, fill = SHAPES[shape]
    path = create_vhd(tmp_path / "a.vhd", first, "subformat=dynamic", *options)
    if fill:
        qemu_io(path, *fill, fmt="vpc")
    if creator:
        patch_footers(path, 28, creator)
    small = grown < GI
    model = bytearray(by_qemu(path, tmp_path))
    old = len(model)
    twin = copy(path, "twin.vhd")
    resize(path, grown, accel=accel)
    if accel == best_accel():  # the host build makes the same file
        status, events = host("resize", resize_request(twin, grown, fmt="vpc"), twin, tmp_path)
        result = outcome(events).resize
        assert (status, result.action) == (0, "grow") and sha256(path) == sha256(twin)
        assert result.resolved_new_virtual_size == info(path)["virtual-size"] >= grown
    check_vhd(path)
    if small:
        model = expect(path, bytes(model.ljust(grown, b"\0")), tmp_path)
        write(path, model, (old - 1024, 512), (old - 512, 4096), (grown - 512, 512), (0, 1024))
        model = expect(path, bytes(model), tmp_path)
    else:
        assert info(path)["virtual-size"] >= grown
        assert os.stat(path).st_size < 60 * MI
        qemu_io(path, f"read -P 0 {grown // 2} 4M", f"write -P 201 {old - 512} 4096",
                f"write -P 202 {grown - 512} 512", fmt="vpc")
        model[old - 512:] = bytes([201]) * 512
        check_vhd(path)
    length = os.stat(path).st_size
    resize(path, shrunk, "--shrink", accel=accel)
    assert os.stat(path).st_size <= length
    model = expect(path, bytes(model[:info(path)["virtual-size"]]), tmp_path)
    write(path, model, (len(model) - 512, 512), (len(model) // 2, 4096), (0, 512))
    expect(path, bytes(model), tmp_path)
    # what was cut off never comes back
    resize(path, len(model) + 9 * MI, accel=accel)
    expect(path, bytes(model.ljust(len(model) + 9 * MI, b"\0")), tmp_path)


@pytest.mark.parametrize("options,size,new", [(OFF, 20 * MI, 9 * MI), (ON, 20 * MI, 9 * MI + 512),
                                              (ON, 4 * MI, 4 * MI - 512), (OFF, 9 * MI, 512)])
def test_fixed_shrinks(accel, tmp_path, options, size, new):
    path = create_vhd(tmp_path / "a.vhd", size, "subformat=fixed", options)
    qemu_io(path, f"write -P 1 0 {size}", f"write -P 2 {size - 4096} 4096", fmt="vpc")
    data = by_qemu(path, tmp_path)
    p = launch("resize", "--shrink", path, str(new), accel=accel)  # known by its footer
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")
    current, _ = check_vhd(path)
    assert new <= current < new + MI and os.stat(path).st_size == current + 512
    assert by_qemu(path, tmp_path) == by_7zz(path) == data[:current]


@pytest.fixture(params=["here", "/dev/shm"])
def where(request, tmp_path):
    """A file system that inserts, perhaps, and one that does not."""
    if request.param == "here":
        return tmp_path
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm cannot be written")
    made = tempfile.TemporaryDirectory(dir="/dev/shm")
    request.addfinalizer(made.cleanup)
    return pathlib.Path(made.name)


@pytest.mark.parametrize("options,size,new", [(OFF, 20 * MI, 33 * MI), (ON, 20 * MI, 33 * MI),
                                              (ON, 4 * MI, 4 * MI + 512), (ON, 512, 9 * MI),
                                              (ON, MI + 512, 3 * MI), (ON, 5 * MI, 300 * GI)])
def test_fixed_grows(accel, tmp_path, where, options, size, new):
    path = create_vhd(where / "a.vhd", size, "subformat=fixed", options)
    qemu_io(path, f"write -P 1 0 {size}", f"write -P 2 {size - 512} 512", fmt="vpc")
    model = bytearray(by_qemu(path, tmp_path))
    old = len(model)
    if new > GI:
        p = launch("resize", path, str(new), accel=accel)
        assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")
        assert info_size(path) == new and os.stat(path).st_size == new + 512
        qemu_io(path, f"read -P 1 0 {size - 512}", f"read -P 0 {size} 1M",
                f"read -P 0 {new - MI} 1M", fmt="vpc")
        return
    for step in (new, new + MI):
        p = launch("resize", path, str(step), accel=accel)  # known by its footer
        assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")
        assert sorted(os.listdir(where)) == ["a.vhd"] or where == tmp_path
        model = expect(path, bytes(model.ljust(step, b"\0")), tmp_path)
        assert os.stat(path).st_size == len(model) + 512
        write(path, model, (old - 512, 1024), (step - 512, 512), (0, 512))
        model = expect(path, bytes(model), tmp_path)
    resize(path, old, "--shrink", accel=accel)
    expect(path, bytes(model[:info_size(path)]), tmp_path)


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_fixed_is_preallocated(where, tmp_path, mode):
    path = create_vhd(where / "a.vhd", 5 * MI, "subformat=fixed", ON)
    qemu_io(path, "write -P 1 0 5M", fmt="vpc")
    resize(path, 9 * MI, f"--preallocation={mode}")
    assert os.stat(path).st_blocks * 512 >= 9 * MI
    expect(path, (b"\1" * 5 * MI).ljust(9 * MI, b"\0"), tmp_path)
    refused(path, "PREALLOCATION_UNSUPPORTED", "--preallocation=metadata", path, "30M")


def test_fixed_with_old_bytes_behind_it(where, tmp_path):
    """As a killed shrink leaves them: the disk grows over them, and they are not seen."""
    path = create_vhd(where / "a.vhd", 5 * MI, "subformat=fixed", ON)
    qemu_io(path, "write -P 1 0 5M", fmt="vpc")
    patch_footers(path, 48, struct.pack(">Q", 3 * MI))
    for size in (4 * MI, 5 * MI, 8 * MI):
        twin = copy(path, "twin.vhd")
        resize(twin, size)
        assert os.stat(twin).st_size == max(size, 5 * MI) + 512  # a grow cuts nothing off
        assert by_qemu(twin, tmp_path) == (b"\1" * 3 * MI).ljust(size, b"\0")
        twin.unlink()


def test_fixed_is_rolled_back(where, tmp_path):
    """SIGKILL of the launcher at any moment: then the old size, the new, or a journal that leads
    back to the old one; and the same command ends what it began."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = create_vhd(where / "a.vhd", 5 * MI + 512, "subformat=fixed", ON)
    qemu_io(path, "write -P 1 0 5M", "write -P 2 5M 512", fmt="vpc")
    before, old = by_qemu(path, tmp_path), sha256(path)
    new = 9 * MI
    start = time.monotonic()
    resize(copy(path, "victim.vhd"), new)
    span = time.monotonic() - start
    seen = {"old": 0, "new": 0, "journal": 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "24"))):
        victim = copy(path, "victim.vhd")
        args = [LAUNCH, "resize", "-q", "--accel", best_accel(), victim, str(new)]
        p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4 * span, span))
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        journal = victim.with_name("victim.vhd.instar-undo")
        pending = journal.exists()
        while (q := run(LAUNCH, "recover", victim)).returncode:
            assert time.monotonic() < deadline, q.stderr
            time.sleep(0.01)
        assert not journal.exists()
        now = sha256(victim)
        seen["journal" if pending else "old" if now == old else "new"] += 1
        if now != old:
            assert not pending
            size = info_size(victim)
            assert size in (5 * MI + 512, new), f"kill {i}"  # longer, and its footer still the old
            assert by_qemu(victim, tmp_path) == before.ljust(size, b"\0"), f"kill {i}"
        again = run(*args)
        assert (again.returncode, again.stderr) == (0, ""), f"kill {i}"
        expect(victim, before.ljust(new, b"\0"), tmp_path)
    print("killed runs left:", seen)


def test_fixed_half_grown(tmp_path):
    """Each half of a grow without the other, and a journal: no reader would open the one without a
    footer; the next resize puts both right."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent / "fakeqemu"))
    import undo_journal
    path = create_vhd(tmp_path / "a.vhd", 5 * MI + 512, "subformat=fixed", ON)
    qemu_io(path, "write -P 1 0 5M", fmt="vpc")
    old = path.read_bytes()
    grown = copy(path, "grown.vhd")
    resize(grown, 9 * MI)
    footer = grown.read_bytes()[-512:]
    tail = len(old) - 512
    for cut in (False, True):
        for footers in ((), (tail,), (9 * MI,), (tail, 9 * MI)):
            path.write_bytes(old)
            changes = {tail: bytes(512), 9 * MI: footer}
            journal = tmp_path / "a.vhd.instar-undo"
            journal.write_bytes(undo_journal.build(path, changes, len(old), 9 * MI + 512))
            journal.chmod(0o600)
            os.truncate(path, len(old) if cut else 9 * MI + 512)
            for off in footers:
                if off < path.stat().st_size:
                    patch(path, off, changes[off])
            p = launch("resize", path, "9M")
            assert p.returncode == 0 and "Rolled back an interrupted operation" in p.stderr
            assert path.read_bytes() == grown.read_bytes()


@pytest.mark.parametrize("new", ["10M", "20M"])
def test_slack_before_the_footer(tmp_path, new):
    """Without --shrink a file does not become shorter, whatever lies unused in it."""
    path = create_vhd(tmp_path / "a.vhd", "10M", "force_size=on")
    qemu_io(path, "write -P 5 0 1M", fmt="vpc")
    data = path.read_bytes()
    path.write_bytes(data[:-512] + bytes(3 * 1048576) + data[-512:])
    length = path.stat().st_size
    for _ in range(2):
        resize(path, new)
        check_vhd(path, slack=True)
        assert path.stat().st_size >= length
        qemu_io(path, "read -P 5 0 1M", "read -P 0 1M 9M", fmt="vpc")


def test_slack_of_a_fixed_disk(tmp_path):
    """What a killed shrink leaves before the footer goes with the next --shrink to that size."""
    path = create_vhd(tmp_path / "a.vhd", "10M", "subformat=fixed", "force_size=on")
    qemu_io(path, "write -P 5 0 10M", fmt="vpc")
    whole = path.read_bytes()
    path.write_bytes(whole[:-512] + b"old" * 16384 + whole[-512:])
    slack = sha256(path)
    resize(path, "10M")
    assert sha256(path) == slack
    p = launch("resize", "--dry-run", "--shrink", "-f", "vpc", path, "10M")
    assert "the footer right behind the disk" in p.stdout and sha256(path) == slack
    resize(path, "10M", "--shrink")
    assert path.read_bytes() == whole


def test_whole_megabytes_for_azure(tmp_path):
    """--align: where current_size rules, the size is exact; where the geometry does, it is refused."""
    path = create_vhd(tmp_path / "a.vhd", "10M", "subformat=fixed", "force_size=on")
    resize(path, "12345678", "--align=1M")
    assert info_size(path) == 12 * 1048576 and os.stat(path).st_size == 12 * 1048576 + 512
    geometry = create_vhd(tmp_path / "b.vhd", "10M", "subformat=fixed")
    refused(geometry, "INVALID_NEW_SIZE", "-f", "vpc", "--align=1M", geometry, "12345678")
    for bad in ("3M", "256", "128M", "x"):
        p = launch("resize", f"--align={bad}", path, "20M")
        assert p.returncode == 1 and "align" in p.stderr


def test_fixed_is_never_mangled(tmp_path):
    """Its first bytes are the guest's: only the footer tells."""
    path = create_vhd(tmp_path / "a.vhd", 5 * MI, "subformat=fixed")
    size = os.stat(path).st_size
    patch(path, size - 400, b"x")  # a footer that is damaged is still none of raw's bytes
    refused(path, "OVERLAY_CORRUPT", path, "9M")
    assert launch("resize", "-q", "-f", "raw", path, "9M").returncode == 0


# ---- info ----


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_info(accel, tmp_path, subformat):
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, f"subformat={subformat}", ON)
    p = launch("info", "--output=json", path, accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    ours, theirs = json.loads(p.stdout), json.loads(
        qemu_img("info", "-f", "vpc", "--output=json", path).stdout)
    facts = ours.pop("format-specific")
    assert ours == theirs
    data = facts["data"]
    assert facts["type"] == "vpc" and data["subformat"] == subformat and data["creator"] == "qem2"
    assert data["current-size"] == data["original-size"] == 20 * MI and not data["saved-state"]
    assert [data[k] for k in ("cylinders", "heads", "sectors-per-track")] == [65535, 16, 255]
    assert data.get("block-size") == (2 * MI if subformat == "dynamic" else None)


def test_differencing_is_for_looking_at(tmp_path):
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, ON)
    patch_footers(path, 60, struct.pack(">I", 4))
    facts = json.loads(launch("info", "--output=json", path).stdout)["format-specific"]["data"]
    assert facts["subformat"] == "differencing"
    for args in (["30M"], ["--shrink", "10M"]):
        refused(path, "UNSUPPORTED_SUBFORMAT", *args[:-1], path, args[-1])


def test_a_footer_left_behind(tmp_path):
    """A killed run may leave the head alone with the new size: a resize to just that mends it."""
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, ON)
    patch_footers(path, 48, struct.pack(">Q", 20 * MI - 512), which=("head",))
    assert json.loads(launch("info", "--output=json", path).stdout)["dirty-flag"] is True
    resize(path, 20 * MI - 512)
    assert check_vhd(path)[0] == 20 * MI - 512
    assert json.loads(launch("info", "--output=json", path).stdout)["dirty-flag"] is False
    before = sha256(path)
    resize(path, 20 * MI - 512)
    assert sha256(path) == before


# ---- refusals ----

# name: (offset in the footers, bytes, which, code)
BAD = {
    "head-checksum": (64, None, "head", "OVERLAY_CORRUPT"),
    "tail-checksum": (64, None, "tail", "OVERLAY_CORRUPT"),
    "type-0": (60, bytes(4), "both", "UNSUPPORTED_SUBFORMAT"),
    "type-6": (60, b"\0\0\0\6", "both", "UNSUPPORTED_SUBFORMAT"),
    "saved-state": (84, b"\1", "both", "UNSUPPORTED_FEATURE"),
    "size-all-ones": (48, b"\xff" * 8, "both", "OVERLAY_CORRUPT"),
    "data-offset": (16, b"\xff" * 8, "both", "OVERLAY_CORRUPT"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_footers(tmp_path, name):
    off, data, which, code = BAD[name]
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, ON)
    qemu_io(path, "write -P 1 0 3M", fmt="vpc")
    if data is None:
        patch(path, 80 + (os.stat(path).st_size - 512 if which == "tail" else 0), b"\x7f")
    else:
        patch_footers(path, off, data, ("head", "tail") if which == "both" else (which,))
    for args in (["30M"], ["--shrink", "10M"]):
        refused(path, code, *args[:-1], path, args[-1])


BLOCKS = {"twice": 5 + 0 * 4097, "on-the-header": 1, "past-the-end": 1 << 24, "overlapping": 4 + 99}


@pytest.mark.parametrize("name", BLOCKS)
def test_bad_blocks(tmp_path, name):
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, ON)
    qemu_io(path, "write -P 1 0 4M", fmt="vpc")
    with open(path, "rb") as f:
        f.seek(1536)
        first, = struct.unpack(">I", f.read(4))
    value = {"twice": first, "overlapping": first + 99}.get(name, BLOCKS[name])
    patch(path, 1536 + 4 * 7, struct.pack(">I", value))
    for args in (["30M"], ["--shrink", "18M"], ["--shrink", "2M"]):
        refused(path, "OVERLAY_CORRUPT", *args[:-1], path, args[-1])


def test_requests(tmp_path):
    path = create_vhd(tmp_path / "a.vhd", 20 * MI, ON)
    refused(path, "SHRINK_WITHOUT_FLAG", path, "10M")
    refused(path, "INVALID_NEW_SIZE", path, str(2040 * GI + 512))
    for mode in ("falloc", "full", "metadata"):
        refused(path, "PREALLOCATION_UNSUPPORTED", f"--preallocation={mode}", path, "30M")


# ---- the largest ----


def test_the_largest(accel, tmp_path):
    path = create_vhd(tmp_path / "a.vhd", 2039 * GI, ON)
    qemu_io(path, "write -P 1 0 64k", "write -P 2 2038G 64k", fmt="vpc")
    start = time.monotonic()
    resize(path, 2040 * GI, accel=accel)
    resize(path, 2030 * GI, "--shrink", accel=accel)
    resize(path, 2040 * GI, accel=accel)
    assert time.monotonic() - start < 10
    assert info(path)["virtual-size"] == 2040 * GI
    assert os.stat(path).st_size < 32 * MI
    qemu_io(path, "read -P 1 0 64k", "read -P 0 2030G 1G", "read -P 0 2039G 1G",
            f"write -P 3 {2040 * GI - 512} 512", fmt="vpc")
    check_vhd(path)


# ---- killed ----


@pytest.mark.parametrize("new", [11 * MI + 512, 900 * GI], ids=["shrink", "grow"])
def test_killed_at_any_moment(tmp_path, new):
    """SIGKILL of the launcher: the old size with all data, or the new; run again, it is done."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = create_vhd(tmp_path / "a.vhd", 32 * MI, ON)
    qemu_io(path, *[f"write -P {1 + i} {(i * 7 % 16) * 2}M 2M" for i in range(16)], fmt="vpc")
    before = by_qemu(path, tmp_path)
    done = copy(path, "done.vhd")
    start = time.monotonic()
    resize(done, new, "--shrink")
    span = time.monotonic() - start
    kept = before[:min(new, len(before))]
    seen = {32 * MI: 0, new: 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "24"))):
        victim = copy(path, "victim.vhd")
        args = [LAUNCH, "resize", "-q", "--shrink", "--accel", best_accel(), victim, str(new)]
        p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.02, span))
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        query = ["info", "-f", "vpc", "--output=json", victim]
        while (q := qemu_img(*query, check=False)).returncode:
            assert time.monotonic() < deadline, q.stderr
            time.sleep(0.01)
        size = json.loads(q.stdout)["virtual-size"]
        seen[size] += 1
        if size <= 32 * MI:
            assert by_qemu(victim, tmp_path) == before[:size], f"kill {i}"
        again = run(*args)
        assert (again.returncode, again.stderr) == (0, ""), f"kill {i}"
        assert check_vhd(victim)[0] == new
        if new <= 32 * MI:
            assert by_qemu(victim, tmp_path) == kept, f"kill {i}"
        else:
            out = tmp_path / "head.raw"
            qemu_img("dd", "-f", "vpc", "-O", "raw", "bs=2M", "count=16", f"if={victim}",
                     f"of={out}")
            assert out.read_bytes() == kept, f"kill {i}"
    print("killed runs left:", seen)
    assert seen[32 * MI] > 0
