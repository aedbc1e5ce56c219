"""Run files and overrides: read strictly, every mistake named with the nearest right word."""

from pathlib import Path

import pytest

from flows.config.load import RUNFILES, load_run, sampling_of, store_run, tracking_uri
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from videoldm_core.cascade.annotations import GivenBox
from videoldm_core.errors import UserError


def test_every_committed_run_file_is_valid():
    for path in RUNFILES.glob("*.yaml"):
        assert table_of(load_run(path.stem)).stages


def test_committed_runs_sample_with_as_many_frames_at_once_as_were_trained():
    for path in RUNFILES.glob("*.yaml"):
        run = load_run(path.stem)
        table = table_of(run)
        trained = {table.stage(name).frames for name in ("decoder", "upscaler")}
        assert trained == {sampling_of(run).portion}, path.stem


def test_overrides_are_read_by_the_type_of_their_field():
    overrides = [
        "seed=7",
        "name=2024",
        "world.seconds=1e1",
        "sample.prompt=no",
        "sample.sampling.guidance.text=3",
        "stages.temporal.steps=10",
        "stages.temporal.optimizer.lr=1e-3",
        "stages.interpolator.strides=[8, 2]",
        "stages.predictor.strides=[32]",
        "video.fps=8",
        "out=12",
    ]
    run = load_run("tiny", overrides)
    assert (run.seed, run.name, run.world.seconds, run.sample.prompt) == (7, "2024", 10.0, "no")
    assert run.out == Path("12").absolute()
    table = table_of(run)
    assert table.stage("temporal").steps == 10
    assert table.stage("temporal").optimizer.lr == 1e-3
    assert table.stage("interpolator").strides == (8, 2)
    assert table.video.fps == 8
    assert sampling_of(run).guidance.text == 3.0
    assert sampling_of(run).guidance.context == sampling_of(load_run("tiny")).guidance.context


def test_what_a_video_is_sampled_from_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("street.png", "2024", "a.safetensors", "b.safetensors"):
        (tmp_path / name).write_text("")
    overrides = [
        "sample.first_frame=street.png",
        "sample.backbone=2024",
        "sample.loras=[a.safetensors, b.safetensors]",
        "sample.size=[48, 96]",
        "sample.futures=3",
    ]
    run = load_run("tiny", overrides)
    assert run.sample.first_frame == tmp_path / "street.png"
    assert run.sample.backbone == tmp_path / "2024"
    assert run.sample.loras == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert run.sample.size == (48, 96)
    assert run.sampled_video == run.out / "video-1.mp4"
    assert load_run("tiny").sampled_video.name == "video.mp4"


CAR = "{class: car, box: [0.1, 0.5, 0.3, 0.7]}"
SCENARIOS = "preset=driving_scenarios"


