# SPDX-License-Identifier: MIT
"""A QEMU, or a guest in it, that does what it should not: the launcher says so, ends it, and leaves
the image as it was. A fake QEMU (tests/fakeqemu) plays each part.
"""
import json
import os
import pty
import re
import resource
import signal
import subprocess
import time

import pytest

import launching

UNCHANGED = "Nothing had been granted or written: the image is unchanged.\n"
LIMIT = 640 << 20


def refused(fakes, mode, *args, status=4, message=None, more=None, accel="tcg"):
    """The run fails with this status and these words, prints nothing, changes nothing."""
    image = fakes.image()
    before = launching.digest(image)
    words = args or ("resize", "disk.qcow2", "+1G", "--timeout=5")
    result = fakes.run(mode, *words, more=more, accel=accel)
    text = result.stderr.decode()
    assert result.returncode == status, text
    assert result.stdout == b""
    assert text.startswith("instar-launch: ")
    assert "\x1b" not in text
    if message is not None:
        assert text == "instar-launch: " + message
    assert launching.digest(image) == before
    return text


# ---- no QEMU, no unikernel ----


def test_no_qemu(fakes):
    for qemu in ("/nowhere/qemu", "no-such-qemu", str(fakes.tmp)):
        text = refused(fakes, "ok", "resize", "disk.qcow2", "+1G", "--qemu", qemu)
        assert "There is no QEMU" in text or "Could not start" in text
        assert "unchanged" in text
    text = refused(fakes, "ok", "info", "disk.qcow2", "--qemu", "/nowhere/qemu")
    assert "apt install qemu-system-x86" in text
    answer = json.loads(fakes.run("ok", "info", "disk.qcow2", "--qemu=/no", "--output=json").stdout)
    assert answer["code"] == "NO_QEMU"


def test_no_unikernel(fakes):
    text = refused(fakes, "ok", "resize", "disk.qcow2", "+1G", "--images", "/nowhere")
    assert "There is no unikernel 'resize.elf' in '/nowhere'" in text


def test_nothing_is_done_on_the_host(fakes):
    """Not even the format of an image is known without a VM."""
    for qemu in ("/bin/false", "/bin/true"):
        text = refused(fakes, "ok", "info", "disk.qcow2", "--qemu", qemu)
        assert "QEMU exited with status" in text
        text = refused(fakes, "ok", "resize", "-f", "qcow2", "disk.qcow2", "+1G", "--qemu", qemu)
        assert text.endswith(UNCHANGED)


# ---- QEMU ----


def test_dies(fakes):
    refused(fakes, "dies", message="QEMU exited with status 1, and without an answer from its VM\n"
            "With -v, its command line is shown and all that it says.\n"
            "QEMU said: qemu: something \\x1b[31mterrible\\x1b[0m happened\n" + UNCHANGED)


def test_killed(fakes):
    text = refused(fakes, "killed")
    assert text.startswith("instar-launch: QEMU was killed by signal 11")


@pytest.mark.parametrize("mode", ["hangs", "closes_serial", "floods_stderr", "half_a_frame_hangs"])
def test_silence_is_ended(mode, fakes):
    start = time.monotonic()
    text = refused(fakes, mode, "resize", "disk.qcow2", "+1G", "--timeout=1")
    assert 1 <= time.monotonic() - start < 5
    assert text.startswith("instar-launch: The VM sent nothing for 1 seconds and was stopped")
    assert text.endswith(UNCHANGED)
    assert len(text) < 4000


def test_timeout_off(fakes):
    fakes.image()
    process = fakes.start("hangs", "resize", "disk.qcow2", "+1G", "--timeout=0")
    fakes.wait_for_fake()
    time.sleep(0.5)
    assert process.poll() is None
    launching.interrupt(process)


def test_messages_are_drained_and_capped(fakes):
    fakes.image()
    result = fakes.run("floods_stderr_then_works", "resize", "-v", "disk.qcow2", "+1G")
    assert result.returncode == 0 and result.stdout == b"Image resized.\n"
    assert 60000 < len(result.stderr) < 80000
    result = fakes.run("floods_stderr_then_works", "resize", "disk.qcow2", "+1G")
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("mode, words", [
    ("resize_fails", "The file could not be made longer: Could not resize file: No space left"),
    ("control_floods", "QEMU sent a line that is too long"),
    ("control_garbage", "QEMU answered what nobody asked"),
])
def test_qmp(mode, words, fakes):
    text = refused(fakes, mode, status=1 if mode == "resize_fails" else 4)
    assert words in text


