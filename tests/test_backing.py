# SPDX-License-Identifier: MIT
"""instar-launch resize of overlays: what a backing file may not show, and which files are opened.

The chain is looked at only as far as the result depends on it: how long the next file is always,
what deeper ones hold only if the disk ends inside a cluster.
"""
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from conftest import (TIMEOUT, be32, be64, best_accel, check_status, copy, create, guest_bytes, header,
                      info, launch, patch, qemu_img, qemu_io, run, same_content, sha256)

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
NOBODY = 65534
OUTSIDE = "does not lie in the image's directory"


def rename_backing(path, name):
    """Any bytes as the name in the header; the image must have been made with a backing file."""
    off, = struct.unpack_from(">Q", header(path), 8)
    patch(path, off, name)
    patch(path, 16, be32(len(name)))


def overlay(path, size, name, fmt="raw", *options):
    """An image that names a backing file which nobody has looked at."""
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", fmt,
             *[x for o in options for x in ("-o", o)], path, size)
    rename_backing(path, os.fsencode(name))
    return path


def base_file(path, size, fmt="raw", byte=0x66):
    """A base that holds the byte everywhere."""
    if fmt == "raw":
        path.write_bytes(bytes([byte]) * size)
        return path
    create(path, size)
    qemu_io(path, f"write -P {byte} 0 {size // 512 * 512}")
    return path


def grow(path, size, *args, accel=None, **kw):
    """Grows; the data below the old size stays, all after it reads zero, and check is content."""
    old = info(path)["virtual-size"]
    before = guest_bytes(path, path.parent)
    p = launch("resize", "-f", "qcow2", *args, path, str(size), accel=accel or best_accel(), **kw)
    assert (p.returncode, p.stdout, p.stderr) == (0, "Image resized.\n", "")
    after = guest_bytes(path, path.parent)
    assert len(after) == size and after[:old] == before
    assert not after[old:].strip(b"\0"), "old bytes of the chain show in the new area"
    assert check_status(path) == 0


