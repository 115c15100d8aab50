# SPDX-License-Identifier: MIT
"""kernel/ on stock QEMU: boot, faults, serial port, memory, virtio-blk; under TCG and KVM.

The guests are tests/guest/*.c (`make guests`). Each is told what to do by the text of its
multiboot module, answers over the serial port, and ends through isa-debug-exit, which makes
QEMU's status 2 * status + 1. Every run has a time limit: a hang is a failure.
"""
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / "build" / "guests"
QEMU = os.environ.get("INSTAR_QEMU") or "qemu-system-x86_64"
MICROVM = ("microvm,acpi=off,pit=off,pic=off,rtc=off,x-option-roms=off,"
           "auto-kernel-cmdline=off")
TIMEOUT = 30
EXIT_FAULT, EXIT_DIED = 125 * 2 + 1, 126 * 2 + 1
EIO, ENODEV, EINVAL = 1, 2, 3
DIFFERS = 9
MIB = 1 << 20


def kvm_problem():
    """Why KVM cannot be used, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as e:
        return f"/dev/kvm: {e.strerror}"
    return None


@pytest.fixture(params=["tcg", "kvm"])
def accel(request):
    if request.param == "kvm" and kvm_problem():
        pytest.skip(kvm_problem())
    return request.param


@pytest.fixture(scope="session", autouse=True)
def guests():
    subprocess.run(["make", "-s", "guests"], cwd=ROOT, check=True, timeout=300)


def argv(accel, elf, *extra, machine=MICROVM, memory=128, module=None):
    """QEMU's command line; the serial port is the caller's business."""
    cpu = {"tcg": "max", "kvm": "max,arch-capabilities=off"}[accel]
    args = [QEMU, "-M", machine, "-accel", accel, "-cpu", cpu, "-m", str(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-global", "virtio-mmio.force-legacy=false", "-kernel", str(GUESTS / f"{elf}.elf")]
    if module is not None:
        args += ["-initrd", str(module)]
    return args + list(extra)


def run(accel, elf, *extra, text=None, tmp_path=None, timeout=TIMEOUT, **kw):
    """Runs a guest to its end: (status, output)."""
    if text is not None:
        kw["module"] = tmp_path / "module"
        kw["module"].write_text(text)
    p = subprocess.run(argv(accel, elf, "-serial", "stdio", *extra, **kw), timeout=timeout,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return p.returncode, p.stdout


def script(accel, tmp_path, text, *extra, **kw):
    """Runs blkio.elf: the list of its answers."""
    status, out = run(accel, "blkio", *extra, text=text, tmp_path=tmp_path, **kw)
    assert status == 1, out
    return [int(line) for line in out.split()]


def disk(slot, path, device="", node=""):
    return ["-blockdev", f"driver=file,node-name=f{slot},filename={path},discard=unmap{node}",
            "-device", f"virtio-blk-device,drive=f{slot},bus=virtio-mmio-bus.{slot}{device}"]


@pytest.fixture
def image(tmp_path):
    def make(size, name="disk.img"):
        path = tmp_path / name
        with open(path, "wb") as f:
            f.truncate(size)
        return path
    return make


# ---- the image ----

def load_segments(elf):
    data = (GUESTS / f"{elf}.elf").read_bytes()
    phoff, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, flags, off, addr, _, filesz, _, _ = struct.unpack_from("<IIQQQQQQ", data,
                                                                     phoff + i * size)
        if kind == 1:
            yield flags, off, addr, filesz


@pytest.mark.parametrize("elf", ["print", "fault", "blkio"])
def test_image_is_linear_and_w_xor_x(elf):
    segments = list(load_segments(elf))
    assert {off - addr for _, off, addr, filesz in segments if filesz} == {0x1000 - 0x100000}
    assert all(flags & 3 != 3 for flags, *_ in segments)


@pytest.mark.skipif(not shutil.which("grub-file"), reason="grub-file is not installed")
def test_image_is_multiboot():
    subprocess.run(["grub-file", "--is-x86-multiboot", GUESTS / "print.elf"], check=True)


# ---- boot ----

def test_prints_and_ends(accel):
    assert run(accel, "print") == (1, b"hello\n")


@pytest.mark.parametrize("memory", [32, 33, 128, 1024, 3000, 4096])
def test_memory(accel, tmp_path, memory):
    """All RAM below 4 GiB but for the kernel's own few MiB can be had, zeroed, until locked."""
    mib, locked = script(accel, tmp_path, "a l", memory=memory)
    assert min(memory, 3072) - 6 <= mib <= memory and locked == 1


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_other_machines(accel, tmp_path, machine):
    rom = "/usr/share/qemu/qboot.rom"
    if not os.path.exists(rom):
        pytest.skip(f"no {rom}")
    mib, locked, ch = script(accel, tmp_path, "a l t 20", "-bios", rom, machine=machine)
    assert 122 <= mib <= 128 and locked == 1


