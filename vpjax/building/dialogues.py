"""Conversations -> clips: LLaVA, Qwen-VL, Tarsier, TRL.

A conversation becomes one clip with all of its turns, and with all the videos and images that it shows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from vpjax.building.fields import (
    JsonObject,
    Medium,
    Rejected,
    as_list,
    extra_fields,
    field,
    in_shown_order,
    media_of,
    short,
    shown_fields,
    with_marks,
)
from vpjax.building.items import Item, clip_item
from vpjax.data.clips import parse_part
from vpjax.data.published import tarsier_video
from vpjax.types import Turn

FRAME_FIELDS = ("start_frame", "end_frame", "frame_indices", "time_indices")  # of Tarsier
# Fields by which TRL, ms-swift and LLaMA-Factory mark whole answers as good or bad, and by which these and
# OpenAI leave an answer of a dialogue out of the loss.
MARKS_OF_ROW = ("label", "kto_tag")
MARKS_OF_ANSWER = ("weight", "loss", "loss_scale", "loss_weight")
BOX_TAGS = ("<ref-object>", "<bbox>")  # of ms-swift, in whose place a row's ``objects`` stand
ROLES = dict(human="user", user="user", gpt="assistant", assistant="assistant", system="system")


def dialogue_items(
    row: JsonObject,
    turns: Sequence[tuple[str, str]],
    media: Sequence[Medium],
    part: JsonObject,
    *,
    tagged: bool,
    **fields: Any,
) -> Iterator[Item]:
    """The item of a conversation, if it has turns.

    turns: (role, text). part: with the ``start`` and ``end`` of the video's part, if they are given. tagged:
    see ``in_shown_order``. Rejected if it is not known of which video the part is, and if the row is one to
    learn from otherwise than by its texts, videos and images.
    """
    check_row(row, [text for _, text in turns])
    given = {name: part[name] for name in ("start", "end") if part.get(name) is not None}
    if len(media) > 1 and given:
        raise Rejected(f"part of one of several videos: {short(given)}")
    fields |= parse_part(given)
    media = in_shown_order(media, [text for role, text in turns if role == "user"], tagged=tagged)
    shown = shown_fields(media)
    system = field(row, "system", default="").strip()  # LLaMA-Factory's, for a dialogue that has none itself
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1].strip(), turns[1:]
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(f"the turns of its dialogue are {short(roles)}")
    if not turns:
        return
    questions = with_marks([text for _, text in turns[::2]], len(media))
    answers = [text.strip() for _, text in turns[1::2]]
    yield clip_item(
        id=row.get("id"),
        question=questions[-1],
        answer=answers[-1],
        system=system,
        turns=tuple(map(Turn, questions[:-1], answers[:-1])),
        **shown,
        **fields,
    )


def check_row(row: JsonObject, texts: Sequence[str]) -> None:
    """Rejected for a row whose answer is marked as a bad one, or which needs more than its ``texts``, videos
    and images."""
    for name in MARKS_OF_ROW:
        if row.get(name) is False:
            raise Rejected(f"answer that is marked as a bad one ({name})")
    if any(row.get(name) and row[name] == row[name] for name in ("audio", "audios")):  # NaN: none
        raise Rejected("row about sound, which no model here hears (audios)")
    if row.get("objects") and any(tag in text for text in texts for tag in BOX_TAGS):
        raise Rejected("row with boxes beside its text (objects): write them where <bbox> stands")


def role_of(turn: Any, name: str) -> str:
    """The role of a turn's speaker, from its field ``name``. Rejected for an answer that is not to be
    trained on."""
    role = turn.get(name) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{short(turn)} has none of the roles {', '.join(ROLES)}")
    for mark in MARKS_OF_ANSWER:
        if ROLES[role] == "assistant" and turn.get(mark, 1) in (0, False):
            raise Rejected(f"answer of {mark} 0: all answers are trained, or with data.train_turns=last one")
    return ROLES[role]


def conversation_items(row: JsonObject) -> Iterator[Item]:
    """LLaVA, LLaVA-Video and the fine-tuning format of Qwen-VL: as many media tags as media. ``start`` and
    ``end`` of a row are the part of its video."""
    turns = [(role_of(turn, "from"), field(turn, "value")) for turn in field(row, "conversations", list)]
    extra = extra_fields(row, "data_source")
    yield from dialogue_items(row, turns, media_of(row), row, tagged=True, extra=extra)


def message_items(row: JsonObject) -> Iterator[Item]:
    """Tarsier (``reference`` is the target, a time of 0 or -1 the video's own) and TRL's conversations
    (messages, or prompt and completion), with ``video_start`` and ``video_end`` as in qwen-vl-utils, and
    ``path`` and ``url`` as in transformers. The pieces of a message follow one another as chat templates
    write them, with nothing in between."""
    turns: list[tuple[str, str]] = []
    media = media_of(row)
    parts: list[JsonObject] = []
    for turn in message_turns(row):
        role = role_of(turn, "role")
        texts = []
        for piece in pieces_of(turn):
            text, shown, part = read_piece(row, piece, role)
            texts.append(text)
            media += shown
            if part:
                parts.append(part)
        turns.append((role, "".join(texts)))
    extra = extra_fields(row, "dataset", "task")
    yield from dialogue_items(row, turns, media, parts[0] if parts else {}, tagged=False, extra=extra)


def pieces_of(turn: JsonObject) -> list[Any]:
    """The pieces of a message, of which a text is one."""
    if isinstance(turn.get("content"), str):
        return [dict(type="text", text=turn["content"])]
    return field(turn, "content", list)


def read_piece(row: JsonObject, piece: Any, role: str) -> tuple[str, list[Medium], JsonObject]:
    """The text of a piece of a message, or its media tag, the videos or images that it names, and the part of
    them that is shown: ``start`` and ``end`` in seconds, if they are given."""
    kind = piece.get("type") if isinstance(piece, dict) else None
    if kind == "text":
        return field(piece, "reference" if piece.get("reference") else "text"), [], {}
    if kind not in ("video", "image"):
        raise ValueError(f"{short(piece)} is neither text nor video nor image")
    if role != "user":
        raise ValueError(f"{short(piece)} is in no question")
    medium = piece.get(kind) or piece.get("path") or piece.get("url")
    times = dict(start=piece.get("video_start"), end=piece.get("video_end"))
    if isinstance(medium, dict):
        # Which seconds these are, the file alone says. Number 0 and -1 are its first and last frame.
        if frames := {name: x for name in FRAME_FIELDS if (x := medium.get(name)) not in (None, 0, -1)}:
            raise Rejected(f"some frames of a video, by number: {short(frames)}")
        times = dict(start=medium.get("start_time"), end=medium.get("end_time"))
        medium = medium.get(f"{kind}_file")
    part = {name: at for name, at in times.items() if at not in (None, 0, -1)}
    paths = [] if medium is None else as_list(medium)
    return f"<{kind}>", [(kind, tarsier_video(row, path)) for path in paths], part


def message_turns(row: JsonObject) -> list[Any]:
    """The turns of a row in the form of Tarsier or in either of TRL's."""
    if "messages" in row:
        return field(row, "messages", list)
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(name), str):
            turns.append(dict(role=role, content=row[name]))
        else:
            turns += field(row, name, list)
    return turns
