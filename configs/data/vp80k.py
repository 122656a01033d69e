"""80,000 clips of fine-grained actions and passing events, chosen from public annotations.

    python -m vpjax.build --recipe vp80k --root DIR --out DIR --dry_run
    python -m vpjax.build --recipe vp80k --root DIR --out DIR --model FOLDER

What it does: the paper (VideoPerceiver, arXiv 2511.18823) trains on 80,000 videos of fine-grained actions
and transient events; its list is not public. This is a choice of our own: sources whose annotations are
public, filters that keep brief events which need their key frames, and a draw under caps. In --root each
source has a folder of its name, with its annotation files and its videos.
Cost: a dry run of 71,000 questions of three sources takes two to three minutes on 2 busy cores, and 1.5 GB;
the videos take hours to days, which it tells.
"""

from ml_collections import ConfigDict

DESCRIBE = "Describe in one sentence what happens."
CHOOSE = "Answer with the option's letter and its text."


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.total = 80_000  # rows that are chosen
    c.seed = 0  # of the draw
    c.oversample = 1.5  # rows whose videos are examined, for each that is chosen

    # name: its folder. files: annotation files in that folder, in a form that vpjax.build reads
    # (docs/data.md). share: of the rows that are chosen, relative to one another.
    c.sources = (
        dict(
            name="activitynet",
            files=("train.json",),
            format="captions",
            share=22.0,
            url="http://activity-net.org/challenges/2017/captioning.html",
            licence="see its page; the videos are YouTube's",
            instruction=DESCRIBE,
        ),
        dict(
            name="charades",
            files=("train.json",),  # Charades-STA, in the form of VideoChat-R1
            format="captions",
            share=12.0,
            url="https://prior.allenai.org/projects/charades",
            licence="see its page: for research that is not commercial",
            instruction=DESCRIBE,
        ),
        dict(
            name="something-something",
            files=("something-something-v2-train.json",),
            format="something-something",
            share=26.0,
            url="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
            licence="see its page: for research",
            instruction=DESCRIBE,
        ),
        dict(
            name="epic-kitchens",
            files=("EPIC_100_train.csv",),
            format="epic-kitchens",
            share=16.0,
            url="https://github.com/epic-kitchens/epic-kitchens-100-annotations",
            licence="CC BY-NC 4.0",
            instruction=DESCRIBE,
        ),
        dict(
            name="didemo",
            files=("train_data.json",),
            format="didemo",
            share=12.0,
            url="https://github.com/LisaAnne/LocalizingMoments",
            licence="annotations: BSD 2-clause; videos: Creative Commons, each its own (video_licenses.txt)",
            instruction=DESCRIBE,
        ),
        dict(
            name="youcook2",
            files=("youcookii_annotations_trainval.json",),
            format="captions",
            share=4.0,
            url="http://youcook2.eecs.umich.edu",
            licence="see its page; the videos are YouTube's",
            instruction=DESCRIBE,
        ),
        dict(
            name="next-gqa",
            files=("val.json",),  # in the form of VideoChat-R1; the training split has no spans
            format="next-gqa",
            share=2.0,
            url="https://github.com/doc-doc/NExT-GQA",
            licence="see its page; the videos are those of VidOR",
            instruction=CHOOSE,
        ),
    )

    # In this order, the cheap ones first. measure: see vpjax/curation/measures.py. A row to which a measure
    # does not apply stays.
    c.filters = (
        dict(measure="words", least=2, most=40, reason="too little to learn from, or a story of many events"),
        dict(measure="english", least=0.7, reason="keywords are found in English only"),
        dict(measure="events", least=1, reason="no action: a state, a scene, the camera"),
        dict(measure="benchmark", most=0.5, reason="a benchmark has its video or its words"),
        dict(measure="span", most=30.0, reason="a span that does not say when the event is"),
        dict(measure="lasting", most=0.99, reason="all of it goes on and on: any frame shows it"),
        dict(measure="event_seconds", most=8.0, reason="too long for a passing event"),
        dict(measure="caption_copy", most=0.85, reason="it says what an earlier row says"),
        dict(measure="peak", least=0.5, reason="the picture changes most elsewhere: the span is misplaced"),
        dict(measure="needs_video", least=0.5, reason="told as well without the video, or not what it shows"),
        dict(measure="needs_key", least=0.2, reason="told as well without the key frames"),
        dict(measure="shown", least=0.0, reason="the frames of the event look no more like its words"),
        dict(measure="picture_copy", most=0.7, reason="an earlier row shows the same video"),
    )
    # Read by vpjax.evaluate, below --root.
    c.benchmarks = (
        dict(name="charades-sta", file="charades/test.json"),
        dict(name="next-gqa", file="next-gqa/test.json"),
    )

    c.caps = dict(
        action=0.005,  # of one action, verb and object
        length=0.5,  # of events from one of the edges to the next
        edges=(1.0, 2.5, 5.0),  # seconds
        video=4,  # rows of one video
    )
    # Clips of other kinds, of which an epoch has a share, so that a model keeps its other skills:
    # (dict(file="general.jsonl", share=0.2, instruction="..."),)
    c.general = ()
    return c
