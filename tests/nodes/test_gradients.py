"""Gradients through ComfyUI's own networks equal central differences, in every kind it has.

Weights are float32 and made in inference mode, as a loader leaves them; the networks compute in
float64, by the casts that stand for all others (fp8 to bf16, fp16 to float32).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nodes._families import CHROMA, KLEIN

pytestmark = pytest.mark.usefixtures("executor")

WORDS = 5
CONTEXT = 12  # the width of what the joint-attention networks read
D = torch.float64


@dataclass
class Network:
    """A network, its blocks, and how to compute it from the tensor that is to have a gradient."""

    module: nn.Module
    blocks: list[nn.Module]
    call: Callable[[Tensor], Tensor]
    leaf: tuple[int, ...]
    lora: list[str] = field(default_factory=list)
    """Beginnings or ends of the names of the layers that get a LoRA."""


def noisy(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1), dtype=D)


def unet(tiny: Any, pooled: bool = False) -> Network:
    import comfy.ldm.modules.diffusionmodules.openaimodel as openai
    from comfy.ldm.modules.attention import BasicTransformerBlock

    module = tiny.model.model.diffusion_model
    blocks = [
        m for m in module.modules() if isinstance(m, (BasicTransformerBlock, openai.ResBlock))
    ]
    told = None
    if pooled:
        told = torch.linspace(-1, 1, module.label_emb[0][0].in_features, dtype=D).expand(2, -1)
    width = module.input_blocks[-1][1].transformer_blocks[0].attn2.to_k.in_features
    steps = torch.tensor([10.0, 700.0], dtype=D)
    return Network(
        module,
        blocks,
        lambda context: module(noisy(), steps, context=context, y=told),
        (2, WORDS, width),
        ["attn1.to_q", "attn2.to_k", "ff.net.2"],
    )


def joint(module: nn.Module, blocks: list[nn.Module], lora: list[str], **given: Any) -> Network:
    """A transformer in which words and latents attend to each other."""
    sigmas = torch.tensor([0.5, 0.3], dtype=D)
    return Network(
        module,
        blocks,
        lambda context: module(noisy(), sigmas, context, **given),
        (2, WORDS, CONTEXT),
        lora,
    )


def pooled() -> Tensor:
    return torch.linspace(-1, 1, 16, dtype=D).view(2, 8)


def flux(ops: Any, new: bool) -> Network:
    from comfy.ldm.flux.model import Flux

    layout: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "vec_in_dim": 8,
        "context_in_dim": CONTEXT,
        "hidden_size": 48,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [8, 8, 8],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
    if new:
        layout["txt_ids_dims"] = []
    module = Flux(**layout, dtype=torch.float32, operations=ops)
    blocks = [*module.double_blocks, *module.single_blocks]
    guidance = torch.full((2,), 3.5, dtype=D)
    return joint(module, blocks, ["img_attn.qkv", "linear1"], y=pooled(), guidance=guidance)


def chroma(ops: Any, new: bool) -> Network:
    """In 0.3.64 with blocks of its own."""
    from comfy.ldm.chroma.model import Chroma, ChromaParams

    layout = {
        **CHROMA,
        "context_in_dim": CONTEXT,
        "hidden_size": 48,
        "axes_dim": [8, 8, 8],
        "out_dim": 48,
    }
    layout = {n: v for n, v in layout.items() if n in ChromaParams.__dataclass_fields__}
    module = Chroma(**layout, dtype=torch.float32, operations=ops)
    blocks = [*module.double_blocks, *module.single_blocks]
    guidance = torch.zeros(2, dtype=D)
    return joint(module, blocks, ["img_attn.qkv", "linear1"], guidance=guidance)


def klein(ops: Any, new: bool) -> Network:
    from comfy.ldm.flux.model import Flux

    if not new:
        pytest.skip("this ComfyUI has no Flux.2")
    layout = {**KLEIN, "context_in_dim": CONTEXT, "in_channels": 4, "out_channels": 4}
    layout = {n: v for n, v in layout.items() if n != "image_model"}
    module = Flux(**layout, dtype=torch.float32, operations=ops)
    blocks = [*module.double_blocks, *module.single_blocks]
    return joint(module, blocks, ["img_attn.qkv", "linear1"])


def sd3(ops: Any, new: bool) -> Network:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    reading = {"in_features": CONTEXT, "out_features": 128}
    module = OpenAISignatureMMDITWrapper(
        input_size=None,
        pos_embed_scaling_factor=None,
        pos_embed_offset=None,
        pos_embed_max_size=16,
        patch_size=2,
        in_channels=4,
        depth=2,
        adm_in_channels=8,
        context_embedder_config={"target": "torch.nn.Linear", "params": reading},
        num_patches=256,
        qk_norm="rms",
        x_block_self_attn_layers=[0],
        dtype=torch.float32,
        operations=ops,
    )
    return joint(module, list(module.joint_blocks), ["x_block.attn.qkv"], y=pooled())


def lumina(ops: Any, new: bool) -> Network:
    """Z-Image's class."""
    from comfy.ldm.lumina.model import NextDiT

    layout: dict[str, Any] = {"dim": 48, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 8, 8]}
    if new:
        layout = {
            "dim": 256,
            "n_heads": 8,
            "n_kv_heads": 8,
            "axes_dims": [8, 12, 12],
            "z_image_modulation": True,
            "pad_tokens_multiple": 4,
            "time_scale": 1000.0,
        }
    module = NextDiT(
        patch_size=2,
        in_channels=4,
        n_layers=2,
        n_refiner_layers=1,
        qk_norm=True,
        cap_feat_dim=CONTEXT,
        axes_lens=[32, 32, 32],
        dtype=torch.float32,
        operations=ops,
        **layout,
    )
    blocks = [*module.noise_refiner, *module.context_refiner, *module.layers]
    return joint(module, blocks, ["attention.qkv"], num_tokens=WORDS)


