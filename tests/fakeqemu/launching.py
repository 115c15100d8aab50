# SPDX-License-Identifier: MIT
"""What the tests of the launcher share: running it, with a fake QEMU or without one."""
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import struct
import subprocess
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = TOP / "build/instar-launch"
FAKE = TOP / "tests/fakeqemu/fakeqemu.py"
TIMEOUT = 30  # seconds, for whatever takes less than one


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("INSTAR_", "FAKE_"))}
    env.update(more)
    return env


def run(*args, env=None, cwd=None, **more):
    """Runs the launcher to its end; stdout and stderr as bytes."""
    return subprocess.run([LAUNCHER, *args], capture_output=True, timeout=TIMEOUT, cwd=cwd,
                          stdin=subprocess.DEVNULL, env=env or environment(), **more)


class Fakes:
    """The launcher with the fake QEMU, in a directory of its own."""

    def __init__(self, tmp):
        self.tmp = tmp
        self.images = tmp / "images"
        self.images.mkdir()
        for op in ("resize", "rebase", "info", "noop"):
            (self.images / (op + ".elf")).touch()
        # A fifo, since the fake may write no file.
        os.mkfifo(tmp / "report")
        self.report = os.open(tmp / "report", os.O_RDWR | os.O_NONBLOCK)
        self.text = b""

    def env(self, mode, **more):
        return environment(FAKE_MODE=mode, FAKE_REPORT=str(self.tmp / "report"),
                           INSTAR_QEMU=str(FAKE), INSTAR_IMAGES=str(self.images), **more)

    def run(self, mode, *args, accel="tcg", more=None, **options):
        words = [args[0], "--accel=" + accel, *args[1:]]
        return run(*words, env=self.env(mode, **(more or {})), cwd=self.tmp, **options)

    def start(self, mode, *args):
        return subprocess.Popen([LAUNCHER, args[0], "--accel=tcg", *args[1:]],
                                env=self.env(mode), cwd=self.tmp, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def image(self, name="disk.qcow2", size=196616):
        path = self.tmp / name
        path.write_bytes(os.urandom(size))
        return path

    def reports(self):
        """What every fake QEMU has reported, in the order of their starts."""
        try:
            self.text += os.read(self.report, 1 << 16)
        except BlockingIOError:
            pass
        return [json.loads(line) for line in self.text.split(b"\n")[:-1]]

    def disks(self, report=-1):
        """Those of the Request, but for what depends on the file system that the test is on."""
        return [{k: v for k, v in d.items() if k != "insertUnit"}
                for d in self.reports()[report]["request"]["disks"]]

    def wait_for_fake(self):
        until(self.reports)
        return self.reports()[-1]["pid"]

    def none_left(self):
        """Every fake QEMU that was started is gone."""
        until(lambda: not any(alive(r["pid"]) for r in self.reports()))
        os.close(self.report)


def alive(pid):
    try:
        state = pathlib.Path("/proc/%d/stat" % pid).read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(pid):
    """The processes that it has started and not reaped: pid and state."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            found.append((int(stat.parent.name), state))
    return found


def until(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def interrupt(process, sig=signal.SIGINT):
    process.send_signal(sig)
    return process.communicate(timeout=TIMEOUT)


# ---- locks ----

OFD_SETLK, OFD_GETLK = 37, 36


def ofd(fd, command, kind, byte):
    """Sets a lock on a byte, or says what kind of lock would be in the way."""
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, lock))[0]


def qemu_holds(image):
    """Some QEMU has the image open for writing. Only a look: a lock would be in its way."""
    with open(image, "rb") as f:
        return ofd(f, OFD_GETLK, fcntl.F_WRLCK, 201) != fcntl.F_UNLCK
