"""Every field of a run, documented once, with the defaults that the recipes beside this file start from.

A recipe is a file with ``get_config()``; any field can be overridden by ``--config.field=value``. "Ours"
marks a choice on which the paper (VideoPerceiver, arXiv 2511.18823, its abstract) is silent.
"""

import dataclasses

from ml_collections import ConfigDict

from vpjax.events.clips import EventSpec


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.method = "sft"  # "sft": the joint loss on answers; "grpo": rollouts, rewards, policy update
    c.seed = 0  # data order, initial weights and random replacement are folds of (seed, step, role)
    c.steps = 1000  # optimizer updates of the whole run; the learning rate's schedule ends here
    c.batch = 32  # clips per update, over all devices and processes
    c.accumulate = 1  # micro-batches per update; exact, so only memory and time change

    # The model. init_from: the work directory of a run, a Hugging Face folder with weights, or "" = from
    # scratch with the sizes of `model`, a Hugging Face config.json as a dict (its tokenizer is trained on the
    # run's texts; token ids are filled in).
    c.init_from = ""
    c.model = ConfigDict()  # read where init_from is ""
    c.dtype = "float32"  # of the forward pass: float32 or bfloat16; parameters and optimizer stay float32
    c.attention = "auto"  # of whole sequences: auto (what the platform has), xla, splash (TPU) or cudnn (GPU)
    c.remat = False  # recompute each layer in the backward pass: less memory, about a third more time

    c.data = data = ConfigDict()
    data.train = "events"  # a file of clips (.jsonl or .array_record), or "events": the built-in event clips
    data.heldout = "events"  # likewise, evaluated when the run ends; "" = no evaluation
    data.videos = ""  # the root of relative video paths; "" = the clips file's own folder
    data.instructions = ConfigDict()  # text put after the question of clips by task, as dict(choice="...")
    data.cache = ""  # folder of decoded frames and built-in clips; "" = ~/.cache/vpjax
    data.cache_gb = 20.0  # decoded frames beyond this size are decoded again instead of kept
    data.frames = 16  # frames per clip, uniform over its span; 0 = take `fps`
    data.fps = 0.0  # frames per second; 0 = take `frames`
    data.min_pixels = 56 * 56  # of a frame after resizing by Hugging Face's smart_resize, as is max_pixels
    data.max_pixels = 448 * 448
    data.max_side = 8192  # of a file in pixels; a larger one cannot be used (it may be damaged)
    data.tfio_python = ""  # a Python with tensorflow-io (requirements-tfio.txt) that decodes; "" = PyAV
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
    # the fields' meaning stands in vpjax/events/clips.py.
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

    c.grpo = grpo = (
        ConfigDict()
    )  # rollouts on V and V~ and the policy's update; read by configs/grpo*.py's runs
    # Rewards by name: the weight of one of vpjax/rewards' own, "my_module:fn" for a function of yours (lists
    # of completions and clips in, a list of numbers out), or ("my_module:fn", weight).
    grpo.rewards = ConfigDict()
    grpo.show_every = 50  # steps between pages of sample rollouts in <workdir>/rollouts/
    grpo.groups = 8  # G: completions per prompt on the whole video, at least 2
    grpo.degraded = 4  # completions per prompt on V~; 0 = none, for relative kinds that need none (ours)
    grpo.temperature = 1.0  # of sampling, and of the log-probabilities that are trained
    grpo.top_p = 1.0  # share of the probability that is sampled from; shapes the rollouts only, as does top_k
    grpo.top_k = 0  # likeliest tokens that are sampled from; 0 = all
    grpo.max_new = 64  # C: tokens of a completion at most
    grpo.scale = "group"  # rewards are divided by the std of their "group" (GRPO), of the "batch", or "none"
    # The loss is a mean over all tokens ("dapo"), completions ("grpo"), or a constant length ("dr_grpo");
    # "gspo": as "grpo", with one ratio per completion (its eps are some 1000 times smaller).
    grpo.aggregation = "dapo"
    grpo.eps_low = 0.2  # the ratio to the old policy is clipped to [1 - eps_low, 1 + eps_high]
    grpo.eps_high = 0.28  # higher than eps_low (DAPO): unlikely tokens may gain
    grpo.beta = 0.0  # weight of the KL to the frozen first policy; 0 = none is held
    grpo.num_iterations = 1  # updates per rollout; from the second on, the clip holds back
    grpo.mask_truncated = False  # leave out completions that max_new cut off
    grpo.train_on_degraded = False  # also train on the rollouts on V~, in groups of their own

    # What V~ changes. Fields below `kind` are read by the kinds that they name.
    grpo.relative = rel = ConfigDict()
    rel.kind = "gate"  # gate, likelihood, token, keyword_winrate, winrate, hinge (ours), tgrpo or none
    rel.w0 = 0.25  # gate: weight of a prompt that V~ answers as well as V
    rel.margin = 0.2  # gate, winrates, hinge: by how much reward (or recall) V must be ahead of V~
    rel.scale = 0.1  # gate: width of the step from w0 to 1, in reward
    rel.hard = False  # gate: w0 or 1, nothing between
    rel.lam = 0.5  # size of the term of likelihood, token, winrates and hinge
    rel.clip = 1.0  # likelihood, token: largest gap that counts, in nats; hinge: in reward
    rel.threshold = 0.1  # likelihood, tgrpo: rewards above it are right answers (Video-R1)
    rel.mu = 0.8  # tgrpo: V must reach this share of V~'s mean reward (Video-R1)
    rel.alpha = 0.3  # tgrpo: its bonus (Video-R1)

    c.loss = loss = ConfigDict()
    loss.chunk = 128  # answer tokens whose logits are held at once

    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))  # devices per axis; -1 = all the others

    c.log_every = 20  # steps between progress lines (metrics.jsonl has every step)
    c.checkpoint_every = 250  # steps
    c.keep = 2  # newest checkpoints that are kept
    c.eval_clips = 768  # held-out clips evaluated when the run ends
    c.max_nonfinite = 10  # skipped updates (a loss or gradient was not finite) after which the run stops
    return c