def test_the_cage(fakes):
    """What QEMU inherits: the descriptors of its command line, limits, no terminal, no mask."""
    image = fakes.image()
    result = fakes.run("ok", "resize", "disk.qcow2", "+1G", more={"FAKE_RECORD": "1"})
    assert result.returncode == 0
    cage = fakes.reports()[-1]
    line = " ".join(cage["argv"])
    for part in ("-M microvm,acpi=off", "-nodefaults", "-no-user-config", "-display none", "-m 128",
                 "-no-reboot", "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny",
                 "locking=off", "werror=report,rerror=report", "bus=virtio-mmio-bus.0",
                 "logical_block_size=512,physical_block_size=512",
                 "read-only=off", "-accel tcg"):
        assert part in line
    assert image.name not in line
    # 0, 1, 2, request, serial, QMP, disk; and what the listing and the report take themselves
    assert len(cage["fds"]) <= 7 + 3
    assert cage["no_new_privs"] and cage["blocked"] == [] and cage["core"] == [0, 0]
    limit = 196616 + (1 << 30) + (1 << 25) + LIMIT
    assert limit <= cage["file_size"][1] < limit + 512
    assert cage["sid"] == cage["pid"]
    fakes.run("ok", "info", "disk.qcow2", more={"FAKE_RECORD": "1"})
    cage = fakes.reports()[-1]
    assert cage["file_size"] == [0, 0] and "read-only=on" in " ".join(cage["argv"])


# ---- what the guest sends ----


@pytest.mark.parametrize("mode, what", [
    ("garbage", "bytes that are no frame"),
    ("floods_serial", "bytes that are no frame"),
    ("oversized", "a frame that is too long"),
    ("just_oversized", "a frame that is too long"),
    ("bad_crc", "a frame with a wrong checksum"),
    ("truncated_payload", "a frame that holds no event of the contract"),
    ("long_string", "a frame that holds no event of the contract"),
    ("empty_event", "a frame that holds no event of the contract"),
    ("empty_outcome", "a frame that holds no event of the contract"),
    ("unknown_event", "a frame that holds no event of the contract"),
    ("unknown_code", "a frame that holds no event of the contract"),
    ("unasked_event", "an event that nobody asked for"),
])
def test_no_frames(mode, what, fakes):
    refused(fakes, mode, message="The VM sent %s\n" % what + UNCHANGED)


@pytest.mark.parametrize("mode", ["two_outcomes", "outcome_and_more"])
def test_one_outcome_only(mode, fakes):
    refused(fakes, mode, message="The VM went on after its outcome\n" + UNCHANGED)


@pytest.mark.parametrize("mode", ["wrong_result", "longer_than_granted", "shorter_than_before",
                                  "other_length_before", "strange_action", "shrinks"])
def test_implausible_outcome(mode, fakes):
    refused(fakes, mode,
            message="The VM's outcome makes no sense, and is not acted on\n" + UNCHANGED)


def test_protocol_error_as_json(fakes):
    fakes.image()
    result = fakes.run("garbage", "resize", "disk.qcow2", "+1G", "--output=json")
    assert result.returncode == 4 and result.stderr == b""
    assert json.loads(result.stdout) == {
        "error": "The VM sent bytes that are no frame\n" + UNCHANGED.strip(), "code": "PROTOCOL"}


def test_half_a_frame(fakes):
    assert "without an answer" in refused(fakes, "half_a_frame")


def test_byte_by_byte(fakes):
    fakes.image()
    result = fakes.run("byte_by_byte", "noop", "disk.qcow2")
    assert (result.returncode, result.stdout) == (0, b"disks: 1\n")


def test_faults(fakes):
    text = refused(fakes, "fault")
    assert text.startswith("instar-launch: The operation faulted in its VM: vector 14, error code "
                           "0x7, rip 0x101000, cr2 0xdeadbeef\n")
    text = refused(fakes, "assertion")
    assert text.startswith("instar-launch: The operation failed in its VM: planner/plan.c:7: "
                           "\\x1b[31mx > 0\n")


