# SPDX-License-Identifier: MIT
"""The launcher's part of rebase, with a fake QEMU: which disks it attaches, what it believes of a
guest, and what it says. The guest here does as the test tells it.
"""
import json
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "fakeqemu"))
import launching  # noqa: E402

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
NO_SENSE = "The VM's outcome makes no sense, and is not acted on\n" + UNCHANGED
OUT_OF_TURN = "The guest asked for a file out of turn\n" + UNCHANGED
NEW = ("-b", "new", "-F", "raw")
LENGTH = 196616


@pytest.fixture
def fakes(tmp_path):
    f = launching.Fakes(tmp_path)
    f.image()
    for name, size in (("new", 4096), ("base", 5000), ("deep", 512), ("data", 1000)):
        f.image(name, size)
    yield f
    f.none_left()


def rebase(fakes, *words, needs=(), script=(["done", {}],), **more):
    """A guest that asks for these files, and then does what the script says."""
    env = {"FAKE_NEEDS": json.dumps(list(needs)), "FAKE_THEN": "script",
           "FAKE_SCRIPT": json.dumps(list(script)), "FAKE_RECORD": "1", **more}
    return fakes.run("needs", "rebase", *(words or NEW), "disk.qcow2", "--timeout=30", more=env)


def refused(fakes, status, message, *words, **more):
    digest = launching.digest(fakes.tmp / "disk.qcow2")
    p = rebase(fakes, *words, **more)
    assert p.stderr.decode() == "instar-launch: " + message
    assert (p.returncode, p.stdout) == (status, b"")
    assert launching.digest(fakes.tmp / "disk.qcow2") == digest


def backing(name, slot, fmt="raw", **more):
    return {"name": name, "role": "ROLE_BACKING", "slot": slot, "format": fmt, **more}


# ---- what the guest gets ----


def test_the_request(fakes):
    p = rebase(fakes, "-b", "new", "-F", "qcow2", "-f", "qcow2")
    assert (p.returncode, p.stdout, p.stderr) == (0, b"", b"")
    assert fakes.disks() == [{"length": "196616", "writable": True, "format": "qcow2"},
                             {"length": "4096", "role": "ROLE_BACKING", "format": "qcow2"}]
    assert fakes.reports()[-1]["request"]["rebase"] == {
        "newBacking": 1, "name": "bmV3", "format": "qcow2"}
    line = " ".join(fakes.reports()[-1]["argv"])
    assert line.count("read-only=off") == 1 and line.count("read-only=on") == 1
    rebase(fakes, "-u", "-b", "gone", "-F", "qed")
    assert len(fakes.disks()) == 1
    assert fakes.reports()[-1]["request"]["rebase"] == {
        "unsafe": True, "name": "Z29uZQ==", "format": "qed"}
    rebase(fakes, "-b", "", "-F", "qed", "--check-only")
    request = fakes.reports()[-1]["request"]
    assert request["rebase"] == {"checkOnly": True} and request["dryRun"]
    assert "writable" not in fakes.disks()[0]


def test_two_chains(fakes):
    """The new backing file is disk 1; what both chains need is attached once."""
    p = rebase(fakes, needs=[backing("base", 0), backing("deep", 2)])
    assert p.returncode == 0, p.stderr
    assert [d.get("backing", 0) for d in fakes.disks()] == [2, 0, 3, 0]
    seen = len(fakes.reports())
    # The guest asks twice for the same file: the answer is the disk that is there.
    env = {"FAKE_NEEDS": "[]", "FAKE_RECORD": "1"}
    p = fakes.run("shares", "rebase", *NEW, "disk.qcow2", more=env)
    assert p.returncode == 0, p.stderr
    boots = [r["request"]["disks"] for r in fakes.reports()[seen:]]
    assert [len(b) for b in boots] == [2, 3, 3, 4]
    assert [d.get("backing", 0) for d in boots[-1]] == [2, 2, 3, 0]


def test_a_file_of_two_formats(fakes):
    """One of them is what the user says, and the two may show different things."""
    p = rebase(fakes, needs=[backing("new", 0, "qcow2")])
    assert p.returncode == 0, p.stderr
    assert [(d["length"], d.get("format")) for d in fakes.disks()[1:]] == [
        ("4096", "raw"), ("4096", "qcow2")]


