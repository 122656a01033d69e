"""Clips, and batches of them laid out by hand, as an implementation of its own of ``vpjax.data``."""

import dataclasses

import numpy as np

from tests.tiny import END, FAMILIES, IMAGE, START, TEXT_IDS, VIDEO, cut
from vpjax.data.packing import Sizes
from vpjax.types import Batch, Prompts, Strip, Units

NONE = Sizes(0)


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a clip is like. slots: of its video, 1 for an image, 0 for text only. grid: rows and columns of a
    slot's units. before, after: tokens of the prompt around the video. answer: tokens of the answer.
    seconds: the duration of one slot."""

    slots: int = 0
    grid: tuple[int, int] = (3, 5)
    image: bool = False
    before: int = 3
    after: int = 4
    answer: int = 5
    seconds: float = 1.0


def no_tokens():
    return np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Content:
    """What a clip shows and says, wherever it stands.

    frames u8[2 * S, h, w, 3]. grid: rows and columns of a slot's units. prompt i32[p], its positions
    i32[3, p], and answer i32[a]. source i32[S]: of V~. degraded_answer i32[e]: what follows V~'s prompt;
    degraded_target, compared i32[d]: the places in it of the targets, and those in the answer of the targets
    that are compared, -1: the others. marked bool[J, S]: the slots that show each keyword.
    keywords i32[J, W], -1 padded; lemma i32[J]. number, data_set: of the clip."""

    frames: np.ndarray
    grid: tuple[int, int]
    prompt: np.ndarray
    positions: np.ndarray
    answer: np.ndarray
    source: np.ndarray
    marked: np.ndarray
    keywords: np.ndarray
    lemma: np.ndarray
    number: int = 0
    data_set: int = 0
    degraded_answer: np.ndarray = dataclasses.field(default_factory=no_tokens)
    degraded_target: np.ndarray = dataclasses.field(default_factory=no_tokens)
    compared: np.ndarray = dataclasses.field(default_factory=no_tokens)

    @property
    def shows(self):
        """The unit i32[p] that each token of the prompt shows, slot by slot and row by row; -1: text."""
        is_visual = np.isin(self.prompt, (IMAGE, VIDEO))
        return np.where(is_visual, np.cumsum(is_visual) - 1, -1).astype(np.int32)

    @property
    def per_slot(self):
        """Units of a slot."""
        return self.grid[0] * self.grid[1]

    @property
    def has_degraded(self):
        return bool((self.source != np.arange(len(self.source))).any())

    def seen(self, source):
        """``shows`` for a video whose slot s shows slot ``source[s]``."""
        out = self.shows
        at = np.flatnonzero(out >= 0)
        out[at] = source[out[at] // self.per_slot] * self.per_slot + out[at] % self.per_slot
        return out

    @property
    def all_positions(self):
        """The positions i32[3, p + a] of the prompt and the answer."""
        start = self.positions.max(initial=-1) + 1
        own = np.tile(np.arange(start, start + len(self.answer), dtype=np.int32), (3, 1))
        return np.concatenate([self.positions, own], axis=1)

    def filmed(self, source):
        """The clip of such a video: its frames really are those of other slots."""
        pairs = self.frames.reshape(len(self.source), 2, *self.frames.shape[1:])
        return dataclasses.replace(self, frames=pairs[source].reshape(self.frames.shape))


def lay_out(clip, family, tokens_per_second, rng):
    """The prompt i32[p] of a clip and its positions i32[3, p]. Text and visual tokens continue at the largest
    position so far + 1."""
    tokens, columns = [], []

    def add_text(ids):
        tokens.extend(ids)
        start = max(map(max, columns), default=-1) + 1
        columns.extend([start + i] * 3 for i in range(len(ids)))

    def add_slots(times):
        start = max(map(max, columns), default=-1) + 1
        places = [(start + t, start + y, start + x) for t in times for y, x in np.ndindex(*clip.grid)]
        tokens.extend([IMAGE if clip.image else VIDEO] * len(places))
        columns.extend(places)

    def words(count):
        return rng.integers(0, TEXT_IDS, count).tolist()

    add_text(words(clip.before))
    if clip.image:
        add_slots([0] * clip.slots)
    elif not FAMILIES[family].stamped:
        add_slots([int(slot * clip.seconds * tokens_per_second) for slot in range(clip.slots)])
    else:
        for slot in range(clip.slots):
            add_text([*words(1 + slot % 2), START])
            add_slots([0])
            add_text([END])
    add_text(words(clip.after))
    return np.array(tokens, np.int32), np.array(columns, np.int32).reshape(-1, 3).T


def contents(clips, family="qwen2_5_vl", *, tokens_per_second=2, seed=0):
    """Random content of clips, without keywords and V~. Time ids are the integer part of slot * seconds *
    tokens_per_second."""
    rng = np.random.default_rng(seed)
    out = []
    for number, clip in enumerate(clips):
        height, width = (2 * FAMILIES[family].patch * side for side in clip.grid)
        frames = rng.integers(0, 256, (2 * clip.slots, height, width, 3), dtype=np.uint8)
        if clip.image:
            frames[1] = frames[0]
        prompt, positions = lay_out(clip, family, tokens_per_second, rng)
        none = np.zeros((0, 0), np.int32)
        out.append(
            Content(
                frames=frames,
                grid=clip.grid,
                prompt=prompt,
                positions=positions,
                answer=rng.integers(0, TEXT_IDS, clip.answer, dtype=np.int32),
                source=np.arange(clip.slots, dtype=np.int32),
                marked=np.zeros((0, clip.slots), bool),
                keywords=none,
                lemma=none.ravel(),
                number=number,
            )
        )
    return out


def in_containers(groups, size, rng):
    """The members of groups in containers of ``size`` places, in random order, None in places that are left:
    a group stands in the last container or, if it does not fit, in a new one."""
    out = []
    for i in rng.permutation(len(groups)):
        if len(out) % size + len(groups[i]) > size:
            out += [None] * (-len(out) % size)
        out += [groups[i][j] for j in rng.permutation(len(groups[i]))]
    return out + [None] * (-len(out) % size)


def units(rows, vision, *, least=NONE, block=None, bin=None, seed=0):
    """Units of rows of contents, and for each row the places of each clip's units.

    The windows of a row stand in random order, whole clips mixed, and so do the units in a window and the
    slots in their bins: any such layout gives the same features. block, bin: units in each; the default has
    room for two of the largest. bin=0: none. Padding has random pixels."""
    rng = np.random.default_rng(seed)
    laid = []
    for row in rows:
        windows, slots = [], []
        for c, content in enumerate(row):
            side = vision.window // vision.factor or max(content.grid)
            for s in range(len(content.source)):
                slot, by_window = len(slots), {}
                slots.append([(c, s, y, x, slot) for y, x in np.ndindex(*content.grid)])
                for unit in slots[-1]:
                    by_window.setdefault((unit[2] // side, unit[3] // side), []).append(unit)
                windows += by_window.values()
        laid.append((windows, slots))
    block = block or 2 * max((len(window) for windows, _ in laid for window in windows), default=0) + 1
    if bin is None:
        whole = all(len(windows) == len(slots) for windows, slots in laid)
        bin = 0 if whole else 2 * max(len(slot) for _, slots in laid for slot in slots) + 1
    in_blocks = [in_containers(windows, block, rng) for windows, _ in laid]
    in_bins = [in_containers(slots, bin, rng) if bin else [] for _, slots in laid]

    count = -(-max(least.units, *map(len, in_blocks)) // block) * block
    places = -(-max(least.bins, *map(len, in_bins)) // max(bin, 1)) * bin
    window, number, binned = np.full((3, len(rows), count), -1, np.int32)
    out = Units(
        pixels=rng.integers(0, 256, (len(rows), count, 4, 6 * vision.patch**2), dtype=np.uint8),
        place=rng.integers(0, 5, (len(rows), count, 2), dtype=np.int32),
        grid=np.full((len(rows), count, 2), 5, np.int32),
        window=window,
        slot=number,
        bins=np.full((len(rows), places), -1, np.int32),
        binned=binned,
        block=block,
        bin=bin,
    )
    places_of = []
    for r, row in enumerate(rows):
        pixels = [cut(content.frames, vision.patch) for content in row]
        at = {unit: place for place, unit in enumerate(in_blocks[r]) if unit is not None}
        for unit, place in at.items():
            c, s, y, x, slot = unit
            out.pixels[r, place] = pixels[c][(s * row[c].grid[0] + y) * row[c].grid[1] + x]
            out.place[r, place], out.grid[r, place], out.slot[r, place] = (y, x), row[c].grid, slot
        for i, members in enumerate(laid[r][0]):
            out.window[r, [at[unit] for unit in members]] = i
        for z, unit in enumerate(in_bins[r]):
            if unit is not None:
                out.bins[r, z], out.binned[r, at[unit]] = at[unit], z
        in_order = sorted(at, key=lambda unit: (unit[4], *unit[2:4]))
        places_of.append(
            [np.array([at[u] for u in in_order if u[0] == c], np.int32) for c in range(len(row))]
        )
    return out, places_of


def strip(rows, length, rng):
    """A Strip of rows of pieces (tokens, positions, shows, slot), padded at the right with random tokens."""
    length = max([length, *(sum(len(piece[0]) for piece in row) for row in rows)])
    shows, slot = np.full((2, len(rows), length), -1, np.int32)
    out = Strip(
        tokens=rng.integers(0, TEXT_IDS, (len(rows), length), dtype=np.int32),
        segment=np.zeros((len(rows), length), np.int32),
        positions=np.zeros((len(rows), 3, length), np.int32),
        shows=shows,
        slot=slot,
    )
    for r, row in enumerate(rows):
        end = 0
        for number, piece in enumerate(row, start=1):
            here = slice(end, end := end + len(piece[0]))
            out.segment[r, here] = number
            out.tokens[r, here], out.positions[r, :, here], out.shows[r, here], out.slot[r, here] = piece
    return out


def piece_of(content, places, first_slot=0):
    """A clip's prompt and answer as a piece of a strip. places: of its units. first_slot: its number in the
    row."""
    own, text = content.shows, np.full(len(content.answer), -1)
    shows = np.where(own < 0, -1, np.append(places, -1)[own])
    slot = np.where(own < 0, -1, first_slot + own // content.per_slot)
    tokens = np.concatenate([content.prompt, content.answer])
    return tokens, content.all_positions, np.append(shows, text), np.append(slot, text)


def shows_degraded(content, places):
    """The units i32[p] that a clip's prompt shows of V~."""
    seen = content.seen(content.source)
    return np.where(seen < 0, -1, np.append(places, -1)[seen])


