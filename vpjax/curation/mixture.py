"""The recipe of a run that trains on the chosen clips, with clips of other kinds beside them."""

import os
from collections.abc import Mapping

from vpjax.curation.recipe import Recipe
from vpjax.data.clips import read_records
from vpjax.types import UserError

CONFIG = '''"""SFT on the clips that a curation chose.

    python -m vpjax.train --config {file} --config.init_from=DIR
"""

from vpjax.recipes import sft_qwen2_5_vl_7b


def get_config():
    c = sft_qwen2_5_vl_7b.get_config()
    c.data.train = (
{data_sets}
    )
    return c
'''


def config_text(recipe: Recipe, counts: Mapping[str, int], folder: str) -> str:
    """The Python text of a recipe for vpjax.train. counts: the clips of each source in ``folder``. Clips of
    other kinds get the weight with which they are their share of an epoch."""
    instructions = {source.name: source.instruction for source in recipe.sources}
    lines = []
    for source, count in counts.items():
        if count:
            file = os.path.abspath(f"{folder}/{source}.jsonl")
            lines.append(f"        dict(file={file!r}, instruction={instructions[source]!r}),")
    own = 1 - sum(general.share for general in recipe.general)
    for general in recipe.general:
        weight = round(sum(counts.values()) * general.share / own / clips_in(general.file), 6)
        file, videos = os.path.abspath(general.file), general.videos
        more = f", videos={videos!r}" if videos else ""
        lines.append(
            f"        dict(file={file!r}, weight={weight}, instruction={general.instruction!r}{more}),"
        )
    path = os.path.join(os.path.dirname(os.path.abspath(folder)), "config.py")
    return CONFIG.format(file=path, data_sets="\n".join(lines))


def clips_in(file: str) -> int:
    """The number of clips in a file. UserError if there is no such file, or none in it."""
    clips = sum(1 for _ in read_records(file))
    if not clips:
        raise UserError(f"{file}: no clips in this file")
    return clips
