"""The pixels of frames: resized, upright, and as they reach the vision tower."""

import fractions

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import greys, quarters, read, write
from vpjax.data.sampling import Sampling
from vpjax.data.video import probe, read_frames, read_image, resize
from vpjax.models.patches import smart_resize

ONE = 1 << 16
TURNS = {  # the display matrix a, b, c, d takes the point (x, y) to (a x + c y, b x + d y), y pointing down
    "as it is": ((ONE, 0, 0, ONE), lambda x: x),
    "a quarter clockwise": ((0, ONE, -ONE, 0), lambda x: np.rot90(x, -1)),
    "upside down": ((-ONE, 0, 0, -ONE), lambda x: np.rot90(x, 2)),
    "a quarter counterclockwise": ((0, -ONE, ONE, 0), lambda x: np.rot90(x)),
    "mirrored": ((-ONE, 0, 0, ONE), np.fliplr),
    "mirrored and turned": ((0, ONE, ONE, 0), lambda x: x.transpose(1, 0, 2)),
}


@pytest.mark.parametrize(("matrix", "turn"), TURNS.values(), ids=TURNS)
def test_rotation_is_respected(tmp_path, matrix, turn):
    a, b, c, d = matrix
    frames = quarters(16, 24)[None]
    plain = read(write(tmp_path / "plain.mp4", frames), frames=1).frames[0]
    path = write(tmp_path / "turned.mp4", frames, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    expected = turn(plain)
    video = read(path, frames=1, size=expected.shape[:2])
    np.testing.assert_array_equal(video.frames[0], expected)
    assert (probe(path).height, probe(path).width) == expected.shape[:2]
    own = read_frames(path, Sampling(frames=1, min_pixels=1, max_pixels=10**6), factor=16)
    assert own.frames.shape[1:] == expected.shape


@pytest.mark.slow  # torch
@pytest.mark.parametrize(
    ("of", "to"),
    [
        ((60, 80), (28, 56)),
        ((28, 56), (84, 112)),
        ((40, 200), (112, 28)),
        ((57, 43), (56, 56)),
        ((9, 9), (84, 84)),
    ],
)
def test_resize_is_antialiased_bicubic_in_float(of, to):
    # Black and white only: the kernel overshoots at every edge, where clipping early would show.
    frame = np.random.default_rng(0).integers(0, 2, (*of, 3)).astype(np.uint8) * 255
    import torch

    channels = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(channels, size=to, mode="bicubic", antialias=True)
    exact = exact.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    # Rounding costs half a step.
    assert np.abs(resize(frame, to) - exact).max() < 0.5 + 1e-3


def test_an_unchanged_size_changes_no_pixel():
    frame = np.random.default_rng(0).integers(0, 256, (28, 56, 3), np.uint8)
    np.testing.assert_array_equal(resize(frame, (28, 56)), frame)


def test_size_is_chosen_by_the_budget(tmp_path):
    path = write(tmp_path / "a.mp4", greys(2, (64, 96)))
    video = read_frames(path, Sampling(frames=2, min_pixels=56 * 56, max_pixels=56 * 84))
    assert video.frames.shape == (2, 56, 84, 3) and video.frames.dtype == np.uint8
    video = read_frames(path, Sampling(frames=2, min_pixels=1, max_pixels=10**6), factor=32)
    assert video.frames.shape == (2, 64, 96, 3)


@pytest.mark.slow
def test_pixels_reach_the_tower_as_the_image_processor_gives_them(tmp_path):
    """The same file is decoded by plain PyAV for Hugging Face, and by vpjax."""
    import transformers

    from tests.words import StubVision
    from vpjax.data.units import cut
    from vpjax.models.patches import normalised

    noise = np.random.default_rng(0).integers(0, 256, (6, 56, 84, 3), np.uint8)
    path = write(tmp_path / "a.mp4", noise)
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    processor = transformers.Qwen2VLImageProcessor()  # 56 x 84 lies within its budget: not resized
    units = cut(read_frames(path, Sampling(frames=6)).frames, StubVision())
    ours = normalised(units, tuple(processor.image_mean), tuple(processor.image_std))
    ours = np.asarray(ours).reshape(3, 24, 3, 2, 14, 14)
    for place, frame in enumerate(frames):
        theirs = processor(frame, return_tensors="np")["pixel_values"].reshape(24, 3, 2, 14, 14)
        slot, half = divmod(place, 2)
        np.testing.assert_allclose(ours[slot, :, :, half], theirs[:, :, half], rtol=0, atol=1e-6)


def test_an_image_is_two_equal_frames(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    video = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(video.frames, [pixels, pixels])
    assert video.times.tolist() == [0, 0]
    assert read_image(tmp_path / "a.png", size=(28, 28)).frames.shape == (2, 28, 28, 3)


def test_an_image_stands_upright(tmp_path):
    pixels = quarters(28, 56)
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags[0x0112] = 6  # orientation: to be displayed turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=tags)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").frames[0], np.rot90(pixels, -1))


def test_side_data_that_pyav_cannot_read_does_not_hide_the_rotation(tmp_path):
    # Motion JPEG with EXIF tags, as cameras write it, is such a case; one picture of it makes a video.
    pixels = quarters(28, 56)
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags[0x0112] = 6
    image.save(tmp_path / "a.mjpeg", format="jpeg", quality=95, exif=tags)
    video = read_frames(tmp_path / "a.mjpeg", Sampling(frames=1), size=(112, 56))
    assert np.abs(video.frames[0].astype(int) - np.rot90(pixels, -1)).max() < 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (28, 28), (51, 51, 51)).convert(mode)
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", size=(28, 28)).frames == 51).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("aspect", [(4, 3), (1, 2), (1, 1), (1, 100)])
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, name, is_turned, aspect):
    """The frames are those of the same file with square pixels, resized to the shape in which players show
    them. An aspect that no camera has is none."""
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30) if is_turned else None
    ratio = fractions.Fraction(*aspect)
    frames = np.repeat(quarters(32, 48)[None], 4, axis=0)
    path = write(tmp_path / name, frames, matrix=matrix, aspect=ratio)
    plain = write(tmp_path / f"plain-{name}", frames, matrix=matrix)
    width = round(96 * ratio) if ratio >= fractions.Fraction(1, 4) else 96
    height, width = (width, 64) if is_turned else (64, width)
    assert (probe(path).height, probe(path).width) == (height, width)
    sampling = Sampling(frames=4, min_pixels=28 * 28, max_pixels=1 << 20)
    shown = read_frames(path, sampling)
    size = smart_resize(height, width, factor=28, min_pixels=28 * 28, max_pixels=1 << 20)
    assert shown.frames.shape[1:3] == size
    np.testing.assert_array_equal(shown.frames, read_frames(plain, sampling, size=size).frames)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """As in Qwen's own code: a figure's black lines on nothing are not black on black."""
    pixels = np.zeros((28, 28, 4), np.uint8)
    pixels[8:20, :, 3] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    frame = read_image(tmp_path / "a.png", size=(28, 28)).frames[0]
    assert (frame[8:20] == 0).all() and (frame[:8] == 255).all() and (frame[20:] == 255).all()


def test_grey_of_16_bits_keeps_its_levels(tmp_path):
    levels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 83
    Image.fromarray(levels).save(tmp_path / "a.png")
    frame = read_image(tmp_path / "a.png", size=(28, 28)).frames[0]
    np.testing.assert_allclose(frame[..., 1], levels / 257, rtol=0, atol=1)
    assert (frame == frame[..., :1]).all()
