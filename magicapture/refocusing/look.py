"""What tokens look at in finished pictures that are noised again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import LayerMaps, captured
from ..backbone import Backbone, Conditioning


@torch.no_grad()
def noised_look(
    backbone: Backbone,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    noise: Tensor,
) -> list[LayerMaps]:
    """The maps of the conditioning's tokens, of every layer but the middle block's, from one pass.

    latents and noise (B,C,h,w), timesteps (B,): the latents are noised to them. conditioning: of
    the B rows.
    """
    with captured(backbone.attention) as capture:
        with capture.recording():
            noisy = backbone.schedule.add_noise(latents, noise, timesteps)
            backbone.predict(noisy, timesteps, conditioning)
        return capture.maps(conditioning.positions, (latents.shape[-2], latents.shape[-1]))
