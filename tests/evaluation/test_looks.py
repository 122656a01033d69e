"""Two looks: the window that is answered about is the likeliest one, and each look sees what it says."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import runs
from tests.commands.call import ALONE, call
from tests.videos import greys, write
from vpjax import evaluate, predict
from vpjax.data.clips import write_clips
from vpjax.data.collate import single_prompt
from vpjax.data.looks import NO, YES, TwoLooks, relevance_of
from vpjax.data.sampling import Sampling
from vpjax.data.video import Video
from vpjax.evaluation import scans
from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.heldout import check_looks, check_scans
from vpjax.evaluation.keyword_scan import keyword_localiser
from vpjax.evaluation.looks import LOOK_CONTROLS, LookPredictor, seconds_shown
from vpjax.evaluation.looks_page import looked_samples, write_looks_page
from vpjax.evaluation.ranking import answer_logprobs, pad_answers
from vpjax.evaluation.scans import LOCALISERS, read_scan, relevance_scores
from vpjax.events.long import LongSpec, make_long_clips
from vpjax.localisers import localiser_of
from vpjax.predict import ask, load
from vpjax.recipes import base
from vpjax.training import checkpoint, run_config
from vpjax.training.sft import init_heads
from vpjax.types import Clip, UserError

pytestmark = pytest.mark.slow
LOOKS = dict(tokens=96, look_frames=16, scan_pixels=28 * 28, look_pixels=56 * 56, look_again=2)
FLAGS = ["--looks=2", *(f"--{name}={value}" for name, value in LOOKS.items())]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Clips of 80 frames: 4 windows of 20, 16 of them read, in 32 tokens, and 64 for two second looks."""
    folder = tmp_path_factory.mktemp("long")
    return make_long_clips(LongSpec(frames=80, lengths=(1,)), folder, {"heldout": 3})["heldout"]


def test_windows_are_scored_each_by_itself(run, file):
    """Padding and the other windows change nothing: the scores are those of one prompt at a time."""
    loaded = load(run)
    clip = Clip("a", str(file.parent / "heldout/000/000000.mp4"), "What?", "")
    looks = TwoLooks(tokens=96, again=2)
    sampling = Sampling(4, min_pixels=28 * 28, max_pixels=56 * 56)
    windows, videos = read_scan(clip.video, looks, sampling, factor=28, max_side=4096)
    assert len(windows) == 4 and all(video.frames.shape == (16, 28, 28, 3) for video in videos)
    for (start, end), video in zip(windows, videos, strict=True):
        assert ((start - 1e-6 <= video.times) & (video.times < end)).all()
    scores = relevance_scores(loaded.model, loaded.text, clip, videos)
    prompt = loaded.text.prompt(relevance_of(clip))
    answers = pad_answers([[loaded.text.answer(YES), loaded.text.answer(NO)]], 2, 8)
    for video, score in zip(videos, scores, strict=True):
        prompts = single_prompt(prompt, [video], loaded.model.config)[1]
        yes, no = np.asarray(answer_logprobs(loaded.model, prompts, *answers))[0]
        # Of log-probabilities of about 10 nats, in float32.
        np.testing.assert_allclose(score, yes - no, atol=1e-4)
    assert scores.std() > 0.01


def test_an_answer_of_two_looks_is_that_of_the_likeliest_window(run, file, tmp_path):
    video = file.parent / "heldout/000/000001.mp4"
    page = tmp_path / "scans.html"
    asked = [f"--model={run}", f"--video={video}", "--prompt=What?", "--max_new_tokens=4", "--json"]
    status, out, err = call(predict.main, *asked, *FLAGS, f"--page={page}")
    assert status == 0, err
    said = json.loads(out)
    start, end = said["looks"]["window"]
    assert said["looks"]["windows"] == 4 and end - start == 2.5
    assert all(start - 1e-6 <= time < end for time in said["frame_times"]) and said["grid"] == [8, 4, 4]
    assert page.read_text().count("<figure") == 4 + 16
    loaded = load(run)
    looks = TwoLooks(tokens=96, again=2)
    answers = [
        ask(loaded, "What?", video, look=look, max_new_tokens=4)
        for look in (looks.first((start, end)), looks.second((start, end)))
    ]
    assert answers[1].frame_times == said["frame_times"]
    # Of both looks' answers the one that both find likelier, with log-probabilities that were not sampled.
    prompt = loaded.text.prompt(Clip("", str(video), "What?", ""))
    sums = {}
    for answer in answers:
        ids = loaded.text.answer(answer.text)
        padded = pad_answers([[ids]], 1, len(ids))
        rows = [single_prompt(prompt, look.videos, loaded.model.config)[1] for look in answers]
        sums[answer.text] = sum(float(answer_logprobs(loaded.model, row, *padded)[0, 0]) for row in rows)
    assert said["text"] == max(sums, key=sums.get)


