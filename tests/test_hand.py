# SPDX-License-Identifier: MIT
"""By hand: --print-qemu prints what works when it is pasted into a shell, and starts nothing;
decode prints what came out of the serial port, whatever that is.
"""
import json
import os
import socket
import subprocess

import pytest

from conftest import LAUNCH, ROOT, create, info, qemu_img, run

import launching
from fakeqemu import frame


def decode(data):
    """(status, the objects, stderr)."""
    p = subprocess.run([LAUNCH, "decode"], input=data, capture_output=True,
                       timeout=launching.TIMEOUT)
    return p.returncode, [json.loads(line) for line in p.stdout.splitlines()], p.stderr.decode()


def script(tmp_path, *words, **kw):
    """What --print-qemu prints, in the directory of the image."""
    p = run(LAUNCH, *words, "--print-qemu=by,hand", cwd=tmp_path, check=True, **kw)
    assert p.stderr == ""
    return p.stdout


@pytest.mark.parametrize("machine", ["microvm", "q35", "pc"])
@pytest.mark.parametrize("name", ["disk.qcow2", "it's, a $(disk) *\\.qcow2"])
def test_info(tmp_path, name, machine):
    create(tmp_path / "x", "20G")
    os.rename(tmp_path / "x", tmp_path / name)
    text = script(tmp_path, "info", name, "--accel=tcg", "--machine", machine)
    assert sorted(os.listdir(tmp_path / "by,hand")) == ["request.bin"]
    p = run("sh", "-c", text, cwd=tmp_path)
    assert (p.returncode, p.stderr) == (1, "")  # twice the guest's, plus 1
    status, events, err = decode((tmp_path / "by,hand/serial.bin").read_bytes())
    assert (status, err, len(events)) == (0, "", 1)
    facts = events[0]["outcome"]["info"]
    assert facts["format"] == "qcow2" and facts["virtual_size"] == 20 << 30


class Qemu:
    """The script at work, and its channels."""

    def __init__(self, tmp_path, text):
        self.dir = tmp_path / "by,hand"
        self.process = subprocess.Popen(["sh", "-c", text], cwd=tmp_path, stdin=subprocess.DEVNULL)

    def event(self, name):
        def there():
            try:
                events = decode((self.dir / "serial.bin").read_bytes())[1]
            except FileNotFoundError:
                return []
            return [e[name] for e in events if name in e]
        launching.until(there)
        return there()[0]

    def connect(self, name):
        s = socket.socket(socket.AF_UNIX)
        os.chdir(self.dir)  # their names are short
        s.connect(name)
        return s


def test_resize_granted_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = create(tmp_path / "disk.qcow2", "20G")
    text = script(tmp_path, "resize", image, "+5G", "--accel=tcg")
    assert "socat" in text and "file_size_after" in text
    qemu = Qemu(tmp_path, text)
    need = qemu.event("need")
    assert need == {"epoch": 0, "lengths": [{"slot": 0, "length": 262144}]}
    with qemu.connect("qmp.sock") as qmp, qemu.connect("serial.sock") as serial:
        answers = qmp.makefile("r")
        for command in ({"execute": "qmp_capabilities"},
                        {"execute": "block_resize", "arguments": {"node-name": "f0",
                                                                  "size": 262144}}):
            qmp.sendall(json.dumps(command).encode())
            while "return" not in (answer := json.loads(answers.readline())):
                assert "error" not in answer
        serial.sendall(b"\0")
        assert qemu.process.wait(timeout=launching.TIMEOUT) == 1
    result = qemu.event("outcome")["resize"]
    assert result["file_size_after"] == 262144 == os.stat(image).st_size
    assert info(image)["virtual-size"] == 25 << 30
    assert qemu_img("check", image).returncode == 0


def test_dry_run_by_hand(tmp_path):
    create(tmp_path / "disk.qcow2", "20G").chmod(0o444)
    text = script(tmp_path, "resize", "disk.qcow2", "+5G", "--dry-run", "--accel=tcg")
    assert "read-only=on" in text and "socat" not in text
    assert run("sh", "-c", text, cwd=tmp_path).returncode == 1
    status, events, _ = decode((tmp_path / "by,hand/serial.bin").read_bytes())
    plan = json.loads(run(LAUNCH, "resize", "disk.qcow2", "+5G", "--dry-run", "--output=json",
                          cwd=tmp_path, check=True).stdout)["plan"]
    assert status == 0 and [e["patch"] for e in events[:-1]] == plan


def test_gdb(tmp_path):
    create(tmp_path / "disk.qcow2", "1G")
    text = script(tmp_path, "info", "disk.qcow2", "--gdb")
    assert " -s \\\n    -S\n" in text
    assert "gdb %s -ex" % (ROOT / "build/guest/info.elf") in text
    p = run(LAUNCH, "info", "disk.qcow2", "--gdb", cwd=tmp_path)
    assert p.returncode == 1 and "--gdb goes with --print-qemu" in p.stderr


def test_nothing_is_started(tmp_path):
    fakes = launching.Fakes(tmp_path)
    image = fakes.image()
    before = os.stat(image).st_mtime_ns, launching.digest(image)
    result = fakes.run("ok", "resize", image.name, "+1G", "--print-qemu", "d", "--output=json")
    assert result.returncode == 0 and str(launching.FAKE).encode() in result.stdout
    assert (os.stat(image).st_mtime_ns, launching.digest(image)) == before
    assert fakes.reports() == []


@pytest.mark.parametrize("where, why", [
    ("a b", "short name without spaces"), ("a\nb", "short name"), ("x" * 100, "short name"),
    ("", "No such file or directory"), ("no/such", "No such file or directory"),
    ("disk.qcow2", "Not a directory")])
