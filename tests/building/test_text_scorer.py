"""The scorer by SigLIP or CLIP, against transformers."""

import dataclasses

import numpy as np
import pytest
import torch

from vpjax.building.scorers import key_runs, text_scorer
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword, UserError

pytestmark = pytest.mark.slow
KEYWORD = Keyword("tips over", "tip over")
CLIP = Clip("a", "a.mp4", "What happens?", "A cup tips over.", (KEYWORD,))


def write_similarity_model(folder, kind):
    """Write the tiniest SigLIP or CLIP, with a tokenizer trained on the clip."""
    import transformers

    from vpjax.data.tokenizer import train_tokenizer

    train_tokenizer([CLIP.answer, "tips over"], folder, 300)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    tokens = dict(vocab_size=300, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=12)
    vision = dict(image_size=28, patch_size=14)
    family = {"siglip": "Siglip", "clip": "CLIP"}[kind]
    text_width = dict(projection_size=16) if kind == "siglip" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        text_config=sizes | tokens | text_width, vision_config=sizes | vision, projection_dim=16
    )
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn_like(weights) * 0.3)
    model.save_pretrained(folder)
    images = getattr(transformers, f"{family}ImageProcessor")(
        size={"height": 28, "width": 28}, do_center_crop=False
    )
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, model_max_length=12)
    getattr(transformers, f"{family}Processor")(images, tokenizer).save_pretrained(folder)
    return model, images, tokenizer


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_text_scores_are_contrasts_of_cosines(tmp_path, kind):
    model, images, tokenizer = write_similarity_model(tmp_path, kind)
    frames = np.random.default_rng(0).integers(0, 256, (40, 30, 50, 3), np.uint8)
    shown = Video(frames, np.arange(40) / 8, 1 / 8)

    def cosine(caption):
        tokens = tokenizer(caption, padding="max_length", max_length=12, return_tensors="pt")
        with torch.inference_mode():
            out = model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"] if kind == "clip" else None,
                pixel_values=images(images=list(shown.frames), return_tensors="pt")["pixel_values"],
            )
        return (out.image_embeds @ out.text_embeds.T)[:, 0].numpy()

    expected = cosine("tips over") - cosine("A cup .")
    expected = (expected - expected.mean()) / expected.std()
    scorer = text_scorer(tmp_path)
    np.testing.assert_allclose(scorer(shown, CLIP, KEYWORD), expected, atol=1e-3)  # of 1: float32 cosines
    alone = cosine("tips over")
    keyword_alone = dataclasses.replace(CLIP, answer="tips over")
    np.testing.assert_allclose(
        scorer(shown, keyword_alone, KEYWORD), (alone - alone.mean()) / alone.std(), atol=1e-3
    )
    still = dataclasses.replace(shown, frames=np.repeat(shown.frames[:1], 40, axis=0))
    assert key_runs(scorer(still, CLIP, KEYWORD), still.times)[0] == ()


def test_folders_without_such_a_model_are_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no SigLIP or CLIP model can be read"):
        text_scorer(tmp_path)
