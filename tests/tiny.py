"""Tiny checkpoints as ``transformers`` itself writes them, and batches laid out by hand.

Weights are drawn wide (std 1.5 / sqrt(fan-in)): at the default init, leaving out a whole mechanism changes
the logits by only 5e-3 of their spread, and a test against the reference would not see it.
torch is imported only when a function needs it, for it takes seconds.
"""

import copy
import dataclasses

import numpy as np

from vpjax.types import Batch

IMAGE, VIDEO, START, END = 120, 121, 122, 123
TEXT_IDS = 120  # below: ordinary tokens


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers. class_name: of its model. patch: pixels per side. mean, std: of its
    image processor. stamped: words precede each slot of a video, and START and END enclose its tokens."""

    class_name: str
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stamped: bool

    @property
    def model(self):
        """The class of the model."""
        import torch
        import transformers

        torch.set_num_threads(1)  # tiny matrices gain nothing from threads, which wait for each other
        return getattr(transformers, self.class_name)


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        14,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        stamped=False,
    ),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), stamped=True),
}


def config(family="qwen2_5_vl", *, vision, text, tied):
    """A ``config.json``."""
    own = dict(tokens_per_second=2) if family == "qwen2_5_vl" else {}
    sizes = dict(patch_size=FAMILIES[family].patch, out_hidden_size=text["hidden_size"])
    return dict(
        model_type=family,
        text_config=dict(vocab_size=128, bos_token_id=None, eos_token_id=119, **text),
        vision_config=sizes | own | vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
    )


def rope(theta, *sections):
    return dict(rope_type="default", rope_theta=theta, mrope_section=list(sections))


# The models differ in what an implementation could get wrong: odd and even depths, the places of blocks with
# full attention, window sizes, head widths, grouping, and eps large enough to matter; for Qwen3-VL, which
# layers feed which (the tower's last among them), a table of positions larger and smaller than a frame, and a
# head width that is not hidden_size / heads.
MODELS = {
    "tied": config(
        vision=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            window_size=56,
            fullatt_block_indexes=[1],
        ),
        text=dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e4, 2, 3, 3),
        ),
        tied=True,
    ),
    "one_kv": config(
        vision=dict(
            depth=4,
            hidden_size=40,
            intermediate_size=52,
            num_heads=2,
            window_size=84,
            fullatt_block_indexes=[0, 3],
        ),
        text=dict(
            hidden_size=48,
            intermediate_size=56,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=1,
            rms_norm_eps=0.1,
            rope_parameters=rope(1e6, 1, 2, 3),
        ),
        tied=False,
    ),
    "eight_kv": config(
        vision=dict(
            depth=1,
            hidden_size=48,
            intermediate_size=64,
            num_heads=3,
            window_size=112,
            fullatt_block_indexes=[],
        ),
        text=dict(
            hidden_size=64,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            rope_parameters=rope(1e5, 1, 1, 2),
        ),
        tied=False,
    ),
    "deep": config(
        "qwen3_vl",
        vision=dict(
            depth=4,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            num_position_embeddings=49,
            deepstack_visual_indexes=[0, 2],
        ),
        text=dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e4, 4, 2, 2),
        ),
        tied=True,
    ),
    "deep_throughout": config(
        "qwen3_vl",
        vision=dict(
            depth=3,
            hidden_size=48,
            intermediate_size=56,
            num_heads=3,
            num_position_embeddings=9,
            deepstack_visual_indexes=[0, 1, 2],
        ),
        text=dict(
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=12,
            rms_norm_eps=0.1,
            rope_parameters=rope(1e6, 2, 2, 2),
        ),
        tied=False,
    ),
}
# One of each family, for tests that do not depend on sizes.
ONE_OF_EACH = ("tied", "deep")


def torch_model(raw, seed=0):
    """The model of a ``config.json`` in torch, float32, with wide weights and norms around 1. Norms of
    queries and keys are around 2: otherwise attention is flat, and greedy answers repeat one token."""
    import torch
    from transformers import AutoConfig

    parsed = AutoConfig.for_model(**copy.deepcopy(raw))
    model = FAMILIES[raw["model_type"]].model(parsed).float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.tensor(rng.standard_normal(parameter.shape), dtype=torch.float32)
            if path.endswith(".bias"):
                fan_in = model.get_parameter(path.removesuffix("bias") + "weight")[0].numel()
                parameter.copy_(1.5 / fan_in**0.5 * noise)
            elif parameter.ndim == 1:
                around = 2 if path.endswith(("q_norm.weight", "k_norm.weight")) else 1
                parameter.copy_(around * (1 + 0.3 * noise))
            else:
                parameter.copy_(1.5 / parameter[0].numel() ** 0.5 * noise)
    return model


def reference(folder):
    """The torch model in ``folder``, float32."""
    import torch
    from transformers import AutoConfig

    kind = FAMILIES[AutoConfig.from_pretrained(folder).model_type].model
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def write_checkpoint(folder, raw, **options):
    """Write the model of a ``config.json`` by ``transformers``. options: of its ``save_pretrained``."""
    torch_model(raw).save_pretrained(folder, **options)
    return folder


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch. slots: temporal patches of its video, 1 for an image, 0 for text only.
    before, after: tokens of the prompt around it. seconds: the duration of one slot."""

    slots: int = 0
    image: bool = False
    before: int = 3
    after: int = 4
    seconds: float = 1.0


