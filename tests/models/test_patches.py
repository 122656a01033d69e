"""Sizes, patches and learned positions against the processors of Hugging Face and torch."""

import numpy as np
import pytest
from flax import nnx

from vpjax.data.units import cut
from vpjax.models.patches import normalised, smart_resize
from vpjax.models.vision import VisionConfig, VisionTower

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def split(patches, patch, temporal=2):
    """[..., X] -> [..., channel, frame, row, column]."""
    return np.asarray(patches).reshape(*patches.shape[:-1], 3, temporal, patch, patch)


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("budget", [(56 * 56, 112 * 112), (100 * 28 * 28, 768 * 28 * 28), (56 * 56, 10**7)])
def test_sizes_are_those_of_hugging_face(factor, budget):
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

    sides = np.exp(np.random.default_rng(0).uniform(np.log(10), np.log(2000), (300, 2))).astype(int)
    low, high = budget
    for h, w in sides.tolist():
        expected = reference.smart_resize(h, w, factor, low, high)
        assert smart_resize(h, w, factor=factor, min_pixels=low, max_pixels=high) == expected, (h, w)


@pytest.mark.parametrize("frames", [2, 6, 64])
def test_sizes_of_qwen3_videos_are_those_of_a_frame(frames):
    """Its processor has a budget for all frames, ours for one frame. They differ only below 32 pixels a side,
    which its processor first enlarges to 32."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as of_video

    sides = np.exp(np.random.default_rng(0).uniform(np.log(32), np.log(2000), (300, 2))).astype(int)
    low, high = 128 * 32 * 32, 768 * 32 * 32
    for h, w in sides.tolist():
        expected = of_video(frames, h, w, factor=32, min_pixels=frames * low, max_pixels=frames * high)
        assert smart_resize(h, w, factor=32, min_pixels=low, max_pixels=high) == expected, (h, w)


def test_sizes_by_hand():
    # 12.86 and 22.86 units of 28; shrunk by sqrt(360 * 640 / 300**2) = 1.6, to 8.04 and 14.29, rounded down;
    # 0.71 units grown by sqrt(56**2 / 20**2) = 2.8, rounded up.
    assert smart_resize(360, 640, min_pixels=56 * 56, max_pixels=10**6) == (13 * 28, 23 * 28)
    assert smart_resize(360, 640, min_pixels=56 * 56, max_pixels=300 * 300) == (8 * 28, 14 * 28)
    assert smart_resize(20, 20, min_pixels=56 * 56, max_pixels=10**6) == (2 * 28, 2 * 28)


def test_too_slim_is_an_error():
    smart_resize(10, 2000, min_pixels=56 * 56, max_pixels=10**6)
    with pytest.raises(ValueError, match="2001 x 10 .* 200"):
        smart_resize(2001, 10, min_pixels=56 * 56, max_pixels=10**6)


def patches(frames, **sizes):
    """The normalised patches f32[n, X] of frames u8[F, h, w, 3]: those of ``cut``, as the tower sees them."""
    config = VisionConfig(depth=1, hidden=8, intermediate=8, heads=1, out_hidden=8, **sizes)
    out = np.asarray(normalised(cut(frames, config), config.pixel_mean, config.pixel_std))
    assert out.dtype == np.float32
    return out.reshape(-1, out.shape[-1])


@pytest.mark.parametrize(
    ("patch", "merge", "size"),
    [(14, 2, (56, 84)), (14, 2, (84, 56)), (16, 2, (32, 96)), (4, 3, (24, 12))],
)
def test_patches_are_those_of_the_image_processor(patch, merge, size):
    # The processor of images fills a temporal patch with one image twice: compare the frames of a slot one by
    # one.
    import transformers

    frames = pixels(4, *size)
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=patch, merge_size=merge, do_resize=False, image_mean=MEAN, image_std=STD
    )
    ours = split(patches(frames, patch=patch, merge=merge), patch)
    ours = ours.reshape(2, -1, *ours.shape[1:])
    for f in range(4):
        theirs = split(processor(frames[f], return_tensors="np")["pixel_values"], patch)
        np.testing.assert_allclose(ours[f // 2, :, :, f % 2], theirs[:, :, f % 2], rtol=0, atol=1e-6)


def test_patches_are_those_of_the_video_processor():
    import transformers

    if not transformers.utils.is_torchvision_available():
        pytest.skip("the video processors of transformers need torchvision, which is not installed")
    frames = pixels(6, 56, 84)
    processor = transformers.Qwen2VLVideoProcessor(do_resize=False, image_mean=MEAN, image_std=STD)
    theirs = processor([frames], do_sample_frames=False, return_tensors="np")["pixel_values_videos"]
    np.testing.assert_allclose(patches(frames), theirs, rtol=0, atol=1e-6)


def test_patches_by_hand():
    """Where one pixel goes, with more frames per slot than the reference ever has."""
    frames = np.zeros((6, 24, 36, 3), np.uint8)
    frames[4, 13, 22, 1] = 255
    plain = dict(pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))
    ours = split(patches(frames, patch=6, temporal=3, **plain), 6, temporal=3)
    # Frame 4 is frame 1 of slot 1. Row 13 lies in patch row 2, column 22 in patch column 3: patch (0, 1) of
    # unit (1, 1) of 2 x 3 units, and in it pixel (1, 4). Slot 0 has 24 patches.
    assert np.argwhere(ours).tolist() == [[24 + (1 * 3 + 1) * 4 + 1, 1, 1, 1, 4]]
    assert ours.max() == 1


def learned_positions(grids, side):
    """The table [side^2, 5] of a tower, and what it adds to each patch of slots of several sizes, all in one
    batch: [rows of patches, columns, 5] of each."""
    from tests import batches

    config = VisionConfig(
        depth=1, hidden=5, intermediate=8, heads=1, out_hidden=8, position_side=side, window=0
    )
    tower = VisionTower(config, rngs=nnx.Rngs(0))
    clips = batches.contents([batches.Clip(slots=1, grid=grid) for grid in grids])
    units, places = batches.units([clips[:2], clips[2:]], config)
    added_RUpD = np.asarray(tower.learned_positions(units))
    out = []
    of_clips = [added_RUpD[r, at] for r, row in enumerate(places) for at in row]
    for of_clip, (height, width) in zip(of_clips, grids, strict=True):
        of_patches = of_clip.reshape(height, width, 2, 2, 5).swapaxes(1, 2)
        out.append(of_patches.reshape(2 * height, 2 * width, 5))
    return np.asarray(tower.positions[...]), out


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 3, 7])
def test_learned_positions_are_interpolated_as_in_torch(side):
    import torch

    grids = [(1, 1), (3, 5), (7, 2), (1, 6), (4, 4), (12, 9)]
    table, found = learned_positions(grids, side)
    image = torch.tensor(table).reshape(side, side, 5).permute(2, 0, 1)[None].double()
    for ours, grid in zip(found, grids, strict=True):
        size = [2 * count for count in grid]
        exact = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=True)
        # Places of up to 6 in float32.
        np.testing.assert_allclose(ours, exact[0].permute(1, 2, 0), rtol=0, atol=1e-5 * table.std())
    assert side == 1 or np.abs(found[3] - found[3][0, 0]).max() > table.std()


@pytest.mark.slow
def test_learned_positions_by_hand():
    """Two patches a side get the corners of the table, whatever lies between."""
    table, (found,) = learned_positions([(1, 1)], 3)
    np.testing.assert_allclose(found.reshape(4, 5), table[[0, 2, 6, 8]], rtol=0, atol=1e-7)
