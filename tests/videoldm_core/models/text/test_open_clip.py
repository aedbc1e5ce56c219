"""OpenCLIP's own files give OpenCLIP's own hidden states, with the activation of their training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from videoldm_core.errors import UserError
from videoldm_core.models.text.encoder import TextConfig
from videoldm_core.models.text.open_clip import load_open_clip, locate_open_clip
from videoldm_core.models.text.source import OpenClipText

CAPTIONS = ["a red car overtakes at night", "", "rain " * 200]
SMALL = TextConfig(context_length=16, width=32, heads=2, layers=3, seed=5)
MODEL, QUICK = "videoldm-test-small", "videoldm-test-quick"


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Registers MODEL, and QUICK, which has the other activation."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    text = {
        name: getattr(SMALL, name)
        for name in ("context_length", "vocab_size", "width", "heads", "layers")
    }
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    for name, activation in ((MODEL, {}), (QUICK, {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(config | activation))
        open_clip.add_model_config(folder / f"{name}.json")


def create(**settings: Any) -> Any:
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return open_clip.create_model(MODEL, **settings).eval()


@pytest.fixture(scope="module")
def published(small_models: None) -> Any:
    """An open_clip CLIP of a small registered configuration, as its authors would publish it."""
    return create()


@pytest.fixture(scope="module")
def published_quick(small_models: None) -> Any:
    """The same with the activation of OpenAI's models, and weights that make it felt."""
    model = create(force_quick_gelu=True)
    with torch.no_grad():
        for block in model.transformer.resblocks:
            block.mlp.c_fc.weight.mul_(8)
    return model


@torch.no_grad()
def hidden_states_of(model: Any, captions: list[str], *, layers: int) -> torch.Tensor:
    """open_clip's own text forward up to before pooling, one caption at a time."""
    import open_clip

    states = []
    for caption in captions:
        tokens = open_clip.tokenize([caption], context_length=SMALL.context_length)
        state = model.token_embedding(tokens) + model.positional_embedding
        for block in model.transformer.resblocks[:layers]:
            state = block(state, attn_mask=model.attn_mask)
        states.append(model.ln_final(state))
    return torch.cat(states)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("output", "layers"), [("last", 3), ("penultimate", 2)])
def test_published_weights_give_open_clips_own_states(
    published: Any, tmp_path: Path, suffix: str, output: Any, layers: int
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in published.state_dict().items()}}, path
        )
    else:
        save_file(published.state_dict(), path)
    loaded = load_open_clip(MODEL, path, output=output)
    expected = hidden_states_of(published, CAPTIONS, layers=layers)
    torch.testing.assert_close(loaded.encode(CAPTIONS), expected, rtol=0, atol=1e-6)


def test_half_precision_weights_are_read_in_single_precision(
    published: Any, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in published.state_dict().items()}, path)
    loaded = load_open_clip(MODEL, path)
    expected = hidden_states_of(published, CAPTIONS, layers=3)
    assert loaded.encode(CAPTIONS).dtype == torch.float32
    torch.testing.assert_close(loaded.encode(CAPTIONS), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(("model", "told"), [(MODEL, "quick_gelu"), (QUICK, None)])
def test_openais_models_are_read_with_their_own_activation(
    published_quick: Any, tmp_path: Path, model: str, told: Any
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(published_quick.state_dict(), path)
    expected = hidden_states_of(published_quick, CAPTIONS, layers=3)
    states = load_open_clip(model, path, activation=told).encode(CAPTIONS)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-4)
    wrong = load_open_clip(MODEL, path, activation="gelu").encode(CAPTIONS)
    assert (wrong - expected).abs().max() > 1e-2, "this test could not tell them apart"


def test_a_file_of_a_model_with_two_activations_must_say_which(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which activation its ViT-L-14 was trained with; set act"):
        load_open_clip("ViT-L-14", tmp_path / "openai.pt")
    with pytest.raises(UserError, match="Cannot read"):
        load_open_clip("ViT-L-14-quickgelu", tmp_path / "openai.pt")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was asked of the network, which answers with a file."""
    asked: list[dict[str, Any]] = []

    def download(config: dict[str, Any]) -> str:
        asked.append(config)
        return str(tmp_path / "downloaded.safetensors")

    monkeypatch.setattr("open_clip.download_pretrained", download)
    return asked


@pytest.mark.parametrize(
    ("model", "tag", "activation"),
    [("ViT-L-14", "openai", "quick_gelu"), ("ViT-H-14", "laion2b_s32b_b79k", "gelu")],
)
def test_a_tag_is_downloaded_when_asked_and_knows_its_activation(
    downloads: list, tmp_path: Path, model: str, tag: str, activation: str
) -> None:
    source = OpenClipText(model=model, pretrained=tag, output="penultimate", download=True)
    found = source.located()
    assert len(downloads) == 1
    assert found.pretrained == str(tmp_path / "downloaded.safetensors")
    assert (found.activation, found.output, found.download) == (activation, "penultimate", False)


def test_what_was_downloaded_is_built(downloads: list, tmp_path: Path, published: Any, monkeypatch):
    save_file(published.state_dict(), tmp_path / "downloaded.safetensors")
    monkeypatch.setattr("open_clip.list_pretrained_tags_by_model", lambda model: ["small"])
    tower = OpenClipText(model=MODEL, pretrained="small", download=True).build()
    assert len(downloads) == 1
    expected = hidden_states_of(published, CAPTIONS, layers=3)
    torch.testing.assert_close(tower.encode(CAPTIONS), expected, rtol=0, atol=1e-6)


def test_a_tag_of_another_activation_is_refused(downloads: list) -> None:
    with pytest.raises(UserError, match="was trained with quick_gelu, not with activation=gelu"):
        locate_open_clip("ViT-L-14", "openai", activation="gelu", download=True)
    assert not downloads


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(config: dict[str, Any]) -> str:
        raise ConnectionResetError("no route\nmore")

    monkeypatch.setattr("open_clip.download_pretrained", download)
    with pytest.raises(UserError, match=r"Cannot download ViT-L-14 'openai' \(no route\); give"):
        locate_open_clip("ViT-L-14", "openai", activation=None, download=True)


def test_an_unknown_model_is_named_with_its_nearest() -> None:
    with pytest.raises(
        UserError, match=r"Unknown OpenCLIP model 'ViT-L14'; did you mean 'ViT-L-14'\?"
    ):
        load_open_clip("ViT-L14", Path("openai.pt"))


def test_a_tag_is_not_downloaded_unasked() -> None:
    with pytest.raises(
        UserError, match="'laion2b_s32b_b79k' would be downloaded, which was not asked for"
    ):
        locate_open_clip("ViT-H-14", "laion2b_s32b_b79k", activation=None, download=False)


def test_a_model_with_another_kind_of_text_tower_is_refused() -> None:
    with pytest.raises(UserError, match="'roberta-ViT-B-32' has a text tower with 'hf_"):
        load_open_clip("roberta-ViT-B-32", Path("missing.pt"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No weights '.*none.pt' for videoldm-test-small"):
        locate_open_clip(MODEL, str(tmp_path / "none.pt"), activation=None, download=False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_named(published: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(published.state_dict(), path)
    else:
        save_file(published.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        UserError, match=f"Cannot read '.*cut{suffix}' .*: expected a .safetensors file or"
    ):
        load_open_clip(MODEL, path)


def test_a_file_that_would_run_code_is_refused(published: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(UserError, match=r"Cannot read '.*code\.pt'"):
        load_open_clip(MODEL, tmp_path / "code.pt")
