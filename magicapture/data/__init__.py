"""Photos in: a concept's photos, checks, masks, augmentation, latents."""

from .augment import Variant, central, variant
from .cache import EncodedVariant, LatentCache
from .checks import check_photos
from .concepts import Learnable
from .folder import load_folder
from .masks import area_share, binarise, to_latent
from .photos import Photo, ReferenceSet, fingerprint

__all__ = [
    "EncodedVariant",
    "LatentCache",
    "Learnable",
    "Photo",
    "ReferenceSet",
    "Variant",
    "area_share",
    "binarise",
    "central",
    "check_photos",
    "fingerprint",
    "load_folder",
    "to_latent",
    "variant",
]
