"""What a kept step is scored by: pictures of a few seeds, and measures with what is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..clip import PictureEncoder
from ..data import Photo, ReferenceSet, central
from ..digests import digest
from ..errors import InputError
from ..evaluation import Models, References
from ..evaluation.scoring import Values, see_picture, values
from ..evaluation.seen import masked_out
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import FaceEmbedder, name_of
from ..images import resize
from ..metrics import both
from ..person import OF_THE_LOSS, is_that_of
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample
from ..training import Learned, Prepared, Trainer
from .attending import PORTRAITS, Obedience, leaking
from .eyes import autoencoder_eyes, clip_eyes
from .record import Record, not_measured
from .settings import KeepSettings
from .things import NO_FACES, Thing

SHOWN = 256
"""Pixels of a kept picture's longer side."""

_ALIKE = 0.05  # below it portraits share no style that could be measured
_DRAW_STEPS = 20  # as previews have


@dataclass(frozen=True, eq=False)
class Keep:
    """What checkpoints are kept and measured with.

    analyzer: with the face embedder that measures identity, best another than `loss`, the identity
    loss's. pictures: a CLIP model, for the style; without one the base model's autoencoder serves.
    sampling: how pictures are drawn, in place of what the settings say.
    """

    settings: KeepSettings
    analyzer: FaceAnalyzer
    pictures: PictureEncoder | None = None
    loss: FaceEmbedder | None = None
    sampling: SamplingSettings | None = None

    def with_loss(self, loss: FaceEmbedder | None) -> Keep:
        """The same for a run with this identity loss, whose face embedder serves for want of one
        that measures."""
        own = self.analyzer.embedder or loss
        return replace(self, analyzer=replace(self.analyzer, embedder=own), loss=loss)


