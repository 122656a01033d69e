"""Local paths and URLs behave alike; memory:// stands for remote files."""

import errno
import sys
import time
from pathlib import Path

import fsspec
import pytest

from tests.videos import greys, write
from vpjax import files
from vpjax.building.examine import UNREADABLE, find_video
from vpjax.building.fields import Rejected
from vpjax.data import probing
from vpjax.data.probing import probe_sources
from vpjax.data.video import probe, probe_image
from vpjax.types import UserError


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()


def test_files_are_written_read_and_listed(root):
    file = files.join_path(root, "sub/a.txt")
    assert not files.exists(file)
    with files.open_file(file, "wb") as out:
        out.write(b"abc")
    files.write_whole(files.join_path(root, "sub/b.txt"), b"de")
    with files.open_file(file) as text:
        assert text.read() == b"abc"
    assert sorted(files.names_in(files.folder_of(file))) == ["a.txt", "b.txt"]
    assert files.exists(file) and files.is_folder(files.join_path(root, "sub"))
    assert not files.is_folder(file) and not files.exists(files.join_path(root, "none"))


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\0\0", b"[1]", b"\xff", b"[" * 9999])
def test_a_damaged_file_of_ours_is_one_line_that_says_what_to_do(root, content):
    file = files.join_path(root, "a.json")
    files.write_whole(file, b'{"a": 1}')
    assert files.read_object(file, "mend it") == {"a": 1}
    files.write_whole(file, content)
    with pytest.raises(UserError, match="a.json: damaged .*: mend it$") as error:
        files.read_object(file, "mend it")
    assert "\n" not in str(error.value)


def test_a_stamp_tells_that_a_file_changed(root):
    file = files.join_path(root, "a.txt")
    files.write_whole(file, b"abc")
    before = files.stamp(file)
    assert before == files.stamp(file) and before[0] == 3 and before[1] > 1e18  # ns since 1970
    time.sleep(0.02)
    files.write_whole(file, b"xyz")
    assert files.stamp(file) != before and files.stamp(file)[0] == 3
    with pytest.raises(FileNotFoundError):
        files.stamp(files.join_path(root, "none"))


def test_files_for_libraries_that_need_local_ones(root):
    file = files.join_path(root, "sub/a.bin")
    with files.written(file) as part:
        part.write_bytes(b"abc")
        assert not files.exists(file)
    with files.fetched(file) as copy:
        assert copy.read_bytes() == b"abc" and copy.name == "a.bin"
    with pytest.raises(RuntimeError), files.written(file) as part:
        part.write_bytes(b"half")
        raise RuntimeError
    with files.open_file(file) as kept:
        assert kept.read() == b"abc"
    assert files.names_in(files.folder_of(file)) == ["a.bin"]


@pytest.mark.parametrize(
    "root, path, joined",
    [
        ("/data", "a.mp4", "/data/a.mp4"),
        ("/data", "/b/a.mp4", "/b/a.mp4"),
        ("", "a.mp4", "a.mp4"),
        ("/data", "gs://b/a.mp4", "gs://b/a.mp4"),
        ("gs://b/data/", "x/a.mp4", "gs://b/data/x/a.mp4"),
        ("gs://b", "s3://c/a.mp4", "s3://c/a.mp4"),
        ("gs://b", "/mnt/a.mp4", "/mnt/a.mp4"),
    ],
)
def test_join(root, path, joined):
    assert files.join_path(root, path) == joined


def test_missing_extras_are_named(monkeypatch):
    for module, url, extra in (("gcsfs", "gs://b/a", "gcs"), ("s3fs", "s3://b/a", "s3")):
        monkeypatch.setitem(sys.modules, module, None)  # not installed
        with pytest.raises(UserError, match=rf"{url}: .* pip install 'vpjax\[{extra}\]'"):
            files.exists(url)
    with pytest.raises(UserError, match="nowhere:// is no place"):
        files.open_file("nowhere://a")


def test_videos_elsewhere_are_indexed_and_probed_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", greys(8))
    urls = [f"memory://index/{name}" for name in ("a.mp4", "none.mp4")]
    files.write_whole(urls[0], path.read_bytes())
    local, remote, missing = probe_sources([str(path), *urls], tmp_path, 8192).values()
    assert (remote.media, remote.size, remote.info) == ("video", local.size, local.info) and remote.modified
    assert missing.info is None and "memory://index/none.mp4: " in missing.fault
    monkeypatch.setattr(probing, "probe", None)  # unchanged files are not probed again
    assert probe_sources([str(path), *urls], tmp_path, 8192)[urls[0]] == remote


@pytest.mark.parametrize("harm", ["", "{", "[]", '{"a.mp4": [1]}', '{"a.mp4": 1}', "\0" * 99])
def test_a_damaged_index_of_probed_files_is_made_anew(tmp_path, monkeypatch, capsys, harm):
    path = str(write(tmp_path / "a.mp4", greys(8)))
    before = probe_sources([path], tmp_path, 8192)
    (file,) = (tmp_path / "index").iterdir()
    whole = file.read_bytes()
    file.write_text(harm)
    capsys.readouterr()
    assert probe_sources([path], tmp_path, 8192) == before and file.read_bytes() == whole
    assert capsys.readouterr().err.count(f"{file}: damaged; its videos are probed again") == 1


class NoCredentials(Exception):
    """Stands for an error of a place's own library, such as botocore's, which is no OSError."""


class Refusing(fsspec.AbstractFileSystem):
    protocol = "refusing"

    def _open(self, path, **_):
        raise NoCredentials("none found")

    def info(self, path, **_):
        raise NoCredentials("none found")

    exists = isdir = info


def test_a_full_disk_names_the_file(tmp_path):
    """The system's own error of a write names none."""
    whole = tmp_path / "whole.json"
    whole.write_text("as it was")
    with pytest.raises(OSError, match="whole.json") as raised, files.written(whole):
        Path("/dev/full").write_bytes(b"half")
    assert raised.value.errno == errno.ENOSPC
    assert whole.read_text() == "as it was"
    assert files.names_in(tmp_path) == ["whole.json"]


def test_the_errors_of_a_place_are_faults_of_its_files(tmp_path):
    """Of the rows that name them, and of no others."""
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    url = "refusing://bucket/a.mp4"
    for work in (files.exists, files.is_folder, files.stamp, files.open_file):
        with pytest.raises(OSError, match="NoCredentials: none found"):
            work(url)
    for work in (probe, probe_image):
        with pytest.raises(UserError, match="^refusing://bucket/a.mp4: cannot be read .NoCredentials: none"):
            work(url)
    with pytest.raises(Rejected, match=f"^{UNREADABLE}: refusing://bucket/a.mp4: NoCredentials: none found"):
        find_video(url, "")
    good = str(write(tmp_path / "a.mp4", greys(8)))
    sources = probe_sources([good, url], tmp_path, 8192)
    assert sources[good].info and "NoCredentials: none found" in sources[url].fault
