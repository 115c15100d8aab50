# SPDX-License-Identifier: MIT
"""`make bench`: ratios measured side by side in one run, medians, interleaved. Absolute times are
this machine's and this hour's; only the ratios travel. Nothing here asserts: a number that is
missed is printed as missed."""
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCH = os.path.join(TOP, "build/instar-launch")
ROUNDS = int(os.environ.get("ROUNDS", "20"))
SEED = 20240501
sys.path.insert(0, os.path.join(TOP, "build/gen"))
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
import instar_pb2  # noqa: E402

G, T, P = 1 << 30, 1 << 40, 1 << 50


def kvm_works():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
        return True
    except OSError:
        return False


def accels():
    return (["kvm"] if kvm_works() else []) + ["tcg"]


def run(*argv):
    done = subprocess.run(argv, capture_output=True, timeout=300)
    if done.returncode:
        sys.exit(f"{argv} failed: {done.stderr.decode()}")


def timed(fn):
    start = time.perf_counter()
    fn()
    return (time.perf_counter() - start) * 1000


def interleaved(cases, rounds=None):
    """{name: (prepare, fn)} -> {name: median ms}; one of each per round, a first round for warmth."""
    took = {name: [] for name in cases}
    for i in range((rounds or ROUNDS) + 1):
        for name, (prepare, fn) in cases.items():
            prepare()
            ms = fn() if fn.__name__ == "self_timed" else timed(fn)
            if i:
                took[name].append(ms)
    return {name: statistics.median(v) for name, v in took.items()}


def fresh(path, size, *options, fmt="qcow2"):
    def make():
        if os.path.exists(path):
            os.unlink(path)
        run("qemu-img", "create", "-q", "-f", fmt, *options, path, str(size))
    return make


def nothing():
    pass


def ratio(table, what, a, b, limit=None):
    r = a / b
    verdict = "" if limit is None else f"at most {limit}: " + ("met" if r <= limit else "MISSED")
    table.append((what, f"{a:.1f} ms", f"{b:.1f} ms", f"{r:.2f}", verdict))


def bare_qemu(kernel, accel, request, *extra):
    """QEMU by hand, the kernel's serial port on stdout; the same command for every kernel."""
    cpu = {"kvm": "max,arch-capabilities=off", "tcg": "max"}[accel]
    argv = ["qemu-system-x86_64",
            "-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off",
            "-accel", accel, "-cpu", cpu, "-m", "128", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false",
            "-serial", "stdio", "-kernel", kernel, "-initrd", request, *extra]
    return argv


EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")


def to_last_byte(kernel, accel, request, to_exit):
    """ms from spawn to the last serial byte, or to the end of the process."""
    def self_timed():
        start = time.perf_counter()
        p = subprocess.Popen(bare_qemu(kernel, accel, request, *EXIT), stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        last = start
        while select.select([p.stdout], [], [], 30)[0]:
            if not os.read(p.stdout.fileno(), 65536):
                break
            last = time.perf_counter()
        p.wait(timeout=30)
        end = time.perf_counter()
        return ((end if to_exit else last) - start) * 1000
    return self_timed


def bench_whole(table, tmp, accel):
    image, other = os.path.join(tmp, "a.qcow2"), os.path.join(tmp, "b.qcow2")
    cases = {
        "resize": (fresh(image, 20 * G),
                   lambda: run(LAUNCH, "resize", "-q", "--accel", accel, image, "+5G")),
        "noop": (fresh(image, 20 * G), lambda: run(LAUNCH, "noop", "--accel", accel, image)),
        "qemu-img": (fresh(other, 20 * G),
                     lambda: run("qemu-img", "resize", "-q", "-f", "qcow2", other, "+5G")),
    }
    t = interleaved(cases)
    ratio(table, f"{accel}: resize 20G +5G / noop", t["resize"], t["noop"], 1.25)
    ratio(table, f"{accel}: resize / qemu-img resize", t["resize"], t["qemu-img"])


def bench_reference(table, tmp, accel):
    """rebase -u: to a backing file that is not there, to one, and to one that stands on another,
    which takes a boot more."""
    image, base, top = (os.path.join(tmp, n) for n in ("r.qcow2", "base", "top.qcow2"))
    with open(base, "wb") as f:
        f.truncate(20 * G)
    fresh(top, 20 * G, "-b", base, "-F", "raw")()
    make = fresh(image, 20 * G, "-b", base, "-F", "raw")
    rebase = lambda name, fmt: lambda: run(LAUNCH, "rebase", "-u", "--accel", accel, "-b", name, "-F",
                                           fmt, image)
    cases = {
        "noop": (make, lambda: run(LAUNCH, "noop", "--accel", accel, image)),
        "gone": (make, rebase("gone", "raw")),
        "base": (make, rebase("./base", "raw")),
        "top": (make, rebase("top.qcow2", "qcow2")),
        "qemu-img": (make, lambda: run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "gone", "-F",
                                       "raw", image)),
    }
    t = interleaved(cases)
    ratio(table, f"{accel}: rebase -u / noop, no such backing file", t["gone"], t["noop"], 1.25)
    ratio(table, f"{accel}: rebase -u / noop, backing file raw", t["base"], t["noop"], 1.25)
    ratio(table, f"{accel}: rebase -u / noop, backing file with one of its own", t["top"], t["noop"])
    ratio(table, f"{accel}: rebase -u / qemu-img rebase -u", t["gone"], t["qemu-img"])


