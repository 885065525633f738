"""Super-resolution: tiles against the whole, memory, sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from magicapture.errors import InputError, OutOfMemoryError
from magicapture.refine.models import load_image_model
from magicapture.refine.upscale import Tiling, resize, sized, super_resolve, upscale

SMALL = Tiling(size=64, context=8, feather=4)


@pytest.mark.parametrize("size", [(64, 64), (65, 40), (200, 131)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_tiles_equal_the_whole(compact, scale, size) -> None:
    model, image = compact(scale), torch.rand(2, 3, *size)
    whole = torch.cat([model(one[None]) for one in image])
    assert whole.std() > 0.01
    torch.testing.assert_close(upscale(model, image, SMALL), whole, atol=1e-5, rtol=0)


def test_a_seam_without_context_is_blended(compact) -> None:
    model, image = compact(), torch.rand(1, 3, 64, 160)
    whole = model(image)
    hard, soft = (
        (upscale(model, image, Tiling(64, 0, feather)) - whole).abs() for feather in (0, 8)
    )
    assert hard.max() > 1 / 255, "the tile's edge does not show, so this test shows nothing"
    assert soft.max() < 0.7 * hard.max()


def test_tiles_keep_within_their_size(compact) -> None:
    model, seen = compact(), []
    hook = model.model.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-2:]))
    upscale(model, torch.rand(1, 3, 300, 90), SMALL)
    hook.remove()
    assert len(seen) > 8 and max(max(size) for size in seen) <= SMALL.size


def limited(model, side: int) -> tuple[list[int], Callable[[], None]]:
    """Let the network run out of memory for tiles above a side; what it was shown, and the end."""
    seen: list[int] = []

    def check(_, inputs) -> None:
        seen.append(max(inputs[0].shape[-2:]))
        if seen[-1] > side:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    return seen, model.model.register_forward_pre_hook(check).remove


def test_tiles_are_halved_when_memory_runs_out(compact) -> None:
    model, image = compact(), torch.rand(1, 3, 300, 300)
    whole = model(image)
    seen, remove = limited(model, 200)
    torch.testing.assert_close(upscale(model, image), whole, atol=1e-5, rtol=0)
    remove()
    assert seen[0] == 300 and len(seen) > 3 and max(seen[1:]) <= 200


def test_no_memory_for_the_smallest_tile_is_told(compact) -> None:
    model = compact()
    seen, remove = limited(model, 8)
    with pytest.raises(OutOfMemoryError, match="128 pixels"):
        upscale(model, torch.rand(1, 3, 300, 300))
    remove()
    assert len(seen) == 3


def test_another_error_is_not_taken_for_memory(compact) -> None:
    model = compact()

    def fail(*_) -> None:
        raise RuntimeError("something else")

    hook = model.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        upscale(model, torch.rand(1, 3, 32, 32))
    hook.remove()


def test_progress_counts_tiles_and_may_stop(compact) -> None:
    calls: list[tuple[int, int]] = []
    upscale(compact(), torch.rand(2, 3, 64, 100), SMALL, lambda *at: calls.append(at))
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        raise KeyboardInterrupt

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        upscale(compact(), torch.rand(2, 3, 64, 100), SMALL, stop)
    assert len(calls) == 1


@pytest.mark.parametrize("size", [(50, 60), (96, 72), (150, 100), (20, 30)])
def test_any_size_is_reached(compact, size) -> None:
    model, image = compact(), torch.rand(1, 3, 24, 36)
    expected = model(image)
    while expected.shape[-2] < size[0] or expected.shape[-1] < size[1]:
        expected = model(expected)
    result = super_resolve(model, image, size)
    assert result.shape[-2:] == size
    torch.testing.assert_close(result, resize(expected, size), atol=1e-5, rtol=0)


def test_a_network_of_scale_one_is_run_once(compact) -> None:
    result = super_resolve(compact(1), torch.rand(1, 3, 24, 36), (48, 72))
    assert result.shape == (1, 3, 48, 72)


def test_half_precision_comes_back_as_float(compact) -> None:
    model = compact()
    whole = model(image := torch.rand(1, 3, 20, 20))
    result = upscale(model.to(torch.bfloat16), image)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, whole, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"factor": 2}, (200, 300)),
        ({"factor": 0.5}, (50, 75)),
        ({"long_side": 600}, (400, 600)),
    ],
)
def test_sizes(given, expected) -> None:
    assert sized((100, 150), **given) == expected


@pytest.mark.parametrize(
    "given", [{}, {"factor": 2, "long_side": 9}, {"factor": 200}, {"factor": -1}]
)
def test_sizes_that_cannot_be(given) -> None:
    with pytest.raises(InputError):
        sized((100, 150), **given)


@pytest.mark.parametrize("values", [(64, 32, 8), (64, -1, 0), (64, 20, 8)])
def test_tiles_of_context_alone_are_refused(values) -> None:
    with pytest.raises(InputError, match="larger tiles"):
        Tiling(*values)


def test_a_face_restorer_is_sent_elsewhere(small_gfpgan) -> None:
    with pytest.raises(InputError, match="Restore Faces"):
        upscale(small_gfpgan, torch.rand(1, 3, 32, 32))


def test_a_grey_network_is_refused(compact) -> None:
    with pytest.raises(InputError, match="RGB"):
        upscale(compact(2, channels=1), torch.rand(1, 3, 32, 32))


def test_what_spandrel_did_not_load_is_refused() -> None:
    with pytest.raises(InputError, match="spandrel"):
        upscale(torch.nn.Identity(), torch.rand(1, 3, 32, 32))


def test_real_weights_on_a_real_photo(shared_assets, photo) -> None:
    model = load_image_model(shared_assets / "upscale" / "realesr-animevideov3.safetensors")
    original = photo[0][None, :, 160:352, 160:352]
    image = resize(original, (96, 96))
    tiled = upscale(model, image, Tiling(size=80, context=18, feather=4))
    torch.testing.assert_close(tiled, model(image), atol=1 / 255, rtol=0)
    assert tiled.shape == (1, 3, 384, 384)
    error = resize(tiled, (192, 192)) - original
    assert error.abs().mean() < 6 / 255
    assert error.mean(dim=(2, 3)).abs().max() < 2 / 255