def test_directories_that_will_not_do(where, why, tmp_path):
    create(tmp_path / "disk.qcow2", "1G")
    p = run(LAUNCH, "info", "disk.qcow2", "--print-qemu", where, cwd=tmp_path)
    assert p.returncode == 1 and p.stdout == "" and why in p.stderr


# ---- decode ----


def event(**what):
    import instar_pb2
    return frame(instar_pb2.Event(**what).SerializeToString())


def every_event():
    import instar_pb2 as pb
    result = pb.ResizeResult(target_format="qcow2", action="grow", old_virtual_size=1,
                             resolved_new_virtual_size=2, file_size_before=3, file_size_after=4)
    return [
        (event(log=pb.Log(text="\x1b \"hi\"\n")), {"log": {"text": "\x1b \"hi\"\n"}}),
        (event(progress=pb.Progress(requests=1, total=3)),
         {"progress": {"requests": 1, "done": 0, "total": 3}}),
        (event(patch=pb.Patch(kind=1, off=24, len=2, data=b"\0\xff", why="w", commit=True)),
         {"patch": {"kind": "write", "epoch": 0, "slot": 0, "offset": 24, "length": 2,
                    "data": "00ff", "commit": True, "why": "w"}}),
        (event(extent=pb.Extent(kind=3, voff=1, len=2, off=3, depth=1)),
         {"extent": {"kind": 3, "voff": 1, "len": 2, "slot": 0, "off": 3, "depth": 1}}),
        (event(need=pb.Need(epoch=2, lengths=[pb.NeedLength(slot=1, length=5)])),
         {"need": {"epoch": 2, "lengths": [{"slot": 1, "length": 5}]}}),
        (event(fault=pb.Fault(vector=14, error_code=7, rip=1 << 63, text="a.c:1: x")),
         {"fault": {"vector": 14, "error_code": 7, "rip": 1 << 63, "cr2": 0, "text": "a.c:1: x"}}),
        (event(outcome=pb.Outcome(error=pb.Error(code=12, what="no {name}", name=b"\xff\n",
                                                 off=1))),
         {"outcome": {"error": {"code": "PARSE_FAILED", "what": "no {name}", "off": 1,
                                "name": "\\xff\n"}}}),
        (event(outcome=pb.Outcome(need_file=pb.NeedFile(name=b"b", format="raw", slot=1,
                                                       role="ROLE_BACKING"))),
         {"outcome": {"need_file": {"name": "b", "format": "raw", "slot": 1, "role": 1}}}),
        (event(outcome=pb.Outcome(need_file=pb.NeedFile(name=b"b", role="ROLE_DATA",
                                                        writable=True))),
         {"outcome": {"need_file": {"name": "b", "slot": 0, "role": 2, "writable": True}}}),
        (event(outcome=pb.Outcome(noop=pb.NoopResult(disks=2))),
         {"outcome": {"noop": {"disks": 2}}}),
        (event(outcome=pb.Outcome(resize=result)),
         {"outcome": {"resize": {
             "target_format": "qcow2", "action": "grow", "old_virtual_size": 1,
             "resolved_new_virtual_size": 2, "file_size_before": 3, "file_size_after": 4,
             "probed": False}}}),
        (event(outcome=pb.Outcome(info=pb.InfoResult(
            format="qcow2", virtual_size=9, backing_name=b"b", dirty=True,
            facts=[pb.Fact(key="k 1", text="t"), pb.Fact(key="n", number=7),
                   pb.Fact(key="f", flag=True)]))),
         {"outcome": {"info": {
             "format": "qcow2", "virtual_size": 9, "backing_name": "b", "encrypted": False,
             "dirty": True, "corrupt": False, "probed": False,
             "facts": {"k-1": "t", "n": 7, "f": True}}}}),
    ]


def test_decode_every_event():
    events = every_event()
    data = b"".join(e for e, _ in events)
    assert decode(data) == (0, [shown for _, shown in events], "")
    assert decode(data * 500) == (0, [shown for _, shown in events] * 500, "")
    assert decode(b"") == (0, [], "")


NO_FRAME = "The VM sent bytes that are no frame"


def test_decode_garbage():
    good, shown = every_event()[0]
    n = len(good)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    for data, reports in (
            (b"SeaBIOS (version I)\r\n" + good, [(0, NO_FRAME)]),
            (good + b"\0" * 99999 + good, [(n, NO_FRAME)]),
            (good + bad + good, [(n, "The VM sent a frame with a wrong checksum")]),
            (good + frame(b"", length=1 << 30), [(n, "The VM sent a frame that is too long")]),
            (good + frame(b"\xfa\x01\x00"),
             [(n, "The VM sent a frame that holds no event of the contract")]),
            (good + good[:-1], [(n, "The last frame is cut off")]),
            (good + b"I", [(n, "The last frame is cut off")]),
            (b"x" + good + b"y" + good, [(0, NO_FRAME), (n + 1, NO_FRAME)])):
        status, events, err = decode(data)
        assert status == 1
        assert err == "instar-launch: %s\n" % "\n".join("At offset %d: %s" % r for r in reports)
        assert events == [shown] * data.count(good)
    status, events, err = decode((b"x" + good) * 1000)
    assert len(events) == 1000 and len(err.splitlines()) == 21 and err.endswith("And so on.\n")


def test_decode_takes_no_operands():
    p = run(LAUNCH, "decode", "file")
    assert p.returncode == 1 and "frames are read from stdin" in p.stderr
    assert "unrecognized option '--accel=tcg'" in run(LAUNCH, "decode", "--accel=tcg").stderr
    text = run(LAUNCH, "decode", "--help").stdout
    assert "--accel" not in text and "-h, --help" in text
