# SPDX-License-Identifier: MIT
"""The operations' kernels on every machine, without the launcher: disks on virtio-mmio and on
virtio-pci, firmware of several kinds, GRUB; and images/README.md, whose commands are run as they
stand there.
"""
import functools
import json
import os
import re
import shutil
import socket
import subprocess

import pytest

from conftest import (IMAGES, ROOT, TIMEOUT, check_status, create, frames, info, outcome,
                      resize_request, run)
from test_kernel import GUESTS, MIB, Vm, make_machine, run as run_guest
from test_kernel import guests, image, machine  # noqa: F401 (fixtures)

GI = 1 << 30


# ---- the operations ----


def request(op, *lengths):
    import instar_pb2
    r = instar_pb2.Request()
    for n in lengths:
        r.disks.add(length=n)
    getattr(r, op).SetInParent()
    return r.SerializeToString()


def boot(machine, op, content, tmp_path, *extra, status=1):
    p = run_guest(machine, IMAGES / f"{op}.elf", *extra, text=content, tmp_path=tmp_path)
    assert p[0] == status
    return outcome(frames(p[1]))


def test_noop(machine, tmp_path, image):
    disks = [arg for n in range(8) for arg in machine.disk(n, image(MIB, f"d{n}"))]
    out = boot(machine, "noop", request("noop", *[MIB] * 8), tmp_path, *disks)
    assert out.noop.disks == 8 and not out.HasField("error")


def test_info(machine, tmp_path):
    path = create(tmp_path / "a.qcow2", GI)
    out = boot(machine, "info", request("info", os.stat(path).st_size), tmp_path,
               *machine.disk(0, path, node=",read-only=on"))
    assert (out.info.format, out.info.virtual_size) == ("qcow2", GI)


def test_disk_that_is_missing(machine, tmp_path, image):
    out = boot(machine, "noop", request("noop", MIB, MIB), tmp_path,
               *machine.disk(0, image(MIB)), status=3)
    assert (out.error.code, out.error.val) == (16, 1) and "not attached" in out.error.what


