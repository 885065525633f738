"""The UNet's and text encoder's training: latents encoded once, many captions for every doll."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from magicapture.losses.equations import timestep_weights
from magicapture.paperdoll.captions import SLOTS, read
from magicapture.paperdoll.networks import TEXT_WIDTH, autoencoder, schedule, text_encoder, unet
from magicapture.paperdoll.readers import faces_in
from magicapture.paperdoll.tokenizer import LENGTH, load_tokenizer, write_tokenizer
from magicapture.schedule import DiscreteLevels, Schedule

from .dataset import Shards, captions_of
from .loop import Plan, Trainer, averaged

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

log = logging.getLogger(__name__)
_T = TypeVar("_T", bound=np.generic)

PLAN = Plan(steps=28_000, rate=8e-4, warmup=200, decay=0.35, ema=0.999)
BATCH = 32
VARIANTS = 4  # captions of a doll
_WORDS = 0.1  # weight of the text encoder's own task
_DROPPED = 0.1  # share of captions left out, for classifier-free guidance
_FACE = 2.0  # faces count so much more: they are a quarter of the picture and all of the person


def build(out: Path) -> tuple[nn.ModuleDict, int]:
    """The untrained UNet, text encoder and its reading head, and the number of the end token."""
    tokenizer = load_tokenizer(write_tokenizer(out / "tokenizer"))
    end = int(tokenizer.eos_token_id)
    reading = nn.Linear(TEXT_WIDTH, sum(len(words) for words in SLOTS.values()))
    model = {"unet": unet(), "text": text_encoder(len(tokenizer), end), "reading": reading}
    return nn.ModuleDict(model), end


def train(
    shards: Shards,
    out: Path,
    device: torch.device,
    plan: Plan,
    batch: int = BATCH,
    until: float | None = None,
    compiled: bool = False,
) -> Trainer:
    """Trains UNet and text encoder together on the latents of rendered dolls.

    The text encoder starts from nothing, where Stable Diffusion's has read the web. So that it
    need not learn its few words through the UNet alone, a linear head reads off the token that
    ends a clause what the clause said: "hair" in "long red hair" is to know of long and red.
    """
    vae = autoencoder().to(device)
    vae.load_state_dict(averaged(out, "vae"))
    latents = torch.from_numpy(encoded(shards, out, vae))
    tokens, said = (torch.from_numpy(array) for array in tokenized(shards, out))
    torch.manual_seed(plan.seed)
    model, end = build(out)
    model.to(device)
    if compiled:
        model["unet"].compile()
    trainer = Trainer("unet", model, plan, out)
    # Colour and composition are settled under strong noise, where an error in x0 is but a small
    # error in epsilon: min-SNR alone leaves a short training with the wrong colours.
    alphas = schedule().alphas_cumprod
    noise = Schedule(DiscreteLevels(alphas))
    weights = timestep_weights(noise, noise.levels.typical(), "v")

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        variant = torch.randint(VARIANTS, (batch,), generator=generator)
        words, dropped = captioned(tokens, index, variant, end, generator)
        t = torch.randint(len(alphas), (batch,), generator=generator)
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents[index].float() + (1 - a).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            context = model["text"](words.to(device)).last_hidden_state
            guess = model["unet"](noisy.to(device), t.to(device), context).sample
            logits = model["reading"](context)
        error = counted((guess.float() - noise.to(device)).pow(2), shards, index)
        return {
            "noise": (error.mean((1, 2, 3)) * weights[t].to(device)).mean(),
            "words": _WORDS * reading_loss(logits.float(), said[index, variant], ~dropped),
        }

    trainer.run(losses, until)
    return trainer


@torch.no_grad()
def encoded(shards: Shards, out: Path, vae: AutoencoderTiny) -> NDArray[np.float16]:
    """Latents (N, C, h, w) of all dolls, of about unit size; kept beside the weights."""
    device = vae.device

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


def captioned(
    tokens: Tensor, index: Tensor, variant: Tensor, end: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Token numbers (B, LENGTH) of some dolls' captions, and which (B,) are left out, as drawn.

    tokens: as of `tokenized`; end: the number of the end token, beginning being the one before.
    """
    words = tokens[index, variant].long()
    dropped = torch.rand(len(index), generator=generator) < _DROPPED
    empty = torch.full((LENGTH,), end)
    empty[0] = end - 1
    words[dropped] = empty
    return words, dropped


def counted(error: Tensor, shards: Shards, index: Tensor) -> Tensor:
    """Errors (B, C, h, w) of some dolls' latents, more where there is face; alike on the mean."""
    cells = 1 + _FACE * faces_of(shards, index.numpy(), error.shape[-1]).to(error.device)
    return error * cells / cells.mean()


def faces_of(shards: Shards, index: NDArray[np.int64], size: int) -> Tensor:
    """How much of each latent cell is face, (B, 1, size, size) 0..1, for some doll numbers."""
    labels = torch.from_numpy(shards.pick(index)[1])
    return F.adaptive_avg_pool2d(faces_in(labels), size)


def reading_loss(logits: Tensor, said: Tensor, given: Tensor) -> Tensor:
    """Cross-entropy of what captions say, read at the tokens that have just said it.

    logits: (B, LENGTH, classes of all slots); said: (B, slots, 2), the token and the word's
    number, -1 where nothing is said; given: (B,), whether the caption was.
    """
    losses = []
    sizes = [len(words) for words in SLOTS.values()]
    for slot, scores in enumerate(logits.split(sizes, dim=-1)):
        at, word = said[:, slot].long().unbind(-1)
        rows = ((at >= 0) & given).nonzero()[:, 0]
        if len(rows):
            losses.append(F.cross_entropy(scores[rows, at[rows]], word[rows].to(logits.device)))
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def tokenized(shards: Shards, out: Path) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
    """Token numbers (N, VARIANTS, LENGTH) of every doll's captions, and what these say.

    The second array, (N, VARIANTS, slots, 2), has the token and the word's number by slot, -1
    where a caption says nothing of it. Both are kept beside the weights.
    """
    tokenizer = load_tokenizer(write_tokenizer(out / "tokenizer"))
    slots = list(SLOTS)

    def tokens(texts: list[str]) -> NDArray[np.int16]:
        ids = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)
        return np.array(ids["input_ids"], np.int16)

    def meaning(text: str) -> NDArray[np.int8]:
        found = np.full((len(slots), 2), -1, np.int8)
        for slot, word, at in read(text):
            if at < LENGTH - 1:
                found[slots.index(slot)] = at, SLOTS[slot].index(word)
        return found

    def both(seeds: NDArray[np.int64]) -> NDArray[np.int16]:
        texts = [text for doll in seeds for text in captions_of(doll.tolist(), VARIANTS)]
        said = np.stack([meaning(text) for text in texts]).reshape(len(texts), -1)
        joined = np.concatenate([tokens(texts), said], 1)
        return joined.reshape(len(seeds), VARIANTS, -1)

    files = [out / "tokens" / f"{shard:04d}.npy" for shard in range(len(shards.seeds))]
    pairs = zip(files, shards.seeds, strict=True)
    joined = np.concatenate([_kept(file, partial(both, seeds)) for file, seeds in pairs])
    said = joined[..., LENGTH:].astype(np.int8)
    return joined[..., :LENGTH], said.reshape(*said.shape[:2], len(slots), 2)


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
