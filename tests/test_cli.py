# SPDX-License-Identifier: MIT
"""The command line of instar-launch: words, sizes, messages, JSON, files of the wrong kind, locks.

Nothing here needs a VM: `-f raw` is done on the host, and where a Request is looked at, a fake QEMU
records it.
"""
import base64
import fcntl
import json
import os
import signal
import socket
import subprocess

import pytest

import launching
from launching import OFD_GETLK, OFD_SETLK, ofd, qemu_holds, run

BAD_SIZE = ("instar-launch: Parameter 'size' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively.\n")
TRY = "\nTry 'instar-launch resize --help' for more information\n"
POSITIVE = "instar-launch: New image size must be positive\n"


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(b"data" * 256)
    return path


def refused(result, message, status=1):
    assert result.stderr.decode() == message
    assert result.stdout == b""
    assert result.returncode == status


def requests(fakes, *args):
    """The Request that the words come to."""
    seen = len(fakes.reports())
    result = fakes.run("ok", *args, more={"FAKE_RECORD": "1"})
    assert len(fakes.reports()) == seen + 1, result.stderr
    request = fakes.reports()[-1]["request"]
    return {**request, "disks": fakes.disks()} if "disks" in request else request


# ---- help, version, usage ----


def test_help():
    for words in (["--help"], ["-h"], ["resize", "--help"], ["resize", "-h"], ["info", "--help"],
                  ["noop", "--help"], ["decode", "-h"], ["resize", "x", "1", "--he"]):
        result = run(*words)
        text = result.stdout.decode()
        assert (result.returncode, result.stderr) == (0, b"")
        assert text.startswith("usage: instar-launch ")
        assert "Exit status:" in text and "Examples:" in text
        assert max(map(len, text.splitlines())) <= 100
    text = run("resize", "--help").stdout.decode()
    for option in ("--shrink", "--preallocation", "--format", "--quiet", "--output", "--accel",
                   "--timeout", "--qemu", "--images", "--max-growth", "--dry-run", "--machine",
                   "--logical-block-size", "--print-qemu", "--gdb", "IMAGE [+|-]SIZE"):
        assert option in text
    assert "INSTAR_QEMU" in run("--help").stdout.decode()


def test_version():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith(b"instar-launch ")


@pytest.mark.parametrize("words, message", [
    ([], "Not enough arguments\nTry 'instar-launch --help' for more information\n"),
    (["frob"], "Command not found: frob\nTry 'instar-launch --help' for more information\n"),
    (["resize"], "Not enough arguments" + TRY),
    (["resize", "x"], "Not enough arguments" + TRY),
    (["resize", "--shrink", "x"], "Expecting image file name and size" + TRY),
    (["resize", "x", "y", "1"], "Expecting image file name and size" + TRY),
    (["resize", "x", "1", "2", "3", "4"], "Expecting image file name and size" + TRY),
    (["resize", "--bar", "x", "1"], "unrecognized option '--bar'" + TRY),
    (["resize", "-x", "x", "1"], "unrecognized option '-x'" + TRY),
    (["resize", "--shrink", "-xq", "x", "1"], "unrecognized option '-x'" + TRY),
    (["resize", "--dry-run=3", "x", "1"], "unrecognized option '--dry-run=3'" + TRY),
    (["resize", "--q", "x", "1"], "ambiguous option '--q'" + TRY),
    (["resize", "x", "1", "-f"], "missing argument for option '-f'" + TRY),
    (["resize", "x", "1", "--format"], "missing argument for option '--format'" + TRY),
    (["resize", "--preallocation=foo", "x", "1"], "Invalid preallocation mode 'foo'\n"),
    (["resize", "--output=xml", "x", "1"],
     "--output must be used with human or json as argument.\n"),
    (["resize", "--accel=xen", "x", "1"], "--accel must be auto, kvm or tcg, not 'xen'\n"),
    (["info", "--machine=isapc", "x"],
     "--machine must be auto, microvm, q35 or pc, not 'isapc'\n"),
    (["info", "--logical-block-size=1024", "x"],
     "--logical-block-size must be 512 or 4096, not '1024'\n"),
    (["resize", "--gdb", "x", "1"], "--gdb goes with --print-qemu" + TRY),
    (["resize", "--timeout=-1", "x", "1"],
     "Invalid timeout '-1': a number of seconds from 0 (never) to 1000000\n"),
    (["resize", "--timeout=1s", "x", "1"],
     "Invalid timeout '1s': a number of seconds from 0 (never) to 1000000\n"),
    (["resize", "-f", "averyveryverylongname", "x", "1"],
     "Could not open 'x': Unknown driver 'averyveryverylongname'\n"),
    (["resize", "-f", "", "x", "1"], "Could not open 'x': Unknown driver ''\n"),
    (["info"],
     "Expecting one image file name\nTry 'instar-launch info --help' for more information\n"),
    (["resize", "--shrink=all", "x", "1"],
     "--shrink must stand alone or have the value unallocated, not 'all'\n"),
    (["info", "--shrink", "x"], "unrecognized option '--shrink'\n"
     "Try 'instar-launch info --help' for more information\n"),
])
def test_usage(words, message, tmp_path):
    refused(run(*words, cwd=tmp_path), "instar-launch: " + message)