def lay_out(row, grid, family, tokens_per_second, rng):
    """The prompt i32[p] of a row and its positions i32[3, p]. grid: rows and columns of a slot's tokens. Text
    and visual tokens continue at the largest position so far + 1."""
    tokens, columns = [], []

    def add_text(ids):
        tokens.extend(ids)
        start = max(map(max, columns), default=-1) + 1
        columns.extend([start + i] * 3 for i in range(len(ids)))

    def add_slots(times):
        start = max(map(max, columns), default=-1) + 1
        places = [(start + t, start + y, start + x) for t in times for y, x in np.ndindex(*grid)]
        tokens.extend([IMAGE if row.image else VIDEO] * len(places))
        columns.extend(places)

    def words(count):
        return rng.integers(0, TEXT_IDS, count).tolist()

    add_text(words(row.before))
    if row.image:
        add_slots([0] * row.slots)
    elif not FAMILIES[family].stamped:
        add_slots([int(slot * row.seconds * tokens_per_second) for slot in range(row.slots)])
    else:
        for slot in range(row.slots):
            add_text([*words(1 + slot % 2), START])
            add_slots([0])
            add_text([END])
    add_text(words(row.after))
    return np.array(tokens, np.int32), np.array(columns, np.int32).reshape(-1, 3).T


