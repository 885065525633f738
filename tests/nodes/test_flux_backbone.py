"""The paperdoll transformer in ComfyUI's Flux equals diffusers' on the same weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nodes._families import near, seeded

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of <ada> person"
TIMES = (0.3, 0.8)
SIZE = (8, 12)  # latent cells


@pytest.fixture(scope="module")
def folder(paperdoll_weights, tmp_path_factory):
    """The untrained paperdoll folder, with an untrained transformer beside it."""
    folder = tmp_path_factory.mktemp("dolls") / "weights"
    shutil.copytree(paperdoll_weights, folder)
    return folder


@pytest.fixture(scope="module")
def twin(pack, folder) -> Any:
    """The diffusers backbone."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(4)
        network = pack("magicapture.paperdoll.networks").transformer()
        network.half().save_pretrained(folder / "transformer")
        return pack("magicapture.paperdoll.model").doll_backbone("transformer", folder)


@pytest.fixture(scope="module")
def backbone(pack, folder, twin) -> Any:
    with torch.inference_mode():
        parts = pack("nodes._comfy.paperdoll").load_paperdoll(folder, "transformer")
        return pack.comfy.ComfyBackbone(*parts)


@pytest.fixture
def vectors(pack) -> Any:
    with torch.inference_mode(False):
        return pack("magicapture.tokens").TokenVectors({"ada": {"clip_l": 0.1 * seeded(2, 128)}})


def prompts(pack) -> list[Any]:
    return [pack("magicapture.tokens").Prompt(text) for text in (TEXT, "a person")]


def test_it_is_of_the_dolls_family_with_their_schedule(backbone, twin):
    assert backbone.family == twin.family == "doll_flux"
    assert backbone.schedule.prediction == twin.schedule.prediction == "flow"
    own, theirs = (one.schedule.levels for one in (backbone, twin))
    assert type(own) is type(theirs) and vars(own) == vars(theirs)
    assert (backbone.latent_channels, backbone.downscale) == (8, 8)
    assert backbone.fingerprint() == backbone.fingerprint()


def test_prompts_and_predictions_are_those_of_diffusers(pack, backbone, twin, vectors):
    noisy, times = seeded(2, 8, *SIZE, seed=2), torch.tensor(TIMES)
    with backbone.training(None), twin.training(None), torch.no_grad():
        own, theirs = (b.encode_prompts(prompts(pack), vectors) for b in (backbone, twin))
        near(own.context, theirs.context)
        near(own.extra["pooled"], theirs.extra["pooled"])
        assert own.positions == theirs.positions
        predictions = [b.predict(noisy, times, c) for b, c in ((backbone, own), (twin, theirs))]
    near(*predictions)


def test_sampling_denoises_to_what_the_schedule_says(pack, backbone, vectors):
    noisy, times = seeded(2, 8, *SIZE, seed=2), torch.tensor(TIMES)
    model = backbone._model.model
    with backbone.training(None), torch.no_grad():
        told = backbone.encode_prompts(prompts(pack), vectors)
        prediction = backbone.predict(noisy, times, told)
        x0 = backbone.schedule.to_x0(prediction, noisy, times)
    given = {"c_crossattn": told.context, "y": told.extra["pooled"]}
    near(x0, model.apply_model(noisy, times, transformer_options={}, **given))


EXPECTED = {
    "cross": ("img_attn.qkv", "txt_attn.qkv", "linear1"),
    "cross_kv": ("txt_attn.qkv", "linear1"),
    "cross_and_self": ("img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj", "linear1"),
    "all_linear": ("qkv", "proj", "mlp.0", "mlp.2", "linear1", "linear2"),
}


@pytest.mark.parametrize("targets", EXPECTED)
def test_a_lora_is_in_the_fused_layers_of_what_diffusers_trains(pack, backbone, twin, targets):
    targets_of = pack("magicapture.lora").target_names
    called = pack("magicapture.parts").names_of(backbone.parts_of(backbone.unet))
    names = targets_of(backbone.unet, targets, "transformer", called)
    blocks = [n for n, _ in backbone.unet.named_modules() if n.endswith(EXPECTED[targets])]
    assert names == blocks
    wanted = targets_of(twin.unet, targets, "transformer")
    same = pack("magicapture.parts").names_of(twin.parts_of(twin.unet))
    assert wanted == targets_of(twin.unet, targets, "transformer", same)
    assert set(wanted) <= {part for name in names for part in called[name]}


