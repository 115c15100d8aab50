# SPDX-License-Identifier: MIT
"""make install, uninstall and deb: what is put where, that it works from there, that nothing is
left. The manual renders without a warning, the completion completes.
"""
import gzip
import json
import os
import re
import shutil

import pytest

from conftest import ROOT, create, launch, run

OPS = re.search(r"^OPS +:= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
FILES = sorted(["bin/instar-launch", *[f"lib/instar/{op}.elf" for op in OPS],
                "share/bash-completion/completions/instar-launch",
                "share/man/man1/instar-launch.1"])


def make(target, *words, **kw):
    return run("make", "-s", target, *words, cwd=ROOT, check=True, **kw)


def files(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


@pytest.fixture(scope="module", autouse=True)
def scdoc():
    if not shutil.which("scdoc"):
        pytest.skip("scdoc is missing; run `make deps-test`")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What `make install` made, as seen by who runs it: PREFIX under DESTDIR."""
    path = tmp_path_factory.mktemp("tree")
    make("install", f"DESTDIR={path}", "PREFIX=/opt/x")
    return path / "opt/x"


def test_files(tree):
    assert files(tree) == FILES
    for name in FILES:
        mode = (tree / name).stat().st_mode & 0o777
        assert mode == (0o755 if name.startswith("bin/") else 0o644)


def test_runs_from_anywhere(tree, tmp_path):
    image = create(tmp_path / "disk.qcow2", "1G")
    env = {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}"}
    p = run("sh", "-c", "instar-launch resize disk.qcow2 +1G && instar-launch info disk.qcow2 "
            "--output=json", cwd=tmp_path, env=env, check=True)
    first, rest = p.stdout.split("\n", 1)
    assert first == "Image resized." and json.loads(rest)["virtual-size"] == 2 << 30
    p = run(tree / "bin/instar-launch", "info", image, "--print-qemu", "h", cwd=tmp_path, env=env,
            check=True)
    assert str(tree / "lib/instar/info.elf") in p.stdout
    # Through a symbolic link too, as distributions of links have it
    os.symlink(tree / "bin/instar-launch", tmp_path / "link")
    run(tmp_path / "link", "info", image, cwd="/", check=True)


def test_uninstall(tmp_path):
    before = tmp_path / "usr/lib/instar-of-others"
    before.mkdir(parents=True)
    where = [f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    make("uninstall", *where)  # nothing there: no error
    make("install", *where)
    assert len(files(tmp_path)) == len(FILES)
    (tmp_path / "usr/lib/instar/mine").touch()
    make("uninstall", *where)
    assert files(tmp_path) == ["usr/lib/instar/mine"]
    (tmp_path / "usr/lib/instar/mine").unlink()
    make("uninstall", *where)
    assert files(tmp_path) == []
    assert not (tmp_path / "usr/lib/instar").exists() and before.exists()


# ---- the manual ----


def test_manual_renders(tree):
    page = tree / "share/man/man1/instar-launch.1"
    text = page.read_text()
    assert text.startswith(".") and ".TH \"instar-launch\" \"1\"" in text
    if not shutil.which("man"):
        return
    p = run("man", "--warnings", "-l", page, env={**os.environ, "LC_ALL": "C.UTF-8",
                                                 "MANWIDTH": "80"}, check=True)
    assert p.stderr == ""
    for section in ("SYNOPSIS", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "SAFETY",
                    "EXAMPLES", "BUGS"):
        assert f"\n{section}\n" in p.stdout


def test_manual_is_complete():
    """Every verb and every option that --help knows, and no other."""
    source = (ROOT / "launcher/instar-launch.1.scd").read_text()
    helps = launch("--help").stdout
    verbs = re.findall(r"^  (\w+) +\S", helps.split("Commands")[1].split("Options")[0], re.M)
    assert len(verbs) >= 4
    known = {"--version"}
    for verb in verbs:
        assert re.search(rf"^\*{verb}\*", source, re.M), verb
        known |= set(re.findall(r"^  (?:-., |    )(--[\w-]+)", launch(verb, "--help").stdout, re.M))
    documented = set(re.findall(r"\*(--[\w-]+)\*", source))
    assert documented == known


# ---- completion ----


def complete(tree, *words):
    """What is offered for the last word."""
    script = """. "$1"; program=$2; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _instar_launch "$program" "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
        printf '%s\\n' "${COMPREPLY[@]}" """
    p = run("bash", "-c", script, "bash", tree / "share/bash-completion/completions/instar-launch",
            tree / "bin/instar-launch", "instar-launch", *words, check=True)
    assert p.stderr == ""
    return p.stdout.split()


def test_completion(tree):
    run("bash", "-n", tree / "share/bash-completion/completions/instar-launch", check=True)
    assert complete(tree, "res") == ["resize"]
    assert {"resize", "info", "noop", "decode", "--help"} <= set(complete(tree, ""))
    assert complete(tree, "resize", "--shr") == ["--shrink"]
    assert complete(tree, "resize", "disk", "+1G", "--dry") == ["--dry-run"]
    assert complete(tree, "resize", "--shrink", "=") == ["unallocated"]
    assert complete(tree, "info", "--shr") == []
    assert complete(tree, "info", "--acc") == ["--accel="]
    assert complete(tree, "info", "--accel", "=") == ["auto", "kvm", "tcg"]
    assert complete(tree, "info", "--accel", "=", "k") == ["kvm"]
    assert complete(tree, "info", "--machine", "q") == ["q35"]
    assert complete(tree, "info", "-f", "q") == ["qcow2"]
    assert complete(tree, "rebase", "-F", "q") == ["qcow2"]
    assert complete(tree, "info", "di") == []  # file names are bash's own
    assert complete(tree, "decode", "--") == ["--help"]


# ---- the package ----


@pytest.mark.skipif(not shutil.which("dpkg-shlibdeps"), reason="not a Debian system with dpkg-dev")
def test_deb(tmp_path):
    make("deb")
    version = launch("--version").stdout.split()[1]
    deb = ROOT / f"build/instar_{version}_amd64.deb"
    listing = run("dpkg-deb", "-c", deb, check=True).stdout
    rows = [line.split(maxsplit=5) for line in listing.splitlines()]
    names = sorted(r[5][2:] for r in rows if not r[5].endswith("/"))
    assert names == sorted(
        ["usr/share/doc/instar/copyright"] +
        ["usr/" + f + (".gz" if f.endswith(".1") else "") for f in FILES])
    assert {r[1] for r in rows} == {"root/root"}
    fields = run("dpkg-deb", "-f", deb, check=True).stdout
    assert f"\nVersion: {version}\n" in fields
    assert re.search(r"^Depends: qemu-system-x86 .*libc6", fields, re.M)
    run("dpkg-deb", "-x", deb, tmp_path, check=True)
    image = create(tmp_path / "disk.qcow2", "1G")
    run(tmp_path / "usr/bin/instar-launch", "info", image, cwd="/", check=True)
    with gzip.open(tmp_path / "usr/share/man/man1/instar-launch.1.gz") as page:
        assert b".TH" in page.read()
