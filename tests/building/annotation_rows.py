"""A row of each format of annotations, with its traps."""

LLAVA = {
    "id": "academic-1",
    "data_source": "0_30_s",
    "video": "a/b.mp4",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat happens?"},
        {"from": "gpt", "value": "A cup falls."},
        {"from": "human", "value": "Does it break?"},
        {"from": "gpt", "value": "Yes, it breaks."},
    ],
}
QWEN = {
    "video": ["b.mp4"],
    "conversations": [{"from": "human", "value": "<video>What now?"}, {"from": "gpt", "value": "It rains."}],
}
VIDEO_R1 = {
    "problem_id": 7,
    "problem": "What does she do?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. She sits, then stands", "B. She runs"],
    "process": "<think>She hurries.</think>",
    "solution": "<answer>B</answer>",
    "path": "./NeXT-QA/1.mp4",
    "data_source": "NeXT-QA",
}
CAPTIONS = {
    "v_1": {
        "duration": 30.0,
        "timestamps": [[0.25, 10.5], [10.5, 30.0]],
        "sentences": ["A man kneels.", " He throws a ball. "],
    }
}
NEXT_GQA = {
    "id": "q1",
    "video": "1164/32387",
    "question": "why did he bend",
    "options": ["(A) to rest", "(B) to pick up a toy"],
    "duration": 50,
    "glue": [[1.5, 4], [9, 10]],
    "answer": "(B)",
}
GOT10K = {
    "path": "GOT-10k/train/GOT-10k_Train_000048",
    "object": "push-bike",
    "gt": [[0.417, 0.379, 0.596, 0.669], [0.403, 0.371, 0.58, 0.671]],
}
TARSIER = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": "c.mp4", "start_time": 2.5, "end_time": 9}},
                {"type": "text", "text": "Describe the video."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "said", "reference": "A dog jumps."}]},
    ],
    "dataset": "DREAM",
}
TRL = {
    "prompt": [{"role": "user", "content": "What is it?"}],
    "completion": [{"role": "assistant", "content": "A bird lands."}],
    "video": "d.mp4",
}
# The same in the forms in which their authors publish them, in words of our own.
CHARADES_TEXT = b"""\
A1B2C 24.3 30.4##person sets a cup on a shelf.
A1B2C 7.3 9.0##the person waves at someone   ##twice.
D3E4F 12.5 4.3##a person sits down.
D3E4F 1.0 x##a person gets up.
"""
YOUCOOK2 = {
    "database": {
        "aB3_x-9": {
            "duration": 241.62,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [
                {"segment": [90, 102], "id": 0, "sentence": "butter two slices of toast"},
                {"segment": [114, 127], "id": 1, "sentence": "put the ham on top"},
                {"id": 2, "sentence": "serve"},
            ],
            "video_url": "https://www.youtube.com/watch?v=aB3_x-9",
        },
        "cD4": None,
    }
}
NEXT_GQA_TABLE = b"""\
video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
11,900,640,480,why did he bend,to tie a lace,3,CW,to rest,to tie a lace,to hide,to jump,to nod
11,900,640,480,what fell,nothing,4,TN,a cup,a hat,a ball,a book,a pen
11,900,640,480,"what, then,he left,5,TN,he left,he ran,he sat,he fell,he hid
12,900,640,480,what did she do,she waved,0,TC,she waved,she ran,she sat,she fell,she hid
"""
NEXT_GQA_SPANS = {"11": {"duration": 30, "location": {"3": [[1.5, 4]], "4": [[9, 10]]}, "fps": 29.97}}
NEXT_GQA_PATHS = {"11": "1101/11", "12": "0004/12"}
TVBENCH = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": "<placeholder>"}},
                {"type": "text", "text": "Question: What does he do?\n(A) Put on a coat.\n(B) Take it off."},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": " Answer: ("},
                {"type": "text", "text": "", "reference": "B"},
            ],
        },
    ],
    "dataset": "TVBench/Action Antonym",
    "task": "video/QA",
    "idx": 0,
    "vid": "action_antonym/S1_rgb.avi",
}
DREAM_1K = {
    "messages": [
        {
            "content": [
                {"reference": None, "text": None, "type": "video", "video": {"video_file": "<placeholder>"}},
                {"reference": None, "text": "Describe the video.", "type": "text", "video": None},
            ],
            "role": "user",
        },
        {
            "content": [{"reference": "A dog jumps.", "text": "", "type": "text", "video": None}],
            "role": "assistant",
        },
    ],
    "dataset": "DREAM/youtube",
    "idx": 7,
    "extra_info": {"duration": 5.09, "events": ["A dog jumps."]},
    "vid": 7,
}
NATIVE = {"id": "n", "video": "e.mp4", "question": "What?", "answer": "It rolls.", "spans": [[1, 2]]}
ROWS = {
    "conversations": LLAVA,
    "video-r1": VIDEO_R1,
    "next-gqa": NEXT_GQA,
    "captions": {"video": "v_1", **CAPTIONS["v_1"]},
    "got10k": GOT10K,
    "messages": TARSIER,
    "clips": NATIVE,
}


def clips_of(annotations):
    assert not [item.skipped for item in annotations.items if item.skipped]
    return [item.clip for item in annotations.items]


def reasons(annotations):
    assert all((item.clip is None) == bool(item.skipped) for item in annotations.items)
    return [item.skipped for item in annotations.items]
