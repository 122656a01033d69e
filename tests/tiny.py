"""Tiny checkpoints as ``transformers`` itself writes them, and the inputs of its models.

Weights are drawn wide (std 1.5 / sqrt(fan-in)): at the default init, leaving out a whole mechanism changes
the logits by only 5e-3 of their spread, and a test against the reference would not see it.
torch is imported only when a function needs it, for it takes seconds.
"""

import copy
import dataclasses

import numpy as np

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


def with_tokenizer_of(texts, name, folder):
    """The model ``name`` of MODELS in ``folder``, of 400 words, and its tokenizer, trained on texts."""
    from vpjax.data.text import Text
    from vpjax.data.tokenizer import train_tokenizer

    train_tokenizer(texts, folder, 400)
    text = Text.load(folder)
    raw = copy.deepcopy(MODELS[name]) | dict(
        image_token_id=text.image_pad,
        video_token_id=text.video_pad,
        vision_start_token_id=text.vision_start,
        vision_end_token_id=text.vision_end,
    )
    raw["text_config"]["vocab_size"] = 400
    write_checkpoint(folder, raw)
    return text


def cut(frames, patch):
    """The patches [units, 4, X] of frames [F, h, w, 3] in the order of Qwen2-VL's image processor: slot by
    slot, 2 x 2 patches of a unit together, each (channel, frame, row, column)."""
    count, height, width, _ = frames.shape
    rows = [
        frames[2 * s : 2 * s + 2, patch * y : patch * y + patch, patch * x : patch * x + patch]
        .transpose(3, 0, 1, 2)
        .ravel()
        for s in range(count // 2)
        for top in range(0, height // patch, 2)
        for left in range(0, width // patch, 2)
        for y in (top, top + 1)
        for x in (left, left + 1)
    ]
    return np.array(rows, frames.dtype).reshape(-1, 4, 6 * patch**2)


def patches(frames, family="qwen2_5_vl"):
    """uint8 frames [F,h,w,3] as the rows of ``pixel_values_videos``."""
    import torch

    kind = FAMILIES[family]
    rows = cut((frames / 255.0 - np.array(kind.mean)) / np.array(kind.std), kind.patch)
    return torch.tensor(rows.reshape(-1, rows.shape[-1]), dtype=torch.float32)


def reference_inputs(clips, family="qwen2_5_vl", *, left=True):
    """The arguments of the torch model for contents of ``tests.batches``, positions included: each clip's
    prompt and answer in a row of its own, padded at the left or at the right."""
    import torch

    total = max(len(content.prompt) + len(content.answer) for content in clips)
    ids, mask = np.zeros((2, len(clips), total), np.int64)
    positions = np.zeros((3, len(clips), total), np.int64)
    for b, content in enumerate(clips):
        tokens = np.concatenate([content.prompt, content.answer])
        at = slice(total - len(tokens), None) if left else slice(len(tokens))
        ids[b, at], mask[b, at], positions[:, b, at] = tokens, 1, content.all_positions
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=positions)
    inputs["mm_token_type_ids"] = (ids == IMAGE) * 1 + (ids == VIDEO) * 2
    inputs = {name: torch.tensor(value) for name, value in inputs.items()}
    for token, pixels, grids in (
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
        (IMAGE, "pixel_values", "image_grid_thw"),
    ):
        shown = [content for content in clips if token in content.prompt]
        if shown:
            inputs[pixels] = torch.cat([patches(content.frames, family) for content in shown])
            grid = [[len(content.source), *(2 * side for side in content.grid)] for content in shown]
            inputs[grids] = torch.tensor(grid)
    return inputs
