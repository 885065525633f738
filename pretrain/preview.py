"""Looking at the model: sampling from prompts, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from magicapture.paperdoll.networks import CHANNELS, autoencoder, schedule
from magicapture.paperdoll.tokenizer import LENGTH, load_tokenizer

from .loop import averaged
from .stage_unet import build

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from magicapture.paperdoll.drawing.colours import Array


@dataclass(frozen=True)
class Model:
    """The parts of the diffusion model, ready to sample."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    vae: AutoencoderTiny
    tokenizer: CLIPTokenizer

    @classmethod
    def of_run(cls, out: Path) -> Model:
        """The averaged weights of a training folder."""
        model, _ = build(out)
        model.load_state_dict(averaged(out, "unet"))
        vae = autoencoder()
        vae.load_state_dict(averaged(out, "vae"))
        return cls(
            model["unet"].eval(),  # type: ignore[arg-type]
            model["text"].eval(),  # type: ignore[arg-type]
            vae.eval(),
            load_tokenizer(out / "tokenizer"),
        )

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Text states (B, LENGTH, width) of prompts."""
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        return self.text(ids["input_ids"].to(self.text.device)).last_hidden_state  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], steps: int = 25, guidance: float = 3.0, seed: int = 0
    ) -> Tensor:
        """Pictures (B, 3, H, W) 0..1 for prompts, by DDIM."""
        device = self.unet.device
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(prompts), CHANNELS, 16, 16, generator=generator).to(device)
        context = torch.cat([self.embed([""] * len(prompts)), self.embed(prompts)])
        scheduler = schedule()
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            without, with_prompt = self.unet(torch.cat([x, x]), t, context).sample.chunk(2)
            x = scheduler.step(without + guidance * (with_prompt - without), t, x).prev_sample
        return ((self.vae.decoder(x) + 1) / 2).clamp(0, 1)  # type: ignore[no-any-return]


def sheet(pictures: Array, columns: int) -> Array:
    """Pictures (N, 3, H, W) as one (rows * H, columns * W, 3); N a multiple of columns."""
    count, channels, height, width = pictures.shape
    rows = count // columns
    grid = pictures.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels)


def save_sheet(pictures: Array, columns: int, file: Path) -> None:
    """Writes a sheet of pictures 0..1 as an image file."""
    from PIL import Image

    Image.fromarray((sheet(pictures, columns) * 255 + 0.5).astype(np.uint8)).save(file)