def test_logs_are_shown_with_v_only(fakes):
    fakes.image()
    result = fakes.run("floods_logs_then_works", "resize", "disk.qcow2", "+1G")
    assert (result.returncode, result.stderr) == (0, b"")
    result = fakes.run("floods_logs_then_works", "resize", "-v", "disk.qcow2", "+1G")
    assert result.stderr.count(b"guest: \\x1b[2Jhello\n") == 2000


def test_hostile_strings(fakes):
    fakes.image()
    text = refused(fakes, "hostile_error", status=1)
    assert text == ("instar-launch: \\x1b[2J\\x07 caf\u00e9 \\xe2\\x80\\xae\\xc2\\x9b31m "
                    "\"quoted\" \\ line\\x0abreak \\xff\\xfe\\x1b[31m {nonsense} %s%n\n")
    answer = json.loads(fakes.run("hostile_error", "info", "disk.qcow2", "--output=json").stdout)
    assert answer["code"] == "PARSE_FAILED" and "\x1b" not in answer["error"]
    result = fakes.run("hostile_info", "info", "disk.qcow2")
    text = result.stdout.decode()
    assert result.returncode == 0 and "\x1b" not in text and "\u202e" not in text
    assert "backing file: /etc/\\xff\\x1b[31m\"x\n" in text
    assert "virtual size: 16 EiB (18446744073709551615 bytes)\n" in text
    answer = json.loads(fakes.run("hostile_info", "info", "disk.qcow2", "--output=json").stdout)
    assert answer["format"] == "qc\x1bow2" and answer["backing-filename"] == "/etc/\\xff\x1b[31m\"x"
    assert answer["format-specific"]["data"]["flag-it"] is True


CODES = re.findall(r"^  (\w+) = (\d+);", re.search(
    r"^enum Code {\n(.*?)^}", (launching.TOP / "ops/instar.proto").read_text(), re.M | re.S)[1], re.M)


@pytest.mark.parametrize("name, code", [(name, int(code)) for name, code in CODES[1:]])
def test_every_code_has_its_text(name, code, fakes):
    """No row of the table is missing, and none says the same as another."""
    fakes.image()
    for what, shown in (("", None), ("at {off} {val} {val:x} {name}{", "at 24 2748 abc {off}\\xff"
                                     "\\x1b]0;x\\x07{")):
        result = fakes.run("refuses", "resize", "disk.qcow2", "+1G",
                           more={"FAKE_ERROR": "%d:%s" % (code, what)})
        text = result.stderr.decode().split("\n")[0]
        assert text == "instar-launch: " + shown if shown else len(text) > 20
        assert result.returncode == (4 if code in (30, 32, 33, 34) else 1)
    result = fakes.run("refuses", "resize", "disk.qcow2", "+1G", "--output=json",
                       more={"FAKE_ERROR": "%d:" % code})
    assert json.loads(result.stdout)["code"] == name


def test_codes_are_all_different():
    """In the source, since only people see the texts."""
    rows = re.findall(r"\[instar_Code_(\w+)\] =\s+{\w+,\s+\"(\w+)\",\s+\"(.+?)\"",
                      (launching.TOP / "launcher/codes.c").read_text())
    assert [(a, b) for a, b, _ in rows] == [(name, name) for name, _ in CODES]
    assert len({text for _, _, text in rows}) == len(CODES) == 35


# ---- growth ----


def test_need_is_granted(fakes):
    image = fakes.image()
    before = image.read_bytes()
    result = fakes.run("grows", "resize", "disk.qcow2", "+1G", "--output=json")
    assert result.returncode == 0, result
    answer = json.loads(result.stdout)
    assert answer["old_file_size"] == 196616 and answer["new_file_size"] == 196616 + 65536
    assert image.read_bytes() == before + b"new" + bytes(65533)


def test_need_of_nothing_new(fakes):
    image = fakes.image()
    before = launching.digest(image)
    assert fakes.run("needs_nothing_new", "resize", "disk.qcow2", "+1G").returncode == 0
    assert launching.digest(image) == before


