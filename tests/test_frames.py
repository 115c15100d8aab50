# SPDX-License-Identifier: MIT
"""The contract by hand: QEMU without the launcher, a Request as its initrd, the serial port's bytes
decoded by the stock protobuf package. So nanopb and the launcher's own decoder are checked by
someone else.
"""
import os
import socket
import subprocess
import time

import pytest

from conftest import (IMAGES, QEMU, ROOT, TIMEOUT, copy, create, frames, host, outcome, qemu_io,
                      resize_request, sha256)

MI, GI = 1 << 20, 1 << 30
EXIT_FAULT = 125 * 2 + 1


def read_slowly(args):
    """The bytes of a serial port whose peer hardly keeps up, and QEMU's status."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
    args = [f"socket,id=s,fd={theirs.fileno()}" if a == "CHARDEV" else a for a in args]
    p = subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL,
                         pass_fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(TIMEOUT)
    data = b""
    while part := ours.recv(8):
        data += part
        time.sleep(0.003)
    return data, p.wait(timeout=TIMEOUT)


def boot(accel, op, request, tmp_path, *disks, block=512, writable=True, slowly=False, memory=128):
    """Runs images/OP.elf to its end: its Events."""
    module = tmp_path / "request.bin"
    module.write_bytes(request if isinstance(request, bytes) else request.SerializeToString())
    cpu = {"tcg": "max", "kvm": "max,arch-capabilities=off"}[accel]
    args = [QEMU, "-M", "microvm,acpi=off", "-accel", accel, "-cpu", cpu, "-m", str(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-global", "virtio-mmio.force-legacy=false",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            *(["-chardev", "CHARDEV", "-serial", "chardev:s"] if slowly else ["-serial", "stdio"]),
            "-kernel", IMAGES / f"{op}.elf", "-initrd", module]
    for i, path in enumerate(disks):
        args += ["-blockdev", f"driver=file,node-name=d{i},filename={path},discard=unmap,"
                 f"read-only={'off' if writable else 'on'}",
                 "-device", f"virtio-blk-device,drive=d{i},bus=virtio-mmio-bus.{i},"
                 f"logical_block_size={block},physical_block_size={block}"]
    if slowly:
        data, status = read_slowly(args)
    else:
        p = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, timeout=TIMEOUT)
        data, status = p.stdout, p.returncode
    events = frames(data)
    if events[-1].WhichOneof("event") == "fault":
        assert status == EXIT_FAULT
        return events
    assert status == (1 if not outcome(events).HasField("error") else 3)
    return events


def pb2():
    import instar_pb2
    return instar_pb2


def test_noop(accel, tmp_path):
    request = pb2().Request()
    request.noop.SetInParent()
    events = boot(accel, "noop", request, tmp_path)
    assert outcome(events).WhichOneof("result") == "noop"
    assert outcome(events).noop.disks == 0 and not outcome(events).HasField("error")


def test_slow_reader_loses_nothing(accel, tmp_path):
    """QEMU drops what its UART still holds when it ends, so the kernel waits for that to be out."""
    request = pb2().Request()
    request.disks.add(length=MI)
    request.info.SetInParent()
    events = boot(accel, "info", request, tmp_path, slowly=True)
    assert outcome(events).error.code == pb2().READ_FAILED


def test_request_that_is_none(accel, tmp_path):
    events = boot(accel, "noop", b"\xff" * 40, tmp_path)
    assert outcome(events).error.code == pb2().PROTOCOL
    assert outcome(events).error.what and outcome(events).error.file and outcome(events).error.line


def test_assertion_that_does_not_hold(accel, tmp_path):
    """With less memory than the launcher gives: the text says where to look."""
    path = create(tmp_path / "a.qcow2", MI)
    events = boot(accel, "resize", resize_request(path, 2 * MI), tmp_path, path, memory=24)
    assert len(events) == 1 and events[0].WhichOneof("event") == "fault"
    fault = events[0].fault
    file, line, expression = fault.text.split(":")
    source = (ROOT / file).read_text().splitlines()
    assert source[int(line) - 1].strip() == f"assert({expression.strip()});"
    assert fault.rip and (fault.vector, fault.error_code, fault.cr2) == (0, 0, 0)


def test_disk_that_is_not_there(accel, tmp_path):
    request = pb2().Request()
    request.disks.add(length=MI)
    request.info.SetInParent()
    events = boot(accel, "info", request, tmp_path)
    assert outcome(events).error.code == pb2().READ_FAILED


def test_info(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", 5 * GI)
    request = pb2().Request()
    request.disks.add(length=os.stat(path).st_size)
    request.info.SetInParent()
    events = boot(accel, "info", request, tmp_path, path, writable=False)
    result = outcome(events).info
    assert (result.format, result.virtual_size, result.cluster_size) == ("qcow2", 5 * GI, 65536)
    assert result.probed
    facts = {f.key: getattr(f, f.WhichOneof("value")) for f in result.facts}
    assert facts["refcount bits"] == 16 and facts["compat"] == "1.1"


@pytest.mark.parametrize("block", [512, 4096])
def test_grow_that_needs_no_room(accel, tmp_path, block):
    """HEADER_ONLY, for which nothing must be granted; the same file as from the host build."""
    path = create(tmp_path / "a.qcow2", MI)
    qemu_io(path, "write -P 7 0 64k")
    os.truncate(path, (os.stat(path).st_size + 4095) // 4096 * 4096)
    twin = copy(path, "twin.qcow2")
    events = boot(accel, "resize", resize_request(path, 3 * MI), tmp_path, path, block=block)
    result = outcome(events).resize
    assert (result.action, result.old_virtual_size, result.resolved_new_virtual_size) == (
        "grow", MI, 3 * MI)
    assert result.file_size_before == result.file_size_after == os.stat(path).st_size
    status, by_host = host("resize", resize_request(twin, 3 * MI), twin, tmp_path)
    assert status == 0 and by_host[-1] == events[-1]
    assert sha256(path) == sha256(twin)


def test_dry_run(accel, tmp_path):
    """The plan as a stream of patches; nothing is written, nothing asked for."""
    path = create(tmp_path / "a.qcow2", GI, "cluster_size=4k")
    digest = sha256(path)
    request = resize_request(path, 3 * GI, dry_run=True)
    events = boot(accel, "resize", request, tmp_path, path, writable=False)
    patches = [e.patch for e in events if e.WhichOneof("event") == "patch"]
    assert len(patches) > 4 and all(p.why for p in patches)
    commits = [p for p in patches if p.commit]
    assert len(commits) == 1
    assert commits[0].off // 512 == (commits[0].off + commits[0].len - 1) // 512
    assert commits[0].data[:8] == (3 * GI).to_bytes(8, "big") and commits[0].off == 24
    assert patches[-1].kind == pb2().BARRIER
    assert not any(e.WhichOneof("event") == "need" for e in events)
    assert sha256(path) == digest
    # and it is the plan of the host build, patch by patch
    status, by_host = host("resize", request, path, tmp_path)
    assert status == 0 and by_host == events
    assert sha256(path) == digest


def test_refusal_is_an_outcome(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    digest = sha256(path)
    events = boot(accel, "resize", resize_request(path, 512 * 1024), tmp_path, path)
    o = outcome(events)
    assert o.error.code == pb2().SHRINK_WITHOUT_FLAG == o.resize.error
    assert o.error.what == "Use the --shrink option to perform a shrink operation."
    assert sha256(path) == digest
