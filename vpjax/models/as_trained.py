"""This model in transformers as it was trained: the same prompts, at the same positions.

    import sys
    sys.path.append(FOLDER)  # the folder of this file
    from as_trained import as_trained

    model, processor = as_trained(model, processor)

or, for a program that loads them itself, such as lmms-eval:

    python FOLDER/as_trained.py -m lmms_eval --model qwen2_5_vl ...

transformers 5 differs from Qwen's own code, from transformers 4 and from vLLM, which agree with the training:

* Qwen2.5-VL: text after a video continues at the video's largest position + 1. transformers 5 restarts it
  lower, at the video's first position + its longer side.
* Qwen3-VL: each slot of a video stands between a mark for its start and one for its end. transformers 5
  leaves those of the chat template around the whole video as well.

Where transformers does the same by itself, nothing changes.
"""

import functools
import runpy
import sys
import types

import torch


def as_trained(model, processor=None):
    """``model`` and ``processor`` of transformers, mended in place."""
    if hasattr(model.config.vision_config, "tokens_per_second"):
        inner = model.model
        inner.get_rope_index = types.MethodType(after_video(type(inner).get_rope_index), inner)
    elif processor is not None:
        leave_out_outer_marks(processor)
    return model, processor


def mend_transformers():
    """Every such model and processor that this process loads from now on."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    Qwen2_5_VLModel.get_rope_index = after_video(Qwen2_5_VLModel.get_rope_index)
    init = Qwen3VLProcessor.__init__

    @functools.wraps(init)
    def mended_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.chat_template:
            leave_out_outer_marks(self)

    Qwen3VLProcessor.__init__ = mended_init


def leave_out_outer_marks(processor):
    """Let the chat template leave the marks around a video to the processor."""
    marked = processor.vision_start_token + processor.video_token + processor.vision_end_token
    begin = "{% filter replace('" + marked + "', '" + processor.video_token + "') %}"
    processor.chat_template = begin + processor.chat_template + "{% endfilter %}"


def after_video(theirs):
    """``get_rope_index`` whose text continues at the largest position so far + 1."""

    @functools.wraps(theirs)
    def get_rope_index(self, input_ids, *args, attention_mask=None, **kwargs):
        positions, _ = theirs(self, input_ids, *args, attention_mask=attention_mask, **kwargs)
        deltas = []
        for row, ids in enumerate(input_ids):
            kept = torch.ones_like(ids, dtype=torch.bool)
            if attention_mask is not None:
                kept = attention_mask[row].bool()
            is_visual = ((ids == self.config.image_token_id) | (ids == self.config.video_token_id))[kept]
            own = positions[:, row, kept]
            follows = torch.nonzero(is_visual[:-1] & ~is_visual[1:]).flatten() + 1
            for start in follows.tolist():
                own[:, start:] += own[:, :start].max() + 1 - own[0, start]
            positions[:, row, kept] = own
            deltas.append(own.max() + 1 - own.shape[1])
        return positions, torch.stack(deltas)[:, None]

    return get_rope_index


if __name__ == "__main__":
    if sys.argv[1:2] != ["-m"] or len(sys.argv) < 3:
        raise SystemExit(f"{sys.argv[0]}: give -m, a module and its arguments")
    mend_transformers()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
