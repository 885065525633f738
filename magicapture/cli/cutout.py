"""`magicapture masks --cut-out`: masks of things, beside their photos."""

from __future__ import annotations

import argparse
import logging

from ..backups import write_all
from ..data import ReferenceSet
from ..data.companions import MASK, Found, place_beside
from ..data.cutout import load_cut_out
from ..data.masks import area_share, is_empty, is_full
from ..data.writing import mask_writer
from ..images.reading import open_picture

logger = logging.getLogger(__name__)


def cut_out_masks(arguments: argparse.Namespace, names: Found, photos: ReferenceSet) -> None:
    """Write a mask of what stands out in each photo; one that marks nothing or all is not."""
    cut_out, written = load_cut_out(arguments.cut_out), 0
    for file, photo in zip(names.photos, photos, strict=True):
        place = place_beside(file, MASK, names, names.masks.get(file), arguments.overwrite)
        if place is None or photo.face_mask is not None:
            logger.info("%s", f"{photo.name}: your own mask; left as it is.")
            continue
        mask = cut_out(photo.image)
        if is_empty(mask) or is_full(mask):
            logger.warning("%s", f"{photo.name}: nothing stands out; paint its mask yourself.")
            continue
        _, size = open_picture(file)
        write_all({place: mask_writer(mask, size)})
        share = float(area_share(mask))
        logger.info("%s", f"{photo.name}: {share:.0%} of the picture; wrote {place.name}")
        written += 1
    if written:
        logger.info("White is the thing; paint in the masks where they are wrong.")
