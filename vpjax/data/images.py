"""Images, read by Pillow: a single one, or a folder of them, which counts as a video."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vpjax.data.decode import FrameIndex, Problem, check_size
from vpjax.files import AnyPath, join_path, names_in, open_file

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # suffixes of files that are read as images
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # of Pillow, for broken files
# Formats by which they are opened, whatever their suffix. Pillow knows others, some of which start programs
# of the machine (EPS: Ghostscript) or open further files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FOLDER_FPS = 10.0  # the rate of GOT-10k, for folders of images whose names do not state theirs
# As TVQA's ``frames_fps3_hq`` states it, which holds a folder for each video.
RATE = re.compile(r"fps_?(\d+(?:\.\d+)?)|(?<![\d.])(\d+(?:\.\d+)?)_?fps", re.IGNORECASE)


def is_image(path: AnyPath) -> bool:
    """Whether a file is read as an image, by its suffix."""
    return PurePosixPath(path).suffix.lower() in IMAGES


def image_size(path: AnyPath, max_side: int) -> tuple[int, int]:
    """(height, width) in pixels, upright, without decoding."""
    with opened_image(path, max_side) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def image_pixels(path: AnyPath, max_side: int) -> np.ndarray:
    """The pixels u8[h,w,3], upright by the image's EXIF tag, what is transparent on white."""
    with opened_image(path, max_side) as image:
        return np.asarray(as_rgb(ImageOps.exif_transpose(image)))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit RGB. On white as qwen-vl-utils shows it, for what lies below transparent
    pixels is mostly black, as is the text on them."""
    if image.mode.startswith("I;16"):  # which Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@contextlib.contextmanager
def opened_image(path: AnyPath, max_side: int) -> Iterator[Image.Image]:
    try:
        with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            check_size(image.width, image.height, max_side)
            yield image
    except IMAGE_ERRORS as error:
        raise Problem(f"is damaged or no image ({error})") from error


def folder_index(folder: AnyPath) -> tuple[FrameIndex, list[str]]:
    """The frames of a folder of images, at its ``folder_rate``, and their files, both in the order of the
    file names, with numbers in them compared as numbers."""
    names = [name for name in names_in(folder) if name.lower().endswith(IMAGES)]
    if not names:
        raise Problem("is a folder without images")
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    numbers, rate = np.arange(len(names)), folder_rate(folder)
    index = FrameIndex(
        times=numbers / rate,
        duration=len(names) / rate,
        tick=0.0,
        pts=numbers,
        counted=True,
        keyframe=numbers,
        entry=numbers,
    )
    return index, [join_path(folder, name) for name in names]


def folder_rate(folder: AnyPath) -> float:
    """The frames per second of a folder of images: what its own name says or that of the folder around it,
    else FOLDER_FPS."""
    path = PurePosixPath(os.path.abspath(folder))
    for name in (path.name, path.parent.name):
        stated = RATE.search(name)
        if stated and float(stated[1] or stated[2]):
            return float(stated[1] or stated[2])
    return FOLDER_FPS


def folder_frames(files: Sequence[str], max_side: int) -> Iterator[np.ndarray]:
    """The frames u8[h,w,3] of image files. Problem if their sizes differ."""
    shape = None
    for file in files:
        try:
            pixels = image_pixels(file, max_side)
            if shape is not None and pixels.shape != shape:
                (height, width, _), (h, w, _) = pixels.shape, shape
                raise Problem(f"{width} x {height} pixels, the frames before it {w} x {h}")
        except Problem as problem:
            raise Problem(f"{PurePosixPath(file).name}: {problem}") from problem
        shape = pixels.shape
        yield pixels
