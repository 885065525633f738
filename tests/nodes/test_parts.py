"""Layers of ComfyUI's networks and the layers that files have for them."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("executor")


def numbers(*shape, start):
    """Numbers that every machine makes alike."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + start) % 64 - 32).float().reshape(shape) / 256


@pytest.mark.parametrize(
    ("family", "golden"),
    [
        ("sd1", "b1359ba458110146a40674cee6bdc850eec8105aa9d37a9e80eb015513b410be"),
        ("sd2", "115dee189e6433e5e16629014ac1bed74bf5fa3fcc5868758207f53fe0d2f8cc"),
    ],
)
def test_a_runs_file_is_that_of_old(pack, tiny, tiny_sd2, tmp_path, monkeypatch, family, golden):
    """Byte for byte as it was before layers had parts."""
    monkeypatch.setattr(pack("magicapture.adapters.metadata"), "__version__", "golden")
    models = tiny if family == "sd1" else tiny_sd2
    backbone = pack.comfy.ComfyBackbone(models.model, models.clip, models.vae)
    lora, adapters = pack("magicapture.lora"), pack("magicapture.adapters")
    encoder = backbone.text_encoders["clip_l"]
    parts = {
        "unet": (backbone.unet, lora.target_names(backbone.unet, "all_linear")),
        "clip_l": (encoder, lora.text_target_names(encoder)),
    }
    state = {}
    for part, (module, names) in parts.items():
        state[part] = {}
        for index, name in enumerate(names):
            rows, columns = module.get_submodule(name).weight.shape
            down, up = numbers(2, columns, start=index), numbers(rows, 2, start=index + 1)
            state[part][name] = down, up, 3.0
    settings = pack("magicapture.config").LoraSettings()
    loras = pack("magicapture.training.loras").Loras(backbone, settings, seed=0)
    loras.load_state_dict(state)
    adapter = adapters.Adapter(loras.weights(), {}, family)
    path = adapters.save_adapter(adapter, tmp_path, tmp_path, "golden").lora
    assert hashlib.sha256(path.read_bytes()).hexdigest() == golden


# -- fused layers -------------------------------------------------------------------------------

HIDDEN = 64
FLUX = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 8,
    "context_in_dim": 12,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 4, 8],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
FLUX2 = {
    **FLUX,
    "image_model": "flux2",
    "mlp_ratio": 3.0,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "qkv_bias": False,
}
SD3 = {
    "in_channels": 4,
    "patch_size": 2,
    "depth": 1,
    "num_blocks": 2,
    "input_size": 8,
    "adm_in_channels": 8,
    "pos_embed_max_size": 8,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 12, "out_features": HIDDEN},
    },
    "x_block_self_attn_layers": [0],
    "qk_norm": "rms",
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 4,
    "dim": HIDDEN,
    "cap_feat_dim": 12,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_refiner_layers": 2,
    "qk_norm": True,
    "axes_dims": [4, 4, 8],
    "axes_lens": [16, 16, 16],
    "rope_theta": 256.0,
    "multiple_of": 1,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}


