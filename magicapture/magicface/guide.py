"""MagicFace with the samplers of `magicapture.sampling`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..backbone import Backbone
from ..sampling import Step
from ..tokens import Prompt, TokenVectors, Words
from .concepts import Reference, concept_columns
from .references import ReferenceRows, reference_rows
from .segment import Rows
from .session import Session
from .settings import MagicFaceSettings, Stage, share_at


class ReferenceGuide:
    """Draws one prompt with references; a `sampling.Guide` for one drawing of any batch.

    prompt: every image's. vectors: of learned tokens in the prompt. side: of the squares that the
    references are brought to, in pixels; best the size that the model was trained at. Raises
    InputError where a reference's word is not in the prompt.

    session: what was seen, such as the regions of the last step (`session.seen`) and the concepts
    that never had a region (`session.missing()`).
    """

    def __init__(
        self,
        backbone: Backbone,
        references: Sequence[Reference],
        prompt: str,
        vectors: TokenVectors | None = None,
        settings: MagicFaceSettings | None = None,
        *,
        side: int = 512,
    ) -> None:
        vectors = TokenVectors({}) if vectors is None else vectors
        self._backbone = backbone
        self._settings = settings or MagicFaceSettings()
        self._rows: ReferenceRows = reference_rows(
            references, side, backbone.downscale, backbone.encode
        )
        with torch.no_grad():
            self._context = backbone.encode_prompts(
                [Prompt(text) for text in self._rows.prompts], vectors
            )
        self._images = 1
        self._stage: Stage = "off"
        length = self._context.context.shape[1]
        ids = partial(_ids, backbone, vectors)
        columns = concept_columns(references, ids(prompt), ids, length)
        self.session = Session(backbone.attention, self._rows, columns, length, self._settings)

    def moved(self, latents: Tensor, step: Step, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """The latents as they are: references act inside the UNet."""
        self._images = len(latents)
        return latents

    @contextmanager
    def predicting(self, step: Step, size: tuple[int, int]) -> Iterator[None]:
        """Let the prompts' rows see the references in the step's pass."""
        total = len(step.conditioning)
        self._stage = self._settings.stage(share_at(self._sigma(step.timestep)))
        if self._stage == "off":
            yield
            return
        level = float(step.timestep)
        keys = self.session.keys(level, partial(self._pass, step.timestep))
        rows = Rows(range(step.negatives, total), range(step.negatives))
        with self.session.drawing(self._stage, keys, rows):
            yield
        if self.session.seen is not None:  # guidance multiplies the prompt's, not the edit's
            self.session.seen = self.session.seen.first(self._images)

    def _sigma(self, timestep: Tensor) -> float:
        """The noise level at a timestep, which may lie between two."""
        return self._backbone.schedule.levels.sigma(float(timestep))

    def _pass(self, t: Tensor, rows: slice) -> None:
        """Some of the references, noised to timestep t, through the UNet."""
        noise = self._rows.noise(float(t), self._settings.reference_seed)[rows]
        clean = self._rows.latents[rows]
        timesteps = self._backbone.schedule.levels.nearest(t).expand(len(clean))
        noisy = self._backbone.schedule.add_noise(clean, noise, timesteps)
        self._backbone.predict(noisy, timesteps, self._context[rows])

    def steered(self, difference: Tensor, guidance: float) -> Tensor:
        """The difference that guidance multiplies, each region's scaled to the foreground's."""
        rates = None if self._stage == "off" else self.session.rates(difference, guidance)
        return difference if rates is None else difference * rates


def _ids(backbone: Backbone, vectors: TokenVectors, text: str) -> list[Hashable]:
    """A text in the words of the text encoder; a learned vector as its token's name and number."""
    encoder = next(iter(backbone.text_encoders))
    ids: list[Hashable] = []
    for run in Prompt(text).runs(vectors.written(encoder)):
        if isinstance(run, Words):
            ids += backbone.word_ids(encoder, run.text.strip())
        else:
            ids += [(run, index) for index in range(len(vectors.get(run, encoder)))]
    return ids
