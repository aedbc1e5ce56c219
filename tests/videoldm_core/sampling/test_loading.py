"""Models by role: shared image models, and a fine-tune in the place of the image model."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from tests.videoldm_core.releases import TINY, publish_all, request_for
from tests.videoldm_core.single_files import in_the_authors_layout, vae_in_the_authors_layout
from videoldm_core import generate as generating
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.generate import generate, load_models
from videoldm_core.models.image import AutoencoderConfig, UNetConfig, load_vae
from videoldm_core.models.pretrained.stable_diffusion import ImageModel
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.sampling.clip_sampler import Drawing
from videoldm_core.sampling.loading import load_cascade, read_release

CPU = torch.device("cpu")


@pytest.fixture
def release(released):
    return read_release(TINY.roles, released)


@pytest.fixture
def personal(image_model, small_unet: UNetConfig) -> ImageModel:
    """A fine-tune: the image model with other weights."""
    return ImageModel(
        unet=small_unet.build(5),
        vae=load_vae(image_model["vae"]),
        schedule=NoiseSchedule.load(image_model["scheduler"]),
    )


def unet_of(role):
    return role.denoiser.net.unet


def test_stages_around_one_image_model_share_it(release):
    cascade = load_cascade(release, CPU)
    assert unet_of(cascade.first_frame) is unet_of(cascade.key_frames)
    assert unet_of(cascade.first_frame) is not unet_of(cascade.upscaler)
    assert (cascade.key_frames.frames, cascade.shrinks) == (5, 2)


def test_a_fine_tune_takes_the_place_of_the_image_model_alone(release, personal: ImageModel):
    """The interpolator trained its UNet too and keeps it; the upscaler is another image model."""
    plain, cascade = load_cascade(release, CPU), load_cascade(release, CPU, personal=personal)
    for name, is_personal in (
        ("first_frame", True),
        ("key_frames", True),
        ("interpolator", False),
        ("upscaler", False),
    ):
        role = getattr(cascade, name)
        assert role.is_personal is is_personal, name
        assert (unet_of(role) is personal.unet) is is_personal, name
    kept, mine = plain.key_frames.denoiser.net.temporal, cascade.key_frames.denoiser.net.temporal
    assert mine is not None
    assert kept is not None
    found = mine.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in kept.state_dict().items())


def test_an_interpolator_that_trained_temporal_layers_alone_is_personal_too(
    release, personal: ImageModel
):
    published = release.stages["interpolator"]
    stage = published.stage.model_copy(update={"trains": ("temporal",)})
    release.stages["interpolator"] = published.model_copy(update={"stage": stage})
    assert unet_of(load_cascade(release, CPU, personal=personal).interpolator) is personal.unet


def test_a_fine_tune_of_another_image_model_is_refused(release, personal, small_unet):
    wide = small_unet.model_copy(update={"widths": (16, 48)}).build(0)
    other = ImageModel(unet=wide, vae=personal.vae, schedule=personal.schedule)
    with pytest.raises(UserError, match=r"another shape than .*: '.*' is .*, expected .*; give a"):
        load_cascade(release, CPU, personal=other)
    epsilon = ScheduleConfig(predicts="epsilon").build()
    other = ImageModel(unet=personal.unet, vae=personal.vae, schedule=epsilon)
    with pytest.raises(UserError, match="backbone predicts epsilon, .* replace v_prediction"):
        load_cascade(release, CPU, personal=other)


WIDTH = 8


def save_backbone(folder: Path, unet: UNetConfig, image_model: dict[str, Path]) -> Path:
    """A diffusers folder of a fine-tune, with its own text encoder of one layer."""
    unet.build(5).save_pretrained(folder / "unet")
    load_vae(image_model["vae"]).save_pretrained(folder / "vae")
    NoiseSchedule.load(image_model["scheduler"]).save(folder / "scheduler")
    generator = torch.Generator().manual_seed(6)
    layer = "encoder.layers.0"
    shapes = {
        "embeddings.token_embedding.weight": (49408, WIDTH),
        "embeddings.position_embedding.weight": (6, WIDTH),
        "final_layer_norm.weight": (WIDTH,),
        "final_layer_norm.bias": (WIDTH,),
        f"{layer}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
        f"{layer}.mlp.fc1.bias": (4 * WIDTH,),
        f"{layer}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        f"{layer}.mlp.fc2.bias": (WIDTH,),
    }
    for norm in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{layer}.{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes[f"{layer}.self_attn.{name}.weight"] = (WIDTH, WIDTH)
        shapes[f"{layer}.self_attn.{name}.bias"] = (WIDTH,)
    text = folder / "text_encoder"
    text.mkdir()
    tensors = {
        f"text_model.{name}": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    save_file(tensors, text / "model.safetensors")
    described = {
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 6,
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 49408,
    }
    (text / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer").mkdir()
    tokens = {"pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(tokens))
    return folder


def test_spatial_layers_read_the_backbones_text_and_temporal_layers_the_runs(
    released, image_model, small_unet, tmp_path: Path, monkeypatch
):
    """From the request to the network: two towers, two texts, both with their empty text."""
    texts: dict[str, list] = {}
    draw = Drawing.__call__

    def watched(self, role, noise, given, **options):
        seen = texts.setdefault("personal" if role.is_personal else "own", [])

        def note(module, arguments, named):
            temporal = named["temporal_text"]
            seen.append(
                (tuple(arguments[2].shape), temporal if temporal is None else temporal.shape)
            )

        hook = role.denoiser.net.register_forward_pre_hook(note, with_kwargs=True)
        made = draw(self, role, noise, given, **options)
        hook.remove()
        return made

    monkeypatch.setattr(Drawing, "__call__", watched)
    backbone = save_backbone(tmp_path / "backbone", small_unet, image_model)
    few = {"steps": 2, "interpolation_steps": 1, "upscale_steps": 1}
    generate(request_for(released, tmp_path / "v.mp4", backbone=backbone, sampling=few))
    generate(request_for(released, tmp_path / "plain.mp4", sampling=few))
    # Tokens: 6 of the backbone's tower, 4 of the run's. The first frame has two branches of
    # guidance, key frames three.
    assert texts["personal"] == [((2, 6, 8), (2, 4, 8))] * 2 + [((3, 6, 8), (3, 4, 8))] * 2
    assert ((1, 4, 8), None) in texts["own"]
    assert (tmp_path / "v.mp4").read_bytes() != (tmp_path / "plain.mp4").read_bytes()


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_single_stable_diffusion_2_file_predicts_what_the_model_it_replaces_does(
    image_model, tmp_path: Path, monkeypatch, predicts
):
    """The file does not say it, and who samples can say it nowhere."""

    def second(seed: int) -> UNet2DConditionModel:
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=(1, 1),
            use_linear_projection=True,
        )

    parts = image_model | {name: tmp_path / name for name in ("unet", "scheduler")}
    second(0).save_pretrained(parts["unet"])
    ScheduleConfig(predicts=predicts).build().save(parts["scheduler"])
    stages = publish_all(tmp_path / "release", parts)
    tuned, file = second(1), tmp_path / "dreambooth.safetensors"
    vae = AutoencoderConfig(widths=(32, 32, 32, 64), layers_per_block=2, groups=32).build(0)
    tensors = in_the_authors_layout(tuned) | vae_in_the_authors_layout(vae)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    monkeypatch.setattr(generating, "load_text_tower", lambda source, loras: None)
    cascade = load_models(request_for(stages, tmp_path / "v.mp4", backbone=file)).cascade
    assert cascade.key_frames.denoiser.schedule.predicts == predicts
    found, expected = unet_of(cascade.first_frame).state_dict(), tuned.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