def joint(kind, config):
    """A MODEL with one of ComfyUI's own joint-attention networks; skips where it has none."""
    import comfy.model_base
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    names = {"ZImage": "Lumina2", "Flux2": "Flux2"}
    if not hasattr(comfy.supported_models, kind):
        pytest.skip(f"this ComfyUI has no {kind}")
    config = dict(config)
    if kind.startswith("Flux") and hasattr(comfy.model_base, "Flux2"):
        config["txt_ids_dims"] = [3] if kind == "Flux2" else []
    config = getattr(comfy.supported_models, kind)({**config, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = getattr(comfy.model_base, names.get(kind, kind))(config)
        random = torch.Generator().manual_seed(3)
        for parameter in model.diffusion_model.parameters():
            parameter.data.normal_(0, 0.15, generator=random)
    cpu = torch.device("cpu")
    return ModelPatcher(model, cpu, cpu)


def trained(pack, network, parts):
    """A LoRA of rank 4 and alpha 2 in every linear layer of the blocks, modulation aside."""
    random = torch.Generator().manual_seed(4)
    weights = pack("magicapture.lora").LoraWeights
    lora = {}
    for name in parts:
        module = network.get_submodule(name)
        if isinstance(module, torch.nn.Linear) and re.match(r"(?!.*mod)\w+\.\d+\.", name.lower()):
            rows, columns = module.weight.shape
            down, up = (torch.randn(s, generator=random) / 4 for s in ((4, columns), (rows, 4)))
            lora[name] = weights(down, up, 2.0)
    return lora


def written(pack, lora, parts):
    """The file's tensors."""
    split = pack("magicapture.parts").split
    layers = {}
    for name, weights in lora.items():
        layers |= {f"transformer.{n}": of for n, of in split(weights, parts[name]).items()}
    return pack("magicapture.adapters.diffusers").to_diffusers(layers)


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (
            "Flux",
            FLUX,
            {
                "double_blocks.1.txt_attn.qkv": {
                    "transformer_blocks.1.attn.add_q_proj": (0, 64),
                    "transformer_blocks.1.attn.add_k_proj": (64, 128),
                    "transformer_blocks.1.attn.add_v_proj": (128, 192),
                },
                "double_blocks.0.img_mlp.0": {"transformer_blocks.0.ff.net.0.proj": None},
                "single_blocks.1.linear1": {
                    "single_transformer_blocks.1.attn.to_q": (0, 64),
                    "single_transformer_blocks.1.attn.to_k": (64, 128),
                    "single_transformer_blocks.1.attn.to_v": (128, 192),
                    "single_transformer_blocks.1.proj_mlp": (192, 448),
                },
                "single_blocks.1.linear2": {"single_transformer_blocks.1.proj_out": None},
            },
        ),
        (
            "Flux2",
            FLUX2,
            {
                "double_blocks.0.img_attn.qkv": {
                    "transformer_blocks.0.attn.to_q": (0, 64),
                    "transformer_blocks.0.attn.to_k": (64, 128),
                    "transformer_blocks.0.attn.to_v": (128, 192),
                },
                "double_blocks.0.txt_mlp.0": {"transformer_blocks.0.ff_context.linear_in": None},
                "single_blocks.0.linear1": {
                    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": None
                },
                "single_blocks.0.linear2": {"single_transformer_blocks.0.attn.to_out": None},
            },
        ),
        (
            "SD3",
            SD3,
            {
                "joint_blocks.0.x_block.attn2.qkv": {
                    "transformer_blocks.0.attn2.to_q": (0, 64),
                    "transformer_blocks.0.attn2.to_k": (64, 128),
                    "transformer_blocks.0.attn2.to_v": (128, 192),
                },
                "joint_blocks.1.x_block.attn.proj": {"transformer_blocks.1.attn.to_out.0": None},
            },
        ),
        (
            "ZImage",
            Z_IMAGE,
            {
                "layers.1.attention.qkv": {
                    "layers.1.attention.to_q": (0, 64),
                    "layers.1.attention.to_k": (64, 128),
                    "layers.1.attention.to_v": (128, 192),
                },
                "layers.1.feed_forward.w2": {"layers.1.feed_forward.w2": None},
            },
        ),
    ],
    ids=["flux", "flux2", "sd3", "zimage"],
)
def test_stock_nodes_load_the_split_file_into_the_fused_layers(
    pack, caplog, kind, config, expected
):
    import comfy.sd

    model = joint(kind, config)
    network = model.model.diffusion_model
    parts = pack("nodes._comfy.parts").network_parts(model)
    for name, layer in expected.items():
        found = {p.name: p.rows and (p.rows.start, p.rows.stop) for p in parts[name]}
        assert list(found.items()) == list(layer.items())
    lora = trained(pack, network, parts)
    assert expected.keys() <= lora.keys()
    for name in lora:  # every row has a name
        sizes = [p.rows and p.rows.stop - p.rows.start for p in parts[name]]
        assert sizes == [None] or sum(sizes) == len(network.get_submodule(name).weight)
    before = {name: network.get_submodule(name).weight.clone() for name in lora}

    file = written(pack, lora, parts)
    patched, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()
    patched.patch_model()
    try:
        for name, of in lora.items():
            change = network.get_submodule(name).weight - before[name]
            assert (change - of.alpha / of.rank * of.up @ of.down).abs().max() < 1e-6, name
    finally:
        patched.unpatch_model()

    if kind in ("Flux", "SD3"):
        read = pack("magicapture.adapters.layers").gather(file, "a file")
        read = {name.removeprefix("transformer."): of for name, of in read.items()}
        for name, of in lora.items():
            rows = len(network.get_submodule(name).weight)
            again = pack("magicapture.parts").merge(read, parts[name], rows)
            assert torch.equal(again.down, of.down) and torch.equal(again.up, of.up / 2)