def test_labels_and_boxes_of_the_preset_are_read():
    run = load_run("driving", [SCENARIOS, f"sample.boxes=[{CAR}]", "sample.labels.time=night"])
    assert run.sample.boxes == (GivenBox(name="car", box=(0.1, 0.5, 0.3, 0.7)),)
    assert run.sample.labels == {"time": "night"}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sample.first_frame=none.png", "sample.first_frame = 'none.png' does not exist"),
        ("stages.predictor.strides=[8]", "makes key frames at stride 8, .* 16 apart"),
        (
            "stages.predictor.objective.given.weights=[1, 1, 0]",
            "Every call after its first gives .* 2 fr",
        ),
        ("stages.image.objective.text_dropout=10", "text_dropout = 10: .* less than or equal to 1"),
        (
            "stages.scenario.objective.text_dropout=0",
            "guidance.text = 2 starts from the empty text",
        ),
        ("stages.predictor.objective.label_dropout=0", "= 2 starts from an unknown label 'time'"),
        ("sample.sampling.upscale_noise_timestep=400", "trained with noise below level"),
        ("sample.backbone=none", "sample.backbone = 'none' does not exist; .* file or folder"),
        ("sample.loras=[none.safetensors]", "sample.loras = 'none.safetensors' does not exist"),
        ("sample.size=[0, 64]", "sample.size.0 = 0: .* greater than 0"),
        ("sample.size=[64, -8]", "sample.size.1 = -8: .* greater than 0"),
        ("sample.labels.tim=night", "sample.labels: unknown label 'tim'; did you mean 'time'"),
        ("sample.labels.time=nigt", "sample.labels: unknown value 'nigt' .* mean 'night'"),
        ("sample.boxes=[{class: cat, box: [0, 0, 1, 1]}]", "sample.boxes: unknown class 'cat' of"),
        ("sample.boxes=[{class: car, box: [0, 0, 2, 1]}]", "sample.boxes.0.box.2 = 2"),
        ("sample.boxes=[{class: car, box: [1, 0, 0, 1]}]", "sample.boxes.0.box = .* x0 < x1"),
        ("sample.boxes=[{clas: car, box: [0, 0, 1, 1]}]", "unknown key 'sample.boxes.0.clas'"),
    ],
)
def test_a_sample_that_cannot_be_made_is_one_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_run("driving", [SCENARIOS, override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["sample.labels.time=day", f"sample.boxes=[{CAR}]"])
def test_words_that_a_preset_does_not_have_are_refused(override):
    with pytest.raises(UserError, match="none of these models was trained with"):
        load_run("tiny", [override])


def test_an_override_leaves_the_other_fields_of_its_stage():
    before, after = load_run("tiny"), load_run("tiny", ["stages.temporal.optimizer.lr=1e-3"])
    one, other = table_of(before).stage("temporal"), table_of(after).stage("temporal")
    assert one.optimizer.betas == other.optimizer.betas
    assert one.model_copy(update={"optimizer": other.optimizer}) == other
    assert table_of(before).stage("image") == table_of(after).stage("image")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sed=3", "unknown key 'sed'; did you mean 'seed'"),
        ("videos=", "videos = '': .*an empty path; expected a file or folder"),
        ("out=~nobody-is-called-so/x", "no such user; expected ~ or a path without it"),
        ("world.seconds=.inf", "world.seconds = inf: .* finite"),
        ("price_per_process_hour=.inf", "price_per_process_hour = inf: .* finite"),
        ("world.video=3", "unknown key 'world.video'; did you mean 'videos'"),
        ("zero_stage=7", "zero_stage = 7: Input should be 0, 1, 2 or 3"),
        ("processes=0", "processes = 0: .* greater than or equal to 1"),
        ("seed=many", "seed = 'many': .* valid integer"),
        ("seed", "Override 'seed' is not of the form key=value"),
        ("seed.of=3", "'seed' has no fields of its own"),
        ("preset=tini", "Unknown preset 'tini'; did you mean 'tiny'"),
        ("stages.temporl.steps=3", "Unknown stage 'temporl'; did you mean 'temporal'"),
        ("stages.temporal.step=3", "stages.temporal: unknown key 'step'; did you mean 'steps'"),
        ("stages.temporal.steps=few", "stages.temporal: steps = 'few'"),
        ("video.fsp=3", "video: unknown key 'fsp'; did you mean 'fps'"),
        ("sample.sampling.stps=3", "sample.sampling: unknown key 'stps'; did you mean 'steps'"),
        ("videos=not/there", "videos = 'not/there' is not a folder"),
        ("name=a/b", "name = 'a/b': String should match"),
    ],
)
def test_a_wrong_override_is_one_sentence_with_the_nearest_key(override, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_run("tiny", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("video.fps=0", "video: fps = 0: Input should be greater than 0"),
        ("video.fps=.nan", "video: fps = nan: Input should be"),
        ("video.height=0", "video: height = 0: .* greater than or equal to 1"),
        ("video.upscale=0", "video: upscale = 0: .* greater than or equal to 1"),
        ("video.clip_seconds=0", "video: clip_seconds = 0: .* greater than 0"),
        ("stages.temporal.batch=0", "stages.temporal: batch = 0: .* greater than or equal to 1"),
        ("stages.temporal.frames=0", "stages.temporal: frames = 0: .* greater than or equal to 1"),
        ("stages.temporal.strides=[]", r"stages.temporal: strides = \[\]: .* at least 1 item"),
        ("stages.temporal.strides=[4, 0]", "strides.1 = 0: .* greater than or equal to 1"),
        ("stages.temporal.heldout_clips=0", "heldout_clips = 0: .* greater than or equal to 1"),
        ("stages.temporal.ema=2", "stages.temporal: ema = 2: Input should be less than 1"),
        ("stages.temporal.ema=-0.1", "ema = -0.1: .* greater than or equal to 0"),
        ("stages.temporal.steps=-1", "steps = -1: .* greater than or equal to 0"),
        ("stages.temporal.warmup=-1", "warmup = -1: .* greater than or equal to 0"),
        ("stages.temporal.cooldown=-1", "cooldown = -1: .* greater than or equal to 0"),
        ("stages.upscaler.crop=0", "crop = 0: .* greater than or equal to 1"),
        ("stages.temporal.optimizer.lr=-1", "optimizer.lr = -1: .* greater than 0"),
        ("stages.temporal.optimizer.betas=[0.9, 1]", "optimizer.betas.1 = 1: .* less than 1"),
        (
            "stages.interpolator.objective.given.every=0",
            "every = 0: .* greater than or equal to 2",
        ),
        ("stages.upscaler.objective.given.factor=0", "factor = 0: .* greater than or equal to 1"),
        ("seed=-1", "seed = -1: .* greater than or equal to 0"),
    ],
)
def test_a_number_out_of_bounds_is_one_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_run("tiny", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "video.width=66",
            "video.width = 66: .*'autoencoder' .* 4 times smaller; .*ple of 4",
        ),
        ("video.height=41", "video.height = 41: .*'autoencoder'"),
        ("stages.upscaler.crop=164", "upscaler.crop = 164 is larger than the 160x256 frames"),
        ("stages.upscaler.crop=50", "'upscaler' shrinks its crop of 50x50 by 4; .*multiples of 4"),
        ("stages.upscaler.objective.given.factor=2", "enlarges 2 times, but video.upscale = 4"),
        ("stages.interpolator.frames=6", "given every 4th frame, but sees 6 frames"),
        ("stages.predictor.frames=2", "predictor.frames = 2: up to 2 first frames are given"),
        ("stages.temporal.batch=7", "temporal.batch = 7 cannot be shared by 2 processes"),
        ("stages.temporal.micro_batch=3", "'temporal': micro_batch 3 does not divide the 4 clips"),
        ("processes=3", "autoencoder.batch = 8 cannot be shared by 3 processes"),
    ],
)
def test_numbers_that_do_not_fit_one_another_are_one_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_run("tiny", [override])
    assert "\n" not in str(error.value)