def refused(path, code, words, *args, size="+1M", **kw):
    """Refuses with these words in one line, changes nothing. Returns them."""
    before, stat = sha256(path), os.stat(path)
    start = time.monotonic()
    p = launch("resize", "-f", "qcow2", *args, path, size, **kw)
    assert time.monotonic() - start < 20
    assert p.returncode == 1 and p.stdout == "", p
    assert p.stderr.startswith("instar-launch: ") and p.stderr.endswith("\n")
    assert words in p.stderr
    j = launch("resize", "-f", "qcow2", "--output=json", *args, path, size, **kw)
    assert j.returncode == 1 and json.loads(j.stdout)["code"] == code, j.stdout
    now = os.stat(path)
    assert sha256(path) == before
    assert (now.st_size, now.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    return p.stderr


# ---- what the new area shows ----


def chain(tmp_path, depth, fmt, base_size, sizes, *options):
    """base <- 1 <- ... <- depth; the last has the last of `sizes`."""
    below, below_fmt = base_file(tmp_path / f"base.{fmt}", base_size, fmt), fmt
    for i in range(1, depth + 1):
        size = sizes[-1] if i == depth else sizes[0]
        path = create(tmp_path / f"{i}.qcow2", size, f"backing_file={below.name}",
                      f"backing_fmt={below_fmt}", *options)
        # each link holds a cluster of its own, and the odd ones a few bytes
        qemu_io(path, f"write -P {0x10 + i} {64 * i}k {64 if i % 2 == 0 else 5}k")
        below, below_fmt = path, "qcow2"
    return path


CHAINS = [(depth, fmt, relation, old) for depth in (1, 2, 3, 4) for fmt in ("qcow2", "raw")
          for relation in ("longer", "equal", "shorter") for old in (MI + 37 * KI, MI)
          if old != MI or (relation == "longer" and depth in (1, 4))]  # then only one is opened


@pytest.mark.parametrize("depth,fmt,relation,old", CHAINS)
def test_chains(tmp_path, depth, fmt, relation, old):
    size = {"longer": old + 2 * MI + 3 * KI, "equal": old, "shorter": old - 300 * KI}[relation]
    path = chain(tmp_path, depth, fmt, size, [size, old])
    below = {p: sha256(p) for p in tmp_path.iterdir() if p != path}
    twin = copy(path, "twin.qcow2")
    grow(path, old + 4 * MI)
    qemu_img("resize", "-q", "-f", "qcow2", twin, str(old + 4 * MI))
    assert same_content(path, twin)
    assert {p: sha256(p) for p in below} == below, "a backing file was written to"


@pytest.mark.parametrize("sizes", [(2, 1, 3), (1, 3, 2), (3, 2, 1)],
                         ids=lambda s: "-".join(map(str, s)))
def test_lengths_along_the_chain(tmp_path, sizes):
    """A deeper file that is longer than the one above it is cut there."""
    base, middle, top = (s * MI + 7 * KI for s in sizes)
    path = chain(tmp_path, 2, "qcow2", base, [middle, top])
    twin = copy(path, "twin.qcow2")
    grow(path, 5 * MI)
    qemu_img("resize", "-q", "-f", "qcow2", twin, str(5 * MI))
    assert same_content(path, twin)


ROWS_274 = [("off", 6 * GI, GI, 8 * GI, 5 * GI),
            ("metadata", 32 * GI, 30 * GI, 33 * GI, 31 * GI),
            ("falloc", 10 * MI, 5 * MI, 15 * MI, 9 * MI),
            ("full", 16 * MI, 8 * MI, 12 * MI, 11 * MI),
            ("off", 384 * KI, 253 * KI, 512 * KI, 253 * KI),
            ("off", 400 * KI, 256 * KI, 512 * KI, 336 * KI),
            ("off", 512 * KI, 256 * KI, 500 * KI, 436 * KI)]


@pytest.mark.parametrize("mode,base_size,old,new,probe", ROWS_274)
def test_base_longer_than_the_overlay(accel, tmp_path, mode, base_size, old, new, probe):
    base = create(tmp_path / "base.qcow2", base_size)
    qemu_io(base, f"write -P 1 {probe} 64k", f"write -P 2 {old - 64 * KI} 64k")
    path = create(tmp_path / "a.qcow2", old, "backing_file=base.qcow2", "backing_fmt=qcow2")
    p = launch("resize", "-f", "qcow2", f"--preallocation={mode}", path, str(new), accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    qemu_io(path, f"read -P 0 {max(probe, old)} 64k", f"read -P 2 {old - 64 * KI} 64k",
            f"read -P 0 {new - 64 * KI} 64k")
    assert check_status(path) == 0 and info(path)["virtual-size"] == new
    extents = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", path).stdout)
    for extent in extents:
        if extent["start"] >= (old + 65535) // 65536 * 65536:
            assert extent["depth"] == 0 and (extent["zero"] or mode in ("falloc", "full"))
    if mode == "off" and base_size == 6 * GI:
        assert os.stat(path).st_size <= 1179648
    if base_size == 384 * KI:  # cluster 3 is allocated, and what follows is not
        assert [(e["start"], e["length"]) for e in extents if e["data"] and e["depth"] == 0] == \
            [(192 * KI, 64 * KI)]
    qemu_io(path, f"write -P 9 {new - 64 * KI} 64k", f"read -P 9 {new - 64 * KI} 64k")
    assert check_status(path) == 0


@pytest.mark.parametrize("fmt,old", [("raw", 256 * KI), ("qcow2", 253 * KI), ("raw", MI + 512)])
def test_version_2(accel, tmp_path, fmt, old):
    """qemu-img fails here, for version 2 has no zero clusters: zeros are allocated."""
    base_file(tmp_path / "base", 2 * MI, fmt)
    path = create(tmp_path / "a.qcow2", old, "compat=0.10", "backing_file=base",
                  f"backing_fmt={fmt}")
    twin = copy(path, "twin.qcow2")
    assert qemu_img("resize", "-q", "-f", "qcow2", twin, "3M", check=False).returncode == 1
    grow(path, 3 * MI, accel=accel)
    assert info(path)["format-specific"]["data"]["compat"] == "0.10"


@pytest.mark.parametrize("cluster,old", [("64k", 256 * KI), ("64k", 250 * KI), ("16k", 528 * KI),
                                         ("16k", 249 * KI + 512), ("64k", 249 * KI + 512)])
def test_extended_l2(accel, tmp_path, cluster, old):
    base_file(tmp_path / "base", 2 * MI)
    path = create(tmp_path / "a.qcow2", old, "extended_l2=on", f"cluster_size={cluster}",
                  "backing_file=base", "backing_fmt=raw")
    twin = copy(path, "twin.qcow2")
    grow(path, 5 * MI, accel=accel)
    qemu_img("resize", "-q", "-f", "qcow2", twin, "5M")
    assert same_content(path, twin)


@pytest.mark.parametrize("fill", ["write -P 9 192k 61k", "write -z 192k 61k", "write -P 9 0 1k"])
@pytest.mark.parametrize("base_size", [300 * KI, 254 * KI, 253 * KI + 1, 100 * KI])
def test_what_stands_in_the_last_cluster(tmp_path, base_size, fill):
    base_file(tmp_path / "base", base_size)
    path = create(tmp_path / "a.qcow2", 253 * KI, "backing_file=base", "backing_fmt=raw")
    qemu_io(path, fill)
    grow(path, 700 * KI)


def test_big_clusters_and_small_ones(tmp_path):
    base_file(tmp_path / "base", 5 * MI)
    for size in ("512", "2M"):
        path = create(tmp_path / f"{size}.qcow2", 3 * MI + 512, f"cluster_size={size}",
                      "backing_file=base", "backing_fmt=raw")
        grow(path, 9 * MI)


def test_format_of_the_backing_file(tmp_path):
    """It is what the header says; without a word there, it is looked for."""
    inner = base_file(tmp_path / "inner.qcow2", 3 * MI, "qcow2")
    said_raw = overlay(tmp_path / "raw.qcow2", MI + KI, "inner.qcow2", "raw")
    grow(said_raw, 6 * MI)
    said_nothing = overlay(tmp_path / "none.qcow2", MI + KI, "inner.qcow2", "qcow2")
    at = header(said_nothing, 4096).index(be32(0xE2792ACA))
    patch(said_nothing, at, be32(0x12345678))
    digest = sha256(inner)
    grow(said_nothing, 6 * MI)
    assert sha256(inner) == digest
    odd = overlay(tmp_path / "odd.qcow2", MI, "inner.qcow2", "qcow2")
    patch(odd, header(odd, 4096).index(b"qcow2", 104), b"weird")
    refused(odd, "UNSUPPORTED_FORMAT", "weird")


def test_a_damaged_backing_file(tmp_path):
    base = base_file(tmp_path / "base", 2 * MI, "qcow2")
    path = overlay(tmp_path / "a.qcow2", MI, "base", "qcow2")
    patch(base, 0, b"Junk")
    refused(path, "PARSE_FAILED", "not in qcow2 format")
    os.truncate(base, 0)
    refused(path, "PARSE_FAILED", "")


# ---- content that cannot be had ----


SECRET = ["--object", "secret,id=s,data=x"]
LUKS = ["encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=10"]


def luks_base(tmp_path, size):
    base = tmp_path / "base"
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", *[x for o in LUKS for x in ("-o", o)], base,
             size)
    run("qemu-io", *SECRET, "-c", f"write -P 5 0 {size}", "--image-opts",
        f"driver=qcow2,encrypt.key-secret=s,file.filename={base}", check=True)
    return base


def unknown_autoclear_bit(path):
    """It is cleared before anything else: a refusal must come before even that."""
    patch(path, 88, be64(1 << 50))
    return path


def test_an_encrypted_backing_file(accel, tmp_path):
    """Its data is needed where the disk ends inside a cluster, and only there."""
    base = luks_base(tmp_path, 2 * MI)
    digest = sha256(base)
    inside = unknown_autoclear_bit(overlay(tmp_path / "a.qcow2", MI + KI, "base", "qcow2"))
    for args in ([], ["--preallocation=full"]):
        refused(inside, "LUKS_UNSUPPORTED", "encrypted image must be read, which needs its key",
                *args, accel=accel)
    aligned = overlay(tmp_path / "b.qcow2", MI, "base", "qcow2")
    p = launch("resize", "-f", "qcow2", aligned, "4M", accel=accel)
    assert (p.returncode, p.stderr) == (0, "")
    extents = json.loads(run("qemu-img", "map", *SECRET, "--output=json", "--image-opts",
                             f"driver=qcow2,file.filename={aligned},"
                             "backing.encrypt.key-secret=s", check=True).stdout)
    assert [(x["start"], x["depth"], x["zero"]) for x in extents][-1] == (MI, 0, True)
    assert sha256(base) == digest


def test_an_encrypted_overlay(accel, tmp_path):
    """What it would have to copy must be encrypted; zero clusters need no key."""
    base_file(tmp_path / "base", 2 * MI)
    path, opts = tmp_path / "a.qcow2", [x for o in LUKS for x in ("-o", o)]

    def make(size, *more):
        qemu_img("create", "-q", *SECRET, "-f", "qcow2", *opts, "-o", "backing_file=base", "-o",
                 "backing_fmt=raw", *more, path, size)
    make(MI + KI)
    unknown_autoclear_bit(path)
    refused(path, "LUKS_UNSUPPORTED", "needs the key", accel=accel)
    make(MI)
    refused(path, "LUKS_UNSUPPORTED", "needs its key", "--preallocation=metadata", accel=accel)
    assert launch("resize", "-f", "qcow2", path, "4M", accel=accel).returncode == 0
    p = run("qemu-io", *SECRET, "-c", "read -P 0x66 0 1M", "-c", "read -P 0 1M 3M", "--image-opts",
            f"driver=qcow2,encrypt.key-secret=s,file.filename={path}", check=True)
    assert "failed" not in p.stdout + p.stderr


def test_a_backing_file_whose_data_is_elsewhere(accel, tmp_path):
    """Wanted only where the overlay ends inside a cluster; then it goes by the policy, too."""
    far = tmp_path / "far"
    far.mkdir()
    base = create(tmp_path / "base", 2 * MI, f"data_file={far / 'data.raw'}")
    qemu_io(base, "write -P 5 0 2M")
    far.rename(tmp_path.parent / f"{tmp_path.name}-far")
    far.symlink_to(tmp_path.parent / f"{tmp_path.name}-far")
    path = unknown_autoclear_bit(overlay(tmp_path / "a.qcow2", MI + KI, "base", "qcow2"))
    before = {p: sha256(p) for p in tmp_path.iterdir() if p.is_file()}
    refused(path, "POLICY_REFUSED", "names an external data file", accel=accel)
    assert {p: sha256(p) for p in tmp_path.iterdir() if p.is_file()} == before
    grow(overlay(tmp_path / "b.qcow2", MI, "base", "qcow2"), 4 * MI, accel=accel)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_a_compressed_cluster_that_is_none(accel, tmp_path, kind):
    base, raw = tmp_path / "base", tmp_path / "a.raw"
    raw.write_bytes(b"compressible " * 200000)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", raw,
             base)
    path = overlay(tmp_path / "a.qcow2", MI + KI, "base", "qcow2")
    grow(copy(path, "b.qcow2"), 4 * MI, accel=accel)
    l1, = struct.unpack_from(">Q", header(base), 40)
    l2, = struct.unpack_from(">Q", header(base, l1 + 8), l1)
    at = (l2 & 0x00FFFFFFFFFFFE00) + MI // 65536 * 8
    entry, = struct.unpack_from(">Q", header(base, at + 8), at)
    assert entry >> 62 == 1
    patch(base, entry & ((1 << 54) - 1), b"\xff" * 64)
    unknown_autoclear_bit(path)
    for args in ([], ["--preallocation=falloc"]):
        refused(path, "OVERLAY_CORRUPT", "cannot be decompressed", *args, accel=accel)


