# SPDX-License-Identifier: MIT
"""The files that an image consists of, asked for by a guest (tests/fakeqemu) that may do anything:
what the launcher attaches, makes and removes, and what it refuses.
"""
import json
import os

import pytest

import launching

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
OUT_OF_TURN = "The guest asked for extents out of turn\n" + UNCHANGED
NO_SENSE = "The VM's outcome makes no sense, and is not acted on\n" + UNCHANGED
GROW = ("resize", "disk.vmdk", "+1G", "--timeout=5")
SHRINK = ("resize", "disk.vmdk", "-1G", "--shrink", "--timeout=5")
NAMES = {"names": ["one", "two"], "writable": True}
MORE = {"create": 2, "number": 3, "letter": "s", "writable": True}


@pytest.fixture
def files(fakes):
    return {name: fakes.image(name, size) for name, size in
            (("disk.vmdk", 700), ("one", 4096), ("two", 10000))}


def ask(fakes, needs, *words, then="ok", **more):
    env = {"FAKE_EXTENTS": json.dumps(needs), "FAKE_THEN": then,
           **{k: v if isinstance(v, str) else json.dumps(v) for k, v in more.items()}}
    return fakes.run("extents", *(words or GROW), more=env)


def there(files):
    return sorted(os.listdir(files["disk.vmdk"].parent))


def refused(fakes, files, needs, message, *words, status=1, **more):
    before, names = {n: launching.digest(p) for n, p in files.items()}, there(files)
    result = ask(fakes, needs, *words, **more)
    assert result.stderr.decode() == "instar-launch: " + message
    assert (result.returncode, result.stdout) == (status, b"")
    assert {n: launching.digest(p) for n, p in files.items()} == before and there(files) == names


def test_attached(fakes, files):
    """All of them in one boot, in their order; of info and of a dry run, to be read."""
    for words, writable in ((GROW, True), ((*GROW, "--dry-run"), False)):
        result = ask(fakes, {1: NAMES}, *words, FAKE_RECORD="1")
        assert (result.returncode, result.stderr) == (0, b"")
        mode = {"writable": True} if writable else {}
        assert fakes.disks()[1:] == [{"length": "4096", **mode, "role": "ROLE_EXTENT"},
                                     {"length": "10000", **mode, "role": "ROLE_EXTENT"}]
    result = ask(fakes, {1: {"names": ["two"]}}, "info", "disk.vmdk", FAKE_RECORD="1")
    assert result.returncode == 0 and "writable" not in fakes.disks()[1]


def test_made(fakes, files):
    names = there(files)
    result = ask(fakes, {1: NAMES, 3: MORE}, then="writes_extents", FAKE_RECORD="1")
    assert (result.returncode, result.stderr) == (0, b"")
    assert fakes.disks()[3:] == [
        {"writable": True, "role": "ROLE_EXTENT", "name": f"disk-s00{i}.vmdk"} for i in (3, 4)]
    home = files["disk.vmdk"].parent
    assert sorted(set(there(files)) - set(names)) == ["disk-s003.vmdk", "disk-s004.vmdk"]
    assert (home / "disk-s003.vmdk").read_bytes() == b"word".ljust(512, b"\0")


def test_made_in_a_dry_run(fakes, files):
    names = there(files)
    result = ask(fakes, {1: NAMES, 3: MORE}, *GROW, "--dry-run", FAKE_RECORD="1")
    assert result.returncode == 0 and there(files) == names
    assert fakes.disks()[4] == {"role": "ROLE_EXTENT", "name": "disk-s004.vmdk"}


def test_removed_if_it_fails(fakes, files):
    names = there(files)
    result = ask(fakes, {1: NAMES, 3: MORE}, then="writes_extents", FAKE_END="dies")
    assert result.returncode == 4 and there(files) == names


def test_kept_if_the_image_may_name_them(fakes, files):
    result = ask(fakes, {1: NAMES, 3: MORE}, then="writes_extents", FAKE_END="dies", FAKE_TEXT="1")
    assert result.returncode == 4
    assert b"'disk-s003.vmdk' is kept" in result.stderr and "disk-s004.vmdk" in there(files)


