"""Records: frozen, exact about their keys, and errors that name the place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from videoldm_core.errors import ShardError, UserError
from videoldm_core.records import Record, load_record, nearest, parse_record


class Wheel(Record):
    inches: int
    material: str = "rubber"


class Car(Record):
    colour: str
    wheel: Wheel = Wheel(inches=17)


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Car(colour="red").colour = "blue"  # type: ignore[misc]


def test_a_record_is_the_same_after_json():
    car = Car(colour="red", wheel=Wheel(inches=19))
    assert Car.model_validate_json(car.model_dump_json()) == car
    assert parse_record(Car, car.model_dump(mode="json"), where="x") == car


def test_an_unknown_key_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"^car.yaml: unknown key 'color'; did you mean 'colour'\?"):
        parse_record(Car, {"colour": "red", "color": "blue"}, where="car.yaml")


def test_an_unknown_key_deep_inside_is_named_by_its_path():
    values = {"colour": "red", "wheel": {"inches": 3, "inch": 4}}
    with pytest.raises(UserError, match=r"unknown key 'wheel\.inch'; did you mean 'inches'\?"):
        parse_record(Car, values, where="car.yaml")


def test_a_wrong_value_is_shown_with_its_place():
    with pytest.raises(UserError, match=r"^car.yaml: wheel\.inches = 'big': .*integer"):
        parse_record(Car, {"colour": "red", "wheel": {"inches": "big"}}, where="car.yaml")


def test_a_misspelt_required_key_is_named_as_unknown_not_as_missing():
    with pytest.raises(UserError, match=r"unknown key 'color'; did you mean 'colour'\?"):
        parse_record(Car, {"color": "red"}, where="car.yaml")


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"^car.yaml: key 'wheel\.inches' is missing"):
        parse_record(Car, {"colour": "red", "wheel": {}}, where="car.yaml")


def test_values_that_are_no_mapping_are_refused():
    with pytest.raises(UserError, match="car.yaml: value = 5"):
        parse_record(Car, 5, where="car.yaml")


def test_a_word_unlike_all_others_gets_the_list():
    assert nearest("zzz", ["temporal", "decoder"]) == "known: decoder, temporal."
    assert nearest("tempral", ["temporal", "decoder"]) == "did you mean 'temporal'?"


def test_shard_errors_are_user_errors():
    assert issubclass(ShardError, UserError)


def test_a_file_is_read_as_a_record(tmp_path: Path):
    (tmp_path / "car.json").write_text('{"colour": "bleu é"}', encoding="utf-8")
    assert load_record(Car, tmp_path / "car.json", what="car file").colour == "bleu é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^No car file at '.*car\.json' \(No such file"),
        (b"{", r"^The car file '.*car\.json' is not JSON \(.*; write it again\.$"),
        (b"\xff\xfe", r"^The car file '.*car\.json' is not JSON"),
        (b'{"colour": 3}', r"car\.json': colour = 3"),
    ],
)
def test_a_file_that_is_no_record_is_reported_in_one_sentence(tmp_path: Path, content, message):
    path = tmp_path / "car.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_record(Car, path, what="car file")