OTHERS = [("VHD, dynamic", "vpc", 20 * G, ()), ("VHD, fixed", "vpc", 1 * G, ("-o", "subformat=fixed")),
          ("VHDX, dynamic", "vhdx", 20 * G, ()), ("VMDK, sparse", "vmdk", 20 * G, ())]


def bench_others(table, tmp, accel):
    """What qemu-img cannot resize, beside the noop."""
    cases = {}
    for name, fmt, size, options in OTHERS:
        image = os.path.join(tmp, f"o{len(cases)}")
        cases[name] = (fresh(image, size, *options, fmt=fmt),
                       (lambda image, fmt: lambda: run(LAUNCH, "resize", "-q", "-f", fmt, "--accel",
                                                       accel, image, "+5G"))(image, fmt))
    cases["noop"] = (nothing, lambda: run(LAUNCH, "noop", "--accel", accel, image))
    t = interleaved(cases)
    for name, _, size, _ in OTHERS:
        ratio(table, f"{accel}: resize {size >> 30}G +5G of a {name} / noop", t[name], t["noop"], 1.25)


def bench_floor(table, tmp, accel):
    request = os.path.join(tmp, "request")
    with open(request, "wb") as f:
        f.write(instar_pb2.Request(noop=instar_pb2.NoopRequest()).SerializeToString())
    noop, floor = (os.path.join(TOP, k) for k in ("images/noop.elf", "build/guests/print.elf"))
    cases = {(k, e): (nothing, to_last_byte(k, accel, request, e))
             for k in (noop, floor) for e in (False, True)}
    t = interleaved(cases)
    ratio(table, f"{accel}: noop / print-only kernel, to the last serial byte", t[noop, False],
          t[floor, False], 1.15)
    ratio(table, f"{accel}: noop / print-only kernel, to process exit", t[noop, True],
          t[floor, True], 1.15)


def bench_sizes(table, tmp, accel):
    """Does the cost depend on the size of the disk? It must not, but for an L1 table that moves."""
    image = os.path.join(tmp, "s.qcow2")
    resize = lambda size: lambda: run(LAUNCH, "resize", "-q", "--accel", accel, image, size)
    cases = {
        "1G": (fresh(image, 1 * G), resize("+1G")),
        "1P": (fresh(image, 1 * P - 1 * T), resize("+1G")),
        "move": (fresh(image, 1 * P), resize("+1P")),
    }
    t = interleaved(cases)
    ratio(table, f"{accel}: grow of 1 PiB / of 1 GiB, L1 at the end, room in its last cluster",
          t["1P"], t["1G"], 1.1)
    ratio(table, f"{accel}: the same with 16 MiB of L1 table to move / 1 GiB", t["move"], t["1G"])


