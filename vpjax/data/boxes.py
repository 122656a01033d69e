"""The outermost boxes of an mp4 file (ISO/IEC 14496-12): whether the fragments of a fragmented one are whole.

FFmpeg passes in silence over what it cannot place behind a fragment.
"""

import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from vpjax.files import AnyPath, open_file

HEADER = struct.Struct(">I4s")
TO_THE_END, LARGE = 0, 1  # sizes that are none: the box ends with the file; its size follows in 8 bytes
NUMBER_AT = 2 * HEADER.size + 4  # in a moof
BROKEN = b""  # the kind of what is no box


class Box(NamedTuple):
    """number: that of a fragment in its file, where a ``moof`` states one; 0: none."""

    kind: bytes
    number: int = 0


def has_broken_fragments(path: AnyPath) -> bool:
    """Whether something of a fragmented mp4 file is in no box, or is a half of a fragment: these are pairs of
    boxes, ``moof`` with the times of frames and ``mdat`` with the frames; or whether the numbers of the
    fragments do not ascend. False if it is no such file."""
    with open_file(path) as file:
        boxes = list(outer_boxes(file))
    halves = [box.kind for box in boxes if box.kind in (b"moof", b"mdat", BROKEN)]
    numbers = [box.number for box in boxes if box.number]
    if numbers != sorted(set(numbers)):
        return True
    if halves[:1] == [b"mdat"]:  # its frames stand in one box, the first ones at least
        halves = halves[halves.index(b"moof") :] if b"moof" in halves else []
    return halves != [b"moof", b"mdat"] * (len(halves) // 2)


def outer_boxes(file: IO[bytes]) -> Iterator[Box]:
    """The outermost boxes; one that is BROKEN for a rest of the file that is none."""
    length, place = file.seek(0, os.SEEK_END), 0
    while place < length:
        file.seek(place)
        head = file.read(NUMBER_AT + 4).ljust(NUMBER_AT + 4, b"\0")
        size, kind = HEADER.unpack_from(head)
        if size == LARGE:
            size = int.from_bytes(head[HEADER.size : HEADER.size + 8])
        elif size == TO_THE_END:
            size = length - place
        if (
            size < HEADER.size
            or place + size > length
            or not (kind.isascii() and kind.decode().isprintable())
        ):
            yield Box(BROKEN)
            return
        # Its first box, mfhd, has the number behind its own header and 4 bytes of flags.
        is_numbered = kind == b"moof" and head[12:16] == b"mfhd"
        yield Box(kind, int.from_bytes(head[NUMBER_AT:]) if is_numbered else 0)
        place += size
