# SPDX-License-Identifier: MIT
"""--dry-run: the plan is printed, is what a run does, and nothing is written: not to the file, not
to its directory, whoever asks.
"""
import ctypes
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import pytest

from conftest import IMAGES, LAUNCH, be64, create, info, patch, qemu_img, qemu_io, run, sha256

import launching

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED, IN_CREATE, IN_DELETE = 2, 4, 8, 0xC0, 0x100, 0x200
CHANGES = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED | IN_CREATE | IN_DELETE


class Watch:
    """What happens in a directory, by inotify: even a file opened for writing is seen."""

    def __init__(self, path):
        libc = ctypes.CDLL(None)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self.fd, os.fsencode(path), CHANGES) >= 0

    def events(self):
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, mask, _, n = struct.unpack_from("iIII", data)
            found.append((mask, data[16:16 + n].rstrip(b"\0").decode()))
            data = data[16 + n:]
        return found


def state(path):
    s = os.stat(path)
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode, sha256(path)


def dry(*words, **kw):
    """The plan as an object."""
    p = run(LAUNCH, "resize", "--dry-run", "--output=json", *words, check=True, **kw)
    plan = json.loads(p.stdout)
    assert p.stderr == "" and plan["dry_run"] is True
    return plan


def perform(plan, path):
    """The plan, done by hand."""
    with open(path, "r+b") as f:
        for p in plan["plan"]:
            if p["kind"] == "length":
                f.truncate(p["length"])
                continue
            data = bytes(p["length"])
            if p["kind"] == "copy":
                f.seek(p["from_offset"])
                data = f.read(p["length"])
            elif p["kind"] == "write":
                data = bytes.fromhex(p["data"])
            assert p["kind"] in ("write", "zero", "copy", "discard", "barrier"), p
            if p["kind"] == "discard":
                continue  # a hint
            assert len(data) == p["length"]
            f.seek(p["offset"])
            f.write(data)
        f.truncate(plan["new_file_size"])


@pytest.mark.parametrize("size, options, more", [
    ("20G", [], "+5G"), ("20G", [], "+5T"), ("1G", ["cluster_size=2M"], "+64T"),
    ("1G", ["refcount_bits=1"], "+512"), ("1G", ["compat=0.10"], "20G"), ("1G", [], "+0")])
def test_the_plan_is_what_is_done(tmp_path, size, options, more):
    image = create(tmp_path / "disk.qcow2", size, *options)
    by_hand = tmp_path / "copy.qcow2"
    shutil.copyfile(image, by_hand)
    before = state(image)
    plan = dry(image, more)
    assert state(image) == before
    perform(plan, by_hand)
    assert json.loads(run(LAUNCH, "resize", "--output=json", image, more, check=True).stdout) == {
        k: v for k, v in plan.items() if k not in ("dry_run", "plan", "more")}
    assert sha256(image) == sha256(by_hand)
    assert os.stat(image).st_size == plan["new_file_size"]
    assert qemu_img("check", "-f", "qcow2", by_hand).returncode == 0
    commits = [p for p in plan["plan"] if p.get("commit")]
    assert len(commits) == (more != "+0")
    assert all(p["why"] and p["epoch"] == 0 for p in plan["plan"])


# ---- every kind of plan ----


def overlay(tmp_path, size, base_size, *options):
    (tmp_path / "base").write_bytes(b"\x66" * base_size)
    return create(tmp_path / "disk.qcow2", size, "backing_file=base", "backing_fmt=raw", *options)


def filled(tmp_path, size, *options, snapshot=False):
    image = create(tmp_path / "disk.qcow2", size, *options)
    qemu_io(image, "write -P 1 0 1M", f"write -P 2 {size // 2} 512k", f"write -P 3 {size - KIB} 1k")
    if snapshot:
        qemu_img("snapshot", "-c", "s", image)
    return image


