#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A QEMU that is none, for tests of the launcher.

It is started as QEMU is and finds its channels on its command line. What it does is a function
below, named by $FAKE_MODE. Into the fifo $FAKE_REPORT it writes a line of JSON: its pid, and if
$FAKE_RECORD is set, what it was given (argv, the decoded Request, descriptors, limits). Frames are
made by the stock protobuf package, so that nanopb is checked independently.
"""
import json
import mmap
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../build/gen"))

MAGIC = 0x52545349


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(payload, length=None, crc=None):
    """A frame around the payload; `length` and `crc` lie, if given."""
    body = struct.pack("<I", len(payload) if length is None else length) + payload
    return struct.pack("<I", MAGIC) + body + struct.pack("<I", crc32c(body) if crc is None else crc)


class Fake:
    def __init__(self, argv):
        self.argv = argv
        line = " ".join(argv)
        self.serial = self.channel(line, "serial")
        self.control = self.channel(line, "control")
        self.disks = {int(n): int(fd) for fd, n in re.findall(r"fd=(\d+),set=(\d+)", line)}
        self.kvm = "-accel kvm" in line
        with open(argv[argv.index("-initrd") + 1], "rb") as f:
            self.module = f.read()
        self.qmp_error = None  # what block_resize answers, instead of doing it
        self.said = b""

    @staticmethod
    def channel(line, name):
        fd = int(re.search(r"socket,id=%s,fd=(\d+)" % name, line).group(1))
        return socket.socket(fileno=fd)

    # The protobuf package takes longest to load: only where it is used.
    @property
    def pb(self):
        import instar_pb2
        return instar_pb2

    @property
    def request(self):
        return self.pb.Request.FromString(self.module)

    def record(self):
        from google.protobuf import json_format
        return {"argv": self.argv, "sid": os.getsid(0),
                "request": json_format.MessageToDict(self.request),
                "fds": sorted(map(int, os.listdir("/proc/self/fd"))),
                "no_new_privs": "NoNewPrivs:\t1" in open("/proc/self/status").read(),
                "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
                "core": resource.getrlimit(resource.RLIMIT_CORE),
                "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])]}

    def send(self, **event):
        self.serial.sendall(frame(self.pb.Event(**event).SerializeToString()))

    def need(self, epoch, *lengths):
        pb = self.pb
        self.send(need=pb.Need(epoch=epoch, lengths=[pb.NeedLength(slot=s, length=n)
                                                     for s, n in lengths]))

    def granted(self):
        """Serves QMP until the byte of a grant comes; returns that byte."""
        self.control.sendall(b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n')
        while True:
            for ready in select.select([self.serial, self.control], [], [])[0]:
                data = ready.recv(4096)
                if not data:
                    sys.exit(1)
                if ready is self.serial:
                    return data[0]
                self.said += data
                while b"\n" in self.said:
                    line, self.said = self.said.split(b"\n", 1)
                    self.answer(json.loads(line))

    def answer(self, command):
        self.control.sendall(b'{"timestamp": {"seconds": 1}, "event": "NOISE", "data": {}}\r\n')
        reply = {"return": {}}
        if command["execute"] == "block_resize":
            size = (command["arguments"]["size"] + 511) // 512 * 512
            if self.qmp_error:
                reply = {"error": {"class": "GenericError", "desc": self.qmp_error}}
            else:
                os.ftruncate(self.disks[int(command["arguments"]["node-name"][1:])], size)
        self.control.sendall(json.dumps(reply).encode() + b"\r\n")

    def resize_result(self, **other):
        """A grow by what was asked for, from 1 GiB, of a file that stays as long as it is."""
        asked = self.request.resize
        length = self.request.disks[0].length
        old = 1 << 30
        fields = {"target_format": "qcow2", "old_virtual_size": old, "action": "grow",
                  "resolved_new_virtual_size": old * (asked.kind == 1) + asked.size,
                  "file_size_before": length, "file_size_after": length}
        fields.update(other)
        return self.pb.ResizeResult(**fields)

    def rebase_result(self, **other):
        """Of a file that stays as long as it is."""
        length = self.request.disks[0].length
        fields = {"overlay_format": "qcow2", "mode": "unsafe" if self.request.rebase.unsafe else
                  "safe", "file_size_before": length, "file_size_after": length}
        fields.update(other)
        return self.pb.RebaseResult(**fields)

    def file_length(self, slot, length):
        return self.pb.FileLength(slot=slot, length=length)

    def need_file(self, name, role="ROLE_BACKING", **other):
        name = name.encode() if isinstance(name, str) else name
        self.send(outcome=self.pb.Outcome(
            need_file=self.pb.NeedFile(name=name, role=role, **other)))

    def done(self, **other):
        op = self.request.WhichOneof("op")
        pb = self.pb
        if op == "resize":
            outcome = pb.Outcome(resize=self.resize_result(**other))
        elif op == "rebase":
            outcome = pb.Outcome(rebase=self.rebase_result(**other))
        elif op == "info":
            outcome = pb.Outcome(info=pb.InfoResult(**(other or {"format": "raw"})))
        else:
            outcome = pb.Outcome(noop=pb.NoopResult(disks=len(self.request.disks)))
        self.send(outcome=outcome)

    def fail(self, code, what="", **other):
        self.send(outcome=self.pb.Outcome(error=self.pb.Error(code=code, what=what, **other)))


# ---- modes: each what one QEMU, or the guest in it, does ----


def ok(f):
    f.done()


def grows(f):
    """Asks for room, writes into it, and gives back what it does not need."""
    length = f.request.disks[0].length
    f.need(259, (0, length + 100000))
    if f.granted() != 259 & 255:
        f.fail("PROTOCOL", "wrong grant")
    os.pwrite(f.disks[0], b"new", length)
    f.done(file_size_after=length + 65536)


def needs_nothing_new(f):
    f.need(1, (0, 1))
    f.granted()
    f.done()


def grows_then_dies(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()
    os.pwrite(f.disks[0], b"new", f.request.disks[0].length)
    sys.exit(3)


def grows_then_refuses(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()
    f.fail("HEADER_MISMATCH", "the image changed")


def resize_fails(f):
    f.qmp_error = "Could not resize file: No space left on device"
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()


def resize_half_done(f):
    """The file was made longer, and yet it failed."""
    f.qmp_error = "oops"
    length = f.request.disks[0].length + 65536
    os.ftruncate(f.disks[0], length)
    f.need(1, (0, length))
    f.granted()


PATCHES = [
    {"kind": 0, "len": 262144, "why": "room"},
    {"kind": 1, "off": 24, "len": 4, "data": b"\x00\x01\xfe\xff", "commit": True, "why": "size"},
    {"kind": 1, "off": 1 << 50, "len": 1 << 20, "why": "too long to show", "epoch": 1},
    {"kind": 2, "off": 65536, "len": 512, "may_unmap": True, "why": "tail"},
    {"kind": 3, "off": 131072, "len": 65536, "from_off": 196608, "why": "moved"},
    {"kind": 4, "off": 1, "len": 2, "why": "garbage"}, {"kind": 5, "off": 3, "len": 4, "why": "x"},
    {"kind": 6, "why": "durable"},
]


def plans(f):
    """What a guest does when Request.dry_run is set."""
    for p in PATCHES:
        f.send(patch=f.pb.Patch(**p))
    f.done(file_size_after=262144)


def plans_nothing(f):
    f.done(action="noop")


def plans_more_than_may_be(f):
    f.send(patch=f.pb.Patch(**PATCHES[0]))
    f.done(file_size_after=1 << 50)


def plans_and_refuses(f):
    f.send(patch=f.pb.Patch(**PATCHES[0]))
    f.fail("INCONSISTENT", "half way")


def plans_and_hangs(f):
    f.send(patch=f.pb.Patch(**PATCHES[0]))
    time.sleep(60)


def plans_garbage(f):
    f.send(patch=f.pb.Patch(**PATCHES[0]))
    f.serial.sendall(b"nonsense")
    time.sleep(60)


def plans_strange_things(f):
    f.send(patch=f.pb.Patch(kind=1, off=(1 << 64) - 1, len=(1 << 64) - 1, epoch=(1 << 32) - 1,
                            data=b"\x1b" * 64, why="\x1b[2J\n\"", slot=9))
    f.done()


def plans_without_end(f):
    data = frame(f.pb.Event(patch=f.pb.Patch(**PATCHES[1])).SerializeToString()) * 100
    for _ in range(2000):
        f.serial.sendall(data)
    f.done()


def unknown_kind_of_patch(f):
    f.send(patch=f.pb.Patch(kind=7))
    time.sleep(60)


def needs_in_a_dry_run(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()
    f.done()


def lacks(f, *machines):
    """A QEMU without these machines, as it says so."""
    name = f.argv[f.argv.index("-M") + 1].split(",")[0]
    if name in machines:
        sys.exit("qemu-system-x86_64: unsupported machine type\n"
                 "Use -machine help to list supported machines")
    if "-bios" in f.argv and "qboot" in machines:
        sys.exit("qemu: could not load PC BIOS 'qboot.rom'")
    if "hpet=off" in " ".join(f.argv) and "hpet" in machines:
        sys.exit("qemu-system-x86_64: Property 'pc-q35-rhel9.2.0-machine.hpet' not found")
    f.done()


def lacks_microvm(f):
    lacks(f, "microvm")


def lacks_microvm_and_q35(f):
    lacks(f, "microvm", "q35")


def lacks_microvm_and_qboot(f):
    if "microvm" in " ".join(f.argv):
        sys.exit("qemu: could not load PC BIOS 'qboot.rom'")
    lacks(f, "qboot")


def lacks_microvm_and_hpet(f):
    lacks(f, "microvm", "hpet")


def lacks_all(f):
    lacks(f, "microvm", "q35", "pc")


def lacks_microvm_but_writes(f):
    os.pwrite(f.disks[0], b"Q", 0)
    lacks(f, "microvm")


def needs_a_file(f):
    f.need_file(b"/etc/\x1b[31mshadow", format="raw")


def needs_a_file_and_claims_success(f):
    pb = f.pb
    f.send(outcome=pb.Outcome(need_file=pb.NeedFile(name=b"base", role="ROLE_BACKING"),
                              resize=f.resize_result()))


def needs(f):
    """Asks for the files of $FAKE_NEEDS, one a boot; then it is the mode $FAKE_THEN."""
    files = json.loads(os.environ["FAKE_NEEDS"])
    asked = len(f.request.disks) - 1 - bool(f.request.rebase.new_backing)
    if asked < len(files):
        f.need_file(**files[asked])
    else:
        globals()[os.environ.get("FAKE_THEN", "ok")](f)


def extents(f):
    """Asks for what $FAKE_EXTENTS says of so many disks; of others it is the mode $FAKE_THEN."""
    need = json.loads(os.environ["FAKE_EXTENTS"]).get(str(len(f.request.disks)))
    if not need:
        return globals()[os.environ.get("FAKE_THEN", "ok")](f)
    need["names"] = [n.encode() for n in need.get("names", [])]
    f.send(outcome=f.pb.Outcome(need_extents=f.pb.NeedExtents(**need)))


def drops(f):
    f.done(**json.loads(os.environ["FAKE_DROPS"]))


def writes_extents(f):
    """All disks get a sector more, and a word in it; the image is written if $FAKE_TEXT is set."""
    disks = f.request.disks
    f.need(1, *[(i, d.length + 512) for i, d in enumerate(disks) if i])
    f.granted()
    for i, d in enumerate(disks):
        if i or "FAKE_TEXT" in os.environ:
            os.pwrite(f.disks[i], b"word", d.length if i else 0)
    if os.environ.get("FAKE_END") == "dies":
        sys.exit(3)
    f.done(files_after=[f.file_length(i, d.length + 512) for i, d in enumerate(disks) if i])


def shares(f):
    """Both chains of a rebase come to the same file, which stands on one more."""
    disks = f.request.disks
    if not disks[0].backing:
        f.need_file("base", slot=0, format="raw")
    elif not disks[1].backing:
        f.need_file("base", slot=1, format="raw")
    elif len(disks) == 3:
        f.need_file("deep", slot=2, format="vhdx")
    else:
        f.done()


def needs_after_a_grant(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()
    f.need_file(b"base")


def needs_after_a_write(f):
    os.pwrite(f.disks[0], b"Q", 0)
    f.need_file(b"base")


def grows_data(f):
    """Both files become longer; of the data file not all that was granted is used."""
    old = [d.length for d in f.request.disks]
    f.need(1, (0, old[0] + 65536), (1, old[1] + 70000))
    f.granted()
    os.pwrite(f.disks[0], b"new", old[0])
    os.pwrite(f.disks[1], b"data", old[1])
    f.done(file_size_after=old[0] + 65536, files_after=[f.file_length(1, old[1] + 65001)])


def grows_data_and_dies(f):
    f.need(1, (1, f.request.disks[1].length + 65536))
    f.granted()
    os.pwrite(f.disks[1], b"new", f.request.disks[1].length)
    sys.exit(3)


def grows_data_and_forgets(f):
    f.need(1, (1, f.request.disks[1].length + 65536))
    f.granted()
    f.done()


def data_needs(f):
    f.need(1, (1, int(os.environ["FAKE_LENGTH"])))
    f.granted()
    f.done()


def tells_lengths(f):
    """files_after as $FAKE_AFTER has it: [slot, length] each, a length relative to the present."""
    length = [d.length for d in f.request.disks] + [0] * 8
    f.done(action=os.environ.get("FAKE_ACTION", "grow"),
           files_after=[f.file_length(slot, length[slot] + more)
                        for slot, more in json.loads(os.environ["FAKE_AFTER"])])


def takes_long(f):
    f.send(progress=f.pb.Progress(requests=1000))
    time.sleep(1.1)
    f.send(progress=f.pb.Progress(requests=2000, done=1, total=2))
    f.send(progress=f.pb.Progress())
    f.done()


def plans_slowly(f):
    f.send(progress=f.pb.Progress(requests=1000))
    time.sleep(1.1)
    for p in PATCHES[-2:]:
        f.send(progress=f.pb.Progress(requests=3000))
        f.send(patch=f.pb.Patch(**p))
    f.done()


def control_floods(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.control.sendall(b"x" * 100000)
    time.sleep(60)


def control_garbage(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.control.sendall(b'{"return": {}}\r\n' * 3)
    time.sleep(60)


def dies(f):
    sys.stderr.write("qemu: something \x1b[31mterrible\x1b[0m happened\n")
    sys.exit(1)


def dies_silently(f):
    sys.exit(0)


def killed(f):
    os.kill(os.getpid(), signal.SIGSEGV)


def dies_under_kvm(f):
    if f.kvm:
        sys.stderr.write("failed to initialize kvm\n")
        sys.exit(1)
    f.done()


def hangs_under_kvm(f):
    if f.kvm:
        time.sleep(60)
    f.done()


def faults_under_kvm(f):
    if f.kvm:
        fault(f)
    f.done()


def writes_under_kvm(f):
    if f.kvm:
        os.pwrite(f.disks[0], b"Q", 0)
        sys.exit(1)
    f.done()


def hangs(f):
    time.sleep(60)


def hangs_after_grant(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.granted()
    time.sleep(60)


def closes_serial(f):
    f.serial.shutdown(socket.SHUT_RDWR)
    time.sleep(60)


def floods_stderr(f):
    while True:
        os.write(2, b"KVM internal error. Suberror: 1\n" * 100)


def floods_stderr_then_works(f):
    for _ in range(1000):
        os.write(2, b"warning: nobody reads this, and it is long enough to fill a pipe\n" * 20)
    f.done()


def floods_serial(f):
    while True:
        f.serial.sendall(b"\0" * 4096)


def floods_logs_then_works(f):
    data = frame(f.pb.Event(log=f.pb.Log(text="\x1b[2Jhello")).SerializeToString())
    for _ in range(2000):
        f.serial.sendall(data)
    f.done()


def garbage(f):
    f.serial.sendall(b"SeaBIOS (version 1.16)\r\n")
    time.sleep(60)


def byte_by_byte(f):
    for byte in frame(f.pb.Event(outcome=f.pb.Outcome(
            noop=f.pb.NoopResult(disks=1))).SerializeToString()):
        f.serial.sendall(bytes([byte]))


def oversized(f):
    f.serial.sendall(frame(b"", length=1 << 30))
    time.sleep(60)


def just_oversized(f):
    f.serial.sendall(frame(b"\0" * (16 * 1024 + 1)))
    time.sleep(60)


def bad_crc(f):
    f.serial.sendall(frame(b"", crc=1))
    time.sleep(60)


def half_a_frame(f):
    f.serial.sendall(frame(b"abc")[:-2])


def half_a_frame_hangs(f):
    f.serial.sendall(frame(b"abc")[:-2])
    time.sleep(60)


def truncated_payload(f):
    payload = f.pb.Event(outcome=f.pb.Outcome(resize=f.resize_result())).SerializeToString()
    f.serial.sendall(frame(payload[:-3]))
    time.sleep(60)


def long_string(f):
    f.fail("PARSE_FAILED", "x" * 300)
    time.sleep(60)


def empty_event(f):
    f.serial.sendall(frame(b""))
    time.sleep(60)


def empty_outcome(f):
    f.send(outcome=f.pb.Outcome())
    time.sleep(60)


def unknown_event(f):
    f.serial.sendall(frame(b"\xfa\x01\x00"))
    time.sleep(60)


def unasked_event(f):
    f.send(patch=f.pb.Patch(len=1))
    time.sleep(60)


def two_outcomes(f):
    one = frame(f.pb.Event(outcome=f.pb.Outcome(resize=f.resize_result())).SerializeToString())
    f.serial.sendall(one + one)
    time.sleep(60)


def outcome_and_more(f):
    one = frame(f.pb.Event(outcome=f.pb.Outcome(resize=f.resize_result())).SerializeToString())
    f.serial.sendall(one + b"I")
    time.sleep(60)


def wrong_result(f):
    f.send(outcome=f.pb.Outcome(noop=f.pb.NoopResult()))
    time.sleep(60)


def unknown_code(f):
    f.serial.sendall(frame(f.pb.Event(outcome=f.pb.Outcome(
        error=f.pb.Error(code=4711))).SerializeToString()))
    time.sleep(60)


def fault(f):
    f.send(fault=f.pb.Fault(vector=14, error_code=7, rip=0x101000, cr2=0xDEADBEEF))
    time.sleep(60)


def assertion(f):
    f.send(fault=f.pb.Fault(text="planner/plan.c:7: \x1b[31mx > 0"))
    time.sleep(60)


def need_beyond_limit(f):
    f.need(1, (0, f.request.disks[0].length + (1 << 50)))
    f.granted()
    f.done()


def need_huge(f):
    f.need(1, (0, (1 << 64) - 1))
    f.granted()
    f.done()


def need_no_slot(f):
    f.need(1, (0, 1), (7, 1 << 20))
    f.granted()
    f.done()


def need_twice(f):
    length = f.request.disks[0].length
    f.need(1, (0, length + 65536), (0, length + 512))
    f.granted()


def need_and_go_on(f):
    f.need(1, (0, f.request.disks[0].length + 65536))
    f.done()
    time.sleep(60)


def longer_than_granted(f):
    f.done(file_size_after=f.request.disks[0].length + 1)
    time.sleep(60)


def shorter_than_before(f):
    f.done(file_size_after=0)
    time.sleep(60)


def other_length_before(f):
    f.done(file_size_before=1)
    time.sleep(60)


def strange_action(f):
    f.done(action="\x1b[1m")
    time.sleep(60)


def shrinks(f):
    f.done(action="shrink", file_size_after=f.request.disks[0].length - 512)


def shrinks_and_dies_slowly(f):
    """It takes a while to free the memory of a killed process."""
    global memory
    memory = mmap.mmap(-1, 400 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000)  # POPULATE
    shrinks(f)
    time.sleep(60)


def probed_raw(f):
    f.done(target_format="raw", probed=True)


def refuses(f):
    code, what = os.environ["FAKE_ERROR"].split(":", 1)
    f.fail(int(code), what, off=24, val=0xABC, name=b"{off}\xff\x1b]0;x\x07", file="a.c", line=3)


HOSTILE = "\x1b[2J\x07 caf\u00e9 \u202e\x9b31m \"quoted\" \\ line\nbreak"


def hostile_error(f):
    f.fail("PARSE_FAILED", HOSTILE + " {name} {nonsense} %s%n", name=b"\xff\xfe\x1b[31m")


def hostile_info(f):
    pb = f.pb
    f.done(format="qc\x1bow2", virtual_size=(1 << 64) - 1, cluster_size=65536, dirty=True,
           encrypted=True, backing_name=b"/etc/\xff\x1b[31m\"x", backing_format="\n",
           facts=[pb.Fact(key="a\x1b b", text=HOSTILE), pb.Fact(key="", number=7),
                  pb.Fact(key="flag it", flag=True)])


def info_qcow2(f):
    pb = f.pb
    f.done(format="qcow2", virtual_size=20 << 30, cluster_size=65536,
           backing_name=os.environ["FAKE_BACKING"].encode(),
           backing_format="raw",
           facts=[pb.Fact(key="compat", text="1.1"), pb.Fact(key="compression type", text="zlib"),
                  pb.Fact(key="lazy refcounts", flag=False),
                  pb.Fact(key="refcount bits", number=16)])


def need_of_reader(f):
    f.need(1, (0, 1 << 20))
    f.granted()
    f.done()


def script(f):
    """Does what $FAKE_SCRIPT says, step by step: [what, argument...]."""
    for what, *args in json.loads(os.environ["FAKE_SCRIPT"]):
        if what == "undo":
            slot, off, crc = args
            f.send(undo=f.pb.Undo(slot=slot, off=off, crc=crc))
        elif what == "need":
            f.send(need=f.pb.Need(**args[0]))
        elif what == "granted":
            if f.granted() != args[0]:
                sys.exit(8)
        elif what == "journal":
            import undo_journal
            with open(args[0], "rb") as journal:
                found = undo_journal.parse(journal.read())
            if [m[0] for m in found["marks"]] != args[1]:
                sys.exit(9)
        elif what == "no journal":
            if os.path.exists(args[0]):
                sys.exit(9)
        elif what == "qmp error":
            f.qmp_error = "oops"
        elif what == "write":
            os.pwrite(f.disks[0], bytes.fromhex(args[1]) * (args[2:] or [1])[0], args[0])
        elif what == "done":
            f.done(**args[0])
        elif what == "fail":
            f.fail("INCONSISTENT", "half way")
        elif what == "progress":
            f.send(progress=f.pb.Progress(requests=args[0], done=args[1], total=args[2]))
        elif what == "error":
            f.fail(**args[0])
        elif what == "needs":
            f.need_file("base")
        elif what == "exit":
            sys.exit(args[0])
        elif what == "hang":
            time.sleep(60)


def inserts(f):
    """Puts $FAKE_INSERT ([offset, length]) in, where the host says that it can; else it appends."""
    length = f.request.disks[0].length
    off, n = json.loads(os.environ["FAKE_INSERT"])
    if f.request.disks[0].insert_unit:
        f.send(need=f.pb.Need(epoch=2, insert=f.pb.Insert(slot=0, off=off, len=n)))
    else:
        f.need(2, (0, length + n))
    if f.granted() != 2 or os.fstat(f.disks[0]).st_size < length + n:
        sys.exit(8)
    if os.environ.get("FAKE_THEN") == "dies":
        sys.exit(3)
    f.done(file_size_after=length + n)


def main():
    fake = Fake(sys.argv)
    with open(os.environ["FAKE_REPORT"], "w") as report:
        what = fake.record() if "FAKE_RECORD" in os.environ else {}
        report.write(json.dumps({"pid": os.getpid(), **what}) + "\n")
    globals()[os.environ.get("FAKE_MODE", "ok")](fake)
    time.sleep(0.5)  # the launcher kills us sooner, if it has what it wants


if __name__ == "__main__":
    main()
