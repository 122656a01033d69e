"""``load``, ``ask`` and the command ``predict``: they answer about the frames that they report."""

import dataclasses
import json
import shutil
import subprocess
import sys

import av
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests import tiny
from tests.commands.call import call
from vpjax.data.collate import coarse, collate_prompts, single_prompt
from vpjax.data.packing import Sizes
from vpjax.data.rows import prompt_row
from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.data.units import choose_capacity, grid_of
from vpjax.data.video import Sampling, Video, read_frames, read_image
from vpjax.models.generate import generate
from vpjax.models.vlm import leaves
from vpjax.predict import ask, load, main
from vpjax.training import checkpoint, run_config
from vpjax.training.state import State
from vpjax.types import UserError

pytestmark = pytest.mark.slow
PROMPT = "What happens?"
FPS, FRAMES = 8, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a model that answers differently about each video."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer([PROMPT, "It spins and then it vanishes."] * 3, folder, 300)
    text = Text.load(folder)
    raw = tiny.MODELS["tied"] | dict(image_token_id=text.image_pad, video_token_id=text.video_pad)
    raw["text_config"] = raw["text_config"] | dict(vocab_size=300)
    raw["vision_config"] = raw["vision_config"] | dict(tokens_per_second=4)
    return tiny.write_checkpoint(folder, raw)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for _ in range(FRAMES):
            frame = rng.integers(0, 256, (56, 84, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def expected(loaded, media, video, **options):
    """The completions of one prompt, without ``ask``, and without padding."""
    model, text = loaded.model, loaded.text
    vision = model.config.vision
    capacity = choose_capacity([] if video is None else [grid_of(video.frames.shape[:3], vision)], vision)
    row = prompt_row(
        text.chat(PROMPT, (media,) if media else ()), [video] if video else [], model.config, capacity
    )
    sizes = Sizes(len(row.prompt.tokens), units=len(row.video.window), bins=len(row.video.bins))
    batch = collate_prompts([row], sizes, capacity, model.config)
    key = jax.random.key(options.pop("seed", 0))
    out = generate(model, batch, key, max_new=6, eos=text.stops, **options)
    return jax.tree.map(lambda x: np.asarray(x)[0], out), text


def test_json_is_the_model_on_the_reported_frames(loaded, folder, video):
    """The command itself: nothing but the object on stdout, whatever libraries print."""
    flags = f"--model {folder} --video {video} --frames 5 --max_new_tokens 6 --json --prompt".split()
    command = [sys.executable, "-m", "vpjax.predict", *flags, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    # Five frames of nine, those on screen as each fifth begins; the last once more, for a slot holds two.
    np.testing.assert_allclose(got["frame_times"], np.array([0, 1, 3, 5, 7, 7]) / FPS, atol=1e-6)
    assert got["grid"] == [3, 4, 6]
    out, text = expected(loaded, "video", read_frames(video, Sampling(frames=5)))
    ids = out.tokens[0][out.mask[0]]
    assert got["token_ids"] == ids.tolist() and got["text"] == text.decode(ids)
    np.testing.assert_allclose(got["logprobs"], out.logprobs[0][out.mask[0]], atol=1e-5)
    assert got["cut"] == (ids[-1] not in text.stops)
    assert set(got["timings"]) == {"load", "video", "compile", "generate"}


def test_samples(loaded, video):
    sampling = dict(temperature=2.0, top_k=50, seed=7)
    answer = ask(loaded, PROMPT, video, fps=4.0, num_samples=3, max_new_tokens=6, **sampling)
    np.testing.assert_allclose(answer.frame_times, np.array([0, 2, 4, 6]) / FPS, atol=1e-6)
    out, text = expected(loaded, "video", read_frames(video, Sampling(fps=4.0)), groups=(3,), **sampling)
    for sample, ids, mask in zip(answer.samples, out.tokens, out.mask, strict=True):
        assert sample.token_ids == ids[mask].tolist() and len(sample.logprobs) == mask.sum()
    assert len({sample.text for sample in answer.samples}) > 1


def test_without_a_video_and_with_an_image(loaded, tmp_path):
    text_only = ask(loaded, PROMPT, max_new_tokens=6)
    assert (text_only.frame_times, text_only.grid) == ([], None)
    out, _ = expected(loaded, None, None)
    assert text_only.samples[0].token_ids == out.tokens[0][out.mask[0]].tolist()
    pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = ask(loaded, PROMPT, tmp_path / "image.png", max_pixels=28 * 56, max_new_tokens=6)
    assert (image.frame_times, image.grid) == ([0, 0], (1, 2, 4))


def test_several_files(loaded, folder, video, tmp_path):
    """They share the budget, are shown where the prompt says, and are reported one by one."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    files = [tmp_path / "image.png", video]
    prompt = "What <video> happens? <video>"
    flags = f"--model {folder} --video {files[0]} --video {files[1]} --frames 4 --max_new_tokens 6 --json"
    code, out, _ = call(main, *flags.split(), prompt=prompt)
    got = json.loads(out)
    assert code == 0 and got["grid"] == [[1, 4, 8], [2, 4, 6]]
    np.testing.assert_allclose(got["frame_times"][1], np.array([0, 2, 4, 6]) / FPS, atol=1e-6)
    assert got["frame_times"][0] == [0, 0]
    model, text = loaded.model, loaded.text
    shown = [read_image(files[0]), read_frames(video, Sampling(frames=4))]
    _, prompts = single_prompt(text.chat(prompt, ("image", "video")), shown, model.config)
    out = generate(model, prompts, jax.random.key(0), max_new=6, eos=text.stops)
    assert got["token_ids"] == np.asarray(out.tokens)[0, 0][np.asarray(out.mask)[0, 0]].tolist()
    data = ConfigDict(loaded.data_config.to_dict() | dict(max_tokens=len(text.chat(PROMPT)) - 1 + 14))
    tight = dataclasses.replace(loaded, data_config=data)
    answer = ask(tight, PROMPT, files, frames=4, min_pixels=28 * 28, max_new_tokens=2)
    assert sum(np.prod(grid) // 4 for grid in answer.grid) <= 14
    with pytest.raises(UserError, match="2 places for media, which are 1"):
        ask(loaded, prompt, video)


def test_plain_output_is_the_answers(loaded, folder, video):
    options = dict(max_new_tokens=6, model=folder, video=video, prompt=PROMPT)
    code, out, err = call(main, frames=5, **options)
    completions, text = expected(loaded, "video", read_frames(video, Sampling(frames=5)))
    assert (code, out) == (0, text.decode(completions.tokens[0][completions.mask[0]]) + "\n")
    assert completions.mask.all() and "--max_new_tokens=6 cut 1 of 1" in err
    _, out, _ = call(main, "--json", fps=2.0, num_samples=2, **options)
    assert all(len(json.loads(out)[name]) == 2 for name in ("text", "token_ids", "logprobs", "cut"))


def test_a_work_directory_sees_as_it_was_trained(loaded, folder, video, tmp_path):
    shutil.copytree(folder, tmp_path / checkpoint.MODEL, ignore=shutil.ignore_patterns("*.safetensors"))
    data = dict(frames=4, fps=0.0, min_pixels=28 * 28, max_pixels=56 * 56)
    config = dict(data=data)
    run_config.write(tmp_path, ConfigDict(config))
    manager = checkpoint.Manager(tmp_path, keep=1)
    zero = jax.numpy.int32(0)
    manager.save(3, State(zero, leaves(loaded.model), {}, {"count": zero}, zero), config)
    manager.wait()
    manager.close()
    answer = ask(load(tmp_path), PROMPT, video, max_new_tokens=6)
    assert len(answer.frame_times) == 4 and answer.grid == (2, 2, 4)
    out, _ = expected(loaded, "video", read_frames(video, Sampling(frames=4, max_pixels=56 * 56)))
    assert answer.samples[0].token_ids == out.tokens[0][out.mask[0]].tolist()


def test_videos_of_many_lengths_share_few_shapes(loaded):
    """Every shape is a program that is compiled."""
    model, text = loaded.model, loaded.text
    shapes, longest = set(), 0
    for slots in range(1, 65):
        video = Video(np.zeros((2 * slots, 56, 84, 3), np.uint8), np.arange(2 * slots) / 8, 1 / 8)
        for question in (PROMPT, PROMPT * 3):
            row, prompts = single_prompt(text.chat(question), [video], model.config, stamps=text.stamps)
            tokens, units, bins = len(row.prompt.tokens), len(row.video.window), len(row.video.bins)
            assert tokens <= prompts.text.tokens.shape[1] < 1.25 * tokens + 16
            assert max(units, bins) <= prompts.video.count < 1.25 * max(units, bins) + 32
            assert prompts.video.bins.shape[1] >= bins and (prompts.text.segment == 1).sum() == tokens
            shapes.add(tuple((x.shape, x.dtype) for x in jax.tree.leaves(prompts)))
            longest = max(longest, tokens)
    assert longest > 400 and len(shapes) <= 32  # of 128 prompts
    assert len({coarse(count) for count in range(129, 1025)}) == 3 * 4


def test_other_frames_keep_to_the_budget(loaded, video):
    """The clip has 9 frames, so at 8 a second it has 4 slots of 2 x 3 units, and 5 if all are asked for.
    16 units are 4 slots of the least frames."""
    data = ConfigDict(loaded.data_config.to_dict() | dict(total_pixels=16 * 28 * 28))
    tight = dataclasses.replace(loaded, data_config=data)
    for slots, options in ((4, dict(fps=8.0)), (5, dict(frames=9))):
        assert ask(loaded, PROMPT, video, max_new_tokens=2, **options).grid == (slots, 4, 6)
        assert ask(tight, PROMPT, video, max_new_tokens=2, **options).grid == (4, 4, 4)
        assert ask(tight, PROMPT, video, max_new_tokens=2, total_pixels=0, **options).grid == (slots, 4, 6)
    prompt = len(loaded.text.chat(PROMPT)) - 1
    data = ConfigDict(loaded.data_config.to_dict() | dict(max_tokens=prompt + 16))
    tight = dataclasses.replace(loaded, data_config=data)
    assert ask(tight, PROMPT, video, max_new_tokens=2, fps=8.0).grid == (4, 4, 4)


def other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("<|video_pad|>", "<|other|>"))


@pytest.mark.parametrize(
    "damage, named",
    [
        (other_model, ["config.json", "llama"]),
        (cut_weights, ["model.safetensors", "cannot be read"]),
        (other_tokenizer, ["<|video_pad|>"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json", "No such file"]),
    ],
    ids=["architecture", "weights", "tokenizer", "empty"],
)
def test_bad_models_are_named(folder, tmp_path, damage, named):
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken)
    with pytest.raises(UserError) as error:
        load(broken)
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name in (str(broken), *named)), error.value


def test_answers_of_no_numbers_are_an_error(loaded):
    """As of damaged weights, or where float16 overflows. Their tokens would be the last of the vocabulary."""
    model = jax.tree.map(lambda x: x.at[..., 0].set(np.nan), loaded.model)
    with pytest.raises(UserError, match="the model's probabilities are no numbers"):
        ask(dataclasses.replace(loaded, model=model), PROMPT, max_new_tokens=2)


def test_bad_requests_are_named(folder, video, tmp_path):
    """One line on stderr, exit code 2."""
    (tmp_path / "text.mp4").write_text("not a video")
    for options, named in (
        (dict(prompt=PROMPT), ["--model"]),
        (dict(model=folder), ["--prompt"]),
        (dict(model=folder, prompt=PROMPT, video=tmp_path / "none.mp4"), ["none.mp4", "no such file"]),
        (dict(model=folder, prompt=PROMPT, video=tmp_path / "text.mp4"), ["text.mp4", "no video"]),
        (dict(model=folder, prompt=PROMPT, video=video, max_side=50), ["clip.mp4", "max_side"]),
        (dict(model=folder, prompt=PROMPT, video=video, frames=2, fps=1.0), ["frames", "fps"]),
        (dict(model=folder, prompt="<|video_pad|>"), ["<|video_pad|>"]),
        (dict(model=folder, prompt=PROMPT, max_new_tokens=0), ["--max_new_tokens", "0 is below 1"]),
        (dict(model=folder, prompt=PROMPT, top_p=90), ["--top_p", "90 is above 1"]),
    ):
        code, out, err = call(main, **options)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")
        assert all(name in err for name in named), err
