"""Rows of each benchmark in its published form, with its traps."""

# MotionBench: options inside the question; "NA" is a hidden answer.
MOTION = [
    {
        "key": "a",
        "video_path": "self/a.mp4",
        "video_type": "x",
        "question_type": "Motion Recognition",
        "qa": [{"uid": "m1", "question": "What moves?\nA. a cat\nB. a dog\nC. a car", "answer": "B"}],
    },
    {
        "key": "b",
        "video_path": "b.mp4",
        "video_type": "x",
        "question_type": "Repetition Count",
        "qa": [
            {"uid": "m2", "question": "How often?\nA. 1\nB. 2", "answer": "NA"},
            {"uid": "m3", "question": "How long?\nA. 1\nB. 2", "answer": "A"},
        ],
    },
]
# VRU-Accident: options hold commas, and the last one a full stop.
VRU = {
    "./VRU_videos/CAP_DATA/VRU_1.mp4": {
        "accident reason": {
            "question": "Why?",
            "options": "A. wet, and dark, B. vision is blocked, no time to brake, C. speed, D. rain.",
            "GT": "B",
        },
        "location": {"question": "Where?", "options": "A. rural, B. urban", "GT": "A"},
    }
}
VRU_CAPTIONS = {"./VRU_videos/CAP_DATA/VRU_2": {"gt": "Two."}, "./VRU_videos/CAP_DATA/VRU_1": {"gt": "One."}}
CAPTION_A, CAPTION_B = "Caption A: It slows down.", "Caption B: It speeds up."
TEMPCOMPASS = {
    "multi-choice.json": {"10": {"speed": [{"question": "How?\nA. fast\nB. slow", "answer": "A. fast"}]}},
    "yes_no.json": {"10": {"action": [{"question": "Is it fast?", "answer": "no"}]}},
    "caption_matching.json": {
        "10": {"order": [{"question": f"Which?\n{CAPTION_A}\n{CAPTION_B}", "answer": CAPTION_B}]}
    },
    "captioning.json": [
        {
            "video_id": "10",
            "dim": "direction",
            "question": "Describe it.",
            "answer": "A. up",
            "mc_question": "Where?\nA. up\nB. down\nC. left",
            "mc_answer": "A. up",
        }
    ],
}
# The published file has nothing but the question, with the options in it, and the answer.
CAPTIONING = {
    "10": {
        "direction": [
            {
                "question": "Here are pieces of information.\n"
                "Information A: {'subject': 'man', 'direction': 'from left to right'}\n"
                "Information B: {'subject': 'man', 'direction': \"from the car's left\"}\n"
                "Generated Caption:",
                "answer": "A. from left to right",
            }
        ]
    }
}
MVBENCH = {
    "video": "x.mp4",
    "question": "What?",
    "candidates": ["one", "two", "one, two"],
    "answer": "one, two",
}
MME = {
    "videoID": "fFj",
    "question_id": "001-1",
    "question": "Which?",
    "options": ["A. Apples.", "B. A pear.", "C. Both.", "D. None."],
    "answer": "C",
    "duration": "short",
    "domain": "Knowledge",
    "task_type": "Counting",
}
MLVU = {
    "video_name": "v.mp4",
    "question": "Q?\n(A) x\n(B) y",
    "answer": "B",
    "task_type": "needle",
    "duration": 9,
}
MLVU_PUBLISHED = {
    "1_plotQA": {
        "video": "movie101_66.mp4",
        "duration": 246,
        "question": "What color is the main male character in the video?",
        "candidates": ["Yellow", "Red", "Green", "Blue"],
        "answer": "Yellow",
        "question_type": "plotQA",
    },
    "4_count": {
        "video": "count_126.mp4",
        "duration": 572.86,
        "question": "How often does the scene appear",
        "candidates": ["2", "1", "5", "4"],
        "answer": "1",
        "question_type": "count",
    },
    "9_summary": {
        "video": "217.mp4",
        "duration": 480.0,
        "question": "Please summarize this video, including its main content.",
        "answer": "The video starts with waves.",
        "question_type": "summary",
    },
}
LVB = {
    "id": "l1",
    "video_path": "l.mp4",
    "question": "Q?",
    **{f"option{i}": o for i, o in enumerate(("a cat", "a dog", "a cow", "N/A", "N/A"))},
    "correct_choice": 2,
    "duration_group": 600,
}
CHARADES = {"video": "AO8RW", "caption": "a person sits down.", "timestamp": [0.0, 6.9]}
# The original file, with a span that ends before it starts, and VideoChat-R1's.
CHARADES_TEXT = (
    "3MSZA 24.3 30.4##person turn a light on.\nAMT7R 12.5 4.3##a person is putting a picture up.\n"
)
CHARADES_R1 = {
    "3MSZA": {
        "duration": 30.96,
        "timestamps": [[24.3, 30.4], [24.3, 30.4]],
        "sentences": ["person turn a light on.", "person flipped the light switch near the door."],
    },
    "AMT7R": {"duration": 30.08, "timestamps": [[4.3, 12.5]], "sentences": ["a person puts a picture up."]},
}
# VideoChat-R1: paths of the authors' machine.
GOT = {
    "path": "/mnt/share/GOT/OpenDataLab___GOT-10k/raw/GOT-10k/val/GOT-10k_Val_000010",
    "object": "sloth",
    "gt": [[0.093, 0.0, 0.8, 0.797], [0.095, 0.0, 0.8, 0.79], [0.111, 0.093, 0.751, 0.963]],
}
# NExT-GQA: a table, the spans and the paths beside it, and VideoChat-R1's file with the same question.
GQA_TABLE = """\
video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
2574374895,719,320,240,what did the baby do,lay on floor,8,TN,clap,"the lady, sitting",lay on floor,up,crawl
"""
GQA_SPANS = {"2574374895": {"duration": 30, "location": {"8": [[23.0, 27.7]]}, "fps": 29.97}}
GQA_PATHS = {"2574374895": "1101/2574374895"}
GQA_R1 = {
    "id": "2574374895_8",
    "video": "1101/2574374895.mp4",
    "question": "what did the baby do",
    "options": ["(A) clap", "(B) the lady, sitting", "(C) lay on floor", "(D) up", "(E) crawl"],
    "duration": 30,
    "glue": [[23.0, 27.7]],
    "type": "TN",
    "answer": "(C)",
}
# Tarsier's copies: the option's letter, and the caption, are the ``reference``.
TVBENCH_TARSIER = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": "<placeholder>"}},
                {"type": "text", "text": "Question: What?\n(A) one\n(B) two\n(C) one, two"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": " Answer: ("},
                {"type": "text", "text": "", "reference": "C"},
            ],
        },
    ],
    "dataset": "TVBench/Action Antonym",
    "idx": 4,
    "vid": "action_antonym/x.avi",
}
DREAM_TARSIER = {
    "messages": [
        {
            "content": [
                {"reference": None, "text": None, "type": "video", "video": {"video_file": "<placeholder>"}},
                {"reference": None, "text": "Describe the video in detail.", "type": "text", "video": None},
            ],
            "role": "user",
        },
        {
            "content": [{"reference": "A cat runs. It falls.", "text": "", "type": "text", "video": None}],
            "role": "assistant",
        },
    ],
    "dataset": "DREAM/movie_animation",
    "idx": 1,
    "extra_info": {"events": ["A cat runs.", "The cat falls."], "n_events": 2},
    "vid": 1,
}
FAVOR = {
    "video_name": "91YZH",
    "questions": [
        {
            "task_type": "AS",
            "question": "Q?",
            "options": ["runs", "runs and jumps"],
            "correct_answer": "runs and jumps",
        }
    ],
}
DREAM = {
    "idx": 1,
    "dataset": "DREAM/movie_animation",
    "text": {"prompt": "<video>\nDescribe the video in detail.", "response": "A cat runs. It falls."},
    "video_file": "1.mp4",
    "extra_info": {"events": ["A cat runs.", "The cat falls."], "n_events": 2},
}
