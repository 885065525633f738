"""Single-file checkpoints: every weight in its place, read from shapes alone, without a network."""

import socket

import pytest
import torch
from safetensors.torch import save_file

from magicapture.backbones import load_backbone
from magicapture.backbones.shapes import UNET, configs, prediction_type
from magicapture.errors import InputError, StorageError, UnsupportedModelError
from magicapture.tokens import Prompt, TokenVectors


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def parts(tiny):
    """SD 1.5's layout whole (four levels, twelve text layers), 32 channels and a context of 64."""
    return (
        tiny.unet(
            block_out_channels=(32, 64, 96, 96),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            norm_num_groups=32,
            attention_head_dim=8,
            cross_attention_dim=64,
        ),
        tiny.vae("kl", block_out_channels=(32,) * 4, norm_num_groups=32, layers_per_block=2),
        tiny.text_encoder(hidden_size=64, num_hidden_layers=12, num_attention_heads=1),
    )


def assert_same(module, original):
    expected = original.state_dict()
    found = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def assert_same_outputs(backbone, unet, vae, encoder, *, ids):
    torch.manual_seed(3)
    z, t, context = (
        torch.randn(1, 4, 8, 8),
        torch.tensor([7]),
        torch.randn(1, 5, encoder.config.hidden_size),
    )
    with torch.no_grad():
        text = backbone.text_encoders["clip_l"](input_ids=ids).last_hidden_state
        torch.testing.assert_close(text, encoder(input_ids=ids).last_hidden_state)
        expected = unet(z, t, encoder_hidden_states=context).sample
        found = backbone.unet(z, t, encoder_hidden_states=context).sample
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(backbone.vae.decode(z).sample, vae.decode(z).sample)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_sd1_layout_loads_whole(parts, ldm_layout, tmp_path, suffix):
    path, state = tmp_path / f"model.{suffix}", ldm_layout(*parts)
    if suffix == "ckpt":
        torch.save({"state_dict": state, "global_step": 840000}, path)
    else:
        save_file(state, path)

    backbone = load_backbone(path)

    assert backbone.family == "sd1"
    assert backbone.schedule.prediction == "epsilon"
    assert backbone.downscale == 8
    for module, original in zip(
        (backbone.unet, backbone.vae, backbone.text_encoders["clip_l"]), parts, strict=True
    ):
        assert_same(module, original)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    assert_same_outputs(backbone, *parts, ids=torch.arange(77)[None])
    context = backbone.encode_prompts([Prompt("a photo")], TokenVectors({})).context
    assert context.shape == (1, 77, 64)


def test_sd2_layout_loads_whole(tiny, ldm_layout, tmp_path):
    parts = (
        tiny.unet(
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=32,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=1024,
        ),
        tiny.vae("kl", block_out_channels=(32,) * 4, norm_num_groups=32),
        tiny.text_encoder(
            hidden_size=1024, num_attention_heads=16, vocab_size=64, hidden_act="gelu"
        ),
    )
    save_file(ldm_layout(*parts, sd2=True), tmp_path / "sd2.safetensors")

    backbone = load_backbone(tmp_path / "sd2.safetensors")

    assert backbone.family == "sd2"
    for module, original in zip((backbone.unet, backbone.vae), parts[:2], strict=True):
        assert_same(module, original)
    assert_same_outputs(backbone, *parts, ids=torch.arange(64)[None])


def test_half_precision(parts, ldm_layout, tmp_path, capfd):
    save_file(ldm_layout(*parts), tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path / "model.safetensors", dtype=torch.bfloat16)
    printed = "".join(capfd.readouterr())
    assert "%|" not in printed and "float32" not in printed
    dtypes = {p.dtype for module in backbone.modules.values() for p in module.parameters()}
    assert dtypes == {torch.bfloat16}


def test_tiny_vae_inside(parts, ldm_layout, tiny, tmp_path):
    """ComfyUI keeps TAESD in a checkpoint as first_stage_model.taesd_*; its clamp is layer 0."""
    vae = tiny.vae(
        "tiny",
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
    )
    state = {k: v for k, v in ldm_layout(*parts).items() if not k.startswith("first_stage_model")}
    for name, value in vae.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        index = int(index) + (part == "decoder")
        state[f"first_stage_model.taesd_{part}.{index}.{rest}"] = value.clone()
    save_file(state, tmp_path / "model.safetensors")

    backbone = load_backbone(tmp_path / "model.safetensors")

    assert_same(backbone.vae, vae)


def test_prediction_type_of_sd2():
    """Nothing in the file tells it; one bias is spread wider in models trained on v."""
    key = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    sd2 = {"cond_stage_model.model.token_embedding.weight": torch.zeros(1, 1)}
    bias = torch.tensor([-1.0, 1.0])
    assert prediction_type({**sd2, key: 0.2 * bias}) == "v_prediction"
    assert prediction_type({**sd2, key: 0.05 * bias}) == "epsilon"
    assert prediction_type({key: 0.2 * bias}) == "epsilon"