def test_an_evaluation_of_two_looks(run, file, tmp_path, monkeypatch):
    """With a localiser that knows the window, two looks are the same as the right window; the wrong one shows
    nothing of the event, and V~ replaces the slot that shows it."""
    spans = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        spans[record["id"]] = tuple(map(tuple, record["spans"]))

    def knowing(model, text, clip, videos):
        parts = [(video.times[0], video.times[-1] + 0.125) for video in videos]
        return seconds_shown(dataclasses.replace(clip, spans=spans[clip.id]), parts)

    monkeypatch.setitem(LOCALISERS, "motion", knowing)
    out = tmp_path / "out"
    arguments = [
        f"--model={run}",
        "--benchmark=events",
        f"--data={file}",
        f"--out={out}",
        "--localise=motion",
    ]
    controls = f"--controls={','.join(LOOK_CONTROLS)}"
    status, printed, err = call(evaluate.main, *arguments, *FLAGS, controls, "--max_new_tokens=3", **ALONE)
    assert status == 0, err
    results = json.loads((out / "results.json").read_text())
    windows = results["looks"]["windows"]
    assert windows["found"]["mean"] == 1.0 and "the window shows the event" in printed
    assert windows["right"]["mean"] == results["controls"]["none"]["metrics"]["accuracy"]["micro"]["mean"]
    texts = {}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        texts[record["control"], record["id"]] = record["text"]
        assert not record["fault"]
    assert set(texts) == {(control, name) for control in LOOK_CONTROLS for name in spans}
    for name, (span,) in spans.items():
        assert texts["none", name] == texts["right", name]
        scan = results["looks"]["scans"][name]
        best = scan["again"][int(np.argmax(scan["again_scores"]))]
        assert scan["edges"][best] <= span[0] < scan["edges"][best + 1]
    assert (out / "scans.html").exists()


def test_a_control_without_its_window_is_left_out(monkeypatch):
    """A wrong window shows nothing of the event, and a right one some of it: of a video that is one window,
    of an event throughout or beyond the end, there is none."""
    windows = [(0.0, 2.0), (2.0, 4.0)]

    def shown(*spans, windows=windows):
        clip = Clip("a", "a.mp4", "What?", "", spans=spans)
        options = dict(controls=(), localise=None, batch_size=1, max_new=1)
        predictor = LookPredictor(None, None, [clip], ConfigDict(), TwoLooks(), **options)
        best = np.arange(len(windows), 0.0, -1.0)
        predictor.scans = {"a": scans.Scan(windows, best, [], [0], best[:1])}
        return [predictor.part(clip, control) for control in ("none", "wrong", "right")], predictor.found()

    assert shown((2.5, 3.0)) == ([windows[0], windows[0], windows[1]], {"a": False})
    assert shown((0.5, 0.5)) == ([windows[0], windows[1], windows[0]], {"a": True})
    assert shown((1.0, 3.5)) == ([windows[0], None, windows[1]], {"a": True})
    assert shown((5.0, 6.0)) == ([windows[0], windows[0], None], {"a": False})
    assert shown((0.5, 1.0), windows=windows[:1]) == ([windows[0], None, windows[0]], {"a": True})
    check_looks([Clip("a", "a.mp4", "What?", "", start=1.0)])
    for media in ("", "a.jpg"):
        with pytest.raises(UserError, match="clip b is not about one video"):
            check_looks([Clip("a", "a.mp4", "What?", ""), Clip("b", media, "What?", "")])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="in one process"):
        check_looks([])


