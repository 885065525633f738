"""What finds, parses and recognises faces, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .align import FFHQ_TEMPLATE, HEAD_SIZE, similarity, warp
from .embed import FaceEmbedder, alignment_of
from .protocols import Detector, Face, Parser


@dataclass(frozen=True)
class FaceAnalyzer:
    """A detector, and a parser and a face embedder where there are any."""

    detector: Detector
    parser: Parser | None = None
    embedder: FaceEmbedder | None = None

    def embeddings(self, image: Tensor, faces: Sequence[Face]) -> Tensor:
        """The unit embeddings (N,D) of faces of an image (3,H,W); InputError without embedder."""
        if self.embedder is None:
            raise InputError("Comparing faces needs a face recognition model; connect or name one.")
        landmarks = [face.landmarks for face in faces]
        return embed_faces(self.embedder, [image] * len(faces), landmarks).cpu()

    def people(self, images: Sequence[Tensor], faces: Sequence[Sequence[Face]]) -> list[int | None]:
        """Which face of each image is of the person the set is of; None where there is no face.

        With a face embedder that is the person most like somebody in each of the other images;
        without one, or with a single image, the largest face.
        """
        largest = [0 if found else None for found in faces]
        if self.embedder is None or all(len(found) < 2 for found in faces):
            return largest
        vectors = {i: self.embeddings(images[i], found) for i, found in enumerate(faces) if found}
        if len(vectors) < 2:
            return largest
        chosen = _most_supported(list(vectors.values()))
        of_image = dict(zip(vectors, chosen, strict=True))
        return [of_image.get(i) for i in range(len(faces))]


def embed_faces(
    embedder: FaceEmbedder,
    images: Iterable[Tensor],
    landmarks: Iterable[Tensor],
    device: torch.device | str | None = None,
) -> Tensor:
    """The unit embeddings (N,D) of the faces in images (3,H,W) of any sizes, in 0..1.

    landmarks: (5,2) in pixels, one set an image. device: where the face embedder is, which it
    tells itself if it is a module.
    """
    device, alignment = device or device_of(embedder), alignment_of(embedder)
    with torch.no_grad():
        rows = [
            embedder(alignment.faces(image[None].to(device), points[None]))
            for image, points in zip(images, landmarks, strict=True)
        ]
    return F.normalize(torch.cat(rows).float(), dim=-1)


def device_of(embedder: FaceEmbedder) -> torch.device:
    """Where a face embedder takes its faces: on the GPU, say, where training has left it."""
    if not isinstance(embedder, nn.Module):
        return torch.device("cpu")
    first = next(chain(embedder.parameters(), embedder.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _most_supported(vectors: list[Tensor]) -> list[int]:
    """One row of each matrix (N,D) of unit vectors, so that all are of one person.

    The person is the row with the highest mean, over the other matrices, of its best cosine; then
    each matrix gives the row most like that person's mean.
    """
    support = [
        torch.stack([(one @ other.T).amax(dim=1) for other in vectors if other is not one]).mean(0)
        for one in vectors
    ]
    at = max(range(len(vectors)), key=lambda i: float(support[i].max()))
    person = vectors[at][int(support[at].argmax())]
    for _ in range(2):  # from one photo's face to the mean of all
        rows = [int((one @ person).argmax()) for one in vectors]
        picked = torch.stack([one[row] for one, row in zip(vectors, rows, strict=True)])
        person = F.normalize(picked.mean(dim=0), dim=0)
    return [int((one @ person).argmax()) for one in vectors]


def head(image: Tensor, face: Face) -> tuple[Tensor, Tensor]:
    """The aligned head (1,3,512,512) of a face in an image (3,H,W), and the map (1,2,3) to it."""
    matrix = similarity(face.landmarks[None], FFHQ_TEMPLATE)
    return warp(image[None], matrix, HEAD_SIZE, antialias=True), matrix
