"""The UNet's and text encoder's training: latents encoded once, many captions for every doll."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .dataset import Shards, captions_of
from .loop import Plan, Trainer, averaged
from .networks import autoencoder, schedule, text_encoder, unet
from .tokenizer import LENGTH, load_tokenizer, write_tokenizer

log = logging.getLogger(__name__)
_T = TypeVar("_T", bound=np.generic)

PLAN = Plan(steps=9_000, rate=8e-4, warmup=200, decay=0.35, ema=0.999)
BATCH = 32
VARIANTS = 4  # captions of a doll
_DROPPED = 0.1  # share of captions left out, for classifier-free guidance
_SNR_LIMIT = 5.0  # weaker noise than this counts less: fine detail is the last to matter
_BOOST = 10.0  # strong noise counts up to this much more


def build(out: Path) -> tuple[nn.ModuleDict, int]:
    """The untrained UNet and text encoder, and the number of the end token."""
    tokenizer = load_tokenizer(write_tokenizer(out / "tokenizer"))
    end = int(tokenizer.eos_token_id)
    return nn.ModuleDict({"unet": unet(), "text": text_encoder(len(tokenizer), end)}), end


def train(
    shards: Shards,
    out: Path,
    device: torch.device,
    plan: Plan,
    batch: int = BATCH,
    until: float | None = None,
) -> Trainer:
    """Trains UNet and text encoder together on the latents of rendered dolls."""
    latents = torch.from_numpy(encoded(shards, out, device))
    tokens = torch.from_numpy(tokenized(shards, out))
    torch.manual_seed(plan.seed)
    model, end = build(out)
    model.to(device)
    trainer = Trainer("unet", model, plan, out)
    empty = torch.full((LENGTH,), end)
    empty[0] = end - 1
    alphas = schedule().alphas_cumprod
    snr = alphas / (1 - alphas)
    # Colour and composition are settled under strong noise, where an error in x0 is but a small
    # error in epsilon: min-SNR alone leaves a short training with the wrong colours.
    weights = (1 + 1 / snr).clamp(max=_BOOST) * (_SNR_LIMIT / snr).clamp(max=1)
    weights /= weights.mean()

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        variant = torch.randint(VARIANTS, (batch,), generator=generator)
        words = tokens[index, variant].long()
        words[torch.rand(batch, generator=generator) < _DROPPED] = empty
        t = torch.randint(len(alphas), (batch,), generator=generator)
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents[index].float() + (1 - a).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            context = model["text"](words.to(device)).last_hidden_state
            guess = model["unet"](noisy.to(device), t.to(device), context).sample
        error = (guess.float() - noise.to(device)).pow(2).mean((1, 2, 3))
        return {"noise": (error * weights[t].to(device)).mean()}

    trainer.run(losses, until)
    return trainer


@torch.no_grad()
def encoded(shards: Shards, out: Path, device: torch.device) -> NDArray[np.float16]:
    """Latents (N, C, h, w) of all dolls, of about unit size; kept beside the weights."""
    vae = autoencoder().to(device)
    vae.load_state_dict(averaged(out, "vae"))

    def encode(images: NDArray[np.uint8]) -> NDArray[np.float16]:
        parts = []
        for start in range(0, len(images), 64):
            x = (
                torch.from_numpy(np.array(images[start : start + 64])).to(device).float() / 127.5
                - 1
            )
            with torch.autocast(device.type, torch.bfloat16):
                parts.append(vae.encoder(x).half().cpu().numpy())
        return np.concatenate(parts)

    files = [out / "latents" / f"{shard:04d}.npy" for shard in range(len(shards.images))]
    pairs = zip(files, shards.images, strict=True)
    return np.concatenate([_kept(file, partial(encode, images)) for file, images in pairs])


def tokenized(shards: Shards, out: Path) -> NDArray[np.int16]:
    """Token numbers (N, VARIANTS, LENGTH) of every doll's captions, kept beside the weights."""
    tokenizer = load_tokenizer(write_tokenizer(out / "tokenizer"))

    def tokens(seeds: NDArray[np.int64]) -> NDArray[np.int16]:
        texts = [text for doll in seeds for text in captions_of(doll.tolist(), VARIANTS)]
        ids = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)
        return np.array(ids["input_ids"], np.int16).reshape(len(seeds), VARIANTS, LENGTH)

    files = [out / "tokens" / f"{shard:04d}.npy" for shard in range(len(shards.seeds))]
    pairs = zip(files, shards.seeds, strict=True)
    return np.concatenate([_kept(file, partial(tokens, seeds)) for file, seeds in pairs])


def _kept(file: Path, make: Callable[[], NDArray[_T]]) -> NDArray[_T]:
    """The array in a file, made and written first where the file is missing."""
    if file.exists():
        return np.load(file)
    array = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.save(stream, array)
    os.replace(unfinished, file)
    log.info("made %s", file)
    return array
