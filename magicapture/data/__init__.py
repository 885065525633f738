"""Photos in: reference sets, checks, masks, augmentation, latents."""

from .augment import Draw, draw
from .cache import CachedDraw, LatentCache
from .checks import check_references
from .composing import with_faces_of
from .folder import load_folder
from .masks import area_share, binarise, face_mask, face_to_concept, to_latent
from .references import ReferenceSet, fingerprint

__all__ = [
    "CachedDraw",
    "Draw",
    "LatentCache",
    "ReferenceSet",
    "area_share",
    "binarise",
    "check_references",
    "draw",
    "face_mask",
    "face_to_concept",
    "fingerprint",
    "load_folder",
    "to_latent",
    "with_faces_of",
]
