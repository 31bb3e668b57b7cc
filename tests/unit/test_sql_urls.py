"""Database URLs: what they mean, and that no password in one is ever shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import sql
from inference_service.errors import BadInput
from inference_service.sql import urls


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/log.db", "/var/log.db"),
        ("sqlite:////var/log.db", "/var/log.db"),
        ("sqlite:///a%20b/l%25.db", "/a b/l%.db"),
    ],
)
def test_a_sqlite_url_names_a_file_by_its_absolute_path(url: str, path: str) -> None:
    assert urls.sqlite_path(url) == Path(path)


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1))
def test_any_file_has_a_url_that_means_it(name: str) -> None:
    path = Path("/folder") / name / "x.db"
    assert urls.sqlite_path(sql.sqlite_url(path)) == path


@pytest.mark.parametrize(
    "url",
    ["", "requests.db", "mysql://u:planted@h/d", "sqlite://", "sqlite:///", "sqlite://x.db", "postgresql:planted"],
)
def test_other_urls_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        sql.open(url)
    assert caught.value.type == "invalid_database_url"
    assert "planted" not in str(caught.value.document())


@given(st.text(min_size=1).filter(lambda text: text.isprintable()), st.booleans())
def test_a_password_is_never_shown_and_never_taken_from_a_command_line(password: str, in_query: bool) -> None:
    spelled = quote("pw-" + password, safe="")
    url = f"postgresql://ana@db:5433/usage?sslmode=disable&password={spelled}"
    if not in_query:
        url = f"postgresql://ana:{spelled}@db:5433/usage?sslmode=disable"
    assert sql.without_password(url) == "postgresql://ana@db:5433/usage?sslmode=disable"
    assert sql.open(url).shown == "postgresql://ana@db:5433/usage?sslmode=disable"
    with pytest.raises(BadInput) as caught:
        sql.refuse_password(url, "--database", "TAO_GATEWAY_DATABASE")
    assert "pw-" not in str(caught.value.document())
    assert "PGPASSWORD" in caught.value.fix


@pytest.mark.parametrize(
    "url", ["postgresql://a:planted@[h/d", "postgresql://a:planted@h:port/d", "postgresql://a:p@h/%zz"]
)
def test_a_url_that_nobody_understands_shows_nothing_of_a_password(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        sql.open(url)
    assert "planted" not in str(caught.value.document())


def test_a_url_without_a_password_may_be_given() -> None:
    assert sql.refuse_password("postgresql://ana@db/usage", "--database", "X") == "postgresql://ana@db/usage"
    assert sql.refuse_password("sqlite:///x.db", "--database", "X") == "sqlite:///x.db"
