"""Reads video files by PyAV: an index of a file's frames with their presentation times, and their pixels.

A file that cannot be used raises ``Problem`` without the file's name, which ``video`` adds.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vpjax.data.boxes import has_broken_fragments
from vpjax.files import AnyPath, is_remote, open_file, stamp

GAP = 10  # usual intervals between frames, from which on frames count as lost
LOST_SHARE = 0.1  # of the frames, from which on they count as lost though each gap is shorter
STREAM_PACKETS = (188, 192, 204)  # bytes of the packets of which a transport stream is made
CONSTANT_SHARE = 0.75  # of the intervals that are about the usual one in a video of constant rate
MAX_ASPECT = 4.0  # of a pixel; beyond it a header is taken to be wrong
FRAME_RATE = 25.0  # of files that do not state theirs
MAX_PIXELS = 50_000_000  # of a frame or image, so that decoding and resizing it takes less than 1 GB
SEEK_GAIN = 32  # frames that a seek must save: it costs about as much as decoding so many
THREADED = 640 * 360  # pixels of a frame, from which on decoding in several threads pays


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The N frames of a file in the order of presentation.

    times f64[N], duration, tick: seconds. pts i64[N]: identifies the decoder's frames: their timestamps in
    ticks or, if ``counted``, their number. keyframe i64[N]: the last keyframe at or before each frame. entry
    i64[N]: the timestamp to seek for a keyframe; undefined for other frames. size: (height, width) in pixels,
    and aspect: the width of a pixel over its height, both before a frame is turned upright. lost: frames that
    the file lacks by its own times (``lost_frames``) or by its header, that follow no keyframe, or that an
    edit list hides which shows fewer; 1 if a fragment or a packet of a transport stream is not whole.
    """

    times: np.ndarray
    duration: float
    tick: float
    pts: np.ndarray
    counted: bool
    keyframe: np.ndarray
    entry: np.ndarray
    size: tuple[int, int] = (0, 0)
    aspect: float = 1.0
    lost: int = 0

    def shown_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an upright frame of so many pixels as it is to be shown, in square ones."""
        is_turned = (height, width) == self.size[::-1] != self.size
        if is_turned:
            return round(height * self.aspect), width
        return height, round(width * self.aspect)


class Problem(Exception):
    """The reason why a file cannot be used, without its name."""


class BadTimestamps(Problem):
    """The frames are not at the times that the packets' timestamps give."""