@pytest.mark.parametrize("words", [["--object", "secret,id=a"], ["--object=x"], ["--image-opts"]])
@pytest.mark.parametrize("verb", [["resize", "fifo", "+1G"], ["info", "fifo"]])
def test_not_yet_supported_before_any_io(words, verb, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    name = words[0].split("=")[0]
    refused(run(*verb, *words, cwd=tmp_path), "instar-launch: %s is not yet supported\n" % name)


def test_size_is_judged_before_the_file_is_opened(tmp_path):
    refused(run("resize", "missing", "1x", cwd=tmp_path), BAD_SIZE)
    refused(run("resize", "missing", "1x", "--preallocation=foo", cwd=tmp_path),
            "instar-launch: Invalid preallocation mode 'foo'\n")


# ---- sizes ----


@pytest.mark.parametrize("text", [
    "", "k", "+", "-", "++", "--1k", "+-1k", " -1k", "1x", "1kB", "1KiB", "1 G", "1G ", "1,5G",
    "0x", "0x1k", "0x1.8", "00x10", "1.5", "1.5b", "1.5B", "1e3", "1.5e3", ".", ".k", "inf", "nan",
    "1.00000000000000000000000001", "\u0663", "1\n", "0xg", "1kk", "99999999999999999999999x"])
def test_size_invalid(text, tmp_path):
    words = ["resize", "missing", text] if not text.startswith("--") else \
        ["resize", "--", "missing", text]
    refused(run(*words, cwd=tmp_path), BAD_SIZE)


@pytest.mark.parametrize("text", ["16E", "+16E", "18446744073709551616", "0x10000000000000000",
                                  "99999999999999999999999999999999999999999999", "16384P"])
def test_size_out_of_range(text, tmp_path):
    refused(run("resize", "missing", text, cwd=tmp_path),
            "instar-launch: Value '%s' is out of range for parameter 'size'\n" % text.lstrip("+"))


SIZES = {
    "0": 0, "1": 1, "010": 10, "+1": 1, "-1": 1, "1b": 1, "1B": 1, "1k": 1 << 10, "1K": 1 << 10,
    "1m": 1 << 20, "1M": 1 << 20, "1g": 1 << 30, "1G": 1 << 30, "1t": 1 << 40, "1T": 1 << 40,
    "1p": 1 << 50, "1P": 1 << 50, "1e": 1 << 60, "1E": 1 << 60, "15E": 15 << 60,
    "-1G": 1 << 30, "+5G": 5 << 30, "-0": 0, "-0x10": 16, "-.5k": 512, "-+1k": 1024, "++1k": 1024,
    " 1k": 1024, "\t1": 1, "0x10b": 267, "0XfF": 255, "+0x200": 512, "1.5k": 1536, "1.k": 1024,
    ".5k": 512, "1.": 1, "1.0": 1, "1.0B": 1, "1.5G": 3 << 29, "0.4999k": 512,
    "1.0000001k": 1024, "1.9999999999999999999k": 2048, "0.5e": 1 << 59,
    "0." + "9" * 400 + "k": 1024, "18446744073709551615": (1 << 64) - 1,
}


def test_parse_resize_size(fakes):
    fakes.image()
    for text, size in SIZES.items():
        request = requests(fakes, "resize", "disk.qcow2", text)
        kind = {"+": "PLUS", "-": "MINUS"}.get(text[0])
        assert request["resize"].get("kind") == kind, text
        assert int(request["resize"].get("size", 0)) == size, text


def test_options_reach_the_request(fakes):
    fakes.image()
    words = ["disk.qcow2", "-1G"]
    seen = set()
    for more in (["--shrink", "-f", "qcow2", *words], [*words, "--shrink", "--format=qcow2"],
                 ["--shr", "--form", "qcow2", *words], ["-fqcow2", words[0], "--shrink", words[1]],
                 ["-qf", "qcow2", "--shrink", "--", *words]):
        request = requests(fakes, "resize", *more)
        seen.add(request.pop("random"))
        assert request == {
            "disks": [{"length": "196616", "writable": True, "format": "qcow2"}],
            "resize": {"kind": "MINUS", "size": "1073741824", "shrink": True}}
    for more, unallocated in ((["--shrink=unallocated"], True), (["--shr=unallocated"], True),
                              (["--shrink", "--shrink=unallocated"], True),
                              (["--shrink=unallocated", "--shrink"], False)):
        request = requests(fakes, "resize", *more, *words)["resize"]
        assert request["shrink"] is True and request.get("unallocated", False) is unallocated
    assert len(seen) == 5 and {len(base64.b64decode(r)) for r in seen} == {32}
    for mode in ("metadata", "falloc", "full"):
        for form in (["--preallocation", mode], ["--prealloc=" + mode]):
            request = requests(fakes, "resize", *form, "disk.qcow2", "1G")
            assert request["resize"]["preallocation"] == "PREALLOCATION_" + mode.upper()
    assert "preallocation" not in requests(fakes, "resize", "--preallocation=off", "disk.qcow2",
                                           "1G")["resize"]
    info, noop = requests(fakes, "info", "disk.qcow2"), requests(fakes, "noop")
    assert info.pop("random") != noop.pop("random")
    assert info == {"disks": [{"length": "196616"}], "info": {}} and noop == {"noop": {}}


def test_last_of_repeated_options_counts(fakes):
    fakes.image()
    request = requests(fakes, "resize", "-f", "raw", "-f", "qcow2", "disk.qcow2", "1G")
    assert request["disks"][0]["format"] == "qcow2"


# ---- raw, on the host ----


@pytest.mark.parametrize("length, words, after", [
    (1024, ["4096"], 4096), (1024, ["+1"], 1025), (513, ["+0"], 1024), (513, ["+1"], 1025),
    (513, ["-1", "--shrink"], 1023), (1024, ["-1k", "--shrink"], None), (1024, ["1024"], 1024),
    (0, ["+1"], 1), (0, ["1G"], 1 << 30), (1024, ["1", "--shrink"], 1), (1024, ["4k", "--shrink"],
                                                                         4096),
])
def test_raw(length, words, after, tmp_path):
    path = tmp_path / "x"
    content = os.urandom(length)
    path.write_bytes(content)
    result = run("resize", "-f", "raw", str(path), *words)
    if after is None:
        refused(result, POSITIVE)
        after = length
    else:
        assert (result.stdout, result.stderr, result.returncode) == (b"Image resized.\n", b"", 0)
    assert path.stat().st_size == after
    with open(path, "rb") as f:
        assert f.read(max(length, 8192)) == (content + bytes(8192))[:min(after, max(length, 8192))]


@pytest.mark.parametrize("words, message", [
    (["0"], POSITIVE), (["-1k"], POSITIVE), (["-1G"], POSITIVE), (["8E"], POSITIVE),
    (["+8E"], POSITIVE), (["18446744073709551615"], POSITIVE),
    (["+18446744073709551615"], POSITIVE),
    (["512"], "instar-launch: Use the --shrink option to perform a shrink operation.\n"
     "instar-launch: warning: Shrinking an image will delete all data beyond the shrunken image's "
     "end. Before performing such an operation, make sure there is no important data there.\n"),
    (["9223372035781033985"],
     "instar-launch: offset(9223372035781033985) exceeds maximum(9223372035781033984)\n"),
])
def test_raw_refused(raw, words, message):
    before = launching.digest(raw)
    refused(run("resize", "-f", "raw", str(raw), *words), message)
    assert launching.digest(raw) == before


def sparse(path, length, *extents):
    """A file with data at these (offset, length), and holes elsewhere."""
    with open(path, "wb") as f:
        f.truncate(length)
        for off, n in extents:
            f.seek(off)
            f.write(b"d" * n)


MIB = 1 << 20


@pytest.mark.parametrize("extents, size, first", [
    ([], 1, None),
    ([(0, 4096)], 64 << 10, None),
    ([(0, 65536)], 64 << 10, None),
    ([(0, 65536)], 60 << 10, 60 << 10),
    ([(0, 1), (MIB, 65536)], 512 << 10, MIB),
    ([(MIB, 65536)], MIB + 65536, None),
    ([(4 * MIB - 4096, 4096)], 3 * MIB, 4 * MIB - 4096),
    ([(4 * MIB - 4096, 4096)], 4 * MIB - 1, 4 * MIB - 1),
    ([(4 * MIB - 4096, 4096)], 4 * MIB, None),
    ([(4 * MIB - 4096, 4096)], 5 * MIB, None),
])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_raw_shrinks_what_is_unallocated(more, extents, size, first, tmp_path):
    path = tmp_path / "x"
    sparse(path, 4 * MIB, *extents)
    before = path.read_bytes()
    result = run("resize", "-f", "raw", "--shrink=unallocated", *more, str(path), str(size))
    if first is None:
        assert (result.returncode, result.stderr) == (0, b"")
        assert path.stat().st_size == (4 * MIB if more else size)
        return
    refused(result, "instar-launch: Data is allocated past the new end (first at byte %d). "
            "--shrink without =unallocated discards it.\n" % first)
    assert path.read_bytes() == before
    result = run("resize", "-f", "raw", "--shrink=unallocated", "--output=json", *more, str(path),
                 str(size))
    assert json.loads(result.stdout)["code"] == "SHRINK_BELOW_ALLOCATED"
    assert run("resize", "-f", "raw", "--shrink", *more, str(path), str(size)).returncode == 0


def test_raw_too_large_for_the_host(raw):
    result = run("resize", "-f", "raw", str(raw), "+1k", preexec_fn=lambda: limit_file_size(1500))
    refused(result, "instar-launch: Could not resize file: File too large\n")
    assert raw.stat().st_size == 1024


def limit_file_size(n):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


def test_json(raw):
    result = run("resize", "-f", "raw", "--output=json", str(raw), "+1k")
    assert result.stderr == b"" and result.returncode == 0
    assert json.loads(result.stdout) == {
        "filename": str(raw), "format": "raw", "action": "grow", "old_virtual_size": 1024,
        "new_virtual_size": 2048, "old_file_size": 1024, "new_file_size": 2048}
    result = run("resize", "-f", "raw", "--output=json", str(raw), "-1k")
    assert result.stderr == b"" and result.returncode == 1
    assert json.loads(result.stdout) == {
        "error": "Use the --shrink option to perform a shrink operation.",
        "code": "SHRINK_WITHOUT_FLAG"}
    for action, size in (("noop", "+0"), ("shrink", "1k")):
        result = run("resize", "-f", "raw", "--output=json", "--shrink", str(raw), size)
        assert json.loads(result.stdout)["action"] == action


@pytest.mark.parametrize("words, code", [
    (["resize", "nofile", "1G"], "READ_FAILED"), (["resize", "nofile", "1x"], "INVALID_NEW_SIZE"),
    (["resize", "--bar", "nofile", "1"], "INVALID_OPTION"), (["resize"], "INVALID_OPTION"),
    (["resize", "--object=x", "nofile", "1"], "INVALID_OPTION"), (["info", "nofile"],
                                                                  "READ_FAILED"),
])
def test_json_errors(words, code, tmp_path):
    for place in (1, len(words)):
        result = run(*words[:place], "--output=json", *words[place:], cwd=tmp_path)
        assert result.stderr == b"" and result.returncode == 1
        answer = json.loads(result.stdout)
        assert answer["code"] == code and answer["error"] and len(answer) == 2


def test_json_of_strange_names(tmp_path):
    for name, shown in ((b"a\xff\xc3\x28b", "a\\xff\\xc3(b"), ("\u00e9\"\\".encode(), "\u00e9\"\\"),
                        (b"new\nline\x1b", "new\nline\x1b"), (b"\xed\xa0\x80", "\\xed\\xa0\\x80")):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as f:
            f.write(bytes(512))
        result = run(b"resize", b"-f", b"raw", b"--output=json", path, b"+512")
        assert json.loads(result.stdout.decode())["filename"] == os.path.join(str(tmp_path), shown)
        result = run(b"resize", b"--output=json", path + b"-", b"+512")
        assert shown in json.loads(result.stdout.decode())["error"] or b"\n" in name
        human = run(b"resize", path + b"-", b"+512").stderr
        human.decode()
        assert b"\x1b" not in human


def test_quiet(raw):
    for word in ("-q", "--quiet"):
        result = run("resize", word, "-f", "raw", str(raw), "+1k")
        assert (result.stdout, result.stderr, result.returncode) == (b"", b"", 0)
    result = run("resize", "-q", "-f", "raw", str(raw), "1")
    assert result.returncode == 1 and result.stderr


def test_output_that_cannot_be_written(raw):
    with open("/dev/full", "wb") as full:
        words = [launching.LAUNCHER, "resize", "-f", "raw", raw, "+1k"]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE,
                                timeout=launching.TIMEOUT)
    assert result.returncode == 1 and b"Could not write the result" in result.stderr


