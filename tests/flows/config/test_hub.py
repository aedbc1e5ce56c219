"""Models of the hub: how they are named, that a run keeps its commit, which files are fetched."""

import json
from pathlib import Path

import pytest

from flows.config.hub import HubModel, fetch, hub_model, pinned, wanted_files
from flows.config.load import load_run
from flows.config.pretrained import brought_model, content_of, local_stage
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from tests.flows.fake_hub import COMMIT, LATER, FakeHub, files_below
from videoldm_core.errors import UserError

WITHOUT_UPSCALER = "without=[image_upscaler, upscaler]"


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("hub:owner/name", HubModel("owner/name")),
        ("hub:owner/name@main", HubModel("owner/name", "main")),
        ("hub:o.w_n-er/na.me@refs/pr/1", HubModel("o.w_n-er/na.me", "refs/pr/1")),
        (f"hub:owner/name@{COMMIT}", HubModel("owner/name", COMMIT)),
    ],
)
def test_a_model_may_be_named_with_a_revision(source, model):
    assert hub_model(source, what="x") == model
    run = load_run("text_to_video", [f"pretrained.image_model={source}", WITHOUT_UPSCALER])
    assert brought_model(table_of(run).stage("image_model")).source == source


@pytest.mark.parametrize(
    "source",
    [
        "hub:bob:s3cret@owner/name",
        "hub:owner/name?token=s3cret",
        "hub:owner/name@main#s3cret",
        "hub:https://bob:s3cret@huggingface.co/owner/name",
        "hub:../s3cret/name",
        "hub:owner/name@../s3cret",
        "hub:s3cret",
    ],
)
def test_any_other_name_is_refused_and_not_repeated(source):
    said = r"pretrained.image_model (begins with .*OWNER/NAME@REVISION|holds an address)"
    with pytest.raises(UserError, match=said) as error:
        load_run("text_to_video", [f"pretrained.image_model={source}", WITHOUT_UPSCALER])
    assert "s3cret" not in str(error.value)


@pytest.fixture
def hub(monkeypatch, stable_diffusion: Path) -> FakeHub:
    return FakeHub(monkeypatch, stable_diffusion, files_below(stable_diffusion))


def run_of(out: Path, source: str = "hub:owner/name") -> RunConfig:
    named = f"pretrained.image_model={source}"
    return load_run("text_to_video", [f"out={out}", named, WITHOUT_UPSCALER])


def test_a_run_keeps_the_commit_that_it_first_took_and_says_when_its_branch_moves(hub, tmp_path):
    run, remarks = pinned(run_of(tmp_path))
    assert run.pretrained == {"image_model": f"hub:owner/name@{COMMIT}"}
    assert remarks == []
    assert json.loads((tmp_path / "hub.json").read_text()) == {
        "commits": {"hub:owner/name": COMMIT}
    }
    hub.commits[None] = LATER
    again, remarks = pinned(run_of(tmp_path))
    assert again == run
    (remark,) = remarks
    assert f"hub:owner/name is at commit {LATER} now; this run keeps {COMMIT}" in remark
    assert f"Delete '{tmp_path / 'hub.json'}' to take what is there now" in remark
    (tmp_path / "hub.json").unlink()
    assert pinned(run_of(tmp_path))[0].pretrained == {"image_model": f"hub:owner/name@{LATER}"}


def test_everything_of_a_run_is_fetched_from_one_commit_which_its_stage_records(hub, tmp_path):
    run, _ = pinned(run_of(tmp_path))
    hub.commits[None] = LATER  # between two steps
    objective = brought_model(local_stage(table_of(run).stage("image_model")))
    assert objective.origin == f"hub:owner/name@{COMMIT}"
    assert objective.source == str(hub.folder)
    ((name, options),) = hub.asked
    assert (name, options["revision"]) == ("owner/name", COMMIT)


def test_another_commit_makes_the_stage_due_and_the_same_one_does_not(hub, tmp_path):
    def settings(run: RunConfig) -> dict:
        return content_of(brought_model(table_of(run).stage("image_model")))

    first = settings(pinned(run_of(tmp_path / "a"))[0])
    assert settings(pinned(run_of(tmp_path / "b"))[0]) == first
    hub.commits[None] = LATER
    assert settings(pinned(run_of(tmp_path / "a"))[0]) == first
    assert settings(pinned(run_of(tmp_path / "c"))[0]) != first