def loss_of(pack: Any, backbone: Any, vectors: Any) -> Tensor:
    """Of a reconstruction and of the tokens' maps."""
    noisy, times = seeded(2, 8, *SIZE, seed=2), torch.tensor(TIMES)
    conditioning = backbone.encode_prompts(prompts(pack), vectors)
    with pack("magicapture.attention").captured(backbone.attention) as capture:
        with capture.recording():
            prediction = backbone.predict(noisy, times, conditioning)
        maps = capture.maps(conditioning.positions, SIZE)
    assert len(maps) == 3
    weight = torch.linspace(0, 1, maps[0].values[0].numel()).view(maps[0].values.shape[1:])
    held = torch.stack([(one.values * weight).square().sum() for one in maps]).sum()
    return (prediction - seeded(2, 8, *SIZE, seed=3)).square().mean() + 100 * held


def state_of(module: nn.Module) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    own = {name: vars(m).get("forward") for name, m in module.named_modules()}
    return {name: (value, own) for name, value in module.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_losses_and_gradients_are_those_of_diffusers(pack, backbone, twin, vectors, checkpointing):
    lora, layers = pack("magicapture.lora"), pack("magicapture.parts")
    split, names_of = layers.split, layers.names_of
    checkpointed = pack("magicapture.checkpointing").checkpointed
    parts = backbone.parts_of(backbone.unet)
    names = lora.target_names(backbone.unet, "all_linear", "transformer", names_of(parts))
    fused = {}
    for i, name in enumerate(names):
        rows, columns = backbone.unet.get_submodule(name).weight.shape
        down, up = (0.1 * seeded(*s, seed=i) for s in ((2, columns), (rows, 2)))
        fused[name] = lora.LoraWeights(down, up, 2.0)
    apart = {n: w for name, of in fused.items() for n, w in split(of, parts[name]).items()}
    before = state_of(backbone.unet)
    losses, gradients = [], []
    for one, state in ((backbone, fused), (twin, apart)):
        with torch.inference_mode(False), one.training(None):
            blocks = list(one.checkpointed_modules())
            assert len(blocks) == 9
            with (
                lora.injected(one.unet, list(state), 2) as injected,
                checkpointed(blocks if checkpointing else []),
            ):
                injected.load(state)
                vector = vectors.get("ada", "clip_l").requires_grad_()
                loss = loss_of(pack, one, vectors)
                found = torch.autograd.grad(loss, [vector, *injected.parameters()])
        losses.append(loss.detach())
        pairs = zip(found[1::2], found[2::2], strict=True)
        gradients.append((found[0], dict(zip(injected.state(), pairs, strict=True))))
    near(*losses)
    (own, of_fused), (theirs, of_apart) = gradients
    near(own, theirs, 1e-3)
    for name, (down, up) in of_fused.items():
        near(down, sum(of_apart[part.name][0] for part in parts[name]), 2e-3)
        for part in parts[name]:
            rows = slice(None) if part.rows is None else part.rows
            near(up[rows], of_apart[part.name][1], 2e-3)
    after = state_of(backbone.unet)
    assert before.keys() == after.keys()
    for name, (value, forwards) in after.items():
        assert value is before[name][0] and forwards == before[name][1]


def test_a_training_writes_a_lora_that_stock_nodes_load(pack, backbone, tmp_path, caplog):
    """By the dolls' default recipe, with every loss; the model is left as it came."""
    import comfy.model_management
    import folder_paths

    import nodes as stock

    dolls, training = pack("magicapture.paperdoll.pairs"), pack("magicapture.training")
    recipe = pack("magicapture.paperdoll.recipe").doll_recipe(model="transformer")
    recipe = pack("magicapture.recipes").with_steps(recipe, 3)
    always, kept = replace(recipe.identity, min_snr=0), replace(recipe.unconditional, every=1)
    recipe = replace(recipe, identity=always, unconditional=kept)  # act in every step
    before = state_of(backbone.unet)
    losses: set[str] = set()

    def listener(event: Any) -> None:
        if isinstance(event, training.Stepped):
            losses.update(event.losses)

    with torch.inference_mode(False):
        pair = dolls.make_pair(1_000_000, 1_000_099, poses=1)
        job = pack("magicapture.demo.example").doll_job(pair, recipe)
        embedder = pack("magicapture.paperdoll.readers").ConvEmbedder().eval()
        with training.Trainer.open(job, backbone, embedder=embedder, listener=listener) as trainer:
            adapter = trainer.run()
    assert losses == {*("source", "style", "composed", "unconditional", "attention", "identity")}
    assert adapter.family == "doll_flux" and any(of.up.any() for of in adapter.lora.values())
    assert all(name.startswith("transformer.") for name in adapter.lora)
    after = state_of(backbone.unet)
    assert all(value is before[name][0] for name, (value, _) in after.items())

    for i, weights in enumerate(adapter.lora.values()):  # three steps change little
        weights.up.add_(0.3 * seeded(*weights.up.shape, seed=i))
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    pack("magicapture.adapters").save_adapter(adapter, tmp_path, tmp_path, "doll-flux")
    patched, _ = stock.LoraLoader().load_lora(
        backbone._model, None, "doll-flux.safetensors", 1.0, 0.0
    )
    assert "not loaded" not in caplog.text
    noisy, times = seeded(2, 8, *SIZE, seed=2), torch.tensor(TIMES)
    told = {"c_crossattn": seeded(2, 48, 128), "y": seeded(2, 128), "transformer_options": {}}
    network = backbone._model.model
    with torch.inference_mode(False), backbone.training(None), torch.no_grad():
        plain = network.apply_model(noisy, times, **told)
        with pack("magicapture.sampling").adapted(backbone, adapter):
            expected = network.apply_model(noisy, times, **told)
    comfy.model_management.load_models_gpu([patched])
    found = network.apply_model(noisy, times, **told)
    comfy.model_management.load_models_gpu([backbone._model])
    change = (expected - plain).norm()  # ComfyUI rounds weights with a LoRA in them to float16
    assert change > 0.05 * plain.norm() and (found - expected).norm() < 0.03 * change


def test_the_blocks_that_are_measured_are_those_of_diffusers(pack, backbone, twin):
    """By the same names, and with the same agreement but for maps that all but tie."""
    dolls, training = pack("magicapture.paperdoll.pairs"), pack("magicapture.training")
    recipe = pack("magicapture.paperdoll.recipe").doll_recipe(model="transformer")
    recipe = pack("magicapture.recipes").changed(
        recipe, {"refocus.blocks": "auto", "phases[*].weights.identity": 0, "variants": 1}
    )
    agreements, found = pack("magicapture.training.blocks").agreements, []
    with torch.inference_mode(False):
        pair = dolls.make_pair(1_000_000, 1_000_099, poses=1)
        job = pack("magicapture.demo.example").doll_job(pair, recipe)
        for one in (backbone, twin):
            with training.Trainer.open(job, one) as trainer:
                chosen = trainer.blocks
                found.append(agreements(job, one, trainer.materials.batches, lambda event: None))
                with trainer._phase(trainer.recipe.phases[-1]) as objective:
                    known = pack("magicapture.attention").blocks(one.unet)
                    assert objective.capture.sites == tuple(known[name] for name in chosen)
            assert len(chosen) == 3 and chosen.items() <= found[-1].items()
            assert all(hooks == {} for m in one.unet.modules() for hooks in hooks_of(m))
    own, theirs = found
    assert (
        list(own)
        == list(theirs)
        == [
            *(f"double_blocks.{i}" for i in range(3)),
            *(f"single_blocks.{i}" for i in range(6)),
        ]
    )
    assert len(set(own.values())) > 5
    near(*(torch.tensor(list(values.values())) for values in found), 0.02)


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks
