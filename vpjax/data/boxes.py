"""The outermost boxes of an mp4 file (ISO/IEC 14496-12): whether those of a fragmented one fill it.

FFmpeg passes in silence over what it cannot place behind the last whole fragment.
"""

import os
import struct

from vpjax.files import AnyPath, open_file

HEADER = struct.Struct(">I4s")
TO_THE_END, LARGE = 0, 1  # sizes that are none: the box ends with the file; its size follows in 8 bytes


def bytes_outside_fragments(path: AnyPath) -> int:
    """The number of bytes at the end of a fragmented mp4 file that are in no whole box; 0 if there are none,
    or if it has no fragments."""
    with open_file(path) as file:
        length = file.seek(0, os.SEEK_END)
        place, has_fragments = 0, False
        while place < length:
            file.seek(place)
            head = file.read(HEADER.size + 8)
            if len(head) < HEADER.size:
                break
            size, kind = HEADER.unpack_from(head)
            if size == LARGE and len(head) == HEADER.size + 8:
                size = int.from_bytes(head[HEADER.size :])
            elif size == TO_THE_END:
                size = length - place
            if size < HEADER.size or place + size > length:
                break
            has_fragments |= kind == b"moof"
            place += size
    return length - place if has_fragments else 0