def test_a_run_whose_held_out_clips_need_more_tokens_is_named(tmp_path):
    """Before it trains: its evaluation at the end would have no row, and its looks may not change then."""
    path = str(write(tmp_path / "a.mp4", greys(80, (56, 56)), rate=8))
    write_clips(tmp_path / "heldout.jsonl", [Clip("a", path, "What?", "It spins.")])
    config = base.get_config()
    config.data.heldout, config.data.cache = str(tmp_path / "heldout.jsonl"), str(tmp_path / "cache")
    config.looks.windows, config.looks.tokens = 2, 40
    check_scans(config, tmp_path, 28)
    config.looks.tokens = 39
    with pytest.raises(UserError, match="two looks within 39 visual tokens"):
        check_scans(config, tmp_path, 28)
    config.looks.windows = 0
    check_scans(config, tmp_path, 28)


def test_a_part_of_a_file_is_scanned(tmp_path):
    """Only the part, whose windows and frames are those of the file; a part that is none is a fault."""
    path = str(write(tmp_path / "a.mp4", greys(80, (56, 56)), rate=8))
    clips = [Clip("a", path, "What?", "", start=2.0, end=6.0), Clip("b", path, "What?", "", start=20.0)]
    model = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(factor=28)))
    options = dict(localise=scans.motion_scores, max_side=4096)
    found, fault = scans.scans_of(model, None, clips, TwoLooks(tokens=512), Sampling(4), **options)
    assert found.windows == [(2.0, 4.0), (4.0, 6.0)]
    times = np.concatenate([video.times for video in found.videos])
    np.testing.assert_array_equal(times, np.arange(16, 48) / 8)
    assert str(fault) == f"{path}: the span 20 to 10 s is not inside the clip of 10 s"


def test_a_page_shows_the_clips_that_were_scanned(tmp_path):
    """A video that could not be used may count as a wrong answer, and has no scan; and of a first control
    without any row there are no samples."""
    path = str(write(tmp_path / "a.mp4", greys(40, (56, 56)), rate=8))
    clips = [Clip("a", path, "What?", ""), Clip("b", "missing.mp4", "What?", "")]
    scan = dict(edges=[0.0, 2.5, 5.0], scores=[1.0, 0.0], again=[0], again_scores=[1.0])
    rows = [dict(id=clip.id, control="blind", values={"rougeL": 0.0}) for clip in clips]
    counts = {"key": {"rows": 0}, "blind": {"rows": 2}}
    results = {"controls": counts, "rows": rows, "looks": {"scans": {"a": scan}}}
    said = [Prediction("a", "blind", False, "It spins."), Prediction("b", "blind", False, fault="missing")]
    data = ConfigDict(dict(frames=4, fps=0.0, min_pixels=784, max_pixels=3136, max_side=4096))
    (looked,) = looked_samples(results, clips, said, TwoLooks(tokens=96), data, 28)
    assert looked.clip.id == "a" and looked.answers == [("blind", "It spins.", 0.0)]
    write_looks_page(tmp_path / "scans.html", "about", [])


def test_the_window_that_an_answer_names_is_the_nearest(monkeypatch):
    """The model is asked once about all frames; the nearest window to the middle of a span is best, and an
    answer that names none leaves the middle window."""
    asked = []

    def said(text):
        def answers(model, text_, clip, videos, *, max_new):
            asked.append((clip.question, len(videos), videos[0].times.tolist()))
            return [text]

        return answers

    windows = [Video(np.zeros((4, 28, 28, 3), np.uint8), 4.0 * n + np.arange(4), 1.0) for n in range(5)]
    clip = Clip("a", "a.mp4", "What?", "")
    for answer, best in (
        ("<glue>[(8.5, 9.5)]</glue>", 2),
        ("Between 1 and 2 <glue>[(18.9, 19.0), (40, 50)]</glue>", 4),
        ("From 2.00 to 2.50 seconds.", 0),
    ):
        monkeypatch.setattr(scans, "answers_about", said(answer))
        scores = scans.glue_scores(None, None, clip, windows)
        assert int(np.argmax(scores)) == best
    np.testing.assert_allclose(scores, [-0.25, -3.75, -7.75, -11.75, -15.75])  # of the middles 2, 6, 10 ...
    assert asked[0] == ("What? When is it in the video?", 1, list(range(20)))
    monkeypatch.setattr(scans, "answers_about", said("It spins."))
    assert np.isnan(scans.glue_scores(None, None, clip, windows)).all()
    parts = [(4.0 * n, 4.0 * n + 4) for n in range(5)]
    monkeypatch.setattr(scans, "read_scan", lambda *_: (parts, windows))
    model = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(factor=28)))
    looks, options = TwoLooks(again=1), dict(localise=scans.glue_scores, max_side=4096)
    (scan,) = scans.scans_of(model, None, [clip], looks, Sampling(4), **options)
    assert not scan.is_named and scan.best == 2


