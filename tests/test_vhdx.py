# SPDX-License-Identifier: MIT
"""instar-launch on VHDX images end to end: grow and shrink, held against qemu-img and 7-Zip, with
real writes by qemu-io afterwards; info; logs that must be replayed; what is refused.

qemu up to 7.2 damages the BAT when it changes the first entry of a 4 KiB sector of it after others
(parity E.6), so every image here gets its first block written first.
"""
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time

import pytest

from conftest import (LAUNCH, best_accel, copy, crc32c, info, launch, patch, qemu_img, qemu_io, run,
                      sha256)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SEED = 20240805
WARNING = ("instar-launch: warning: A VHDX that is resized gets a new data GUID: differencing disks "
           "whose parent it is no longer find it to be theirs.\n")

# name: (options of qemu-img create, old size, grown, shrunk)
SHAPES = {
    "default": ([], 20 * MI, 50 * MI, 9 * MI),
    "1M": (["block_size=1M"], 20 * MI, 50 * MI, 9 * MI),
    "1M-unaligned": (["block_size=1M"], 20 * MI + 512, 50 * MI + 1024, 9 * MI + 512),
    "1M-by-a-sector": (["block_size=1M"], 20 * MI, 20 * MI + 512, 20 * MI - 512),
    "1M-within-a-block": (["block_size=1M"], 20 * MI + 512, 21 * MI - 512, 20 * MI + 1024),
    "1M-to-one-sector": (["block_size=1M"], 5 * MI, 9 * MI, 512),
    "1M-two-bat-sectors": (["block_size=1M"], 20 * MI, 600 * MI, 30 * MI),
    "2M": (["block_size=2M"], 21 * MI, 64 * MI, 7 * MI + 512),
    "4M": (["block_size=4M"], 33 * MI, 47 * MI, 13 * MI),
    "8M-unaligned": (["block_size=8M"], 20 * MI + 512, 60 * MI + 512, 10 * MI + 1024),
    "16M": (["block_size=16M"], 20 * MI, 80 * MI, 3 * MI),
    "32M": (["block_size=32M"], 40 * MI, 200 * MI, 35 * MI),
    "64M": (["block_size=64M"], 40 * MI, 130 * MI, 20 * MI + 512),
    "128M": (["block_size=128M"], 140 * MI, 300 * MI, 129 * MI),
    "256M": (["block_size=256M"], 40 * MI, 300 * MI, 20 * MI),
    "large-log": (["block_size=1M", "log_size=5M"], 20 * MI, 50 * MI, 9 * MI),
    "absent": (["block_size=1M", "block_state_zero=off"], 20 * MI, 50 * MI, 9 * MI),
    "fixed": (["subformat=fixed"], 20 * MI, 50 * MI, 9 * MI),
    "fixed-present": (["subformat=fixed", "block_state_zero=off"], 20 * MI, 50 * MI, 9 * MI),
    "fixed-1M-unaligned": (["subformat=fixed", "block_state_zero=off", "block_size=1M"],
                           20 * MI + 512, 50 * MI + 512, 9 * MI + 512),
    "fixed-many": (["subformat=fixed", "block_state_zero=off", "block_size=1M"], 8 * MI, 300 * MI,
                   5 * MI),
}
CHEAP_UNDER_TCG = {"1M-unaligned", "8M-unaligned", "fixed-present", "1M-to-one-sector", "32M"}


def create_vhdx(path, size, *options):
    qemu_img("create", "-q", "-f", "vhdx", *[x for o in options for x in ("-o", o)], path, size)
    return path