def test_started_without_standard_descriptors(raw):
    """No file may become descriptor 0, 1 or 2, where messages would land in it."""
    before = raw.read_bytes()
    result = subprocess.run(["sh", "-c", 'exec "$0" resize -f raw "$1" +1k <&- >&- 2>&-',
                             launching.LAUNCHER, raw], timeout=launching.TIMEOUT)
    assert result.returncode == 0
    assert raw.read_bytes() == before + bytes(1024)


# ---- files that are none ----


def cannot(name, why):
    return "instar-launch: Could not open '%s': %s\n" % (name, why % {"n": name})


REGULAR = "'file' driver requires '%(n)s' to be a regular file"


@pytest.mark.parametrize("name, resize, info", [
    ("missing", *["Could not open '%(n)s': No such file or directory"] * 2),
    ("dir", "Could not open '%(n)s': Is a directory", REGULAR),
    ("fifo", REGULAR, REGULAR), ("socket", REGULAR, REGULAR), ("/dev/null", REGULAR, REGULAR),
    ("loop", *["Could not open '%(n)s': Too many levels of symbolic links"] * 2),
    ("", *["Could not open '%(n)s': No such file or directory"] * 2),
])
def test_wrong_kind_of_file(name, resize, info, tmp_path):
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        refused(run("resize", name, "+1G", cwd=tmp_path), cannot(name, resize))
        refused(run("resize", "-f", "raw", name, "+1G", cwd=tmp_path), cannot(name, resize))
        refused(run("info", name, cwd=tmp_path), cannot(name, info))