# name: (maker, arguments, does one epoch suffice)
PLANS = {
    "header-only": (lambda t: filled(t, 9 * MIB), ["+1M"], True),
    "old-bytes": (lambda t: filled(t, 9 * MIB + KIB), ["+1M"], True),
    "l1-in-place": (lambda t: filled(t, 9 * MIB), ["3G"], True),
    "l1-moves": (lambda t: filled(t, 4 * MIB, "cluster_size=512"), ["40M"], True),
    "refcount-block": (lambda t: filled(t, 4 * MIB, "cluster_size=512", "refcount_bits=64"), ["60M"],
                       True),
    "refcount-table": (lambda t: filled(t, 9 * MIB, "cluster_size=512", "refcount_bits=64",
                                        "preallocation=metadata"), ["+64M"], True),
    "shared-last-cluster": (lambda t: filled(t, 9 * MIB + KIB, snapshot=True), ["+1M"], True),
    "backing-shorter": (lambda t: overlay(t, 3 * MIB, 2 * MIB), ["+9M"], True),
    "nothing": (lambda t: filled(t, 9 * MIB), ["+0"], True),
    "shrink": (lambda t: filled(t, 9 * MIB), ["--shrink", "1M"], False),
    "shrink-512": (lambda t: filled(t, 3 * MIB, "cluster_size=512"), ["--shrink", "525k"], False),
    "shrink-inside": (lambda t: filled(t, 9 * MIB, "extended_l2=on"), ["--shrink", "617k"], False),
    "shrink-shared": (lambda t: filled(t, 9 * MIB, snapshot=True), ["--shrink", "617k"], False),
    "metadata": (lambda t: filled(t, 3 * MIB), ["--preallocation=metadata", "+5M"], False),
    "falloc": (lambda t: filled(t, 3 * MIB + KIB), ["--preallocation=falloc", "+5M"], False),
    "full": (lambda t: filled(t, 3 * MIB, "cluster_size=4k"), ["--preallocation=full", "+1M"],
             False),
    "backing-longer": (lambda t: overlay(t, 3 * MIB + KIB, 4 * MIB), ["+9M"], False),
    "backing-longer-v2": (lambda t: overlay(t, 3 * MIB, 4 * MIB, "compat=0.10"), ["+9M"], False),
}


def check_bounds(plan, length):
    """Every patch lies in the file as it is by then, and an epoch ends at a barrier."""
    for p in plan["plan"]:
        assert p["slot"] == 0 and p["why"]
        if p["kind"] == "length":
            length = p["length"]
        elif p["kind"] == "barrier":
            assert (p["offset"], p["length"]) == (0, 0)
        else:
            assert p["length"] > 0 and p["offset"] + p["length"] <= length, p
            assert p.get("from_offset", 0) + p["length"] * ("from_offset" in p) <= length, p
            assert p["kind"] == "write" or "data" not in p
        if p.get("commit"):
            assert p["kind"] == "write" and p["offset"] // 512 == (p["offset"] + p["length"] - 1) // 512
    assert plan["new_file_size"] == length
    assert not plan["plan"] or plan["plan"][-1]["kind"] == "barrier"


