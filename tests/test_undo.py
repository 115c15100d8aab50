# SPDX-License-Identifier: MIT
"""The undo journal of epochs that no order makes safe: a guest (tests/fakeqemu) that announces what
it overwrites, or lies about it; runs that die after the grant; recovery from journals by whoever.
"""
import fcntl
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time

import pytest

import launching
import undo_journal
from undo_journal import crc32c

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
ROLLED_BACK = ("What the operation had written of its last step was rolled back: the image has its "
               "old size and all its data.\n")
GROW = ("resize", "disk.qcow2", "+1G", "--timeout=5")
JOURNAL = "disk.qcow2.instar-undo"

# The image ends inside a sector. The operation writes the first two sectors, the last one, and one
# behind it; of the last one, also what lies behind the end.
LENGTH, LONGER = 10000, 20000
NEW = {off: bytes([65 + i]) * 512 for i, off in enumerate((0, 512, 9728, 10240))}
ANNOUNCED = [["undo", 0, 0, [crc32c(NEW[0]), crc32c(NEW[512])]],
             ["undo", 0, 9728, [crc32c(NEW[9728]), crc32c(NEW[10240])]]]
NEED = ["need", {"epoch": 3, "lengths": [{"slot": 0, "length": LONGER}], "undo": True}]
GRANTED = [*ANNOUNCED, NEED, ["granted", 3]]


def write(*offs):
    return [["write", off, NEW[off].hex()] for off in offs]


@pytest.fixture
def image(fakes):
    return fakes.image(size=LENGTH)


def play(fakes, script, *words, **options):
    return fakes.run("script", *(words or GROW), more={"FAKE_SCRIPT": json.dumps(script)},
                     **options)