def test_diffusers_draws_the_same_with_the_file(pack, make):
    """One set of weights in both networks, and the file by each one's own loader."""
    import comfy.sd

    model = joint("Flux", FLUX)
    network = model.model.diffusion_model
    parts = pack("nodes._comfy.parts").network_parts(model)
    random = torch.Generator().manual_seed(5)
    x, context = (torch.randn(s, generator=random) for s in ((1, 4, 8, 8), (1, 5, 12)))
    told = {"y": torch.randn(1, 8, generator=random), "guidance": torch.tensor([3.5])}
    file = written(pack, trained(pack, network, parts), parts)
    with torch.inference_mode(False), torch.no_grad():
        theirs = make.flux_twin(model)
        ids = torch.zeros(16, 3)
        ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
        packed = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(1, 16, 16)

        def drawn():
            output = theirs(
                packed.clone(),
                encoder_hidden_states=context,
                pooled_projections=told["y"],
                timestep=torch.tensor([0.5]),
                guidance=told["guidance"],
                img_ids=ids,
                txt_ids=torch.zeros(5, 3),
            ).sample.reshape(1, 4, 4, 4, 2, 2)
            return output.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

        plain = drawn()
        theirs.load_lora_adapter({k: v.clone() for k, v in file.items()}, prefix="transformer")
        other = drawn()
    patched, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 1.0)
    patched.patch_model()
    try:
        own = network(x, torch.tensor([0.5]), context, **told)
    finally:
        patched.unpatch_model()
    assert (own - other).abs().max() < 1e-4 * other.abs().max()
    assert (plain - other).abs().max() > 0.1 * other.abs().max()


HEADS = {"attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 12}
TWINS = {
    "SD3": (
        SD3,
        "SD3Transformer2DModel",
        {**HEADS, "num_layers": 2, "dual_attention_layers": (0,), "caption_projection_dim": 64},
    ),
    "Flux2": (
        FLUX2,
        "Flux2Transformer2DModel",
        {**HEADS, "num_layers": 2, "num_single_layers": 2, "axes_dims_rope": (4, 4, 4, 4)},
    ),
    "ZImage": (
        Z_IMAGE,
        "ZImageTransformer2DModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [4, 4, 8]},
    ),
}


@pytest.mark.parametrize("kind", TWINS)
def test_the_files_layers_are_those_of_diffusers_networks(pack, kind):
    """Every name and size; its own loader then puts a LoRA into each."""
    import diffusers

    config, twin, own = TWINS[kind]
    model = joint(kind, config)
    if not hasattr(diffusers, twin):
        pytest.skip(f"this diffusers has no {twin}")
    parts = pack("nodes._comfy.parts").network_parts(model)
    file = written(pack, trained(pack, model.model.diffusion_model, parts), parts)
    with torch.inference_mode(False):
        theirs = getattr(diffusers, twin)(**own)
        for key, b in file.items():
            name = key.removeprefix("transformer.").removesuffix(".lora_B.weight")
            if key.endswith("lora_B.weight"):
                assert len(theirs.get_submodule(name).weight) == len(b), name
        theirs.load_lora_adapter({k: v.clone() for k, v in file.items()}, prefix="transformer")
        loaded = {name for name, _ in theirs.named_modules() if name.endswith("lora_B")}
        assert len(loaded) == len(file) / 2


def test_a_table_becomes_parts(pack):
    part = pack("magicapture.parts").Part
    table = {
        "a.to_k.weight": ("a.qkv.weight", (0, 4, 4)),
        "a.to_q.weight": ("a.qkv.weight", (0, 0, 4)),
        "a.to_q.bias": ("a.qkv.bias", (0, 0, 4)),
        "a.to_qkv.weight": "a.qkv.weight",  # another spelling
        "b.weight": "c.weight",
        "norm.weight": ("norm_out.weight", None, lambda weight: weight),
        "odd.weight": ("odd.weight", (1, 0, 4)),
        "token": "token",
    }
    of = pack("nodes._comfy.parts").parts_in
    rows = part("a.to_q", slice(0, 4)), part("a.to_k", slice(4, 8))
    assert of(table) == {"a.qkv": rows, "c": (part("b"),)}
    assert of(table, latest=True) == {"a.qkv": (part("a.to_qkv"),), "c": (part("b"),)}
