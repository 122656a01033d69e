"""The ways to find the window of a second look, by the names that ``--localise`` takes."""

from pathlib import Path

from ml_collections import ConfigDict

from vpjax.evaluation.keyword_scan import keyword_localiser
from vpjax.evaluation.scans import LOCALISERS, Localiser
from vpjax.training import checkpoint, run_config
from vpjax.types import UserError

CONTRAST = "contrast"  # which reads the head of a run, and the keywords of what is answered
NAMES = (*LOCALISERS, CONTRAST)


def localiser_of(name: str, folder: Path, step: checkpoint.Step = None) -> Localiser:
    """The one of NAMES, for the model in ``folder``. UserError if it needs a head that the folder lacks."""
    if name != CONTRAST:
        return LOCALISERS[name]
    heads = checkpoint.load_heads(folder, step=step)
    if not heads:
        raise UserError(
            f"--localise={CONTRAST}: no contrastive head in {folder}; take a run of SFT with "
            f"config.contrast.weight above 0, or one of {', '.join(LOCALISERS)}"
        )
    from vpjax.building.keywords import load_extractor  # here, because it needs spaCy

    extract = load_extractor()
    config = ConfigDict(run_config.read(folder))
    return keyword_localiser(heads, config, lambda answer: [keyword.text for keyword in extract(answer)])
