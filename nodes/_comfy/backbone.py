"""ComfyUI's MODEL, CLIP and VAE as the core's backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from comfy.ldm.chroma import layers as chroma
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from comfy.ldm.lumina.model import JointTransformerBlock
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ldm.qwen_image.model import QwenImageTransformerBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...magicapture.backbone import Conditioning, distilled_guidance, each_length
from ...magicapture.digests import digest
from ...magicapture.families import FAMILIES
from ...magicapture.parts import Parts
from ...magicapture.schedule import DiscreteLevels
from ...magicapture.tokens import Layout, Prompt, TokenVectors, filled_up, layout
from .attention import OVERRIDE, ROWS, TappedComfy
from .fingerprint import text_parts, unet_parts, vae_parts
from .models import (
    TextPart,
    autoencoder_of,
    compute_dtype,
    downscale_of,
    family_of,
    latent_channels,
    of_films,
    sampling_patches,
    schedule_of,
    text_parts_of,
)
from .parts import network_parts, own_names
from .scope import Part, gradients

logger = logging.getLogger(__name__)

_OWN = ("DoubleStreamBlock", "SingleStreamBlock")
_BLOCKS: tuple[type, ...] = (
    BasicTransformerBlock,
    ResBlock,
    DoubleStreamBlock,
    SingleStreamBlock,
    JointTransformerBlock,
    QwenImageTransformerBlock,
    # 0.3.64's Chroma has blocks of its own.
    *(kind for name in _OWN if isinstance(kind := getattr(chroma, name, None), type)),
)
if find_spec("comfy.ldm.krea2") is not None:  # of newer ComfyUIs
    _BLOCKS += (import_module("comfy.ldm.krea2.model").SingleStreamBlock,)


class ComfyBackbone:
    """A model of one of the families as ComfyUI's loaders give it; fits `magicapture`'s Backbone.

    model, clip, vae: what the
    sockets MODEL, CLIP and VAE carry. decoder: a second VAE, such as TAESD, for `decode_fast`.
    Raises InputError where a part is missing and UnsupportedModelError where it is of another
    kind.

    Everything that computes belongs inside `training(...)`, where the models are loaded.
    """

    def __init__(self, model: ModelPatcher, clip: Any, vae: Any, decoder: Any = None) -> None:
        self.family = family_of(model)
        self.schedule = schedule_of(model)
        self._text = text_parts_of(clip, model)
        self.latent_channels = latent_channels(model)
        autoencoder_of(vae, model)
        if decoder is not None:
            autoencoder_of(decoder, model, "fast_decoder")
        self.downscale = downscale_of(vae)
        self._model, self._clip, self._vae = model, clip, vae
        self._decoder = vae if decoder is None else decoder
        self._format = _ordinary(model.model.latent_format)
        self._dtype = compute_dtype(model)
        self.latents = None  # each training has a backbone of its own
        if ignored := sampling_patches(model):
            logger.warning("Training leaves out what changes sampling: %s.", ", ".join(ignored))

    @property
    def unet(self) -> nn.Module:
        return self._model.model.diffusion_model

    @property
    def attention(self) -> TappedComfy:
        """The UNet's attention layers, for taps."""
        return TappedComfy.of(self.unet)

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders by key, "t5xxl"; CLIP's is laid out and named as in transformers."""
        return {key: part.encoder.transformer for key, part in self._text.items()}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every network of the model by name."""
        parts = {"unet": self.unet, "text": self._clip.cond_stage_model}
        parts["vae"] = self._vae.first_stage_model
        return {**parts, "decoder": self._decoder.first_stage_model}

    @property
    def device(self) -> torch.device:
        return self._model.load_device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the UNet computes."""
        return self._dtype

    def word_ids(self, encoder: str, text: str) -> list[int]:
        """The ids of `text` in the encoder's vocabulary, without start, end and padding."""
        tokenizer = self._text[encoder].tokenizer
        end = -1 if tokenizer.tokenizer_adds_end_token else None
        return list(tokenizer.tokenizer(text)["input_ids"][tokenizer.tokens_start : end])

    def word_vectors(self, encoder: str, text: str) -> Tensor:
        """The input embeddings (n,width) float32 of `text`, to initialise a token from."""
        with torch.inference_mode(False), torch.no_grad():
            table = self.text_encoders[encoder].get_input_embeddings().weight
            ids = torch.tensor(self.word_ids(encoder, text), dtype=torch.long, device=table.device)
            return table.index_select(0, ids).float()

    def encode_prompts(self, prompts: Sequence[Prompt], vectors: TokenVectors) -> Conditioning:
        """Encode prompts with the token vectors spliced in; gradients reach the vectors.

        The context (B,L,D) is float32 and equals what CLIPTextEncode makes of the same text with
        `embedding:<name>`, clip skip included, and without the template's words before the text
        where it leaves them out.
        """
        layouts = {
            key: [self.layout(key, prompt, vectors) for prompt in prompts] for key in self._text
        }
        family, encoded = FAMILIES[self.family], {}
        for key, part in self._text.items():
            with self._clip_skip(part.encoder):
                rows = [_spliced(line, vectors, key) for line in layouts[key]]
                encoded[key] = _encoded(part, rows)
        context = torch.cat([encoded[key][0] for key in family.reads], dim=-1).to(self.device)
        pooled = family.pooled
        extra = {} if pooled is None else {"pooled": encoded[pooled][1].to(self.device)}
        lines = layouts[family.reads[0]]
        if family.encoder(family.reads[0]).own_length:
            extra["length"] = torch.tensor([len(line.read) for line in lines], device=self.device)
        context = context[:, max(line.head for line in lines) :]  # the same in every row
        return Conditioning(context, extra, [line.columns for line in lines])

    def layout(self, encoder: str, prompt: Prompt, vectors: TokenVectors) -> Layout:
        """A prompt as one encoder sees it, with the places of the tokens."""
        tokenizer, facts = self._text[encoder].tokenizer, FAMILIES[self.family].encoder(encoder)

        def word_ids(text: str) -> list[int]:
            return self.word_ids(encoder, text)

        start, pad = tokenizer.start_token, tokenizer.pad_token
        before, after = [] if start is None else [start], [tokenizer.end_token]
        if facts.template:
            before, after = map(word_ids, facts.template.split("{}"))
        length, written = facts.length or tokenizer.max_length, vectors.written(encoder)
        line = layout(
            prompt,
            written,
            word_ids,
            before=before,
            after=after,
            pad=None if facts.own_length else pad,
            length=length,
            headless=facts.headless,
        )
        return self._with_fillings(line, tokenizer) if facts.own_length else line

    def _with_fillings(self, line: Layout, tokenizer: Any) -> Layout:
        """A text of its own length with what CLIP puts behind it where T5TokenizerOptions says."""
        least = {}
        for name in ("min_padding", "min_length"):
            told = f"{tokenizer.embedding_key}_{name}"
            least[name] = self._clip.tokenizer_options.get(told, getattr(tokenizer, name)) or 0
        longer = max(least["min_padding"], least["min_length"] - len(line.ids))
        return replace(line, ids=(*line.ids, *[tokenizer.pad_token] * longer))

    @contextmanager
    def _clip_skip(self, encoder: Any) -> Iterator[None]:
        """The options that CLIP sets before it encodes: clip skip, and the device."""
        options: dict[str, Any] = {"execution_device": self._clip.patcher.load_device}
        if self._clip.layer_idx is not None:
            options["layer"] = self._clip.layer_idx
        own = vars(encoder)
        before = dict(own)
        encoder.reset_clip_options()
        try:
            encoder.set_clip_options(options)
            yield
        finally:
            own.update(before)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output for latents noised to t (B,), in the dtype of `noisy`.

        ComfyUI's transformers have no mask for words that they all keep to, so that rows of other
        lengths run apart.
        """
        if "length" not in conditioning.extra:
            return self._pass(noisy, timesteps, conditioning)
        return each_length(self._pass, noisy, timesteps, conditioning)

    def _pass(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        rows: tuple[int, ...] | None = None,
    ) -> Tensor:
        """One pass of the network; rows: of the batch, where these are some of it."""
        guidance = distilled_guidance(conditioning, FAMILIES[self.family])
        told = {} if guidance is None else {"guidance": guidance.to(self.device, self.dtype)}
        if rows is not None:
            told["num_tokens"] = conditioning.context.shape[1]
        output = self.unet(
            self._framed(noisy.to(self.device, self.dtype)),
            self._told(timesteps.to(self.device)).float(),
            context=conditioning.context.to(self.device, self.dtype),
            y=self._pooled(noisy, conditioning),
            transformer_options={OVERRIDE: _differentiable, ROWS: rows},
            **told,
        )
        return self._unframed(output).to(noisy.dtype)

    def _pooled(self, noisy: Tensor, conditioning: Conditioning) -> Tensor | None:
        """What the network is told beside the context, as ComfyUI makes it of the pooled text.

        XL is told as well that it sees a whole picture of this size.
        """
        if FAMILIES[self.family].pooled is None:
            return None
        height, width = (self.downscale * cells for cells in noisy.shape[-2:])
        told: Tensor = self._model.model.encode_adm(
            pooled_output=conditioning.extra["pooled"],
            width=width,
            height=height,
            device=self.device,
        )
        return told.to(self.device, self.dtype)

    def _told(self, timesteps: Tensor) -> Tensor:
        """What the network is told of levels: the timesteps themselves, or a multiple of sigma."""
        if isinstance(self.schedule.levels, DiscreteLevels):
            return timesteps
        told: Tensor = self._model.get_model_object("model_sampling").timestep(timesteps)
        return told

    @property
    def picture_encoder(self) -> nn.Module:
        """The VAE, whose encoder has another name in each of ComfyUI's classes."""
        network: nn.Module = self._vae.first_stage_model
        return network

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images to the mode of their latents (float32), one at a time, without gradient."""
        pictures = self._framed(self._for_vae(self._vae, images * 2 - 1))
        latents = [self._vae.first_stage_model.encode(one).float() for one in pictures.split(1)]
        found = self._format.process_in(torch.cat(latents)).to(images.device)
        return self._unframed(found)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images by the VAE, differentiable and not clamped."""
        return self._decode(self._vae, latents)

    @property
    def colours(self) -> Tensor | None:
        """How much red, green and blue a unit of each latent channel is (C,3), as previews have it.

        None where ComfyUI does not know, or only of latents in another shape.
        """
        factors = self._format.latent_rgb_factors
        if factors is None or getattr(self._format, "latent_rgb_factors_reshape", None):
            return None
        return torch.tensor(factors) if len(factors) == self.latent_channels else None

    @property
    def has_fast_decoder(self) -> bool:
        """Whether `decode_fast` has a decoder of its own."""
        return self._decoder is not self._vae

    def decode_fast(self, latents: Tensor) -> Tensor:
        """`decode` by the small decoder where there is one; for losses and previews."""
        return self._decode(self._decoder, latents)

    def _decode(self, vae: Any, latents: Tensor) -> Tensor:
        raw = self._for_vae(vae, self._format.process_out(self._framed(latents.float())))
        images = self._unframed(vae.first_stage_model.decode(raw)).float()
        return (images.to(latents.device) + 1) / 2

    def _framed(self, pictures: Tensor) -> Tensor:
        """Pictures or latents (B,C,h,w) as the model has them: a film (B,C,1,h,w) where it can."""
        return pictures[:, :, None] if of_films(self._model) else pictures

    def _unframed(self, pictures: Tensor) -> Tensor:
        return pictures[:, :, 0] if of_films(self._model) else pictures

    @staticmethod
    def _for_vae(vae: Any, tensor: Tensor) -> Tensor:
        return tensor.to(vae.patcher.load_device, vae.vae_dtype)

    def parts_of(self, module: nn.Module) -> Parts:
        """What diffusers and transformers call each submodule: a Part or, fused, some."""
        return network_parts(self._model) if module is self.unet else own_names(module)

    def checkpointed_modules(self) -> Iterator[nn.Module]:
        """The network's transformer and residual blocks."""
        return unet_blocks(self.unet)

    def fingerprint(self) -> str:
        """A hash of all in the models that can change a training's result, outside of `training`.

        It is another than that of the same checkpoint in diffusers, whose numbers differ as well.
        """
        return digest(
            "ComfyUI",
            unet_parts(self._model),
            self.schedule,
            self._told(torch.ones(1)),
            self._dtype,
            text_parts(self._clip, list(self._text.values())),
            vae_parts(self._vae),
            None if self._decoder is self._vae else vae_parts(self._decoder),
        )

    @contextmanager
    def training(self, dtype: torch.dtype | None) -> Iterator[None]:
        """A scope in which gradients flow through the frozen models; see `scope.gradients`.

        dtype: the UNet's; None keeps what ComfyUI computes in. The text encoder runs in float32
        and the VAEs in their own dtype, as in ComfyUI.
        """
        before = self._dtype
        self._dtype = before if dtype is None else dtype
        parts = [
            Part(self._model, self.unet, self._dtype),
            Part(self._clip.patcher, self._clip.cond_stage_model, torch.float32),
            *(
                Part(vae.patcher, vae.first_stage_model, vae.vae_dtype)
                for vae in (self._vae, self._decoder)
            ),
        ]
        try:
            with gradients(parts):
                yield
        finally:
            self._dtype = before


