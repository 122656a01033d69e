"""Videos for the tests of a build: a lamp in the dark that flashes once."""

import av
import numpy as np
from PIL import Image

SECONDS, FPS = 4.0, 8
FIRST, END = 20 / FPS, 22 / FPS  # of the two bright frames, in seconds


def write_videos(folder):
    """Write flash.mp4 of SECONDS, the image p.png, and broken.mp4. Returns the folder."""
    with av.open(str(folder / "flash.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for i in range(int(SECONDS * FPS)):
            pixels = np.full((56, 56, 3), 60, np.uint8)
            pixels[8:24, 8:24] = 220 if FIRST <= i / FPS < END else 60
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    Image.new("RGB", (56, 28), (200, 0, 0)).save(folder / "p.png")
    (folder / "broken.mp4").write_bytes((folder / "flash.mp4").read_bytes()[:400])
    return folder
