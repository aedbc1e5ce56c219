"""A row whose fields do not fit its objective is refused, naming field, value and expectation."""

import pytest

from tests.videoldm_core.tables import PRESETS, changed
from videoldm_core.cascade.checks.rows import check_rows
from videoldm_core.cascade.stage import preset
from videoldm_core.errors import UserError
from videoldm_core.evaluation.image import BeatsLinearDenoiser
from videoldm_core.evaluation.video import UsesKeyFrames


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_of_a_preset_fits_its_objective(name):
    assert check_rows(preset(name)) is None, "no sentence is raised"


@pytest.mark.parametrize(
    ("stage", "trains", "expected"),
    [
        ("temporal", ("temporl",), r"\['temporl'\].*some of \['unet', 'tokens', 'temporal'\]"),
        ("temporal", (), r"\[\].*some of"),
        ("temporal", ("unet",), r"'temporal' among them, as alpha is set"),
        ("image", ("unet", "temporal"), r"some of \['unet', 'tokens'\]"),
        ("decoder", ("vae",), r"expected \['vae', 'temporal_decoder'\]"),
        ("autoencoder", ("vae", "unet"), r"expected \['vae'\]"),
    ],
)
def test_parts_that_an_objective_does_not_train_are_refused(stage, trains, expected):
    with pytest.raises(UserError, match=rf"stages\.{stage}\.trains = .*{expected}"):
        check_rows(changed("tiny", stage, trains=trains))


@pytest.mark.parametrize("trains", [("temporal",), ("unet", "temporal")])
def test_an_interpolator_may_train_its_temporal_layers_or_all(trains):
    table = changed("text_to_video", "interpolator", trains=trains)
    assert check_rows(table) is None, "no sentence is raised"


@pytest.mark.parametrize(
    ("stage", "fields", "expected"),
    [
        ("decoder", {"reads": "latents"}, "reads = 'latents' .* expected 'pixels'"),
        ("temporal", {"full_size": True}, "full_size = True .* expected false"),
        ("decoder", {"crop": 64}, "crop = 64 .* denoisers of pixels alone train on patches"),
        ("autoencoder", {"crop": 64}, "crop = 64 .* denoisers of pixels alone"),
        ("temporal", {"crop": 64}, "crop = 64 .* denoisers of pixels alone"),
    ],
)
def test_frames_that_an_objective_does_not_read_are_refused(stage, fields, expected):
    with pytest.raises(UserError, match=rf"stages\.{stage}\.{expected}"):
        check_rows(changed("tiny", stage, **fields))


@pytest.mark.parametrize(
    ("preset_name", "stage", "proof", "expected"),
    [
        ("tiny", "predictor", UsesKeyFrames(), r"\(denoising, given first_frames\).*'uses_first"),
        ("tiny", "temporal", BeatsLinearDenoiser(), "expected 'beats_image_model'"),
        ("text_to_video", "image_upscaler", BeatsLinearDenoiser(), "expected 'beats_bilinear'"),
    ],
)
def test_a_proof_of_another_kind_of_model_is_refused(preset_name, stage, proof, expected):
    with pytest.raises(UserError, match=rf"stages\.{stage}\.proves\.kind = .*{expected}"):
        check_rows(changed(preset_name, stage, proves=proof))
