# SPDX-License-Identifier: MIT
"""instar-launch resize end to end, under TCG and KVM, against qemu-img, 7-Zip and libqcow."""
import json
import os
import random
import signal
import struct
import subprocess
import time

import pytest

from conftest import (CLUSTER, LAUNCH, TIMEOUT, add_extension, be32, be64, best_accel,
                      check_status, copy, create, guest_bytes, has_extended_l2, header, host, info,
                      launch, outcome, patch, qemu_img, qemu_io, resize_request, run, same_content,
                      sha256, size_by_7zz, size_by_qcowinfo)

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SEED = 20240229

# name: (options of qemu-img create, old size, new size, qemu-io commands that fill it)
SHAPES = {
    "default": ([], MI, 4 * MI, ["write -P 0x11 0 64k", "write -P 0x12 700k 99k"]),
    "empty": ([], 20 * MI, 25 * MI, []),
    "l1-in-place": ([], 600 * MI, 3 * GI, ["write -P 0x21 599M 1M"]),
    "l1-moves-512": (["cluster_size=512"], MI, 16 * MI, ["write -P 0x31 0 64k"]),
    "l1-moves-4k": (["cluster_size=4k"], MI * 900, 3 * GI, ["write -P 0x41 899M 1M"]),
    "refcount-block-512": (["cluster_size=512"], 2 * MI, 40 * MI, ["write -P 0x51 0 120k"]),
    "refcount-table-512": (["cluster_size=512"], 9 * MI, 40 * MI,
                           ["write -P 0x61 0 8200k"]),
    "v2": (["compat=0.10"], 10 * MI, 900 * MI, ["write -P 0x71 1M 3M"]),
    "counts-1": (["refcount_bits=1", "cluster_size=4k"], 10 * MI, 5 * GI, ["write -P 0x81 0 5M"]),
    "counts-64": (["refcount_bits=64", "cluster_size=4k"], 10 * MI, 5 * GI, ["write -P 0x82 0 5M"]),
    "extl2": (["extended_l2=on", "cluster_size=16k"], 10 * MI, 900 * MI,
              ["write -P 0x91 1k 3k", "write -z 1M 64k", "write -P 0x92 5M 1M"]),
    "cluster-2M": (["cluster_size=2M"], 7 * MI, 9 * MI, ["write -P 0xa1 6M 64k"]),
    "unaligned": ([], MI + 512, 3 * MI, ["write -P 0xb1 960k 64k", "write -P 0xb2 1M 512"]),
    "metadata": (["preallocation=metadata"], 10 * MI, 12 * MI, ["write -P 0xc1 3M 1M"]),
    "zeros": ([], 10 * MI, 700 * MI, ["write -z 1M 2M", "write -P 0xd1 8M 1M", "write -z 8M 64k"]),
}


def make(tmp_path, shape, name="a.qcow2"):
    options, old, new, commands = SHAPES[shape]
    path = create(tmp_path / name, old, *options)
    if commands:
        qemu_io(path, *commands)
    return path, old, new


def check_grown(path, before, old, new):
    """Sizes as three others see them, no faults, the old content, zeros after it."""
    assert info(path)["virtual-size"] == new
    assert check_status(path) == 0
    if not has_extended_l2(path):
        assert size_by_7zz(path) == new
        assert size_by_qcowinfo(path) == new
    grown = copy(before, "by-qemu-img.qcow2")
    qemu_img("resize", "-q", "-f", "qcow2", grown, str(new))
    assert same_content(path, grown)
    # and without qemu-img's resize: all is zero but what was there
    assert qemu_img("compare", "-f", "qcow2", "-F", "qcow2", path, before,
                    check=False).returncode == 0  # it takes what is longer for zeros
    strict = qemu_img("compare", "-s", "-f", "qcow2", "-F", "qcow2", path, before, check=False)
    assert strict.returncode == 1  # but sizes differ: qemu-img did compare
    grown.unlink()


@pytest.mark.parametrize("shape", SHAPES)
def test_grow(accel, tmp_path, shape):
    path, old, new = make(tmp_path, shape)
    before = copy(path, "before.qcow2")
    p = launch("resize", "-f", "qcow2", path, str(new), accel=accel)
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")
    check_grown(path, before, old, new)
    # the new area can be used
    qemu_io(path, f"write -P 0xee {new - 64 * KI} 64k", f"read -P 0xee {new - 64 * KI} 64k")
    assert check_status(path) == 0


