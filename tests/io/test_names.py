"""Names that every file system takes, and that none takes for one another."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_depth.io.formats import FORMATS, ending
from mlx_depth.io.names import fitting, sameness

ENDINGS = [ending(name) for name in FORMATS]


@given(st.text(st.characters(exclude_characters="/\0"), max_size=400))
def test_every_ending_fits_behind_a_name(stem):
    short = fitting(stem)
    assert all(len(f"{short}-9999{end}".encode("utf-8", "surrogatepass")) <= 255 for end in ENDINGS)
    assert short == stem or len(stem.encode("utf-8", "surrogatepass")) > 223


def test_long_names_with_the_same_beginning_stay_different():
    names = {fitting("p" * 300 + end) for end in ("=w640", "=w1280", "")}
    assert len(names) == 3
    assert all(name.startswith("p" * 200) for name in names)


@pytest.mark.parametrize(
    ("one", "other"),
    [("A/b", "a/B"), ("Käse", unicodedata.normalize("NFD", "KÄSE")), ("Straße", "STRASSE"), ("é", "e\u0301")],
)
def test_a_mac_takes_them_for_one(one, other):
    assert sameness(Path(one)) == sameness(Path(other))


def test_others_differ():
    assert len({sameness(Path(name)) for name in ("a", "b", "é", "e", "a/b", "a b")}) == 6
