# SPDX-License-Identifier: MIT
"""The undo journal by its description (launcher/undo.c), written and read independently of it."""
import os
import struct

HEAD, SECTOR = 2048, 512
FIELDS = struct.Struct("<8sIIQIIQQQQQ")  # magic .. most
MAGIC = b"instarUJ"

TABLE = []
for i in range(256):
    for _ in range(8):
        i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
    TABLE.append(i)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def sector_of(path, off):
    with open(path, "rb") as f:
        f.seek(off)
        return f.read(SECTOR).ljust(SECTOR, b"\0")


def parse(data):
    """Its fields; asserts that it is complete."""
    magic, version, crc, length, epoch, n, dev, fsid, inode, before, most = FIELDS.unpack_from(data)
    assert (magic, version, length) == (MAGIC, 1, len(data)) and crc == crc32c(data[16:])
    assert len(data) == HEAD + n * (16 + SECTOR) and data[72:128] == bytes(56)
    marks = [struct.unpack_from("<QII", data, HEAD + 16 * i) for i in range(n)]
    sectors = [data[HEAD + 16 * n + SECTOR * i:][:SECTOR] for i in range(n)]
    assert marks == sorted(marks) and all(crc32c(s) == m[1] for s, m in zip(sectors, marks))
    return {"epoch": epoch, "dev": dev, "inode": inode, "before": before, "most": most,
            "name": data[128:384].rstrip(b"\0"), "words": data[384:HEAD].rstrip(b"\0"),
            "marks": marks, "sectors": sectors}


def build(path, changes, before, most, epoch=0, words=b"resize x +1G", **other):
    """A journal of the image, whose sectors at {offset: new content} it still holds."""
    st = os.stat(path)
    offs = sorted(changes)
    old = [sector_of(path, off) if off < before else bytes(SECTOR) for off in offs]
    marks = b"".join(struct.pack("<QII", off, crc32c(o), crc32c(changes[off]))
                     for off, o in zip(offs, old))
    tail = struct.pack("<QIIQQQQQ", HEAD + len(offs) * (16 + SECTOR), epoch, len(offs),
                       other.get("dev", st.st_dev), other.get("fsid", 0),
                       other.get("inode", st.st_ino), before, most)
    body = tail.ljust(128 - 16, b"\0") + os.fsencode(path).rsplit(b"/", 1)[-1].ljust(256, b"\0") + \
        words.ljust(HEAD - 384, b"\0") + marks + b"".join(old)
    return seal(MAGIC + struct.pack("<II", 1, 0) + body)


def seal(data):
    """With the checksum that fits."""
    return data[:12] + struct.pack("<I", crc32c(data[16:])) + data[16:]