@pytest.mark.parametrize("block", [512, 4096])
def test_resize(machine, tmp_path, block):
    """Room by QMP, the grant by one byte. Blocks of 4096 bytes: of a file that ends with one."""
    path = create(tmp_path / "a.qcow2", 20 * GI)
    os.truncate(path, (os.stat(path).st_size + block - 1) // block * block)
    content = resize_request(path, 5 * GI, kind="PLUS").SerializeToString()
    sizes = f",logical_block_size={block},physical_block_size={block}"
    with Vm(machine, IMAGES / "resize.elf", content, tmp_path, *machine.disk(0, path, sizes)) as vm:
        said = vm.frame()
        need, = frames(said)
        assert need.need.epoch == 0 and need.need.lengths[0].slot == 0
        length = need.need.lengths[0].length
        assert vm.qmp("block_resize", **{"node-name": "f0", "size": length}) == {"return": {}}
        vm.serial.sendall(b"\0")
        out = outcome(frames(vm.frame()))
        assert vm.process.wait(TIMEOUT) == 1
    assert out.resize.action == "grow" and out.resize.file_size_after == length
    assert info(path)["virtual-size"] == 25 * GI and check_status(path) == 0


# ---- firmware and loaders ----


def grub_iso(tmp_path, elf, content):
    """A disc that boots the kernel with the content as its module."""
    boot_dir = tmp_path / "iso" / "boot"
    (boot_dir / "grub").mkdir(parents=True)
    shutil.copy(elf, boot_dir / "x.elf")
    (boot_dir / "module").write_bytes(content)
    (boot_dir / "grub" / "grub.cfg").write_text(
        "multiboot /boot/x.elf\nmodule /boot/module\nboot\n")
    r = subprocess.run(["grub-mkrescue", "-o", tmp_path / "x.iso", tmp_path / "iso"],
                       capture_output=True, timeout=120)
    assert r.returncode == 0, r.stderr.decode()[-500:]
    return tmp_path / "x.iso"


needs_grub = pytest.mark.skipif(
    not (shutil.which("grub-mkrescue") and shutil.which("xorriso") and shutil.which("mformat") and
         os.path.isdir("/usr/lib/grub/i386-pc")), reason="grub-mkrescue cannot work here")


@needs_grub
@pytest.mark.parametrize("name", ["pc-seabios", "q35-seabios"])
def test_boots_from_grub(tmp_path, image, name):
    """Modules and tables elsewhere; a timer that ticks behind the 8259; BARs assigned."""
    m = make_machine(name, "tcg")
    script = "t 300 w 0 0 65536 1 r 0 0 65536 1 a l"
    iso = grub_iso(tmp_path, GUESTS / "blkio.elf", script.encode())
    p = subprocess.run(m.argv("-cdrom", str(iso), "-serial", "stdio", *m.disk(0, image(MIB))),
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120)
    assert p.returncode == 1
    ch, wrote, read, mib, locked = [int(x) for x in p.stdout.split()[-5:]]
    assert (ch, wrote, read, locked) == (2**64 - 1, 0, 0, 1) and 120 <= mib <= 128


# ---- images/README.md ----


@pytest.fixture
def tree(tmp_path):
    """As much of the source tree as its commands need, with a build/ of its own."""
    (tmp_path / "build").mkdir()
    for name in ("images", "ops", "build/instar-launch", "build/guest"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@functools.cache
def blocks(title):
    """The commands of one section, block by block."""
    text = (ROOT / "images" / "README.md").read_text()
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)


def type_in(tree, *commands, status=None):
    """As somebody would, with TCG: what it wrote to its standard output."""
    p = subprocess.run(["bash", "-c", "".join(commands)], cwd=tree, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, text=True)
    assert status is None or p.returncode == status, p.stderr
    return p.stdout


def serial(tree, name="serial.bin"):
    return frames((tree / "build" / name).read_bytes())


def test_readme_info(tree):
    create_, boot_, decode, protoc, q35 = blocks("Running an operation by hand")
    assert "status 1" in type_in(tree, create_, boot_)
    assert outcome(serial(tree)).info.virtual_size == 20 * GI
    assert "virtual_size: 21474836480" in type_in(tree, protoc, status=0)
    if can_decode():
        assert json.loads(type_in(tree, decode, status=0).splitlines()[0])
    make_machine("q35", "tcg")
    type_in(tree, q35, status=0)


def test_readme_grant(tree):
    first, second = blocks("Granting by hand")
    said = type_in(tree, blocks("Running an operation by hand")[0], first, second, status=0)
    events = serial(tree)
    assert [e.WhichOneof("event") for e in events] == ["need", "outcome"]
    assert events[0].need.lengths[0].length == 262144
    assert "virtual size: 25 GiB" in said and "No errors" in said


@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_readme_gdb(tree):
    create_, boot_ = blocks("Running an operation by hand")[:2]
    qemu, gdb, _ = blocks("gdb")
    port = free_port()
    qemu = qemu.rstrip().replace("-s -S", f"-gdb tcp::{port} -S") + " &\n"
    gdb = gdb.rstrip().replace(":1234", f":{port}") + " -batch -ex 'p module_len' -ex kill\n"
    said = type_in(tree, create_, boot_, qemu, "sleep 2\n", gdb, "wait\n")
    assert "Breakpoint 1, kernel_main (" in said and "$1 = " in said


@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_make_gdb(tmp_path):
    path = create(tmp_path / "a.qcow2", GI)
    before = path.read_bytes()
    p = subprocess.run(["make", "-s", "gdb-info", f"IMAGE={path}"], cwd=ROOT, text=True,
                       input="bt\ncontinue\nquit\n", stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=120)
    assert "Breakpoint 1, kernel_main (" in p.stdout and "kernel_start (" in p.stdout
    assert outcome(serial(ROOT, "gdb.serial")).info.virtual_size == GI
    assert path.read_bytes() == before


@needs_grub
def test_readme_disc(tree):
    create_, boot_ = blocks("Running an operation by hand")[:2]
    type_in(tree, create_, boot_)
    (tree / "build" / "serial.bin").unlink()
    disc, = blocks("From a disc")
    type_in(tree, disc)
    assert outcome(serial(tree)).info.virtual_size == 20 * GI


def can_decode():
    return run(ROOT / "build" / "instar-launch", "decode").stderr.find("Command not found") < 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
