"""The identity loss: its value, its gradient's way to a LoRA, and the decoded crop."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from magicapture.backbones.taesd import load_taesd
from magicapture.config import IdentitySettings
from magicapture.faces.align import ARCFACE_TEMPLATE, invert, similarity, transform, warp
from magicapture.faces.analyzer import embed_faces
from magicapture.faces.embed import NORMALISATIONS, FaceEmbeddingNetwork, load_face_embedder
from magicapture.identity import (
    ColourBlind,
    IdentityLoss,
    clamp,
    face_windows,
)
from magicapture.schedule import DiscreteLevels, Schedule

PHOTO_LANDMARKS = torch.tensor(  # of photos/person/foreground__04.jpg at half size
    [[[107.4, 107.6], [146.8, 107.8], [126.0, 131.3], [109.5, 145.4], [146.4, 144.8]]]
)
ONE = torch.ones(1)
WIDTH = 432  # of the small face embedder's embedding


def landmarks(scale: float, x: float, y: float) -> Tensor:
    """A face `scale` times the template's size with its square's corner at (x, y): (1,5,2)."""
    return (ARCFACE_TEMPLATE * scale + torch.tensor([x, y]))[None]


@pytest.fixture
def embedder() -> FaceEmbeddingNetwork:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4), nn.Tanh(), nn.Conv2d(8, 12, 5, stride=4), nn.Flatten()
    )
    return FaceEmbeddingNetwork(network, NORMALISATIONS["arcface"])


@pytest.fixture
def tiny_vae() -> AutoencoderTiny:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    return vae.eval().requires_grad_(False)


def decoder(vae: AutoencoderTiny):
    return lambda latents: (vae.decode(latents).sample + 1) / 2


def test_value_is_one_minus_the_cosine_to_the_mean(embedder, tiny_vae) -> None:
    x0, points = torch.randn(1, 4, 16, 16), landmarks(0.5, 30, 40)
    target = torch.randn(3, WIDTH) * torch.tensor([[1.0], [5.0], [9.0]])
    unit = F.normalize(target, dim=-1)  # each photo counts alike, however long its embedding
    settings = IdentitySettings(weight_by_signal=False)
    loss = IdentityLoss(embedder, decoder(tiny_vae), 8, target, settings, margin=16)
    picture = decoder(tiny_vae)(x0)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    matrix = similarity(points)[0].double().numpy()
    face = cv2.warpAffine(picture, matrix, (112, 112), flags=cv2.INTER_LINEAR)
    found = F.normalize(embedder(torch.from_numpy(face).permute(2, 0, 1)[None]), dim=-1)[0]
    cosine = found @ F.normalize(unit.mean(0), dim=0)
    torch.testing.assert_close(loss(x0, points, ONE), 1 - cosine[None], atol=2e-3, rtol=0)

    each = IdentitySettings(weight_by_signal=False, mean_target=False)
    loss = IdentityLoss(embedder, decoder(tiny_vae), 8, target, each, margin=16)
    expected = (1 - unit @ found).mean()[None]
    torch.testing.assert_close(loss(x0, points, ONE), expected, atol=2e-3, rtol=0)


def test_weight_is_the_signals_share(embedder, tiny_vae) -> None:
    x0 = torch.randn(1, 4, 16, 16).expand(2, -1, -1, -1)
    points, abar = landmarks(0.6, 20, 20).expand(2, -1, -1), torch.tensor([1.0, 0.25])
    target = torch.randn(WIDTH)
    weighted, plain = (
        IdentityLoss(embedder, decoder(tiny_vae), 8, target, IdentitySettings(weight_by_signal=w))(
            x0, points, abar
        )
        for w in (True, False)
    )
    torch.testing.assert_close(plain[0], plain[1])
    torch.testing.assert_close(weighted, plain * abar)


def lora_gradients(decode, embedder, points: Tensor, target: Tensor, side: int) -> list[Tensor]:
    """Gradients of L_id on a tiny UNet's LoRA, through Tweedie's estimate."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)
    targets = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), unet)
    lora = [p for name, p in unet.named_parameters() if "lora_" in name]
    for p in lora:
        nn.init.normal_(p, std=0.1)
    schedule = Schedule(DiscreteLevels(torch.linspace(0.999, 0.01, 1000)))
    noisy, t = torch.randn(1, 4, side, side), torch.tensor([200])
    prediction = unet(noisy, t, torch.randn(1, 7, 16)).sample
    x0 = schedule.to_x0(prediction, noisy, t)
    loss = IdentityLoss(embedder, decode, 8, target, IdentitySettings())
    return list(torch.autograd.grad(loss(x0, points, schedule.signal(t)).sum(), lora))


def test_gradient_reaches_the_lora(embedder, tiny_vae) -> None:
    target = torch.randn(2, WIDTH)
    for gradient in lora_gradients(decoder(tiny_vae), embedder, landmarks(0.6, 20, 20), target, 16):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_gradient_reaches_the_lora_through_real_models(shared_assets) -> None:
    vae = load_taesd(shared_assets / "vae_approx")
    net = load_face_embedder(shared_assets / "face" / "foamliu_MobileFaceNet.onnx", "imagenet")
    points = landmarks(1.0, 60, 60)
    for gradient in lora_gradients(decoder(vae), net, points, torch.randn(128), 32):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_crop_with_the_decoders_reach_is_exact(embedder, tiny_vae) -> None:
    x0 = torch.randn(1, 4, 40, 40)
    points = landmarks(0.5, 140, 150)
    loss = IdentityLoss(
        embedder, decoder(tiny_vae), 8, torch.randn(WIDTH), IdentitySettings(), margin=10
    )
    (_, size) = face_windows(points, (40, 40), 8, 10)
    assert max(size) < 30, "the window is the whole picture, so this test shows nothing"
    whole = warp(decoder(tiny_vae)(x0).clamp(0, 1), similarity(points), antialias=True)
    torch.testing.assert_close(loss.faces(x0, points), whole, atol=1e-5, rtol=0)


