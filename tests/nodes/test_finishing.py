"""The finishing nodes as the executor runs them, on small networks of the real architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from spandrel import ImageModelDescriptor
from spandrel.architectures.Compact import Compact
from spandrel.architectures.GFPGAN import GFPGAN, GFPGANArch

SIDE = 96


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def upscaler(comfyui):
    """A small Real-ESRGAN from ComfyUI's own loader."""
    import folder_paths
    from comfy_extras.nodes_upscale_model import UpscaleModelLoader

    torch.manual_seed(0)
    weights = Compact(num_feat=8, num_conv=2, upscale=2).state_dict()
    folder = folder_paths.get_folder_paths("upscale_models")[0]
    torch.save({"params": weights}, _made(folder) / "compact.pth")
    return UpscaleModelLoader.execute("compact.pth")[0]


def _made(folder) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


@pytest.fixture
def restorer():
    """GFPGAN with an eighth of its channels."""
    torch.manual_seed(3)
    network = GFPGAN(narrow=0.125, num_style_feat=64, num_mlp=1)
    channels = {"input_channels": 3, "output_channels": 3, "scale": 1}
    halves = {"supports_half": False, "supports_bfloat16": True}
    return ImageModelDescriptor(
        network,
        network.state_dict(),
        GFPGANArch(),
        purpose="FaceSR",
        tags=[],
        **halves,
        **channels,
    )


@pytest.fixture
def detector(pack):
    """A detector that sees one face in the middle of a picture, unless its middle is black."""
    face, template = pack("magicapture.faces.protocols").Face, pack("magicapture.faces.align")

    def detect(image):
        height, width = image.shape[-2:]
        if not image[:, height // 2, width // 2].any():
            return ()
        side = min(height, width)
        points = template.FFHQ_TEMPLATE * (side / 512)
        return (face(torch.tensor([0.0, 0.0, side, side]), points, 0.9),)

    return detect


def red_and_green(faces):
    """A face embedder that sees how red and how green a face is."""
    return faces[:, :2].mean(dim=(2, 3))


def photos(count=1, seed=1, size=(SIDE, SIDE)):
    return 0.1 + 0.8 * torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def shown(output):
    return output.ui.as_dict()["images"]


def test_super_resolve_reaches_the_size(nodes, upscaler) -> None:
    images = photos(2, size=(40, 60))
    plain = nodes.UpscalePortrait.execute(upscaler, images, 0.0, 0, 512)
    expected = torch.cat([upscaler(one[None].movedim(-1, 1)) for one in images]).movedim(1, -1)
    torch.testing.assert_close(plain[0], expected, atol=1e-5, rtol=0)
    assert nodes.UpscalePortrait.execute(upscaler, images, 3.0, 0, 512)[0].shape == (2, 120, 180, 3)
    long = nodes.UpscalePortrait.execute(upscaler, images, 3.0, 90, 512)
    assert long[0].shape == (2, 60, 90, 3) and len(shown(long)) == 1
    assert upscaler.device.type == "cpu"


def test_super_resolve_tells_what_it_cannot_use(nodes, pack, upscaler, restorer) -> None:
    with pytest.raises(
        pack("magicapture.errors").InputError, match=r"Upscale Portrait.*Restore Faces"
    ):
        nodes.UpscalePortrait.execute(restorer, photos(), 2.0, 0, 512)
    with pytest.raises(pack("magicapture.errors").InputError, match="Load Upscale Model"):
        nodes.UpscalePortrait.execute(None, photos(), 2.0, 0, 512)


def test_cancel_stops_between_tiles(nodes, pack, upscaler) -> None:
    import comfy.model_management as management

    ran = []
    hook = upscaler.model.register_forward_hook(lambda *_: ran.append(1))
    management.interrupt_current_processing(True)
    with pytest.raises(pack.comfy.Cancelled):
        nodes.UpscalePortrait.execute(upscaler, photos(1, size=(400, 400)), 2.0, 0, 128)
    hook.remove()
    management.interrupt_current_processing(False)
    assert len(ran) == 1


def test_restore_faces_changes_faces_alone(nodes, restorer, detector) -> None:
    images = photos(2)
    images[1] = 0
    result = nodes.RestoreFaces.execute(restorer, images, 1.0, "all", 0.5, 15.6, detector)
    restored, mask, report = result.args
    assert restored.shape == images.shape and mask.shape == images.shape[:3]
    changed = (restored != images).any(dim=-1)
    assert bool(changed[0].any()) and not bool((changed & (mask == 0)).any())
    assert torch.equal(restored[1], images[1])
    assert "an oval" in report and "Picture 2: no face" in report
    assert len(shown(result)) == 1


def test_no_face_at_all_needs_no_preview(nodes, restorer, detector) -> None:
    images = torch.zeros(1, SIDE, SIDE, 3)
    result = nodes.RestoreFaces.execute(restorer, images, 1.0, "all", 0.5, 15.6, detector)
    assert torch.equal(result[0], images) and result.ui is None


def test_guard_takes_back_what_costs_too_much(nodes, pack, detector) -> None:
    before = torch.zeros(1, SIDE, SIDE, 3)
    before[..., 0] = 0.8
    after = before.flip(-1) + before.roll(1, -1)  # green and blue
    references = pack("magicapture.data").ReferenceSet.of((before[0].movedim(-1, 0),) * 2)
    given = references, red_and_green
    result = nodes.GuardIdentity.execute(after, before, *given, 0.03, detector)
    kept, report, strength, data = result.args
    assert 0.1 < strength < 0.3 and f"{strength:.2f}" in report
    torch.testing.assert_close(kept, torch.lerp(before, after, strength))
    (numbers,) = json.loads(data)
    assert numbers["before"] - numbers["kept"] <= 0.03 + 1e-5 < numbers["before"] - numbers["after"]
    assert shown(result)
    whole = nodes.GuardIdentity.execute(after, before, *given, 1.0, detector)
    assert torch.equal(whole[0], after) and whole[2] == 1


def test_guard_passes_pictures_without_a_face_and_of_other_sizes(nodes, pack, detector) -> None:
    person = pack("magicapture.data").ReferenceSet.of([photos()[0].movedim(-1, 0)])
    given = person, red_and_green, 0.03, detector
    black = torch.zeros(1, SIDE, SIDE, 3)
    result = nodes.GuardIdentity.execute(black + 0.1, black, *given)
    assert torch.equal(result[0], black + 0.1) and "no face" in result[1]
    large = nodes.GuardIdentity.execute(photos(size=(2 * SIDE, 2 * SIDE)), photos(), *given)
    assert large[0].shape == (1, 2 * SIDE, 2 * SIDE, 3)
    with pytest.raises(pack("magicapture.errors").InputError, match="2 pictures before"):
        nodes.GuardIdentity.execute(photos(3), photos(2), *given)
    with pytest.raises(
        pack("magicapture.errors").InputError,
        match=r"Guard Identity: .* of another shape; connect the same",
    ):
        nodes.GuardIdentity.execute(photos(size=(SIDE, 2 * SIDE)), photos(), *given)


def test_match_brings_the_tint_back_inside_the_mask(nodes) -> None:
    original = torch.full((1, SIDE, SIDE, 3), 0.5)
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 30:66, 30:66] = 1
    tinted = original + 0.2 * mask[..., None]
    matched = nodes.MatchGrainAndColour.execute(tinted, original, 1.0, 1.0, 0, mask)[0]
    assert (matched - original).abs().max() < 0.01
    assert torch.equal(matched[mask == 0], tinted[mask == 0])
    assert nodes.MatchGrainAndColour.execute(tinted, original, 1.0, 1.0, 0)[0] is tinted


