# SPDX-License-Identifier: MIT
"""What the end-to-end tests share: the programs, each with a time limit; frames; oracles.

Every test that takes `accel` runs under TCG and under KVM, or is skipped with the reason why KVM
cannot be used here.
"""
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "build" / "instar-launch"
HOST = ROOT / "build" / "tests"
IMAGES = ROOT / "images"
QEMU = os.environ.get("INSTAR_QEMU") or "qemu-system-x86_64"
TIMEOUT = 60
CLUSTER = 65536

sys.path.insert(0, str(ROOT / "build" / "gen"))
sys.path.insert(0, str(ROOT / "tests" / "fakeqemu"))
os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")


def kvm_problem():
    """Why KVM cannot be used, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as e:
        return f"/dev/kvm: {e.strerror}"
    return None


def best_accel():
    return "tcg" if kvm_problem() else "kvm"


@pytest.fixture(params=["tcg", "kvm"])
def accel(request):
    if request.param == "kvm" and kvm_problem():
        pytest.skip(kvm_problem())
    return request.param


@pytest.fixture
def tmp_path(tmp_path):
    """As pytest's, but what is large does not outlive its test: together it would be 40 GB."""
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_blocks > 2048:
            path.unlink()


# ---- programs ----


def run(*args, check=False, timeout=TIMEOUT, text=True, **kw):
    p = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=timeout, text=text, **kw)
    if check:
        assert p.returncode == 0, f"{args}: {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p


def launch(verb, *args, accel=None, **kw):
    """instar-launch VERB ...; accel None: as it chooses."""
    more = ["--accel", accel] if accel else []
    return run(LAUNCH, verb, *more, *args, **kw)


def qemu_img(*args, check=True, **kw):
    """Once more where LUKS could not time its key derivation: luck, on a busy machine."""
    for _ in range(20):
        p = run("qemu-img", *args, **kw)
        if "Unable to get accurate CPU usage" not in p.stderr:
            break
    if check:
        assert p.returncode == 0, f"{args}: {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p


def qemu_io(path, *commands, fmt="qcow2"):
    p = run("qemu-io", "-f", fmt, *[x for c in commands for x in ("-c", c)], path, check=True)
    # qemu-io of old reports a failed command by words alone
    assert "failed" not in p.stdout + p.stderr, p.stdout + p.stderr
    return p


def create(path, size, *options, **kw):
    qemu_img("create", "-q", "-f", "qcow2", *[x for o in options for x in ("-o", o)], path, size,
             **kw)
    return path


# ---- oracles ----


def info(path):
    return json.loads(qemu_img("info", "--output=json", path).stdout)


def check_status(path):
    """0 clean, 2 corruptions, 3 leaks."""
    return qemu_img("check", "-f", "qcow2", path, check=False).returncode


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def guest_bytes(path, tmp_path):
    """All bytes of the virtual disk, as qemu-img reads them. For small disks."""
    raw = tmp_path / "guest.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def same_content(a, b):
    return qemu_img("compare", "-f", "qcow2", "-F", "qcow2", a, b, check=False).returncode == 0


def has_extended_l2(path):
    """Neither 7-Zip nor libqcow reads these."""
    return info(path)["format-specific"]["data"].get("extended-l2", False)


def size_by_7zz(path):
    """The size that 7-Zip's reader of qcow2 gives the disk in the archive."""
    out = run("7zz", "l", "-slt", path, check=True).stdout
    return int(re.search(r"^-{10}\n(?:.+\n)*?Size = (\d+)", out, re.M)[1])


def size_by_qcowinfo(path):
    out = run("qcowinfo", path, check=True).stdout
    m = re.search(r"Media size\s*:.*?\((\d+) bytes\)", out) or \
        re.search(r"Media size\s*:\s*(\d+) bytes", out)
    return int(m[1])


def copy(path, name):
    """A copy beside it; holes stay holes."""
    to = path.parent / name
    run("cp", "--sparse=always", "--reflink=auto", path, to, check=True)
    return to


# ---- qcow2 headers, patched by hand ----


def header(path, n=112):
    with open(path, "rb") as f:
        return f.read(n)


def patch(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def be32(v):
    return struct.pack(">I", v)


def be64(v):
    return struct.pack(">Q", v)


def add_extension(path, kind, data):
    """Appends a header extension. The image must have no backing file."""
    with open(path, "r+b") as f:
        head = f.read(CLUSTER)
        at = struct.unpack_from(">I", head, 100)[0]
        while struct.unpack_from(">I", head, at)[0]:
            at += 8 + (struct.unpack_from(">I", head, at + 4)[0] + 7) // 8 * 8
        f.seek(at)
        padded = data.ljust((len(data) + 7) // 8 * 8, b"\0")
        f.write(be32(kind) + be32(len(data)) + padded + be64(0))


# ---- the contract ----

FRAME_MAGIC = 0x52545349


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frames(data):
    """The Events in what came over the serial port; there must be nothing else in it."""
    import instar_pb2
    events = []
    while data:
        magic, length = struct.unpack_from("<II", data)
        assert magic == FRAME_MAGIC, f"not a frame: {data[:64]!r}"
        payload, (crc,) = data[8:8 + length], struct.unpack_from("<I", data, 8 + length)
        assert crc == crc32c(data[4:8 + length])
        events.append(instar_pb2.Event.FromString(payload))
        data = data[12 + length:]
    return events


def outcome(events):
    """The one Outcome, which must be the last event."""
    assert [e.WhichOneof("event") for e in events].count("outcome") == 1
    assert events[-1].WhichOneof("event") == "outcome"
    return events[-1].outcome


def resize_request(path, size, kind="ABSOLUTE", fmt="qcow2", shrink=False, dry_run=False):
    import instar_pb2
    r = instar_pb2.Request(dry_run=dry_run)
    r.disks.add(length=os.stat(path).st_size, writable=not dry_run, format=fmt)
    r.resize.kind = instar_pb2.SizeKind.Value(kind)
    r.resize.size = size
    r.resize.shrink = shrink
    return r


def host(op, request, path, tmp_path):
    """The operation as a host program: (status, events)."""
    req = tmp_path / "request.bin"
    req.write_bytes(request.SerializeToString())
    p = run(HOST / f"host-{op}", req, path, text=False)
    assert p.stderr == b"", p.stderr.decode()
    return p.returncode, frames(p.stdout)


@pytest.fixture
def fakes(tmp_path):
    """The launcher with a fake QEMU; none of that may be left at the end."""
    import launching
    f = launching.Fakes(tmp_path)
    yield f
    f.none_left()


@pytest.fixture(scope="session", autouse=True)
def built():
    missing = [p for p in (LAUNCH, IMAGES / "resize.elf", HOST / "host-resize",
                           ROOT / "build" / "gen" / "instar_pb2.py") if not p.exists()]
    if missing:
        pytest.exit(f"not built: {missing[0]}; run `make all tests`", returncode=1)
    for tool in ("qemu-img", "qemu-io", "7zz", "qcowinfo"):
        if not shutil.which(tool):
            pytest.exit(f"{tool} is missing; run `make deps-test`", returncode=1)
