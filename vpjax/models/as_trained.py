"""This model in transformers as it was trained: the same prompts, at the same positions.

    import sys
    sys.path.append(FOLDER)  # the folder of this file
    from as_trained import as_trained

    model, processor = as_trained(model, processor)

transformers 5 differs from Qwen's own code, from transformers 4 and from vLLM, which agree with the training:

* Qwen2.5-VL: text after a video continues at the video's largest position + 1. transformers 5 restarts it
  lower, at the video's first position + its longer side.
* Qwen3-VL: each slot of a video stands between a mark for its start and one for its end. transformers 5
  leaves those of the chat template around the whole video as well.

Where transformers does the same by itself, nothing changes.
"""

import functools

import torch


def as_trained(model, processor=None):
    """``model`` and ``processor`` of transformers, mended in place."""
    if hasattr(model.config.vision_config, "tokens_per_second"):
        continue_after_video(model)
    elif processor is not None:
        leave_out_outer_marks(processor)
    return model, processor


def leave_out_outer_marks(processor):
    """Let the chat template leave the marks around a video to the processor."""
    marked = processor.vision_start_token + processor.video_token + processor.vision_end_token
    begin = "{% filter replace('" + marked + "', '" + processor.video_token + "') %}"
    processor.chat_template = begin + processor.chat_template + "{% endfilter %}"


def continue_after_video(model):
    """Let text continue at the largest position so far + 1."""
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