def test_loops(fakes):
    os.link(fakes.tmp / "disk.qcow2", fakes.tmp / "self")
    os.link(fakes.tmp / "new", fakes.tmp / "newer")
    for needs, name in (([backing("self", 1)], "self"), ([backing("newer", 1)], "newer"),
                        ([backing("base", 1), backing("base", 2)], "base"),
                        ([backing("base", 1), backing("newer", 2)], "newer"),
                        ([backing("base", 0), backing("self", 2)], "self")):
        for mode in ([], ["-u"]):
            refused(fakes, 1, f"Backing file '{name}' creates an infinite loop.\n", *mode, *NEW,
                    needs=needs)
    refused(fakes, 1, "Backing file 'data' is an external data file already.\n", needs=[
        {"name": "data", "role": "ROLE_DATA", "writable": True}, backing("data", 1)])
    refused(fakes, 1, "External data file 'base' is another file of the chain already.\n", needs=[
        backing("base", 1), {"name": "base", "role": "ROLE_DATA", "slot": 2}])


def test_data_files_that_are_read_may_be_shared(fakes):
    p = rebase(fakes, needs=[backing("base", 0), {"name": "data", "role": "ROLE_DATA", "slot": 1},
                             {"name": "data", "role": "ROLE_DATA", "slot": 2}])
    assert p.returncode == 0, p.stderr
    refused(fakes, 1, "External data file 'data' is another file of the chain already.\n", needs=[
        {"name": "data", "role": "ROLE_DATA", "writable": True},
        {"name": "data", "role": "ROLE_DATA", "slot": 1}])


def test_what_is_lost(fakes):
    """In unsafe mode. To ask again makes no sense."""
    p = rebase(fakes, "-u", *NEW, needs=[backing("gone", 1)])
    assert p.returncode == 4 and p.stderr.decode() == "instar-launch: " + OUT_OF_TURN
    assert fakes.disks()[1]["lost"] is True


@pytest.mark.parametrize("words, needs", [
    (("-u", *NEW), [{"name": "data", "role": "ROLE_DATA"}]),
    (NEW, [backing("base", 0), backing("deep", 0)]),
    (NEW, [backing("base", 7)]),
    (NEW, [{"name": "data", "role": "ROLE_DATA"}, {"name": "base", "role": "ROLE_DATA"}]),
    (NEW, [{"name": "data", "role": "ROLE_DATA"}, backing("base", 2)]),
    (NEW, [{"name": "data", "role": "ROLE_IMAGE"}]),
], ids=str)
def test_out_of_turn(fakes, words, needs):
    refused(fakes, 4, OUT_OF_TURN, *words, needs=needs)


@pytest.mark.parametrize("need", [backing("base", 0, writable=True),
                                  {"name": "data", "role": "ROLE_DATA", "slot": 1,
                                   "writable": True}], ids=str)
def test_nothing_else_is_written(fakes, need):
    refused(fakes, 4, "The guest asked for a file to write that it may only read\n" + UNCHANGED,
            needs=[need])


# ---- what is believed ----


@pytest.mark.parametrize("result", [
    {"mode": "unsafe"}, {"mode": ""}, {"error": 5}, {"file_size_before": 1},
    {"file_size_after": LENGTH - 1}, {"file_size_after": LENGTH + 1},
    {"files_after": [{"slot": 1, "length": 4096}]}, {"files_after": [{"slot": 9, "length": 1}]},
], ids=str)
def test_outcomes_that_make_no_sense(fakes, result):
    refused(fakes, 4, NO_SENSE, script=[["done", result]])


def test_a_hostile_result(fakes):
    p = rebase(fakes, *NEW, "--output=json",
               script=[["done", {"overlay_format": "q\x1b[31m", "clusters_copied": (1 << 64) - 1}]])
    assert b"\x1b" not in p.stdout
    assert json.loads(p.stdout)["clusters_copied"] == (1 << 64) - 1


