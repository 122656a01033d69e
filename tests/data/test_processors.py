"""The configs of processors are read, and given files of their own, where transformers finds them."""

import json

import pytest

from vpjax.data.processors import (
    IMAGE_PROCESSOR,
    NESTED,
    VIDEO_PROCESSOR,
    read_processors,
    read_sampling,
    separate_processors,
    write_json,
)

IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
VIDEOS = {"video_processor_type": "Qwen2VLVideoProcessor", "num_frames": 4, "patch_size": 14}
# What a folder may hold: files of transformers 4, of transformers 5, and both, of which the latter count.
FOLDERS = {
    "none": {},
    "older": {IMAGE_PROCESSOR: IMAGES, VIDEO_PROCESSOR: VIDEOS, NESTED: {"processor_class": "P"}},
    "nested": {NESTED: {"processor_class": "P", "image_processor": IMAGES, "video_processor": VIDEOS}},
    "both": {
        IMAGE_PROCESSOR: IMAGES | {"patch_size": 1},
        VIDEO_PROCESSOR: VIDEOS | {"num_frames": 8},
        NESTED: {"image_processor": IMAGES, "video_processor": VIDEOS},
    },
}


def make(folder, files):
    for name, fields in files.items():
        write_json(folder / name, fields)


@pytest.mark.parametrize("name", FOLDERS)
def test_processors_have_files_of_their_own(name, tmp_path):
    make(tmp_path, FOLDERS[name])
    expected = {} if name == "none" else {IMAGE_PROCESSOR: IMAGES, VIDEO_PROCESSOR: VIDEOS}
    assert read_processors(tmp_path) == expected
    assert read_sampling(tmp_path) == ({} if name == "none" else {"frames": 4, "fps": 0.0})
    for _ in range(2):  # done again, it changes nothing
        separate_processors(tmp_path)
        assert read_processors(tmp_path) == expected
        kept = json.loads((tmp_path / NESTED).read_text()) if name != "none" else {}
        assert kept == ({"processor_class": "P"} if name in ("older", "nested") else {})


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("name", ["older", "nested", "both"])
def test_transformers_reads_the_same(name, tmp_path):
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor
    from transformers.video_processing_utils import BaseVideoProcessor

    def theirs():
        images, _ = Qwen2VLImageProcessor.get_image_processor_dict(tmp_path)
        videos, _ = BaseVideoProcessor.get_video_processor_dict(tmp_path)
        return {IMAGE_PROCESSOR: images, VIDEO_PROCESSOR: videos}

    make(tmp_path, FOLDERS[name])
    assert theirs() == read_processors(tmp_path)
    separate_processors(tmp_path)
    write_json(tmp_path / VIDEO_PROCESSOR, VIDEOS | {"num_frames": 6})
    assert theirs() == {IMAGE_PROCESSOR: IMAGES, VIDEO_PROCESSOR: VIDEOS | {"num_frames": 6}}
