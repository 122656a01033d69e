"""What tests of building share: videos of a lamp, and how they are examined."""

import pytest

from tests.building.flash_video import write_videos
from vpjax.building.examine import Options


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def options(videos):
    return Options(videos=str(videos), scorers=("motion",))
