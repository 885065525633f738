"""The transformer's training: rectified flow on the dolls, by the finished text encoder and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from magicapture.backbone import Conditioning
from magicapture.backbones.passes import flux_pass
from magicapture.paperdoll.networks import autoencoder, text_encoder, transformer
from magicapture.paperdoll.tokenizer import load_tokenizer, write_tokenizer
from magicapture.paperdoll.weights import model_folder

from .dataset import Shards
from .loop import Plan, Trainer, averaged, state_file
from .stage_unet import VARIANTS, captioned, counted, encoded, tokenized

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny
    from transformers import CLIPTextModel

PLAN = Plan(steps=24_000, rate=1e-3, warmup=500, decay=0.35, ema=0.999)
BATCH = 32


def train(
    shards: Shards,
    out: Path,
    device: torch.device,
    plan: Plan,
    batch: int = BATCH,
    until: float | None = None,
    compiled: bool = False,
) -> Trainer:
    """Trains the transformer alone: v = noise - x0 at x_s = (1 - s) x0 + s noise.

    s is the logistic function of a standard normal draw, as for Stable Diffusion 3 (Esser et al.
    2024, section 3.1).
    """
    vae, text, end = frozen_parts(out, device)
    latents = torch.from_numpy(encoded(shards, out, vae))
    tokens = torch.from_numpy(tokenized(shards, out)[0])
    torch.manual_seed(plan.seed)
    model = transformer().to(device)
    # On CPUs the fused kernel's backward costs more than the rest of the network.
    model.set_attention_backend("_native_math")
    if compiled:
        model.compile()
    trainer = Trainer("transformer", model, plan, out)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (batch,), generator=generator)
        variant = torch.randint(VARIANTS, (batch,), generator=generator)
        words, _ = captioned(tokens, index, variant, end, generator)
        s = torch.randn(batch, generator=generator).sigmoid()
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        clean, share = latents[index].float(), s.view(-1, 1, 1, 1)
        noisy = (1 - share) * clean + share * noise
        with torch.autocast(device.type, torch.bfloat16):
            guess = velocity(model, text, noisy.to(device), s.to(device), words.to(device))
        error = (guess.float() - (noise - clean).to(device)).pow(2)
        return {"velocity": counted(error, shards, index).mean()}

    trainer.run(losses, until)
    return trainer


def frozen_parts(out: Path, device: torch.device) -> tuple[AutoencoderTiny, CLIPTextModel, int]:
    """Autoencoder, text encoder and the number of its end token.

    They are those of the run in `out`, or the shipped ones where it has none.
    """
    from diffusers import AutoencoderTiny
    from transformers import CLIPTextModel

    tokenizer = load_tokenizer(write_tokenizer(out / "tokenizer"))
    end = int(tokenizer.eos_token_id)
    vae: Any
    text: Any
    if state_file(out, "unet").exists():
        vae, text = autoencoder(), text_encoder(len(tokenizer), end)
        vae.load_state_dict(averaged(out, "vae"))
        average = averaged(out, "unet").items()
        text.load_state_dict({k[5:]: v for k, v in average if k.startswith("text.")})
    else:
        vae = AutoencoderTiny.from_pretrained(model_folder() / "vae")
        text = CLIPTextModel.from_pretrained(model_folder() / "text_encoder")
    vae, text = (part.float().to(device).eval().requires_grad_(False) for part in (vae, text))
    return vae, text, end


def velocity(model: nn.Module, text: nn.Module, noisy: Tensor, s: Tensor, words: Tensor) -> Tensor:
    """The transformer's guess of noise - x0 (B,C,h,w).

    noisy: (B,C,h,w); s: (B,), the share of noise in it, 0..1; words: (B,LENGTH) token numbers.
    """
    with torch.no_grad():
        read = text(words)
    told = Conditioning(read.last_hidden_state, {"pooled": read.pooler_output})
    return flux_pass(model, noisy, s, told, noisy.dtype)