def test_large_module(accel, tmp_path):
    """page_alloc() keeps off the module, however much of RAM it takes."""
    filler = " " * (70 * MIB)
    mib, present = script(accel, tmp_path, "a " + filler + "p 0")
    assert 50 <= mib <= 58 and present == 0


@pytest.mark.skipif(not shutil.which("grub-mkrescue"), reason="grub-mkrescue is not installed")
def test_boots_from_grub(tmp_path):
    """GRUB: other places for modules and tables, a BIOS whose timer still ticks behind the 8259."""
    boot = tmp_path / "iso" / "boot"
    (boot / "grub").mkdir(parents=True)
    shutil.copy(GUESTS / "blkio.elf", boot)
    (boot / "module").write_text("t 300 a l")
    (boot / "grub" / "grub.cfg").write_text(
        "multiboot /boot/blkio.elf\nmodule /boot/module\nboot\n")
    r = subprocess.run(["grub-mkrescue", "-o", tmp_path / "x.iso", tmp_path / "iso"],
                       capture_output=True, timeout=120)
    if r.returncode != 0:
        pytest.skip("grub-mkrescue: " + r.stderr.decode()[-200:])
    args = argv("tcg", "blkio", "-serial", "stdio", "-cdrom", str(tmp_path / "x.iso"),
                machine="pc")
    at = args.index("-kernel")
    del args[at:at + 2]
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120)
    assert p.returncode == 1
    mib, locked = [int(x) for x in p.stdout.split()[-2:]]
    assert 120 <= mib <= 128 and locked == 1


# ---- faults: one report and the end, never a hang ----

PF, GP, UD, DE, DB, NMI = 14, 13, 6, 0, 1, 2
CRIMES = {
    "text-write": (PF, 7), "rodata-write": (PF, 7), "data-execute": (PF, 0x15),
    "page-execute": (PF, 0x15), "null-read": (PF, 4), "null-write": (PF, 6),
    "null-call": (PF, 0x14), "stack-overflow": (PF, 6), "ud2": (UD, 0), "divide": (DE, 0),
    "hull-text-read": (PF, 5), "hull-data-read": (PF, 5), "hull-data-write": (PF, 7),
    "hull-execute": (PF, 0x15), "page-table-read": (PF, 4), "beyond-ram": (PF, 4),
    "non-canonical": (GP, 0), "port": (GP, 0), "privileged": (GP, 0), "halt": (GP, 0),
    "single-step": (DB, 0), "smashed-stack": (UD, 0), "nmi": (NMI, 0),
}
CR2 = {"null-read": 8, "null-write": 0, "hull-data-read": 0x101000, "page-table-read": 0x102000,
       "beyond-ram": 0xd0000000}


def parse_fault(out):
    lines = out.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("FAULT "), out
    return {k: int(v, 16) for k, v in (w.split("=") for w in lines[0].split()[1:])}


@pytest.mark.parametrize("crime", CRIMES)
def test_fault(accel, tmp_path, crime):
    status, out = run(accel, "fault", text=crime, tmp_path=tmp_path)
    f = parse_fault(out)
    assert (f["vec"], f["err"]) == CRIMES[crime]
    assert status == EXIT_FAULT
    assert crime not in CR2 or f["cr2"] == CR2[crime]