def unet_blocks(unet: nn.Module) -> Iterator[nn.Module]:
    """The transformer and residual blocks, whose activations checkpointing recomputes."""
    for module in unet.modules():
        if isinstance(module, _BLOCKS):
            yield module


def _ordinary(latent_format: Any) -> Any:
    """A latent format whose tensors autograd can keep, also where a workflow has loaded it."""
    own = copy(latent_format)
    with torch.inference_mode(False):
        tensors = {n: v.clone() for n, v in vars(own).items() if isinstance(v, Tensor)}
    vars(own).update(tensors)
    return own


def _encoded(part: TextPart, rows: Sequence[list[int | Tensor]]) -> tuple[Tensor, Any]:
    """Context (B,L,D) and pooled output of rows of any lengths; several layers side by side.

    An encoder that masks fillings gets all rows at once, another each row alone.
    """
    if part.encoder.enable_attention_masks or len({len(row) for row in rows}) == 1:
        rows, _ = filled_up(rows, part.tokenizer.pad_token)
        context, pooled, *_ = part.encoder.encode(rows)
    else:
        alone = [part.encoder.encode([row]) for row in rows]
        context = pad_sequence([one[0][0] for one in alone], batch_first=True)
        pooled = None
    if context.ndim == 4:  # of several layers, which ComfyUI stacks
        context = context.movedim(1, 2).flatten(2)
    return context, pooled


def _spliced(line: Layout, vectors: TokenVectors, key: str) -> list[int | Tensor]:
    """A layout as ComfyUI encodes it: ids, and vectors where a token stands."""
    row: list[int | Tensor] = list(line.ids)
    for position, (name, index) in line.slots.items():
        row[position] = vectors.get(name, key)[index]
    return row


def _differentiable(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's fused attention, whichever kernel ComfyUI was started with."""
    return attention_pytorch(*args, **kwargs)
