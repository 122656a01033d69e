"""The tokens of a clip: the tokenizer, the chat template and the places of the visual tokens.

Only what loads a tokenizer imports transformers and tokenizers, so that data workers start quickly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vpjax.data.positions import Stamps, is_visual
from vpjax.data.tokenizer import END, SPECIALS
from vpjax.files import AnyPath, read_object
from vpjax.types import MEDIA_TAG, Clip, Turn, UserError, word_place

if TYPE_CHECKING:
    from tokenizers import Encoding

Media = Literal["video", "image"]
TrainTurns = Literal["all", "last"]

OPENING = re.compile(r"<think>\s*\Z")
TEMPLATE_SECONDS = 20.0  # in which a chat template writes a prompt: thousands of times what Qwen's need
REWRITTEN = (
    "the chat template does not write an earlier answer as it stands: it may leave out reasoning, or join a "
    "line break at its beginning; data.train_turns='last' trains the last answer only"
)


class EndlessTemplate(Exception):
    """A chat template, a program of the model's folder, that takes longer than TEMPLATE_SECONDS."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A tokenizer with its chat template, and the ids of the special tokens.

    image_pad, video_pad: the placeholders of visual tokens. end: ``<|im_end|>``, which closes an answer. pad:
    ``<|endoftext|>``; masks are never made by comparing with it.
    """

    tokenizer: Any
    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    end: int
    pad: int

    @classmethod
    def load(cls, folder: AnyPath) -> Text:
        """Read a Hugging Face tokenizer folder. UserError if it is not that of a Qwen video model."""
        # Not AutoTokenizer, which reads the same file after importing PyTorch where that is installed.
        from transformers import PreTrainedTokenizerFast

        for file in ("tokenizer_config.json", "tokenizer.json"):
            if not (Path(folder) / file).is_file():
                raise UserError(f"{folder}: no {file}; give a Hugging Face model folder")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # tokenizers raises no class of its own for a broken file
            raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from error
        backend = tokenizer.backend_tokenizer  # which ``encoded`` calls: a text is neither cut nor padded
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        ids: dict[str, int] = tokenizer.get_vocab()
        missing = [token for token in SPECIALS if token not in ids and token != "<|vision_pad|>"]
        if missing:
            raise UserError(f"{folder}: the tokenizer lacks {', '.join(missing)}; use a Qwen video model's")
        of_processor = Path(folder) / "chat_template.json"
        if of_processor.is_file():  # of older folders, whose processors write prompts by it
            tokenizer.chat_template = read_object(of_processor, "download it again").get("chat_template")
        if not tokenizer.chat_template:
            raise UserError(f"{folder}: the tokenizer has no chat template (chat_template.jinja)")
        text = cls(
            tokenizer,
            image_pad=ids["<|image_pad|>"],
            video_pad=ids["<|video_pad|>"],
            vision_start=ids["<|vision_start|>"],
            vision_end=ids["<|vision_end|>"],
            end=ids[END],
            pad=ids["<|endoftext|>"],
        )
        try:
            with contextlib.suppress(UserError):  # which names the clip or prompt whose template fails
                text.written(messages_of("What happens?", ("video",)))
        except EndlessTemplate as error:
            raise UserError(f"{folder}: {error}; give a folder with another one") from error
        return text

    @property
    def stops(self) -> tuple[int, int]:
        """The ids at which generation ends."""
        return self.end, self.pad

    @functools.lru_cache(1 << 12)  # noqa: B019 - data sets repeat few questions, and a run has one tokenizer
    def chat(
        self,
        question: str,
        media: tuple[Media, ...] = ("video",),
        turns: tuple[Turn, ...] = (),
        system: str = "",
    ) -> np.ndarray:
        """The prompt i32[p] of a question and the turns before it, to the end of the assistant's header, with
        one placeholder for each video or image, at its place. UserError if a text contains a placeholder, or
        the questions have another number of MEDIA_TAGs."""
        prompt = self.written(messages_of(question, media, turns, system))
        ids = np.array(self.encode(prompt), np.int32)
        found = is_visual(ids, (self.image_pad, self.video_pad)).sum()
        if found != len(media):
            about = " and ".join(media) or "text"
            raise UserError(f"{about} prompt with {found} places for media: {prompt[:80]!r}")
        return ids

    def prompt(self, clip: Clip, media: tuple[Media, ...] = ("video",)) -> np.ndarray:
        """The prompt i32[p] that a clip's answer follows, see ``chat``."""
        return self.chat(clip.question, media, clip.turns, clip.system)

    def earlier_answers(self, clip: Clip, media: tuple[Media, ...] = ("video",)) -> tuple[np.ndarray, ...]:
        """The places i32[c] in a clip's prompt of the answer of each earlier turn and the token that ends it.
        UserError if the prompt does not have exactly the tokens of ``answer`` there."""
        messages = messages_of(clip.question, media, clip.turns, clip.system)
        prompt = self.written(messages)
        tokens = self.encoded(prompt)
        ids = np.array(tokens.ids, np.int32)
        starts = np.array([start for start, _ in tokens.offsets])
        said = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        answers = []
        for turn, number in zip(clip.turns, said, strict=True):
            header, answer = self.written(messages[:number]), turn.answer + END
            inside = (starts >= len(header)) & (starts < len(header + answer))
            places = np.flatnonzero(inside).astype(np.int32)
            is_whole = np.array_equal(ids[places], self.answer(turn.answer))
            if not (is_whole and prompt.startswith(header + answer)):
                raise UserError(REWRITTEN)
            answers.append(places)
        return tuple(answers)

    def written(self, messages: Sequence[dict[str, Any]]) -> str:
        """Messages as the chat template writes them, and the header of the assistant's next one. The template
        is a program of the model's folder, which transformers runs in Jinja's sandbox: UserError if it fails,
        EndlessTemplate if it does not end."""
        rendered: list[str | Exception] = []

        def run() -> None:
            try:
                done = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # whatever a template's own code raises
                done = error
            rendered.append(done)

        thread = threading.Thread(target=run, daemon=True)  # it cannot be ended, and does not outlive us
        thread.start()
        thread.join(TEMPLATE_SECONDS)
        if not rendered:
            raise EndlessTemplate(f"the chat template does not end within {TEMPLATE_SECONDS:g} s")
        if isinstance(rendered[0], Exception):
            raise UserError(f"the chat template fails: {rendered[0]}") from rendered[0]
        return rendered[0]

    def answer(self, answer: str) -> np.ndarray:
        """i32[c]: the answer and the token that ends it."""
        return np.array([*self.encode(answer), self.end], np.int32)

    def keyword(self, keyword: str, answer: str) -> tuple[list[int], list[int]]:
        """The places of a keyword's tokens in the answer, leading space included, and their ids: where it
        stands by itself, else within another word, as in a script without spaces. An answer that does not
        contain it (for example the letter of an option) gives no places, and the ids of ``" " + keyword``."""
        start = word_place(answer, keyword)
        if start < 0:
            start = answer.find(keyword)
        if start < 0:
            return [], self.encode(" " + keyword)
        tokens = self.encoded(answer)
        end = start + len(keyword)
        places = [i for i, (a, b) in enumerate(tokens.offsets) if a < end and b > start]
        return places, [tokens.ids[i] for i in places]

    @functools.cached_property
    def stamps(self) -> Stamps | None:
        """The pieces of times in words; None for a tokenizer that merges digits, which Qwen's do not."""
        pieces = ("<", *"0123456789.", " seconds>")
        stamps = Stamps({piece: tuple(self.encode(piece)) for piece in pieces})
        return stamps if stamps.write(9876543210.5) == self.encode("<9876543210.5 seconds>") else None

    def stamps_of(self, prompt: np.ndarray) -> Stamps | None:
        """``stamps`` of the videos of a prompt, which know what of the text before them they change."""
        if self.stamps is None:
            return None
        ids, openings = prompt.tolist(), {}
        for at in np.flatnonzero(prompt == self.video_pad).tolist():
            marked = ids[at - 1 : at] == [self.vision_start] and ids[at + 1 : at + 2] == [self.vision_end]
            first = end = at - 1 if marked else at
            while first and ids[first - 1] not in self.specials:
                first -= 1
            rewritten, opening = self.opened(tuple(ids[first:end]))
            if rewritten:
                openings[at] = rewritten, opening
        return dataclasses.replace(self.stamps, openings=openings)

    @functools.lru_cache(1 << 12)  # noqa: B019 - as for ``chat``
    def opened(self, before: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """How many of the last tokens of a text are others if "<" follows it, and these with the "<"."""
        written = self.tokenizer.decode(before, clean_up_tokenization_spaces=False)
        together = self.encode(written + "<")
        kept = 0
        while kept < len(before) and before[kept] == together[kept]:
            kept += 1
        return len(before) - kept, tuple(together[kept:])

    @functools.cached_property
    def specials(self) -> frozenset[int]:
        """The ids of tokens that are no text."""
        return frozenset(self.tokenizer.get_added_vocab().values())

    @functools.lru_cache(1 << 12)  # noqa: B019 - as for ``chat``; a keyword is sought in its answer's tokens
    def encoded(self, text: str) -> Encoding:
        """The tokens of a text and their places in it. transformers' own call returns the same, but takes
        four times as long."""
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)

    def encode(self, text: str) -> list[int]:
        return self.encoded(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without its special ones, after the ``opening`` of its prompt."""
        said = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.opening + said

    @functools.cached_property
    def opening(self) -> str:
        """The beginning of a thought that the chat template writes after the assistant's header, as those of
        Thinking models do, so that completions lack it; "" of other models."""
        with contextlib.suppress(UserError):  # which names the clip or prompt whose template fails
            if found := OPENING.search(self.written(messages_of("What happens?", ("video",)))):
                return found[0]
        return ""


def messages_of(
    question: str, media: Sequence[Media], turns: Sequence[Turn] = (), system: str = ""
) -> list[dict[str, Any]]:
    """The messages of a conversation up to its last question, in the form that chat templates read. Videos
    and images are parts of a question: in order where MEDIA_TAGs stand, and without any before the first
    question. In a text without media a MEDIA_TAG means nothing. UserError for another number of them."""
    questions = [*(turn.question for turn in turns), question]
    marks = sum(text.count(MEDIA_TAG) for text in questions)
    if not marks:
        questions[0] = MEDIA_TAG * len(media) + questions[0]
    elif media and marks != len(media):
        raise UserError(f"{marks} places for media, which are {len(media)}: {question[:80]!r}")
    waiting = list(media)
    messages: list[dict[str, Any]] = [dict(role="system", content=system)] if system else []
    for number, text in enumerate(questions):
        content: list[dict[str, str]] = []
        for place, piece in enumerate(text.split(MEDIA_TAG, len(waiting))):
            if place:
                content.append({"type": waiting.pop(0)})
            if piece:
                content.append({"type": "text", "text": piece})
        messages.append(dict(role="user", content=content))
        if number < len(turns):
            messages.append(dict(role="assistant", content=turns[number].answer))
    return messages


def without_media(clip: Clip) -> Clip:
    """A clip whose questions do not say where its videos and images stand, to be asked without them."""
    turns = tuple(Turn(turn.question.replace(MEDIA_TAG, ""), turn.answer) for turn in clip.turns)
    return dataclasses.replace(clip, question=clip.question.replace(MEDIA_TAG, ""), turns=turns)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The token ids of a clip, and the rest of the data from which its row is made.

    prompt i32[p], each of its media still one placeholder; answer i32[c], its end included; keywords i32[J,
    W], -1 padded; lemma i32[J], -1: none; spans: of each keyword, in seconds; videos: of each, the number in
    ``Clip.media`` of the video to which they belong; places: of each keyword's tokens in ``targets``;
    left_out: a keyword with a known time is not among them; degraded_answer i32[e]: the answer that is true
    of V~, its end included, empty: unknown; stamps: see ``positions.with_media``; notes: remarks; earlier:
    the places i32[c] in the prompt of each answer of an earlier turn that is trained on.
    """

    prompt: np.ndarray
    answer: np.ndarray
    keywords: np.ndarray
    lemma: np.ndarray
    spans: tuple[tuple[tuple[float, float], ...], ...]
    videos: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    degraded_answer: np.ndarray
    left_out: bool = False
    stamps: Stamps | None = None
    notes: tuple[str, ...] = ()
    earlier: tuple[np.ndarray, ...] = ()

    def spans_in(self, medium: int) -> tuple[tuple[tuple[float, float], ...], ...]:
        """``spans``, empty for the keywords of other videos than this one."""
        pairs = zip(self.spans, self.videos, strict=True)
        return tuple(spans if own == medium else () for spans, own in pairs)

    @property
    def targets(self) -> np.ndarray:
        """The tokens that are trained on: their places i32[a] in the prompt and the answer after it."""
        own = len(self.prompt) + np.arange(len(self.answer), dtype=np.int32)
        return np.concatenate([*self.earlier, own])


def tokenize(
    clip: Clip,
    text: Text,
    *,
    media: tuple[Media, ...] = ("video",),
    keywords: int = 0,
    keyword_tokens: int = 0,
    train_turns: TrainTurns = "last",
) -> Tokens:
    """A clip's tokens, with its first J = ``keywords`` keywords of at most W = ``keyword_tokens`` tokens.
    train_turns: the answers that are trained on. A keyword belongs to the first answer that names it."""
    earlier: tuple[np.ndarray, ...] = ()
    if clip.turns and train_turns == "all":
        earlier = text.earlier_answers(clip, media)
    prompt = text.prompt(clip, media)
    degraded_answer = np.zeros(0, np.int32)
    notes: tuple[str, ...] = ()
    if clip.degraded_answer:
        if any(clip.turn_naming(keyword.text) < len(clip.turns) for keyword in clip.keywords):
            notes = ("degraded_answer left out: an earlier answer names what V~ hides",)
        else:
            degraded_answer = text.answer(clip.degraded_answer)
    tokens = Tokens(
        prompt=prompt,
        answer=text.answer(clip.answer),
        keywords=np.full((keywords, keyword_tokens), -1, np.int32),
        lemma=np.full(keywords, -1, np.int32),
        spans=((),) * keywords,
        videos=(0,) * keywords,
        places=((),) * keywords,
        degraded_answer=degraded_answer,
        stamps=text.stamps_of(prompt),
        notes=notes,
        earlier=earlier,
    )
    return with_keywords(tokens, clip, text)


def with_keywords(tokens: Tokens, clip: Clip, text: Text) -> Tokens:
    """A clip's tokens with those of its keywords, of which there is room for J of up to W tokens."""
    count, most_tokens = tokens.keywords.shape
    # The place in ``targets`` at which each turn's answer begins; None: it is not trained on.
    begins: list[int | None] = [None] * (len(clip.turns) - len(tokens.earlier))
    begins += np.cumsum([0, *map(len, tokens.earlier)]).tolist()
    ids, lemma = tokens.keywords.copy(), tokens.lemma.copy()
    spans, videos, places = list(tokens.spans), list(tokens.videos), list(tokens.places)
    left_out = any(keyword.spans for keyword in clip.keywords[count:])
    notes = []
    if count and len(clip.keywords) > count:
        notes.append(f"keywords beyond the first {count} left out (data.keywords)")
    for j, keyword in enumerate(clip.keywords[:count]):
        turn = clip.turn_naming(keyword.text)
        if turn < clip.turn_showing(keyword.video):  # the video's states would read it
            notes.append("keyword left out: an answer before the video names it")
            continue
        places_in_answer, pieces = text.keyword(keyword.text, clip.dialogue[turn].answer)
        if not 0 < len(pieces) <= most_tokens:
            notes.append(f"keyword of more than {most_tokens} tokens left out (data.keyword_tokens)")
            left_out |= bool(keyword.spans)
            continue
        ids[j, : len(pieces)] = pieces
        lemma[j] = zlib.crc32(keyword.lemma.encode()) & 0x7FFFFFFF  # the same number in every process and run
        spans[j], videos[j] = keyword.spans, keyword.video
        begin = begins[turn]
        if begin is not None:
            places[j] = tuple(begin + place for place in places_in_answer)
    return dataclasses.replace(
        tokens,
        keywords=ids,
        lemma=lemma,
        spans=tuple(spans),
        videos=tuple(videos),
        places=tuple(places),
        left_out=left_out,
        notes=(*notes, *tokens.notes),
    )