@pytest.mark.parametrize("crime", ["text-write", "stack-overflow", "ud2"])
def test_fault_within_a_fault(accel, tmp_path, crime):
    status, out = run(accel, "fault", text=crime + "-twice", tmp_path=tmp_path)
    assert parse_fault(out)["vec"] == CRIMES[crime][0]
    assert status == EXIT_DIED


@pytest.mark.parametrize("crime", ["gate-hull", "gate-beyond", "gate-guard"])
def test_gate_refuses(accel, tmp_path, crime):
    assert run(accel, "fault", text=crime, tmp_path=tmp_path) == (EXIT_DIED, b"")


def test_gate_clears_ac(accel, tmp_path):
    status, out = run(accel, "fault", text="gate-ac", tmp_path=tmp_path)
    assert out == b"AC\nSURVIVED\n"


@pytest.mark.parametrize("cpu", ["qemu64", "qemu64,-nx", "max,-smep,-smap"])
def test_lesser_cpus(cpu):
    args = argv("tcg", "print", "-serial", "stdio")
    args[args.index("-cpu") + 1] = cpu
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=TIMEOUT)
    assert (p.returncode, p.stdout) == (1, b"hello\n")


# ---- a running VM ----

class Vm:
    """A guest with its serial port and QMP on socketpairs."""

    def __init__(self, accel, elf, text, tmp_path, *extra):
        module = tmp_path / "module"
        module.write_text(text)
        self.serial, serial = socket.socketpair()
        self.monitor, monitor = socket.socketpair()
        self.serial.settimeout(TIMEOUT)
        self.monitor.settimeout(TIMEOUT)
        fds = (serial.fileno(), monitor.fileno())
        self.process = subprocess.Popen(
            argv(accel, elf, "-chardev", f"socket,id=ser,fd={fds[0]}", "-serial", "chardev:ser",
                 "-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control",
                 *extra, module=module), pass_fds=fds, stdin=subprocess.DEVNULL)
        serial.close()
        monitor.close()
        self.replies = self.monitor.makefile("r")
        self.qmp("qmp_capabilities")

    def qmp(self, command, **arguments):
        self.monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for line in self.replies:
            reply = json.loads(line)
            if "return" in reply or "error" in reply:
                return reply

    def line(self):
        data = b""
        while not data.endswith(b"\n"):
            byte = self.serial.recv(1)
            assert byte, data
            data += byte
        return data.decode().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.replies.close()
        self.serial.close()
        self.monitor.close()


def test_serial_both_ways(accel, tmp_path):
    with Vm(accel, "blkio", "p 0 t 20000 t 20000 t 5 e 100", tmp_path) as vm:
        assert vm.line() == "0"
        vm.serial.sendall(b"\x00")
        assert vm.line() == "0"
        time.sleep(0.3)
        vm.serial.sendall(b"\xff")
        assert vm.line() == "255"
        assert vm.line() == str(2**64 - 1)
        assert vm.line() == "a" * 64 + "b" * 36 + "100"
        assert vm.process.wait(TIMEOUT) == 1


