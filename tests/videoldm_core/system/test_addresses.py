"""Addresses: scheme, host, port and path; whatever else is refused, and never repeated."""

import pickle

import pytest

from videoldm_core.errors import UserError, reason_of, without_secrets
from videoldm_core.system.addresses import checked_address

PLAIN = [
    "http://one",
    "http://one:5000",
    "https://mlflow.example.org:443/team/a",
    "https://mlflow.example.org/",
    "http://[::1]:5000/x",
    "http://münchen.example:5000",
    "postgresql://db/mlflow",
    "mysql+pymysql://db_1:3306/mlflow",
    "sqlite:////data/runs/a b/mlflow.db",
    "sqlite:////data/a%3Fb@c/mlflow.db",
    "sqlite:///mlflow.db",
    "file:///data/me@here/mlruns",
    "s3://bucket/prefix/of/it",
    "databricks://profile",
]
SECRET = [
    "http://bob:s3cret@one:5000",
    "http://s3cret@one",
    "http://:s3cret@one",
    "http://bob:s3/cret@one",
    "http://bob:12/s3cret@one",
    "http://bob:s3@cret@one",
    "http://bob%3As3cret%40one",
    "bob:s3cret@one:5000",
    "//bob:s3cret@one",
    "http:/bob:s3cret@one",
    "http:\\\\bob:s3cret@one",
    "http://one\\@bob:s3cret",
    "http://one?user=bob&password=s3cret",
    "http://one:5000/?token=s3cret",
    "http://one/path;password=s3cret",
    "http://one/path#s3cret",
    "postgresql://db/mlflow?user=bob&password=s3cret",
    "postgresql:///mlflow?password=s3cret",
    "mssql+pyodbc:///?odbc_connect=PWD=s3cret",
    "sqlite:////data/mlflow.db?key=s3cret",
    "sqlite:////data/mlflow.db#s3cret",
    "sqlite:///mlflow.db;key=s3cret",
    "file:///data/mlruns?token=s3cret",
    "s3://AKIA:s3cret@bucket/prefix",
    "s3://bucket/prefix?secret=s3cret",
    "http://one\n\tAuthorization: s3cret",
    "http://one:s3cret",
    "s3cret",
    "",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_address_is_taken_as_it_is(text):
    assert checked_address(text, what="tracking_uri", credentials="give them as X") == text


@pytest.mark.parametrize("text", SECRET)
def test_whatever_is_more_is_refused_and_not_repeated(text):
    with pytest.raises(UserError) as refused:
        checked_address(text, what="tracking_uri", credentials="give them as MLFLOW_TRACKING_TOKEN")
    said = str(refused.value)
    assert said.startswith("tracking_uri is not just SCHEME://HOST:PORT/PATH (it is not repeated")
    assert said.endswith("give them as MLFLOW_TRACKING_TOKEN.")
    assert "s3cret" not in said
    assert "bob" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer of http://bob:s3cret@one:5000 (refused)", "of http://...@one:5000 (refused)"),
        ("'http://bob:it's3cret@one/x'", "'http://...@one/x'"),
        ("http://bob:s3/cr@et@one", "http://...@one"),
        ("http://one/x?token=s3cret&a=b, again", "http://one/x?... again"),
        ("http://one/x;token=s3cret", "http://one/x;..."),
        ("http://one/x#s3cret", "http://one/x#..."),
        ("'s3:/key:s3cret@bucket/x' is not a folder", "'s3:/...@bucket/x' is not a folder"),
        ("http://a:s3cret@b then http://c:s3cret@d", "http://...@b then http://...@d"),
        ("https://one:5000/path; check it", "https://one:5000/path; check it"),
        ("'/data/a:b@c d' and C:/x, why? or #3; no", "'/data/a:b@c d' and C:/x, why? or #3; no"),
        ("sqlite:////data/a@b/mlflow.db is locked", "sqlite:////data/a@b/mlflow.db is locked"),
    ],
)
def test_addresses_in_a_message_are_shown_without_what_may_be_secret(text, shown):
    assert shown in without_secrets(text)
    assert "s3cret" not in without_secrets(text)
    assert without_secrets(without_secrets(text)) == without_secrets(text)


def test_no_sentence_and_no_librarys_reason_repeats_a_secret():
    error = UserError("Cannot read 'http://bob:s3cret@one'.")
    assert str(error) == "Cannot read 'http://...@one'."
    assert "s3cret" not in repr(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert reason_of(OSError("no route to http://bob:s3cret@one.")) == "no route to http://...@one"