def batch(
    rows, family="qwen2_5_vl", *, size=None, slots=None, prompt=None, suffix=5, tokens_per_second=2, seed=0
):
    """A Batch of random frames and tokens, its rows padded at the right to ``slots`` and ``prompt``. size: of
    a frame; None: 3 x 5 tokens of a slot. Time ids are the integer part of slot * seconds *
    tokens_per_second."""
    rng = np.random.default_rng(seed)
    unit = 2 * FAMILIES[family].patch
    size = size or (3 * unit, 5 * unit)
    grid = size[0] // unit, size[1] // unit
    slots = slots or max(row.slots for row in rows)
    laid = [lay_out(row, grid, family, tokens_per_second, rng) for row in rows]
    prompt = prompt or max(len(ids) for ids, _ in laid)
    tokens = rng.integers(0, TEXT_IDS, (len(rows), prompt + suffix), dtype=np.int32)
    positions = np.zeros((len(rows), 3, prompt + suffix), np.int32)
    visual = np.full((len(rows), slots * grid[0] * grid[1]), prompt, np.int32)
    for b, (ids, place) in enumerate(laid):
        at = np.flatnonzero((ids == IMAGE) | (ids == VIDEO))
        tokens[b, : len(ids)] = ids
        visual[b, : len(at)] = at
        positions[b, :, : len(ids)] = place
        positions[b, :, prompt:] = place.max() + 1 + np.arange(suffix)
    frames = rng.integers(0, 256, (len(rows), 2 * slots, *size, 3), dtype=np.uint8)
    for b, row in enumerate(rows):
        if row.image:
            frames[b, 1] = frames[b, 0]
    none = np.zeros((len(rows), 0), np.int32)
    return Batch(
        frames=frames,
        slot_valid=np.arange(slots) < np.array([[row.slots] for row in rows]),
        prompt=tokens[:, :prompt],
        prompt_valid=np.arange(prompt) < np.array([[len(ids)] for ids, _ in laid]),
        positions=positions,
        visual=visual,
        suffix=tokens[:, prompt:],
        target=np.ones((len(rows), suffix), bool),
        source=np.broadcast_to(np.arange(slots, dtype=np.int32), (len(rows), slots)),
        slots=np.zeros((len(rows), 0, slots), bool),
        keywords=none[:, :, None],
        lemma=none,
        clip=np.arange(len(rows), dtype=np.int32),
        video_end=int(visual[visual < prompt].max(initial=-1)) + 1,
    )


def patches(frames, family="qwen2_5_vl"):
    """uint8 frames [F,h,w,3] as the rows of ``pixel_values_videos``, patch by patch as the image processor of
    Qwen2-VL writes them: 2 x 2 patches of a merged token together, each (channel, frame, row, column)."""
    import torch

    kind = FAMILIES[family]
    p = kind.patch
    frames = (frames / 255.0 - np.array(kind.mean)) / np.array(kind.std)
    count, height, width, _ = frames.shape
    rows = [
        frames[2 * s : 2 * s + 2, p * y : p * y + p, p * x : p * x + p].transpose(3, 0, 1, 2).ravel()
        for s in range(count // 2)
        for top in range(0, height // p, 2)
        for left in range(0, width // p, 2)
        for y in (top, top + 1)
        for x in (left, left + 1)
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def reference_inputs(batch, family="qwen2_5_vl", *, left=True):
    """The arguments of the torch model for ``batch``, positions included: each row's prompt and suffix
    without a gap, padded at the left (so that the last C columns are the suffixes) or at the right."""
    import torch

    total = batch.prompt.shape[1] + batch.suffix.shape[1]
    ids, mask = np.zeros((len(batch.prompt), total), np.int64), np.zeros((len(batch.prompt), total), np.int64)
    positions = np.zeros((3, len(batch.prompt), total), np.int64)
    for b, valid in enumerate(batch.prompt_valid):
        valid = np.concatenate([valid, np.ones(batch.suffix.shape[1], bool)])
        at = slice(total - valid.sum(), None) if left else slice(valid.sum())
        ids[b, at] = np.concatenate([batch.prompt[b], batch.suffix[b]])[valid]
        positions[:, b, at] = batch.positions[b][:, valid]
        mask[b, at] = 1
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=positions)
    inputs["mm_token_type_ids"] = (ids == IMAGE) * 1 + (ids == VIDEO) * 2
    inputs = {name: torch.tensor(value) for name, value in inputs.items()}
    grid = [side // FAMILIES[family].patch for side in batch.frames.shape[2:4]]
    for token, pixels, grids in (
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, "pixel_values", "image_grid_thw"),
    ):
        rows = [b for b in range(len(ids)) if (ids[b] == token).any()]
        if rows:
            counts = [int(batch.slot_valid[b].sum()) for b in rows]
            frames = [batch.frames[b, : 2 * count] for b, count in zip(rows, counts, strict=True)]
            inputs[pixels] = torch.cat([patches(f, family) for f in frames])
            inputs[grids] = torch.tensor([[count, *grid] for count in counts])
    return inputs