def test_need_beyond_the_limit(fakes):
    limit = 196616 + (1 << 30) + (1 << 25) + LIMIT
    for mode, size in (("need_beyond_limit", 196616 + (1 << 50)), ("need_huge", (1 << 64) - 1)):
        refused(fakes, mode, status=1,
                message="The file 'disk.qcow2' would have to grow to %d bytes, and its limit is "
                "%d\n"
                "If that is what you want, allow it with --max-growth=%d\n" %
                (size, limit, size - 196616) + UNCHANGED)
    text = refused(fakes, "grows", "resize", "disk.qcow2", "+1G", "--max-growth=64k", status=1)
    assert "limit is %d" % (196616 + 65536) in text
    text = refused(fakes, "need_huge", "resize", "disk.qcow2", "-1G", "--shrink", status=1)
    assert "limit is %d\n" % (196616 + LIMIT) in text
    fakes.image()
    assert fakes.run("grows", "resize", "disk.qcow2", "+1G", "--max-growth=100000").returncode == 0


@pytest.mark.parametrize("mode, words", [
    ("need_no_slot", "The guest asked for the growth of a disk (slot 7) that it may not write"),
    ("need_twice", "The guest asked twice for one disk"),
    ("need_and_go_on", "The VM did not wait for what it asked for"),
])
def test_need_that_makes_no_sense(mode, words, fakes):
    assert words in refused(fakes, mode)


def test_growth_that_was_never_granted_is_taken_back(fakes):
    image = fakes.image()
    before = launching.digest(image)
    result = fakes.run("resize_half_done", "resize", "disk.qcow2", "+1G")
    assert result.returncode == 1 and b"The file could not be made longer: oops" in result.stderr
    assert launching.digest(image) == before


def test_need_of_a_reader(fakes):
    text = refused(fakes, "need_of_reader", "info", "disk.qcow2")
    assert "(slot 0) that it may not write" in text


@pytest.mark.parametrize("mode, status", [("grows_then_dies", 4), ("grows_then_refuses", 1)])
def test_failure_after_a_grant_says_so(mode, status, fakes):
    image = fakes.image()
    before = image.read_bytes()
    result = fakes.run(mode, "resize", "disk.qcow2", "+1G")
    assert result.returncode == status
    assert b"The file had been granted a length of 262152 bytes" in result.stderr
    assert image.read_bytes().startswith(before)


def test_file_that_the_image_names(fakes):
    """What the guest says that an image names goes through the path policy, and its own claim of
    success beside it counts for nothing."""
    refused(fakes, "needs_a_file", status=1, message="The image names a backing file, "
            "'/etc/\\x1b[31mshadow', which does not lie in the image's directory. If you trust "
            "that, give its directory with --backing-dir.\n")
    refused(fakes, "needs_a_file_and_claims_success", status=1, message="Could not open backing "
            "file: Could not open 'base': No such file or directory\n")


def test_shrink_needs_leave(fakes):
    image = fakes.image()
    result = fakes.run("shrinks", "resize", "--shrink", "disk.qcow2", "-1G")
    assert result.returncode == 0 and image.stat().st_size == 196616 - 512


def test_a_file_is_cut_when_qemu_is_dead(fakes):
    """Killed is not dead: until then a write may be on its way."""
    for _ in range(3):
        image = fakes.image()
        p = fakes.start("shrinks_and_dies_slowly", "resize", "--shrink", "disk.qcow2", "-1G")
        pid = None
        while p.poll() is None and image.stat().st_size == 196616:
            pid = pid or (fakes.reports() and fakes.reports()[-1]["pid"])
        assert not launching.alive(pid)
        assert p.communicate(timeout=launching.TIMEOUT) == (b"Image resized.\n", b"")
        assert p.returncode == 0


def test_few_descriptors(fakes):
    """Whichever descriptor it is that cannot be had: a failure with words, and nothing done."""
    image = fakes.image()
    before = launching.digest(image)
    failed = set()
    for limit in range(4, 24):
        result = fakes.run("ok", "resize", "disk.qcow2", "+1G",
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE,
                                                                 (limit, limit)))
        text = result.stderr.decode()
        if result.returncode == 0:
            break
        assert result.returncode in (1, 4) and text.startswith("instar-launch: "), (limit, text)
        failed.add(text.split(":")[1])
        assert launching.digest(image) == before
    assert result.returncode == 0
    assert {" Could not make a memfd", " Could not make a signalfd", " Could not open /dev/null",
            " Could not make QEMU's channels"} <= failed


def test_raw_that_was_guessed(fakes):
    fakes.image()
    result = fakes.run("probed_raw", "resize", "disk.qcow2", "+1G")
    assert (result.returncode, result.stdout) == (0, b"Image resized.\n")
    assert result.stderr.decode() == (
        "WARNING: Image format was not specified for 'disk.qcow2' and probing guessed raw.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations "
        "on block 0 will be restricted.\n"
        "         Specify the 'raw' format explicitly to remove the restrictions.\n")