def film(module: nn.Module, blocks: Any, lora: list[str], width: int = CONTEXT) -> Network:
    """A transformer whose latents are a film of one frame."""
    sigmas = torch.tensor([0.5, 0.3], dtype=D)
    return Network(
        module,
        list(blocks),
        lambda context: module(noisy()[:, :, None], sigmas, context),
        (2, WORDS, width),
        lora,
    )


def qwen_image(ops: Any, new: bool) -> Network:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    module = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=24,
        num_attention_heads=2,
        joint_attention_dim=CONTEXT,
        axes_dims_rope=(8, 8, 8),
        dtype=torch.float32,
        operations=ops,
    )
    return film(module, module.transformer_blocks, ["attn.to_q", "attn.add_k_proj"])


def krea2(ops: Any, new: bool) -> Network:
    """Which reads several layers' words, three here."""
    found = pytest.importorskip("comfy.ldm.krea2.model", reason="this ComfyUI has no Krea 2")
    module = found.SingleStreamDiT(
        features=64,
        tdim=32,
        txtdim=CONTEXT,
        heads=4,
        kvheads=2,
        multiplier=1,
        layers=2,
        channels=4,
        txtlayers=3,
        txtheads=2,
        txtkvheads=2,
        dtype=torch.float32,
        operations=ops,
    )
    return film(module, module.blocks, ["attn.wq", "attn.wk", "mlp.up"], 3 * CONTEXT)


def encoder(module: nn.Module, blocks: Any, lora: list[str], **given: Any) -> Network:
    return Network(
        module,
        list(blocks),
        lambda embeds: module(None, None, embeds=embeds, **given)[0],
        (1, 6, 16),
        lora,
    )


def clip(ops: Any, new: bool) -> Network:
    from comfy.clip_model import CLIPTextModel

    layout = {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        "max_position_embeddings": 6,
        "eos_token_id": 3,
    }
    module = CLIPTextModel(layout, torch.float32, "cpu", ops)
    layers = module.text_model.encoder.layers
    return encoder(module, layers, ["q_proj", "fc1"], num_tokens=[6], dtype=D)


def t5(ops: Any, new: bool) -> Network:
    from comfy.text_encoders.t5 import T5

    layout = {
        "num_layers": 2,
        "d_model": 16,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 24,
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        "model_type": "t5",
        "vocab_size": 20,
    }
    module = T5(layout, torch.float32, "cpu", ops)
    return encoder(module, module.encoder.block, ["SelfAttention.q", "wi_0"])


def llama(ops: Any, new: bool) -> Network:
    """The class of Qwen's and Mistral's encoders."""
    from comfy.text_encoders.llama import Llama2_, Qwen25_3BConfig

    return _llama(Llama2_, Qwen25_3BConfig, ops)


def gemma(ops: Any, new: bool) -> Network:
    from comfy.text_encoders.llama import Gemma2_2B_Config, Llama2_

    return _llama(Llama2_, Gemma2_2B_Config, ops)


def _llama(kind: Any, config: Any, ops: Any) -> Network:
    layout = config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    layout.head_dim = 8
    module = kind(layout, device="cpu", dtype=torch.float32, ops=ops)
    return encoder(module, module.layers, ["q_proj", "up_proj"])


KINDS = (flux, chroma, klein, sd3, lumina, qwen_image, krea2, clip, t5, llama, gemma)
BARE = {kind.__name__: kind for kind in KINDS}
UNETS = ("tiny", "tiny_sd2", "tiny_xl")


