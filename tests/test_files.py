# SPDX-License-Identifier: MIT
"""Files that an image names, asked for by a guest (tests/fakeqemu) that may do anything: what the
launcher attaches, in which role, what it lets be written, and what it believes.
"""
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

import launching

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
OUT_OF_TURN = "The guest asked for a file out of turn\n" + UNCHANGED
NO_SENSE = "The VM's outcome makes no sense, and is not acted on\n" + UNCHANGED
GROW = ("resize", "disk.qcow2", "+1G", "--timeout=5")
DATA = {"name": "data", "role": "ROLE_DATA", "writable": True}
BASE = {"name": "base", "role": "ROLE_BACKING", "slot": 0, "format": "raw"}
LIMIT = (1 << 30) + (1 << 25) + (640 << 20)


@pytest.fixture
def files(fakes):
    """disk.qcow2, data (of no whole sectors), base and base2"""
    return {name: fakes.image(name, size) for name, size in
            (("disk.qcow2", 196616), ("data", 10000), ("base", 4096), ("base2", 5000))}


def ask(fakes, needs, *words, then="ok", **more):
    """Runs with a guest that asks for these files and then does something."""
    env = {"FAKE_NEEDS": json.dumps(needs), "FAKE_THEN": then,
           **{k: v if isinstance(v, str) else json.dumps(v) for k, v in more.items()}}
    return fakes.run("needs", *(words or GROW), more=env)


def refused(fakes, files, needs, status, message, *words, **more):
    before = {name: launching.digest(path) for name, path in files.items()}
    result = ask(fakes, needs, *words, **more)
    assert result.stderr.decode() == "instar-launch: " + message
    assert (result.returncode, result.stdout) == (status, b"")
    assert {name: launching.digest(path) for name, path in files.items()} == before


# ---- what is attached ----


def test_roles(fakes, files):
    """Each file knows what it is to whom; only the image's own data file can be written."""
    needs = [DATA, {**BASE, "format": "qcow2"},
             {"name": "base2", "role": "ROLE_DATA", "slot": 2, "format": "vmdk"},
             {"name": "last", "slot": 2, "format": ""}]
    fakes.image("last", 512)
    result = ask(fakes, needs, FAKE_RECORD="1")
    assert (result.returncode, result.stderr) == (0, b"")
    cage = fakes.reports()[-1]
    assert fakes.disks() == [
        {"length": "196616", "writable": True, "backing": 2},
        {"length": "10000", "writable": True, "role": "ROLE_DATA"},
        {"length": "4096", "role": "ROLE_BACKING", "format": "qcow2", "backing": 4},
        {"length": "5000", "role": "ROLE_DATA", "of": 2},
        {"length": "512", "role": "ROLE_BACKING", "of": 2}]
    line = " ".join(cage["argv"])
    assert line.count("read-only=off") == 2 and line.count("read-only=on") == 3
    assert [len(r["request"]["disks"]) for r in fakes.reports()] == [1, 2, 3, 4, 5]


def test_a_data_file_that_is_only_read(fakes, files):
    files["data"].chmod(0o444)
    result = ask(fakes, [{**DATA, "writable": False}], FAKE_RECORD="1")
    assert result.returncode == 0
    assert "writable" not in fakes.reports()[-1]["request"]["disks"][1]
    assert " ".join(fakes.reports()[-1]["argv"]).count("read-only=on") == 1