def test_crop_of_a_real_photo_is_close(shared_assets) -> None:
    vae = load_taesd(shared_assets / "vae_approx")
    net = load_face_embedder(shared_assets / "face" / "foamliu_MobileFaceNet.onnx", "imagenet")
    photo = _photo(shared_assets / "photos" / "person" / "foreground__04.jpg")
    with torch.no_grad():
        x0 = vae.encode(2 * photo - 1).latents
        whole = decoder(vae)(x0).clamp(0, 1)
        whole = warp(whole, similarity(PHOTO_LANDMARKS), antialias=True)
        crop = IdentityLoss(net, decoder(vae), 8, net(whole), IdentitySettings())
        difference = (crop.faces(x0, PHOTO_LANDMARKS) - whole).abs()
        assert float(difference.mean()) < 2 / 255
        assert float(crop(x0, PHOTO_LANDMARKS, ONE)) < 0.012


def _photo(path: Path) -> Tensor:
    picture = cv2.resize(cv2.imread(str(path)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    picture = picture[..., ::-1].copy()
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("straight_through", [True, False])
def test_gradient_where_pixels_are_saturated(embedder, straight_through) -> None:
    def decode(latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8.0)

    x0 = torch.full((1, 4, 16, 16), 3.0) + torch.rand(1, 4, 16, 16)
    x0.requires_grad_()
    settings = IdentitySettings(straight_through=straight_through)
    loss = IdentityLoss(embedder, decode, 8, torch.randn(WIDTH), settings)
    loss(x0, landmarks(0.8, 10, 10), ONE).sum().backward()
    assert bool(x0.grad.any()) == straight_through


def test_clamp_has_the_same_values_either_way() -> None:
    pixels = 3 * torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(clamp(pixels, True), pixels.clamp(0, 1), atol=1e-6, rtol=0)
    assert torch.equal(clamp(pixels, False), pixels.clamp(0, 1))


def test_windows_cover_the_faces_and_share_one_size() -> None:
    faces = [(1.0, 100, 60), (1.7, 40, 90), (0.5, 2, 3), (0.7, 300, 420)]
    points = torch.cat([landmarks(*face) for face in faces])
    corners, (height, width) = face_windows(points, (64, 52), 8, margin=2)
    square = torch.tensor([[0.0, 0.0], [111.0, 0.0], [0.0, 111.0], [111.0, 111.0]])
    quads = transform(invert(similarity(points)), square[None])
    for (x, y), quad in zip(corners, quads, strict=True):
        assert 0 <= x <= 52 - width and 0 <= y <= 64 - height
        low, high = quad.amin(0).clamp_min(0), quad.amax(0)
        assert 8 * x <= low[0] and 8 * y <= low[1]
        assert min(8 * 52 - 1, high[0]) <= 8 * (x + width)
        assert min(8 * 64 - 1, high[1]) <= 8 * (y + height)
    assert width <= 1.7 * 112 / 8 + 2 * 2 + 2


@pytest.mark.parametrize("place", [(-500, -500), (900, 900), (-60, 500)])
def test_a_face_outside_the_picture_still_has_a_window(embedder, tiny_vae, place) -> None:
    points = landmarks(0.5, *place)
    corners, size = face_windows(points, (16, 16), 8, margin=4)
    assert all(0 <= c <= 15 for c in corners[0]) and 1 <= min(size) <= max(size) <= 16
    loss = IdentityLoss(embedder, decoder(tiny_vae), 8, torch.randn(WIDTH), IdentitySettings())
    assert loss(torch.randn(1, 4, 16, 16), points, ONE).isfinite().all()


def test_faces_of_a_batch_equal_those_alone(embedder, tiny_vae) -> None:
    x0 = torch.randn(2, 4, 40, 40)
    points = torch.cat([landmarks(0.6, 60, 100), landmarks(0.5, 180, 20)])
    loss = IdentityLoss(
        embedder, decoder(tiny_vae), 8, torch.randn(WIDTH), IdentitySettings(), margin=10
    )
    together = loss.faces(x0, points)
    for b in range(2):
        torch.testing.assert_close(loss.faces(x0[b : b + 1], points[b : b + 1])[0], together[b])


def test_embeddings_of_photos_of_any_size(embedder) -> None:
    images = [torch.rand(3, 90, 120), torch.rand(3, 200, 150)]
    points = [landmarks(0.5, 10, 10)[0], landmarks(0.9, 20, 40)[0]]
    found = embed_faces(embedder, images, points)
    for one, image, point in zip(found, images, points, strict=True):
        face = warp(image[None], similarity(point[None]), antialias=True)
        torch.testing.assert_close(one, F.normalize(embedder(face), dim=-1)[0])


def test_colour_blind_sees_luma_alone(embedder) -> None:
    faces = torch.rand(3, 3, 112, 112)
    luma = 0.299 * faces[:, :1] + 0.587 * faces[:, 1:2] + 0.114 * faces[:, 2:]
    seen = ColourBlind(embedder)(faces)
    torch.testing.assert_close(seen, embedder(luma.repeat(1, 3, 1, 1)))
    assert not torch.allclose(seen, embedder(faces), atol=1e-3)


def test_colour_blind_asks_for_no_colour(embedder) -> None:
    faces = torch.rand(1, 3, 112, 112, requires_grad=True)
    ColourBlind(embedder)(faces).sum().backward()
    red, green, blue = faces.grad[0]
    torch.testing.assert_close(red / 0.299, green / 0.587)
    torch.testing.assert_close(red / 0.299, blue / 0.114)