def test_a_commit_is_taken_at_its_word_and_a_branch_is_looked_up(hub, tmp_path):
    hub.commits["fp16"] = LATER
    assert pinned(run_of(tmp_path, "hub:owner/name@fp16"))[0].pretrained == {
        "image_model": f"hub:owner/name@{LATER}"
    }
    hub.is_there = False
    run, remarks = pinned(run_of(tmp_path, f"hub:owner/name@{COMMIT}"))
    assert run.pretrained == {"image_model": f"hub:owner/name@{COMMIT}"}
    assert remarks == []


def test_a_hub_that_does_not_answer_is_needed_only_for_a_commit_that_is_not_known(
    hub, tmp_path, monkeypatch
):
    known, _ = pinned(run_of(tmp_path / "known"))
    hub.is_there = False
    assert pinned(run_of(tmp_path / "known")) == (known, [])

    hub.folder = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    assert pinned(run_of(tmp_path / "cached"))[0].pretrained == known.pretrained

    def missing(name: str, **options: object) -> str:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
    with pytest.raises(UserError, match=r"Cannot fetch 'owner/name' from the hub \(no route"):
        pinned(run_of(tmp_path / "unknown"))
    assert not (tmp_path / "unknown" / "hub.json").exists()


def test_a_model_that_a_stages_own_field_names_is_pinned_too(hub, tmp_path):
    field = "stages.image_model.objective.source=hub:owner/name"
    run, _ = pinned(load_run("text_to_video", [f"out={tmp_path}", field, WITHOUT_UPSCALER]))
    source = brought_model(table_of(run).stage("image_model")).source
    assert source == f"hub:owner/name@{COMMIT}"


def test_a_run_without_a_model_of_the_hub_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.model_info", None)
    run = load_run("tiny", [f"out={tmp_path}"])
    assert pinned(run) == (run, [])
    assert not (tmp_path / "hub.json").exists()


BEST = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (BEST, BEST),
        (
            [*BEST, "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.onnx"],
            BEST,
        ),
        (
            [
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.bin",
                "text_encoder/pytorch_model.bin",
                "safety_checker/pytorch_model.bin",
            ],
            [
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.bin",
                "text_encoder/pytorch_model.bin",
            ],
        ),
        (
            [
                "unet/diffusion_pytorch_model.safetensors.index.json",
                "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
                "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
                "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                "unet/diffusion_pytorch_model.non_ema-00001-of-00002.safetensors",
                "unet/diffusion_pytorch_model-00001-of-00002.bin",
                BEST[1],
            ],
            [
                "unet/diffusion_pytorch_model.safetensors.index.json",
                "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
                "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
                BEST[1],
            ],
        ),
    ],
)
def test_of_a_repository_the_best_weights_are_fetched_and_no_others(files, wanted):
    settings = ["unet/config.json", "tokenizer/tokenizer_config.json"]
    others = ["README.md", "v1-5-pruned.ckpt", "tokenizer/vocab.json", "model_index.json"]
    found = wanted_files([*files, *settings, *others], "owner/name")
    assert found == [*settings, *wanted]


@pytest.mark.parametrize("files", [["sd.safetensors"], ["unet/weights.onnx", "unet/config.json"]])
def test_a_repository_without_readable_weights_is_one_sentence(files, monkeypatch, tmp_path):
    hub = FakeHub(monkeypatch, tmp_path, files)
    with pytest.raises(UserError, match="'owner/name' of the hub has no weights of the unet that"):
        fetch(HubModel("owner/name"))
    assert not hub.asked


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch, tmp_path):
    hub = FakeHub(monkeypatch, tmp_path, BEST)

    class TransportError(Exception):
        pass

    def fail(name: str, **options: object) -> None:
        if options.get("local_files_only"):
            raise FileNotFoundError("not in the cache")
        raise TransportError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"Cannot fetch 'owner/name' .*\(no route to host\)"):
        fetch(HubModel("owner/name"))
    monkeypatch.setattr("huggingface_hub.model_info", fail)
    with pytest.raises(UserError, match=r"Cannot fetch 'owner/name' .*\(no route to host\)"):
        fetch(HubModel("owner/name"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    assert fetch(HubModel("owner/name")) == tmp_path, "what was fetched before is used"
    assert hub.asked == [("owner/name", {"revision": None, "local_files_only": True})]
