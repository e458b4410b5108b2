"""A torrent of a list of files, without their names: BEP 3, version 1, private (BEP 27).

The files are called 0, 1, 2, … in it: what they are really called stands in the manifest, which comes through Ansible.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

READERS = 4  # hashing is bound by the disk or by one core each; more would starve what serves on the host
PIECE_MIN_BYTES = 1 << 20
PIECES_MAX = 1 << 14  # 20 bytes each: a torrent stays below 400 kB, small enough for a variable of Ansible
PREFIX = b"d4:info"


def bencode(value: Any) -> bytes:
    """Bytes, text, whole numbers, lists and mappings in the encoding of BEP 3."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        return bencode(value.encode())
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l%se" % b"".join(map(bencode, value))
    if isinstance(value, dict):
        items = sorted((key.encode(), entry) for key, entry in value.items())
        return b"d%se" % b"".join(bencode(key) + bencode(entry) for key, entry in items)
    raise TypeError(f"{type(value).__name__} has no bencoding")


def piece_length(total: int) -> int:
    """Bytes of a piece: 1 MiB, or the next power of two that keeps ``total`` bytes within PIECES_MAX pieces."""
    length = PIECE_MIN_BYTES
    while total > length * PIECES_MAX:
        length *= 2
    return length


def piece_hashes(paths: list[str], sizes: list[int], length: int) -> bytes:
    """SHA-1 of each piece of all files, one after the other; raises EOFError(path) for a file that is shorter."""
    *starts, total = accumulate([0, *sizes])

    def one(begin: int) -> bytes:
        digest, end = hashlib.sha1(), min(begin + length, total)
        for index, path in enumerate(paths):
            start = starts[index]
            first, last = max(begin, start), min(end, start + sizes[index])
            if first >= last:
                continue
            with open(path, "rb", buffering=0) as handle:
                handle.seek(first - start)
                while first < last:
                    chunk = handle.read(min(last - first, 1 << 20))
                    if not chunk:
                        raise EOFError(path)
                    digest.update(chunk)
                    first += len(chunk)
        return digest.digest()

    with ThreadPoolExecutor(READERS) as pool:
        return b"".join(pool.map(one, range(0, total, length)))


def make(name: str, paths: list[str], sizes: list[int]) -> bytes:
    """The torrent of files that are not empty; it reads every byte of them."""
    length = piece_length(sum(sizes))
    info = {
        "files": [{"length": size, "path": [str(index)]} for index, size in enumerate(sizes)],
        "name": name,
        "piece length": length,
        "pieces": piece_hashes(paths, sizes, length),
        "private": 1,
    }
    return PREFIX + bencode(info) + b"e"


def info_hash(torrent: bytes) -> bytes:
    """What peers and trackers call a torrent of ``make``: 20 bytes."""
    return hashlib.sha1(torrent[len(PREFIX) : -1]).digest()