def test_locks(fakes, files):
    """The data file is locked as qemu locks what it writes, a backing file as what it reads."""
    p = subprocess.Popen([launching.LAUNCHER, *GROW, "--accel=tcg"], cwd=fakes.tmp,
                         env=fakes.env("needs", FAKE_NEEDS=json.dumps([DATA, BASE]),
                                       FAKE_THEN="hangs"),
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    launching.until(lambda: len(fakes.reports()) == 3)

    def locked(name):
        with open(files[name], "rb") as f:
            return [b for b in (100, 101, 103, 201, 203) if launching.ofd(
                f, launching.OFD_GETLK, fcntl.F_WRLCK, b) != fcntl.F_UNLCK]
    assert locked("data") == locked("disk.qcow2") == [100, 101, 103, 201, 203]
    assert locked("base") == [100, 201, 203]
    launching.interrupt(p)
    assert locked("data") == locked("disk.qcow2") == locked("base") == []


def test_a_data_file_in_use(fakes, files):
    with open(files["data"], "r+b") as f:
        launching.ofd(f, launching.OFD_SETLK, fcntl.F_RDLCK, 101)
        launching.ofd(f, launching.OFD_SETLK, fcntl.F_RDLCK, 201)
        result = ask(fakes, [DATA], *GROW, "--output=json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert answer["code"] == "LOCKED" and '"write" lock' in answer["error"]


def test_dry_run(fakes, files):
    """Read-only, whatever the guest asks for; the limits hold all the same."""
    for path in files.values():
        path.chmod(0o444)
    words = (*GROW, "--dry-run")
    result = ask(fakes, [DATA], *words, then="tells_lengths", FAKE_AFTER=[[1, 1 << 20]],
                 FAKE_RECORD="1")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "data file:    9.77 KiB (10000 bytes) -> 1.01 MiB (1058576 bytes)\n" in \
        result.stdout.decode()
    cage = fakes.reports()[-1]
    assert "writable" not in str(cage["request"]["disks"]) and cage["file_size"] == [0, 0]
    assert " ".join(cage["argv"]).count("read-only=on") == 2
    result = ask(fakes, [DATA], *words, "--output=json", then="tells_lengths",
                 FAKE_AFTER=[[1, 1 << 20]])
    assert json.loads(result.stdout)["other_files"] == [
        {"slot": 1, "filename": str(files["data"]), "old_file_size": 10000,
         "new_file_size": 10000 + (1 << 20)}]
    refused(fakes, files, [DATA], 1, "The file '%s' would have to grow to %d bytes, and its limit "
            "is %d\nIf that is what you want, allow it with --max-growth=%d\n" %
            (files["data"], 10000 + (1 << 40), 10000 + LIMIT, 1 << 40), *words,
            then="tells_lengths", FAKE_AFTER=[[1, 1 << 40]])
    refused(fakes, files, [BASE], 4, NO_SENSE, *words, then="tells_lengths", FAKE_AFTER=[[1, 0]])


# ---- what may be asked for ----


@pytest.mark.parametrize("needs", [
    [{**BASE, "role": "ROLE_IMAGE"}],
    [{**BASE, "slot": 1}],
    [{**BASE, "slot": 7}],
    [{**BASE, "slot": (1 << 32) - 1}],
    [BASE, {**BASE, "name": "base2"}],
    [BASE, BASE],
    [DATA, DATA],
    [DATA, BASE, {**DATA, "name": "base2", "writable": False}],
    [DATA, {**BASE, "slot": 1}],
    [DATA, {"name": "base2", "role": "ROLE_DATA", "slot": 1}],
], ids=str)
def test_out_of_turn(needs, fakes, files):
    refused(fakes, files, needs, 4, OUT_OF_TURN)


def test_unknown_role(fakes, files):
    refused(fakes, files, [{**BASE, "role": 9}], 4,
            "The VM sent a frame that holds no event of the contract\n" + UNCHANGED)


def test_extents_are_not_asked_for_one_by_one(fakes, files):
    refused(fakes, files, [{**BASE, "role": "ROLE_EXTENT"}], 4, OUT_OF_TURN)


@pytest.mark.parametrize("words, needs", [
    (("info", "disk.qcow2"), [BASE]),
    (("info", "disk.qcow2"), [DATA]),
    (("noop", "disk.qcow2"), [BASE]),
    (("noop",), [BASE]),
    (("resize", "disk.qcow2", "-1G", "--shrink"), [BASE]),
], ids=str)
def test_verbs_that_need_no_file(words, needs, fakes, files):
    message = OUT_OF_TURN if len(words) > 1 else OUT_OF_TURN.split("\n")[0] + "\n"
    refused(fakes, files, needs, 4, message, *words)


def test_a_shrink_needs_the_data_file(fakes, files):
    result = ask(fakes, [DATA], "resize", "disk.qcow2", "-1G", "--shrink", then="tells_lengths",
                 FAKE_AFTER=[[1, -9999]], FAKE_ACTION="shrink")
    assert (result.returncode, result.stderr) == (0, b"")
    assert files["data"].stat().st_size == 1


@pytest.mark.parametrize("then, words", [
    ("needs_after_a_grant", "The file had been granted a length of 262152 bytes."),
    ("needs_after_a_write", "No growth had been granted, but the file may have been written to: "),
])
def test_too_late(then, words, fakes, files):
    result = ask(fakes, [], then=then)
    text = result.stderr.decode()
    assert result.returncode == 4
    assert text.startswith("instar-launch: The guest asked for a file out of turn\n" + words)
    assert len(fakes.reports()) == 1


@pytest.mark.parametrize("needs", [
    [{**BASE, "writable": True}],
    [BASE, {"name": "base2", "slot": 1, "writable": True}],
    [BASE, {**DATA, "slot": 1}],
], ids=str)
def test_nothing_else_is_written(needs, fakes, files):
    refused(fakes, files, needs, 4, "The guest asked for a file to write that it may only read\n" +
            UNCHANGED)


def test_too_many(fakes, files):
    """The data file counts."""
    names = ["b%d" % i for i in range(24)]
    for name in names:
        fakes.image(name, 512)
    needs = [DATA] + [{"name": n, "slot": i and i + 1} for i, n in enumerate(names)]
    assert ask(fakes, needs[:23]).returncode == 0
    refused(fakes, files, needs, 1, "The chain of files that the image names is longer than 23\n")


def test_links_leave_nothing_behind(fakes, files):
    """Seven files are seven VMs one after the other: of those before the last nothing is left."""
    names = ["b%d" % i for i in range(7)]
    for name in names:
        fakes.image(name, 512)
    needs = [{"name": n, "slot": i} for i, n in enumerate(names)]
    left = {}
    for count in (0, 1, 7):
        seen = len(fakes.reports())
        env = fakes.env("needs", FAKE_NEEDS=json.dumps(needs[:count]), FAKE_THEN="hangs")
        p = subprocess.Popen([launching.LAUNCHER, *GROW, "--accel=tcg"], cwd=fakes.tmp, env=env,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        launching.until(lambda: len(fakes.reports()) == seen + count + 1)
        launching.until(lambda: len(launching.children(p.pid)) == 1)
        assert launching.children(p.pid)[0][0] == fakes.reports()[-1]["pid"]
        left[count] = sorted(os.readlink(fd) for fd in
                             pathlib.Path("/proc/%d/fd" % p.pid).iterdir())
        assert launching.interrupt(p)[1].decode().endswith(UNCHANGED)
        assert p.returncode == -2
    # 0, 1, 2, image, its directory, request, signals, pidfd, serial, QMP, messages
    assert [len(left[n]) for n in (0, 1, 7)] == [11, 12, 18], left


# ---- where names lead ----


@pytest.mark.parametrize("need, link, what", [
    (DATA, "disk.qcow2", "External data file 'x' is the image itself."),
    (BASE, "disk.qcow2", "Backing file 'x' creates an infinite loop."),
])
@pytest.mark.parametrize("how", [os.link, lambda old, new: os.symlink(old.name, new)])
def test_the_image_itself(how, need, link, what, fakes, files):
    how(files[link], fakes.tmp / "x")
    refused(fakes, files, [{**need, "name": "x"}], 1, what + "\n")


@pytest.mark.parametrize("needs, what", [
    ([BASE, {**DATA, "name": "base"}], "External data file 'base' is another file of the chain "
                                       "already."),
    ([DATA, {**BASE, "name": "data"}], "Backing file 'data' is an external data file already."),
    ([DATA, BASE, {**DATA, "slot": 2, "writable": False}],
     "External data file 'data' is another file of the chain already."),
    ([BASE, {**BASE, "slot": 1}], "Backing file 'base' creates an infinite loop."),
])
def test_one_file_twice(needs, what, fakes, files):
    refused(fakes, files, needs, 1, what + "\n")


@pytest.mark.parametrize("need, kind", [(DATA, "external data file"), (BASE, "backing file")])
def test_words_of_the_policy(need, kind, fakes, files):
    """They say which kind of file it is."""
    article = "an" if kind[0] == "e" else "a"
    outside = ("The image names %s %s, '%%s', which does not lie in the image's directory. If you "
               "trust that, give its directory with --backing-dir.\n" % (article, kind))
    for name in ("/etc/passwd", "../x", "/proc/self/fd/0"):
        refused(fakes, files, [{**need, "name": name}], 1, outside % name)
    refused(fakes, files, [need], 1, "The image names %s %s, '%s', which --no-backing forbids to "
            "open.\n" % (article, kind, need["name"]), *GROW, "--no-backing")
    refused(fakes, files, [{**need, "name": "a\0b"}], 1, "The image names %s %s, 'a\\x00b', which "
            "is empty or holds a NUL byte.\n" % (article, kind))
    refused(fakes, files, [{**need, "name": "none"}], 1, "Could not open %s: Could not open 'none'"
            ": No such file or directory\n" % kind)
    (fakes.tmp / "dir").mkdir()
    refused(fakes, files, [{**need, "name": "dir"}], 1, "Could not open %s: 'file' driver requires "
            "'dir' to be a regular file\n" % kind)


def test_a_data_file_has_a_plain_name(fakes, files):
    """No protocol is looked for in it, as qemu has it since CVE-2024-4467."""
    for name in ("nbd:x", "json:{}", "a:b", "file:data"):
        fakes.image(name, 512)
        assert ask(fakes, [{**DATA, "name": name}]).returncode == 0
        result = ask(fakes, [{**BASE, "name": name}])
        assert result.returncode == 1 and b"never followed" in result.stderr


@pytest.mark.parametrize("need", [DATA, {**DATA, "writable": False}, BASE], ids=str)
def test_a_fifo_is_not_woken(need, fakes, files):
    """A writer that waits for a reader of the fifo goes on waiting."""
    fifo = fakes.tmp / "fifo"
    os.mkfifo(fifo)
    p = subprocess.Popen(["sh", "-c", 'echo ready; exec 3>"$1"; echo woken', "sh", fifo],
                         stdout=subprocess.PIPE)
    try:
        assert p.stdout.readline() == b"ready\n"
        launching.until(lambda: ") S " in pathlib.Path("/proc/%d/stat" % p.pid).read_text())
        kind = "external data file" if need is not BASE else "backing file"
        refused(fakes, files, [{**need, "name": "fifo"}], 1, "Could not open %s: 'file' driver "
                "requires 'fifo' to be a regular file\n" % kind)
        time.sleep(0.1)
        os.set_blocking(p.stdout.fileno(), False)
        assert p.poll() is None and p.stdout.read() is None
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


def test_a_data_file_that_cannot_be_written(fakes, files):
    """A program that runs may be read, and written by nobody, not even by root."""
    shutil.copy(shutil.which("sleep"), files["data"])
    p = subprocess.Popen([files["data"], "60"])
    try:
        refused(fakes, files, [DATA], 1, "Could not open external data file: Could not open 'data'"
                ": Text file busy\n")
        assert ask(fakes, [DATA], *GROW, "--dry-run").returncode == 0
    finally:
        p.kill()
        p.wait()


@pytest.fixture
def device(tmp_path):
    """A block device of 64 KiB, all of which is data."""
    store = tmp_path / "store"
    store.write_bytes(os.urandom(65536))
    p = subprocess.run(["losetup", "-f", "--show", store], capture_output=True, text=True)
    if p.returncode:
        pytest.skip("no loop device: " + p.stderr.strip())
    yield p.stdout.strip()
    subprocess.run(["losetup", "-d", p.stdout.strip()], check=True)


def test_a_device_as_data_file(device, fakes, files):
    """It is opened under the same policy, keeps its length, and is never the image too."""
    need = {**DATA, "name": device}
    assert b"does not lie in" in ask(fakes, [need]).stderr
    words = (*GROW, "--backing-dir=/dev")
    before = launching.digest(fakes.tmp / "store")
    for after in ([], [[1, 0]]):
        result = ask(fakes, [need], *words, then="tells_lengths", FAKE_AFTER=after, FAKE_RECORD="1")
        assert (result.returncode, result.stderr) == (0, b"")
    assert fakes.disks()[1] == {
        "length": "65536", "writable": True, "role": "ROLE_DATA", "device": True}
    result = ask(fakes, [need], *words, then="data_needs", FAKE_LENGTH="65537")
    assert result.returncode == 1 and b"is a device of 65536 bytes" in result.stderr
    assert launching.digest(fakes.tmp / "store") == before
    os.symlink(device, fakes.tmp / "node")
    result = ask(fakes, [need], "resize", "node", "+1G", "--backing-dir=/dev")
    assert result.returncode == 1 and b"is the image itself" in result.stderr


# ---- growth, and what becomes of the data file ----


def test_growth(fakes, files):
    """Exact lengths, however far the device had been made longer."""
    before = {name: path.read_bytes() for name, path in files.items()}
    result = ask(fakes, [DATA, BASE], *GROW, "--output=json", then="grows_data")
    assert result.returncode == 0
    assert json.loads(result.stdout)["other_files"][0]["new_file_size"] == 75001
    before["disk.qcow2"] += b"new" + bytes(65533)
    before["data"] += b"data" + bytes(64997)
    assert {name: path.read_bytes() for name, path in files.items()} == before


def test_growth_limit(fakes, files):
    """The formula is that of the image's own file."""
    refused(fakes, files, [DATA], 1, "The file '%s' would have to grow to %d bytes, and its limit "
            "is %d\nIf that is what you want, allow it with --max-growth=%d\n" %
            (files["data"], 10001 + LIMIT, 10000 + LIMIT, LIMIT + 1) + UNCHANGED,
            then="data_needs", FAKE_LENGTH=10001 + LIMIT)
    result = ask(fakes, [DATA], *GROW, "--max-growth=1000", then="grows_data")
    assert result.returncode == 1 and b"its limit is" in result.stderr
    for needs in ([BASE], [{**DATA, "writable": False}]):
        refused(fakes, files, needs, 4, "The guest asked for the growth of a disk (slot 1) that it "
                "may not write\n" + UNCHANGED, then="data_needs", FAKE_LENGTH=20000)


def test_failure_after_a_grant(fakes, files):
    before = files["data"].read_bytes()
    result = ask(fakes, [DATA], then="grows_data_and_dies")
    assert result.returncode == 4
    assert result.stderr.decode().endswith(
        "\nThe external data file had been granted a length of 75536 bytes.\n"
        "The image has its old size or its new one, and all its data.\n")
    assert files["data"].read_bytes().startswith(before)


def test_growth_that_is_forgotten(fakes, files):
    """A file that was made longer, and of which the outcome says nothing."""
    result = ask(fakes, [DATA], then="grows_data_and_forgets")
    assert result.returncode == 4
    assert result.stderr.startswith(b"instar-launch: The VM's outcome makes no sense")


@pytest.mark.parametrize("after", [[[1, 1]], [[1, 1 << 62]], [[1, -1]], [[1, -10000]], [[0, 0]],
                                   [[2, 0]], [[3, 0]], [[7, 0]], [[1, 0], [1, 0]],
                                   [[1, 0], [2, 0]]], ids=str)
def test_implausible_lengths(after, fakes, files):
    """More than was granted; less than it had; the image, a backing file, none; one twice."""
    refused(fakes, files, [DATA, BASE], 4, NO_SENSE, then="tells_lengths", FAKE_AFTER=after)


def test_plausible_lengths(fakes, files):
    for after in ([], [[1, 0]]):
        before = files["data"].stat()
        assert ask(fakes, [DATA, BASE], then="tells_lengths", FAKE_AFTER=after).returncode == 0
        assert (before.st_size, before.st_mtime_ns) == (10000, files["data"].stat().st_mtime_ns)