def test_prediction_type_can_be_given(parts, ldm_layout, tmp_path):
    save_file(ldm_layout(*parts), tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path / "model.safetensors", prediction_type="v_prediction")
    assert backbone.schedule.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner"),
        ("edm_mean", "EDM"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
    ],
)
def test_other_models_are_refused(tmp_path, extra, found):
    save_file({extra: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match=found) as error:
        load_backbone(tmp_path / "other.safetensors")
    assert "use Stable Diffusion 1.x, 2.x and XL" in str(error.value)


def test_inpainting_is_refused(parts, ldm_layout, tmp_path):
    state = ldm_layout(*parts)
    state[UNET + "input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(state, tmp_path / "inpainting.safetensors")
    with pytest.raises(UnsupportedModelError, match="inpainting model whose UNet takes 9"):
        load_backbone(tmp_path / "inpainting.safetensors")


@pytest.mark.parametrize(
    ("prefix", "part"),
    [
        ("first_stage_model", "VAE"),
        ("cond_stage_model", "CLIP text encoder"),
        ("model.diffusion_model", "UNet"),
    ],
)
def test_a_part_missing_is_named(parts, ldm_layout, tmp_path, prefix, part):
    state = {k: v for k, v in ldm_layout(*parts).items() if not k.startswith(prefix)}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"without.* {part}"):
        load_backbone(tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.middle_block.1.norm.weight",
        "first_stage_model.decoder.norm_out.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_weights_missing_are_noticed(parts, ldm_layout, tmp_path, name):
    state = ldm_layout(*parts)
    del state[name]
    save_file(state, tmp_path / "holes.safetensors")
    with pytest.raises(UnsupportedModelError, match="weights"):
        load_backbone(tmp_path / "holes.safetensors")


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("cond_stage_model.transformer.text_model.encoder.layers.11.", "layers.11"),
        ("cond_stage_model.transformer.text_model.encoder.layers.5.", "layers.5"),
        ("model.diffusion_model.input_blocks.11.", "input_blocks.11"),
        ("model.diffusion_model.output_blocks.0.", "output_blocks.0"),
        ("model.diffusion_model.input_blocks.4.1.", "down_blocks.1.attentions"),
        ("first_stage_model.encoder.down.3.", "encoder.down.3"),
        ("first_stage_model.encoder.", "encoder.down.0"),
        ("model.diffusion_model.out.2.weight", "out.2.weight"),
        ("first_stage_model.decoder.up.1.block.2.conv1.bias", "conv1.bias"),
    ],
)
def test_blocks_missing_are_not_trained_without(parts, ldm_layout, tmp_path, prefix, named):
    """The shapes of what is left make a smaller model, which would load."""
    state = {k: v for k, v in ldm_layout(*parts).items() if not k.startswith(prefix)}
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(UnsupportedModelError, match=named.replace(".", r"\.")) as error:
        load_backbone(tmp_path / "less.safetensors")
    assert "meta" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.1.attn1.to_q.weight", (1,)),
        ("model.diffusion_model.middle_block.3.weight", (1,)),
        ("model.diffusion_model.time_embed.0.weight", (7, 7)),
        ("cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc3.weight", (1,)),
        ("first_stage_model.decoder.conv_in.weight", ()),
    ],
)
def test_weights_that_have_no_place(parts, ldm_layout, tmp_path, name, shape):
    save_file({**ldm_layout(*parts), name: torch.zeros(shape)}, tmp_path / "other.safetensors")
    with pytest.raises((StorageError, UnsupportedModelError), match=r"other\.safetensors"):
        load_backbone(tmp_path / "other.safetensors")


def test_what_lies_beside_the_networks_is_left(parts, ldm_layout, tmp_path):
    beside = (
        "first_stage_model.loss.logvar",
        "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "model_ema.decay",
        "betas",
    )
    state = {**ldm_layout(*parts), **{name: torch.zeros(1) for name in beside}}
    save_file(state, tmp_path / "model.safetensors")
    assert_same(load_backbone(tmp_path / "model.safetensors").unet, parts[0])


def test_novelais_names_and_an_ending_in_capitals(parts, ldm_layout, tmp_path):
    """They leave "text_model." out; so do many merges."""
    whole = ldm_layout(*parts)
    state = {
        name.replace(".transformer.text_model.", ".transformer."): whole[name] for name in whole
    }
    assert state.keys() != whole.keys()
    save_file(state, tmp_path / "animefull.SAFETENSORS")
    backbone = load_backbone(tmp_path / "animefull.SAFETENSORS")
    assert_same(backbone.text_encoders["clip_l"], parts[2])


@pytest.mark.parametrize("stored", [23, 24])
def test_sd2_reads_23_layers_however_many_the_file_keeps(parts, ldm_layout, stored):
    """OpenCLIP has 24, of which SD 2.x reads the last but one; diffusers writes 23 back."""
    start = "cond_stage_model.model."
    text = {
        f"{start}token_embedding.weight": (49408, 1024),
        f"{start}positional_embedding": (77, 1024),
        **{
            f"{start}transformer.resblocks.{n}.mlp.c_fc.weight": (4096, 1024) for n in range(stored)
        },
    }
    kept = {k: v for k, v in ldm_layout(*parts).items() if not k.startswith("cond_stage_model")}
    weights = {**kept, **{name: torch.empty(s, device="meta") for name, s in text.items()}}
    assert configs(weights)["clip_l"]["num_hidden_layers"] == 23
    del weights[f"{start}transformer.resblocks.22.mlp.c_fc.weight"]
    with pytest.raises(UnsupportedModelError, match=r"resblocks\.22"):
        configs(weights)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x10\x00not a model")
    with pytest.raises(StorageError, match="cannot be read"):
        load_backbone(path)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="could run code"):
        load_backbone(tmp_path / "evil.ckpt")


def test_no_such_file(tmp_path):
    with pytest.raises(StorageError, match="no model at"):
        load_backbone(tmp_path / "absent.safetensors")