def test_deeper_links_are_not_opened_for_nothing(tmp_path):
    """Only a disk that ends inside a cluster depends on what lies deeper."""
    overlay(tmp_path / "b.qcow2", 3 * MI, "is not there")
    path = overlay(tmp_path / "a.qcow2", MI, "b.qcow2", "qcow2")
    assert launch("resize", path, "4M").returncode == 0
    overlay(path, MI + KI, "b.qcow2", "qcow2")
    refused(path, "READ_FAILED", "Could not open 'is not there': No such file or directory")


# ---- where names lead ----


def test_each_link_from_its_own_directory(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    base_file(tmp_path / "sub" / "deep" / "c", 2 * MI, byte=0x55)
    for decoy in (tmp_path, tmp_path / "sub"):
        base_file(decoy / "c", 2 * MI, byte=0xdd)
    overlay(tmp_path / "sub" / "deep" / "b2.qcow2", 2 * MI, "c")
    overlay(tmp_path / "sub" / "b.qcow2", 2 * MI, "deep/b2.qcow2", "qcow2")
    path = overlay(tmp_path / "a.qcow2", MI + 512, "sub/b.qcow2", "qcow2")
    grow(path, 3 * MI)
    qemu_io(path, "read -P 0x55 0 1049088")


@pytest.mark.parametrize("name", ["./base", "sub/../base", "sub/./../base", "sub//../base",
                                  "{}/base", "{}/sub/../base", "{}//base", "link", "sub/link",
                                  "sublink/../base"])
def test_names_beneath_the_root(tmp_path, name):
    """Relative or absolute, also with `..`; links too, so long as no step of them leaves it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sublink").symlink_to("sub")
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "sub" / "link").symlink_to("../base")
    base_file(tmp_path / "base", 2 * MI)
    grow(overlay(tmp_path / "a.qcow2", MI + 512, name.format(tmp_path)), 3 * MI)


def make_outside(tmp_path):
    """(the image's directory, a file outside of it)"""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    base_file(tmp_path / "in" / "base", 2 * MI)
    return tmp_path / "in", base_file(tmp_path / "out" / "base", 2 * MI)


# "{}" is the directory of all; "@": a link that leads there
ESCAPES = ["{}/out/base", "../out/base", "sub/../../out/base", "./../out/base", "..", "/", "//",
           "{}/in/../out/base", "{}/in/sub/../../out/base", "/etc/passwd", "@../out/base",
           "@{}/out/base", "@{}/in/base", "@../in/base", "@/proc/self/fd/0", "@/proc/self/exe",
           "/proc/self/fd/0", "/dev/zero", "/dev/fd/0", "{}/in2/base", "{}/in", "{}/in/",
           "@/etc/passwd"]


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes(tmp_path, name):
    """Links are followed as by openat2(RESOLVE_BENEATH): one that is absolute, or goes through the
    parent of the root, is refused even if it ends inside."""
    inside, _ = make_outside(tmp_path)
    shutil.copytree(inside, tmp_path / "in2")
    name = name.format(tmp_path)
    if name.startswith("@"):
        (inside / "link").symlink_to(name[1:])
        name = "link"
    refused(overlay(inside / "a.qcow2", MI, name), "POLICY_REFUSED", OUTSIDE)


def test_links_in_the_middle(tmp_path):
    inside, _ = make_outside(tmp_path)
    (inside / "dirlink").symlink_to("../out")
    refused(overlay(inside / "a.qcow2", MI, "dirlink/base"), "POLICY_REFUSED", OUTSIDE)
    (inside / "loop").symlink_to("loop")
    refused(overlay(inside / "a.qcow2", MI, "loop"), "POLICY_REFUSED", "")


def test_deeper_names_obey_the_same_root(tmp_path):
    """A link in a subdirectory may not leave the root of the image, but may its own directory."""
    inside, _ = make_outside(tmp_path)
    overlay(inside / "sub" / "b.qcow2", 2 * MI, "../base")
    path = overlay(inside / "a.qcow2", MI + 512, "sub/b.qcow2", "qcow2")
    grow(path, 3 * MI)
    overlay(inside / "sub" / "b.qcow2", 2 * MI, "../../out/base")
    overlay(path, MI + 512, "sub/b.qcow2", "qcow2")
    refused(path, "POLICY_REFUSED", OUTSIDE)


def test_nothing_is_told_about_outside(tmp_path):
    """Whether it exists, is a directory or may be read: the words are the same."""
    inside, out = make_outside(tmp_path)
    (tmp_path / "out" / "dir").mkdir()
    os.mkfifo(tmp_path / "out" / "fifo")
    secret = base_file(tmp_path / "out" / "secret", KI)
    secret.chmod(0)
    said = set()
    for name in ("base", "absent", "dir", "fifo", "secret", "absent/x", "base/x"):
        for form in (f"{tmp_path}/out/{name}", f"../out/{name}", f"sub/../../out/{name}", "link"):
            if form == "link":
                (inside / "link").unlink(missing_ok=True)
                (inside / "link").symlink_to(f"../out/{name}")
            path = overlay(inside / "a.qcow2", MI, form)
            p = launch("resize", "-f", "qcow2", path, "+1M")
            assert p.returncode == 1
            said.add(p.stderr.replace(f"'{form}'", "'X'"))
    assert len(said) == 1


def test_magic_links(tmp_path):
    """Even where the operator allows everything."""
    base = base_file(tmp_path / "base", 2 * MI)
    for name in (f"/proc/self/root{base}", f"/proc/self/cwd/../..{base}", "/proc/self/fd/0",
                 "/proc/thread-self/root/etc/passwd"):
        path = overlay(tmp_path / "a.qcow2", MI, name)
        refused(path, "POLICY_REFUSED", "", "--backing-dir=/")
    grow(overlay(tmp_path / "a.qcow2", MI, str(base)), 3 * MI, "--backing-dir=/")


@pytest.mark.parametrize("name", ["json:{\"driver\":\"file\",\"filename\":\"base\"}",
                                  "nbd://host/x", "nbd:unix:/s", "file:base", "http://host/x",
                                  "host_device:/dev/x", "fat:/", "a:b", ":"])
def test_protocols(tmp_path, name):
    base_file(tmp_path / "base", 2 * MI)
    base_file(tmp_path / "a:b", 2 * MI)
    refused(overlay(tmp_path / "a.qcow2", MI, name), "POLICY_REFUSED", "never followed")


def test_a_colon_after_a_slash_is_a_name(tmp_path):
    base_file(tmp_path / "a:b", 2 * MI)
    grow(overlay(tmp_path / "a.qcow2", MI, "./a:b"), 3 * MI)


HOSTILE = [b"x\nImage resized.", b"\x1b[2J\x1b[31mred", b"\xff\xfe\x80", b"a\rb",
           b"\xe2\x80\xae gnp.exe", b"%s%n%n", b"{val}{name}{off}", b"\"},{\"code\",\"OK", b"\\x00"]


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(h) for h in HOSTILE])
@pytest.mark.parametrize("kind", ["absent", "outside", "directory", "protocol", "loop"])
def test_hostile_names_are_printed_safely(tmp_path, kind, name):
    at = os.fsencode(tmp_path) + b"/" + name
    if kind == "directory":
        os.mkdir(at)
    full = {"outside": b"../" + name, "protocol": b"nbd:" + name}.get(kind, name)
    path = overlay(tmp_path / "a.qcow2", MI, full)
    if kind == "loop":
        os.link(path, at)
    for args in ([], ["--output=json", "-v"]):
        p = run("build/instar-launch", "resize", *args, path, "+1M", text=False,
                cwd=Path(__file__).parent.parent)
        assert p.returncode == 1
        for text in (p.stdout, p.stderr):
            text.decode("utf-8")
            assert not set(text) & (set(range(32)) - {10}) and b"\xe2\x80\xae" not in text
            assert b"\nImage resized." not in text
        if args:
            assert json.loads(p.stdout)["code"] != "OK" and p.stdout.count(b"\n") == 1