def test_the_loader_lists_and_reads_restorers(nodes, pack, upscaler) -> None:
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    (folder,) = pack.comfy.model_folders("facerestore_models")
    (_made(folder) / "readme.txt").write_text("not a model")
    with pytest.raises(pack("magicapture.errors").StorageError, match=r"GFPGANv1\.4"):
        nodes.LoadFaceRestorer.execute("absent.pth")
    torch.save(upscaler.model.state_dict(), _made(folder) / "my own.pth")
    (choice,) = nodes.LoadFaceRestorer.define_schema().inputs
    assert "my own.pth" in choice.options and "readme.txt" not in choice.options
    loaded = nodes.LoadFaceRestorer.execute("my own.pth")[0]
    stock, images = ImageUpscaleWithModel.execute, torch.rand(1, SIDE, SIDE, 3)
    assert torch.equal(stock(loaded, images)[0], stock(upscaler, images)[0])


def test_masks_by_which_nothing_can_be_matched_are_told(pack) -> None:
    masks = torch.zeros(3, 1, 8, 8)
    masks[1], masks[2, :, :4] = 1, 1
    nothing, everything = pack("nodes.guarding")._odd_masks(masks)
    assert nothing.startswith("picture 1: the mask marks nothing")
    assert everything.startswith("picture 2: the mask marks all of it")


def test_what_was_not_found_leaves_the_pictures_as_they_are(nodes) -> None:
    """Nothing of 04 has to be bypassed for want of a restorer or a face recognition model."""
    images = photos(2)
    missing = nodes.LoadFaceRestorer.execute("best found, or none")
    assert missing[0] is None
    restored = nodes.RestoreFaces.execute(missing[0], images, 1.0, "all", 0.5, 15.6)
    assert restored[0] is images and not restored[1].any() and "No restorer" in restored[2]
    matched = nodes.MatchGrainAndColour.execute(restored[0], images, 1.0, 1.0, 0, restored[1])
    assert torch.equal(matched[0], images)
    guarded = nodes.GuardIdentity.execute(matched[0], images, None, None, 0.03)
    assert torch.equal(guarded[0], images) and "not guarded" in guarded[1]