def test_dropped(fakes, files):
    drop = {"action": "shrink", "dropped": [2]}
    result = ask(fakes, {1: NAMES}, *SHRINK, then="drops", FAKE_DROPS=drop)
    assert (result.returncode, result.stderr) == (0, b"")
    assert not files["two"].exists() and files["one"].exists()


@pytest.mark.parametrize("drop,words", [
    ({"dropped": [2], "action": "grow"}, GROW), ({"dropped": [0]}, SHRINK),
    ({"dropped": [3]}, SHRINK), ({"dropped": [1 << 31]}, SHRINK), ({"dropped": [2, 2]}, SHRINK)])
def test_dropped_out_of_place(fakes, files, drop, words):
    refused(fakes, files, {1: NAMES}, NO_SENSE, *words, status=4, then="drops",
            FAKE_DROPS={"action": "shrink", **drop})


def test_a_data_file_is_not_dropped(fakes, files):
    env = {"FAKE_NEEDS": json.dumps([{"name": "one", "role": "ROLE_DATA", "writable": True}]),
           "FAKE_THEN": "drops", "FAKE_DROPS": json.dumps({"action": "shrink", "dropped": [1]})}
    assert fakes.run("needs", *SHRINK, more=env).returncode == 4 and files["one"].exists()


@pytest.mark.parametrize("needs", [
    {1: {"names": []}}, {1: {**NAMES, "slot": 1}}, {1: {**NAMES, "slot": 1 << 31}},
    {1: {**NAMES, "create": 1}}, {1: NAMES, 3: NAMES}, {1: NAMES, 3: {**NAMES, "slot": 1}},
    {1: NAMES, 3: MORE, 5: MORE}])
def test_out_of_turn(fakes, files, needs):
    refused(fakes, files, needs, OUT_OF_TURN, status=4)


@pytest.mark.parametrize("wrong", [
    {"letter": "x"}, {"letter": ""}, {"number": 0}, {"number": 1000}, {"writable": False}])
def test_made_of_no_sense(fakes, files, wrong):
    refused(fakes, files, {1: NAMES, 3: {**MORE, **wrong}},
            "The guest asked for new extents of no sense\n" + UNCHANGED, status=4)


def test_only_a_resize_writes_them(fakes, files):
    for need in (NAMES, MORE):
        refused(fakes, files, {1: need}, "The guest asked for extents to write that it may only "
                "read\nNothing had been granted or written: the image is unchanged.\n", "info",
                "disk.vmdk", status=4)


def test_too_many(fakes, files):
    refused(fakes, files, {1: NAMES, 3: {**MORE, "create": 22}},
            "The image with all its files is more than 24 disks\n")
    refused(fakes, files, {1: NAMES, 3: {**MORE, "create": (1 << 32) - 1}},
            "The image with all its files is more than 24 disks\n")


@pytest.mark.parametrize("name,words", [
    ("a/b", "no plain file name"), ("/etc/passwd", "no plain file name"),
    ("..", "no plain file name"), (".", "no plain file name"), ("", "is empty or holds a NUL"),
    ("one\0", "is empty or holds a NUL"), ("up", "a link that leads out"),
    ("proc", "a link that leads out"), ("\x1b[2J", "No such file"), ("dir", "to be a regular file"),
    ("null", "a link that leads out"), ("disk.vmdk", "its own descriptor"),
    ("one", "another file of the image"), ("to-one", "another file of the image"),
    ("hard", "another file of the image")])
def test_names(fakes, files, name, words):
    home = files["disk.vmdk"].parent
    for link, to in (("up", "../up"), ("proc", "/proc/self/exe"), ("null", "/dev/null"),
                     ("to-one", "one")):
        os.symlink(to, home / link)
    os.link(home / "one", home / "hard")
    (home / "dir").mkdir()
    result = ask(fakes, {1: {"names": ["one", name], "writable": True}})
    assert result.returncode == 1 and words.encode() in result.stderr, result.stderr
    assert b"\x1b" not in result.stderr
