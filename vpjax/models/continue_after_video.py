"""The positions of text after a video, as this model was trained, for transformers.

The model was trained, as Qwen2.5-VL was, with text that continues at the largest position of a video + 1.
transformers 4 and vLLM do the same. transformers 5 restarts text lower, at the video's first position + its
longer side, so that the model answers as if it had seen something else. Three lines mend it:

    import sys
    sys.path.append(FOLDER)  # the folder of this file
    from continue_after_video import continue_after_video

    model = continue_after_video(AutoModelForImageTextToText.from_pretrained(FOLDER))

``model.generate`` and pipelines then answer as the trained model does. Where transformers follows the rule by
itself, nothing changes.
"""

import functools

import torch


def continue_after_video(model):
    """``model``, a Qwen2.5-VL of transformers, whose text continues at the largest position so far + 1."""
    inner, config = model.model, model.config
    theirs = inner.get_rope_index

    @functools.wraps(theirs)
    def get_rope_index(input_ids, *args, attention_mask=None, **kwargs):
        positions, _ = theirs(input_ids, *args, attention_mask=attention_mask, **kwargs)
        deltas = []
        for row, ids in enumerate(input_ids):
            kept = torch.ones_like(ids, dtype=torch.bool)
            if attention_mask is not None:
                kept = attention_mask[row].bool()
            is_visual = ((ids == config.image_token_id) | (ids == config.video_token_id))[kept]
            own = positions[:, row, kept]
            follows = torch.nonzero(is_visual[:-1] & ~is_visual[1:]).flatten() + 1
            for start in follows.tolist():
                own[:, start:] += own[:, :start].max() + 1 - own[0, start]
            positions[:, row, kept] = own
            deltas.append(own.max() + 1 - own.shape[1])
        return positions, torch.stack(deltas)[:, None]

    inner.get_rope_index = get_rope_index
    return model