def test_sizes_of_a_brought_image_model_fit_its_autoencoder(tmp_path):
    models = [f"pretrained.{name}={tmp_path}" for name in ("image_model", "image_upscaler")]
    with pytest.raises(UserError, match=r"video.height = 324: .*'image_model' .* 8 times smaller"):
        load_run("text_to_video", [*models, "video.height=324"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("preset: [", "Cannot read the run file .* as YAML"),
        ("- tiny", "holds list; expected 'key: value' lines"),
        ("name: x\nout: y\n", "preset"),
    ],
)
def test_a_broken_run_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        load_run(str(path))
    assert "\n" not in str(error.value)


def test_a_folder_of_videos_that_may_not_be_entered_is_not_called_missing(monkeypatch):
    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_dir", refuse)
    with pytest.raises(UserError, match="Cannot read 'locked/videos': Permission denied"):
        load_run("tiny", ["videos=locked/videos"])


def test_an_unknown_run_file_names_the_nearest():
    with pytest.raises(UserError, match="Unknown run file 'tinny'.*did you mean 'tiny'"):
        load_run("tinny")


def test_the_stored_config_gives_the_same_run_again(tmp_path):
    run = load_run("tiny", [f"out={tmp_path}", "stages.temporal.steps=10"])
    assert RunConfig.model_validate_json(store_run(run).read_text()) == run


def test_tracking_goes_beside_the_run_unless_told_otherwise(tmp_path):
    run = load_run("tiny", [f"out={tmp_path}"])
    assert tracking_uri(run) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(load_run("tiny", ["tracking_uri=http://one:5000"])) == "http://one:5000"


def test_stored_boxes_are_the_same_boxes_again(tmp_path):
    run = load_run("driving", [f"out={tmp_path}", SCENARIOS, f"sample.boxes=[{CAR}]"])
    assert RunConfig.model_validate_json(store_run(run).read_text()) == run


def test_a_run_file_nested_without_end_is_one_sentence(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 5000)
    with pytest.raises(UserError, match="Cannot read the run file .*deep.yaml' as YAML"):
        load_run(str(path))