def check_size(width: int, height: int, max_side: int) -> None:
    if max(width, height) > max_side:
        raise Problem(f"{width} x {height} pixels is beyond the limit of {max_side} a side (max_side)")
    if width * height > MAX_PIXELS:
        raise Problem(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")


@contextlib.contextmanager
def opened(path: AnyPath, max_side: int) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """The file and its first video stream other than cover art."""
    with contextlib.ExitStack() as files:
        file = files.enter_context(open_file(path)) if is_remote(path) else str(path)
        # A playlist in place of a video would have FFmpeg fetch what it names: from this disk if it lies
        # there itself, otherwise from nowhere.
        options = {"protocol_whitelist": "data" if is_remote(path) else "file"}
        container = files.enter_context(av.open(file, "r", metadata_errors="replace", options=options))
        if container.format.name == "tty":
            raise Problem("is a text file")  # FFmpeg would render it as a terminal
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise Problem("has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise Problem("is in a codec that FFmpeg does not know here")
        check_size(context.width, context.height, max_side)
        if context.width * context.height >= THREADED:
            context.thread_type = "AUTO"
        else:
            context.thread_count = 1
        yield container, streams[0]


def packets_of(container: InputContainer, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of these streams, or of all."""
    try:
        yield from container.demux(*streams)
    except IndexError as error:  # PyAV's, for a stream that came into sight after the file was opened
        raise Problem("is damaged: a packet is of no stream that its header names") from error


def frames_of(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of a stream as the decoder gives them."""
    for packet in packets_of(container, stream):
        yield from packet.decode()


def rate_and_tick(stream: av.VideoStream) -> tuple[float, float]:
    """Frames per second, and the seconds of one tick of the timestamps."""
    assert stream.time_base is not None, "every stream that is read has one"
    return float(stream.average_rate or FRAME_RATE), float(stream.time_base)


def aspect_of(stream: av.VideoStream) -> float:
    """The width of a pixel over its height; 1 where the file does not say, or states what no camera has."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_ASPECT <= ratio <= MAX_ASPECT else 1.0


def lost_frames(times: np.ndarray, missing: float) -> int:
    """How many frames a file lacks by its own times: those that would fill, at the usual interval, its gaps
    and what is missing of its stated duration, where these are longer than GAP intervals, or all of them
    where they add up to LOST_SHARE. 0 if its intervals vary, so that none is usual.

    times f64[N]: of the frames that it shows, ascending. missing: of its duration at its beginning and end.
    Seconds. A fragment that was lost leaves no other trace.
    """
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if not usual or np.mean(steps < 2 * usual) < CONSTANT_SHARE:
        return 0
    gaps = np.array([*(steps - usual), missing]) / usual
    lacking = gaps[gaps > 0.5].sum()
    if lacking >= max(GAP, LOST_SHARE * len(times)):
        return round(lacking)
    return round(gaps[gaps > GAP - 1].sum())


def lacking_by_rate(times: np.ndarray, rate: float, stated: float) -> int:
    """How many frames a file lacks of those that its rate and stated duration ask for, if it has less than
    half of them: too few for an interval to be usual. 0 if its intervals are longer than the rate says, as of
    pictures that are shown for a second each.

    times f64[N]: of the frames that it shows, ascending. Seconds.
    """
    expected = round(rate * stated)
    usual = np.median(np.diff(times)) if len(times) > 1 else 0.0
    return expected - len(times) if 2 * len(times) < expected and usual < 1.5 / rate else 0


def ends_inside_packet(path: AnyPath) -> bool:
    """Whether a transport stream was cut at its beginning or end, other than between two packets."""
    length, _ = stamp(path)
    return all(length % size for size in STREAM_PACKETS)


class Header(NamedTuple):
    """What a file says of itself, but for its packets.

    rate: frames per second. tick: seconds of a timestamp's unit. size, aspect: see ``FrameIndex``. seconds:
    how long the video stream lasts; 0: unknown. longest_seconds: how long the longest stream lasts, of the
    formats that state it, whose early end FFmpeg does not report; 0 of others. frames: of the video stream; 0
    for others than mp4.
    """

    rate: float
    tick: float
    size: tuple[int, int]
    aspect: float
    seconds: float
    longest_seconds: float
    frames: int
    is_mp4: bool
    is_transport: bool
    is_program: bool


def read_header(container: InputContainer, stream: av.VideoStream) -> Header:
    rate, tick = rate_and_tick(stream)
    format = container.format.name
    states_longest = format in ("matroska,webm", "flv")
    return Header(
        rate=rate,
        tick=tick,
        size=(stream.codec_context.height, stream.codec_context.width),
        aspect=aspect_of(stream),
        seconds=(stream.duration or 0) * tick,
        longest_seconds=(container.duration or 0) / av.time_base if states_longest else 0.0,
        frames=stream.frames if "mp4" in format else 0,
        is_mp4="mp4" in format,
        is_transport=format == "mpegts",
        is_program=format == "mpeg",
    )


@dataclasses.dataclass
class Packets:
    """What the packets of a file say. durations: of each frame that is shown, by its pts. dts: of each
    keyframe, likewise. ends: of each frame, shown or not, likewise; all in ticks. count: of the video
    stream's packets. has_others: whether packets of other streams were read. end: seconds at which the last
    packet ends, whichever stream's. is_corrupt: whether one is."""

    durations: dict[int, int] = dataclasses.field(default_factory=dict)
    dts: dict[int, int] = dataclasses.field(default_factory=dict)
    ends: dict[int, int] = dataclasses.field(default_factory=dict)
    count: int = 0
    has_others: bool = False
    end: float = 0.0
    is_corrupt: bool = False


def read_packets(container: InputContainer, stream: av.VideoStream, *, all_streams: bool) -> Packets:
    """Read the packets of the video stream, or of all streams. BadTimestamps for a frame without a time, and
    if the times begin anew, as where files were written one behind another."""
    found, decoded = Packets(), -math.inf
    for packet in packets_of(container, *([] if all_streams else [stream])):
        if not packet.size:  # marks the end of a stream
            continue
        duration = packet.duration or 0
        found.is_corrupt |= packet.is_corrupt
        if packet.pts is not None:
            found.end = max(found.end, float((packet.pts + duration) * packet.time_base))
        if packet.stream_index != stream.index:
            found.has_others = True
            continue
        found.count += 1
        if packet.pts is None:
            raise BadTimestamps("a packet has no presentation time")
        if packet.dts is not None:
            if packet.dts < decoded:
                raise BadTimestamps("the packets' times do not ascend")
            decoded = packet.dts
        if packet.is_keyframe:
            found.dts[packet.pts] = packet.pts if packet.dts is None else packet.dts
        found.ends[packet.pts] = packet.pts + duration
        if not packet.is_discard:
            found.durations[packet.pts] = duration
    return found


def packet_index(path: AnyPath, max_side: int) -> FrameIndex:
    """The index by the timestamps of all packets; nothing is decoded. BadTimestamps if they are not those at
    which frames are shown."""
    with opened(path, max_side) as (container, stream):
        header = read_header(container, stream)
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            # AVI has no such times, and those that FFmpeg derives for H.264 and packed MPEG-4 are wrong.
            raise BadTimestamps("frames are shown in an order that the file does not tell")
        expected = len(stream.index_entries)
        packets = read_packets(container, stream, all_streams=header.longest_seconds > 0)
        # The index of a fragmented file grows as its fragments come into sight.
        expected = max(expected, len(stream.index_entries))
    # The last frame may not state its duration.
    ends_early = packets.end < header.longest_seconds - 1.0
    if packets.is_corrupt or expected > packets.count or ends_early:
        raise Problem(f"is cut short or damaged after {len(packets.durations)} frames")
    begin = min(packets.dts, default=-math.inf)  # of a clip cut out of a film: what is before has no keyframe
    pts = np.array(sorted(p for p in packets.durations if p >= begin), np.int64)
    if not len(pts):
        raise Problem("has no decodable frame")
    lost = lost_by_packets(header, packets, pts)
    if not lost:
        has_half = header.is_mp4 and has_broken_fragments(path)
        lost = int(has_half or (header.is_transport and ends_inside_packet(path)))
    numbers = np.arange(len(pts))
    keyframe = np.maximum.accumulate(np.where(np.isin(pts, list(packets.dts)), numbers, 0))
    if header.is_program:  # few of its frames have a time, and after a seek FFmpeg derives others than before
        keyframe[:] = 0
    last_seconds = packets.durations[int(pts[-1])] * header.tick or 1 / header.rate
    return FrameIndex(
        times=(pts - pts[0]) * header.tick,
        duration=float(pts[-1] - pts[0]) * header.tick + last_seconds,
        tick=header.tick,
        pts=pts,
        counted=False,
        keyframe=keyframe,
        entry=np.array([packets.dts.get(int(p), 0) for p in pts]),
        size=header.size,
        aspect=header.aspect,
        lost=lost,
    )


def hidden_beyond(packets: Packets) -> int:
    """How many frames a file's edit list hides, if it hides more than it shows: none that anybody made, but
    one whose numbers are damaged. Without those from which the first that is shown is decoded, as a clip has
    that was cut out of a film without decoding."""
    shown = packets.durations
    first = min(shown, default=0)
    begin = max((pts for pts in packets.dts if pts <= first), default=first)
    hidden = sum(pts not in shown and not begin <= pts < first for pts in packets.ends)
    return hidden if hidden > len(shown) else 0


def lost_by_packets(header: Header, packets: Packets, pts: np.ndarray) -> int:
    """How many frames a file lacks by its header and the times of its packets. pts i64[N]: of the frames that
    can be decoded, ascending."""
    span = (max(packets.ends.values()) - min(packets.ends)) * header.tick
    missing = 0.0
    if header.seconds:
        missing = header.seconds - span
    elif header.longest_seconds:  # of another stream than this, perhaps
        missing = header.longest_seconds - (packets.end if packets.has_others else span)
    lost = lost_frames(np.array(sorted(packets.durations)) * header.tick, missing)
    # What only the header knows, and what an edit list hides, may be what lacks by the times as well.
    unseen = (header.frames - packets.count, hidden_beyond(packets))
    lost = max(lost, sum(count for count in unseen if count >= GAP))
    before_keyframe = len(packets.durations) - len(pts)
    if before_keyframe >= GAP:
        lost += before_keyframe
    return max(lost, lacking_by_rate(pts * header.tick, header.rate, header.longest_seconds))


def frame_index(path: AnyPath, max_side: int) -> FrameIndex:
    """The index by decoding the whole file: its frames' timestamps if they ascend, else its frame rate."""
    with opened(path, max_side) as (container, stream):
        stated = (stream.duration or 0) * rate_and_tick(stream)[1]
        if not stated and len(container.streams) == 1:
            stated = (container.duration or 0) / av.time_base
        pts = [frame.pts for frame in frames_of(container, stream)]
        rate, tick = rate_and_tick(stream)
        if all(p is None for p in pts):  # of a bare stream, which has no header around it to state the rate
            rate = float(stream.codec_context.framerate or rate)
        size, aspect = (stream.codec_context.height, stream.codec_context.width), aspect_of(stream)
    if not pts:
        raise Problem("has no decodable frame")
    numbers = np.arange(len(pts))
    times = numbers / rate
    known = np.array([p for p in pts if p is not None])
    if len(known) == len(pts) and np.all(np.diff(known) > 0):
        times = (known - known[0]) * tick
    none = np.zeros_like(numbers)  # no frame after the first is sought
    end = float(times[-1]) + 1 / rate
    lost = lost_frames(times, stated - end if stated else 0.0)
    return FrameIndex(times, end, tick, numbers, True, none, none, size, aspect, lost)


def decode_frames(
    path: AnyPath, index: FrameIndex, chosen: np.ndarray, max_side: int
) -> Iterator[np.ndarray]:
    """The upright frames u8[h,w,3] at ``chosen``, which ascends; by seeking where that saves decoding."""
    # One converter for all, in one thread: creating one costs more than converting a small frame.
    convert = VideoReformatter()
    with opened(path, max_side) as (container, stream):
        frames = enumerate(frames_of(container, stream))
        following = 0  # number of the frame that the decoder gives next
        last = -math.inf  # the timestamp of the frame before it
        for number in chosen:
            keyframe = index.keyframe[number]
            if keyframe - following >= SEEK_GAIN:
                container.seek(int(index.entry[keyframe]), stream=stream)
                frames = enumerate(frames_of(container, stream))
                last = -math.inf
            pts = None
            for count, frame in frames:
                pts = count if index.counted else frame.pts
                if pts is not None and pts < last:
                    raise BadTimestamps("frames come in another order than their timestamps")
                if pts is None or pts >= index.pts[number]:
                    break
                last = pts
            if pts != index.pts[number] or frame.is_corrupt:
                raise BadTimestamps(f"the frame at {index.times[number]:.3f} s cannot be decoded")
            following, last = number + 1, index.pts[number]
            check_size(frame.width, frame.height, max_side)
            yield upright(convert.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame)


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The image u8[h,w,3] of a frame, turned or mirrored by its display matrix."""
    try:
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # PyAV's stub takes str
    except ValueError:  # PyAV reads no side data of a frame if it does not know one kind of it, such as EXIF
        return np.rot90(image, round(frame.rotation / 90))
    if matrix is None:
        return image
    # The matrix moves a point (x, y) to (a x + c y, b x + d y). It turns and mirrors, so two of its entries
    # are 0, and of the others only the signs matter.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
