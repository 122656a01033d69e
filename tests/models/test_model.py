"""Laws of the model that need no reference: the layout of units changes nothing, V~ is a gather, and no token
sees later ones or another clip.

Errors are in units of the spread. Sums in another order change these wide models and their gradients by up to
4e-5; SAME is 1e-4. What is masked is exactly 0: results are equal to the bit where only masked values differ.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import batches, joint, tiny
from tests.batches import Clip
from tests.models.cases import DIFFERENT, clips_of, encode, error, packed, shape
from vpjax.data.collate import collate
from vpjax.data.packing import Sizes
from vpjax.data.rows import prompt_row, seen_through
from vpjax.data.units import choose_capacity
from vpjax.data.video import Video
from vpjax.hlo import inner_jaxprs
from vpjax.models import vision
from vpjax.models.attention import Layout
from vpjax.models.gather import look_up, take
from vpjax.models.hf import load_pretrained
from vpjax.models.linear import Affine
from vpjax.models.rope import rotate, rotate_by_product
from vpjax.models.vlm import Degraded, last_token, leaves, next_position

pytestmark = pytest.mark.slow

SAME = 1e-4
GRIDS = ((3, 5), (1, 1), (5, 2), (4, 4), (2, 3))


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def model(request, checkpoint):
    return load_pretrained(checkpoint(request.param))


def videos(family):
    return batches.contents([Clip(slots=1 + n % 3, grid=grid) for n, grid in enumerate(GRIDS)], family)


def by_clip(features, places):
    """The features of each clip's units in order: of each part, of each clip, [units, D]."""
    parts = [np.asarray(part) for part in jax.tree.leaves(features)]
    return [[part[r, at] for r, row in enumerate(places) for at in row] for part in parts]


def features_and_gradient(model, units, places):
    """``by_clip``, and the gradient by path of a sum of all features, each with a weight of its own."""
    width = model.config.vision.out_hidden
    rng, weight_RUD = np.random.default_rng(0), np.zeros((*units.window.shape, width), np.float32)
    for r, row in enumerate(places):
        for at in row:
            weight_RUD[r, at] = rng.standard_normal((len(at), width))

    def total(model):
        features = model.encode(units)
        return sum((part * weight_RUD).sum() for part in jax.tree.leaves(features)), features

    gradient, features = jax.jit(jax.grad(total, has_aux=True))(model)
    gradient = {path: x for path, x in leaves(gradient).items() if path.startswith("vision.")}
    return by_clip(features, places), gradient


def assert_same(found, expected):
    features, gradient = found
    for ours, theirs in zip(features, expected[0], strict=True):
        assert max(map(error, ours, theirs)) < SAME
    errors = {path: error(x, expected[1][path]) for path, x in gradient.items()}
    assert {path: e for path, e in errors.items() if not e < SAME} == {}


@functools.cache
def one_row(model_config):
    """The units of the videos in one row, and their places."""
    return batches.units([videos(model_config.family)], model_config.vision)


@pytest.fixture(scope="module")
def expected(model):
    """What they give."""
    return features_and_gradient(model, *one_row(model.config))


def test_the_layout_changes_nothing(model, expected):
    """Neither features nor gradients: blocks and bins of other sizes, windows in another order, other
    neighbours and padding."""
    clips, config = videos(model.config.family), model.config.vision
    largest = 4 if config.window else 16  # units of a window
    bins = (16, 41) if config.window else (0, 0)
    for rows, layout in (
        ([clips], dict(block=largest, bin=bins[0])),
        ([clips[:2], clips[2:4], clips[4:]], dict(block=3 * largest + 2, bin=bins[1], seed=1)),
    ):
        assert_same(features_and_gradient(model, *batches.units(rows, config, **layout)), expected)


def test_chunks_and_the_tiles_of_a_tpu_change_nothing(model, expected, monkeypatch):
    """Parts of a row one after another, pairs of channels turned by a product, and a padded MLP."""
    units, places = one_row(model.config)
    monkeypatch.setattr(vision, "CHUNK", 20)
    monkeypatch.setattr(vision, "platform", lambda: "tpu")
    assert model.config.vision.intermediate % vision.TILE
    assert units.count > 60 and units.count % 20 and 20 % units.block
    assert_same(features_and_gradient(model, units, places), expected)


