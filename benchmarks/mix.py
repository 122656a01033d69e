"""How a recipe packs a population of clips, without video files:

    python -m benchmarks.mix --config sft_qwen2_5_vl_7b --population mix.csv [--method sft|grpo|evaluate]

The population is a CSV file with the columns id, width, height, seconds, fps, question_tokens, answer_tokens,
event_start and event_seconds (times in seconds). The clips are indexed and planned by the code of the loader.
Prints a table and, as its last line, one JSON object:

    programs              compiled programs: shapes of a batch
    rows_filled           share of the rows of an epoch that hold a clip
    useful_text           useful / computed tokens of the decoder: text and visual tokens, those of V~ too
    useful_vision         useful / computed patches of the vision tower
    rejected              share of the clips that are not used
    missed_events         share of the events that no sampled slot shows, missed_events_30s: of clips to 30 s
    mean_visual_tokens    of a clip
"""

import csv
import json
import time
from pathlib import Path

import numpy as np

from vpjax import cli
from vpjax.data import coverage
from vpjax.data.index import Index, index_clips
from vpjax.data.pipeline import coverage_of, make_plan, useful_units
from vpjax.data.positions import Stamps
from vpjax.data.probing import Source
from vpjax.data.sampling import VideoInfo
from vpjax.data.text import Tokens
from vpjax.models.config import VLMConfig
from vpjax.training import sft
from vpjax.types import Clip, UserError

COLUMNS = "id width height seconds fps question_tokens answer_tokens event_start event_seconds".split()
# As many token ids as Qwen's tokenizer makes of a time in words.
STAMPS = Stamps({**dict.fromkeys("<0123456789.", (0,)), " seconds>": (0, 0)})


def read_population(
    path: Path, model_config: VLMConfig
) -> tuple[list[Clip], list[list[Source]], list[Tokens]]:
    """The clips of a CSV file, each with one keyword that is seen during its event. UserError if there is no
    such file, or a column is missing."""
    if not path.is_file():
        raise UserError(f"--population={path}: no such file")
    clips, sources, tokens = [], [], []
    video = [model_config.vision_start, model_config.video_token, model_config.vision_end]
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise UserError(f"--population={path}: no column {', '.join(missing)}")
        for row in rows:
            seconds, fps, start = (float(row[name]) for name in ("seconds", "fps", "event_start"))
            span = (start, start + float(row["event_seconds"]))
            frames = max(1, round(seconds * fps))
            size = int(row["width"]), int(row["height"])
            clips.append(Clip(row["id"], "", "", ""))
            sources.append([Source("", "video", info=VideoInfo(*size, frames / fps, fps, frames))])
            answer = np.zeros(int(row["answer_tokens"]), np.int32)
            tokens.append(
                Tokens(
                    prompt=np.array([*video, *[0] * int(row["question_tokens"])], np.int32),
                    answer=answer,
                    keywords=np.zeros((1, 1), np.int32),
                    lemma=np.zeros(1, np.int32),
                    spans=((span,),),
                    videos=(0,),
                    places=((len(answer) - 1,),),
                    degraded_answer=answer,
                    stamps=STAMPS,
                )
            )
    return clips, sources, tokens


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_config()
    parser.add_argument("--population", required=True, help="CSV file of clips")
    parser.add_argument("--method", choices=("sft", "grpo", "evaluate"), help="default: the recipe's")
    flags, config = parser.parse_config()
    method = flags.method or config.method
    model_config = VLMConfig.from_hf(config.model.to_dict())
    clips, sources, tokens = read_population(Path(flags.population), model_config)

    start = time.perf_counter()
    answers = sft.degraded_answers(config)
    index = index_clips(clips, sources, tokens, model_config, config.data, answers=answers)
    indexed = time.perf_counter()
    plan = make_plan(index, config.data, packed=method == "sft", seed=config.seed, rows=config.batch)
    use = plan.usage(useful_units(index.entries, model_config))
    planned = time.perf_counter()
    missed = coverage_of(index, config.data)
    print(
        f"{len(clips)} clips: indexed in {indexed - start:.1f} s, "
        f"an epoch planned in {planned - indexed:.1f} s"
    )
    print(f"{use.rows} rows, {use.batches:.1f} batches of {config.batch}; a row holds {plan.capacity(0)}")
    report(index, missed)
    for name, share in (("V", use.text), ("V~", use.degraded)):
        print(f"useful tokens of {name}: {share:.3f}")
    visual = useful_units(index.entries, model_config)
    result = dict(
        programs=use.programs,
        rows_filled=use.rows_filled,
        useful_text=use.all_text,
        useful_vision=use.vision,
        rejected=1 - len(index.entries) / len(clips),
        missed_events=missed.share(),
        missed_events_30s=missed.share(coverage.SHORT),
        mean_visual_tokens=float(visual.mean()),
    )
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


def report(index: Index, missed: coverage.Coverage) -> None:
    """Print what the loader's summary and the coverage say."""
    for label, counts in (("rejected", index.rejected), ("noted", index.noted)):
        for reason, ids in sorted(counts.items()):
            print(f"{len(ids)} clips {label}: {reason}")
    print(*missed.lines(), sep="\n")


if __name__ == "__main__":
    cli.run(main)