def test_serial_peer_that_sleeps(accel, tmp_path):
    """A full socket costs time, not bytes."""
    count = 20000 if accel == "tcg" else 4000
    want = b"".join(bytes([97 + i % 26]) * 64 for i in range(count // 64 + 1))[:count]
    with Vm(accel, "blkio", f"e {count}", tmp_path) as vm:
        data = b""
        while len(data) < count:
            time.sleep(0.02)
            data += vm.serial.recv(200)
        assert data[:count] == want


def test_waiting_starves_nobody(accel, tmp_path):
    """Two seconds of waiting cost the host little CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    script(accel, tmp_path, "t 2000")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 2 <= time.monotonic() - start < 10
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


# ---- virtio-blk ----

def test_no_disk(accel, tmp_path):
    text = "p 0 p 7 p 8 p 23 p 24 p 4294967295 c 0 s 0 f 0 w 3 0 512 1"
    assert script(accel, tmp_path, text) == [0] * 8 + [ENODEV] * 2


@pytest.mark.parametrize("block", [512, 4096])
def test_disk(accel, tmp_path, image, block):
    path = image(16 * MIB)
    answers = script(
        accel, tmp_path,
        f"p 5 p 0 s 5 c 5 o 5 w 5 0 {MIB} 7 f 5 r 5 0 {MIB} 7 r 5 0 {MIB} 8 "
        f"z 5 8192 65536 n 5 8192 65536 r 5 0 8192 7 r 5 73728 8192 7 "
        f"u 5 0 65536 n 5 0 65536 d 5 {MIB} {MIB} w 5 {15 * MIB} {MIB} 1 "
        f"r 5 {15 * MIB} {MIB} 1 f 5",
        *disk(5, path, f",logical_block_size={block},physical_block_size={block}"))
    assert answers == [1, 0, block, 16 * MIB, 0, 0, 0, 0, DIFFERS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    data = path.read_bytes()
    assert data[:73728] == bytes(73728) and any(data[73728:81920])


def test_ranges_are_checked(accel, tmp_path, image):
    end = 1 << 63
    assert script(
        accel, tmp_path,
        f"w 0 {MIB} 4096 1 w 0 {MIB - 4096} 8192 1 r 0 {end} 4096 1 w 0 {2**64 - 4096} 4096 1 "
        f"w 0 2048 4096 1 w 0 4096 2048 1 r 0 0 {2 * MIB} 1 z 0 0 {2 * MIB} d 0 {MIB} 4096 "
        f"n 0 0 {MIB}",
        *disk(0, image(MIB), ",logical_block_size=4096,physical_block_size=4096")
    ) == [EINVAL] * 9 + [0]


def test_read_only(accel, tmp_path, image):
    assert script(accel, tmp_path, "o 0 n 0 0 4096 w 0 0 4096 1 z 0 0 4096 d 0 0 4096 f 0",
                  *disk(0, image(MIB), node=",read-only=on")) == [1, 0, EINVAL, EINVAL, EINVAL, 0]


def test_device_without_zeroes_and_discard(accel, tmp_path, image):
    """Zeros are written, a discard is a hint that nobody takes."""
    path = image(8 * MIB)
    path.write_bytes(b"x" * 8 * MIB)
    assert script(accel, tmp_path, f"z 0 4096 {8 * MIB - 8192} d 0 0 4096 f 0",
                  *disk(0, path, ",discard=off,write-zeroes=off")) == [0, 0, 0]
    assert path.read_bytes() == b"x" * 4096 + bytes(8 * MIB - 8192) + b"x" * 4096


def test_requests_larger_than_the_device_takes(accel, tmp_path, image):
    """Zeros and discards of any size are cut into what the device allows."""
    path = image(5 << 30)
    with open(path, "r+b") as f:
        for off in (4096, 2 << 30, (4 << 30) + 512, (5 << 30) - 512):
            f.seek(off)
            f.write(b"y" * 512)
    limits = ",max-write-zeroes-sectors=100001,max-discard-sectors=77777,logical_block_size=4096," \
             "physical_block_size=4096"
    assert script(accel, tmp_path, f"u 0 0 {5 << 30} d 0 0 {64 * MIB} f 0 n 0 0 {MIB} "
                  f"n 0 {2 << 30} {MIB} n 0 {4 << 30} {MIB} n 0 {(5 << 30) - MIB} {MIB}",
                  *disk(0, path, limits)) == [0] * 7
    assert path.stat().st_blocks * 512 < MIB
    assert script(accel, tmp_path, f"z 0 0 {5 << 30} n 0 {3 << 30} {MIB}",
                  *disk(0, path)) == [0, 0]


def test_batches(accel, tmp_path, image):
    """Sixteen requests in flight, on one disk and over two."""
    disks = disk(0, image(4 * MIB, "a")) + disk(7, image(4 * MIB, "b"))
    assert script(accel, tmp_path,
                  "b 0 1024 65536 3 B 0 1024 65536 3 B 0 1024 65536 4 b 7 0 512 5 B 7 0 512 5 "
                  "m 0 7 0 4096 9 M 0 7 0 4096 9 B 0 0 4096 9 b 0 4190208 4096 1",
                  *disks) == [0, 0, DIFFERS, 0, 0, 0, 0, DIFFERS, EINVAL]


def test_all_slots(accel, tmp_path, image):
    disks = [arg for n in range(8) for arg in disk(n, image(MIB, f"d{n}"))]
    text = " ".join(f"w {n} 0 4096 {n}" for n in range(8)) + " " + \
        " ".join(f"r {n} 0 4096 {n}" for n in range(8)) + " m 2 6 65536 4096 1 M 2 6 65536 4096 1"
    assert script(accel, tmp_path, text, *disks) == [0] * 18


def test_capacity_change(accel, tmp_path, image):
    path = image(MIB)
    with Vm(accel, "blkio", f"c 0 w 0 {MIB} 4096 1 g 0 {3 * MIB} w 0 {3 * MIB - 4096} 4096 1 "
            f"r 0 {3 * MIB - 4096} 4096 1 n 0 {MIB} {MIB} w 0 {3 * MIB} 4096 1 f 0", tmp_path,
            *disk(0, path)) as vm:
        assert vm.line() == str(MIB)
        assert vm.line() == str(EINVAL)
        assert vm.qmp("block_resize", **{"node-name": "f0", "size": 3 * MIB}) == {"return": {}}
        assert [vm.line() for _ in range(6)] == [str(3 * MIB), "0", "0", "0", str(EINVAL), "0"]
        assert vm.process.wait(TIMEOUT) == 1
    assert path.stat().st_size == 3 * MIB


@pytest.mark.parametrize("op,answers", [("write", [EIO, 0, 0]), ("flush", [0, 0, EIO])])
def test_device_errors(accel, tmp_path, image, op, answers):
    rule = {"event": "none" if op == "write" else "flush_to_disk", "iotype": op, "errno": 5,
            "once": True}
    file = {"driver": "file", "node-name": "p0", "filename": str(image(MIB))}
    debug = {"driver": "blkdebug", "node-name": "d0", "image": "p0", "inject-error": [rule]}
    raw = {"driver": "raw", "node-name": "r0", "file": "d0"}
    nodes = [x for n in (file, debug, raw) for x in ("-blockdev", json.dumps(n))]
    assert script(accel, tmp_path, "w 0 0 4096 1 w 0 0 4096 1 f 0", *nodes, "-device",
                  "virtio-blk-device,drive=r0,bus=virtio-mmio-bus.0,werror=report,rerror=report"
                  ) == answers


def test_error_in_a_batch(accel, tmp_path, image):
    """One failing request fails the batch; the others are done."""
    path = image(MIB, "a")
    rule = {"event": "none", "iotype": "write", "errno": 5, "sector": 16, "once": False}
    nodes = [{"driver": "file", "node-name": "p0", "filename": str(path)},
             {"driver": "blkdebug", "node-name": "d0", "image": "p0", "inject-error": [rule]}]
    args = [x for n in nodes for x in ("-blockdev", json.dumps(n))]
    # Every other request goes to disk 1, so that QEMU does not merge those of disk 0.
    assert script(accel, tmp_path, "m 0 1 0 4096 1 f 0", *args, "-device",
                  "virtio-blk-device,drive=d0,bus=virtio-mmio-bus.0,werror=report",
                  *disk(1, image(MIB, "b"))) == [EIO, 0]
    data = path.read_bytes()
    blocks = [any(data[i:i + 4096]) for i in range(0, 16 * 4096, 4096)]
    assert blocks == [i % 2 == 0 and i != 2 for i in range(16)]


def test_legacy_device_is_refused(accel, tmp_path, image):
    args = disk(0, image(MIB)) + ["-global", "virtio-mmio.force-legacy=true"]
    assert script(accel, tmp_path, "p 0 c 0", *args) == [0, 0]


def test_slow_device(accel, tmp_path, image):
    """A device that takes its time is waited for, without burning the host's CPU."""
    nodes = disk(0, image(MIB))
    nodes[1] = nodes[1].replace("node-name=f0", "node-name=p0")
    nodes[2:2] = ["-object", "throttle-group,id=t0,x-iops-total=8", "-blockdev",
                  "driver=throttle,node-name=f0,file=p0,throttle-group=t0"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    assert script(accel, tmp_path, "w 0 0 4096 1 r 0 0 4096 1 " * 8, *nodes) == [0] * 16
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert time.monotonic() - start > 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7