def padded(rows, least, fill=-1, dtype=np.int32, shape=()):
    """Rows of lists as one array [R, at least ``least``, *shape]."""
    out = np.full((len(rows), max([least, *map(len, rows)]), *shape), fill, dtype)
    for r, row in enumerate(rows):
        if row:
            out[r, : len(row)] = row
    return out


def packed(rows, vision, *, least=NONE, **layout):
    """A Batch of rows of contents. least: the least lengths of its lists. layout: see ``units``."""
    video, places = units(rows, vision, least=least, **layout)
    rng = np.random.default_rng(len(rows))
    slots = max([least.slots, *(sum(len(content.source) for content in row) for row in rows)])
    width = max(content.keywords.shape[1] for row in rows for content in row)
    names = ("text", "degraded", "target", "origin", "keywords", "lemma", "owner", "slots", "has_degraded")
    more = ("shared", "degraded_target", "compared", "windows", "clip")
    lists = {name: [[] for _ in rows] for name in (*names, *more)}
    for r, row in enumerate(rows):
        mine = {name: lists[name][r] for name in lists}
        token = slot = 0
        for content, own_places in zip(row, places[r], strict=True):
            piece = piece_of(content, own_places, slot)
            mine["text"].append(piece)
            again = dataclasses.replace(content, answer=content.degraded_answer)
            end = 0
            if content.has_degraded:
                end = np.flatnonzero(content.shows >= 0)[-1] + 1
            if len(again.answer):
                end = len(content.prompt) + len(again.answer)
            tokens, positions, shown, slot_of = piece_of(again, own_places, slot)
            shows = np.append(shows_degraded(content, own_places), np.full(len(again.answer), -1))
            first = int((shows != shown).argmax())
            before = sum(len(piece[0]) for piece in mine["degraded"])
            mine["degraded"].append([x[..., first:end] for x in (tokens, positions, shows, slot_of)])
            mine["degraded_target"] += list(before + len(content.prompt) - first + content.degraded_target)
            mine["shared"] += [len(mine["text"])] * first + [0] * (len(piece[0]) - first)
            first_target = len(mine["target"])
            mine["compared"] += [-1 if c < 0 else first_target + c for c in content.compared]

            first, answer = token + len(content.prompt), len(content.answer)
            mine["target"] += range(first, first + answer)
            mine["origin"] += [content.data_set] * answer
            for j, marked in enumerate(content.marked):
                number, length = len(mine["lemma"]), int(marked.sum())
                mine["keywords"].append(content.keywords[j])
                mine["lemma"].append(content.lemma[j])
                mine["owner"].append(content.number)
                mine["has_degraded"].append(content.has_degraded)
                mine["slots"].append(np.pad(marked, (slot, slots - slot - len(marked))))
                for at in range(0, len(marked) - length + 1, length) if length else ():
                    if not content.marked[:, at : at + length].any():
                        mine["windows"].append((number, slot + at, slot + at + length))
            mine["clip"].append(content.number)
            token, slot = first + answer, slot + len(content.source)
    text = strip(lists["text"], least.tokens, rng)
    return Batch(
        video=video,
        text=text,
        degraded=strip(lists["degraded"], least.degraded, rng),
        shared=padded(lists["shared"], text.tokens.shape[1], 0),
        target=padded(lists["target"], least.targets),
        origin=padded(lists["origin"], least.targets),
        degraded_target=padded(lists["degraded_target"], least.degraded_targets),
        compared=padded(lists["compared"], least.degraded_targets),
        keywords=padded(lists["keywords"], least.keywords, shape=(width,)),
        lemma=padded(lists["lemma"], least.keywords),
        owner=padded(lists["owner"], least.keywords),
        slots=padded(lists["slots"], least.keywords, False, bool, shape=(slots,)),
        has_degraded=padded(lists["has_degraded"], least.keywords, False, bool),
        windows=padded(lists["windows"], least.windows, shape=(3,)),
        clip=padded(lists["clip"], least.clips),
    )


