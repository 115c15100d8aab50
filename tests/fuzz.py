#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Drives the fuzz targets (tests/fuzz_qcow2.c; tests/fuzz_disk.c for vhd, vhdx and vmdk);
`make check-fuzz` and `make fuzz T=minutes FUZZ="vhd vhdx"` call it.

    fuzz.py check BUILD TARGET...           the corpus must pass; planted bugs (canaries) be found
    fuzz.py explore BUILD MINUTES TARGET... two workers, the minutes shared between the targets; new
                                            crashes are kept in BUILD/fuzz/crashes

The corpus is what make-seeds and make-disk-seeds write, plus tests/corpus/TARGET: inputs that once
found something. To look at one:
INSTAR_VERBOSE=1 INSTAR_SAVE=/tmp/it.qcow2 BUILD/fuzz/replay-qcow2 FILE
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time

REGRESSIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
CANARY_RUNS, CANARY_SECONDS = 300000, 120
MAX_LEN = {"qcow2": 4096, "vhd": 8192, "vhdx": 8192, "vmdk": 8192}
ENV = dict(os.environ, ASAN_OPTIONS="abort_on_error=0:allocator_may_return_null=1",
           UBSAN_OPTIONS="print_stacktrace=1")


def run(*argv, **kwargs):
    return subprocess.run([str(a) for a in argv], env=ENV, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", **kwargs)


def fail(what, output=""):
    sys.exit(f"fuzz: {what}\n{output[-6000:]}")


def seeds(build):
    """Of all targets, each in a directory of its own."""
    path = os.path.join(build, "seeds")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(os.path.join(path, "qcow2"))
    for maker, into in ("make-seeds", os.path.join(path, "qcow2")), ("make-disk-seeds", path):
        r = run(os.path.join(build, maker), into)
        if r.returncode:
            fail("no seeds", r.stdout)
        print("fuzz:", r.stdout.strip())


def corpus(build, target):
    """Its directories; the second is too slow to explore from."""
    quick, slow = (os.path.join(build, d, target) for d in ("seeds", "slow-seeds"))
    shutil.rmtree(slow, ignore_errors=True)
    os.makedirs(slow)
    for name in os.listdir(quick):
        if name.startswith("slow-"):
            shutil.move(os.path.join(quick, name), slow)
    found = os.path.join(REGRESSIONS, target)
    return [quick, slow] + ([found] if os.path.isdir(found) else [])


def binary(build, name, target):
    """qcow2, the first of them, has the plain names."""
    plain = {"fuzz": target, "canary": f"canary-{target}", "replay": f"replay-{target}",
             "replay-canary": f"replay-canary-{target}"}[name]
    return os.path.join(build, plain[:-6] if plain.endswith("canary-qcow2") else plain)


def died_of_canary(r):
    found = "heap-buffer-overflow" in r.stdout or "runtime error: load of address" in r.stdout
    return r.returncode and found and "in canary" in r.stdout


def check(build, targets):
    seeds(build)
    for target in targets:
        dirs = corpus(build, target)
        r = run(binary(build, "replay", target), *dirs, timeout=600)
        if r.returncode:
            fail(f"{target}: an input of the corpus fails (its name is above the report)", r.stdout)
        print(f"fuzz: {target}: corpus:", r.stdout.strip().splitlines()[-1])
        r = run(binary(build, "replay-canary", target), *dirs, timeout=600)
        if not died_of_canary(r):
            fail(f"{target}: the corpus does not find the canary", r.stdout)
        print(f"fuzz: {target}: the corpus finds the canary")
        if os.path.exists(binary(build, "canary", target)):
            find_canary(build, target, [dirs[0]] + dirs[2:])
        else:
            print(f"fuzz: {target}: NOT DONE, for want of libFuzzer: exploring")


def find_canary(build, target, dirs):
    with tempfile.TemporaryDirectory() as tmp:
        r = run(binary(build, "fuzz", target), "-runs=0", "-timeout=20", tmp, *dirs, cwd=tmp)
        if r.returncode:
            fail(f"{target}: libFuzzer stumbles over the corpus", r.stdout)
        start = time.monotonic()
        r = run(binary(build, "canary", target), f"-runs={CANARY_RUNS}", "-seed=1", "-timeout=20",
                f"-max_len={MAX_LEN[target]}", f"-max_total_time={CANARY_SECONDS}",
                "-print_final_stats=1", tmp, *dirs, cwd=tmp)
        if not died_of_canary(r):
            fail(f"{target}: exploring does not find the canary", r.stdout)
        runs = [x.split()[-1] for x in r.stdout.splitlines() if "executed_units" in x]
        print(f"fuzz: {target}: exploring finds the canary in {runs[0] if runs else '?'} runs, "
              f"{time.monotonic() - start:.1f} s")


def explore(build, minutes, targets):
    crashes = os.path.join(build, "crashes")
    os.makedirs(crashes, exist_ok=True)
    before = set(os.listdir(crashes))
    seeds(build)
    for target in targets:
        grown, dirs = os.path.join(build, "corpus", target), corpus(build, target)
        os.makedirs(grown, exist_ok=True)
        del dirs[1]
        subprocess.run([binary(build, "fuzz", target), "-fork=2", "-ignore_crashes=1",
                        "-ignore_timeouts=1", "-ignore_ooms=1", "-timeout=20",
                        f"-max_len={MAX_LEN[target]}",
                        f"-max_total_time={int(float(minutes) * 60 / len(targets))}",
                        f"-artifact_prefix={crashes}/{target}-", grown, *dirs], env=ENV)
        print(f"fuzz: {target}: {len(os.listdir(grown))} inputs in {grown}")
    new = sorted(set(os.listdir(crashes)) - before)
    for name in new:
        print("fuzz: new:", os.path.join(crashes, name))
    print(f"fuzz: {len(new)} new crashes")
    return 1 if new else 0


def main():
    if len(sys.argv) > 3 and sys.argv[1] in ("check", "explore"):
        build = os.path.join(os.path.abspath(sys.argv[2]), "fuzz")
        rest = sys.argv[3:]
        if set(rest[sys.argv[1] == "explore":]) <= set(MAX_LEN):
            return check(build, rest) if sys.argv[1] == "check" else \
                explore(build, rest[0], rest[1:] or list(MAX_LEN))
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
