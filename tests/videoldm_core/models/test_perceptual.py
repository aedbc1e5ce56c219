"""LPIPS against the formula written out, and files that do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from videoldm_core.errors import UserError
from videoldm_core.models.perceptual import Perceptual, PerceptualConfig, load_perceptual

# torchvision's numbers of VGG16's convolutions, block by block.
NUMBERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    """Random weights by torchvision's names, with a classifier that is not needed."""
    generator = torch.Generator().manual_seed(0)
    weights, channels = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for numbers, width in zip(NUMBERS, WIDTHS, strict=True):
        for number in numbers:
            shape = (width, channels, 3, 3)
            scale = (2 / (9 * channels)) ** 0.5
            weights[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
            weights[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
            channels = width
    return weights


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate(WIDTHS)
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory, backbone, heads) -> PerceptualConfig:
    folder = tmp_path_factory.mktemp("perceptual")
    torch.save(backbone, folder / "vgg16.pth")
    save_file(heads, folder / "heads.safetensors")
    return PerceptualConfig(backbone=folder / "vgg16.pth", heads=folder / "heads.safetensors")


def frames(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def loaded(config: PerceptualConfig, *, checkpointing: bool = False) -> Perceptual:
    perceptual = load_perceptual(config, checkpointing=checkpointing)
    assert perceptual is not None
    return perceptual


def features(backbone: dict[str, Tensor], h: Tensor) -> list[Tensor]:
    h = (h - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
        [0.458, 0.448, 0.450]
    )[:, None, None]
    found = []
    for block, numbers in enumerate(NUMBERS):
        h = F.max_pool2d(h, 2) if block else h
        for n in numbers:
            weight, bias = backbone[f"features.{n}.weight"], backbone[f"features.{n}.bias"]
            h = F.relu(F.conv2d(h, weight, bias, padding=1))
        found.append(h)
    return found


def test_the_distance_is_the_formula_written_out(config, backbone, heads):
    one, other = frames(1), frames(2)
    expected = torch.zeros(2)
    for i, (a, b) in enumerate(
        zip(features(backbone, one), features(backbone, other), strict=True)
    ):
        a = a / (a.square().sum(1, keepdim=True).sqrt() + 1e-10)
        b = b / (b.square().sum(1, keepdim=True).sqrt() + 1e-10)
        difference = F.conv2d((a - b).square(), heads[f"lin{i}.model.1.weight"])
        expected += difference.mean((1, 2, 3))
    assert torch.allclose(loaded(config)(one, other), expected, rtol=1e-4)
    assert expected.min() > 0


def test_equal_frames_have_no_distance_and_a_finite_gradient(config):
    frame = torch.zeros(1, 3, 16, 16, requires_grad=True)
    distance = loaded(config)(frame, frame.detach())
    assert distance.item() == 0
    (gradient,) = torch.autograd.grad(distance.sum(), frame)
    assert gradient.isfinite().all()


def test_recomputing_one_frame_at_a_time_changes_no_gradient(config):
    gradients = []
    for checkpointing in (False, True):
        made = frames(1).requires_grad_()
        distance = loaded(config, checkpointing=checkpointing)(made, frames(2))
        gradients.append(torch.autograd.grad(distance.sum(), made)[0])
    assert torch.allclose(*gradients, atol=1e-7, rtol=1e-4)
    assert gradients[0].abs().sum() > 0


def test_its_networks_do_not_train_and_disturb_no_random_state(config):
    state = torch.random.get_rng_state()
    assert not any(p.requires_grad for p in loaded(config).parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_files_there_is_none():
    assert load_perceptual(None, checkpointing=False) is None


def test_the_lpips_packages_heads_are_read(asset, config):
    real = asset("weights/lpips/v0.1_vgg.pth")
    perceptual = loaded(config.model_copy(update={"heads": real}))
    assert [head.shape[1] for head in perceptual.heads] == list(WIDTHS)
    assert min(head.min().item() for head in perceptual.heads) >= 0


def test_another_networks_heads_are_refused_by_key(asset, config):
    other = asset("weights/lpips/v0.1_alex.pth")
    with pytest.raises(UserError, match=r"'lin1\.model\.1\.weight' has shape \(1, 192, 1, 1\)"):
        loaded(config.model_copy(update={"heads": other}))


def test_a_backbone_that_lacks_a_layer_is_refused_by_key(tmp_path: Path, config, backbone):
    short = {name: t for name, t in backbone.items() if name != "features.28.bias"}
    torch.save(short, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"vgg\.pth' lacks 'features\.28\.bias'"):
        loaded(config.model_copy(update={"backbone": tmp_path / "vgg.pth"}))


def test_a_file_that_is_not_there_is_named(config):
    with pytest.raises(UserError, match="Cannot read 'nowhere.pth'"):
        loaded(config.model_copy(update={"backbone": Path("nowhere.pth")}))
