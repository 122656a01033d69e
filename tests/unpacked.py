"""What a batch says of each of its clips, wherever the clip stands: packed rows split back into clips."""

import numpy as np

from vpjax.data.packing import Sizes


def same(ours, theirs):
    """Whether all arrays of two dicts are equal; says which are not."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def seen(units, r, strip, at, first_slot):
    """What the tokens ``at`` of a strip of row ``r`` are and show: ids, positions, the pixels u8[t,4,X] of
    their units (0 for text), place and grid, the slot in which they stand and the one that they show. Slots
    count from the clip's first."""
    shows = strip.shows[r, at]
    visual = shows >= 0
    np.testing.assert_array_equal(visual, strip.slot[r, at] >= 0)

    def of_unit(values):
        out = np.zeros((len(at), *values.shape[1:]), values.dtype)
        out[visual] = values[shows[visual]]
        return out

    return dict(
        tokens=strip.tokens[r, at],
        positions=strip.positions[r][:, at],
        pixels=of_unit(units.pixels[r]),
        place=of_unit(units.place[r]),
        grid=of_unit(units.grid[r]),
        slot=np.where(visual, strip.slot[r, at] - first_slot, -1),
        shown=np.where(visual, of_unit(units.slot[r]) - first_slot, -1),
    )


def groups_of(units, r, shows):
    """For each unit in ``shows``, the number of its window and of its slot by their first unit there. All
    units of such a window or slot must be there."""
    out = []
    for labels in (units.window[r], units.slot[r]):
        inside = labels[shows]
        assert np.isin(labels, inside).sum() == len(shows) and (inside >= 0).all()
        _, first, inverse = np.unique(inside, return_index=True, return_inverse=True)
        out.append(first[inverse])
    return out


def check_units(units):
    """Windows stand in one block and slots in one bin, each place is used once, and padding is nobody's."""
    for window, slot, bins, binned in zip(units.window, units.slot, units.bins, units.binned, strict=True):
        used = window >= 0
        np.testing.assert_array_equal(used, slot >= 0)
        blocks = np.arange(len(window)) // max(units.block, 1)
        assert len(set(zip(window[used], blocks[used], strict=True))) == len(set(window[used]))
        if units.bin:
            np.testing.assert_array_equal(binned >= 0, used)
            np.testing.assert_array_equal(bins[binned[used]], np.flatnonzero(used))
            assert (bins >= 0).sum() == used.sum()
            numbers = binned[used] // units.bin
            assert len(set(zip(slot[used], numbers, strict=True))) == len(set(slot[used]))
        else:
            assert not len(bins) and (binned == -1).all()


def clips_of(batch):
    """What a Batch says of its clips: {clip number: dict of arrays}. One that comes twice is the same."""
    check_units(batch.video)
    out = {}
    for r in range(len(batch.clip)):
        owners = batch.owner[r]
        last_slot = 0
        for n, number in enumerate(batch.clip[r]):
            at = np.flatnonzero(batch.text.segment[r] == n + 1)
            assert (number >= 0) == (len(at) > 0)
            if number < 0:
                continue
            assert (np.diff(at) == 1).all()
            slots = batch.text.slot[r, at]
            count = len(set(slots[slots >= 0]))
            part = seen(batch.video, r, batch.text, at, last_slot)
            shows = batch.text.shows[r, at]
            part["windows"], part["slots"] = groups_of(batch.video, r, shows[shows >= 0])
            again = np.flatnonzero(batch.degraded.segment[r] == n + 1)
            degraded = seen(batch.video, r, batch.degraded, again, last_slot)
            part |= {f"degraded_{name}": value for name, value in degraded.items()}

            shared = np.flatnonzero(batch.shared[r] == n + 1)
            np.testing.assert_array_equal(shared, at[: len(shared)])
            part["shared"] = len(shared)
            mine = np.isin(batch.target[r], at)
            part |= dict(target=batch.target[r][mine] - at[0], origin=batch.origin[r][mine])
            is_again = np.isin(batch.degraded_target[r], again)
            compared = batch.compared[r][is_again]
            assert (batch.degraded_target[r][is_again] >= 0).all()
            same_token = np.where(compared < 0, -1, batch.target[r][compared] - at[0])
            first = again[0] if len(again) else 0
            part |= dict(degraded_target=batch.degraded_target[r][is_again] - first, compared=same_token)
            keywords = np.flatnonzero((owners == number) & (batch.lemma[r] >= 0))
            own_slots = slice(last_slot, last_slot + count)
            key_slots = batch.slots[r][keywords]
            assert key_slots.sum() == key_slots[:, own_slots].sum()  # none of another clip
            part |= dict(
                keywords=batch.keywords[r][keywords],
                lemma=batch.lemma[r][keywords],
                key_slots=key_slots[:, own_slots],
                has_degraded=batch.has_degraded[r][keywords],
            )
            windows = batch.windows[r][np.isin(batch.windows[r][:, 0], keywords)]
            first = keywords[0] if len(keywords) else 0
            part["free"] = windows - [first, last_slot, last_slot]
            if int(number) in out:
                same(part, out[int(number)])
            out[int(number)] = part
            last_slot += count
        assert (batch.video.slot[r] < last_slot).all() and not batch.slots[r][:, last_slot:].any()
        assert (batch.target[r] >= 0).sum() == (batch.origin[r] >= 0).sum()
        assert not ((batch.degraded_target[r] < 0) & (batch.compared[r] >= 0)).any()
    return out


def sizes_of(row):
    """What a row of ``data.rows`` takes, counted one by one."""
    free = start = 0
    for count in row.counts:  # of each of the clip's videos
        for slots in row.slots:
            length = slots[start : start + count].sum()
            for first in range(start, start + count - length + 1, length) if length else ():
                free += not row.slots[:, first : first + length].any()
        start += count
    return Sizes(
        tokens=len(row.text.tokens),
        units=len(row.video.window),
        bins=len(row.video.bins),
        degraded=len(row.degraded.tokens),
        targets=len(row.target),
        keywords=int((row.lemma >= 0).sum()),
        slots=row.slots.shape[1],
        windows=int(free),
        degraded_targets=len(row.degraded_target),
    )
