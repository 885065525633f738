"""The backbone over diffusers' and transformers' models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import TappedTorch, TappedUNet
from ..backbone import Conditioning, distilled_guidance
from ..digests import digest, tokenizer_digest
from ..families import FAMILIES, Family, FamilyName
from ..latents import LatentMemory
from ..parts import Part, Parts
from ..schedule import Schedule
from ..tokens import Layout, Prompt, TokenVectors, filled_up, layout, splice
from . import autoencoders
from .parts import in_float32
from .passes import PASSES, flux_pass, unet_pass
from .support import family_of

_STACKS = ("transformer_blocks", "single_transformer_blocks")
"""What holds the blocks of all transformers but Z-Image's."""


class DiffusersBackbone:
    """A latent diffusion model from its parts; fits `magicapture`'s Backbone.

    unet: UNet2DConditionModel or one of `TRANSFORMERS`. vae: one of `AUTOENCODERS`. text_encoders,
    tokenizers: CLIPTextModel and CLIPTokenizer by the key "clip_l"; XL has a
    CLIPTextModelWithProjection beside it, "clip_g", and Flux.1 a T5EncoderModel, "t5xxl", which
    Chroma has alone; Z-Image and klein have a Qwen3Model, "qwen3_4b" or "qwen3_8b"; Qwen-Image and
    Krea 2 have that half of a Qwen2.5-VL or Qwen3-VL that reads words, "qwen25_7b" or "qwen3vl_4b".
    decoder: a second, smaller VAE over the same latents (TAESD), for losses and previews; see
    `decode_fast`. The parts are used as they are, on their device and in their dtype. Raises
    UnsupportedModelError for other models.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoders: Mapping[str, Any],
        tokenizers: Mapping[str, Any],
        schedule: Schedule,
        decoder: Any = None,
    ) -> None:
        widths = [encoder.config.hidden_size for encoder in text_encoders.values()]
        self.family: FamilyName = family_of(
            {**unet.config, "_class_name": type(unet).__name__}, vae.config, widths
        )
        self.schedule = schedule
        self.latents: LatentMemory | None = None
        self.latent_channels = autoencoders.latent_channels(vae.config)
        self.downscale = autoencoders.downscale(vae)
        if decoder is not None:
            autoencoders.require_same_latents(vae, decoder)
        self.vae = vae
        self.decoder = decoder
        self.tokenizers = tokenizers
        self._unet = unet
        self._text_encoders = text_encoders

    @property
    def unet(self) -> nn.Module:
        return self._unet

    @property
    def _facts(self) -> Family:
        return FAMILIES[self.family]

    @property
    def attention(self) -> TappedUNet:
        """The UNet's attention layers, for taps."""
        return TappedTorch.of(self._unet)

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders by key, "clip_l", "clip_g", "t5xxl", "qwen25_7b" and so on."""
        return self._text_encoders

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every network of the model by name."""
        parts = {"unet": self._unet, "vae": self.vae, **self._text_encoders}
        return parts if self.decoder is None else {**parts, "decoder": self.decoder}

    @property
    def device(self) -> torch.device:
        return next(self._unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the UNet computes."""
        return next(self._unet.parameters()).dtype

    def word_ids(self, encoder: str, text: str) -> list[int]:
        """The ids of `text` in one encoder's vocabulary, without start, end and padding."""
        return list(self.tokenizers[encoder](text, add_special_tokens=False).input_ids)

    def word_vectors(self, encoder: str, text: str) -> Tensor:
        """The input embeddings (n,width) float32 of `text`, to initialise a token from."""
        table = self._text_encoders[encoder].get_input_embeddings().weight
        return table[self.word_ids(encoder, text)].detach().float()

    def encode_prompts(self, prompts: Sequence[Prompt], vectors: TokenVectors) -> Conditioning:
        """Encode prompts with the token vectors spliced in; gradients reach the vectors.

        The context (B,L,D) has the text encoder's dtype. Stable Diffusion XL's is both encoders'
        last layer but one, side by side; "pooled" (B,P) is the second's projected output. Flux.1's
        context is T5's output alone, and "pooled" is CLIP's. Z-Image's is Qwen's last layer but
        one, klein's and Krea 2's several of its layers side by side. Where texts are as long as
        they are (Z-Image, Chroma, Qwen-Image, Krea 2), each row has its own "length"; columns
        behind it mean nothing. Qwen-Image's and Krea 2's begin with the text.
        """
        layouts = {
            key: [self.layout(key, prompt, vectors) for prompt in prompts]
            for key in self._text_encoders
        }
        encoded = {key: self._encoded(key, lines, vectors) for key, lines in layouts.items()}
        outputs = [self._read(key, encoded[key]) for key in self._facts.reads]
        pooled = self._facts.pooled
        extra = {} if pooled is None else {"pooled": _pooled(encoded[pooled])}
        context = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        lines = layouts[self._facts.reads[0]]
        if (first := self._facts.encoder(self._facts.reads[0])).own_length:
            lengths = [len(line.read) + first.fillings for line in lines]
            extra["length"] = torch.tensor(lengths, device=self.device)
        if head := lines[0].head:  # the same in every row
            context = context[:, head:]
        return Conditioning(context, extra, [line.columns for line in lines])

    def _read(self, key: str, encoded: Any) -> Tensor:
        """What the context has of a text encoder's outputs (B,L,D)."""
        if layers := self._facts.encoder(key).layers:
            return torch.cat([encoded.hidden_states[layer] for layer in layers], dim=-1)
        last: Tensor = encoded.last_hidden_state
        return encoded.hidden_states[-2] if self._facts.penultimate else last

    def _encoded(self, key: str, layouts: Sequence[Layout], vectors: TokenVectors) -> Any:
        """What a text encoder of transformers returns."""
        encoder, facts = self._text_encoders[key], self._facts.encoder(key)
        rows: Sequence[Sequence[int]] = [layout_.ids for layout_ in layouts]
        told: dict[str, Any] = {"use_cache": False} if facts.template else {}
        if facts.template or facts.own_length:
            pad = self.tokenizers[key].pad_token_id
            rows, mask = filled_up(rows, pad, facts.fillings)
            own = torch.tensor(mask, device=self.device)
            if not facts.own_length:
                own = (torch.tensor(rows, device=self.device) != pad).to(own)
            told["attention_mask"] = own
        ids = torch.tensor(rows, device=self.device)
        told["output_hidden_states"] = self._facts.penultimate or bool(facts.layers)
        with _spliced(encoder, layouts, vectors, key):
            return encoder(input_ids=ids, **told)

    def layout(self, encoder: str, prompt: Prompt, vectors: TokenVectors) -> Layout:
        """A prompt as one encoder sees it, with the places of the tokens."""
        tokenizer, facts = self.tokenizers[encoder], self._facts.encoder(encoder)

        def word_ids(text: str) -> list[int]:
            return self.word_ids(encoder, text)

        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        before, after = [] if start is None else [start], [end]
        # OpenCLIP, the encoder of SD 2.x and XL's second, was trained with zeros after the end.
        pad = 0 if self.family == "sd2" or encoder == "clip_g" else tokenizer.pad_token_id
        if facts.template:
            before, after = map(word_ids, facts.template.split("{}"))
        if facts.own_length:
            pad = None
        length = facts.length or self._text_encoders[encoder].config.max_position_embeddings
        written = vectors.written(encoder)
        return layout(
            prompt,
            written,
            word_ids,
            before=before,
            after=after,
            pad=pad,
            length=length,
            headless=facts.headless,
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output for latents noised to t (B,), in the dtype of `noisy`."""
        given = self._unet, noisy, timesteps, conditioning, self.dtype
        if (own := PASSES.get(self.family)) is not None:
            return own(*given).to(noisy.dtype)
        if self._facts.network == "transformer":
            told = distilled_guidance(conditioning, self._facts)
            return flux_pass(*given, told).to(noisy.dtype)
        return unet_pass(*given, self.downscale).to(noisy.dtype)

    @property
    def picture_encoder(self) -> nn.Module:
        """The VAE's encoder, for what listens to its layers."""
        encoder: nn.Module = self.vae.encoder
        return encoder

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images to the mode of their latents (float32), without gradient."""
        return autoencoders.encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images by the full VAE, differentiable and not clamped."""
        return autoencoders.decode(self.vae, latents)

    colours = None
    """diffusers does not tell; and the VAE comes with the model."""

    @property
    def has_fast_decoder(self) -> bool:
        """Whether `decode_fast` has a decoder of its own."""
        return self.decoder is not None

    def decode_fast(self, latents: Tensor) -> Tensor:
        """`decode` by the small decoder where there is one; for losses and previews."""
        return autoencoders.decode(self.vae if self.decoder is None else self.decoder, latents)

    def parts_of(self, module: nn.Module) -> Parts:
        """Each submodule as one whole part, by the name that diffusers' LoRA files give it.

        The UNet's are its own. transformers 5 dropped a text encoder's `text_model.`, which files
        keep.
        """
        names = [name for name, _ in module.named_modules() if name]
        flat = hasattr(module, "embeddings") and hasattr(module, "encoder")
        return {name: (Part(f"text_model.{name}" if flat else name),) for name in names}

    def checkpointed_modules(self) -> Iterator[nn.Module]:
        """The network's transformer and residual blocks."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

        kinds = BasicTransformerBlock, ResnetBlock2D, ZImageTransformerBlock
        stacked = {id(block) for name in _STACKS for block in getattr(self._unet, name, ())}
        for module in self._unet.modules():
            if isinstance(module, kinds) or id(module) in stacked:
                yield module

    def fingerprint(self) -> str:
        """A hash of all in the model that can change a training's result, outside of `training`."""
        words = {key: tokenizer_digest(one) for key, one in self.tokenizers.items()}
        return digest("diffusers", self.modules, self.schedule, words)

    @contextmanager
    def training(self, dtype: torch.dtype | None) -> Iterator[None]:
        """A scope in which gradients flow through the frozen models, computing in `dtype`.

        None keeps the model's own; XL's VAE keeps its own as well, since in float16 it overflows,
        and so do buffers: a rotary embedding's frequencies would lose words far apart. Weights,
        training modes and requires_grad flags are afterwards as before, bit by bit. What is
        injected into the models (a LoRA) comes after entering, and a graph built inside is used up
        inside: its backward reads the weights in `dtype`.
        """
        modules = [m for part in self.modules.values() for m in part.modules()]
        tensors = [
            t for part in self.modules.values() for t in (*part.parameters(), *part.buffers())
        ]
        modes = [m.training for m in modules]
        kept = [(t.data, t.requires_grad) for t in tensors]
        try:
            for part in self.modules.values():
                part.eval().requires_grad_(False)
            left = {id(buffer) for part in self.modules.values() for buffer in part.buffers()}
            own = dict(self._unet.named_parameters())
            left |= {id(own[name]) for name in in_float32(self._unet)}
            if not self._facts.half_vae:
                left |= {id(parameter) for parameter in self.vae.parameters()}
            for tensor in tensors:
                if dtype is not None and tensor.is_floating_point() and id(tensor) not in left:
                    tensor.data = tensor.data.to(dtype)
            yield
        finally:
            for tensor, (data, requires_grad) in zip(tensors, kept, strict=True):
                tensor.data = data
                tensor.requires_grad_(requires_grad)
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


def _pooled(encoded: Any) -> Tensor:
    """The state of the text's end (B,P), projected where the encoder has a projection."""
    return encoded.text_embeds if hasattr(encoded, "text_embeds") else encoded.pooler_output


@contextmanager
def _spliced(
    encoder: Any, layouts: Sequence[Layout], vectors: TokenVectors, key: str
) -> Iterator[None]:
    """Put the vectors into what the encoder's token embedding returns."""
    hook = lambda _module, _args, embeddings: splice(embeddings, layouts, vectors, key)  # noqa: E731
    handle = _word_table(encoder).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _word_table(encoder: Any) -> nn.Module:
    """The token embedding that a text encoder calls; a T5 of transformers 5 also has a twin."""
    inner: Any = getattr(encoder, "encoder", None)
    table: nn.Module = getattr(inner, "embed_tokens", None) or encoder.get_input_embeddings()
    return table
