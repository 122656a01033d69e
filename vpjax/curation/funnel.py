"""What a curation kept and dropped, as counts, lines and one HTML page."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jinja2

from vpjax.building.report import Frame, histogram, thumbnails
from vpjax.curation.choose import CAPS
from vpjax.curation.measures import stage_of
from vpjax.curation.recipe import Recipe
from vpjax.curation.rows import READER
from vpjax.curation.store import Store
from vpjax.data.keyframes import slots_of
from vpjax.data.sampling import Sampling
from vpjax.data.video import read_frames
from vpjax.types import Clip, UserError

TEMPLATE = Path(__file__).with_suffix(".html")
SAMPLES = 8  # rows that the page shows of each fate
ACTIONS = 30  # that it names among the commonest, and among the rarest
CHOSEN = ""  # the fate of the rows that nothing drops
USABLE = "video usable"  # the first filter of videos: missing or broken files
STRIP = 8  # frames that the page shows of a sample's video


def summarize(store: Store, recipe: Recipe) -> dict[str, Any]:
    """The funnel: for each step its name, its rule, its reason, and how many rows of each source come to it
    and are dropped by it; then how many are chosen. AssertionError if they do not add up to all rows."""
    counts = store.counts()
    sources = [source.name for source in recipe.sources]
    left = Counter({source: 0 for source in sources})
    for (source, _), count in counts.items():
        left[source] += count
    rows = dict(left)
    steps = []
    for name, rule, reason in steps_of(recipe):
        dropped = {source: counts.get((source, name), 0) for source in sources}
        steps.append(dict(name=name, rule=rule, reason=reason, before=dict(left), dropped=dropped))
        left.subtract(dropped)
    chosen = {source: counts.get((source, CHOSEN), 0) for source in sources}
    assert chosen == dict(left), f"{chosen} chosen, {dict(left)} left"
    return dict(rows=rows, steps=steps, chosen=chosen, wanted=recipe.places(recipe.total))


def steps_of(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(name, rule, reason) of all that may drop a row, in order."""
    steps = [(READER, "a row of its format", "rows that are broken, empty or in another form")]
    steps += [(x.measure, x.rule, x.reason) for x in recipe.filters if stage_of(x.measure) != "video"]
    videos = [(USABLE, "a file that can be read", "missing or broken videos")]
    videos += [(x.measure, x.rule, x.reason) for x in recipe.filters_at("video")]
    caps = recipe.caps
    rules = (
        f"at most {caps.video} rows",
        f"at most {caps.action:.1%} of all",
        f"at most {caps.length:.0%} of all between {', '.join(f'{x:g}' for x in caps.edges)} s",
        "as many as its share",
    )
    balance = [(name, rule, "balance, by the draw") for name, rule in zip(CAPS, rules, strict=True)]
    return [*steps, *videos, *balance]


def lines(summary: dict[str, Any]) -> list[str]:
    """The funnel in lines of text."""
    total = sum(summary["rows"].values())
    found = [f"{total:>10,} questions of {', '.join(summary['rows'])}"]
    for step in summary["steps"]:
        if dropped := sum(step["dropped"].values()):
            found.append(f"{-dropped:>10,} {step['name']} ({step['rule']})")
    chosen = sum(summary["chosen"].values())
    found.append(f"{chosen:>10,} chosen of {sum(summary['wanted'].values()):,} that the recipe wants")
    for source, count in summary["chosen"].items():
        if count < summary["wanted"][source]:
            found.append(f"{source} gives {count:,} of its share of {summary['wanted'][source]:,}")
    return found


def samples_of(store: Store, recipe: Recipe) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(name, rule, rows) of a few rows that each step dropped, and of the chosen ones."""
    yield "chosen", "", store.samples(CHOSEN, 3 * SAMPLES)
    for name, rule, _ in steps_of(recipe):
        if rows := store.samples(name, SAMPLES):
            yield name, rule, rows


def strip_of(clip: Clip) -> list[Frame]:
    """Frames of a clip's video, its key frames marked; none if it cannot be read (any more)."""
    try:
        video = read_frames(clip.video, Sampling(frames=STRIP), start=clip.start, end=clip.end)
    except UserError:
        return []
    spans = [span for keyword in clip.keywords for span in keyword.spans]
    return thumbnails(
        video.frames, video.times, slots_of(spans, video.times, video.frame_seconds, temporal=1)
    )


def render_report(
    store: Store, recipe: Recipe, summary: dict[str, Any], clips: Mapping[int, Clip], pool: Executor
) -> str:
    """The page, which needs no other file. clips: those whose videos were examined, by row; of the samples
    among them, which ``pool`` reads once more, it shows frames."""
    samples = list(samples_of(store, recipe))
    shown = [row["id"] for _, _, rows in samples for row in rows if row["id"] in clips]
    strips = dict(zip(shown, pool.map(strip_of, [clips[row] for row in shown]), strict=True))
    actions = list(store.values("action"))
    known = Counter({x: count for x, count in store.values("seconds") if x is not None})
    lengths = list(known.elements())
    words = Counter(len(text.split()) for text, count in store.values("caption") for _ in range(count))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        recipe=recipe,
        summary=summary,
        actions=len(actions),
        commonest=actions[:ACTIONS],
        rarest=actions[-ACTIONS:],
        histograms={
            "estimated length of the event": histogram(lengths, recipe.caps.edges, " s"),
            "words of the caption": histogram(list(words.elements()), (5, 10, 15, 20, 30, 40), ""),
        },
        samples=samples,
        strips=strips,
    )
