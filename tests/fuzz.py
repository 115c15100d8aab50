#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Drives the fuzz target (tests/fuzz_qcow2.c); `make check-fuzz` and `make fuzz T=minutes` call it.

    fuzz.py check BUILD             the corpus must pass; planted bugs (canaries) must be found
    fuzz.py explore BUILD MINUTES   two workers; new crashes are kept in BUILD/fuzz/crashes

The corpus is what fuzz-seeds writes, plus tests/corpus/qcow2: inputs that once found something.
To look at one: INSTAR_VERBOSE=1 INSTAR_SAVE=/tmp/it.qcow2 BUILD/fuzz/replay-qcow2 FILE
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time

REGRESSIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "qcow2")
CANARY_RUNS, CANARY_SECONDS = 300000, 120
ENV = dict(os.environ, ASAN_OPTIONS="abort_on_error=0:allocator_may_return_null=1",
           UBSAN_OPTIONS="print_stacktrace=1")


def run(*argv, **kwargs):
    return subprocess.run([str(a) for a in argv], env=ENV, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", **kwargs)


def fail(what, output=""):
    sys.exit(f"fuzz: {what}\n{output[-6000:]}")


def seeds(build):
    path = os.path.join(build, "seeds")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    r = run(os.path.join(build, "make-seeds"), path)
    if r.returncode:
        fail("no seeds", r.stdout)
    print("fuzz:", r.stdout.strip())
    return path


def corpus(build):
    """Its directories; the second is too slow to explore from."""
    quick, slow = seeds(build), os.path.join(build, "slow-seeds")
    shutil.rmtree(slow, ignore_errors=True)
    os.makedirs(slow)
    for name in os.listdir(quick):
        if name.startswith("slow-"):
            shutil.move(os.path.join(quick, name), slow)
    return [quick, slow] + ([REGRESSIONS] if os.path.isdir(REGRESSIONS) else [])


def died_of_canary(r):
    found = "heap-buffer-overflow" in r.stdout or "runtime error: load of address" in r.stdout
    return r.returncode and found and "in canary" in r.stdout


def check(build):
    dirs = corpus(build)
    r = run(os.path.join(build, "replay-qcow2"), *dirs, timeout=600)
    if r.returncode:
        fail("an input of the corpus fails (its name is above the report)", r.stdout)
    print("fuzz: corpus:", r.stdout.strip().splitlines()[-1])
    r = run(os.path.join(build, "replay-canary"), *dirs, timeout=600)
    if not died_of_canary(r):
        fail("the corpus does not find the canary", r.stdout)
    print("fuzz: the corpus finds the canary")
    if not os.path.exists(os.path.join(build, "canary")):
        print("fuzz: NOT DONE, for want of libFuzzer: exploring")
        return
    del dirs[1]
    with tempfile.TemporaryDirectory() as tmp:
        r = run(os.path.join(build, "qcow2"), "-runs=0", "-timeout=20", tmp, *dirs, cwd=tmp)
        if r.returncode:
            fail("libFuzzer stumbles over the corpus", r.stdout)
        start = time.monotonic()
        r = run(os.path.join(build, "canary"), f"-runs={CANARY_RUNS}", "-seed=1", "-timeout=20",
                "-max_len=4096", f"-max_total_time={CANARY_SECONDS}", "-print_final_stats=1", tmp,
                *dirs, cwd=tmp)
        if not died_of_canary(r):
            fail("exploring does not find the canary", r.stdout)
        runs = [x.split()[-1] for x in r.stdout.splitlines() if "executed_units" in x]
        print(f"fuzz: exploring finds the canary in {runs[0] if runs else '?'} runs, "
              f"{time.monotonic() - start:.1f} s")


def explore(build, minutes):
    crashes, grown = os.path.join(build, "crashes"), os.path.join(build, "corpus")
    for d in crashes, grown:
        os.makedirs(d, exist_ok=True)
    before, dirs = set(os.listdir(crashes)), corpus(build)
    del dirs[1]
    subprocess.run([os.path.join(build, "qcow2"), "-fork=2", "-ignore_crashes=1",
                    "-ignore_timeouts=1", "-ignore_ooms=1", "-timeout=20", "-max_len=4096",
                    f"-max_total_time={int(float(minutes) * 60)}",
                    f"-artifact_prefix={crashes}/", grown, *dirs], env=ENV)
    new = sorted(set(os.listdir(crashes)) - before)
    for name in new:
        print("fuzz: new:", os.path.join(crashes, name))
    print(f"fuzz: {len(os.listdir(grown))} inputs in {grown}; {len(new)} new crashes")
    return 1 if new else 0


def main():
    build = os.path.join(os.path.abspath(sys.argv[2]), "fuzz") if len(sys.argv) > 2 else ""
    if len(sys.argv) == 3 and sys.argv[1] == "check":
        return check(build)
    if len(sys.argv) == 4 and sys.argv[1] == "explore":
        return explore(build, sys.argv[3])
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