@pytest.mark.parametrize("name", PLANS)
def test_kinds_of_plans(tmp_path, name):
    """Every epoch is shown, and nothing written; the patches, done by hand, are what a run does."""
    maker, args, one_epoch = PLANS[name]
    image = maker(tmp_path)
    before = {p: state(p) for p in tmp_path.iterdir()}
    watch = Watch(tmp_path)
    plan = dry(*args[:-1], image, args[-1])
    text = run(LAUNCH, "resize", "--dry-run", *args[:-1], image, args[-1], check=True).stdout
    assert {p: state(p) for p in tmp_path.iterdir()} == before and watch.events() == []
    assert text.endswith("Dry run: nothing was written.\n")
    assert f"patches:      {len(plan['plan'])}\n" in text
    assert plan["more"] is False and "More epochs follow" not in text
    check_bounds(plan, before[image][0])
    epochs = [p["epoch"] for p in plan["plan"]]
    assert epochs == sorted(epochs) and (set(epochs) <= {0}) is one_epoch
    commits = [p["epoch"] for p in plan["plan"] if p.get("commit")]
    assert len(commits) == len(set(commits)) and bool(commits) is (name != "nothing")

    by_hand = tmp_path / "by-hand.qcow2"
    shutil.copyfile(image, by_hand)
    writes = [p for p in plan["plan"] if p["kind"] == "write"]
    assert all(("data" in p) == (p["length"] <= 64) for p in writes)
    shown = all("data" in p for p in writes)  # else it cannot be done by hand
    done = json.loads(run(LAUNCH, "resize", "--output=json", *args[:-1], image, args[-1],
                          check=True).stdout)
    assert done == {k: v for k, v in plan.items() if k not in ("dry_run", "plan", "more")}
    assert os.stat(image).st_size == plan["new_file_size"]
    assert qemu_img("check", "-f", "qcow2", image).returncode == 0
    if shown:
        perform(plan, by_hand)
        assert qemu_img("compare", "-f", "qcow2", "-F", "qcow2", image, by_hand).returncode == 0
        assert qemu_img("check", "-f", "qcow2", by_hand).returncode == 0
        if not any(p["kind"] == "discard" for p in plan["plan"]):  # holes may read as they like
            assert sha256(image) == sha256(by_hand)
    assert shown or name in ("refcount-block", "refcount-table", "metadata", "falloc", "full",
                             "backing-longer", "backing-longer-v2") or "--shrink" in args


@pytest.mark.parametrize("args", [["-f", "raw", "+1M"], ["-f", "raw", "--shrink", "100"], ["+1M"],
                                  ["--preallocation=falloc", "+1M"],
                                  ["-f", "raw", "--preallocation=falloc", "+3k"]], ids=" ".join)
def test_raw_plans(tmp_path, args):
    image, by_hand = tmp_path / "disk.raw", tmp_path / "by-hand.raw"
    image.write_bytes(b"x" * 10000)
    before = state(image)
    p = run(LAUNCH, "resize", "--dry-run", "--output=json", *args[:-1], image, args[-1], check=True)
    plan = json.loads(p.stdout)
    assert state(image) == before and plan["format"] == "raw"
    lengths = [q["length"] for q in plan["plan"] if q["kind"] == "length"]
    assert lengths == [plan["new_file_size"]] and plan["more"] is False
    shutil.copyfile(image, by_hand)
    perform(plan, by_hand)
    run(LAUNCH, "resize", "-q", *args[:-1], image, args[-1], check=True)
    assert image.read_bytes() == by_hand.read_bytes()


@pytest.mark.parametrize("output", [[], ["--output=json"]], ids=["text", "json"])
def test_refused_plans(tmp_path, output):
    """Whatever a run refuses, a dry run refuses with the same code, and neither writes."""
    clusters_512 = create(tmp_path / "b.qcow2", MIB, "cluster_size=512")
    missing = overlay(tmp_path, 3 * MIB, 4 * MIB).rename(tmp_path / "c.qcow2")
    (tmp_path / "base").unlink()
    image = filled(tmp_path, 4 * MIB, snapshot=True)
    patch(image, 88, be64(1 << 50))
    before = {p: state(p) for p in tmp_path.iterdir()}
    for path, args, code in (
            (image, ["+1"], "INVALID_NEW_SIZE"), (image, ["1M"], "SHRINK_WITHOUT_FLAG"),
            (image, ["--max-growth=0", "--preallocation=full", "+1M"], "NO_SPACE"),
            (clusters_512, ["129G"], "INVALID_NEW_SIZE"), (missing, ["+1M"], "READ_FAILED"),
            (image, ["-f", "vmdk", "+1M"], None)):
        said = []
        for dry_run in ([], ["--dry-run"]):
            p = run(LAUNCH, "resize", *output, *dry_run, *args[:-1], path, args[-1])
            assert p.returncode == 1
            said.append(json.loads(p.stdout)["code"] if output else p.stderr.splitlines()[0])
        assert said[0] == said[1] and (not output or code in (None, said[0])), args
    assert {p: state(p) for p in tmp_path.iterdir()} == before


