"""A curation of rows: what is chosen depends on no order, chunk, interruption or machine, and every row is
accounted for."""

import json
import random
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.building.flash_video import write_videos
from tests.curation.recipes import recipe_of
from vpjax import curate
from vpjax.curation.mixture import config_text
from vpjax.curation.store import Store
from vpjax.data.clips import read_clips
from vpjax.data.mixture import data_sets
from vpjax.types import UserError

VERBS = ["opens", "drops", "kicks", "throws", "breaks", "catches"]
THINGS = ["door", "cup", "ball", "box", "lamp", "chair"]
COLOURS = ["red", "blue", "green", "black", "white", "yellow"]


def captions_of(seed, count):
    """A table of videos with captions, as ActivityNet's, and rows of all kinds of faults."""
    rng = random.Random(seed)
    table = {}
    for number in range(count):
        sentence = f"A man {rng.choice(VERBS)} the {rng.choice(COLOURS)} {rng.choice(THINGS)}."
        start = rng.uniform(0, 20)
        table[f"v{seed}_{number}"] = dict(
            duration=60.0,
            timestamps=[[start, start + rng.uniform(0.5, 4)], [0.0, 50.0]],
            sentences=[sentence, "The man dances and dances."],
        )
    table["broken"] = dict(duration=3.0, timestamps=[[5, 1]], sentences=["A cup falls."])
    table["scene"] = dict(duration=3.0, timestamps=[[0, 1]], sentences=["A tree in a garden."])
    table["french"] = dict(duration=3.0, timestamps=[[0, 1]], sentences=["Un homme jette le ballon vert."])
    return table


@pytest.fixture
def root(tmp_path):
    """Sources in the layout of the recipe. Videos v1_0 to v1_4 are a benchmark's."""
    folder = tmp_path / "root"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    (folder / "a/one.json").write_text(json.dumps(captions_of(1, 60)))
    rows = [dict(video=name) | row for name, row in captions_of(2, 60).items()]
    lines = [json.dumps(row) for row in rows]
    (folder / "a/two.jsonl").write_text("\n".join([*lines, "{no JSON", lines[0]]))
    (folder / "b/one.json").write_text(json.dumps(captions_of(3, 30)))
    queries = {f"v1_{n}": dict(timestamps=[[0, 1]], sentences=["It rings."]) for n in range(5)}
    (folder / "test.json").write_text(json.dumps(queries))
    return folder


def run(recipe, root, out, **options):
    with ThreadPoolExecutor(1) as pool:
        return curate.curate(recipe, str(root), str(out), pool=pool, workers=1, dry_run=True, **options)


def chosen(out):
    """What is chosen, by source: (video, question, answer)."""
    return {
        path.stem: [(Path(clip.video).stem, clip.question, clip.answer) for clip in read_clips(path)]
        for path in sorted((out / "chosen").iterdir())
    }


def test_every_row_is_accounted_for(root, tmp_path, capsys):
    summary = run(recipe_of(), root, tmp_path / "out")
    dropped = {step["name"]: sum(step["dropped"].values()) for step in summary["steps"]}
    # Two questions for each video; the second file has a line of no JSON, and a line twice.
    assert summary["rows"] == {"a": (120 + 3) + (120 + 3) + 1 + 2, "b": 60 + 3}
    total = sum(summary["rows"].values())
    assert total == sum(dropped.values()) + sum(summary["chosen"].values())
    assert dropped["readable"] == 3 + 1  # spans that end before they start, and no JSON
    assert dropped["events"] == 3 and dropped["english"] == 3 and dropped["span"] == 60 + 60 + 30 + 1 - 5
    assert dropped["benchmark"] == 2 * 5 and dropped["caption_copy"] >= 1
    assert summary["wanted"] == {"a": 30, "b": 10}
    assert sum(summary["chosen"].values()) <= 40
    printed = capsys.readouterr().out
    assert f"{total} questions of a, b" in printed and "videos are missing" in printed
    page = (tmp_path / "out/report.html").read_text()
    assert "cap of the action" in page and "v1_" not in page.partition("Samples")[0]
    for source, rows in chosen(tmp_path / "out").items():
        assert len(rows) == summary["chosen"][source]


def test_the_caps_hold(root, tmp_path):
    run(recipe_of(), root, tmp_path / "out")
    rows = [row for of_source in chosen(tmp_path / "out").values() for row in of_source]
    actions = [(answer.split()[2], answer.split()[-1]) for _, _, answer in rows]
    assert max(map(actions.count, actions)) <= 4
    assert len({video for video, _, _ in rows}) == len(rows)


def test_a_copy_is_found_beside_what_the_same_video_shows_at_another_time(root, tmp_path):
    """Whichever of them comes first in the order of the draw."""
    table = {
        f"v{n}": dict(timestamps=[[1, 3], [20, 22], [20, 22.5]], sentences=["A man opens the door."] * 3)
        for n in range(20)
    }
    (root / "b/one.json").write_text(json.dumps(table))
    summary = run(recipe_of().of(["b"]), root, tmp_path / "out")
    (copies,) = [step for step in summary["steps"] if step["name"] == "caption_copy"]
    assert copies["dropped"]["b"] == 20 and copies["before"]["b"] == 60


