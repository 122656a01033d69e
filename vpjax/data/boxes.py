"""The outermost boxes of an mp4 file (ISO/IEC 14496-12): whether the fragments of a fragmented one are whole.

FFmpeg passes in silence over what it cannot place behind a fragment.
"""

import os
import re
import struct
from collections.abc import Iterator
from typing import IO

from vpjax.files import AnyPath, open_file

HEADER = struct.Struct(">I4s")
TO_THE_END, LARGE = 0, 1  # sizes that are none: the box ends with the file; its size follows in 8 bytes
BROKEN = b""  # the kind of what is no box
FRAGMENT = re.compile(rb"moof.{4}mfhd.{4}(.{4})", re.DOTALL)  # how a fragment begins, to its number
FRAGMENT_BYTES = 20
CHUNK = 1 << 24  # bytes that are read at once


def has_broken_fragments(path: AnyPath) -> bool:
    """Whether something of a fragmented mp4 file is in no box, or is a half of a fragment: these are pairs of
    boxes, ``moof`` with the times of frames and ``mdat`` with the frames; whether a box has swallowed
    fragments, or their numbers do not ascend. False if it is no such file."""
    with open_file(path) as file:
        kinds = list(outer_boxes(file))
        numbers = fragment_numbers(file) if b"moof" in kinds else []
    if len(numbers) != kinds.count(b"moof") or numbers != sorted(set(numbers)):
        return True
    halves = [kind for kind in kinds if kind in (b"moof", b"mdat", BROKEN)]
    if halves[:1] == [b"mdat"]:  # its frames stand in one box, the first ones at least
        halves = halves[halves.index(b"moof") :] if b"moof" in halves else []
    return halves != [b"moof", b"mdat"] * (len(halves) // 2)


def outer_boxes(file: IO[bytes]) -> Iterator[bytes]:
    """The kinds of the outermost boxes; BROKEN for a rest of the file that is none."""
    length, place = file.seek(0, os.SEEK_END), 0
    while place < length:
        file.seek(place)
        head = file.read(HEADER.size + 8).ljust(HEADER.size + 8, b"\0")
        size, kind = HEADER.unpack_from(head)
        if size == LARGE:
            size = int.from_bytes(head[HEADER.size :])
        elif size == TO_THE_END:
            size = length - place
        if (
            size < HEADER.size
            or place + size > length
            or not (kind.isascii() and kind.decode().isprintable())
        ):
            yield BROKEN
            return
        yield kind
        place += size


def fragment_numbers(file: IO[bytes]) -> list[int]:
    """The numbers of the fragments that begin anywhere in a file, whether in a box or not."""
    file.seek(0)
    numbers, rest = [], b""
    while chunk := file.read(CHUNK):
        numbers += [int.from_bytes(number) for number in FRAGMENT.findall(rest + chunk)]
        rest = chunk[1 - FRAGMENT_BYTES :]
    return numbers
