# SPDX-License-Identifier: MIT
"""A VMDK whose descriptor's text moves across sectors when it is resized, which no order of writes
makes safe: runs that are killed, each of the sectors without the others, and the journal that leads
back."""
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from conftest import (LAUNCH, TIMEOUT, best_accel, copy, info, launch, patch, qemu_img, qemu_io, run,
                      sha256)
from test_vmdk import by_qemu, check_vmdk, create_vmdk, edit_text, resize

sys.path.insert(0, str(pathlib.Path(__file__).parent / "fakeqemu"))
import undo_journal  # noqa: E402

MI = 1 << 20
SEED = 20240611


def long_text(path, size):
    """The numbers lie in the descriptor's first sector, and half of the text behind it."""
    create_vmdk(path, size)
    edit_text(path, b"# Extent description", b"# " + b"x" * 150 + b"\n# Extent description")
    edit_text(path, b"#DDB\n", b"#DDB\n" + b"#" * 600 + b"\n")
    qemu_io(path, f"write -P 1 0 {size}", f"write -P 2 {size // 2} 512", fmt="vmdk")
    return path


def resized(path, size):
    """Another size is another number of digits."""
    p = launch("resize", "--dry-run", "--shrink", "-f", "vmdk", path, str(size))
    assert p.returncode == 0 and "descriptor" in p.stdout, p
    resize(path, size, "--shrink")
    return path


@pytest.mark.parametrize("old, new", [(48 * MI, 200 * MI), (50 * MI, 40 * MI)],
                         ids=["grow", "shrink"])
def test_killed_at_any_moment(tmp_path, old, new):
    """SIGKILL of the launcher, then `recover`: the old size or the new, with all data, and the same
    command ends what it began."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = long_text(tmp_path / "a.vmdk", old)
    before = by_qemu(path, tmp_path)
    start = time.monotonic()
    resized(copy(path, "victim.vmdk"), new)
    span = (time.monotonic() - start) / 2
    seen = {"old": 0, "new": 0, "journal": 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "24"))):
        victim = copy(path, "victim.vmdk")
        args = [LAUNCH, "resize", "-q", "--shrink", "--accel", best_accel(), victim, str(new)]
        p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = victim.with_name("victim.vmdk.instar-undo")
        if i % 2:
            time.sleep(rng.uniform(0.3 * span, span))
        while i % 2 == 0 and not journal.exists() and p.poll() is None:
            pass
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        pending = journal.exists()
        while (q := run(LAUNCH, "recover", victim)).returncode:
            assert time.monotonic() < deadline, q.stderr
            time.sleep(0.01)
        assert not journal.exists()
        size = info(victim)["virtual-size"]
        assert size in (old, new), f"kill {i}"
        seen["journal" if pending else "old" if size == old else "new"] += 1
        if size < 100 * MI:
            assert by_qemu(victim, tmp_path) == before[:size], f"kill {i}"
        again = run(*args)
        assert (again.returncode, again.stderr) == (0, ""), f"kill {i}"
        assert check_vmdk(victim) == new
        qemu_io(victim, f"read -P 1 {min(old, new) - MI} {MI}", f"write -P 9 {new - 512} 512",
                fmt="vmdk")
    print("killed runs left:", seen)
    assert seen["journal"] > 3


def test_half_written(tmp_path):
    """Any of the sectors, with a journal: a reader warns, recover leads back, a resize goes on."""
    path = long_text(tmp_path / "a.vmdk", 48 * MI)
    old = path.read_bytes()
    grown = resized(copy(path, "grown.vmdk"), 50 * MI).read_bytes()  # of as many tables
    assert len(grown) == len(old)
    offs = [off for off in range(512, 21 * 512, 512)
            if old[off:off + 512] != grown[off:off + 512]]
    assert 2 <= len(offs) <= 4
    changes = {off: grown[off:off + 512] for off in offs}
    journal = tmp_path / "a.vmdk.instar-undo"
    for n in range(len(offs) + 1):
        for written in itertools.combinations(offs, n):
            def interrupt():
                path.write_bytes(old)
                journal.write_bytes(undo_journal.build(path, changes, len(old), len(old), epoch=1))
                journal.chmod(0o600)
                for off in written:
                    patch(path, off, changes[off])
            interrupt()
            half = sha256(path)
            p = launch("info", path)
            assert "was interrupted" in p.stderr and sha256(path) == half and journal.exists()
            assert run(LAUNCH, "recover", path).returncode == 0
            assert path.read_bytes() == old and not journal.exists()
            if n == 1 or n == len(offs):
                interrupt()
                p = launch("resize", path, "50M")
                assert p.returncode == 0 and "Rolled back an interrupted operation" in p.stderr
                assert path.read_bytes() == grown and not journal.exists()
    qemu_img("check", "-q", "-f", "vmdk", path)
