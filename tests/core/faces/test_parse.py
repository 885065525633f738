"""Parsers: random weights in a real file, compared with facexlib's own way; the label tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from magicapture.errors import InputError, StorageError
from magicapture.faces.labelling import FaceParser
from magicapture.faces.parse import load_parser
from magicapture.faces.parsers.bisenet import BISENET_LABELS
from magicapture.faces.parsers.parsenet import PARSENET_LABELS
from magicapture.faces.protocols import Part
from magicapture.paperdoll import Label
from magicapture.paperdoll.faces import PAPERDOLL_LABELS

pytest.importorskip("facexlib")

# As CelebAMask-HQ's users number them: BiSeNet by zllrunning, ParseNet by facexlib.
BISENET = (
    "background skin brow brow eye eye glasses ear ear earring nose mouth lip lip neck necklace "
    "clothes hair hat"
)
PARSENET = (
    "background skin nose glasses eye eye brow brow ear ear mouth lip lip hair hat earring "
    "necklace neck clothes"
)


@pytest.mark.parametrize(
    ("labels", "names"), [(BISENET_LABELS, BISENET), (PARSENET_LABELS, PARSENET)]
)
def test_label_tables(labels, names) -> None:
    assert [part.name.lower() for part in labels] == names.split()


def test_paperdolls_labels() -> None:
    alike = {"CLOTHES": "CLOTHES", "LEFT_BROW": "BROW", "UPPER_LIP": "LIP", "LOWER_LIP": "LIP"}
    for label in Label:
        name = alike.get(label.name, label.name.removeprefix("LEFT_").removeprefix("RIGHT_"))
        assert PAPERDOLL_LABELS[label] == Part[name]


def bisenet():
    from facexlib.parsing.bisenet import BiSeNet

    return BiSeNet(num_class=19).eval()


def parsenet():
    from facexlib.parsing.parsenet import ParseNet

    return ParseNet(in_size=512, out_size=512, parsing_ch=19).eval()


@pytest.mark.parametrize(
    ("make", "labels", "mean", "std"),
    [
        (bisenet, BISENET_LABELS, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        pytest.param(parsenet, PARSENET_LABELS, [0.5] * 3, [0.5] * 3, marks=pytest.mark.slow),
    ],
)
def test_a_file_gives_what_facexlib_does(tmp_path, make, labels, mean, std) -> None:
    from torchvision.transforms.functional import normalize

    network = make()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    head = torch.rand(1, 3, 64, 64)
    head = F.interpolate(head, (512, 512), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        label = network(normalize(head, mean, std))[0].argmax(dim=1)
    expected = torch.tensor([int(part) for part in labels])[label]
    assert len(expected.unique()) > 1
    assert torch.equal(load_parser(path)(head), expected)


def test_other_sizes_come_back_at_their_own() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x):
            assert x.shape[-2:] == (512, 512)
            left = (torch.arange(512) < 256).float().expand(x.shape[0], 1, 512, 512)
            return torch.cat([1 - left, left], dim=1)

    from magicapture.faces.embed import NORMALISATIONS

    parser = FaceParser(Halves(), (Part.BACKGROUND, Part.SKIN), NORMALISATIONS["arcface"])
    parts = parser(torch.rand(2, 3, 100, 80))
    assert parts.shape == (2, 100, 80)
    assert (parts[:, :, :39] == Part.SKIN).all() and (parts[:, :, 41:] == Part.BACKGROUND).all()


def test_files_that_are_no_parser(tmp_path) -> None:
    with pytest.raises(StorageError, match="no face parser at"):
        load_parser(tmp_path / "parsing_bisenet.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        InputError, match=r"weights weight is no face parser; expected BiSeNet .* or ParseNet"
    ):
        load_parser(tmp_path / "other.pth")
    weights = bisenet().state_dict()
    weights.pop("conv_out.conv_out.weight")
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(InputError, match="does not fit BiSeNet"):
        load_parser(tmp_path / "part.pth")
    weights = bisenet().state_dict()
    weights["conv_out.conv_out.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(StorageError, match=r"conv_out\.conv_out\.weight holds numbers"):
        load_parser(tmp_path / "nan.pth")
    torch.save({"code": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="could run code"):
        load_parser(tmp_path / "code.pth")