class Disk:
    """An image, and what its guest must see."""

    def __init__(self, path, size, options):
        self.path, self.size = create_vhdx(path, size, *options), size
        self.data = {}  # 512-byte sector: what every byte of it is
        self.seed = 0

    def write(self, *ranges):
        commands = []
        for off, length in ranges:
            off = max(0, off) // 512 * 512
            length = min(length, self.size - off) // 512 * 512
            if length <= 0:
                continue
            self.seed = self.seed % 250 + 1
            commands.append(f"write -P {self.seed} {off} {length}")
            for sector in range(off // 512, (off + length) // 512):
                self.data[sector] = self.seed
        qemu_io(self.path, *commands, fmt="vhdx")

    def resized(self, size):
        self.data = {s: v for s, v in self.data.items() if s * 512 < size}
        self.size = size

    def same(self, raw):
        """Does the raw file hold what it must, and zeros elsewhere?"""
        assert os.stat(raw).st_size == self.size
        with open(raw, "rb") as f:
            sector = 0
            while chunk := f.read(MI):
                want = bytearray(len(chunk))
                for s in range(sector, sector + len(chunk) // 512):
                    if s in self.data:
                        i = (s - sector) * 512
                        want[i:i + 512] = bytes([self.data[s]]) * 512
                assert chunk == want, f"differs in the MiB at {sector * 512}"
                sector += len(chunk) // 512

    def check(self, tmp_path, second=True):
        """qemu-img and 7-Zip read what the guest must see, and qemu-img finds nothing wrong."""
        assert qemu_img("check", "-f", "vhdx", self.path).returncode == 0
        raw = tmp_path / "guest.raw"
        qemu_img("convert", "-f", "vhdx", "-O", "raw", self.path, raw)
        self.same(raw)
        raw.unlink()
        if second and self.size % KI == 0:  # 7-Zip refuses disks of an odd number of sectors
            out = tmp_path / "7z"
            run("7zz", "x", "-y", f"-o{out}", self.path, check=True)
            (extracted,) = out.iterdir()
            self.same(extracted)
            shutil.rmtree(out)


def newest_header(path):
    """qemu leaves different GUIDs in the two."""
    with open(path, "rb") as f:
        data = f.read(132 * KI)
    return max((data[off:off + 4 * KI] for off in (64 * KI, 128 * KI)),
               key=lambda h: struct.unpack_from("<Q", h, 8)[0])


def structure(path):
    """Both headers and region tables are valid and agree, the log is empty; returns the header."""
    with open(path, "rb") as f:
        data = f.read(320 * KI)
    heads, tables = [], []
    for off in (64 * KI, 128 * KI):
        h = data[off:off + 4 * KI]
        assert h[:4] == b"head" and crc(h) == struct.unpack_from("<I", h, 4)[0]
        heads.append(h)
    for off in (192 * KI, 256 * KI):
        t = data[off:off + 64 * KI]
        assert t[:4] == b"regi"
        tables.append(t)
    assert heads[0][16:] == heads[1][16:] and tables[0] == tables[1]
    assert heads[0][48:64] == bytes(16)
    return heads[0]


def crc(data):
    return crc32c(data[:4] + bytes(4) + data[8:])


def resize(disk, size, *args, accel=None):
    shrink = ["--shrink"] if size < disk.size else []
    p = launch("resize", *shrink, *args, disk.path, str(size), accel=accel or best_accel())
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", WARNING)
    disk.resized(size)
    structure(disk.path)
    assert info(disk.path)["virtual-size"] == size


@pytest.mark.parametrize("shape", SHAPES)
def test_grow_and_shrink(accel, tmp_path, shape):
    if accel == "tcg" and shape not in CHEAP_UNDER_TCG and best_accel() == "kvm":
        pytest.skip("under KVM only, to save time")
    options, old, grown, shrunk = SHAPES[shape]
    disk = Disk(tmp_path / "a.vhdx", old, options)
    disk.write((0, 64 * KI), (old // 2, 100 * KI), (old - 70 * KI, 70 * KI))
    guids = newest_header(disk.path)[16:48]
    resize(disk, grown, accel=accel)
    now = structure(disk.path)[16:48]
    assert now[:16] != guids[:16] and now[16:] != guids[16:]
    disk.check(tmp_path)
    # real writes: into the old area, across the boundary, into the new area
    disk.write((old // 2 + 5 * KI, 64 * KI), (old - 5 * KI, 300 * KI), (grown - 33 * KI, 33 * KI),
               ((old + grown) // 2, 64 * KI))
    disk.check(tmp_path)
    resize(disk, shrunk, accel=accel)
    disk.check(tmp_path)
    disk.write((shrunk - 40 * KI, 40 * KI), (shrunk // 3, 10 * KI))
    disk.check(tmp_path, second=False)
    resize(disk, grown, accel=accel)  # what was cut off never comes back
    disk.check(tmp_path)
    disk.write((shrunk - 5 * KI, 64 * KI), (grown - 33 * KI, 33 * KI))
    disk.check(tmp_path)


def test_random_pairs(tmp_path):
    r = random.Random(SEED)
    print(f"seed {SEED}")
    for n in range(8):
        block = r.choice([1, 1, 2, 4, 8])
        fixed = r.choice([[], [], ["subformat=fixed", "block_state_zero=off"]])
        disk = Disk(tmp_path / f"{n}.vhdx", r.randrange(1, 60000) * 512,
                    [f"block_size={block}M"] + fixed)
        disk.write((0, 4 * KI), *[(r.randrange(disk.size), r.randrange(200 * KI)) for _ in range(5)])
        for _ in range(3):
            size = r.choice([r.randrange(1, 120000) * 512, r.randrange(1, 30) * 2 * MI])
            if size != disk.size:
                resize(disk, size)
            disk.check(tmp_path)
            disk.write(*[(r.randrange(disk.size), r.randrange(200 * KI)) for _ in range(4)])
        disk.check(tmp_path)


def test_terabytes(accel, tmp_path):
    path = create_vhdx(tmp_path / "a.vhdx", 100 * MI, "block_size=1M")
    qemu_io(path, "write -P 1 0 64k", "write -P 2 99M 1M", fmt="vhdx")
    before = os.stat(path).st_size
    p = launch("resize", path, "3T", accel=accel)
    assert p.returncode == 0, p.stderr
    assert qemu_img("check", "-f", "vhdx", path).returncode == 0
    assert os.stat(path).st_size - before <= 26 * MI  # the BAT alone
    qemu_io(path, "write -P 3 2999G 64k", "read -P 1 0 64k", "read -P 2 99M 1M", "read -P 0 100M 3M",
            "read -P 3 2999G 64k", "read -P 0 2998G 1M", fmt="vhdx")
    p = launch("resize", "--shrink", path, "50M", accel=accel)
    assert p.returncode == 0, p.stderr
    qemu_io(path, "read -P 1 0 64k", "read -P 0 64k 49M", fmt="vhdx")
    assert qemu_img("check", "-f", "vhdx", path).returncode == 0
    structure(path)


@pytest.mark.parametrize("how", ["falloc", "full"])
@pytest.mark.parametrize("options", [[], ["subformat=fixed", "block_state_zero=off"]],
                         ids=["dynamic", "fixed"])
def test_preallocation(accel, tmp_path, how, options):
    disk = Disk(tmp_path / "a.vhdx", 16 * MI, ["block_size=4M"] + options)
    disk.write((0, 64 * KI), (15 * MI, MI))
    before = os.stat(disk.path).st_blocks
    resize(disk, 40 * MI, f"--preallocation={how}", accel=accel)
    assert (os.stat(disk.path).st_blocks - before) * 512 >= 24 * MI
    disk.check(tmp_path)
    length = os.stat(disk.path).st_size
    disk.write((15 * MI, 9 * MI))
    disk.check(tmp_path)
    assert os.stat(disk.path).st_size == length


def test_info(accel, tmp_path):
    path = create_vhdx(tmp_path / "a.vhdx", 20 * MI, "subformat=fixed", "block_size=2M")
    digest = sha256(path)
    ours = json.loads(launch("info", "--output=json", path, accel=accel).stdout)
    theirs = info(path)
    for key in ("format", "virtual-size", "cluster-size"):
        assert ours[key] == theirs[key]
    data = ours["format-specific"]["data"]
    assert data["subformat"] == "fixed" and data["block-size"] == 2 * MI
    assert data["logical-sector-size"] == 512 and data["log"] == "empty"
    head = newest_header(path)
    assert data["file-write-guid"].startswith(head[16:20][::-1].hex())
    assert "subformat: fixed" in launch("info", path, accel=accel).stdout
    assert sha256(path) == digest


# ---- a log that must be replayed ----


def le64(v):
    return struct.pack("<Q", v)


def sectors_of(path, size):
    """The 4 KiB around VirtualDiskSize, with another size in it."""
    with open(path, "rb") as f:
        f.seek(3 * MI)
        meta = f.read(MI)
    item = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
    at = meta.index(item)
    where = struct.unpack_from("<I", meta, at + 16)[0]
    base = where // 4096 * 4096
    sector = bytearray(meta[base:base + 4096])
    sector[where - base:where - base + 8] = le64(size)
    return 3 * MI + base, bytes(sector)


def make_dirty(path, size, zero_from=None):
    """Puts an entry into the log that makes the disk `size` bytes long, and drops BAT entries."""
    guid, seq = bytes(range(1, 17)), 5
    off, sector = sectors_of(path, size)
    length = os.stat(path).st_size // MI * MI
    descs = b"desc" + sector[4092:] + sector[:8] + le64(off) + le64(seq)
    if zero_from:
        descs += b"zero" + bytes(4) + le64(4096) + le64(zero_from) + le64(seq)
    head = b"loge" + bytes(4) + struct.pack("<IIQII", 8192, 0, seq, len(descs) // 32, 0) + guid + \
        le64(length) + le64(length)
    data = b"data" + struct.pack("<I", seq >> 32) + sector[8:4092] + struct.pack("<I", seq)
    entry = (head + descs).ljust(4096, b"\0") + data
    patch(path, MI, entry[:4] + struct.pack("<I", crc(entry)) + entry[8:])
    for at in (64 * KI, 128 * KI):
        with open(path, "rb") as f:
            f.seek(at)
            h = f.read(4096)
        h = h[:48] + guid + h[64:]
        patch(path, at, h[:4] + struct.pack("<I", crc(h)) + h[8:])


def test_dirty_log(accel, tmp_path):
    disk = Disk(tmp_path / "a.vhdx", 20 * MI, ["block_size=1M"])
    disk.write((0, 64 * KI), (7 * MI, 64 * KI), (12 * MI - 512, 512))
    make_dirty(disk.path, 12 * MI)
    digest = sha256(disk.path)
    theirs = copy(disk.path, "b.vhdx")
    qemu_img("check", "-f", "vhdx", "-r", "all", theirs)
    ours = json.loads(launch("info", "--output=json", disk.path, accel=accel).stdout)
    assert ours["dirty-flag"] and ours["virtual-size"] == info(theirs)["virtual-size"] == 12 * MI
    assert "replayed" in ours["format-specific"]["data"]["log"]
    p = launch("resize", "--dry-run", disk.path, "+8M", accel=accel)
    assert p.returncode == 0 and "the log is replayed" in p.stdout, p.stderr
    assert sha256(disk.path) == digest
    p = launch("resize", disk.path, "+8M", accel=accel)  # of what the log says
    assert (p.returncode, p.stderr) == (0, WARNING)
    disk.resized(12 * MI)
    disk.size = 20 * MI
    assert info(disk.path)["virtual-size"] == 20 * MI
    disk.check(tmp_path)
    disk.write((12 * MI - 5 * KI, 64 * KI), (19 * MI, MI))
    disk.check(tmp_path)


def test_what_the_log_drops_is_gone(tmp_path):
    disk = Disk(tmp_path / "a.vhdx", 20 * MI, ["block_size=1M"])
    disk.write((0, 64 * KI), (7 * MI, 64 * KI))
    make_dirty(disk.path, 20 * MI, zero_from=2 * MI)  # all of its BAT
    resize(disk, 5 * MI)
    disk.data = {}
    disk.check(tmp_path)


# ---- refusals ----


def unchanged(path, *args, code=None):
    before, mtime = sha256(path), os.stat(path).st_mtime_ns
    p = launch("resize", "--output=json", *args, accel=best_accel())
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == code, p.stdout
    assert sha256(path) == before and os.stat(path).st_mtime_ns == mtime


REFUSALS = {
    "both headers": (lambda p: [patch(p, o * KI + 4, b"bad!") for o in (64, 128)], "OVERLAY_CORRUPT"),
    "both region tables": (lambda p: [patch(p, o * KI + 4, b"bad!") for o in (192, 256)],
                           "OVERLAY_CORRUPT"),
    "a log GUID without a log": (lambda p: make_dirty(p, 9 * MI) or patch(p, MI, b"none"),
                                 "OVERLAY_CORRUPT"),
    "block twice": (lambda p: patch(p, 2 * MI + 8, open(p, "rb").read(3 * MI)[2 * MI:2 * MI + 8]),
                    "OVERLAY_CORRUPT"),
    "block past the end": (lambda p: patch(p, 2 * MI + 8, le64(TI | 6)), "OVERLAY_CORRUPT"),
    "block on the BAT": (lambda p: patch(p, 2 * MI + 8, le64(2 * MI | 6)), "OVERLAY_CORRUPT"),
    "blocks of 3 MiB": (lambda p: patch(p, 3 * MI + 64 * KI, struct.pack("<I", 3 * MI)),
                        "OVERLAY_CORRUPT"),
    "identifier": (lambda p: patch(p, 0, b"vhdxfilf"), "PARSE_FAILED"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(tmp_path, name):
    path = create_vhdx(tmp_path / "a.vhdx", 20 * MI, "block_size=1M")
    qemu_io(path, "write -P 1 0 64k", fmt="vhdx")
    mutate, code = REFUSALS[name]
    mutate(path)
    for args in (["-f", "vhdx", path, "1G"], ["-f", "vhdx", "--shrink", path, "7M"]):
        unchanged(path, *args, code=code)


def test_refused_requests(tmp_path):
    path = create_vhdx(tmp_path / "a.vhdx", 20 * MI)
    unchanged(path, path, "65T", code="INVALID_NEW_SIZE")
    unchanged(path, path, "30000001", code="INVALID_NEW_SIZE")
    unchanged(path, path, "10M", code="SHRINK_WITHOUT_FLAG")
    unchanged(path, "--preallocation=metadata", path, "40M", code="PREALLOCATION_UNSUPPORTED")
    unchanged(path, "--preallocation=full", "--max-growth=1M", path, "400M", code="NO_SPACE")


def test_dry_run(accel, tmp_path):
    path = create_vhdx(tmp_path / "a.vhdx", 20 * MI)
    digest = sha256(path)
    p = launch("resize", "--dry-run", path, "1T", accel=accel)
    assert p.returncode == 0 and p.stdout.count("COMMIT") == 1
    assert sha256(path) == digest


@pytest.mark.parametrize("grow", [True, False], ids=["grow", "shrink"])
def test_killed_at_any_time(tmp_path, grow):
    r = random.Random(SEED)
    old, new = (20 * MI, TI) if grow else (300 * MI, 20 * MI)
    disk = Disk(tmp_path / "a.vhdx", old, ["block_size=1M"])
    disk.write((0, 4 * MI), (10 * MI, 2 * MI), (19 * MI + 5 * KI, 512))
    sizes, survivors = set(), 0
    for n in range(30):
        path = copy(disk.path, "b.vhdx")
        args = [] if grow else ["--shrink"]
        p = subprocess.Popen([LAUNCH, "resize", "-q", *args, "--accel", best_accel(), path, str(new)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)
        time.sleep(r.uniform(0.015, 0.09))
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        deadline = time.monotonic() + 10  # QEMU dies with the launcher, but a little later
        while "lock" in qemu_img("check", "-f", "vhdx", "-r", "all", path, check=False).stderr:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        qemu_img("check", "-f", "vhdx", "-r", "all", path)
        size = info(path)["virtual-size"]
        assert size in (old, new)
        sizes.add(size)
        survivors += 1
        qemu_io(path, "read -P 1 0 4M", "read -P 2 10M 2M", f"read -P 3 {19 * MI + 5 * KI} 512"
                if 19 * MI + 5 * KI < size else "read 0 512", fmt="vhdx")
    assert survivors == 30 and old in sizes
