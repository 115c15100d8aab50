# SPDX-License-Identifier: MIT
"""kernel/ on stock QEMU: boot, faults, serial port, memory; virtio-blk on microvm, q35 and pc.
Under TCG and KVM.

The guests are tests/guest/*.c (`make guests`). Each is told what to do by the text of its
multiboot module, answers over the serial port, and ends through isa-debug-exit, which makes
QEMU's status 2 * status + 1. Every run has a time limit: a hang is a failure.
"""
import functools
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import time

import pytest

from conftest import QEMU, ROOT, kvm_problem

GUESTS = ROOT / "build" / "guests"
TIMEOUT = 30
EXIT_FAULT, EXIT_DIED = 125 * 2 + 1, 126 * 2 + 1
EIO, ENODEV, EINVAL = 1, 2, 3
DIFFERS = 9
MIB = 1 << 20

# QEMU's arguments for each machine; virtio-mmio comes with microvm, virtio-pci with the others.
MACHINES = {
    "microvm": ["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,x-option-roms=off,"
                "auto-kernel-cmdline=off", "-global", "virtio-mmio.force-legacy=false"],
    "q35": ["-M", "q35,smm=off,hpet=off,sata=off,smbus=off,acpi=off,vmport=off",
            "-bios", "qboot.rom"],
    "pc": ["-M", "pc,smm=off,hpet=off,acpi=off,vmport=off", "-bios", "qboot.rom"],
    "pc-seabios": ["-M", "pc"],
    "q35-seabios": ["-M", "q35"],
}


