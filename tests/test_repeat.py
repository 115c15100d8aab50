# SPDX-License-Identifier: MIT
"""A resize to an absolute size is repeatable: a format that rounds the size up has, when it is asked
once more, the size that it was asked for."""
import pytest

from conftest import info, launch, qemu_img, sha256


@pytest.mark.parametrize("fmt,option", [("vpc", "subformat=dynamic"), ("vpc", "subformat=fixed"),
                                        ("vpc", "force_size=on"), ("vhdx", "subformat=dynamic"),
                                        ("vmdk", "subformat=monolithicSparse"),
                                        ("qcow2", "cluster_size=4k"), ("raw", "preallocation=off")])
def test_twice(tmp_path, fmt, option):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", fmt, "-o", option, path, "100M")
    asked = 1000000000
    for again in False, True:
        before = sha256(path)
        p = launch("resize", "--output=json", "-f", fmt, path, asked)
        assert p.returncode == 0, p.stderr
        assert (f'"action": "{"noop" if again else "grow"}"' in p.stdout) and \
            (sha256(path) == before) == again
    size = info(path)["virtual-size"]
    assert asked <= size < asked + 2 * 1048576
    # less than that rounds to something else, or is a shrink in earnest
    p = launch("resize", "-f", fmt, path, asked - 3 * 1048576)
    assert p.returncode == 1 and "--shrink" in p.stderr and info(path)["virtual-size"] == size