class Scorer:
    """Scores what a trainer has learned; made in its scope, when it is ready.

    measured: a hash of all that decides scores beside the adapter. missing: a sentence on each
    measure that is left out. Raises InputError where the choice needs one of them.
    """

    def __init__(self, keep: Keep, trainer: Trainer) -> None:
        self.keep, self.trainer = keep, trainer
        side = trainer.recipe.side
        self.sampling = keep.sampling or SamplingSettings(
            steps=_DRAW_STEPS, guidance=keep.settings.keep_guidance, width=side, height=side
        )
        self.missing: list[str] = []
        self._of_a_thing = trainer.recipe.subject_is == "thing"
        if self._of_a_thing:
            self.keep = replace(keep, analyzer=NO_FACES)
        subject, style = (self._painted(of.photos) for of in trainer.job.learnables)
        self._models = self._with_eyes([*subject, *style])
        self._against = self._references(subject, style)
        self._has_style = self._against.style is not None and self._against.style_own > _ALIKE
        if not self._has_style:
            self.missing.append("style: the portraits are too little alike.")
        self._thing = self._thing_of(subject) if self._of_a_thing else None
        person = self._against.person if self._thing is None else self._thing.photos
        choose = keep.settings.choose
        measured = {"identity": person is not None, "style": self._has_style}
        if not {**measured, "both": any(measured.values()), "last": True}[choose]:
            raise not_measured(choose)
        batches = trainer.materials.batches
        portraits = list(batches.reference.each())
        watched = batches.source.each() if self._of_a_thing else portraits
        self._watched = [one for one in watched if one.face_mask is not None][:PORTRAITS]
        if not self._watched:
            self.missing.append("leakage: the portraits' faces are not known.")
        self._obedience = Obedience(trainer.job, trainer.backbone, portraits[0].latents)
        known = None if person is None else person.embeddings
        self.measured = digest(
            *(keep.settings.keep_seeds, self.sampling, known, self._against.style)
        )[:24]

    @property
    def measured_by(self) -> str:
        """What identity and style are measured by, in words for the user."""
        embedder = self._models.analyzer.embedder
        eyes = "the base model's autoencoder" if self.keep.pictures is None else "CLIP"
        lines = [f"Style by {eyes}."] if self._has_style else []
        if self._thing is not None:
            lines.insert(0, "Identity by DINO, as the losses see the thing.")
        if embedder is not None:
            name = name_of(embedder) or type(embedder).__name__
            told = OF_THE_LOSS[is_that_of(self.keep.loss, embedder)]
            lines.insert(0, f"Identity by {name}{told}")
        return " ".join(lines)

    @torch.no_grad()
    def __call__(self, step: int, learned: Learned) -> tuple[Record, Tensor]:
        """The record of a step, and its pictures (N,3,s,s), at most SHOWN pixels a side."""
        seen, shown, shares = [], [], list[float | None]()
        for number, image in enumerate(self._drawn(step, learned)):
            seen.append(see_picture(f"seed {number}", image, self._against, self._models))
            shown.append(_small(image))
            if self._thing is not None:
                shares.append(self._thing.share(image))
        run = {"obedience": self._obedience(learned)}
        leakage = leaking(learned, self.trainer.job, self.trainer.backbone, self._watched)
        if leakage is not None:
            run["leakage"] = leakage
        found = values(seen, self._against, self._models)
        if self._of_a_thing:  # no face was looked for
            del found["faces"]
            found |= {"identity": shares} if shares else {}
        pictures = columns(found, self._against.style_own if self._has_style else None)
        return Record(step, pictures, {name: round(v, 4) for name, v in run.items()}), torch.stack(
            shown
        )

    def _drawn(self, step: int, learned: Learned) -> Iterator[Tensor]:
        """The picture (3,H,W) of each seed, one in memory at a time."""
        trainer, count = self.trainer, self.keep.settings.keep_seeds
        prompt = prompt_for(trainer.job.concepts, trainer.recipe.prompts)
        for number in range(count):
            trainer.tell(Prepared(f"scoring step {step}", number, count))
            with learned.loras.shown():
                images = sample(
                    trainer.backbone, prompt, learned.vectors, self.sampling, seed=number
                )
            yield images[0].float().cpu()
        trainer.tell(Prepared(f"scoring step {step}", count, count))

    def _painted(self, photos: ReferenceSet) -> ReferenceSet:
        """Photos as training sees them and the autoencoder paints them, as it does what is drawn.

        Else its softness would tell them apart.
        """
        backbone, side = self.trainer.backbone, self.sampling.size(self.trainer.backbone.family)[0]

        @torch.no_grad()
        def painted(image: Tensor) -> Tensor:
            latents = backbone.encode(image[None].to(backbone.device))
            return backbone.decode(latents)[0].clamp(0, 1).float().cpu()

        squares = [central(photo, side) for photo in photos]
        return ReferenceSet(tuple(replace(one, image=painted(one.image)) for one in squares))

    def _with_eyes(self, photos: Sequence[Photo]) -> Models:
        covered = [[] if photo.face_mask is None else [photo.face_mask] for photo in photos]
        pool = torch.stack(
            [masked_out(photo.image, masks) for photo, masks in zip(photos, covered, strict=True)]
        )
        if self.keep.pictures is None:
            eyes = autoencoder_eyes(self.trainer.backbone, pool)
        else:
            eyes = clip_eyes(self.keep.pictures, pool)
        return Models(self.keep.analyzer, eyes)

    def _references(self, subject: ReferenceSet, style: ReferenceSet) -> References:
        """The references; without identity where no face, or no one person, is seen in them."""
        if self._of_a_thing:
            return References.of(subject, style, self._models)
        if self._models.analyzer.embedder is None:
            self.missing.append("identity: there is no face recognition model.")
        else:
            try:
                return References.of(subject, style, self._models)
            except InputError as error:
                self.missing.append(f"identity: {error}")
                analyzer = replace(self._models.analyzer, embedder=None)
                self._models = replace(self._models, analyzer=analyzer)
        return References.of(subject, style, self._models)

    def _thing_of(self, subject: ReferenceSet) -> Thing | None:
        """What its losses see the thing with; None, and a word, where they look through no DINO."""
        look = self.trainer.materials.dino
        if look is None:
            self.missing.append("identity: no DINO looks at the thing, and a thing has no face.")
            return None
        try:
            return Thing(look.dino, subject)
        except InputError:
            self.missing.append("identity: DINO sees the thing's photos as too little alike.")
            return None


def columns(found: Values, style_own: float | None) -> dict[str, list[float]]:
    """The columns of pictures: those of `evaluation` but style, which is a share of its own here.

    both is made of the shares that there are. style_own: the portraits' likeness to each other;
    None where style cannot be measured.
    """
    shown = ("identity", "copies", "faces")
    wanted: Values = {name: found[name] for name in shown if name in found}
    shares = [torch.tensor([v or 0.0 for v in wanted["identity"]])] if "identity" in wanted else []
    if style_own is not None:
        shares.append(torch.tensor([v or 0.0 for v in found["style"]]) / style_own)
        wanted["style"] = shares[-1].tolist()
    if shares:
        wanted["both"] = both(shares[0], shares[-1]).tolist()
    return {name: [round(float(v or 0.0), 4) for v in values] for name, values in wanted.items()}


def _small(image: Tensor) -> Tensor:
    """A picture (3,H,W) of at most SHOWN pixels a side, in 8 bits as files have it."""
    scale = min(1.0, SHOWN / max(image.shape[-2:]))
    size = [max(1, round(pixels * scale)) for pixels in image.shape[-2:]]
    small = image if scale == 1 else resize(image, (size[0], size[1]))
    return (small.clamp(0, 1) * 255).round() / 255
