"""The losses of one draw: which rows a step puts through the UNet, and what each row costs.

Every loss is a sum over rows, so a batch of all tasks and one task after another have the same
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..attention import AttentionCapture
from ..backbone import Backbone, Conditioning
from ..config import Phase, Recipe, Task
from ..identity import IdentityLoss
from ..losses import masked_reconstruction, refocusing, timestep_weights, token_norm
from ..tokens import Concept, Prompt, TokenVectors


@dataclass(frozen=True)
class Row:
    """One latent put through the UNet.

    latents (1,C,h,w); epsilon its noise; timestep; mask (1,1,h,w), 1 where the reconstruction is
    supervised; face (1,1,h,w), 1 on the face; landmarks (1,5,2) pixels, or None.
    reconstruct is off for the separate pass of the identity loss.
    """

    task: Task
    prompt: Prompt
    latents: Tensor
    epsilon: Tensor
    timestep: int
    mask: Tensor
    face: Tensor
    landmarks: Tensor | None = None
    reconstruct: bool = True


@dataclass
class Losses:
    """The weighted total, with its graph, and the unweighted losses summed by name."""

    total: Tensor
    by_name: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """The losses of a phase (P, "Two phases"): L = sum of weights times losses over the rows."""

    backbone: Backbone
    recipe: Recipe
    phase: Phase
    subject: Concept
    style: Concept
    vectors: TokenVectors
    capture: AttentionCapture | None = None
    identity: IdentityLoss | None = None

    def __call__(self, rows: Sequence[Row], boost: float = 1.0) -> Losses:
        """Run the rows in one batch; boost multiplies the style's weight."""
        schedule, device = self.backbone.schedule, self.backbone.device
        latents = torch.cat([row.latents for row in rows]).to(device)
        epsilon = torch.cat([row.epsilon for row in rows]).to(latents)
        timesteps = torch.tensor([row.timestep for row in rows], device=device)
        noisy = schedule.add_noise(latents, epsilon, timesteps)
        conditioning = self.backbone.encode_prompts([row.prompt for row in rows], self.vectors)
        with self.capture.recording() if self.capture else nullcontext():
            prediction = self.backbone.predict(noisy, timesteps, conditioning).float()

        losses = Losses(torch.zeros((), device=device))
        target = schedule.target(latents, epsilon, timesteps)
        self._reconstruction(losses, rows, prediction, target, boost)
        if self.capture:
            self._attention(losses, rows, conditioning, (latents.shape[-2], latents.shape[-1]))
        if self.identity:
            self._identity(losses, rows, schedule.to_x0(prediction, noisy, timesteps), timesteps)
        return losses

    @cached_property
    def _noise_weights(self) -> Tensor:
        schedule = self.backbone.schedule
        return timestep_weights(
            schedule.alphas_cumprod.cpu(), self.recipe.weighting, schedule.prediction_type
        )

    def token_norms(self) -> Losses:
        """The pull of the vectors' norms towards that of ordinary words (C, phase 1)."""
        values = [token_norm(vector) for vector in self.vectors.parameters()]
        loss = torch.stack(values).mean()
        return Losses(self.phase.weights.token_norm * loss, {"token_norm": loss.detach()})

    def _reconstruction(
        self, losses: Losses, rows: Sequence[Row], prediction: Tensor, target: Tensor, boost: float
    ) -> None:
        """L_s, L_r, L_c (P eq. 4 to 6) and the prior's, each on its own rows."""
        mask = torch.cat([row.mask for row in rows]).to(prediction)
        errors = masked_reconstruction(
            prediction, target, mask, normalise_area=self.recipe.normalise_area
        )
        errors = errors * self._noise_weights[[row.timestep for row in rows]].to(errors)
        for row, error in zip(rows, errors, strict=True):
            weight = getattr(self.phase.weights, row.task)
            if row.reconstruct and weight:
                factor = boost if row.task == "style" else 1.0
                _add(losses, row.task, error, weight * factor)

    def _attention(
        self,
        losses: Losses,
        rows: Sequence[Row],
        conditioning: Conditioning,
        size: tuple[int, int],
    ) -> None:
        """L_attn (P eq. 8): for each row, the mean over its tokens and the layers' maps."""
        assert self.capture is not None
        layers = self.capture.maps(conditioning.positions, size)
        if not layers:
            return
        keys, settings = layers[0].keys, self.recipe.refocus
        acting = [row.reconstruct and row.task in settings.tasks for row in rows]
        wanted = [i for i, (row, _) in enumerate(keys) if acting[row]]
        if not wanted:
            return
        inside = torch.cat([self._region(rows[row], name) for row, name in keys])
        per_key = torch.stack(
            [
                refocusing(
                    layer.values, inside.to(layer.values), settings.scaling, settings.map_size
                )
                for layer in layers
            ]
        ).mean(0)
        for row in sorted({keys[i][0] for i in wanted}):
            own = [i for i in wanted if keys[i][0] == row]
            _add(losses, "attention", per_key[own].mean(), self.phase.weights.attention)

    def _region(self, row: Row, name: str) -> Tensor:
        """M_v: the face for the subject's token, everything else for the style's."""
        return row.face if name == self.subject.name else 1 - row.face

    def _identity(self, losses: Losses, rows: Sequence[Row], x0: Tensor, timesteps: Tensor) -> None:
        """L_id (P eq. 7) on the rows of its tasks that are clean enough to show a face."""
        assert self.identity is not None
        settings = self.recipe.identity
        chosen = [
            i
            for i, row in enumerate(rows)
            if row.landmarks is not None
            and row.task in settings.tasks
            and row.timestep < settings.max_timestep
            and row.reconstruct != settings.separate_pass
        ]
        if not chosen:
            return
        landmarks = torch.cat([rows[i].landmarks for i in chosen])  # type: ignore[misc]
        abar = self.backbone.schedule.alphas_cumprod.to(x0.device)[timesteps[chosen]]
        for value in self.identity(x0[chosen], landmarks, abar):
            _add(losses, "identity", value, self.phase.weights.identity / len(settings.tasks))


def _add(losses: Losses, name: str, value: Tensor, weight: float) -> None:
    losses.total = losses.total + weight * value
    losses.by_name[name] = losses.by_name.get(name, 0) + value.detach()