def test_for_people(tmp_path):
    image = create(tmp_path / "disk.qcow2", "20G")
    text = run(LAUNCH, "resize", "--dry-run", image, "+5G", check=True).stdout
    lines = text.splitlines()
    assert lines[0] == "epoch  kind               offset            length  why"
    assert lines[1].split()[:4] == ["0", "length", "-", "262144"]
    assert lines[-1] == "Dry run: nothing was written."
    commit = next(i for i, line in enumerate(lines) if "COMMIT: " in line)
    assert lines[commit + 1].split() == "00 00 00 06 40 00 00 00 00 00 00 00 00 00 00 32".split()
    assert "virtual size: 20 GiB (21474836480 bytes) -> 25 GiB (26843545600 bytes)" in lines
    assert "file length:  192 KiB (196928 bytes) -> 256 KiB (262144 bytes)" in lines
    assert max(map(len, lines)) <= 110 + len(str(image))
    # A plan without patches
    lines = run(LAUNCH, "resize", "--dry-run", image, "+0", check=True).stdout.splitlines()
    assert "patches:      0" in lines
    assert lines[-1] == "Dry run: nothing was written."


def test_refusals(tmp_path):
    image = create(tmp_path / "disk.qcow2", "1G")
    before = state(image)
    p = run(LAUNCH, "resize", "--dry-run", image, "1M")
    assert (p.returncode, p.stdout) == (1, "") and "--shrink" in p.stderr
    p = run(LAUNCH, "resize", "--dry-run", "--output=json", image, "+1")
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "INVALID_NEW_SIZE"
    # The verdict on growth is that of a run, although nothing is asked for
    for words in ([], ["--dry-run"]):
        p = run(LAUNCH, "resize", image, "+5T", "--max-growth=1k", *words)
        assert p.returncode == 1 and "--max-growth=" in p.stderr
        # also where only later epochs would ask
        p = run(LAUNCH, "resize", image, "+1M", "--max-growth=100k", "--preallocation=full", *words)
        assert p.returncode == 1 and "--max-growth=" in p.stderr
    assert "unrecognized option '--dry-run'" in run(LAUNCH, "info", "--dry-run", image).stderr
    assert state(image) == before


def test_nothing_is_written(tmp_path):
    image = create(tmp_path / "disk.qcow2", "20G")
    before = state(image)
    watch = Watch(tmp_path)
    for words in ([image, "+5G"], [image, "+5T"], ["-f", "raw", image, "+5G"],
                  ["-f", "raw", "--shrink", image, "1k"], [image, "-5G"]):
        run(LAUNCH, "resize", "--dry-run", *words)
    assert watch.events() == []
    assert state(image) == before
    # The watch sees what it should
    run(LAUNCH, "resize", image, "+5G", check=True)
    assert {name for _, name in watch.events()} == {image.name}


