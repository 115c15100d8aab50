# SPDX-License-Identifier: MIT
"""Zeros that a guest (tests/fakeqemu) has inserted into its image: where the file system can, where
it only seemed to, and where it cannot.
"""
import json
import os
import pathlib
import subprocess
import sys

import pytest

import launching

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
GROW = ("resize", "disk.qcow2", "+1G", "--timeout=5")
UNIT, LENGTH = 4096, 3 * 4096 + 512
LIMIT = LENGTH + (1 << 30) + (1 << 25) + (640 << 20)


@pytest.fixture
def image(fakes):
    return fakes.image(size=LENGTH)


def unit_of(fakes, path="disk.qcow2"):
    """The insert_unit that the guest is told."""
    assert fakes.run("ok", "noop", path, more={"FAKE_RECORD": "1"}).returncode == 0
    return fakes.reports()[-1]["request"]["disks"][0].get("insertUnit", 0)


def file_system(path):
    return subprocess.run(["stat", "-f", "-c", "%T", path], check=True,
                          capture_output=True).stdout.decode().strip()


@pytest.fixture
def able(fakes, image):
    """Only where insertions work."""
    if unit_of(fakes) != UNIT:
        pytest.skip("%s inserts nothing, or not in units of %d" % (file_system(fakes.tmp), UNIT))


def insert(fakes, off, n, *words, then="", **more):
    return fakes.run("inserts", *(words or GROW), more={
        "FAKE_INSERT": json.dumps([off, n]), "FAKE_THEN": then, **more})


def mounted(tmp_path, *options):
    """A small file system in a file; its directory, and what ends it."""
    where = tmp_path / "mounted"
    where.mkdir()
    with open(tmp_path / "disk", "wb") as f:
        f.truncate(8 << 20)
    for words in (["mkfs.ext4", "-q", *options, tmp_path / "disk"],
                  ["mount", "-o", "loop", tmp_path / "disk", where]):
        try:
            result = subprocess.run(words, capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no %s" % words[0])
        if result.returncode:
            pytest.skip("%s: %s" % (words[0], result.stderr.decode().strip()))
    return where


# ---- where it works ----


def test_insertion(fakes, image, able):
    before = image.read_bytes()
    for off, n in ((3 * UNIT, UNIT), (0, 2 * UNIT), (UNIT, 1 << 20)):
        result = insert(fakes, off, n)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"Image resized.\n", b"")
        before = before[:off] + bytes(n) + before[off:]
        assert image.read_bytes() == before


def test_death_after_an_insertion(fakes, image, able):
    """It is not taken back: what followed follows, and nothing may be cut off there."""
    before = image.read_bytes()
    result = insert(fakes, UNIT, UNIT, then="dies")
    assert result.returncode == 4
    assert b"The file had been granted a length of %d bytes" % (LENGTH + UNIT) in result.stderr
    assert image.read_bytes() == before[:UNIT] + bytes(UNIT) + before[UNIT:]


def test_an_insertion_that_qemu_does_not_show(fakes, image, able):
    """The file is longer by then, and must not be cut, although nothing was granted."""
    before = image.read_bytes()
    script = [["qmp error"], ["need", {"epoch": 2, "insert": {"off": 0, "len": UNIT}}],
              ["granted", 2]]
    result = fakes.run("script", *GROW, more={"FAKE_SCRIPT": json.dumps(script)})
    assert result.returncode == 1 and b"could not be made longer: oops" in result.stderr
    assert image.read_bytes() == bytes(UNIT) + before


LIES = [
    ({"slot": 1, "off": 0, "len": UNIT}, "into a disk (slot 1) that it may not write"),
    ({"slot": 0, "off": 1, "len": UNIT}, "makes no sense (4096 bytes at 1)"),
    ({"slot": 0, "off": 0, "len": 512}, "makes no sense (512 bytes at 0)"),
    ({"slot": 0, "off": 0, "len": 0}, "makes no sense (0 bytes at 0)"),
    ({"slot": 0, "off": 4 * UNIT, "len": UNIT}, "makes no sense (4096 bytes at 16384)"),
    ({"slot": 0, "off": (1 << 64) - UNIT, "len": UNIT}, "makes no sense"),
    ({"slot": 0, "off": 0, "len": (1 << 64) - UNIT}, "makes no sense"),
]


@pytest.mark.parametrize("lie, words", LIES)
def test_insertions_that_make_no_sense(lie, words, fakes, image, able):
    before = launching.digest(image)
    for more in ({}, {"lengths": [{"slot": 0, "length": 1 << 20}]}, {"undo": True}):
        script = json.dumps([["need", {"insert": lie, **more}], ["hang"]])
        result = fakes.run("script", *GROW, more={"FAKE_SCRIPT": script})
        text = result.stderr.decode()
        assert result.returncode == 4 and words in text and text.endswith(UNCHANGED), text
        assert launching.digest(image) == before