@pytest.mark.parametrize("shape", ["default", "unaligned", "extl2", "zeros"])
def test_content_byte_for_byte(accel, tmp_path, shape):
    path, old, _ = make(tmp_path, shape)
    before = guest_bytes(path, tmp_path)
    assert len(before) == old and before.strip(b"\0")
    assert launch("resize", path, "+3M", accel=accel).returncode == 0
    after = guest_bytes(path, tmp_path)
    assert after[:old] == before
    assert after[old:] == bytes(3 * MI)


@pytest.mark.parametrize("shape", SHAPES)
def test_host_build_makes_the_same_file(accel, tmp_path, shape):
    path, _, new = make(tmp_path, shape)
    twin = copy(path, "twin.qcow2")
    status, events = host("resize", resize_request(twin, new), twin, tmp_path)
    assert status == 0
    assert launch("resize", "-f", "qcow2", path, str(new), accel=accel).returncode == 0
    assert os.stat(path).st_size == os.stat(twin).st_size
    assert sha256(path) == sha256(twin)
    result = outcome(events).resize
    assert result.resolved_new_virtual_size == new and result.action == "grow"
    assert result.file_size_after == os.stat(path).st_size


def test_resize_and_check_in_a_row(tmp_path):
    """What the launcher leaves is at once free for others: `resize && check`, many times."""
    times = int(os.environ.get("INSTAR_REPEAT", "200"))
    path = create(tmp_path / "a.qcow2", MI)
    size = MI
    for i in range(times):
        p = launch("resize", "-q", "-f", "qcow2", path, "+4M", accel=best_accel())
        assert (p.returncode, p.stderr) == (0, ""), f"run {i}"
        c = qemu_img("check", "-q", "-f", "qcow2", path, check=False)
        assert c.returncode == 0, f"run {i}: {c.stdout}{c.stderr}"
        size += 4 * MI
    assert info(path)["virtual-size"] == size
    assert times > 0