@pytest.fixture
def stranger():
    """A directory that nobody may write, with a program and images for whoever is not root."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="instar-", dir="/tmp"))
    (path / "images").mkdir()
    shutil.copy(LAUNCH, path / "instar-launch")
    shutil.copy(IMAGES / "resize.elf", path / "images")
    create(path / "disk.qcow2", "20G")
    (path / "disk.raw").write_bytes(b"x" * 1024)
    for name in ("disk.qcow2", "disk.raw"):
        (path / name).chmod(0o444)
    for name in (".", "images"):
        (path / name).chmod(0o555)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def test_a_stranger_may_ask(stranger):
    """As a user who may read the file and no more: 0444 in a directory of 0555."""
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    for name, options in (("disk.qcow2", []), ("disk.raw", ["-f", "raw"])):
        image = stranger / name
        before = state(image)
        watch = Watch(stranger)
        words = [stranger / "instar-launch", "resize", "--images", stranger / "images", *options,
                 image, "+5G"]
        p = run(*words, **who)
        assert p.returncode == 1 and "Permission denied" in p.stderr
        p = run(*words, "--dry-run", **who)
        assert (p.returncode, p.stderr) == (0, "")
        assert p.stdout.endswith("\nDry run: nothing was written.\n")
        assert watch.events() == [] and state(image) == before


@pytest.mark.parametrize("machine", ["microvm", "q35", "pc"])
@pytest.mark.parametrize("sector", ["512", "4096"])
def test_machines(tmp_path, accel, machine, sector):
    """The same plan, and then the same file, on every machine."""
    image = create(tmp_path / "disk.qcow2", "20G")
    os.truncate(image, 200704)  # 49 whole blocks
    words = ["--machine", machine, "--accel", accel, "--logical-block-size", sector]
    plan = dry(image, "+5T", *words)
    assert [p["kind"] for p in plan["plan"]][0] == "length" and plan["action"] == "grow"
    run(LAUNCH, "resize", image, "+5T", *words, check=True)
    assert qemu_img("check", "-f", "qcow2", image).returncode == 0
    assert os.stat(image).st_size == plan["new_file_size"]
    info = json.loads(run(LAUNCH, "info", "--output=json", image, *words, check=True).stdout)
    assert info["virtual-size"] == 20 * GIB + (5 << 40)


def test_length_that_is_no_whole_block(tmp_path):
    image = create(tmp_path / "disk.qcow2", "20G")
    p = run(LAUNCH, "info", image, "--logical-block-size=4096")
    assert p.returncode == 1 and "196928 bytes long: not a whole number of blocks" in p.stderr


def test_raw(tmp_path):
    image = tmp_path / "disk.raw"
    image.write_bytes(b"x" * 1000)
    for words, size in ((["+1k"], 2048), (["512", "--shrink"], 512)):
        plan = dry("-f", "raw", image, *words)
        assert [(p["kind"], p["length"], p["commit"]) for p in plan["plan"]] == [
            ("length", size, True)]
        assert plan["new_file_size"] == size and plan["format"] == "raw"
    image.write_bytes(b"x" * 1024)
    assert dry("-f", "raw", image, "1k")["plan"] == []
    for mode, kind in (("full", "write"), ("falloc", "zero")):
        plan = dry("-f", "raw", "--preallocation", mode, image, "+2M")
        assert [(p["kind"], p["offset"], p["length"]) for p in plan["plan"]] == [
            ("length", 0, 1024 + (2 << 20)), (kind, 1024, 2 << 20)]
    p = run(LAUNCH, "resize", "--dry-run", "-f", "raw", image, "0")
    assert p.returncode == 1 and p.stdout == ""
    assert image.read_bytes() == b"x" * 1024


def test_image_in_use(tmp_path):
    """Read-only as it is, it wants no writer beside it."""
    image = create(tmp_path / "disk.qcow2", "1G")
    with subprocess.Popen(["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as user:
        launching.until(lambda: launching.qemu_holds(image))
        p = run(LAUNCH, "resize", "--dry-run", image, "+1G")
        assert p.returncode == 1 and 'Failed to get shared "write" lock' in p.stderr
        user.communicate(timeout=launching.TIMEOUT)


# ---- what a hostile guest makes of it ----


@pytest.fixture
def fakes(fakes):
    fakes.image()
    return fakes


WORDS = ["resize", "--dry-run", "disk.qcow2", "+1G"]


def test_request(fakes):
    fakes.run("plans", *WORDS, more={"FAKE_RECORD": "1"})
    cage = fakes.reports()[-1]
    assert cage["request"]["dryRun"] is True and "writable" not in cage["request"]["disks"][0]
    assert cage["file_size"] == [0, 0] and "read-only=on" in " ".join(cage["argv"])


def test_every_kind(fakes):
    plan = json.loads(fakes.run("plans", *WORDS, "--output=json").stdout)
    zero = {"epoch": 0, "slot": 0, "offset": 0, "length": 0}
    assert plan["plan"] == [
        {**zero, "kind": "length", "length": 262144, "why": "room"},
        {**zero, "kind": "write", "offset": 24, "length": 4, "data": "0001feff", "commit": True,
         "why": "size"},
        {**zero, "kind": "write", "epoch": 1, "offset": 1 << 50, "length": 1 << 20,
         "why": "too long to show"},
        {**zero, "kind": "zero", "offset": 65536, "length": 512, "may_unmap": True, "why": "tail"},
        {**zero, "kind": "copy", "offset": 131072, "length": 65536, "from_slot": 0,
         "from_offset": 196608, "why": "moved"},
        {**zero, "kind": "discard", "offset": 1, "length": 2, "why": "garbage"},
        {**zero, "kind": "insert", "offset": 3, "length": 4, "why": "x"},
        {**zero, "kind": "barrier", "why": "durable"}]
    lines = fakes.run("plans", *WORDS).stdout.decode().splitlines()
    assert lines[1:10] == [
        "    0  length                  -            262144  room",
        "    0  write                  24                 4  COMMIT: size",
        "                                                    00 01 fe ff",
        "    1  write    1125899906842624           1048576  too long to show",
        "    0  zero                65536               512  tail",
        "    0  copy               131072             65536  moved (from 196608)",
        "    0  discard                 1                 2  garbage",
        "    0  insert                  3                 4  x",
        "    0  barrier                 -                 -  durable"]


@pytest.mark.parametrize("mode, code, status", [
    ("plans_and_refuses", "INCONSISTENT", 1), ("plans_garbage", "PROTOCOL", 4),
    ("plans_more_than_may_be", "NO_SPACE", 1), ("unknown_kind_of_patch", "PROTOCOL", 4),
    ("needs_in_a_dry_run", "PROTOCOL", 4)])
def test_failures_are_still_one_object(mode, code, status, fakes):
    before = state(fakes.tmp / "disk.qcow2")
    result = fakes.run(mode, *WORDS, "--output=json")
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["code"], result.stderr) == (status, code, b"")
    assert len(answer.get("plan", [1])) == 1
    result = fakes.run(mode, *WORDS)
    assert result.returncode == status and result.stderr
    assert b"nothing was written" not in result.stdout
    assert state(fakes.tmp / "disk.qcow2") == before


def test_interrupted(fakes):
    process = fakes.start("plans_and_hangs", *WORDS, "--output=json")
    fakes.wait_for_fake()
    time.sleep(0.3)  # for the patch
    out, _ = launching.interrupt(process)
    assert process.returncode == -signal.SIGINT
    assert json.loads(out)["code"] == "INTERRUPTED"


def test_strange_things(fakes):
    result = fakes.run("plans_strange_things", *WORDS)
    text = result.stdout.decode()
    assert result.returncode == 0 and "\x1b" not in text
    assert "\\x1b[2J\\x0a\"" in text and "18446744073709551615" in text
    plan = json.loads(fakes.run("plans_strange_things", *WORDS, "--output=json").stdout)["plan"]
    assert plan[0]["why"] == "\x1b[2J\n\"" and plan[0]["data"] == "1b" * 64
    assert plan[0]["slot"] == 9 and plan[0]["epoch"] == (1 << 32) - 1


def test_a_plan_of_any_length(fakes):
    """It is printed as it comes: memory is bounded, whatever a guest sends."""
    words = [launching.LAUNCHER, WORDS[0], "--accel=tcg", *WORDS[1:], "--output=json"]
    with open(fakes.tmp / "plan.json", "w+b") as out:
        p = subprocess.Popen(words, env=fakes.env("plans_without_end"), cwd=fakes.tmp, stdout=out,
                             stdin=subprocess.DEVNULL)
        fakes.wait_for_fake()  # which needs more
        resource.prlimit(p.pid, resource.RLIMIT_DATA, (4 << 20, 4 << 20))
        assert p.wait(timeout=launching.TIMEOUT) == 0
        out.seek(0)
        assert len(json.load(out)["plan"]) == 200000


def test_patches_are_for_dry_runs(fakes):
    result = fakes.run("plans", "resize", "disk.qcow2", "+1G")
    assert result.returncode == 4 and b"an event that nobody asked for" in result.stderr