def test_the_contrast_finds_the_window_whose_states_are_nearest_to_its_answer(run, file):
    """By hand, a window at a time: the best cosine of a slot's mean state, after the layer that the contrast
    reads, and the mean embedding of a keyword, each through its head."""
    loaded = load(run)
    model, text, path = loaded.model, loaded.text, str(file.parent / "heldout/000/000002.mp4")
    config = ConfigDict(run_config.read(run))
    heads = init_heads(config, model.config.decoder.hidden, jax.random.key(0))
    sampling = Sampling(4, min_pixels=28 * 28, max_pixels=56 * 56)
    _, videos = read_scan(path, TwoLooks(tokens=96, again=2), sampling, factor=28, max_side=4096)
    clip = Clip("a", path, "What?", "")
    answers = scans.answers_about(model, text, clip, videos, max_new=scans.LONGEST_ANSWER)
    words = {answer: answer.split()[:2] for answer in answers}
    words[answers[0]] = []
    scores = keyword_localiser(heads, config, words.get)(model, text, clip, videos)

    def mlp(side, x):
        for number in range(2):
            kernel, bias = (np.asarray(heads[f"heads.{side}.{number}.{part}"]) for part in ("kernel", "bias"))
            x = x @ kernel + bias
            if number == 0:
                x = np.asarray(jax.nn.gelu(x))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    prompt, table = text.prompt(clip), np.asarray(model.decoder.embed)
    layer = max(1, round(config.contrast.layer * model.config.decoder.layers))
    for video, answer, score in zip(videos, answers, scores, strict=True):
        row = single_prompt(prompt, [video], model.config)[1]
        tap = model.hidden(model.encode(row.video), row.text, row.text.tokens[:, :1], tap=layer).tap[0]
        slots = [np.asarray(tap)[row.text.slot[0] == s].mean(axis=0) for s in range(8)]
        expected = -1.0
        for word in words[answer]:
            embedded = table[text.keyword(word, answer)[1]].mean(axis=0)
            expected = max(expected, float((mlp("visual", np.array(slots)) @ mlp("text", embedded)).max()))
        assert score == pytest.approx(expected, abs=1e-4)  # cosines of float32 states
    assert scores.max() > -1


def test_a_model_without_a_head_has_no_contrast(run, tmp_path):
    heads = checkpoint.load_heads(run)
    np.testing.assert_array_equal(heads.pop("heads.visual.0.kernel"), np.ones((4, 4)))
    assert not heads
    with pytest.raises(UserError, match="no contrastive head in .*folder"):
        localiser_of("contrast", tmp_path / "folder")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--tokens=96"], "give --looks=2 too"),
        (["--localise=motion"], "--localise: give --looks=2 too"),
        (["--looks=2", "--frames=3"], "--frames is of one look"),
        (["--looks=2", "--tokens=10"], "10 visual tokens"),
        (["--page=a.html"], "give --looks=2 too"),
    ],
)
def test_flags_that_do_not_fit_are_named(run, file, flags, said):
    video = file.parent / "heldout/000/000000.mp4"
    status, _, err = call(predict.main, f"--model={run}", f"--video={video}", "--prompt=What?", *flags)
    assert status == 2 and said in err


def test_flags_of_one_look_are_none_of_two_in_evaluations():
    """Which read frames and pixels by flags of their own."""
    asked = ["--model=folder", "--benchmark=clips", "--looks=2", "--max_pixels=784"]
    status, _, err = call(evaluate.main, *asked, **ALONE)
    assert status == 2 and "--max_pixels is of one look: with --looks=2 give some of --tokens" in err