@pytest.mark.parametrize("backing", ["base.img", "../base.img", "/nowhere/base.img", "a/b:c",
                                     "nbd://host/disk"])
@pytest.mark.parametrize("where", ["disk.qcow2", "./disk.qcow2", "sub/../disk.qcow2", "/"])
def test_info_layout(where, backing, fakes):
    """The layout of qemu-img info, and its rule for the path of a backing file."""
    image = fakes.tmp / "disk.qcow2"
    (fakes.tmp / "sub").mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw",
                    image, "20G"], check=True)
    name = str(image) if where == "/" else where
    for output in ("human", "json"):
        result = fakes.run("info_qcow2", "info", "--output=" + output, name,
                           more={"FAKE_BACKING": backing})
        ref = subprocess.run(["qemu-img", "info", "--output=" + output, name], check=True,
                             capture_output=True, cwd=fakes.tmp).stdout.decode()
        # Not ours: what later versions of qemu-img add, and facts that the fake does not tell.
        other = ("corrupt", "extended l2")
        if output == "human":
            assert result.stdout.decode().splitlines() == [
                line for line in ref.split("Child node")[0].splitlines()
                if not line.strip().startswith(other)]
        else:
            ours, theirs = json.loads(result.stdout), json.loads(ref)
            for key in ("corrupt", "extended-l2"):
                del theirs["format-specific"]["data"][key]
            theirs.pop("children", None)
            assert ours == theirs


def on_a_terminal(fakes, mode, *more, both=False):
    """What stands on the terminal that is stderr (and stdout), byte for byte."""
    ours, theirs = pty.openpty()
    words = ["resize", "--accel=tcg", "disk.qcow2", "+1G", *more]
    result = subprocess.run([launching.LAUNCHER, *words], env=fakes.env(mode), stderr=theirs,
                            stdout=theirs if both else subprocess.PIPE, cwd=fakes.tmp,
                            timeout=launching.TIMEOUT)
    assert result.returncode == 0
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # nobody has it open any more
        pass
    os.close(ours)
    return shown


def test_progress_on_a_terminal(fakes):
    """After a second; a sign of life that tells of no requests is none to show."""
    fakes.image()
    assert on_a_terminal(fakes, "takes_long") == \
        b"\r\x1b[Kresize: 50 %, 2000 requests\r\x1b[K"
    for quiet in ("-q", "--output=json"):
        assert on_a_terminal(fakes, "takes_long", quiet) == b""
    result = fakes.run("takes_long", "resize", "disk.qcow2", "+1G")
    assert (result.stdout, result.stderr) == (b"Image resized.\n", b"")


def test_progress_before_a_plan(fakes):
    """It is wiped away before the first line of the plan, and does not come again."""
    fakes.image()
    shown = on_a_terminal(fakes, "plans_slowly", "--dry-run", both=True)
    assert shown.startswith(b"\r\x1b[Kresize: 3000 requests\r\x1b[Kepoch  kind")
    assert shown.count(b"\x1b") == 2 and shown.endswith(b"Dry run: nothing was written.\r\n")


# ---- the choice of an accelerator ----


needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm is absent or closed to this user")


@needs_kvm
def test_kvm_that_dies_is_replaced(fakes):
    fakes.image()
    result = fakes.run("dies_under_kvm", "resize", "disk.qcow2", "+1G", accel="auto")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Image resized.\n", b"")
    result = fakes.run("dies_under_kvm", "resize", "-v", "disk.qcow2", "+1G", accel="auto")
    assert b"KVM failed, going on with TCG" in result.stderr
    text = refused(fakes, "dies_under_kvm", accel="kvm")
    assert "failed to initialize kvm" in text


@needs_kvm
def test_kvm_that_hangs_is_replaced(fakes):
    fakes.image()
    assert fakes.run("hangs_under_kvm", "resize", "disk.qcow2", "+1G", "--timeout=1",
                     accel="auto").returncode == 0


@needs_kvm
def test_a_fault_is_no_failure_of_kvm(fakes):
    assert "faulted" in refused(fakes, "faults_under_kvm", accel="auto")