def test_how_far_a_file_may_grow(fakes):
    """Into all free space but a twentieth; in unsafe mode there is nothing to copy."""
    free = os.statvfs(fakes.tmp)
    free = free.f_bavail * free.f_frsize
    need = [["need", {"epoch": 0, "lengths": [{"slot": 0, "length": LENGTH + (700 << 20)}]}],
            ["granted", 0], ["done", {}]]
    if free > 2 << 30:
        p = rebase(fakes, script=need)
        assert p.returncode == 0, p.stderr
    for words in (("-u", *NEW), (*NEW, "--max-growth=600M")):
        p = rebase(fakes, *words, script=need)
        assert p.returncode == 1 and b"its limit is" in p.stderr
    need[0][1]["lengths"][0]["length"] = LENGTH + free
    p = rebase(fakes, script=need)
    assert p.returncode == 1 and b"its limit is" in p.stderr
    assert os.stat(fakes.tmp / "disk.qcow2").st_size == LENGTH


# ---- what is said ----


def test_progress(fakes):
    script = [["progress", 0, 1, 4], ["progress", 10, 0, 0], ["progress", 0, 3, 4],
              ["progress", 0, 7, 4], ["done", {}]]
    p = rebase(fakes, *NEW, "-p", script=script)
    assert (p.returncode, p.stderr) == (0, b"")
    assert p.stdout == b"".join(b"    (%s/100%%)\r" % x for x in (
        b"0.00", b"25.00", b"75.00", b"100.00")) + b"\n"
    assert rebase(fakes, *NEW, "-p", "-q", script=script).stdout == b""


def test_check_only(fakes):
    done = [["done", {"clusters_copied": 3, "bytes_copied": 196608}]]
    p = rebase(fakes, *NEW, "--check-only", "-p", script=done)
    assert p.stdout == b"3 clusters would be copied (196608 bytes). Nothing was written.\n"
    p = rebase(fakes, *NEW, "--check-only", "--output=json", script=done)
    assert json.loads(p.stdout) == {
        "overlay": "disk.qcow2", "overlay_format": "qcow2", "mode": "safe", "clusters_copied": 3,
        "bytes_copied": 196608, "new_backing": "new", "check_only": True}


def test_refcounts_that_were_rebuilt(fakes):
    p = rebase(fakes, script=[["done", {"rebuilt": True}]])
    assert (p.returncode, p.stderr) == (0, b"Rebuilding refcount structure\n")


@pytest.mark.parametrize("code, error, words", [
    ("BACKING_PATH_TOO_LONG", {"what": "No space left in the file header", "file": "planner/q.c"},
     "Could not change the backing file to 'new': No space left in the file header"),
    ("DESCRIPTOR_TOO_LARGE", {"what": "", "file": "planner/v.c"},
     "Could not change the backing file to 'new': The image's descriptor is too large"),
    ("UNSUPPORTED_FORMAT", {"what": "Operation not supported", "file": "planner/plan.c"},
     "Could not change the backing file to 'new': Operation not supported"),
    ("INTERNAL_OVERFLOW", {"what": "", "file": "planner/undo.c"},
     "A number in the image is too large"),
    ("PARSE_FAILED", {"what": "no", "file": "formats/q.c"}, "Could not open 'disk.qcow2': no"),
    ("PARSE_FAILED", {"what": "no", "file": "formats/q.c", "disk": 1},
     "Could not open new backing file 'new': no"),
    ("PARSE_FAILED", {"what": "no", "file": "formats/q.c", "disk": 2},
     "Could not open 'disk.qcow2': Could not open backing file '{base}': no"),
    ("PARSE_FAILED", {"what": "no", "file": "formats/q.c", "disk": 4000000000},
     "Could not open 'disk.qcow2': no"),
], ids=str)
def test_errors(fakes, code, error, words):
    refused(fakes, 1, words.format(base=fakes.tmp / "base") + "\n", needs=[backing("base", 0)],
            script=[["error", {"code": code, **error}]])


def test_a_guest_that_dies(fakes):
    p = rebase(fakes, script=[["write", 1000, "00"], ["exit", 3]])
    assert p.returncode == 4
    assert b"the image stands on its old backing file or on the new one, and has all its data.\n" \
        in p.stderr
    before = launching.digest(fakes.tmp / "disk.qcow2")
    p = rebase(fakes, script=[["undo", 0, 0, [1]], ["need", {"epoch": 0, "undo": True}],
                              ["granted", 0], ["fail"]])
    assert p.returncode == 1 and launching.digest(fakes.tmp / "disk.qcow2") == before
    assert not list(fakes.tmp.glob("*.instar-undo"))