@pytest.mark.parametrize("sizes", [(200 * GI, 256 * GI, 512 * GI), (500 * GI, TI), (TI, 2 * TI),
                                   (127 * GI, 130 * GI)],
                         ids=lambda s: "-".join(str(x // GI) for x in s))
def test_large_images(accel, tmp_path, sizes):
    path = create(tmp_path / "big.qcow2", sizes[0])
    qemu_io(path, f"write -P 0x5a {sizes[0] - MI} 1M", "write -P 0x5b 0 64k")
    for size in sizes[1:]:
        before = copy(path, "before.qcow2")
        assert launch("resize", path, str(size), accel=accel).returncode == 0
        shown = json.loads(launch("info", "--output=json", path, accel=accel).stdout)
        assert shown["virtual-size"] == info(path)["virtual-size"] == size
        assert check_status(path) == 0
        assert same_content(before, path)
        assert os.stat(path).st_blocks * 512 < 4 * MI
    qemu_io(path, f"read -P 0x5a {sizes[0] - MI} 1M", f"write -P 0x77 {sizes[-1] - 64 * KI} 64k",
            f"read -P 0 {sizes[0]} 64M")
    assert check_status(path) == 0
    if sizes[-1] == 512 * GI:
        assert shown["virtual-size"] == 549755813888


def test_json(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", 20 * GI)
    length = os.stat(path).st_size
    p = launch("resize", "--output=json", path, "+5G", accel=accel)
    assert p.returncode == 0
    assert json.loads(p.stdout) == {
        "filename": str(path), "format": "qcow2", "action": "grow", "old_virtual_size": 20 * GI,
        "new_virtual_size": 25 * GI, "old_file_size": length,
        "new_file_size": os.stat(path).st_size}
    p = launch("resize", "--output=json", path, "25G", accel=accel)
    assert json.loads(p.stdout)["action"] == "noop"
    p = launch("resize", "--output=json", path, "1G", accel=accel)
    assert p.returncode == 1
    assert json.loads(p.stdout)["code"] == "SHRINK_WITHOUT_FLAG"


@pytest.mark.parametrize("size,new", [("+0", 10 * MI), ("10M", 10 * MI), ("+512", 10 * MI + 512),
                                      ("+1M", 11 * MI), ("12582912", 12 * MI), ("0.5G", GI // 2)])
def test_sizes(tmp_path, size, new):
    path = create(tmp_path / "a.qcow2", 10 * MI)
    digest = sha256(path)
    assert launch("resize", path, size).returncode == 0
    assert info(path)["virtual-size"] == new
    assert (sha256(path) == digest) == (new == 10 * MI)
    assert check_status(path) == 0


# ---- what must survive ----


def test_unknown_extension_and_short_header_survive(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    add_extension(path, 0x12345678, b"an extension that nobody knows")
    add_extension(path, 0xCAFE0001, b"another")
    patch(path, 80, be64(1 << 40))  # an unknown compatible bit
    patch(path, 88, be64(1 << 50))  # an unknown autoclear bit
    before = header(path, CLUSTER)
    assert launch("resize", path, "3G", accel=accel).returncode == 0
    after = header(path, CLUSTER)
    expect = bytearray(before)
    expect[24:32] = be64(3 * GI)
    expect[36:40] = be32(6)
    expect[88:96] = be64(0)
    assert after == bytes(expect)
    assert check_status(path) == 0


def test_header_length_104_survives(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    head = bytearray(header(path, CLUSTER))
    head[100:104] = be32(104)
    patch(path, 0, bytes(head[:104]) + bytes(head[112:512]) + bytes(8))
    before = header(path, CLUSTER)
    assert check_status(path) == 0
    assert launch("resize", path, "2G", accel=accel).returncode == 0
    after = header(path, CLUSTER)
    assert after[100:] == before[100:] and after[24:32] == be64(2 * GI)
    assert check_status(path) == 0


def test_snapshots_survive(accel, tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 0 64k")
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 3 512k 64k")
    assert launch("resize", path, "2G", accel=accel).returncode == 0
    assert check_status(path) == 0
    assert [s["name"] for s in info(path)["snapshots"]] == ["one", "two"]
    qemu_io(path, "read -P 2 0 64k", "read -P 3 512k 64k", "read -P 1 960k 64k",
            "read -P 0 1M 64M", f"write -P 9 {2 * GI - CLUSTER} 64k")
    for name, first in (("two", 2), ("one", 1)):
        qemu_img("snapshot", "-a", name, path)
        assert check_status(path) == 0
        qemu_io(path, f"read -P {first} 0 64k", "read -P 1 512k 512k")


def test_compression_type_survives(accel, tmp_path):
    raw = tmp_path / "a.raw"
    raw.write_bytes(random.Random(SEED).randbytes(CLUSTER) + b"words " * 100000)
    path = tmp_path / "a.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, path)
    before = copy(path, "before.qcow2")
    assert launch("resize", path, "700M", accel=accel).returncode == 0
    assert info(path)["format-specific"]["data"]["compression-type"] == "zstd"
    assert check_status(path) == 0 and same_content(path, before)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_old_bytes_in_a_compressed_cluster(accel, tmp_path, kind):
    """The last cluster is compressed and goes on past the end: it is unpacked first."""
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"compressible " * 80000)
    path = tmp_path / "a.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", raw,
             path)
    old = 545 * KI
    qemu_img("resize", "-q", "--shrink", "-f", "qcow2", path, str(old))
    assert launch("resize", path, "1M", accel=accel).returncode == 0
    data = guest_bytes(path, tmp_path)
    assert data[:old] == raw.read_bytes()[:old] and data[old:] == bytes(MI - old)
    assert check_status(path) == 0


@pytest.mark.parametrize("options", [[], ["compat=0.10"], ["cluster_size=16k", "extended_l2=on"]],
                         ids=["default", "v2", "extl2"])
@pytest.mark.parametrize("base_size,old", [(3 * MI, MI), (10 * MI, 3 * MI + 512), (MI, 3 * MI)])
def test_backing_file(accel, tmp_path, base_size, old, options):
    """What a backing file holds past the old end must not show in the new area."""
    base = create(tmp_path / "base.qcow2", base_size)
    qemu_io(base, f"write -P 0x66 0 {base_size}")
    digest = sha256(base)
    path = create(tmp_path / "a.qcow2", old, "backing_file=base.qcow2", "backing_fmt=qcow2",
                  *options)
    qemu_io(path, "write -P 0x67 64k 64k")
    before = guest_bytes(path, tmp_path)
    p = launch("resize", "-f", "qcow2", path, "12M", accel=accel)
    assert sha256(base) == digest
    if p.returncode:  # then in words, and untouched; qemu-img has no way for version 2
        assert "compat=0.10" in options and base_size > old and p.stderr
        assert guest_bytes(path, tmp_path) == before
        return
    after = guest_bytes(path, tmp_path)
    assert after[:old] == before and after[old:] == bytes(12 * MI - old)
    assert check_status(path) == 0


SECRET = ["--object", "secret,id=s,data=x"]


def luks_io(path, *commands):
    p = run("qemu-io", *SECRET, *[x for c in commands for x in ("-c", c)], "--image-opts",
            f"driver=qcow2,encrypt.key-secret=s,file.filename={path}", check=True)
    assert "failed" not in p.stdout + p.stderr, p.stdout + p.stderr


def test_luks(accel, tmp_path):
    """Encrypted images grow without their key: only metadata is looked at. One that ends inside a
    cluster with old bytes cannot: zeros written there would not read as zeros."""
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o",
             "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M")
    luks_io(path, "write -P 0x44 0 1M")
    twin = copy(path, "twin.qcow2")
    assert launch("resize", path, "600M", accel=accel).returncode == 0
    luks_io(path, "read -P 0x44 0 1M", "read -P 0 1M 300M", "write -P 0x45 599M 64k",
            "read -P 0x45 599M 64k")
    qemu_img("check", *SECRET, "--image-opts",
             f"driver=qcow2,encrypt.key-secret=s,file.filename={path}")
    assert info(path)["virtual-size"] == 600 * MI and info(path)["encrypted"]
    qemu_img("resize", "-q", *SECRET, "--shrink", "--image-opts",
             f"driver=qcow2,encrypt.key-secret=s,file.filename={twin}", "545K")
    digest = sha256(twin)
    p = launch("resize", "--output=json", twin, "600M", accel=accel)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "LUKS_UNSUPPORTED"
    assert sha256(twin) == digest


def test_old_bytes_do_not_come_back(accel, tmp_path):
    """An unaligned shrink by qemu-img leaves old bytes in the last cluster; qemu-img's own grow
    shows them again, ours must not."""
    path = create(tmp_path / "a.qcow2", MI)
    qemu_io(path, "write -P 0xaa 0 1M")
    qemu_img("resize", "-q", "--shrink", "-f", "qcow2", path, "545K")
    twin = copy(path, "twin.qcow2")
    qemu_img("resize", "-q", "-f", "qcow2", twin, "1M")
    qemu_io(twin, "read -P 0xaa 545k 31k")  # so it is worth testing
    assert launch("resize", path, "1M", accel=accel).returncode == 0
    qemu_io(path, "read -P 0xaa 0 545k", f"read -P 0 545k {MI - 545 * KI}")
    assert check_status(path) == 0


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 12, 16])
@pytest.mark.parametrize("options", [[], ["cluster_size=16k", "extended_l2=on"]],
                         ids=["default", "extl2"])
def test_a_file_that_ends_inside_a_table_entry(tmp_path, options, cut):
    """Whatever follows reads zero to everybody; the entry is written whole when the table is."""
    path = create(tmp_path / "a.qcow2", 20 * GI, *options)
    os.truncate(path, os.stat(path).st_size - cut)  # the L1 table's end
    table = create(tmp_path / "b.qcow2", 20 * MI, *options)
    qemu_io(table, "write -z 4k 3k" if options else "write -z 64k 64k")  # an L2 table, no data
    l1, = struct.unpack_from(">Q", header(table), 40)
    l2, = struct.unpack_from(">Q", header(table, l1 + 8), l1)
    os.truncate(table, (l2 & 0x00FFFFFFFFFFFE00) + 128 - cut)
    content = guest_bytes(table, tmp_path)
    for image, size in ((path, "25G"), (path, "900G"), (table, "24M"), (table, "+512"),
                        (path, "10G"), (table, "9M")):
        now = copy(image, "now.qcow2")
        os.truncate(now, os.stat(image).st_size)
        p = launch("resize", "-f", "qcow2", "--shrink", now, size)
        assert (p.returncode, p.stderr) == (0, ""), size
        assert check_status(now) == 0
        if image == table:
            after = guest_bytes(now, tmp_path)
            assert after[:len(content)] == content[:len(after)] and not after.strip(b"\0")


# ---- refusals ----


def vmdk_descriptor(tmp_path):
    """A text file that names the files of a disk: shorter than a sector, and no image itself."""
    path = tmp_path / "a.vmdk"
    path.write_bytes(b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
                     b'createType="monolithicFlat"\nRW 2048 FLAT "/etc/passwd" 0\n')
    return path


def with_bits(off, value):
    def make_it(tmp_path):
        path = create(tmp_path / "a.qcow2", MI)
        patch(path, off, be64(value))
        return path
    return make_it


def v2_snapshot(tmp_path):
    path = create(tmp_path / "a.qcow2", MI, "compat=0.10")
    qemu_img("snapshot", "-c", "s", path)
    return path


def plain(tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    patch(path, 88, be64(1 << 50))  # a refusal must not even clear this
    return path


def small_clusters(tmp_path):
    return create(tmp_path / "a.qcow2", MI, "cluster_size=512")


def junk(tmp_path):
    path = tmp_path / "a.qcow2"
    path.write_bytes(random.Random(SEED).randbytes(CLUSTER * 3))
    return path


def torn_header(tmp_path):
    path = create(tmp_path / "a.qcow2", MI)
    os.truncate(path, 90)
    return path


SHRINK = ("instar-launch: Use the --shrink option to perform a shrink operation.\n"
          "instar-launch: warning: Shrinking an image will delete all data beyond the shrunken "
          "image's end. Before performing such an operation, make sure there is no important data "
          "there.\n")

# name: (maker, arguments, code, words that stderr must hold; None: any, "=": exactly qemu-img's)
REFUSED = {
    "corrupt": (with_bits(72, 2), ["+1M"], "OVERLAY_CORRUPT",
                "qcow2: Image is corrupt; cannot be opened read/write"),
    "incompatible": (with_bits(72, 1 << 40), ["+1M"], "UNSUPPORTED_FEATURE",
                     "Unknown incompatible feature: 10000000000"),
    "v2-snapshot": (v2_snapshot, ["+1M"], "UNSUPPORTED_FEATURE",
                    "Can't resize a v2 image which has snapshots"),
    "no-shrink": (plain, ["-512k"], "SHRINK_WITHOUT_FLAG", SHRINK),
    "zero": (plain, ["0"], "INVALID_NEW_SIZE", "New image size must be positive"),
    "below-zero": (plain, ["--shrink", "-2M"], "INVALID_NEW_SIZE",
                   "New image size must be positive"),
    "unaligned": (plain, ["+1"], "INVALID_NEW_SIZE", "The new size must be a multiple of 512"),
    "2^63": (plain, ["8E"], "INVALID_NEW_SIZE", "New image size must be positive"),
    "block-layer": (plain, [str(2**63 - 2**30 + 512)], "INVALID_NEW_SIZE",
                    "exceeds maximum(9223372035781033984)"),
    "l1-limit": (small_clusters, ["129G"], "INVALID_NEW_SIZE",
                 "Failed to grow the L1 table: File too large"),
    "preallocation-shrink": (plain, ["--preallocation=metadata", "--shrink", "512k"],
                             "INVALID_OPTION", "Preallocation can only be used for growing images"),
    "not-qcow2": (junk, ["+1M"], "PARSE_FAILED", "Image is not in qcow2 format"),
    "torn-header": (torn_header, ["+1M"], "PARSE_FAILED", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(accel, tmp_path, name):
    maker, args, code, words = REFUSED[name]
    path = maker(tmp_path)
    before, stat = sha256(path), os.stat(path)
    p = launch("resize", "-f", "qcow2", *args[:-1], "--", path, args[-1], accel=accel)
    assert p.returncode == 1 and p.stdout == ""
    assert p.stderr.startswith("instar-launch: ") and p.stderr.endswith("\n")
    if words:
        assert words in p.stderr
    assert sha256(path) == before
    assert os.stat(path).st_size == stat.st_size and os.stat(path).st_mtime_ns == stat.st_mtime_ns
    p = launch("resize", "-f", "qcow2", "--output=json", *args[:-1], "--", path, args[-1],
               accel=accel)
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == code
    assert sha256(path) == before


@pytest.mark.parametrize("length, code, words", [
    (21, "UNSUPPORTED_SUBFORMAT", "VMDK images of the type '(none)' are not supported"),
    (100, "OVERLAY_CORRUPT", "has the type ''"),
    (511, "POLICY_REFUSED", "no plain file name"),
    (None, "POLICY_REFUSED", "no plain file name")])
def test_refused_vmdk_descriptor(accel, tmp_path, length, code, words):
    """Shorter than a sector, as such files are: all the same it is not taken for raw."""
    path = vmdk_descriptor(tmp_path)
    data = path.read_bytes().ljust(511)[:length] if length else path.read_bytes()
    path.write_bytes(data)
    for args in (["+1M"], ["--shrink", "1"], ["--preallocation=full", "+1M"], ["--dry-run", "+1"]):
        p = launch("resize", "--output=json", *args[:-1], path, args[-1], accel=accel)
        said = json.loads(p.stdout)
        assert p.returncode == 1
        assert (said["code"], words in said["error"]) == (code, True), said["error"]
        assert path.read_bytes() == data
    if length == 21:
        path.write_bytes(data[:20])  # not all of the words: it may be anybody's text
        assert launch("resize", path, "1k", accel=accel).returncode == 0


@pytest.mark.parametrize("name", ["v2-snapshot", "corrupt", "no-shrink", "zero", "unaligned",
                                  "l1-limit", "preallocation-shrink"])
def test_refused_in_qemus_words(tmp_path, name):
    maker, args, _, _ = REFUSED[name]
    path = maker(tmp_path)
    ours = launch("resize", "-f", "qcow2", *args[:-1], "--", path, args[-1])
    theirs = qemu_img("resize", "-f", "qcow2", *args[:-1], "--", path, args[-1], check=False)
    assert ours.returncode == theirs.returncode == 1
    said = ours.stderr.replace("instar-launch:", "qemu-img:")
    if name == "corrupt":  # qemu-img also names the file, twice
        said = said.split(":")[-1]
        assert theirs.stderr.endswith(said)
    else:
        assert said == theirs.stderr


# ---- killed ----


def test_killed_at_any_moment(tmp_path):
    """SIGKILL of the launcher (QEMU follows it): old size or new, all data, leaks at most."""
    rng = random.Random(SEED)
    print("seed", SEED)
    path = create(tmp_path / "a.qcow2", MI, "cluster_size=512")
    qemu_io(path, "write -P 0x3c 0 1M")
    original = copy(path, "original.qcow2")
    seen = {"old": 0, "new": 0}
    for i in range(int(os.environ.get("INSTAR_KILLS", "60"))):
        victim = copy(original, "victim.qcow2")
        p = subprocess.Popen([LAUNCH, "resize", "-q", "--accel", best_accel(), victim, "16M"],
                             stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.random() * 0.06)
        p.send_signal(signal.SIGKILL)
        p.wait(timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT  # until the kernel has let go of QEMU's lock
        while (status := check_status(victim)) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status in (0, 3), f"kill {i}"
        size = info(victim)["virtual-size"]
        assert size in (MI, 16 * MI), f"kill {i}"
        assert same_content(victim, original), f"kill {i}"
        seen["old" if size == MI else "new"] += 1
        # and it can be finished
        assert launch("resize", "-q", victim, "16M").returncode == 0
        assert check_status(victim) in (0, 3) and same_content(victim, original)
    print("killed runs left:", seen)
    assert seen["old"] > 0


def test_an_l1_size_that_covers_other_tables(tmp_path):
    """Its "stale entries" are a live L2 table: clearing them would lose data."""
    path = create(tmp_path / "a.qcow2", MI, "cluster_size=512")
    qemu_io(path, "write -P 5 0 1M")
    patch(path, 36, (256).to_bytes(4, "big"))
    before = sha256(path)
    p = launch("resize", "-f", "qcow2", "--output=json", path, "4M")
    assert p.returncode == 1 and json.loads(p.stdout)["code"] == "OVERLAY_CORRUPT"
    assert sha256(path) == before
