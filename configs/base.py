"""Every field of a run, documented once, with its default. The recipes beside this file start from here.

A recipe is a file with ``get_config()``. Any field can be overridden by ``--config.field=value``. "Ours"
marks a choice that the paper (VideoPerceiver, arXiv 2511.18823, its abstract) leaves open. The formulas are
in docs/method.md.
"""

import dataclasses

from ml_collections import ConfigDict, FieldReference

from vpjax.events.clips import EventSpec
from vpjax.events.long import LongSpec


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.method = "sft"  # "sft": the joint loss on answers; "grpo": rollouts, rewards and a policy update
    c.seed = 0  # of the data order, the initial weights, random replacement and sampling
    c.steps = 1000  # optimizer updates of the whole run; the learning rate schedule ends here
    c.batch = 32  # rows per step, over all devices and processes: packed rows (SFT) or prompts (GRPO)
    c.accumulate = 1  # micro-batches per update; exact, so only memory and time change

    # The model. init_from is the work directory of a run or a Hugging Face folder with weights. "" starts
    # from random weights with the sizes in `model`, which is a Hugging Face config.json as a dict (the
    # tokenizer is then trained on the run's texts, and token ids are filled in).
    c.init_from = ""
    c.model = ConfigDict()  # read only if init_from is ""
    # Time positions per second of a Qwen2.5-VL's visual tokens; slots that are closer share one. 0 = as in
    # the model; a new model gets at least one for each slot of data.fps.
    c.tokens_per_second = 0.0
    c.dtype = "float32"  # of the forward pass: float32 or bfloat16; trained parameters stay float32
    c.attention = "auto"  # back end: auto (the platform's best), xla, splash (TPU) or cudnn (GPU)
    # What layers keep for the backward pass, from much memory to little: "none" keeps everything, "products"
    # the results of matrix products, "layers" their input alone, which costs up to a third more time; "auto"
    # products in as many layers as the memory of a device allows.
    c.remat = "none"
    c.memory = 0.0  # GiB of a device that "auto" counts on; 0 = what it has

    c.data = data = ConfigDict()
    # A file of clips (.jsonl or .array_record), "events" (the built-in event clips), or several to be mixed:
    # (dict(file="a.jsonl"), dict(file="b.jsonl", weight=0.5, name="general", instruction="...", videos=""))
    data.train = FieldReference("events", field_type=object)
    data.heldout = "events"  # the same, evaluated at the end of the run; "" = no evaluation
    data.videos = ""  # folder to which video paths are relative; "" = the folder of the clips file
    data.instructions = ConfigDict()  # text appended to questions, by task, such as dict(choice="...")
    data.train_turns = "all"  # answers of a conversation that SFT trains: "all", or only the "last"
    data.cache = ""  # folder of decoded frames and built-in clips; "" = ~/.cache/vpjax
    data.cache_gb = 20.0  # largest size of the frame cache; frames beyond it are decoded again
    data.frames = 16  # frames per clip, uniform over its duration; 0 = use `fps`
    data.fps = 0.0  # frames per second; 0 = use `frames`
    # Of each of the equal parts over which frames are spread, the one that is read: its "first", or the one
    # with the most "change" against its surroundings. Or "merge": frames that look alike are merged into as
    # many runs, each of which is shown by its middle. For either, all frames are decoded.
    data.pick = "first"
    data.min_frames = 4  # a clip too short for so many at `fps` gives so many; no budget leaves fewer
    data.max_frames = 768  # most frames of a clip; a clip with more at `fps` gives so many, evenly spread
    data.min_pixels = 56 * 56  # least pixels of a frame after resizing by Hugging Face's smart_resize
    data.max_pixels = 448 * 448  # most pixels, likewise
    # Most pixels of a clip, of one frame of every slot (two frames), as in qwen-vl-utils. A clip with more
    # gets smaller frames, down to min_pixels, then fewer, down to min_frames. 0 = no limit.
    data.total_pixels = 0
    data.max_missed_share = 0.05  # no run if a larger share of the annotated events is in no slot (ours)
    data.max_side = 8192  # longest side of a video in pixels; a larger file is rejected as damaged
    data.tfio_python = ""  # a Python with tensorflow-io (requirements-tfio.txt) for decoding; "" = PyAV
    data.length_multiple = 16  # rows have a multiple of this many tokens
    # Most tokens of a clip: its video, question and answer. The video of a longer one gets smaller frames,
    # down to min_pixels, then fewer, down to min_frames. Several videos and images share what text leaves.
    data.max_tokens = 4096
    data.row_tokens = (
        0  # tokens of an SFT row, which several clips share; 0 = as many as the longest clip has
    )
    data.max_answer = 512  # tokens; clips with longer answers that are trained are rejected and counted
    data.keywords = 4  # J: keywords per clip; more are counted and left out
    data.keyword_tokens = 8  # W: tokens per keyword; longer keywords are counted and left out
    # The run stops if a larger share of a file's records is broken, or of the clips cannot be decoded.
    data.max_fault_share = 0.01
    data.schemes = ("gs", "gcs", "s3", "s3a", "https", "file")  # of the URLs that clips may name as videos
    data.workers = 0  # decoding processes; 0 = threads of this process
    data.replacement = "key"  # slots that V~ replaces: "key" (paper), "random" (control), "none" (V~ = V)
    data.widen = 0  # slots by which a replaced run grows at either end, for rough spans
    data.pool = "key"  # slots that are pooled for a keyword: "key" (ours) or "random" (control)

    # The built-in event clips, used if data.train or data.heldout is "events": their appearance, whose fields
    # are explained in vpjax/events/clips.py, and the number of clips in each split.
    c.events = ConfigDict(dataclasses.asdict(EventSpec()))
    c.events.train = 6144
    c.events.heldout = 768
    c.events.unseen = 240  # clips with pairs of shape and event that never occur in training; 0 = none
    c.events_heldout = ConfigDict()  # fields of their appearance that differ in heldout and unseen clips

    # The long built-in clips, used if data.train or data.heldout is "events.long": their appearance, whose
    # fields are explained in vpjax/events/long.py, and the number of clips in each split.
    c.long = ConfigDict(dataclasses.asdict(LongSpec()))
    c.long.train = 3072
    c.long.heldout = 256
    c.long_heldout = ConfigDict()  # fields of their appearance that differ in heldout clips

    # Two looks at long videos: windows of a scan in few pixels, then one of them in more (docs/long.md).
    c.looks = looks = ConfigDict()
    looks.tokens = 512  # visual tokens of all looks together, in evaluations and predictions
    looks.again = 1  # likeliest windows of the scan that get a second look, of which one is answered about
    looks.frames = 16  # of a window, in both looks
    looks.scan_pixels = 28 * 28  # of a frame of the scan, at most
    looks.pixels = 56 * 56  # of a frame of the second look, at most
    looks.pick = "change"  # as data.pick, of a window
    # SFT trains on so many windows that show the event, in place of each clip whose events have known times
    # (spans): on either look, and on whether the first shows what is asked for. GRPO of two looks chooses
    # among them and the wrong ones, and answers (grpo.looks). 0 = on the clips themselves.
    looks.windows = 0
    looks.wrong = 3  # windows that show no event, on purpose: trained on whether they show what is asked for
    # Windows of either kind that are asked that in the second look too. Of as many wrong ones either look is
    # asked the clip's own question, where what is true is its degraded_answer.
    looks.closer = 1
    looks.seconds = (2.0, 6.0)  # least and most of their lengths

    c.optim = optim = ConfigDict()  # with a linear warm-up, then a cosine schedule
    # "adamw", or "muon" (arXiv 2502.16982) for the weights of matrix products, with updates as large as
    # AdamW's, and AdamW for all else. From random weights Muon needs half of the steps or fewer. Adapters
    # (lora) are trained by AdamW only.
    optim.name = "adamw"
    optim.lr = 1e-3
    optim.end_lr_share = 0.0  # final learning rate, as a share of lr
    optim.warmup_share = 0.05  # of the steps
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.01  # of kernels and adapters; biases, norms and embeddings have none
    optim.clip = 1.0  # largest global norm of the gradient
    optim.freeze = ()  # path patterns of parameters that are not trained, such as ("vision.*",)
    optim.lr_multipliers = ()  # (pattern, factor) pairs, such as (("vision.*", 0.1),); the first match counts
    optim.moments_dtype = "float32"  # of the gradient's running mean: float32 or bfloat16

    # Low-rank adapters (LoRA): the model is frozen in the compute dtype, and only they are trained, float32.
    c.lora = lora = ConfigDict()
    lora.rank = 0  # r; 0 = no adapters, the model itself is trained
    lora.alpha = 32.0  # what the adapters add is multiplied by alpha / rank
    # Path patterns of the linear layers that have adapters, in the decoder (decoder.layers.*), the tower
    # (vision.blocks.*) and its mergers (vision.merger.*, vision.deepstack.*).
    lora.targets = ("decoder.layers.*",)
    # Type of the weights beside adapters: "dtype" (that of the run), or "int8" with a float32 scale for each
    # output, in half the memory of bfloat16. Merging adds the adapters to the dequantised weights.
    lora.base_dtype = "dtype"
    lora.init_from = ""  # a PEFT folder whose adapters are trained further; "" = adapters that change nothing

    c.contrast = contrast = ConfigDict()  # keyword contrast between V and V~ (docs/method.md, section 2)
    contrast.weight = 0.1  # lambda (ours); 0 = no contrast, and nothing is computed for it
    contrast.warmup_share = 0.05  # share of the steps over which lambda, mu and nu grow from 0 (ours)
    contrast.layer = 0.5  # depth of the layer whose states are pooled, as a share of the decoder (ours)
    # Peak learning rate of the heads and of the temperature, which start from nothing, where the model does
    # not; 0 = optim.lr (ours).
    contrast.lr = 0.0
    contrast.width = 256  # E: width of the space in which keywords and slots are compared (ours)
    contrast.tau = 0.07  # first value of the learned temperature (ours)
    contrast.tau_range = (0.01, 0.5)  # range to which the temperature is clipped (ours)
    contrast.negatives = ("batch", "degraded", "windows")  # other keywords, V~, other times (ours)

    # What V~ changes about the answer (docs/method.md, section 2).
    contrast.answer = 0.0  # mu: weight of the margin by which V must make the answer likelier than V~ does
    # Which tokens are compared: those of the "keyword" that V~ hides, or the whole "sequence", as in DPO with
    # V~ as the rejected video. "weight" is a control: the keyword's tokens weigh more, without V~.
    contrast.answer_kind = "keyword"
    contrast.answer_beta = 1.0  # how soon a margin is enough, per nat
    contrast.truth = 0.0  # nu: weight of training V~ on Clip.degraded_answer, where it has one
    contrast.truth_share = 0.25  # share of the clips whose V~ is trained on it; the others are compared

    # GRPO: completions on V and V~, and the policy update (docs/method.md, section 3).
    c.grpo = grpo = ConfigDict()
    # Rewards by name. The value is the weight of a built-in reward (docs/rewards.md), "my_module:fn" for a
    # function of yours (a list of completions and a list of clips in, a list of numbers out, None for a
    # completion that is not judged), or ("my_module:fn", weight). Flags may add some:
    # --config.grpo.rewards.mine=my_module:fn.
    grpo.rewards = ConfigDict()
    grpo.show_every = 50  # steps between pages of sample completions in <workdir>/rollouts/
    grpo.groups = 8  # G: completions per prompt on V, at least 2
    grpo.degraded = 4  # K: completions per prompt on V~; 0 = none, if the relative kind needs none (ours)
    grpo.temperature = 1.0  # of sampling, and of the log-probabilities that are trained
    grpo.top_p = 1.0  # probability mass that is sampled from; affects sampling only
    grpo.top_k = 0  # number of likeliest tokens that are sampled from, 0 = all; affects sampling only
    grpo.max_new = 64  # C: most tokens of a completion
    # Share of a step's completions after whose end sampling stops. The others are left out of their groups:
    # the last few hold up all. 1 = wait for all.
    grpo.stop_share = 1.0
    # Type of the decoder's weights in sampling: "dtype" (that of the run), or "int8" with a scale for each
    # output, half of the memory that is read for each token. Needs importance weights.
    grpo.rollout_dtype = "dtype"
    # Largest weight of a token for its likelihood in training over that in sampling (truncated importance
    # sampling; 2 in TRL), with which the gradient is that of tokens sampled in training; 0 = no weights.
    grpo.importance_cap = 0.0
    grpo.scale = "group"  # advantages are divided by the std of the "group" (GRPO), the "batch", or "none"
    # "sum_then_normalize", or "normalize_then_sum": each reward is normalised in its group before the
    # weighted sum (GDPO, whose scale is "batch").
    grpo.reward_aggregation = "sum_then_normalize"
    # A step rolls out `oversample` times `batch` prompts and updates on `batch` of them, first on those whose
    # completions differ in reward (DAPO's dynamic sampling).
    grpo.oversample = 1
    # How token losses are averaged: over all tokens ("dapo"), over the tokens of a completion, then over
    # completions ("grpo"), by a constant length ("dr_grpo"), as "grpo" with one ratio per completion ("gspo",
    # whose eps are about 1000 times smaller), or as "dapo" with the clipped ratio as a weight ("cispo", whose
    # authors have eps_low = 1 and a larger eps_high).
    grpo.aggregation = "dapo"
    grpo.eps_low = 0.2  # the ratio to the old policy is clipped to [1 - eps_low, 1 + eps_high]
    grpo.eps_high = 0.28  # larger than eps_low, so that unlikely tokens can gain (DAPO)
    grpo.beta = 0.0  # weight of the KL to the frozen first policy; 0 = no copy of it is kept
    # Updates of a step: `num_iterations` times one on each of `num_minibatches` parts of its prompts. From
    # the second update on, the clip takes effect.
    grpo.num_iterations = 1
    grpo.num_minibatches = 1
    grpo.mask_truncated = False  # leave out completions that reached max_new

    # What is true of V~ (ours). Rewards of completions on V~, by name: built-in ones, which compare them with
    # Clip.degraded_answer, and keyword_absent, which needs no such answer. Completions on V~ are then
    # trained, as groups of their own. None: they are only compared.
    grpo.degraded_rewards = ConfigDict()
    grpo.degraded_weight = 1.0  # weight of V~'s loss beside that of V
    grpo.control_share = 0.0  # share of the clips whose V~ replaces other slots, so that it hides nothing

    # The relative reward: what V~ changes. Comments below name the kinds that read a field.
    grpo.relative = relative = ConfigDict()
    # gate, need, relation, likelihood, token, keyword_winrate, winrate, hinge (ours), tgrpo or none
    relative.kind = "gate"
    relative.correct = ""  # all but token and none: the reward that means right; "" = the only one
    # gate: weight of a prompt that is answered as well on V~ as on V, where one that needs the hidden frames
    # has 1, before the weights are divided by their mean
    relative.w0 = 0.25
    # By how much V must be ahead. winrates, hinge: in `correct` (or recall); gate: as a share of the larger
    # of the means of `correct` on V and V~
    relative.margin = 0.2
    relative.scale = 0.1  # gate: width of the step from w0 to 1, as such a share
    relative.hard = False  # gate: use w0 or 1 and nothing between
    relative.lam = 0.5  # relation, likelihood, token, winrates, hinge: size of the term
    relative.clip = 1.0  # likelihood, token: largest gap that counts, in nats; hinge: in `correct`
    relative.threshold = 0.1  # likelihood, tgrpo: `correct` above it is a right answer (Video-R1)
    relative.mu = 0.8  # tgrpo: share of V~'s mean of `correct` that V must reach (Video-R1)
    relative.alpha = 0.3  # tgrpo: the bonus (Video-R1)

    # GRPO of two looks, where looks.windows is above 0 (docs/method.md, section 3; ours). Its batch counts
    # prompts: 3 for each of a clip's looks.windows + looks.wrong windows.
    grpo.looks = ConfigDict()
    grpo.looks.temperature = 1.0  # of the choice of a window by the scores of the scan, in nats
    # Weights, beside grpo.rewards, of the IoU of window and event as a share of the best among a clip's
    # windows, and of what the second look's answer gains, in relative.correct, over the first look's.
    grpo.looks.overlap = 0.5
    grpo.looks.gain = 0.5

    c.loss = loss = ConfigDict()
    loss.chunk = 128  # answer tokens whose logits are held at once

    # Devices per axis, -1 = all remaining ones. In sampling groups of ``rollout`` devices, of those of fsdp,
    # share a copy of the decoder's weights, -1 = as many as its key/value heads allow. ``context`` devices
    # have a part of the tokens of each row: for long clips, whose data.length_multiple is a multiple of twice
    # as many, and grpo.groups of as many.
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, context=1, tensor=1, rollout=-1))

    # Keep compiled programs in data.cache, or where JAX_COMPILATION_CACHE_DIR says, so that the next start
    # takes seconds.
    c.compile_cache = True
    c.log_every = 20  # steps between progress lines (metrics.jsonl has every step)
    c.log_to = ("tensorboard",)  # where numbers go besides: any of tensorboard, wandb, trackio (if installed)
    c.profile = ()  # (first, last): steps that JAX's profiler traces into <workdir>/profile/
    c.checkpoint_every = 250  # steps
    c.keep = 2  # number of newest checkpoints that are kept
    c.eval_clips = 768  # most clips of a held-out split that are evaluated at the end of the run
    # Evaluation while the run trains: every so many steps and after the last, of a part of the held-out
    # clips. Its metrics are in the log as heldout/loss, heldout/accuracy, heldout/key/loss ... 0 = only at
    # the end, of all.
    c.eval_every = 0
    c.eval_part = 64  # most clips of it, evenly spread over the held-out clips
    c.eval_controls = ("none", "key")  # videos that it asks about, see vpjax.evaluate --controls
    # A metric of it, such as "heldout/accuracy": the checkpoint of its best step is kept besides the newest
    # ones, and --step=best reads it. "" = no such checkpoint.
    c.keep_best = ""
    c.patience = 0  # evaluations in a row without a better keep_best, after which the run ends; 0 = no end
    c.max_nonfinite = 10  # most skipped updates (loss or gradient not finite) before the run stops
    return c