class Machine:
    """One of MACHINES under one accelerator: QEMU's arguments."""

    def __init__(self, name, accel):
        self.name, self.accel = name, accel

    def argv(self, *extra, memory=128):
        """All but what boots and where the serial port goes."""
        cpu = {"tcg": "max", "kvm": "max,arch-capabilities=off"}[self.accel]
        return [QEMU, *MACHINES[self.name], "-accel", self.accel, "-cpu", cpu, "-m", str(memory),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-device", "isa-debug-exit,iobase=0xf4,iosize=4", *extra]

    def device(self, slot, node, options=""):
        place = f"virtio-blk-device,bus=virtio-mmio-bus.{slot}" if self.name == "microvm" else \
            f"virtio-blk-pci,disable-legacy=on,addr={4 + slot:x}"
        return ["-device", f"{place},drive={node}{options}"]

    def disk(self, slot, path, options="", node=""):
        return ["-blockdev", f"driver=file,node-name=f{slot},filename={path},discard=unmap{node}",
                *self.device(slot, f"f{slot}", options)]


@functools.cache
def has_qboot():
    """QEMU finds the firmware by itself: asked, since every distribution has it elsewhere."""
    p = subprocess.run([QEMU, "-M", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S",
                        "-bios", "qboot.rom", "-monitor", "stdio"], input=b"quit\n",
                       capture_output=True, timeout=TIMEOUT)
    return p.returncode == 0


def make_machine(name, accel):
    if accel == "kvm" and kvm_problem():
        pytest.skip(kvm_problem())
    if "qboot.rom" in MACHINES[name] and not has_qboot():
        pytest.skip("QEMU has no qboot.rom")
    return Machine(name, accel)


@pytest.fixture(params=["tcg", "kvm"])
def microvm(request):
    return make_machine("microvm", request.param)


@pytest.fixture(params=[f"{m}-{a}" for a in ("tcg", "kvm") for m in ("microvm", "q35", "pc")])
def machine(request):
    return make_machine(*request.param.split("-"))


@pytest.fixture(scope="session", autouse=True)
def guests():
    subprocess.run(["make", "-s", "guests"], cwd=ROOT, check=True, timeout=300)


def argv(machine, elf, *extra, module=None, **kw):
    """QEMU's command line for a guest (its name, or a path); the serial port is the caller's."""
    args = ["-kernel", str(GUESTS / f"{elf}.elf" if isinstance(elf, str) else elf)]
    if module is not None:
        args += ["-initrd", str(module)]
    return machine.argv(*args, *extra, **kw)


def write_module(tmp_path, content):
    path = tmp_path / "module"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(machine, elf, *extra, text=None, tmp_path=None, timeout=TIMEOUT, **kw):
    """Runs a guest to its end: (status, output)."""
    if text is not None:
        kw["module"] = write_module(tmp_path, text)
    p = subprocess.run(argv(machine, elf, "-serial", "stdio", *extra, **kw), timeout=timeout,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return p.returncode, p.stdout


def script(machine, tmp_path, text, *extra, **kw):
    """Runs blkio.elf: the list of its answers."""
    status, out = run(machine, "blkio", *extra, text=text, tmp_path=tmp_path, **kw)
    assert status == 1, out
    return [int(line) for line in out.split()]


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

def test_prints_and_ends(microvm):
    assert run(microvm, "print") == (1, b"hello\n")


@pytest.mark.parametrize("memory", [32, 33, 128, 1024, 3000, 4096])
def test_memory(microvm, tmp_path, memory):
    """All RAM below 4 GiB but for the kernel's own few MiB can be had, zeroed, until locked."""
    mib, locked = script(microvm, tmp_path, "a l", memory=memory)
    assert min(memory, 3072) - 6 <= mib <= memory and locked == 1


def test_every_machine(machine, tmp_path):
    """Memory, and the timer that ends a wait."""
    mib, locked, ch = script(machine, tmp_path, "a l t 20")
    assert 122 <= mib <= 128 and locked == 1 and ch == 2**64 - 1


def test_large_module(microvm, tmp_path):
    """page_alloc() keeps off the module, however much of RAM it takes."""
    filler = " " * (70 * MIB)
    mib, present = script(microvm, tmp_path, "a " + filler + "p 0")
    assert 50 <= mib <= 58 and present == 0


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
def test_fault(microvm, tmp_path, crime):
    status, out = run(microvm, "fault", text=crime, tmp_path=tmp_path)
    f = parse_fault(out)
    assert (f["vec"], f["err"]) == CRIMES[crime]
    assert status == EXIT_FAULT
    assert crime not in CR2 or f["cr2"] == CR2[crime]


@pytest.mark.parametrize("crime", ["text-write", "stack-overflow", "ud2"])
def test_fault_within_a_fault(microvm, tmp_path, crime):
    status, out = run(microvm, "fault", text=crime + "-twice", tmp_path=tmp_path)
    assert parse_fault(out)["vec"] == CRIMES[crime][0]
    assert status == EXIT_DIED


@pytest.mark.parametrize("crime", ["gate-hull", "gate-beyond", "gate-guard"])
def test_gate_refuses(microvm, tmp_path, crime):
    assert run(microvm, "fault", text=crime, tmp_path=tmp_path) == (EXIT_DIED, b"")


def test_gate_clears_ac(microvm, tmp_path):
    status, out = run(microvm, "fault", text="gate-ac", tmp_path=tmp_path)
    assert out == b"AC\nSURVIVED\n"


@pytest.mark.parametrize("cpu", ["qemu64", "qemu64,-nx", "max,-smep,-smap"])
def test_lesser_cpus(cpu):
    args = argv(Machine("microvm", "tcg"), "print", "-serial", "stdio")
    args[args.index("-cpu") + 1] = cpu
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=TIMEOUT)
    assert (p.returncode, p.stdout) == (1, b"hello\n")


# ---- a running VM ----

class Vm:
    """A guest with its serial port and QMP on socketpairs."""

    def __init__(self, machine, elf, text, tmp_path, *extra):
        module = write_module(tmp_path, text)
        self.serial, serial = socket.socketpair()
        self.monitor, monitor = socket.socketpair()
        self.serial.settimeout(TIMEOUT)
        self.monitor.settimeout(TIMEOUT)
        fds = (serial.fileno(), monitor.fileno())
        self.process = subprocess.Popen(
            argv(machine, elf, "-chardev", f"socket,id=ser,fd={fds[0]}", "-serial", "chardev:ser",
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

    def frame(self):
        """One frame of an operation's (ops/frame.h)."""
        head = self.exactly(8)
        return head + self.exactly(struct.unpack_from("<I", head, 4)[0] + 4)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.serial.recv(count - len(data))
            assert more, data
            data += more
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.replies.close()
        self.serial.close()
        self.monitor.close()


def test_serial_both_ways(microvm, tmp_path):
    with Vm(microvm, "blkio", "p 0 t 20000 t 20000 t 5 e 100", tmp_path) as vm:
        assert vm.line() == "0"
        vm.serial.sendall(b"\x00")
        assert vm.line() == "0"
        time.sleep(0.3)
        vm.serial.sendall(b"\xff")
        assert vm.line() == "255"
        assert vm.line() == str(2**64 - 1)
        assert vm.line() == "a" * 64 + "b" * 36 + "100"
        assert vm.process.wait(TIMEOUT) == 1


def test_serial_peer_that_sleeps(microvm, tmp_path):
    """A full socket costs time, not bytes."""
    count = 20000 if microvm.accel == "tcg" else 4000
    want = b"".join(bytes([97 + i % 26]) * 64 for i in range(count // 64 + 1))[:count]
    with Vm(microvm, "blkio", f"e {count}", tmp_path) as vm:
        data = b""
        while len(data) < count:
            time.sleep(0.02)
            data += vm.serial.recv(200)
        assert data[:count] == want


def test_waiting_starves_nobody(machine, tmp_path):
    """Two seconds of waiting cost the host little CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    script(machine, tmp_path, "t 2000")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 2 <= time.monotonic() - start < 10
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


# ---- virtio-blk, on every machine ----

def test_no_disk(machine, tmp_path):
    text = "p 0 p 7 p 8 p 23 p 24 p 4294967295 c 0 s 0 f 0 w 3 0 512 1"
    assert script(machine, tmp_path, text) == [0] * 8 + [ENODEV] * 2


@pytest.mark.parametrize("block", [512, 4096])
def test_disk(machine, tmp_path, image, block):
    path = image(16 * MIB)
    answers = script(
        machine, tmp_path,
        f"p 5 p 0 s 5 c 5 o 5 w 5 0 {MIB} 7 f 5 r 5 0 {MIB} 7 r 5 0 {MIB} 8 "
        f"z 5 8192 65536 n 5 8192 65536 r 5 0 8192 7 r 5 73728 8192 7 "
        f"u 5 0 65536 n 5 0 65536 d 5 {MIB} {MIB} w 5 {15 * MIB} {MIB} 1 "
        f"r 5 {15 * MIB} {MIB} 1 f 5",
        *machine.disk(5, path, f",logical_block_size={block},physical_block_size={block}"))
    assert answers == [1, 0, block, 16 * MIB, 0, 0, 0, 0, DIFFERS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    data = path.read_bytes()
    assert data[:73728] == bytes(73728) and any(data[73728:81920])


def test_ranges_are_checked(machine, tmp_path, image):
    end = 1 << 63
    assert script(
        machine, tmp_path,
        f"w 0 {MIB} 4096 1 w 0 {MIB - 4096} 8192 1 r 0 {end} 4096 1 w 0 {2**64 - 4096} 4096 1 "
        f"w 0 2048 4096 1 w 0 4096 2048 1 r 0 0 {2 * MIB} 1 z 0 0 {2 * MIB} d 0 {MIB} 4096 "
        f"n 0 0 {MIB}",
        *machine.disk(0, image(MIB), ",logical_block_size=4096,physical_block_size=4096")
    ) == [EINVAL] * 9 + [0]


def test_file_that_ends_within_a_block(machine, tmp_path, image):
    """512-byte blocks: it ends with the last sector. 4096: what is past the last whole block is out
    of reach, and the capacity says so."""
    assert script(machine, tmp_path, f"c 0 r 0 {MIB} 512 1 c 1 w 1 {MIB} 4096 1",
                  *machine.disk(0, image(MIB + 100, "a")),
                  *machine.disk(1, image(MIB + 512, "b"),
                                ",logical_block_size=4096,physical_block_size=4096")
                  ) == [MIB + 512, DIFFERS, MIB, EINVAL]


def test_read_only(machine, tmp_path, image):
    assert script(machine, tmp_path, "o 0 n 0 0 4096 w 0 0 4096 1 z 0 0 4096 d 0 0 4096 f 0",
                  *machine.disk(0, image(MIB), node=",read-only=on")
                  ) == [1, 0, EINVAL, EINVAL, EINVAL, 0]


def test_device_without_zeroes_and_discard(machine, tmp_path, image):
    """Zeros are written, a discard is a hint that nobody takes."""
    path = image(8 * MIB)
    path.write_bytes(b"x" * 8 * MIB)
    assert script(machine, tmp_path, f"z 0 4096 {8 * MIB - 8192} d 0 0 4096 f 0",
                  *machine.disk(0, path, ",discard=off,write-zeroes=off")) == [0, 0, 0]
    assert path.read_bytes() == b"x" * 4096 + bytes(8 * MIB - 8192) + b"x" * 4096


def test_requests_larger_than_the_device_takes(machine, tmp_path, image):
    """Zeros and discards of any size are cut into what the device allows."""
    path = image(5 << 30)
    with open(path, "r+b") as f:
        for off in (4096, 2 << 30, (4 << 30) + 512, (5 << 30) - 512):
            f.seek(off)
            f.write(b"y" * 512)
    limits = ",max-write-zeroes-sectors=100001,max-discard-sectors=77777,logical_block_size=4096," \
             "physical_block_size=4096"
    assert script(machine, tmp_path, f"u 0 0 {5 << 30} d 0 0 {64 * MIB} f 0 n 0 0 {MIB} "
                  f"n 0 {2 << 30} {MIB} n 0 {4 << 30} {MIB} n 0 {(5 << 30) - MIB} {MIB}",
                  *machine.disk(0, path, limits)) == [0] * 7
    assert path.stat().st_blocks * 512 < MIB
    assert script(machine, tmp_path, f"z 0 0 {5 << 30} n 0 {3 << 30} {MIB}",
                  *machine.disk(0, path)) == [0, 0]


def test_batches(machine, tmp_path, image):
    """Sixteen requests in flight, on one disk and over two."""
    disks = machine.disk(0, image(4 * MIB, "a")) + machine.disk(7, image(4 * MIB, "b"))
    assert script(machine, tmp_path,
                  "b 0 1024 65536 3 B 0 1024 65536 3 B 0 1024 65536 4 b 7 0 512 5 B 7 0 512 5 "
                  "m 0 7 0 4096 9 M 0 7 0 4096 9 B 0 0 4096 9 b 0 4190208 4096 1",
                  *disks) == [0, 0, DIFFERS, 0, 0, 0, 0, DIFFERS, EINVAL]


def test_all_slots(machine, tmp_path, image):
    count = 8 if machine.name == "microvm" else 24
    disks = [arg for n in range(count) for arg in machine.disk(n, image(MIB, f"d{n}"))]
    text = " ".join(f"w {n} 0 4096 {n}" for n in range(count)) + " " + \
        " ".join(f"r {n} 0 4096 {n}" for n in range(count)) + \
        f" m 2 {count - 1} 65536 4096 1 M 2 {count - 1} 65536 4096 1"
    assert script(machine, tmp_path, text, *disks) == [0] * (2 * count + 2)


def test_capacity_change(machine, tmp_path, image):
    path = image(MIB)
    with Vm(machine, "blkio", f"c 0 w 0 {MIB} 4096 1 g 0 {3 * MIB} w 0 {3 * MIB - 4096} 4096 1 "
            f"r 0 {3 * MIB - 4096} 4096 1 n 0 {MIB} {MIB} w 0 {3 * MIB} 4096 1 f 0", tmp_path,
            *machine.disk(0, path)) as vm:
        assert vm.line() == str(MIB)
        assert vm.line() == str(EINVAL)
        assert vm.qmp("block_resize", **{"node-name": "f0", "size": 3 * MIB}) == {"return": {}}
        assert [vm.line() for _ in range(6)] == [str(3 * MIB), "0", "0", "0", str(EINVAL), "0"]
        assert vm.process.wait(TIMEOUT) == 1
    assert path.stat().st_size == 3 * MIB


@pytest.mark.parametrize("op,answers", [("write", [EIO, 0, 0]), ("flush", [0, 0, EIO])])
def test_device_errors(machine, tmp_path, image, op, answers):
    rule = {"event": "none" if op == "write" else "flush_to_disk", "iotype": op, "errno": 5,
            "once": True}
    file = {"driver": "file", "node-name": "p0", "filename": str(image(MIB))}
    debug = {"driver": "blkdebug", "node-name": "d0", "image": "p0", "inject-error": [rule]}
    raw = {"driver": "raw", "node-name": "r0", "file": "d0"}
    nodes = [x for n in (file, debug, raw) for x in ("-blockdev", json.dumps(n))]
    assert script(machine, tmp_path, "w 0 0 4096 1 w 0 0 4096 1 f 0", *nodes,
                  *machine.device(0, "r0", ",werror=report,rerror=report")) == answers


def test_error_in_a_batch(machine, tmp_path, image):
    """One failing request fails the batch; the others are done."""
    path = image(MIB, "a")
    rule = {"event": "none", "iotype": "write", "errno": 5, "sector": 16, "once": False}
    nodes = [{"driver": "file", "node-name": "p0", "filename": str(path)},
             {"driver": "blkdebug", "node-name": "d0", "image": "p0", "inject-error": [rule]}]
    args = [x for n in nodes for x in ("-blockdev", json.dumps(n))]
    # Every other request goes to disk 1, so that QEMU does not merge those of disk 0.
    assert script(machine, tmp_path, "m 0 1 0 4096 1 f 0", *args,
                  *machine.device(0, "d0", ",werror=report"),
                  *machine.disk(1, image(MIB, "b"))) == [EIO, 0]
    data = path.read_bytes()
    blocks = [any(data[i:i + 4096]) for i in range(0, 16 * 4096, 4096)]
    assert blocks == [i % 2 == 0 and i != 2 for i in range(16)]


def test_legacy_device_is_refused(machine, tmp_path, image):
    args = machine.disk(0, image(MIB))
    if machine.name == "microvm":
        args += ["-global", "virtio-mmio.force-legacy=true"]
    else:
        args[-1] = args[-1].replace("disable-legacy=on", "disable-legacy=off,disable-modern=on")
    assert script(machine, tmp_path, "p 0 c 0", *args) == [0, 0]


# ---- virtio-pci alone ----

@pytest.mark.parametrize("name", ["pc-seabios", "q35-seabios"])
def test_firmware_that_assigns_bars(tmp_path, image, name):
    """SeaBIOS gives BARs to every device, and has used the disks itself."""
    m = make_machine(name, "tcg")
    others = ["-device", "VGA,addr=2", "-device", "e1000,addr=3", "-device",
              "virtio-rng-pci,disable-legacy=on,addr=1c"]
    assert script(m, tmp_path, "w 0 0 65536 1 w 23 0 65536 2 r 0 0 65536 1 r 23 0 65536 2 f 0",
                  *others, *m.disk(0, image(MIB, "a")), *m.disk(23, image(MIB, "b"))) == [0] * 5


@pytest.mark.parametrize("name", ["pc-seabios", "q35-seabios"])
def test_a_tick_of_the_firmware(tmp_path, image, name):
    """On a busy machine the timer that SeaBIOS has left running ticks before the first wait."""
    m = make_machine(name, "tcg")
    module = write_module(tmp_path, "f 0 f 0")
    vms = [subprocess.Popen(argv(m, "blkio", "-serial", "stdio", *m.disk(0, image(MIB, str(i))),
                                 module=module), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE) for i in range(12)]
    assert [(vm.communicate(timeout=TIMEOUT)[0], vm.returncode) for vm in vms] == \
        [(b"0\n0\n", 1)] * 12


@pytest.mark.parametrize("device", [
    "virtio-rng-pci,disable-legacy=on,addr=4", "e1000,addr=4", "pcie-root-port,addr=4",
    # Of a block device: at another function; its BAR too large; its notifications in I/O space.
    "virtio-blk-pci,drive=f0,disable-legacy=on,addr=4.1",
    "virtio-blk-pci,drive=f0,disable-legacy=on,addr=4,page-per-vq=on",
    "virtio-blk-pci,drive=f0,disable-legacy=on,addr=4,modern-pio-notify=on"])
def test_what_is_no_disk(tmp_path, image, device):
    m = make_machine("q35", "tcg")
    assert script(m, tmp_path, "p 0 c 0 f 0", *m.disk(0, image(MIB))[:2], "-device", device
                  ) == [0, 0, ENODEV]


def test_slow_device(machine, tmp_path, image):
    """A device that takes its time is waited for, without burning the host's CPU."""
    nodes = machine.disk(0, image(MIB))
    nodes[1] = nodes[1].replace("node-name=f0", "node-name=p0")
    nodes[2:2] = ["-object", "throttle-group,id=t0,x-iops-total=8", "-blockdev",
                  "driver=throttle,node-name=f0,file=p0,throttle-group=t0"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    assert script(machine, tmp_path, "w 0 0 4096 1 r 0 0 4096 1 " * 8, *nodes) == [0] * 16
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert time.monotonic() - start > 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7