def whole_degraded(batch):
    """The rows of V~ with all of their tokens, those that it shares with V too."""
    rows = []
    for r in range(len(batch.clip)):
        rows.append([])
        for number in range(1, batch.degraded.segment[r].max() + 1):
            before, own = (x[r] == number for x in (batch.shared, batch.degraded.segment))
            if own.any():
                both = ((batch.text, before), (batch.degraded, own))
                names = ("tokens", "positions", "shows", "slot")
                parts = [[getattr(each, name)[r][..., at] for each, at in both] for name in names]
                rows[-1].append([np.concatenate(pair, axis=-1) for pair in parts])
    return strip(rows, 0, np.random.default_rng(0))


def prompts(clips, vision, *, least=NONE, **layout):
    """Prompts of contents, one in a row; None: a row of padding. least, layout: as for ``packed``."""
    rows = [[] if content is None else [content] for content in clips]
    video, places = units(rows, vision, least=least, **layout)
    shape = np.max([content.keywords.shape for row in rows for content in row], axis=0)
    pieces, keywords = [], np.full((len(rows), *shape), -1, np.int32)
    hidden, clip = np.zeros(keywords.shape[:2], bool), np.full(len(rows), -1, np.int32)
    for r, row in enumerate(rows):
        pieces.append([piece_of(dataclasses.replace(c, answer=c.answer[:0]), places[r][0]) for c in row])
        for content in row:
            replaced = content.source != np.arange(len(content.source))
            count = len(content.marked)
            keywords[r, :count] = content.keywords
            hidden[r, :count] = (content.marked & replaced).any(axis=1)
            clip[r] = content.number
    text = strip(pieces, least.tokens, np.random.default_rng(len(rows)))
    degraded, medium = text.shows.copy(), np.where(text.shows < 0, -1, 0).astype(np.int32)
    for r, row in enumerate(rows):
        for content in row:
            degraded[r, : len(content.prompt)] = shows_degraded(content, places[r][0])
    return Prompts(video, text, medium, degraded, keywords, hidden, clip)
