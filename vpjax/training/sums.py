"""The sums of a checkpoint's files, by which damage is noticed, and what a run does about it.

orbax notices most files that are cut short, and no flipped bits, so each checkpoint has its sums, which are
written before it gets its name. A checkpoint whose files do not fit them is damaged and is never read.
"""

import functools
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpjax.files import stamp
from vpjax.types import UserError

CHECKPOINTS, SUMS = "checkpoints", "sums.json"
ASIDE = "damaged"  # the suffix of a damaged checkpoint that a run has set aside
CHUNK = 1 << 24  # bytes that are read at once


def files_of(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint that have sums: all but orbax's notes in the folder itself."""
    files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
    return {str(path.relative_to(checkpoint)): path for path in files}


def sums_of(checkpoint: Path) -> dict[str, list[int]]:
    """The size in bytes and the CRC-32 of each file of a checkpoint."""

    def sum_of(path: Path) -> list[int]:
        size = crc = 0
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        return [size, crc]

    files = files_of(checkpoint)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(sum_of, files.values()), strict=True))


def damage_of(checkpoint: Path) -> str:
    """Why a checkpoint is not whole; "": it is, or it is of an older vpjax, which wrote no sums."""
    if not (checkpoint / SUMS).exists():
        return "" if any(checkpoint.glob("*/")) else "it is empty"
    try:
        return _damage_of(checkpoint, *map(stamp, [checkpoint / SUMS, *files_of(checkpoint).values()]))
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"


@functools.lru_cache(8)
def _damage_of(checkpoint: Path, *stamps: tuple[int, int]) -> str:
    """``damage_of`` a checkpoint with sums. stamps: of its files, for which the result holds."""
    try:
        expected = json.loads((checkpoint / SUMS).read_bytes())
        size = {name: entry[0] for name, entry in expected.items()}
    except (ValueError, AttributeError, TypeError, LookupError):
        return f"{SUMS} is damaged"
    files = files_of(checkpoint)
    if missing := sorted(set(size) - set(files)):
        return f"{missing[0]} is missing"
    for name in size:
        if (found := files[name].stat().st_size) != size[name]:
            return f"{name} has {found} of {size[name]} bytes"
    found_sums = sums_of(checkpoint)
    changed = [name for name in size if found_sums[name] != expected[name]]
    return f"{changed[0]} has other bytes than were written" if changed else ""


def newest_whole(workdir: Path, steps: Sequence[int]) -> tuple[int | None, dict[int, str]]:
    """The newest of ``steps`` whose checkpoint is whole, and what is wrong with the newer ones. None if there
    are no steps. UserError if there are some and none is whole."""
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        damage = damage_of(workdir / CHECKPOINTS / str(step))
        if not damage:
            return step, damaged
        damaged[step] = damage
    if damaged:
        reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
        raise UserError(
            f"{workdir / CHECKPOINTS}: no checkpoint is whole ({reasons}): bring back a copy of one, or "
            "begin again in another --workdir"
        )
    return None, damaged


def set_damaged_aside(workdir: Path) -> list[str]:
    """Rename the checkpoints that are damaged and newer than the newest whole one, so that the run goes on
    after that one. Returns a line about each. UserError as ``newest_whole``."""
    folder, lines = workdir / CHECKPOINTS, []
    step, damaged = newest_whole(workdir, steps_in(workdir))
    for number, damage in damaged.items():
        name, count = f"{number}.{ASIDE}", 1
        while (folder / name).exists():
            count += 1
            name = f"{number}.{ASIDE}-{count}"
        (folder / str(number)).rename(folder / name)
        lines.append(
            f"{folder / str(number)} is damaged ({damage}) and set aside as {name}: the run goes on after "
            f"step {step}"
        )
    return lines


def steps_in(workdir: Path) -> list[int]:
    """The steps with a checkpoint, by the names in the folder."""
    folder = workdir / CHECKPOINTS
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