def test_an_insertion_and_more(fakes, image, able):
    """It stands alone in its Need."""
    before = launching.digest(image)
    for more in ({"lengths": [{"slot": 0, "length": 1 << 20}]}, {"undo": True}):
        script = json.dumps([["need", {"insert": {"off": 0, "len": UNIT}, **more}], ["hang"]])
        result = fakes.run("script", *GROW, more={"FAKE_SCRIPT": script})
        assert result.returncode == 4 and b"makes no sense" in result.stderr
        assert launching.digest(image) == before


def test_an_insertion_beyond_the_limit(fakes, image, able):
    before = launching.digest(image)
    result = insert(fakes, 0, 2 << 30)
    assert result.returncode == 1
    assert b"have to grow to %d bytes, and its limit is %d" % (LENGTH + (2 << 30), LIMIT) in \
        result.stderr
    result = insert(fakes, 0, UNIT, *GROW, "--max-growth=4095")
    assert result.returncode == 1 and launching.digest(image) == before
    assert insert(fakes, 0, UNIT, *GROW, "--max-growth=4096").returncode == 0


def test_an_insertion_of_a_reader(fakes, image, able):
    before = launching.digest(image)
    for words in (("info", "disk.qcow2"), (*GROW, "--dry-run")):
        result = insert(fakes, 0, UNIT, *words)
        assert result.returncode == 4 and b"(slot 0) that it may not write" in result.stderr
    assert launching.digest(image) == before


def test_a_run_by_hand_inserts_nothing(fakes, image, able):
    sys.path.insert(0, str(launching.TOP / "build/gen"))
    import instar_pb2
    assert fakes.run("ok", *GROW, "--print-qemu=hand").returncode == 0
    request = instar_pb2.Request.FromString((fakes.tmp / "hand" / "request.bin").read_bytes())
    assert request.disks[0].insert_unit == 0 and request.disks[0].length == LENGTH


# ---- where it does not ----


def test_tmpfs(tmp_path):
    """Nothing is offered; a guest that asks all the same is refused."""
    if not os.access("/dev/shm", os.W_OK) or file_system("/dev/shm") != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs that can be written")
    fakes = launching.Fakes(tmp_path)
    path = pathlib.Path("/dev/shm/instar-%d.img" % os.getpid())
    try:
        path.write_bytes(os.urandom(LENGTH))
        before = path.read_bytes()
        words = ("resize", str(path), "+1G")
        script = json.dumps([["need", {"insert": {"off": 0, "len": UNIT}}], ["hang"]])
        result = fakes.run("script", *words, more={"FAKE_SCRIPT": script})
        assert result.returncode == 4 and b"makes no sense" in result.stderr
        result = insert(fakes, UNIT, UNIT, *words)
        assert (result.returncode, result.stderr) == (0, b"")
        assert path.read_bytes() == before + bytes(UNIT)
    finally:
        path.unlink()
    fakes.none_left()


def test_a_file_system_that_only_seems_to(tmp_path):
    """An ext4 whose files have no extents: the run is done once more without insertions."""
    where = mounted(tmp_path, "-b", "4096", "-O", "^extent,^64bit,^has_journal")
    try:
        fakes = launching.Fakes(tmp_path)
        image = where / "disk.qcow2"
        image.write_bytes(os.urandom(LENGTH))
        before = image.read_bytes()
        words = ("resize", str(image), "+1G")
        result = insert(fakes, UNIT, UNIT, *words, FAKE_RECORD="1")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"Image resized.\n", b"")
        assert image.read_bytes() == before + bytes(UNIT)
        assert [r["request"]["disks"][0].get("insertUnit") for r in fakes.reports()] == [UNIT, None]
        result = insert(fakes, 0, UNIT, *words, "-v")
        assert b"An insertion failed, going on with none: Could not insert 4096 bytes" in \
            result.stderr
        fakes.none_left()
    finally:
        subprocess.run(["umount", where], check=True)


def test_a_file_system_that_is_full(tmp_path):
    """Refused, with nothing written, and not tried again."""
    where = mounted(tmp_path, "-b", "4096")
    try:
        fakes = launching.Fakes(tmp_path)
        image = where / "disk.qcow2"
        image.write_bytes(os.urandom(LENGTH))
        before = launching.digest(image)
        if unit_of(fakes, image) != UNIT:
            pytest.skip("no insertions there")
        result = insert(fakes, UNIT, (1 << 44) - UNIT, "resize", str(image), "+16T")
        text = result.stderr.decode()
        assert result.returncode == 1 and "Could not insert" in text and text.endswith(UNCHANGED)
        assert launching.digest(image) == before and len(fakes.reports()) == 2
        fakes.none_left()
    finally:
        subprocess.run(["umount", where], check=True)