@needs_kvm
def test_nothing_is_done_twice(fakes):
    """KVM died, but the image was written to: it may have been resized."""
    fakes.image()
    result = fakes.run("writes_under_kvm", "resize", "disk.qcow2", "+1G", accel="auto")
    assert result.returncode == 4
    assert b"No growth had been granted, but the file may have been written to" in result.stderr
    assert len(fakes.reports()) == 1


# ---- the choice of a machine ----


def machines(fakes):
    """What was started, one after the other."""
    return [" ".join(r["argv"][1:5]) for r in fakes.reports()]


TRIMMED = {"microvm": "-M microvm,acpi=off,", "q35": "-M q35,smm=off,", "pc": "-M pc,smm=off,"}


@pytest.mark.parametrize("mode, tried, plain", [
    ("lacks_microvm", ["microvm", "q35"], []),
    ("lacks_microvm_and_q35", ["microvm", "q35", "pc"], []),
    ("lacks_microvm_and_qboot", ["microvm", "q35", "pc"], ["q35"]),
    ("lacks_microvm_and_hpet", ["microvm", "q35", "pc"], ["q35"]),
])
def test_machine_that_is_lacking_is_replaced(mode, tried, plain, fakes):
    fakes.image()
    result = fakes.run(mode, "resize", "disk.qcow2", "+1G", more={"FAKE_RECORD": "1"})
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Image resized.\n", b"")
    seen = machines(fakes)
    assert len(seen) == len(tried + plain)
    assert all(s.startswith(TRIMMED[t]) for s, t in zip(seen, tried))
    assert all("-bios qboot.rom" in s for s in seen[1:len(tried)])
    assert all(s.startswith("-M %s -nodefaults" % p) for s, p in zip(seen[len(tried):], plain))
    line = " ".join(fakes.reports()[-1]["argv"])
    assert "-device virtio-blk-pci,disable-legacy=on,addr=4,drive=f0," in line
    result = fakes.run(mode, "resize", "-v", "disk.qcow2", "+1G")
    assert b"microvm failed, going on with q35: QEMU exited with status 1" in result.stderr


def test_machine_that_was_named_is_not_replaced(fakes):
    for machine, mode, count in (("microvm", "lacks_all", 1), ("q35", "lacks_all", 2),
                                 ("pc", "lacks_microvm_and_qboot", 2)):
        seen = len(fakes.reports())
        fakes.image()
        result = fakes.run(mode, "info", "disk.qcow2", "--machine=" + machine)
        assert result.returncode == (0 if machine == "pc" else 4)
        assert len(fakes.reports()) - seen == count


def test_no_machine_at_all(fakes):
    text = refused(fakes, "lacks_all")
    assert text.count("unsupported machine type") == 1 and text.endswith(UNCHANGED)
    assert len(fakes.reports()) == 5


@pytest.mark.parametrize("mode", ["dies", "lacks_microvm_but_writes"])
def test_other_failures_are_no_lack(mode, fakes):
    fakes.image()
    assert fakes.run(mode, "resize", "disk.qcow2", "+1G").returncode == 4
    assert len(fakes.reports()) == 1


# ---- interruption ----


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(sig, fakes):
    image = fakes.image()
    before = launching.digest(image)
    process = fakes.start("hangs", "resize", "disk.qcow2", "+1G")
    pid = fakes.wait_for_fake()
    out, err = launching.interrupt(process, sig)
    assert process.returncode == -sig
    assert not launching.alive(pid)
    assert out == b"" and err.startswith(b"instar-launch: Interrupted")
    assert err.decode().endswith(UNCHANGED)
    assert launching.digest(image) == before


def test_interrupted_after_a_grant(fakes):
    image = fakes.image()
    process = fakes.start("hangs_after_grant", "resize", "disk.qcow2", "+1G", "--output=json")
    launching.until(lambda: image.stat().st_size > 196616)
    time.sleep(0.1)
    out, err = launching.interrupt(process)
    assert err == b"" and process.returncode == -signal.SIGINT
    answer = json.loads(out)
    assert answer["code"] == "INTERRUPTED" and "had been granted" in answer["error"]


def test_qemu_dies_with_the_launcher(fakes):
    fakes.image()
    process = fakes.start("hangs", "resize", "disk.qcow2", "+1G")
    pid = fakes.wait_for_fake()
    assert launching.alive(pid)
    process.kill()
    process.communicate(timeout=launching.TIMEOUT)
    launching.until(lambda: not launching.alive(pid))
