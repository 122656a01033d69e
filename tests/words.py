"""A tokenizer of one token a word, for tests without transformers, which is slow to import."""

import re
from types import SimpleNamespace
from typing import NamedTuple

from vpjax.data.text import Text


class WordTokenizer:
    def __init__(self):
        self.ids = {}
        self.backend_tokenizer = self

    def encode(self, text, add_special_tokens=False):
        pieces = list(re.finditer(r"<\|\w+\|>|assistant| ?\w+|\W", text))
        return SimpleNamespace(
            ids=[self.ids.setdefault(piece[0], len(self.ids) + 1) for piece in pieces],
            offsets=[piece.span() for piece in pieces],
        )

    def decode(self, ids):
        pieces = {index: piece for piece, index in self.ids.items()}
        return "".join(pieces.get(index, "") for index in ids)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        written = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = "".join(part.get("text") or f"<|{part['type']}_pad|>" for part in content)
            space = " " if message["role"] == "user" else ""
            written.append(f"<|im_start|>{message['role']}{space}{content}<|im_end|>")
        return "".join(written) + "<|im_start|>assistant"


def word_text():
    tokenizer = WordTokenizer()
    names = ("image_pad", "video_pad", "vision_start", "vision_end", "im_end", "endoftext")
    return Text(tokenizer, *(tokenizer.encode(f"<|{name}|>").ids[0] for name in names))


class StubVision(NamedTuple):
    """As much of a VisionConfig as making rows reads: Qwen2.5-VL's."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    channels: int = 3
    window: int = 112
    factor: int = 28
    hidden: int = 16
    intermediate: int = 32
    gated: bool = True


def stub_config(text):
    """As much of a VLMConfig as making rows reads."""
    return SimpleNamespace(
        image_token=text.image_pad,
        video_token=text.video_pad,
        tokens_per_second=4.0,
        vision=StubVision(),
    )