def test_the_order_of_rows_does_not_matter(root, tmp_path):
    run(recipe_of(), root, tmp_path / "out")
    lines = (root / "a/two.jsonl").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (root / "a/two.jsonl").write_text("\n".join(lines))
    table = captions_of(1, 60)
    (root / "a/one.json").write_text(json.dumps(dict(reversed(table.items()))))
    run(recipe_of(), root, tmp_path / "other")
    first, other = chosen(tmp_path / "out"), chosen(tmp_path / "other")
    assert {source: sorted(rows) for source, rows in first.items()} == {
        source: sorted(rows) for source, rows in other.items()
    }


def test_a_seed_draws_other_rows(root, tmp_path):
    run(recipe_of(), root, tmp_path / "out")
    run(recipe_of(seed=1), root, tmp_path / "other")
    assert chosen(tmp_path / "out") != chosen(tmp_path / "other")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 4])
def test_a_curation_that_is_killed_goes_on(root, tmp_path, monkeypatch, after):
    """It gives the files of one that was not, whichever chunk was the last one that was kept."""
    monkeypatch.setattr(curate, "CHUNK", 25)
    run(recipe_of(), root, tmp_path / "whole")
    add, added = Store.add, []

    def add_or_die(self, *arguments):
        if len(added) == after:
            raise Killed
        added.append(arguments)
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", add_or_die)
        with pytest.raises(Killed):
            run(recipe_of(), root, tmp_path / "out")
    assert run(recipe_of(), root, tmp_path / "out") == run(recipe_of(), root, tmp_path / "whole")
    for path in (tmp_path / "whole/chosen").iterdir():
        assert path.read_bytes() == (tmp_path / "out/chosen" / path.name).read_bytes()
    assert (tmp_path / "whole/report.html").read_bytes() == (tmp_path / "out/report.html").read_bytes()


def test_other_limits_choose_anew_without_reading_again(root, tmp_path, monkeypatch):
    run(recipe_of(), root, tmp_path / "out")
    run(recipe_of(total=20), root, tmp_path / "fresh")
    monkeypatch.setattr(curate, "judge", None)  # which would judge rows
    run(recipe_of(total=20), root, tmp_path / "out")
    assert chosen(tmp_path / "out") == chosen(tmp_path / "fresh")
    # One row has no place for the second source: of its earlier choice nothing stays.
    run(recipe_of(total=1), root, tmp_path / "out")
    assert list(chosen(tmp_path / "out")) == ["a"]


