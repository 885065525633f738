"""The identity loss (P eq. 7): does the estimated picture show the source's face?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import IdentitySettings
from .faces.align import ARCFACE, Alignment, invert, transform
from .faces.embed import FaceEmbedder, alignment_of
from .images import luma
from .losses.equations import identity

MARGIN = 6
"""Latent cells decoded around the aligned face, on each side.

With TAESD on real photos (512 px) the face then differs from that of a whole decode by 0.9/255 on
average, its embedding by 1 - cos = 0.001 and the gradient by 1 - cos = 0.004 to 0.02, for 0.15 to
0.3 of the time; from 18 cells on, the decoder's reach, nothing differs. AutoencoderKL's group
norms take in the whole latent, so a crop never equals it exactly.
"""


class ColourBlind:
    """A face embedder as it sees faces without their colours: in Rec. 601 luma."""

    def __init__(self, embedder: FaceEmbedder) -> None:
        self.embedder, self.alignment = embedder, alignment_of(embedder)

    def __call__(self, faces: Tensor) -> Tensor:
        """Aligned faces (B,3,H,W) in 0..1 to embeddings (B,D)."""
        return self.embedder(luma(faces).expand_as(faces))


class IdentityLoss:
    """1 - cos(R(B(D(z0))), R(B(I_s))), with only the face's part of the latent decoded.

    embedder: R, frozen, on the latents' device.
    decode: D, latents to images, differentiable and unclamped; a small decoder keeps it cheap.
    downscale: image pixels to a latent cell.
    target: the source's embeddings (N,D), or one (D,). `settings.mean_target` compares with
        their mean; otherwise the loss is the mean of those against each photo, which is the
        expectation of drawing one photo a step, as the release does.
    margin: cells decoded around the face, so that the crop's edge does not show inside it.
    """

    def __init__(
        self,
        embedder: FaceEmbedder,
        decode: Callable[[Tensor], Tensor],
        downscale: int,
        target: Tensor,
        settings: IdentitySettings,
        *,
        margin: int = MARGIN,
    ) -> None:
        self.embedder, self.decode, self.downscale = embedder, decode, downscale
        self.alignment = alignment_of(embedder)
        self.settings, self.margin = settings, margin
        targets = F.normalize(torch.atleast_2d(target.detach()).float(), dim=-1)
        self.targets = targets.mean(dim=0, keepdim=True) if settings.mean_target else targets

    def __call__(self, x0: Tensor, landmarks: Tensor, signal: Tensor) -> Tensor:
        """The loss of each estimate x0 (B,C,h,w), whose face is at landmarks (B,5,2): (B,).

        landmarks: in pixels of the whole picture; on the CPU they cost no wait for the GPU.
        signal (B,): `Schedule.signal` of each, its weight where `settings.weight_by_signal`.
        """
        embedding = self.embedder(self.faces(x0, landmarks))
        targets = self.targets.to(embedding.device)
        loss = identity(embedding[:, None], targets[None]).mean(dim=1)
        return loss * signal.to(loss) if self.settings.weight_by_signal else loss

    def faces(self, x0: Tensor, landmarks: Tensor) -> Tensor:
        """The aligned faces (B,3,S,S) in 0..1 that the face embedder is shown."""
        landmarks = landmarks.float()
        corners, size = face_windows(
            landmarks, x0.shape[-2:], self.downscale, self.margin, self.alignment
        )
        crops = torch.stack(
            [z[:, y : y + size[0], x : x + size[1]] for z, (x, y) in zip(x0, corners, strict=True)]
        )
        offset = self.downscale * landmarks.new_tensor(corners)[:, None]
        pixels = clamp(self.decode(crops).float(), self.settings.straight_through)
        return self.alignment.faces(pixels, landmarks - offset)


def clamp(pixels: Tensor, straight_through: bool) -> Tensor:
    """Pixels clamped to 0..1; straight-through lets the gradient pass as if they were not."""
    clamped = pixels.clamp(0, 1)
    return pixels + (clamped - pixels).detach() if straight_through else clamped


def face_windows(
    landmarks: Tensor,
    latent_size: tuple[int, ...],
    downscale: int,
    margin: int,
    alignment: Alignment = ARCFACE,
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where to cut the latents so that the aligned faces are whole: [(x, y)], (height, width).

    All windows of a batch share one size in cells, that of the largest face, and lie inside the
    latents of `latent_size` (h, w).
    """
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * alignment.size - 0.5
    matrices = invert(alignment.matrices(landmarks))
    quads = (transform(matrices, square.to(matrices)) + 0.5) / downscale
    extent = quads.new_tensor([latent_size[1], latent_size[0]])
    low = (quads.amin(dim=1) - margin).floor().clamp_min(0).minimum(extent - 1)
    high = (quads.amax(dim=1) + margin).ceil().minimum(extent)
    size = (high - low).amax(dim=0).clamp_min(1)
    corners = low.minimum(extent - size).int().tolist()
    width, height = size.int().tolist()
    return [(x, y) for x, y in corners], (height, width)
