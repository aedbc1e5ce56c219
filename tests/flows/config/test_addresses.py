"""Addresses in a run: nothing that may be secret is taken, kept or repeated."""

import pytest

from flows.config.load import load_run
from videoldm_core.errors import UserError


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:s3cret@one:5000",
        "postgresql://bob:s3cret@db/mlflow",
        "postgresql://db/mlflow?user=bob&password=s3cret",
        "http://one:5000/?token=s3cret",
        "http://one:5000/#s3cret",
        "sqlite:///mlflow.db?key=s3cret",
        "bob:s3cret@one:5000",
    ],
)
def test_a_password_in_the_tracking_address_is_refused_and_not_repeated(uri):
    with pytest.raises(UserError, match="give the address alone, .*MLFLOW_TRACKING_PASS") as error:
        load_run("tiny", [f"tracking_uri={uri}"])
    assert "s3cret" not in str(error.value)
    assert "bob" not in str(error.value)


ADDRESS = "https://bob:s3cret@one/x?token=s3cret"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (f"videos={ADDRESS}", "videos = .* an address; expected a file or folder of this machine"),
        (f"out={ADDRESS}", "out = .* an address; expected"),
        (f"sample.loras=['{ADDRESS}']", "sample.loras.0 = .* an address; expected"),
        (f"pretrained.image={ADDRESS}", "pretrained.image holds an address with more than"),
        (f"text.pretrained={ADDRESS}", "text.pretrained holds an address with more than"),
        (f"stages.image.objective.loras=['{ADDRESS}']", "stages.image.objective.loras.0 holds an"),
        (f"seed={ADDRESS}", "seed = 'https://...@one/x"),
        (f"seed={ADDRESS.replace('s3', 's' * 200 + '3')}", "seed = 'https://...@one/x"),
        (f"tracking_uri=[{ADDRESS}]", "tracking_uri is not just SCHEME://HOST:PORT/PATH"),
        (f"tracking_uri={{a: [{ADDRESS}]}}", "tracking_uri is not just SCHEME://HOST:PORT/PATH"),
        (ADDRESS, "unknown key 'https://...@one/x"),
        (ADDRESS.partition("?")[0], "Override 'https://...@one/x' is not of the form key=value"),
        (f"name.x={ADDRESS}", "'name' has no fields of its own"),
    ],
)
def test_a_secret_in_any_other_address_is_refused_and_not_repeated(override, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_run("tiny", [override])
    assert "s3cret" not in str(error.value)


def test_a_broken_run_file_is_not_repeated_where_it_may_hold_a_secret(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tracking_uri: http://bob:s3cret: @one\n")
    with pytest.raises(UserError, match=r"as YAML: mapping values .* line 1, column 32") as error:
        load_run(str(path))
    assert "s3cret" not in str(error.value)


def test_a_prompt_may_be_about_an_address():
    run = load_run("tiny", ["sample.prompt=a sign says http://one?x=1 in the rain"])
    assert run.sample.prompt == "a sign says http://one?x=1 in the rain"
