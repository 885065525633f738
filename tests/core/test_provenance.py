"""What a drawn picture tells about its maker, read as other programs read it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image

from magicapture.cli.images import save_image
from magicapture.provenance import PROGRAM

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_drawn_picture_names_its_maker(tmp_path: Path) -> None:
    image = torch.rand(3, 16, 24)
    save_image(image, tmp_path / "told.png", "a photo", 7, made_with=True)
    save_image(image, tmp_path / "plain.png", "a photo", 7)
    told, plain = (Image.open(tmp_path / f"{name}.png") for name in ("told", "plain"))
    assert told.tobytes() == plain.tobytes()
    assert told.info["Software"] == PROGRAM
    (described,) = ElementTree.fromstring(told.info["XML:com.adobe.xmp"]).iter(RDF)
    assert described.get(SOURCE_TYPE) == TRAINED
    assert plain.info == {"prompt": "a photo", "seed": "7"}
