"""Every field of a run, documented once, with the defaults that the recipes beside this file start from.

A recipe is a file with ``get_config()``; any field can be overridden by ``--config.field=value``. "Ours"
marks a choice on which the paper (VideoPerceiver, arXiv 2511.18823, its abstract) is silent.
"""

import dataclasses

from ml_collections import ConfigDict

from vpjax.data.events import EventSpec


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.seed = 0  # data order, initial weights and random replacement are folds of (seed, step, role)
    c.steps = 1000  # optimizer updates of the whole run; the learning rate's schedule ends here
    c.batch = 32  # clips per update, over all devices and processes
    c.accumulate = 1  # micro-batches per update; exact, so only memory and time change

    # The model. init: a Hugging Face folder with weights, or "" = from scratch with the sizes of `model`, a
    # Hugging Face config.json as a dict (its tokenizer is trained on the run's texts; token ids are filled
    # in).
    c.init = ""
    c.model = ConfigDict()  # read where init is ""
    c.dtype = "float32"  # of the forward pass: float32 or bfloat16; parameters and optimizer stay float32
    c.attention = "auto"  # of whole sequences: auto (what the platform has), xla, splash (TPU) or cudnn (GPU)
    c.remat = False  # recompute each layer in the backward pass: less memory, about a third more time

    c.data = data = ConfigDict()
    data.train = "events"  # a file of clips (.jsonl or .array_record), or "events": the built-in event clips
    data.heldout = "events"  # likewise, evaluated when the run ends; "" = no evaluation
    data.videos = ""  # the root of relative video paths; "" = the clips file's own folder
    data.cache = ""  # folder of decoded frames and built-in clips; "" = ~/.cache/vpjax
    data.cache_gb = 20.0  # decoded frames beyond this size are decoded again instead of kept
    data.frames = 16  # frames per clip, uniform over its span; 0 = take `fps`
    data.fps = 0.0  # frames per second; 0 = take `frames`
    data.min_pixels = 56 * 56  # of a frame after resizing by Hugging Face's smart_resize, as is max_pixels
    data.max_pixels = 448 * 448
    data.max_side = 8192  # of a file in pixels; a larger one cannot be used (it may be damaged)
    data.length_multiple = 16  # prompts and answers are padded up to a multiple of this many tokens
    data.max_prompt = 4096  # tokens, visual ones included; a longer clip is rejected and counted
    data.max_answer = 512  # tokens; likewise
    data.keywords = 4  # J: keywords per clip that the contrastive loss sees; more are counted
    data.keyword_tokens = 8  # W: tokens per keyword; likewise
    data.max_fault_share = 0.01  # of clips that cannot be decoded or used: above it the run stops
    data.workers = 0  # decoding processes; 0 = threads of this process
    data.replacement = "key"  # slots that V~ replaces: "key" (paper), "random" (control), "none" (V~ = V)
    data.widen = 0  # slots by which the run that V~ replaces grows at either end, for rough spans
    data.pool = "key"  # slots that are pooled for a keyword: "key" (ours) or "random" (control)

    # The built-in event clips, where data.train or data.heldout says "events": how many, and how they look;
    # the fields' meaning stands in vpjax/data/events.py.
    c.events = ConfigDict(dataclasses.asdict(EventSpec()))
    c.events.train = 6144
    c.events.heldout = 768
    c.events.unseen = 240  # pairs of shape and event that training never shows

    c.optim = optim = ConfigDict()  # AdamW: linear warm-up, then cosine
    optim.lr = 1e-3
    optim.end_lr_share = 0.0  # of lr, reached at the last step
    optim.warmup_share = 0.05  # of the steps
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.01  # on matrices; never on biases, norms and embeddings
    optim.clip = 1.0  # largest norm of the gradient
    optim.freeze = ()  # path patterns of parameters that stay as they are, such as ("vision.*",)
    optim.lr_multipliers = ()  # (pattern, factor) pairs, such as (("vision.*", 0.1),); the first match counts
    optim.moments_dtype = "float32"  # of AdamW's first moment: float32 or bfloat16

    c.contrast = contrast = ConfigDict()  # the keyword contrast between V and V~
    contrast.weight = 0.1  # lambda (ours); 0 = off, and nothing of it is computed
    contrast.warmup_share = 0.05  # of the steps, over which lambda grows from 0 (ours)
    contrast.layer = 0.5  # depth at which the hidden states are tapped, as a share of the decoder (ours)
    contrast.width = 256  # E: of the space in which keywords and frames meet (ours)
    contrast.tau = 0.07  # first value of the learned temperature (ours), which stays inside tau_range
    contrast.tau_range = (0.01, 0.5)
    contrast.negatives = ("batch", "degraded", "windows")  # other keywords, V~, other times (ours)

    c.loss = loss = ConfigDict()
    loss.chunk = 128  # answer tokens whose logits are held at once

    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))  # devices per axis; -1 = all the others

    c.log_every = 20  # steps between progress lines (metrics.jsonl has every step)
    c.checkpoint_every = 250  # steps
    c.keep = 2  # newest checkpoints that are kept
    c.eval_clips = 768  # held-out clips evaluated when the run ends
    c.max_nonfinite = 10  # skipped updates (a loss or gradient was not finite) after which the run stops
    return c