@pytest.fixture(params=[*UNETS, *BARE])
def opened(request: pytest.FixtureRequest, pack: Any) -> tuple[Network, Any]:
    """A network and the Part of the scope that opens it."""
    import comfy.model_management
    import comfy.ops
    from comfy.model_patcher import ModelPatcher

    name = request.param
    if name in UNETS:
        tiny = request.getfixturevalue(name)
        return (
            unet(tiny, pooled=name == "tiny_xl"),
            pack.comfy.Part(tiny.model, tiny.model.model.diffusion_model, D),
        )
    new = hasattr(comfy.model_management, "in_training")
    network = BARE[name](comfy.ops.manual_cast, new)
    random = torch.Generator().manual_seed(4)
    tables = [b for n, b in network.module.named_buffers() if n.endswith("pos_embed")]
    for tensor in [*network.module.parameters(), *tables]:  # which ComfyUI leaves uninitialised
        tensor.requires_grad_(False)
        tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.2)
    cpu = torch.device("cpu")
    patcher = ModelPatcher(network.module, load_device=cpu, offload_device=cpu)
    return network, pack.comfy.Part(patcher, network.module, D)


def slope(loss: Callable[[], Tensor], tensor: Tensor, direction: Tensor, step: float) -> float:
    """The derivative along a direction by central differences of the fourth order."""
    values = {}
    with torch.no_grad():
        for i in (-2, -1, 1, 2):
            tensor += i * step * direction
            values[i] = float(loss())
            tensor -= i * step * direction
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_is_that_of_central_differences(pack, opened, checkpointing):
    """At the words and at a LoRA. Parts that ComfyUI computes in float32 set the tolerance."""
    network, part = opened
    names = [
        name for name, _ in network.module.named_modules() if name.endswith(tuple(network.lora))
    ]
    weights = {name: value.clone() for name, value in network.module.named_parameters()}
    with ExitStack() as scope:
        scope.enter_context(pack.comfy.gradients([part]))
        injected = pack("magicapture.lora").injected(network.module, names, rank=2)
        lora = scope.enter_context(injected).parameters()
        blocks = network.blocks if checkpointing else []
        scope.enter_context(pack("magicapture.checkpointing").checkpointed(blocks))
        random = torch.Generator().manual_seed(5)
        draw = lambda shape: torch.randn(shape, generator=random, dtype=D)  # noqa: E731
        for parameter in lora:
            parameter.data = 0.3 * draw(parameter.shape)
        leaf = draw(network.leaf).requires_grad_()
        with torch.no_grad():
            share = draw(network.call(leaf.detach().clone()).shape)
        loss = lambda: (network.call(leaf) * share).sum()  # noqa: E731
        grads = torch.autograd.grad(loss(), [leaf, *lora])
        for tensor, grad in zip(
            [leaf, *lora[:2], *lora[-2:]], [*grads[:3], *grads[-2:]], strict=True
        ):
            direction = grad / grad.norm() + draw(grad.shape) / grad.numel() ** 0.5
            expected = slope(loss, tensor, direction, step=0.01 / float(direction.norm()))
            assert float((grad * direction).sum()) == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(weights[n], p) for n, p in network.module.named_parameters())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_of_maps_in_joint_attention_is_that_of_central_differences(
    pack, tiny_flux, checkpointing
):
    """Recorded in blocks that are themselves checkpointed; the maps are float32."""
    attention, lora = pack("magicapture.attention"), pack("magicapture.lora")
    network = tiny_flux.model.model.diffusion_model
    blocks = list(attention.cross_attentions(network))
    names = [f"{block}.{own}" for block in blocks for own in ("txt_attn.qkv", "linear1")]
    names = [name for name, _ in network.named_modules() if name in names]
    weights = {name: value.clone() for name, value in network.named_parameters()}
    random = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=D)  # noqa: E731
    latents, levels, positions = noisy(), torch.tensor([0.5, 0.3], dtype=D), [{"ada": [1, 3]}] * 2
    with ExitStack() as scope:
        scope.enter_context(pack.comfy.gradients([pack.comfy.Part(tiny_flux.model, network, D)]))
        parameters = scope.enter_context(lora.injected(network, names, rank=2)).parameters()
        kept = [network.get_submodule(block) for block in blocks] if checkpointing else []
        scope.enter_context(pack("magicapture.checkpointing").checkpointed(kept))
        for parameter in parameters:
            parameter.data = 0.3 * draw(*parameter.shape)
        context, pooled = draw(2, WORDS, 32).requires_grad_(), draw(2, 32).requires_grad_()
        share = draw(2, 4, 4)
        network_of = pack("nodes._comfy.attention").TappedComfy.of(network)
        capture = scope.enter_context(attention.captured(network_of, sites=blocks))

        def loss() -> Tensor:
            with capture.recording():
                network(latents, levels, context, y=pooled)
            maps = capture.maps(positions, (8, 8))
            assert len(maps) == len(blocks)
            return 100 * torch.stack([(one.values * share).square().sum() for one in maps]).sum()

        learned = [context, pooled, *parameters]
        grads = torch.autograd.grad(loss(), learned)
        assert not capture.recorded()
        for tensor, grad in zip(learned, grads, strict=True):
            direction = grad / grad.norm()
            expected = slope(loss, tensor, direction, step=0.02)
            assert float((grad * direction).sum()) == pytest.approx(expected, rel=2e-3)
    assert all(torch.equal(weights[n], p) for n, p in network.named_parameters())