def start(fakes, script):
    return subprocess.Popen([launching.LAUNCHER, *GROW, "--accel=tcg"], cwd=fakes.tmp,
                            env=fakes.env("script", FAKE_SCRIPT=json.dumps(script)),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def recover(fakes, *words):
    return launching.run("recover", *words, "disk.qcow2", cwd=fakes.tmp)


def poke(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def interrupted(image, written=tuple(NEW), length=LONGER // 512 * 512 + 512, **other):
    """What a killed run leaves: a journal beside the image, and some of the sectors written."""
    journal = image.parent / JOURNAL
    most = LONGER // 512 * 512 + 512
    journal.write_bytes(undo_journal.build(image, NEW, LENGTH, other.pop("most", most), **other))
    journal.chmod(0o600)
    os.truncate(image, length)
    for off in written:
        if off < length:
            poke(image, off, NEW[off])
    return journal


# ---- while the VM runs ----


def test_the_journal_is_durable_before_the_grant(fakes, image):
    """The guest looks for it when its grant comes; in the end it is gone."""
    before = image.read_bytes()
    result = play(fakes, [*GRANTED, ["journal", JOURNAL, sorted(NEW)], *write(*NEW),
                          ["journal", JOURNAL, sorted(NEW)], ["done", {"file_size_after": LONGER}]])
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Image resized.\n", b"")
    assert not (fakes.tmp / JOURNAL).exists()
    now = bytearray(before.ljust(LONGER, b"\0"))
    for off, data in NEW.items():
        now[off:off + 512] = data
    assert image.read_bytes() == now


def test_what_is_in_it(fakes, image):
    before = image.read_bytes().ljust(LONGER, b"\0")
    process = start(fakes, [*GRANTED, ["write", 512, "00"], ["hang"]])
    launching.until(lambda: image.read_bytes()[512] == 0)
    st = (fakes.tmp / JOURNAL).lstat()
    assert stat.S_IMODE(st.st_mode) == 0o600 and stat.S_ISREG(st.st_mode)
    found = undo_journal.parse((fakes.tmp / JOURNAL).read_bytes())
    launching.interrupt(process)
    st = image.stat()
    assert (found["inode"], found["dev"], found["epoch"]) == (st.st_ino, st.st_dev, 3)
    assert (found["before"], found["most"]) == (LENGTH, LONGER // 512 * 512 + 512)
    assert found["name"] == b"disk.qcow2"
    assert found["words"] == b"resize disk.qcow2 +1G --timeout=5 --accel=tcg"
    assert [m[0] for m in found["marks"]] == sorted(NEW)
    assert [m[2] for m in found["marks"]] == [crc32c(NEW[off]) for off in sorted(NEW)]
    assert found["sectors"] == [before[off:off + 512] for off in sorted(NEW)]


@pytest.mark.parametrize("linked", [False, True])
def test_it_lies_beside_the_file_itself(linked, fakes, image):
    """Not beside a link to it, nor in the working directory."""
    (fakes.tmp / "there").mkdir()
    image.rename(fakes.tmp / "there" / "disk.qcow2")
    path = "there/disk.qcow2"
    if linked:
        os.symlink(path, fakes.tmp / "link")
        path = "link"
    result = play(fakes, [*GRANTED, ["journal", "there/" + JOURNAL, sorted(NEW)],
                          ["done", {"file_size_after": LONGER}]], "resize", path, "+1G")
    assert (result.returncode, result.stderr) == (0, b"")


LIES = [
    ("another_slot", [["undo", 1, 0, [1]], NEED], "(slot 1) that it may not write"),
    ("no_slot", [["undo", 7, 0, [1]], NEED], "(slot 7) that it may not write"),
    ("between_sectors", [["undo", 0, 100, [1]], NEED], "make no sense (offset 100)"),
    ("nothing", [["undo", 0, 512, []], NEED], "make no sense (offset 512)"),
    ("far_away", [["undo", 0, (1 << 64) - 512, [1]], NEED], "(offset 18446744073709551104)"),
    ("behind", [["undo", 0, 20480, [1]], NEED], "behind the end of the file (offset 20480)"),
    ("half_behind", [["undo", 0, 9728, [1] * 22], NEED], "the end of the file (offset 20480)"),
    ("twice", [["undo", 0, 512, [1]], ["undo", 0, 0, [1, 2]], NEED], "twice (offset 512)"),
    ("too_many_runs", [["undo", 0, 1024 * i, [1]] for i in range(65)] + [NEED],
     "announced more changes than an undo journal takes"),
    ("too_many_sectors", [["undo", 0, 32768 * i, [1] * 64] for i in range(33)] + [NEED],
     "announced more changes than an undo journal takes"),
    ("never_asked", [*ANNOUNCED, ["need", {"epoch": 1, "lengths": [{"slot": 0, "length": LONGER}]}]],
     "and did not ask for an undo journal"),
    ("done_at_once", [*ANNOUNCED, ["done", {}]], "an event that nobody asked for"),
    ("of_nothing", [NEED], "an undo journal of nothing"),
    ("and_goes_on", [*ANNOUNCED, NEED, ["done", {}]], "The VM did not wait for what it asked for"),
    ("and_inserts", [*ANNOUNCED, ["need", {"undo": True, "insert": {"off": 4096, "len": 4096}}]],
     "and did not ask for an undo journal"),
    ("a_long_run", [["undo", 0, 0, [1] * 65], NEED], "a frame that holds no event of the contract"),
]


@pytest.mark.parametrize("script, words", [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_announcements_that_make_no_sense(script, words, fakes, image):
    before = launching.digest(image)
    result = play(fakes, [*script, ["hang"]])
    text = result.stderr.decode()
    assert result.returncode == 4 and words in text and text.endswith(UNCHANGED), text
    assert launching.digest(image) == before and not (fakes.tmp / JOURNAL).exists()


def test_announcements_of_a_reader(fakes, image):
    before = launching.digest(image)
    for words in (("info", "disk.qcow2"), (*GROW, "--dry-run")):
        result = play(fakes, [*GRANTED, ["hang"]], *words)
        assert result.returncode == 4 and b"(slot 0) that it may not write" in result.stderr
        result = play(fakes, [["need", {"undo": True}], ["hang"]], *words)
        assert result.returncode == 4
    assert launching.digest(image) == before and not (fakes.tmp / JOURNAL).exists()


def test_a_refusal_after_an_announcement(fakes, image):
    before = launching.digest(image)
    result = play(fakes, [*ANNOUNCED, ["fail"]])
    assert (result.returncode, result.stderr) == (
        1, b"instar-launch: half way\ninstar-launch: Repair it first: qemu-img check -r all.\n")
    assert launching.digest(image) == before


def test_as_much_as_there_may_be(fakes):
    """A MiB in 64 runs; and back."""
    image = fakes.image(size=4 << 20)
    before = image.read_bytes()
    crc = crc32c(b"x" * 512)
    script = [["undo", 0, 65536 * i, [crc] * 32] for i in range(64)]
    script += [["need", {"epoch": 1, "undo": True}], ["granted", 1]]
    script += [["write", 65536 * i, "78", 512 * 32] for i in range(64)]
    result = play(fakes, script + [["exit", 3]])
    assert result.returncode == 4 and result.stderr.decode().endswith(ROLLED_BACK)
    assert image.read_bytes() == before


# ---- runs that end before their time ----


@pytest.mark.parametrize("written", [c for n in range(5) for c in itertools.combinations(NEW, n)])
def test_death_after_the_grant(written, fakes, image):
    before = image.read_bytes()
    result = play(fakes, [*GRANTED, *write(*written), ["exit", 3]])
    text = result.stderr.decode()
    assert result.returncode == 4 and text.endswith(ROLLED_BACK), text
    assert image.read_bytes() == before and not (fakes.tmp / JOURNAL).exists()


def test_refusal_after_the_grant(fakes, image):
    before = image.read_bytes()
    result = play(fakes, [*GRANTED, *write(512), ["fail"]], *GROW, "--output=json")
    answer = json.loads(result.stdout)
    assert (result.returncode, result.stderr, answer["code"]) == (1, b"", "INCONSISTENT")
    assert answer["error"].endswith(ROLLED_BACK.strip())
    assert image.read_bytes() == before and not (fakes.tmp / JOURNAL).exists()


def test_nothing_written_after_the_grant(fakes, image):
    before = launching.digest(image)
    crc = [["undo", 0, 0, [1]], ["need", {"epoch": 1, "undo": True}], ["granted", 1]]
    for end, status, words in ((["fail"], 1, UNCHANGED), (["exit", 3], 4, UNCHANGED),
                               (["needs"], 4, "The guest asked for a file out of turn")):
        result = play(fakes, [*crc, end])
        assert result.returncode == status and words in result.stderr.decode()
        assert launching.digest(image) == before and not (fakes.tmp / JOURNAL).exists()


def test_interruption_after_the_grant(fakes, image):
    before = image.read_bytes()
    process = start(fakes, [*GRANTED, *write(*NEW), ["hang"]])
    launching.until(lambda: image.read_bytes()[10240:10241] == b"D")
    out, err = launching.interrupt(process)
    assert process.returncode == -signal.SIGINT and err.decode().endswith(ROLLED_BACK)
    assert image.read_bytes() == before and not (fakes.tmp / JOURNAL).exists()


def test_no_outcome_that_can_be_believed(fakes, image):
    before = image.read_bytes()
    result = play(fakes, [*GRANTED, *write(*NEW), ["done", {"file_size_after": LONGER + 9999}]])
    assert result.returncode == 4 and result.stderr.decode().endswith(ROLLED_BACK)
    assert image.read_bytes() == before


def test_a_guest_that_writes_what_it_did_not_announce(fakes, image):
    """Its own image is all that it can harm; what it says is no more believed."""
    result = play(fakes, [*GRANTED, ["write", 512, "00" * 512], ["exit", 3]])
    text = result.stderr.decode()
    assert result.returncode == 4 and "could not be rolled back:\n" in text
    assert "1 of 4 sectors hold neither" in text and (fakes.tmp / JOURNAL).exists()


def test_a_later_epoch_ends_the_journal(fakes, image):
    """Its Need says that the one before is complete: there is no way back any more."""
    script = [*GRANTED, *write(*NEW), ["need", {"epoch": 4}], ["granted", 4],
              ["no journal", JOURNAL], ["write", 0, "2a"]]
    result = play(fakes, script + [["done", {"file_size_after": LONGER}]])
    assert (result.returncode, result.stderr) == (0, b"")
    assert image.read_bytes()[:2] == b"*A"
    result = play(fakes, script + [["exit", 3]])
    assert result.returncode == 4 and b"rolled back" not in result.stderr
    assert image.read_bytes()[:2] == b"*A"


def test_two_journals_in_a_run(fakes, image):
    """Only the second epoch is undone, and the file keeps the length that the first gave it."""
    crc = crc32c(b"z" * 512)
    result = play(fakes, [*GRANTED, *write(*NEW), ["undo", 0, 512, [crc]],
                          ["need", {"epoch": 4, "undo": True}], ["granted", 4],
                          ["journal", JOURNAL, [512]], ["write", 512, (b"z" * 512).hex()],
                          ["exit", 3]])
    assert result.returncode == 4 and b"rolled back" in result.stderr
    data = image.read_bytes()
    assert len(data) == LONGER // 512 * 512 + 512
    assert all(data[off:off + 512] == new for off, new in NEW.items())


def test_a_journaled_shrink(fakes, image):
    before = image.read_bytes()
    result = play(fakes, [["undo", 0, 0, [crc32c(NEW[0])]],
                          ["need", {"epoch": 0, "undo": True}], ["granted", 0], *write(0),
                          ["done", {"action": "shrink", "file_size_after": 5000}]],
                  "resize", "disk.qcow2", "-1G", "--shrink")
    assert (result.returncode, result.stderr) == (0, b"")
    assert image.read_bytes() == NEW[0] + before[512:5000] and not (fakes.tmp / JOURNAL).exists()


@pytest.mark.parametrize("written", [(), (0, 9728), tuple(NEW)])
def test_sigkill(written, fakes, image):
    """Readers go on and warn; whoever writes next rolls back first."""
    before = image.read_bytes()
    process = start(fakes, [*GRANTED, *write(*written), ["write", 19999, "00"], ["hang"]])
    pid = fakes.wait_for_fake()
    launching.until(lambda: image.stat().st_size > LENGTH and (fakes.tmp / JOURNAL).exists() and
                    (not written or image.read_bytes()[9728:9729] == NEW[9728][:1]))
    time.sleep(0.1)
    process.kill()
    process.communicate(timeout=launching.TIMEOUT)
    launching.until(lambda: not launching.alive(pid))
    half = image.read_bytes()
    for words in (("info", "disk.qcow2"), ("resize", "disk.qcow2", "+1G", "--dry-run")):
        result = fakes.run("ok", *words)
        assert result.returncode == 0 and result.stdout != b""
        assert result.stderr.decode() == (
            "instar-launch: warning: an operation on 'disk.qcow2' was interrupted, and the image "
            "may be half changed: '%s' is there. The next operation that writes the image rolls "
            "back, or 'instar-launch recover'.\n" % (fakes.tmp / JOURNAL))
    assert image.read_bytes() == half
    result = fakes.run("ok", *GROW)
    assert (result.returncode, result.stdout) == (0, b"Image resized.\n")
    assert result.stderr.decode().startswith(
        "instar-launch: Rolled back an interrupted operation (resize disk.qcow2 +1G --timeout=5 "
        "--accel=tcg): %d of 4 sectors put back" % len(written))
    assert image.read_bytes() == before and not (fakes.tmp / JOURNAL).exists()


def test_the_host_alone_rolls_back_too(fakes, image):
    before = image.read_bytes()
    interrupted(image)
    result = launching.run("resize", "-f", "raw", "disk.qcow2", "12000", cwd=fakes.tmp)
    assert result.returncode == 0 and b"Rolled back" in result.stderr
    assert image.read_bytes() == before.ljust(12000, b"\0")


def test_a_run_by_hand_touches_nothing(fakes, image):
    interrupted(image)
    half = image.read_bytes()
    result = fakes.run("ok", *GROW, "--print-qemu=hand")
    assert result.returncode == 0 and b"warning: an operation on" in result.stderr
    assert image.read_bytes() == half and (fakes.tmp / JOURNAL).exists()


def test_the_files_that_an_image_names(fakes, image):
    """A half-changed backing file is warned of; a half-changed data file is rolled back."""
    data = fakes.image("data", LENGTH)
    before = data.read_bytes()
    interrupted(data).rename(fakes.tmp / "data.instar-undo")
    for need in ({"name": "data", "role": "ROLE_BACKING", "slot": 0, "format": "raw"},
                 {"name": "data", "role": "ROLE_DATA", "writable": True}):
        result = fakes.run("needs", *GROW, more={"FAKE_NEEDS": json.dumps([need])})
        assert result.returncode == 0
        assert (b"Rolled back" in result.stderr) == ("writable" in need)
        assert (b"warning: an operation on" in result.stderr) == ("writable" not in need)
    assert data.read_bytes() == before
    crc = [["undo", 1, 0, [1]], NEED, ["hang"]]
    result = fakes.run("needs", *GROW, more={"FAKE_NEEDS": json.dumps([need]),
                                             "FAKE_THEN": "script", "FAKE_SCRIPT": json.dumps(crc)})
    assert result.returncode == 4 and b"(slot 1) that has no undo journal" in result.stderr


# ---- no journal can be made ----


def not_begun(result, image, before):
    text = result.stderr.decode()
    assert result.returncode == 1 and "Could not write an undo journal for '" in text, text
    assert text.endswith("The change cannot be made in one step, and is not begun without a way "
                         "back.\n" + UNCHANGED)
    assert launching.digest(image) == before


def test_a_directory_that_cannot_be_written():
    with tempfile.TemporaryDirectory() as name:
        tmp = pathlib.Path(name)
        fakes = launching.Fakes(tmp)
        image = fakes.image(size=LENGTH)
        before = launching.digest(image)
        for path, mode in ((tmp / "report", 0o666), (image, 0o666), (tmp, 0o555)):
            path.chmod(mode)
        options = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
        try:
            not_begun(play(fakes, [*GRANTED, ["hang"]], **options), image, before)
            result = fakes.run("ok", *GROW, **options)
            assert (result.returncode, result.stderr) == (0, b"")
        finally:
            tmp.chmod(0o700)
        fakes.none_left()


def test_a_name_that_is_too_long(fakes):
    image = fakes.image("x" * 250, LENGTH)
    result = play(fakes, [*GRANTED, ["hang"]], "resize", image.name, "+1G")
    not_begun(result, image, launching.digest(image))
    assert b"File name too long" in result.stderr


def test_a_file_that_has_gone(fakes, image):
    """Its journal could not be found again."""
    process = start(fakes, [["need", {"epoch": 1}], ["granted", 1], ["hang"]])
    fakes.wait_for_fake()
    launching.interrupt(process)
    os.link(image, fakes.tmp / "kept")
    with open(image, "r+b") as f:
        image.unlink()
        result = launching.run("resize", "--accel=tcg", "/dev/fd/%d" % f.fileno(), "+1G",
                               env=fakes.env("script", FAKE_SCRIPT=json.dumps(
                                   [*GRANTED, ["hang"]])), cwd=fakes.tmp, pass_fds=[f.fileno()])
    not_begun(result, fakes.tmp / "kept", launching.digest(fakes.tmp / "kept"))
    assert b"no longer where it was opened" in result.stderr


def test_a_file_of_two_names(fakes, image):
    """By the other one its journal would not be found."""
    other = fakes.tmp / "elsewhere.qcow2"
    os.link(image, other)
    before = launching.digest(image)
    for path in image, other:
        result = play(fakes, [*GRANTED, ["hang"]], "resize", path.name, "+1G")
        not_begun(result, path, before)
        assert b"has other names (hard links)" in result.stderr
    other.unlink()
    assert play(fakes, [*GRANTED, ["done", {}]]).returncode == 0


# ---- recover ----


def test_nothing_to_recover(fakes, image):
    before = launching.digest(image)
    for words in ((), ("--dry-run",)):
        result = recover(fakes, *words)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"Nothing to recover.\n",
                                                                     b"")
        answer = json.loads(recover(fakes, "--output=json", *words).stdout)
        assert (answer["filename"], answer["action"]) == ("disk.qcow2", "none")
    assert recover(fakes, "-q").stdout == b""
    assert launching.digest(image) == before
    result = launching.run("recover", "nowhere", cwd=fakes.tmp)
    assert result.returncode == 1 and b"No such file" in result.stderr
    for words in (("recover",), ("recover", "a", "b"), ("recover", "-f", "raw", "a")):
        assert launching.run(*words, cwd=fakes.tmp).returncode == 1


def test_recover(fakes, image):
    before = image.read_bytes()
    journal = interrupted(image, (0, 9728))
    half = image.read_bytes()
    result = recover(fakes, "--dry-run")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == (
        "image:        disk.qcow2\n"
        "journal:      %s\n"
        "operation:    resize x +1G\n"
        "epoch:        0\n"
        "file length:  20480 bytes now, 10000 before\n"
        "sectors:      2 as before, 2 as the operation leaves them, 0 neither\n\n"
        "          offset            length  state\n"
        "               0               512  new\n"
        "             512               512  old\n"
        "            9728               512  new\n"
        "           10240               512  old\n\n"
        "Dry run: nothing was written. Without --dry-run the image is rolled back.\n" % journal)
    answer = json.loads(recover(fakes, "--dry-run", "--output=json").stdout)
    assert answer["action"] == "roll-back" and answer["dry_run"] is True
    assert [s["state"] for s in answer["sectors"]] == ["new", "old", "new", "old"]
    assert image.read_bytes() == half and journal.exists()
    result = recover(fakes)
    assert (result.returncode, result.stdout, result.stderr) == (
        0, b"Rolled back an interrupted operation (resize x +1G): 2 of 4 sectors put back, file cut "
        b"from 20480 to 10000 bytes.\n", b"")
    assert image.read_bytes() == before and not journal.exists()
    interrupted(image)
    answer = json.loads(recover(fakes, "--output=json").stdout)
    assert answer == {"filename": "disk.qcow2", "journal": str(journal), "epoch": 0,
                      "operation": "resize x +1G", "file_size": 20480, "old_file_size": 10000,
                      "action": "rolled-back"}
    assert image.read_bytes() == before and not journal.exists()


def test_every_state_that_a_kill_leaves(fakes, image):
    """Of the operation and of the recovery: any of the sectors, any length in between."""
    before = image.read_bytes()
    for n in range(5):
        for written in itertools.combinations(NEW, n):
            for length in (LENGTH, 10240, 10752, 20480):
                if any(off >= length for off in written):
                    continue
                image.write_bytes(before)
                journal = interrupted(image, written, length)
                if length < 10240 and 9728 in written:  # a whole sector has been written
                    os.truncate(image, 10240)
                assert recover(fakes).returncode == 0, (written, length)
                assert image.read_bytes() == before and not journal.exists()


def test_recovery_that_is_killed(fakes, image):
    before = image.read_bytes()
    journal = interrupted(image)
    rng = random.Random(7)
    for _ in range(40):
        if not journal.exists():
            assert image.read_bytes() == before
            interrupted(image)
        p = subprocess.Popen([launching.LAUNCHER, "recover", "disk.qcow2"], cwd=fakes.tmp,
                             stdout=subprocess.PIPE)
        time.sleep(rng.random() * 0.01)
        p.kill()
        p.communicate()
    assert recover(fakes).returncode == 0
    assert image.read_bytes() == before and not journal.exists()


def refused(fakes, image, journal, *words):
    """Nothing is touched, by nobody, and each says why."""
    half = image.read_bytes()
    for result in (recover(fakes), recover(fakes, "--dry-run"), fakes.run("ok", *GROW)):
        text = result.stderr.decode()
        assert result.returncode == 1, text
        for word in (*words, "remove "):
            assert word in text
    result = recover(fakes, "--dry-run", "--output=json")
    assert json.loads(result.stdout)["code"] == "UNDO_PENDING" and result.stderr == b""
    assert image.read_bytes() == half and os.path.lexists(journal)
    result = fakes.run("ok", "info", "disk.qcow2")
    assert result.returncode == 0 and b"warning: an operation on" in result.stderr


SINCE = "has been used since an operation on it was interrupted, and is not rolled back"


@pytest.mark.parametrize("off", NEW)
def test_a_sector_that_somebody_has_changed(off, fakes, image):
    journal = interrupted(image)
    poke(image, off + 511, b"!")
    refused(fakes, image, journal, SINCE, "1 of 4 sectors hold neither")
    assert b"%16d               512  other\n" % off in recover(fakes, "--dry-run").stdout


@pytest.mark.parametrize("off", [10752, 12345, 20479])
def test_data_behind_the_old_end(off, fakes, image):
    """A machine that has used the grown disk may have written nothing but there."""
    journal = interrupted(image)
    poke(image, off, b"!")
    refused(fakes, image, journal, SINCE, "There is data at %d, behind what was the end" % off)


@pytest.mark.parametrize("length", [0, 512, LENGTH - 1, 20481, 1 << 30])
def test_a_length_that_is_not_ours(length, fakes, image):
    journal = interrupted(image)
    os.truncate(image, length)
    refused(fakes, image, journal, SINCE, "It is %d bytes long" % length)


def test_zeros_behind_the_old_end(fakes, image):
    """Many of them, written or not: preallocation is no data."""
    before = image.read_bytes()
    most = 3 << 20
    interrupted(image, most=most, length=most)
    poke(image, 1 << 20, bytes(1 << 20))
    assert recover(fakes).returncode == 0 and image.read_bytes() == before
    journal = interrupted(image, most=1 << 40, length=1 << 40)
    start_time = time.monotonic()
    assert recover(fakes).returncode == 0 and image.read_bytes() == before
    assert time.monotonic() - start_time < 5 and not journal.exists()


def test_elsewhere_a_guest_may_have_written(fakes, image):
    before = bytearray(image.read_bytes())
    interrupted(image)
    poke(image, 5000, b"guest")
    before[5000:5005] = b"guest"
    assert recover(fakes).returncode == 0 and image.read_bytes() == before


def test_a_journal_of_another_file(fakes, image):
    for other in ({"inode": 1}, {"dev": 1}):
        journal = interrupted(image, **other)
        refused(fakes, image, journal, "cannot be used: it is another file's")
    shutil.copy(image, fakes.tmp / "copy")
    interrupted(image)
    os.replace(fakes.tmp / "copy", image)
    refused(fakes, image, journal, "cannot be used: it is another file's")


def test_the_file_system_by_its_other_number(fakes, image):
    """After a restart the device may have another one."""
    fsid = os.statvfs(image).f_fsid
    if not fsid:
        pytest.skip("this file system has no f_fsid")
    before = image.read_bytes()
    interrupted(image, dev=1, fsid=fsid)
    assert recover(fakes).returncode == 0 and image.read_bytes() == before
    journal = interrupted(image, dev=1, fsid=fsid + 1)
    refused(fakes, image, journal, "cannot be used: it is another file's")


def test_every_length_of_a_journal(fakes, image):
    """Cut off anywhere it is refused; empty it was never in force."""
    journal = interrupted(image)
    whole, half = journal.read_bytes(), image.read_bytes()
    for n in range(1, len(whole)):
        journal.write_bytes(whole[:n])
        result = recover(fakes)
        assert result.returncode == 1 and image.stat().st_size == len(half), n
    assert image.read_bytes() == half
    for data in (whole + b"\0", whole * 500):
        journal.write_bytes(data)
        refused(fakes, image, journal, "cannot be used: it is ")
    for data in (b"", bytes(2048), bytes(2048) + whole[2048:], bytes(2048) + whole[2048:3000]):
        journal.write_bytes(data)
        assert recover(fakes, "--dry-run").stdout == b"Nothing to recover.\n" and journal.exists()
        assert recover(fakes).stdout == b"Nothing to recover.\n" and not journal.exists()
        assert image.read_bytes() == half


def test_every_byte_of_a_journal(fakes, image):
    journal = interrupted(image)
    whole, half = journal.read_bytes(), image.read_bytes()
    rng = random.Random(11)
    for i in range(len(whole)):
        poke(journal, i, bytes([whole[i] ^ 1 << rng.randrange(8)]))
        assert recover(fakes).returncode == 1 and image.stat().st_size == len(half), i
        poke(journal, i, whole[i:i + 1])
    assert image.read_bytes() == half
    assert recover(fakes).returncode == 0


def mark(n, off, fields="<Q", value=0):
    """Changes a field of mark n."""
    return lambda b: struct.pack_into(fields, b, 2048 + 16 * n + off, value)


@pytest.mark.parametrize("change", [
    lambda b: struct.pack_into("<I", b, 28, 0),
    lambda b: struct.pack_into("<I", b, 28, 0xffffffff),
    lambda b: struct.pack_into("<I", b, 28, 3),
    lambda b: struct.pack_into("<Q", b, 56, LONGER * 2),
    lambda b: struct.pack_into("<Q", b, 64, (1 << 64) - 1),
    lambda b: struct.pack_into("<Q", b, 64, 9999),
    lambda b: struct.pack_into("<B", b, 2047, 65),
    mark(0, 0, value=1), mark(1, 0, value=0), mark(0, 0, value=1024), mark(3, 0, value=20480),
    mark(3, 0, value=(1 << 64) - 512), mark(2, 8, "<I", 7),
])
def test_a_journal_that_somebody_has_made(change, fakes, image):
    """Its checksum is right, and all else may be anything."""
    journal = interrupted(image)
    data = bytearray(journal.read_bytes())
    change(data)
    journal.write_bytes(undo_journal.seal(bytes(data)))
    refused(fakes, image, journal, "cannot be used: it ")


def test_hostile_words(fakes, image):
    interrupted(image, words=b"\x1b[2J\n\xff" + b"x" * 1600)
    for words in (("--dry-run",), ("--dry-run", "--output=json"), ()):
        out = recover(fakes, *words).stdout
        assert b"\x1b" not in out and b"\xff" not in out and b"xxx" in out


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "directory", "others_write",
                                  "another_owner"])
def test_a_journal_that_is_no_file_of_ours(kind, fakes, image):
    journal = interrupted(image)
    if kind == "another_owner":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(journal, 65534, 65534)
    elif kind == "others_write":
        journal.chmod(0o620)
    else:
        journal.rename(fakes.tmp / "kept")
        if kind == "fifo":
            os.mkfifo(journal)
        elif kind == "directory":
            journal.mkdir()
        else:
            os.symlink("kept" if kind == "symlink" else "nowhere", journal)
    refused(fakes, image, journal, "cannot be used: it ")


def test_the_owner_of_the_image_is_believed(fakes, image):
    if os.geteuid():
        pytest.skip("only root can give files away")
    before = image.read_bytes()
    journal = interrupted(image)
    os.chown(journal, 65534, 65534)
    os.chown(image, 65534, 65534)
    assert recover(fakes).returncode == 0 and image.read_bytes() == before


def test_recover_takes_the_lock(fakes, image):
    journal = interrupted(image)
    half = image.read_bytes()
    with open(image, "r+b") as f:  # as a machine would hold it
        launching.ofd(f, launching.OFD_SETLK, fcntl.F_RDLCK, 101)
        launching.ofd(f, launching.OFD_SETLK, fcntl.F_RDLCK, 201)
        for words in ((), ("--dry-run",)):
            result = recover(fakes, *words)
            assert result.returncode == 1 and b"lock" in result.stderr
    assert image.read_bytes() == half and journal.exists()


# ---- by hand ----


def test_decode(fakes):
    sys.path.insert(0, str(launching.TOP / "build/gen"))
    import fakeqemu
    import instar_pb2 as pb
    events = [pb.Event(undo=pb.Undo(slot=0, off=512, crc=[7, 8])),
              pb.Event(need=pb.Need(epoch=2, undo=True)),
              pb.Event(need=pb.Need(epoch=3, insert=pb.Insert(slot=0, off=4096, len=8192)))]
    data = b"".join(fakeqemu.frame(e.SerializeToString()) for e in events)
    result = subprocess.run([launching.LAUNCHER, "decode"], input=data, capture_output=True,
                            timeout=launching.TIMEOUT)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"undo": {"slot": 0, "off": 512, "crc": [7, 8]}},
        {"need": {"epoch": 2, "lengths": [], "undo": True}},
        {"need": {"epoch": 3, "lengths": [], "insert": {"slot": 0, "off": 4096, "len": 8192}}}]
