"""What tests of building share: videos of a lamp, and how they are examined."""

import json

import pytest

from tests.building.flash_video import write_videos
from vpjax.building.annotations import read_annotations
from vpjax.building.examine import Options


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def options(videos):
    return Options(videos=str(videos), scorers=("motion",))


@pytest.fixture
def read(tmp_path):
    """read_annotations of what is written as JSON, or as bytes."""

    def read(content, format="", name="a.json"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_annotations(file, format)

    return read