def test_a_choice_of_nothing_is_an_error(root, tmp_path):
    """It leaves a report, which says why, and a config that trains on nothing."""
    with pytest.raises(UserError, match="no row is chosen: .*report.html says what dropped them"):
        run(recipe_of(filters=(dict(measure="words", least=99, reason="-"),)), root, tmp_path / "out")
    assert (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize(
    "changes, named",
    [({"seed": 1}, "seed"), ({"filters": (dict(measure="words", least=1, reason=""),)}, "filters of rows")],
)
def test_rows_that_were_judged_otherwise_are_not_mixed(root, tmp_path, changes, named):
    run(recipe_of(), root, tmp_path / "out")
    with pytest.raises(UserError, match=f"holds a curation with another .*{named}.*: delete its folder"):
        run(recipe_of(**changes), root, tmp_path / "out")


def test_another_file_of_a_benchmark_is_another_curation(root, tmp_path):
    """Rows that were judged by a part of it may be its own."""
    run(recipe_of(), root, tmp_path / "out")
    run(recipe_of(), root, tmp_path / "out")
    whole = json.loads((root / "test.json").read_text())
    (root / "test.json").write_text(json.dumps(whole | {"v1_9": whole["v1_0"]}))
    with pytest.raises(UserError, match="another benchmark file"):
        run(recipe_of(), root, tmp_path / "out")


def test_a_source_may_come_later(root, tmp_path):
    """Its rows are judged then, and what is chosen is what one command would choose."""
    run(recipe_of().of(["b"]), root, tmp_path / "out")
    run(recipe_of(), root, tmp_path / "out")
    run(recipe_of(), root, tmp_path / "other")
    assert chosen(tmp_path / "out") == chosen(tmp_path / "other")
    with pytest.raises(UserError, match="a/one.json is no file of the recipe any more: delete its folder"):
        run(recipe_of().of(["b"]), root, tmp_path / "out")
    (root / "b/one.json").write_text("{}")
    with pytest.raises(UserError, match="b/one.json is another file now"):
        run(recipe_of(), root, tmp_path / "out")


def test_missing_files_are_named(root, tmp_path, capsys):
    (root / "b/one.json").unlink()
    summary = run(recipe_of(), root, tmp_path / "out")
    assert (
        set(summary["chosen"]) == {"a"}
        and "b/one.json is missing: get it at https://a" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="b: .*one.json is missing: get it at https://a; --sources leaves"):
        with ThreadPoolExecutor(1) as pool:
            curate.curate(recipe_of(), str(root), str(tmp_path / "o"), pool=pool, workers=1)
    (root / "test.json").unlink()
    with pytest.raises(
        UserError, match="test.json is missing: the recipe keeps the rows of charades-sta out"
    ):
        run(recipe_of(), root, tmp_path / "o")


def test_videos_are_examined_once(tmp_path):
    """A video that comes later is examined then, with a limit that changed no other is examined again."""
    home = tmp_path / "root/a"
    (home / "videos").mkdir(parents=True)
    write_videos(home / "videos")
    (home / "videos/flash.mp4").rename(home / "videos/one.mp4")
    names = ["one", "missing", "broken"]
    rows = [
        dict(video=f"{name}.mp4", timestamps=[[2.0, 3.0]], sentences=[f"The lamp flashes {number} times."])
        for number, name in enumerate(names, 1)
    ]
    rows.append(rows[0] | dict(timestamps=[[0.0, 1.0]]))
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = dict(name="a", files=("rows.jsonl",), share=1.0, url="-", licence="-", format="captions")
    filters = (
        dict(measure="events", least=1, reason="-"),
        dict(measure="peak", least=0.5, reason="-"),
        dict(measure="picture_copy", most=0.7, reason="-"),
    )
    settings = dict(sources=(source,), filters=filters, benchmarks=(), total=10)
    caps = dict(action=1.0, length=1.0, edges=(1.0,), video=9)
    out = tmp_path / "out"

    def made(**changes):
        with ThreadPoolExecutor(1) as pool:
            recipe = recipe_of(**(settings | dict(caps=caps) | changes))
            summary = curate.curate(recipe, str(tmp_path / "root"), str(out), pool=pool, workers=1)
        dropped = {step["name"]: step["dropped"]["a"] for step in summary["steps"] if step["dropped"]["a"]}
        return dropped, [clip.id for clip in read_clips(out / "clips/a.jsonl")]

    assert made() == ({"video usable": 2, "peak": 1}, ["a-1"])
    (clip,) = read_clips(out / "clips/a.jsonl")
    assert clip.keywords[0].spans == ((2.5, 2.75),) and Path(clip.video).is_file()
    folders = set((out / "videos").iterdir())
    shutil.copy(home / "videos/one.mp4", home / "videos/missing.mp4")
    # A copy of the first one's pictures: one of the two is kept, whichever the draw comes to first.
    dropped, ids = made()
    assert dropped == {"video usable": 1, "peak": 1, "picture_copy": 1} and ids in (["a-1"], ["a-2"])
    (examined,) = set((out / "videos").iterdir()) - folders
    lines = [line for part in (examined / "parts").glob("0*") for line in part.read_text().splitlines()]
    assert len(lines) == 2  # the one that came and the broken one
    looser = filters[:1] + filters[2:]
    dropped, _ = made(filters=looser)
    assert dropped == {"video usable": 1, "picture_copy": 1}
    config = (out / "config.py").read_text()
    assert "a.jsonl" in config and load_config(out / "config.py").data.train[0]["instruction"] == ""
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 8 and "broken.mp4" in page


def load_config(path):
    return runpy.run_path(str(path))["get_config"]()


@pytest.mark.parametrize("content, said", [(None, "no such file of clips"), ("\n", "no clips in this file")])
def test_a_file_of_general_clips_is_there_before_anything_is_examined(tmp_path, content, said):
    file = tmp_path / "general.jsonl"
    if content is not None:
        file.write_text(content)
    (tmp_path / "test.json").write_text("{}")
    for name in ("a/one.json", "a/two.jsonl", "b/one.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    recipe = recipe_of(general=(dict(file=str(file), share=0.2),))
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match=f"general.jsonl: {said}"):
        curate.curate(recipe, str(tmp_path), str(tmp_path / "out"), pool=pool, workers=1)
    assert not (tmp_path / "out").exists()


def test_general_clips_get_their_share(tmp_path):
    rows = [dict(id=str(n), video="", question="q", answer="a") for n in range(50)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    general = dict(file=str(tmp_path / "general.jsonl"), share=0.2, instruction="Be brief.")
    text = config_text(recipe_of(general=(general,)), {"a": 300, "b": 100}, str(tmp_path / "clips"))
    (tmp_path / "config.py").write_text(text)
    config = load_config(tmp_path / "config.py")
    names = [Path(data_set["file"]).stem for data_set in config.data.train]
    assert names == ["a", "b", "general"]
    # 100 of 500 clips of an epoch, so each of the 50 comes twice.
    assert config.data.train[2]["weight"] == 2.0
    assert [x.name for x in data_sets(config.data)] == names
