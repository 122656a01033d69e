"""The configs of transformers' processors: how other clients read a run's images and videos, and how those of
a Hugging Face folder are read here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from vpjax.data.sampling import SLOT, Sampling
from vpjax.files import read_object, write_json
from vpjax.models.names import FAMILIES

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

IMAGE_PROCESSOR = "preprocessor_config.json"
VIDEO_PROCESSOR = "video_preprocessor_config.json"
NESTED = "processor_config.json"  # in which transformers 5 saves both, and before which it reads no others
NESTED_KEYS = {IMAGE_PROCESSOR: "image_processor", VIDEO_PROCESSOR: "video_processor"}
SHARE = 0.9  # of max_video_tokens that the video processor of Qwen2.5-VL spends


def frame_sizes(data_config: ConfigDict) -> dict[str, Any]:
    """The fields of an image or video processor that set the least and the most pixels."""
    sampling = Sampling.of(data_config)
    least, most = sampling.min_pixels, sampling.max_pixels
    return {
        "min_pixels": least,
        "max_pixels": most,
        "size": {"shortest_edge": least, "longest_edge": most},
    }


def image_processor(config: VLMConfig, data_config: ConfigDict) -> dict[str, Any]:
    """The config of the image processor of a model from scratch, with the sizes of the run's frames."""
    fields = _processor(config) | {"image_processor_type": "Qwen2VLImageProcessor"}
    return fields | frame_sizes(data_config)


def video_processor(config: VLMConfig, data_config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the video processor in two parts: what it is, and the frames of the run's videos.

    A budget makes frames smaller there as here, but never fewer, and counts visual tokens only. Whether the
    processor chooses frames is left as it is in the family's own folders: many clients bring frames that they
    have chosen.
    """
    family, factor = FAMILIES[config.family], config.vision.factor
    defaults = _processor(config) | {"video_processor_type": family.video_processor}
    sampling = Sampling.of(data_config)
    # Either is null, for together with a default of the other kind they are an error there.
    fields = {"num_frames": sampling.frames, "fps": sampling.fps}
    fields |= {"min_frames": sampling.min_frames, "max_frames": sampling.max_frames}
    fields["cap_pixels_per_frame"] = False  # unless there is a budget; its default depends on the version
    budgets = [sampling.total_pixels, data_config.get("max_tokens", 0) * factor**2]
    budget = min((pixels for pixels in budgets if pixels), default=0)  # of one frame of each slot
    if not family.whole_video:
        fields |= frame_sizes(data_config)
        if budget:
            tokens = math.ceil(budget / factor**2 / SHARE)
            fields |= {"cap_pixels_per_frame": True, "max_video_tokens": tokens}
        return defaults, fields
    frames = sampling.frames or sampling.max_frames
    least, most = sampling.min_pixels, frames * sampling.max_pixels
    if sampling.frames:
        least *= frames
    else:  # the number of frames is not known, so only the upper limit can be given for each of them
        fields |= {"cap_pixels_per_frame": True, "max_video_tokens": sampling.max_pixels // factor**2}
    if budget:
        most = max(least, min(most, SLOT * budget))
    return defaults, fields | {"size": {"shortest_edge": least, "longest_edge": most}}


def _processor(config: VLMConfig) -> dict[str, Any]:
    """The fields that both processors share."""
    vision = config.vision
    return {
        "processor_class": FAMILIES[config.family].processor,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal,
        "merge_size": vision.merge,
        "image_mean": list(vision.pixel_mean),
        "image_std": list(vision.pixel_std),
    }


def read_processors(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of a Hugging Face folder's image and video processor, as far as it has them, by the name of
    the file that each has to itself. They are read where transformers looks: in NESTED first."""
    names = [name for name in NESTED_KEYS if (folder / name).is_file()]
    found = {name: read_object(folder / name, "download it again") for name in names}
    return found | _split(folder)[1]


def separate_processors(folder: Path) -> None:
    """Give the image and the video processor of a Hugging Face folder files of their own, in place of their
    parts of NESTED: clients of any version read these, and the sizes of a run are written there."""
    nested, parts = _split(folder)
    for name, fields in parts.items():
        write_json(folder / name, fields)
    if parts:
        write_json(folder / NESTED, nested)


def _split(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What NESTED holds beside the two processors, and these by the names of their own files."""
    nested: dict[str, Any] = {}
    if (folder / NESTED).is_file():
        nested = read_object(folder / NESTED, "download it again")
    parts = {name: nested.pop(key) for name, key in NESTED_KEYS.items() if nested.get(key)}
    return nested, parts


def read_sampling(folder: Path) -> dict[str, Any]:
    """The fields ``data`` of configs/base.py that the video processor of a Hugging Face folder sets: the
    inverse of ``video_processor``. {} without such a file; a field that it leaves open is missing."""
    fields = read_processors(folder).get(VIDEO_PROCESSOR, {})
    found = {name: fields[name] for name in ("min_frames", "max_frames") if fields.get(name)}
    if fields.get("num_frames"):
        found |= {"frames": fields["num_frames"], "fps": 0.0}
    elif fields.get("fps"):
        found |= {"frames": 0, "fps": float(fields["fps"])}
    return found | _read_pixels(fields, found.get("frames", 0))


def _read_pixels(fields: dict[str, Any], frames: int) -> dict[str, int]:
    """What a video processor says of ``data`` about pixels. frames: that it reads of a video; 0: unknown."""
    size = fields.get("size") or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if not (least and most):
        return {}
    factor = fields.get("patch_size", 14) * fields.get("merge_size", 2)
    max_tokens = fields.get("max_video_tokens", 0) if fields.get("cap_pixels_per_frame") else 0
    kind = fields.get("video_processor_type")
    if not any(x.whole_video and x.video_processor == kind for x in FAMILIES.values()):  # sizes of a frame
        found = {"min_pixels": least, "max_pixels": most}
        if max_tokens:
            found["total_pixels"] = int(max_tokens * SHARE) * factor**2
        return found
    found = {"min_pixels": least, "total_pixels": most // SLOT}
    if frames:
        found |= {"min_pixels": least // frames, "max_pixels": most // frames}
    elif max_tokens:
        found["max_pixels"] = max_tokens * factor**2
    return found
