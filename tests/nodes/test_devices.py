"""Pictures and masks that lie on another device, as under --gpu-only, which no CPU may touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SIDE = 96


class Elsewhere(Tensor):
    """Values that say they are on another device: they mix with no tensor of the CPU's.

    Only a copy to the CPU gives them out. A stand-in for a GPU where there is none.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, dtype=values.dtype, device="meta"
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})

        def inside(value: Any) -> Any:
            if isinstance(value, Tensor) and not isinstance(value, cls) and value.ndim:
                raise RuntimeError(f"{function}: expected all tensors to be on the same device")
            return value.values if isinstance(value, cls) else value

        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):
            dtype = kwargs.get("dtype") or next(
                (a for a in args if isinstance(a, torch.dtype)), args[0].dtype
            )
            device = kwargs.get("device") or next(
                (a for a in args if isinstance(a, torch.device)), args[0].device
            )
            copied = args[0].values.to(dtype, copy=True)
            return copied if device == torch.device("cpu") else cls(copied)
        result = function(*tree_map(inside, args), **tree_map(inside, kwargs))
        return tree_map(lambda value: cls(value) if isinstance(value, Tensor) else value, result)


def picture(seed=1, count=1):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(count, SIDE, SIDE, 3, generator=generator)


def middle():
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 30:66, 30:66] = 1
    return mask


def test_the_stand_in_refuses_the_cpus_tensors():
    away = Elsewhere(picture())
    assert away.device.type == (2 * away[..., :2]).device.type == "meta"
    with pytest.raises(RuntimeError, match="same device"):
        away + picture()
    assert torch.equal(away.cpu(), picture())


@pytest.mark.usefixtures("executor")
def test_what_comes_in_is_on_the_cpu(pack):
    images = pack.comfy.images_from_socket(Elsewhere(picture().half()))
    masks = pack.comfy.masks_from_socket(Elsewhere(middle()))
    for tensor in (images, masks):
        assert type(tensor) is Tensor and tensor.device.type == "cpu"
        assert tensor.dtype == torch.float32 and not tensor.is_inference()
    assert torch.equal(images, picture().half().float().movedim(-1, 1))
    assert torch.equal(masks, middle()[None])


def test_what_goes_out_is_where_comfyui_keeps_its_pictures(pack, monkeypatch):
    import comfy.model_management as management

    images, masks = picture().movedim(-1, 1), middle()[None]
    for device in ("cpu", "meta"):
        monkeypatch.setattr(management, "intermediate_device", lambda d=device: torch.device(d))
        assert pack.comfy.images_to_socket(images).device.type == device
        assert pack.comfy.masks_to_socket(masks).device.type == device


@pytest.mark.usefixtures("executor")
def test_matching_of_a_restored_part(nodes):
    given = {"images": picture(1), "originals": picture(2), "mask": middle()}
    settings = {"colour": 1.0, "grain": 1.0, "grain_seed": 0}
    expected = nodes.MatchGrainAndColour.execute(**given, **settings)[0]
    there = {name: Elsewhere(tensor) for name, tensor in given.items()}
    found = nodes.MatchGrainAndColour.execute(**there, **settings)[0]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("executor")
def test_photos_masks_likeness_and_the_guard(nodes):
    """Through all nodes that look for faces, on dolls."""
    person, *_, truth = nodes.DrawPaperdollPhotos.execute(1_000_000, 1_000_099, 4)
    detector, parser, embedder = nodes.LoadPaperdollFaceModels.execute().args
    finished = 0.5 * truth + 0.25
    reports = []
    for place in (Elsewhere, lambda tensor: tensor):
        photos = [place(image.movedim(0, -1)[None].clone()) for image in person.images]
        masks = [place(photo.face_mask.clone()) for photo in person]
        loaded = nodes.LoadPhotoSet.execute(["(none: use images)"], photos, masks, [""])[0]
        assert all(image.device.type == "cpu" for image in loaded.images)
        masked = nodes.MakeFaceMasks.execute(loaded, "face", 0, 0, detector, parser, embedder)
        measured = nodes.MeasureIdentity.execute(place(truth), loaded, embedder, detector)
        guarded = nodes.GuardIdentity.execute(
            place(truth), place(finished), loaded, embedder, 0.03, detector
        )
        reports.append((masked.args[4], *measured.args, *guarded.args[1:]))
    assert reports[0] == reports[1]