def test_fifo_writer_is_not_woken(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["sh", "-c", "echo x > fifo"], cwd=tmp_path) as writer:
        assert run("resize", "fifo", "+1G", cwd=tmp_path).returncode == 1
        assert writer.poll() is None
        writer.kill()


def test_not_permitted(raw, tmp_path):
    """As a user who may not, even if the tests run as root."""
    raw.chmod(0o444)
    tmp_path.chmod(0o755)
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    fd = os.open(raw.parent, os.O_RDONLY)  # parents of the directory may be closed to that user
    message = "Could not open '%(n)s': Permission denied"
    program = os.open(launching.LAUNCHER, os.O_RDONLY)

    def as_nobody(*words):
        return subprocess.run(["/proc/self/fd/%d" % program, *words], capture_output=True,
                              cwd="/proc/self/fd/%d" % fd, pass_fds=[program, fd],
                              timeout=launching.TIMEOUT, **who)
    refused(as_nobody("resize", "-f", "raw", raw.name, "+1G"), cannot(raw.name, message))
    raw.chmod(0o000)
    refused(as_nobody("info", raw.name), cannot(raw.name, message))
    os.close(fd)
    os.close(program)


# ---- locks ----


@pytest.mark.parametrize("byte, resize, info", [
    (100, None, None), (101, 'shared "write"', 'shared "write"'), (102, None, None),
    (103, 'shared "resize"', 'shared "resize"'), (200, '"consistent read"', '"consistent read"'),
    (201, '"write"', None), (202, None, None), (203, '"resize"', None)])