def test_no_name_at_all(tmp_path):
    """A name with a NUL is none; one of length 0 is no backing file to anybody."""
    path = overlay(tmp_path / "a.qcow2", MI, "base\0x")
    base_file(tmp_path / "base", 2 * MI)
    refused(path, "POLICY_REFUSED", "NUL")


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "char-device"])
def test_only_files(tmp_path, kind):
    """At once, whoever waits at the other end; and the words do not blame the directory."""
    name = tmp_path / "base"
    if kind == "fifo":
        os.mkfifo(name)
    elif kind == "directory":
        name.mkdir()
    elif kind == "socket":
        s = socket.socket(socket.AF_UNIX)
        s.bind(str(name))
    else:
        try:
            os.mknod(name, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")
    words = refused(overlay(tmp_path / "a.qcow2", MI, "base"), "READ_FAILED", "")
    assert OUTSIDE not in words


def test_missing(tmp_path):
    said = refused(overlay(tmp_path / "a.qcow2", MI, "base"), "READ_FAILED",
                   "Could not open 'base': No such file or directory")
    assert str(tmp_path) not in said
    refused(overlay(tmp_path / "a.qcow2", MI, "no/base"), "READ_FAILED", "No such file")


@pytest.fixture
def plain_user():
    """(a directory that is anybody's, what makes a program run as nobody in particular)"""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        if as_user:
            try:
                assert launch("resize", "--help", **as_user).returncode == 0
            except (OSError, AssertionError):
                pytest.skip("the programs are not readable for other users")
        yield directory, as_user
    finally:
        directory.chmod(0o700)
        shutil.rmtree(directory)


def test_unreadable(plain_user):
    directory, as_user = plain_user
    path = overlay(directory / "a.qcow2", MI, "base")
    path.chmod(0o666)
    base_file(directory / "base", 2 * MI).chmod(0)
    refused(path, "READ_FAILED", "Could not open 'base': Permission denied", **as_user)


def test_dry_run_needs_no_right_to_write(plain_user):
    directory, as_user = plain_user
    base_file(directory / "base", 2 * MI).chmod(0o444)
    path = overlay(directory / "a.qcow2", MI + 512, "base")
    path.chmod(0o444)
    directory.chmod(0o555)
    digest = sha256(path)
    p = launch("resize", "-f", "qcow2", "--dry-run", path, "3M", **as_user)
    assert (p.returncode, p.stderr) == (0, "") and p.stdout
    assert sha256(path) == digest
    p = launch("resize", "-f", "qcow2", "--dry-run", "--output=json", path, "3M", **as_user)
    assert p.returncode == 0 and json.loads(p.stdout)["new_virtual_size"] == 3 * MI
    if as_user or os.geteuid():
        p = launch("resize", "-f", "qcow2", path, "3M", **as_user)
        assert p.returncode == 1 and "Permission denied" in p.stderr


def test_a_backing_file_in_use(tmp_path):
    """Nobody may write to it meanwhile; others may read it."""
    base = base_file(tmp_path / "base", 2 * MI, "qcow2")
    path = overlay(tmp_path / "a.qcow2", MI, "base", "qcow2")
    for args, locked in (([], True), (["-r"], False)):
        p = subprocess.Popen(["qemu-io", "-f", "qcow2", *args, base], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
        try:
            p.stdin.write("read 0 512\n")
            p.stdin.flush()
            while "512/512" not in (line := p.stdout.readline()):
                assert line
            if locked:
                refused(path, "LOCKED", "lock")
            else:
                grow(path, 3 * MI)
        finally:
            p.stdin.close()
            p.wait(timeout=TIMEOUT)
            p.stdout.close()


def test_locks_are_gone_afterwards(tmp_path):
    base = base_file(tmp_path / "base", 2 * MI, "qcow2")
    path = overlay(tmp_path / "a.qcow2", MI, "base", "qcow2")
    for i in range(10):
        assert launch("resize", "-q", path, "+64k").returncode == 0
        qemu_io(base, "write 0 512")
        assert check_status(path) == 0


# ---- loops and depth ----


@pytest.mark.parametrize("how", ["name", "hardlink", "symlink", "absolute", "dot"])
def test_self_loop(accel, tmp_path, how):
    path = overlay(tmp_path / "a.qcow2", MI, {"name": "a.qcow2", "dot": "./a.qcow2",
                                              "absolute": str(tmp_path / "a.qcow2")}.get(how, "b"),
                   "qcow2")
    if how == "hardlink":
        os.link(path, tmp_path / "b")
    elif how == "symlink":
        (tmp_path / "b").symlink_to("a.qcow2")
    refused(path, "LOOP", "creates an infinite loop", accel=accel)
    refused(path, "LOOP", "creates an infinite loop", "--dry-run", accel=accel)


@pytest.mark.parametrize("names", ["ba", "bb", "bca", "bcb", "bcdefga"])
def test_longer_loops(tmp_path, names):
    """a names the first, that the next, and so on."""
    at = "a"
    for name in names:
        if not (tmp_path / at).exists():
            overlay(tmp_path / at, MI + 512, name, "qcow2")
        at = name
    refused(tmp_path / "a", "LOOP", "creates an infinite loop")


def test_depth(tmp_path):
    """Twenty-three backing files, and not one more."""
    def links(count):
        base_file(tmp_path / "0", 2 * MI)
        for i in range(1, count + 1):
            overlay(tmp_path / str(i), 2 * MI if i < count else MI + 512, str(i - 1),
                    "raw" if i == 1 else "qcow2")
        return tmp_path / str(count)
    grow(links(23), 3 * MI)
    refused(links(24), "CHAIN_DEPTH", "longer than 23")
    refused(links(30), "CHAIN_DEPTH", "longer than 23")


# ---- options ----


def test_no_backing(tmp_path):
    base_file(tmp_path / "base", 2 * MI)
    path = overlay(tmp_path / "a.qcow2", MI, "base")
    refused(path, "POLICY_REFUSED", "--no-backing", "--no-backing")
    refused(path, "POLICY_REFUSED", "--no-backing", "--no-backing", f"--backing-dir={tmp_path}")
    p = launch("resize", "--no-backing", path, "1M")  # nothing to do, nothing to open
    assert (p.returncode, p.stderr) == (0, "")
    plain = create(tmp_path / "plain.qcow2", MI)
    assert launch("resize", "--no-backing", plain, "2M").returncode == 0


def test_backing_dirs(tmp_path):
    one, two, three = (tmp_path / n for n in ("one", "two", "three"))
    for d in (one, two, three):
        d.mkdir()
    base_file(three / "c", 2 * MI)
    overlay(two / "b.qcow2", 2 * MI, "../three/c")
    path = overlay(one / "a.qcow2", MI + 512, str(two / "b.qcow2"), "qcow2")
    refused(path, "POLICY_REFUSED", OUTSIDE)
    refused(path, "POLICY_REFUSED", OUTSIDE, "--backing-dir", two)
    refused(path, "POLICY_REFUSED", OUTSIDE, "--backing-dir", three)
    refused(path, "POLICY_REFUSED", OUTSIDE, "--backing-dir", tmp_path / "absent")
    grow(copy(path, "b.qcow2"), 3 * MI, "--backing-dir", tmp_path)
    overlay(two / "b.qcow2", 2 * MI, str(three / "c"))
    (tmp_path / "link").symlink_to("three")
    grow(copy(path, "c.qcow2"), 3 * MI, "--backing-dir", two, "--backing-dir", three)
    grow(path, 3 * MI, "--backing-dir", os.path.relpath(two), "--backing-dir", tmp_path / "link")


def test_a_backing_dir_beside_the_image(tmp_path):
    """`../base/x` in vm/a.qcow2 lies beneath base/ if that is a root, however it is spelled."""
    for d in ("vm", "base"):
        (tmp_path / d).mkdir()
    base_file(tmp_path / "base" / "x", 2 * MI)
    path = overlay(tmp_path / "vm" / "a.qcow2", MI, "../base/x")
    grow(path, 3 * MI, "--backing-dir", tmp_path / "base")


def test_an_image_named_by_a_link(tmp_path):
    """The root is the directory of the name that the user typed, as with qemu-img."""
    real, front = tmp_path / "real", tmp_path / "front"
    real.mkdir()
    front.mkdir()
    base_file(front / "base", 2 * MI)
    overlay(real / "a.qcow2", MI, "base")
    (front / "a.qcow2").symlink_to("../real/a.qcow2")
    grow(front / "a.qcow2", 3 * MI)


def test_a_directory_named_by_a_link(tmp_path):
    """An absolute name through the same link lies beneath the root as well."""
    (tmp_path / "real").mkdir()
    (tmp_path / "front").symlink_to("real")
    base_file(tmp_path / "real" / "base", 2 * MI)
    path = overlay(tmp_path / "front" / "a.qcow2", MI, str(tmp_path / "front" / "base"))
    grow(path, 3 * MI)


def test_named_from_its_own_directory(tmp_path):
    base_file(tmp_path / "base", 2 * MI)
    for name in ("a.qcow2", "./a.qcow2"):
        overlay(tmp_path / "a.qcow2", MI, "base")
        p = run(Path(__file__).parent.parent / "build" / "instar-launch", "resize", name, "3M",
                cwd=tmp_path)
        assert (p.returncode, p.stderr) == (0, "")
