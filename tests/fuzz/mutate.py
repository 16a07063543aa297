"""Damage files: bits, numbers, lengths, blocks; and correct the checksums of HDF5's newer metadata."""

import struct

_ODD = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4095, 65535, 1 << 20, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
_MASK = 0xFFFFFFFF


def damaged(data, r):
    """Return a damaged copy of a file's bytes.

    Args:
        data: The bytes.
        r: A `random.Random`.
    """
    data = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 4, 16])):
        r.choice(_WAYS)(data, r)
        if not data:
            break
    if r.random() < 0.5:
        mend_checksums(data)
    return bytes(data)


def _place(data, r):
    """Return an offset: anywhere, or in the metadata, which are mostly at the start."""
    return r.randrange(len(data) if r.random() < 0.4 else min(len(data), 2500))


def _flip(data, r):
    data[_place(data, r)] ^= 1 << r.randrange(8)


def _byte(data, r):
    data[_place(data, r)] = r.randrange(256)


def _number(data, r):
    at, width = _place(data, r), r.choice([1, 2, 4, 8])
    value = r.choice([*_ODD, r.randrange(len(data)), len(data)])
    part = value.to_bytes(16, "little")[:width]
    data[at : at + width] = part[: len(data) - at]


def _nudge(data, r):
    """Add a little to an existing number."""
    at, width = _place(data, r), r.choice([1, 2, 4, 8])
    value = int.from_bytes(data[at : at + width], "little") + r.choice([-8, -1, 1, 8, 512])
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")[: len(data) - at]


def _cut(data, r):
    if r.random() < 0.3:
        del data[r.randrange(len(data)) :]


def _grow(data, r):
    if r.random() < 0.3:
        data += r.randbytes(r.choice([1, 8, 512]))


def _copy(data, r):
    """Replace a block by another: data by a header, a new index by an old one."""
    source, target, size = r.randrange(len(data)), _place(data, r), r.choice([4, 8, 16, 40, 100])
    block = data[source : source + size]
    data[target : target + len(block)] = block[: len(data) - target]


def _blank(data, r):
    at = _place(data, r)
    size = min(r.choice([4, 8, 32]), len(data) - at)
    data[at : at + size] = bytes(size) if r.random() < 0.5 else b"\xff" * size


def _point(data, r):
    """Let an address point to another structure, or to its own."""
    known = [at for name in _STRUCTURES for at in _places(data, name)]
    pointers = [at for target in known for at in _places(data, target.to_bytes(8, "little"))]
    if pointers:
        at = r.choice(pointers)
        data[at : at + 8] = r.choice([*known, max([0, *(k for k in known if k < at)])]).to_bytes(8, "little")
        if r.random() < 0.5:
            _level(data, r)


def _level(data, r):
    """Change the level of a B-tree node."""
    trees = _places(data, b"TREE")
    if trees:
        data[r.choice(trees) + 5] = r.choice([0, 1, 1, 2, 255])


def _places(data, part):
    found, at = [], data.find(part)
    while at >= 0 and len(found) < 64:
        if at + 8 <= len(data):
            found.append(at)
        at = data.find(part, at + 1)
    return found


_STRUCTURES = [b"TREE", b"SNOD", b"HEAP", b"OHDR", b"GCOL", b"FRHP", b"FAHD", b"EAHD", b"BTHD", b"BTLF", b"BTIN"]
_WAYS = [_point, _point, _level, _flip, _flip, _byte, _number, _number, _number, _nudge, _cut, _grow, _copy, _blank]


def mend_checksums(data):
    """Correct the checksums of the superblock and of all object headers, as the author of a crafted file would."""
    if data[:8] == b"\x89HDF\r\n\x1a\n" and len(data) >= 48 and data[8] in (2, 3):
        data[44:48] = struct.pack("<I", lookup3(data[:44]))
    at = data.find(b"OHDR")
    while at >= 0:
        _mend_header(data, at)
        at = data.find(b"OHDR", at + 4)


def _mend_header(data, at):
    if at + 8 > len(data) or data[at + 4] != 2:
        return
    flags = data[at + 5]
    start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    end = start + width + int.from_bytes(data[start : start + width], "little")
    if end + 4 <= len(data):
        data[end : end + 4] = struct.pack("<I", lookup3(data[at:end]))


def _rotated(value, bits):
    return (value << bits | value >> (32 - bits)) & _MASK


def lookup3(data):
    """Return Bob Jenkins' hash of bytes (lookup3.c, ``hashlittle`` with 0), which HDF5 stores after its metadata."""
    data = bytes(data)
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    whole = max(0, (len(data) - 1) // 12)
    for block in range(whole):
        x, y, z = struct.unpack_from("<III", data, 12 * block)
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        for shift in (4, 6, 8, 16, 19, 4):
            a = (a - c) & _MASK ^ _rotated(c, shift)
            c = (c + b) & _MASK
            a, b, c = b, c, a
    rest = data[12 * whole :]
    if not rest:
        return c
    x, y, z = struct.unpack("<III", rest.ljust(12, b"\0"))
    a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, shift) & _MASK
        a, b, c = b, c, a
    return b