def bench_machines(table, tmp, accel):
    image = os.path.join(tmp, "q.qcow2")
    cases = {m: (fresh(image, 20 * G), (lambda m: lambda: run(
        LAUNCH, "resize", "-q", "--accel", accel, "--machine", m, image, "+5G"))(m))
        for m in ("microvm", "q35", "pc")}
    t = interleaved(cases)
    ratio(table, f"{accel}: resize on q35 / on microvm", t["q35"], t["microvm"])
    ratio(table, f"{accel}: resize on pc / on microvm", t["pc"], t["microvm"])


def bench_copying(table, tmp, accel):
    """A safe rebase that copies 4 GiB, which the page cache holds; both flush what they write."""
    raw, base = (os.path.join(tmp, n) for n in ("full.raw", "full.qcow2"))
    noise = random.Random(SEED).randbytes(1 << 20)
    with open(raw, "wb") as f:
        for i in range(4 * G >> 20):
            f.write(i.to_bytes(8, "little") + noise[8:])
    run("qemu-img", "convert", "-O", "qcow2", raw, base)
    os.unlink(raw)
    ours, other = (os.path.join(tmp, n) for n in ("copy-a.qcow2", "copy-b.qcow2"))

    def overlay(path):
        def make():
            for old in (ours, other):
                if os.path.exists(old):
                    os.unlink(old)
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
            os.sync()
        return make
    t = interleaved({
        "rebase": (overlay(ours), lambda: run(LAUNCH, "rebase", "-q", "--accel", accel, "-b", "", ours)),
        "qemu-img": (overlay(other), lambda: run("qemu-img", "rebase", "-f", "qcow2", "-b", "", other)),
    }, min(ROUNDS, 5))
    ratio(table, f"{accel}: rebase that copies 4 GiB / qemu-img rebase", t["rebase"], t["qemu-img"],
          1.0)
    for path in (base, ours, other):
        if os.path.exists(path):
            os.unlink(path)


def bench_shrink(table, tmp, accel):
    image = os.path.join(tmp, "k.qcow2")
    shrink = lambda: run(LAUNCH, "resize", "-q", "--accel", accel, "--shrink", image, "1G")
    t = interleaved({"16T": (fresh(image, 16 * T), shrink), "2G": (fresh(image, 2 * G), shrink)})
    ratio(table, f"{accel}: shrink of empty 16 TiB to 1 GiB / of 2 GiB", t["16T"], t["2G"], 1.3)


def has_outcome(data):
    """Do these frames hold the last word?"""
    while len(data) >= 12:
        length, = struct.unpack_from("<I", data, 4)
        event = instar_pb2.Event()
        if len(data) < 12 + length:
            return False
        event.ParseFromString(data[8:8 + length])
        if event.WhichOneof("event") == "outcome":
            return True
        data = data[12 + length:]
    return False


def guest_memory(tmp, accel, req, image):
    """Bytes of guest memory that a request touched, seen from the host (a memfd's st_blocks). There
    is nobody who grants anything; no debug exit: the guest halts."""
    request = os.path.join(tmp, "request")
    req.disks.add(length=os.path.getsize(image), writable=True)
    with open(request, "wb") as f:
        f.write(req.SerializeToString())
    argv = bare_qemu(os.path.join(TOP, "images/resize.elf"), accel, request,
                     "-object", "memory-backend-memfd,id=m,size=128M,share=on",
                     "-blockdev", f"driver=file,node-name=f0,filename={image},discard=unmap",
                     "-device", "virtio-blk-device,drive=f0,bus=virtio-mmio-bus.0")
    argv[2] += ",memory-backend=m"
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    said = b""
    try:
        while not has_outcome(said) and select.select([p.stdout], [], [], 60)[0]:
            more = os.read(p.stdout.fileno(), 65536)
            if not more:
                break
            said += more
        fds = f"/proc/{p.pid}/fd"
        return max(os.stat(f"{fds}/{n}").st_blocks * 512 for n in os.listdir(fds)
                   if "memory-backend-memfd" in os.readlink(f"{fds}/{n}")
                   or "memfd:m" in os.readlink(f"{fds}/{n}"))
    finally:
        p.kill()
        p.wait()


def grow_memory(tmp, accel):
    image = os.path.join(tmp, "m.qcow2")
    fresh(image, 20 * G)()
    os.truncate(image, 262144)  # long enough, so that no grant is needed
    return guest_memory(tmp, accel, instar_pb2.Request(
        resize=instar_pb2.ResizeRequest(kind="PLUS", size=5 * G)), image)