def test_locks_of_others(byte, resize, info, fakes):
    image = fakes.image()
    before = launching.digest(image)
    with open(image, "rb") as f:
        ofd(f, OFD_SETLK, fcntl.F_RDLCK, byte)
        for words, lock in ((["resize", image, "+1G"], resize), (["info", image], info),
                            (["resize", "-f", "raw", image, "+0"], resize)):
            result = fakes.run("ok", *map(str, words))
            if lock is None:
                assert result.returncode == 0
                image.write_bytes(image.read_bytes()[:196616])
            else:
                refused(result, "instar-launch: Could not open '%s': Failed to get %s lock\n"
                        "Is another process using the image [%s]?\n" % (image, lock, image))
                code = fakes.run("ok", *map(str, words), "--output=json").stdout
                assert json.loads(code)["code"] == "LOCKED"
    assert launching.digest(image) == before


def test_exclusive_lock_of_others(raw):
    with open(raw, "r+b") as f:
        ofd(f, OFD_SETLK, fcntl.F_WRLCK, 101)
        result = run("resize", "-f", "raw", str(raw), "+1k")
    assert result.returncode == 1 and b"Failed to get" in result.stderr


def test_locked_by_qemu(tmp_path):
    """A real writer: qemu-io keeps the image open."""
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    before = launching.digest(image)
    with subprocess.Popen(["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as user:
        launching.until(lambda: qemu_holds(image))
        refused(run("resize", str(image), "+1G"),
                "instar-launch: Could not open '%s': Failed to get \"write\" lock\n"
                "Is another process using the image [%s]?\n" % (image, image))
        refused(run("info", str(image)),
                "instar-launch: Could not open '%s': Failed to get shared \"write\" lock\n"
                "Is another process using the image [%s]?\n" % (image, image))
        user.communicate(timeout=launching.TIMEOUT)
    assert launching.digest(image) == before


@pytest.mark.parametrize("words, taken, qemu", [
    (["resize", "+1G"], {100, 101, 103, 201, 203}, ["qemu-img", "info"]),
    (["info"], {100, 201, 203}, ["qemu-img", "resize", "+1G"])])
def test_locks_taken_and_given_up(words, taken, qemu, fakes):
    image = fakes.tmp / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    before = launching.digest(image)
    process = fakes.start("hangs", words[0], str(image), *words[1:])
    fakes.wait_for_fake()
    with open(image, "r+b") as f:
        assert {b for b in range(99, 210)
                if ofd(f, OFD_GETLK, fcntl.F_WRLCK, b) != fcntl.F_UNLCK} == taken
    other = subprocess.run([*qemu[:2], image, *qemu[2:]], capture_output=True)
    assert other.returncode == 1 and b"lock" in other.stderr
    launching.interrupt(process, signal.SIGTERM)
    with open(image, "r+b") as f:
        assert all(ofd(f, OFD_GETLK, fcntl.F_WRLCK, b) == fcntl.F_UNLCK for b in range(99, 210))
    assert launching.digest(image) == before


@pytest.mark.parametrize("name, shown", [
    ("\u061c", "\\xd8\\x9c"), ("\u00ad", "\\xc2\\xad"), ("\u200b", "\\xe2\\x80\\x8b"),
    ("\u202e", "\\xe2\\x80\\xae"), ("\ufe0f", "\\xef\\xb8\\x8f"), ("\ufff9", "\\xef\\xbf\\xb9"),
    ("\U000e0041", "\\xf3\\xa0\\x81\\x81"), ("\U0001d173", "\\xf0\\x9d\\x85\\xb3"),
    ("\u00e9\u0645\U0001f4be", "\u00e9\u0645\U0001f4be")])
def test_what_cannot_be_seen_is_escaped(name, shown, tmp_path):
    """In names and other text: what hides, or turns the direction. JSON has it all, escaped."""
    missing = f"Could not open '{tmp_path}/a%sb': Could not open '{tmp_path}/a%sb': " \
              "No such file or directory"
    path = f"{tmp_path}/a{name}b"
    refused(run("info", path), "instar-launch: " + missing % (shown, shown) + "\n")
    out = run("info", "--output=json", path).stdout.decode()
    assert json.loads(out)["error"] == missing % (name, name)
    assert (name in out) == (name == shown)