@pytest.mark.parametrize("width", [72, 80, 128])
def test_turning_by_a_product_is_turning(width):
    """To the bit: the product only moves numbers."""
    rng = np.random.default_rng(0)
    for dtype in (jnp.float32, jnp.bfloat16):
        x, angles = jnp.asarray(rng.normal(size=(5, 3, width)), dtype), rng.normal(size=(5, width // 2))
        with jax.disable_jit():
            np.testing.assert_array_equal(rotate_by_product(x, angles), rotate(x, angles))


def test_chunks_hold_little_at_once(monkeypatch):
    """No array of a layer's width exists for all patches of a long row: 512 units of one chunk each."""
    config = dataclasses.replace(
        joint.MODEL, vision=dataclasses.replace(joint.MODEL.vision, intermediate=4096)
    )
    (clip,) = batches.contents([Clip(slots=32, grid=(4, 4))])
    units, _ = batches.units([[clip]], config.vision, block=4, bin=16)

    def largest(size):
        monkeypatch.setattr(vision, "CHUNK", size)
        total = jax.grad(lambda model: model.encode(units).tokens.sum())
        return joint.largest(jax.make_jaxpr(total)(joint.model(config)).jaxpr)

    assert units.count == 512
    # Else the largest are the pixels; weights of the tower are smaller.
    assert largest(512) >= 4 * 512 * 4096 > 3 * largest(32)


@pytest.fixture
def clips(model):
    """Clips of different sizes that each have a V~ but the last."""
    sources = [1, 1], [0, 2, 2], [0]
    return [
        dataclasses.replace(clip, source=np.array(source, np.int32))
        for clip, source in zip(clips_of(DIFFERENT, model.config.family), sources, strict=True)
    ]


def noise(clip):
    """A clip of the same size that shows and says something else."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, clip.frames.shape, np.uint8)
    prompt = np.where(clip.shows < 0, rng.integers(0, tiny.TEXT_IDS, len(clip.prompt)), clip.prompt)
    return dataclasses.replace(clip, frames=frames, prompt=prompt.astype(np.int32), answer=clip.answer[::-1])


@jax.jit
def states(model, batch):
    """The hidden states of packed rows, the states after a layer of V~, and the features."""
    features = model.encode(batch.video)
    degraded = Degraded(batch.degraded, batch.degraded_target, batch.shared)
    hidden = model.hidden(features, batch.text, batch.target, degraded=degraded, tap=2)
    return hidden, features


def of_clips(batch, results, count):
    """What ``states`` computed for each of the clips, by number: target states, and tokens of V and V~."""
    hidden, _ = jax.tree.map(np.asarray, results)
    answers = np.zeros_like(batch.target)
    for r, target in enumerate(batch.target):
        answers[r] = np.where(target < 0, 0, batch.text.segment[r, target])
    parts = [(hidden.target, answers), (hidden.tap, batch.text.segment)]
    parts.append((hidden.degraded_tap, batch.degraded.segment))
    found = {}
    for r, row in enumerate(batch.clip):
        for c, number in enumerate(row):
            found[int(number)] = [x[r][segment[r] == c + 1] for x, segment in parts]
    return [found[number] for number in range(count)]


def test_neighbours_change_nothing(model, clips):
    """To the bit, when they show and say something else; and another place changes sums only."""
    config = model.config.vision

    def results(clips, rows):
        batch = batches.packed([[clips[i] for i in row] for row in rows], config, **shape(config))
        return of_clips(batch, states(model, batch), 3)

    expected = results(clips, ((0,), (1, 2)))
    for kept in (1, 2):
        others = [clip if n == kept else noise(clip) for n, clip in enumerate(clips)]
        found = results(others, ((0,), (1, 2)))
        jax.tree.map(np.testing.assert_array_equal, found[kept], expected[kept])
        assert error(found[3 - kept][0], expected[3 - kept][0]) > 0.1
    for rows in (((2, 0), (1,)), ((1,), (0, 2)), ((0, 1, 2), (0,))):
        for ours, theirs in zip(results(clips, rows), expected, strict=True):
            assert max(error(x, y) for x, y in zip(ours, theirs, strict=True) if len(y)) < SAME, rows


def test_no_token_sees_later_ones_or_another_clip(model, clips):
    """The gradient of a token's state is exactly 0 at every input that it must not see, and at no other."""
    batch = packed(clips, model.config.vision)
    features = encode(model, batch.video)
    row, token = 1, int(batch.target[1][7])  # the third token of the second clip's answer
    assert batch.text.segment[row, token] == 2 and batch.text.segment[row, token + 1] == 2

    def state(features, x):
        """The state that predicts the token after ``token``, of changed embeddings."""
        h, deep = model.embed(features, batch.text)
        layout = Layout(x.shape[1], packed=True)
        h = model.decoder.run(h + x, batch.text.positions, layout, batch.text.segment, deep=deep)
        return h[row, token].sum()

    x = jnp.zeros(model.embed(features, batch.text)[0].shape)
    by_feature, by_token = jax.jit(jax.grad(state, argnums=(0, 1)))(features, x)
    seen = (batch.text.segment == 2) & (np.arange(batch.text.tokens.shape[1]) <= token)
    seen[0] = False
    np.testing.assert_array_equal(np.any(np.asarray(by_token) != 0, axis=-1), seen)
    shown = np.zeros(batch.video.window.shape, bool)
    shown[row, batch.text.shows[seen & (batch.text.shows >= 0)]] = True
    for part in jax.tree.leaves(by_feature):
        np.testing.assert_array_equal(np.any(np.asarray(part) != 0, axis=-1), shown)


def test_the_degraded_video_is_another_list_of_units(model):
    """Features(V) at the units that V~ shows are those of a video whose frames really are replaced; so for
    every control."""
    rng, config = np.random.default_rng(0), model.config.vision
    clips = videos(model.config.family)
    changed = []
    for clip in clips:
        source = rng.integers(0, len(clip.source), len(clip.source)).astype(np.int32)
        changed.append(dataclasses.replace(clip, source=source))
    filmed = [clip.filmed(clip.source) for clip in changed]
    assert sum(not np.array_equal(a.frames, b.frames) for a, b in zip(clips, filmed, strict=True)) >= 2
    prompts, reference = batches.prompts(changed, config), batches.prompts(filmed, config, seed=1)
    features, expected = encode(model, prompts.video), encode(model, reference.video)
    own = jax.tree.leaves(features)
    assert len(own) == 1 + len(model.config.vision.deepstack)
    for part, replaced in zip(own, jax.tree.leaves(expected), strict=True):
        shown = take(part, prompts.shows_degraded)
        assert error(shown, take(replaced, reference.text.shows)) < SAME
        assert error(take(part, prompts.text.shows), shown) > 1
    np.testing.assert_array_equal(prompts.has_degraded, [clip.has_degraded for clip in changed])


def test_the_model_sees_the_degraded_video_through_its_features(model, clips):
    """The states of a strip that names the units of V~, to its end, are those of replaced frames."""
    batch = packed(clips, model.config.vision)
    reference = packed([clip.filmed(clip.source) for clip in clips], model.config.vision)
    shows = batch.text.shows.copy()
    for row in (0, 1):
        visual = (batch.text.shows[row] >= 0) & (batch.text.segment[row] == 1)
        own = visual & (np.cumsum(batch.shared[row] == 0) > 0)
        shows[row, own] = batch.degraded.shows[row][batch.degraded.shows[row] >= 0]
    text = dataclasses.replace(batch.text, shows=shows)
    found = states(model, dataclasses.replace(batch, text=text))
    unchanged = states(model, batch)
    for number, (ours, theirs) in enumerate(
        zip(of_clips(batch, found, 3), of_clips(reference, states(model, reference), 3), strict=True)
    ):
        assert max(map(error, ours[:2], theirs[:2])) < SAME
        of_V = of_clips(batch, unchanged, 3)[number]
        assert (error(of_V[0], ours[0]) > 0.1) == (number < 2)
    # What SFT computes of V~ is a part of that: from its first own token to its last visual one.
    degraded = of_clips(batch, unchanged, 3)
    for row, (ours, theirs) in enumerate(zip(degraded[:2], of_clips(batch, found, 3), strict=False)):
        first = (batch.shared[row] > 0).sum()
        assert error(ours[2], theirs[1][first : first + len(ours[2])]) < SAME


def test_completions_are_answers(model, clips):
    """The states that predict each of G completions are those of the clip with that answer, packed."""
    config, rng = model.config.vision, np.random.default_rng(0)
    tokens_BGC = rng.integers(0, tiny.TEXT_IDS, (3, 2, 5), dtype=np.int32)
    prompts = batches.prompts(clips, config, **shape(config))
    got = jax.jit(lambda model: model.predicting(model.encode(prompts.video), prompts, tokens_BGC))(model)
    for g in range(2):
        answered = [dataclasses.replace(clip, answer=tokens_BGC[b, g]) for b, clip in enumerate(clips)]
        batch = packed(answered, config)
        for b, (target, _, _) in enumerate(of_clips(batch, states(model, batch), 3)):
            assert error(got[b, g], target) < SAME


def test_a_batch_of_the_data_pipeline_is_that_by_hand(model, clips):
    """``vpjax.data`` lays out the same units and tokens in its own way."""
    config = model.config
    clips = [*clips, batches.contents([Clip()], config.family)[0]]
    grids = [(len(clip.source), *clip.grid) for clip in clips]
    capacity = choose_capacity(grids, config.vision)
    rows = []
    for number, (clip, seconds) in enumerate(zip(clips, (0.5, 1.0, 1.0, 1.0), strict=True)):
        video = None
        if len(clip.frames):
            video = Video(clip.frames, np.arange(len(clip.frames)) * seconds / 2, seconds / 2)
        row = prompt_row(clip.prompt, [video] if video else [], config, capacity)
        degraded = seen_through(row.prompt.shows, row.prompt.slot, clip.source)
        rows.append(dataclasses.replace(row, shows_degraded=degraded, answer=clip.answer, clip=number))
    units, bins = max(20 * capacity.block, 60), 6 * capacity.bin
    sizes = Sizes(tokens=140, units=units, bins=bins, degraded=90, targets=20, slots=6, clips=3)
    batch = collate([[rows[2], rows[3], rows[1]], [rows[0]]], sizes, capacity, config)
    by_hand = packed(clips, config.vision)
    expected = of_clips(by_hand, states(model, by_hand), 3)
    for ours, theirs in zip(of_clips(batch, states(model, batch), 3), expected, strict=True):
        assert max(error(x, y) for x, y in zip(ours, theirs, strict=True) if len(y)) < SAME


def test_a_gather_with_padding():
    x = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    index = np.array([[3, -1, 0, 3]])
    np.testing.assert_array_equal(take(x, index)[0], [x[0, 3], [0, 0, 0], x[0, 0], x[0, 3]])
    gradient = jax.grad(lambda x: (take(x, index) ** 2).sum())(x)
    np.testing.assert_array_equal(gradient[0], [2 * x[0, 0], [0] * 3, [0] * 3, 4 * x[0, 3]])


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for part in inner_jaxprs(eqn):
            yield from equations(part)


def test_sums_over_tokens_are_float32(model):
    """In bfloat16 a gradient that tokens add up to, of a bias or of a row of a table, would end growing where
    it is 256 times as large as that of one. No such sum is left (those of a scatter along a row are of tokens
    that show a unit), and one of each kind is right."""
    batch = packed(clips_of(DIFFERENT, model.config.family), model.config.vision)

    def loss(model):
        hidden = model.hidden(model.encode(batch.video), batch.text, batch.target)
        return hidden.target.astype(jnp.float32).sum()

    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    sums = []
    for eqn in equations(jax.make_jaxpr(jax.grad(loss))(narrow).jaxpr):
        name = eqn.primitive.name
        if name in ("reduce_sum", "scatter-add") and eqn.outvars[0].aval.dtype == jnp.bfloat16:
            out = eqn.outvars[0].aval
            if name == "scatter-add" or eqn.invars[0].aval.size > out.size:  # not over an axis of length 1
                sums.append((name, out.shape))
    rows = len(batch.clip)
    assert sums and all(name == "scatter-add" and shape[0] == rows for name, shape in sums)

    ones = jnp.ones((4096, 2), jnp.bfloat16)
    table = jax.grad(lambda table: (ones * look_up(table, np.zeros(4096, np.int32))).sum())(ones[:3])
    np.testing.assert_array_equal(table, np.float32([[4096] * 2, [0] * 2, [0] * 2]))
    layer = Affine(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda layer: layer(ones).sum())(layer)
    np.testing.assert_array_equal(gradient.bias[...], np.float32([4096] * 2))


def test_where_completions_begin(model):
    """After a prompt that ends with text or with its last visual token, and in a row of padding."""
    kinds = [Clip(slots=2), Clip(slots=1, grid=(2, 9), after=0), Clip(after=2)]
    clips = [*batches.contents(kinds, model.config.family), None]
    text = batches.prompts(clips, model.config.vision).text
    starts = [clip.all_positions[0, len(clip.prompt)] for clip in clips[:3]]
    assert next_position(text).tolist() == [*starts, 1]
    assert last_token(text).tolist() == [*(len(clip.prompt) - 1 for clip in clips[:3]), 0]