def bench_largest(tmp):
    """The longest BATs there are: how long, and in how much memory."""
    accel = accels()[0]
    for name, fmt, size, options in (("VHDX of 64 TiB", "vhdx", 64 * T,
                                      ("-o", "block_size=1M")),
                                     ("VHD of 2040 GiB", "vpc", 2040 * G, ("-o", "force_size=on"))):
        image = os.path.join(tmp, "largest")
        make = fresh(image, size // 2, *options, fmt=fmt)
        grow = lambda: run(LAUNCH, "resize", "-q", "-f", fmt, "--accel", accel, image, str(size))
        shrink = lambda: run(LAUNCH, "resize", "-q", "-f", fmt, "--accel", accel, "--shrink", image,
                             str(size // 2))
        make()
        took = [timed(grow) / 1000, timed(shrink) / 1000]
        make()
        os.truncate(image, os.path.getsize(image) + G)  # long enough, so that no grant is needed
        touched = guest_memory(tmp, accel, instar_pb2.Request(resize=instar_pb2.ResizeRequest(
            kind="ABSOLUTE", size=size)), image) / (1 << 20)
        os.unlink(image)
        print(f"{accel}: {name}, grown from half of it {took[0]:.2f} s, shrunk to that {took[1]:.2f} s; "
              f"guest memory {touched:.1f} MiB (at most 64: "
              + ("met)" if touched <= 64 else "MISSED)"))


def bench_scattered(tmp):
    """1 TiB of clusters in random order goes: how long, and in how much memory."""
    image = os.path.join(tmp, "scattered.qcow2")
    make = lambda: run(os.path.join(TOP, "build/tests/bench-image"), image, str(SEED))
    accel = accels()[0]
    made = timed(make) / 1000
    took = timed(lambda: run(LAUNCH, "resize", "-q", "--accel", accel, "--shrink", image, "1G")) / 1000
    make()
    touched = guest_memory(tmp, accel, instar_pb2.Request(resize=instar_pb2.ResizeRequest(
        kind="ABSOLUTE", size=G, shrink=True)), image) / (1 << 20)
    os.unlink(image)
    print(f"{accel}: 1 TiB of allocated 64 KiB clusters in random order (seed {SEED}, made in {made:.1f} "
          "s), shrunk away:")
    for what, value, unit, limit in (("", took, "s", 10), ("guest memory ", touched, "MiB", 64)):
        print(f"  {what}{value:.1f} {unit} (at most {limit}: "
              + ("met)" if value <= limit else "MISSED)"))


def build_time():
    src = subprocess.run(["git", "-C", TOP, "ls-files"], capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as d:
        for name in src.stdout.split():
            if os.path.isfile(os.path.join(TOP, name)):
                os.makedirs(os.path.join(d, os.path.dirname(name)), exist_ok=True)
                subprocess.run(["cp", os.path.join(TOP, name), os.path.join(d, name)], check=True)
        return timed(lambda: run("make", "-s", "-j2", "-C", d, "all")) / 1000


def main():
    table = []
    with tempfile.TemporaryDirectory() as tmp:
        for accel in accels():
            bench_whole(table, tmp, accel)
            bench_others(table, tmp, accel)
            bench_reference(table, tmp, accel)
            bench_floor(table, tmp, accel)
            bench_sizes(table, tmp, accel)
            bench_machines(table, tmp, accel)
            bench_shrink(table, tmp, accel)
        bench_copying(table, tmp, accels()[0])
        touched = {a: grow_memory(tmp, a) / (1 << 20) for a in accels()}
    print(f"medians of {ROUNDS}, interleaved")
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for row in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
    for accel, mib in touched.items():
        print(f"{accel}: guest memory touched by resize: {mib:.1f} MiB (under 16: "
              + ("met)" if mib < 16 else "MISSED)"))
    with tempfile.TemporaryDirectory() as tmp:
        bench_largest(tmp)
        bench_scattered(tmp)
    seconds = build_time()
    print(f"make -j2 from clean: {seconds:.1f} s (under 30: " + ("met)" if seconds < 30 else "MISSED)"))


if __name__ == "__main__":
    main()
