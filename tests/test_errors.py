"""Foreign text in messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_depth.errors import MAX_QUOTED, printable


@given(st.text(max_size=2000))
def test_foreign_text_is_short_and_steers_no_terminal(text):
    shown = printable(text)
    assert len(shown) <= MAX_QUOTED
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode()  # no halves of characters


@pytest.mark.parametrize("text", ["", "photo.jpg", "Käse 日本 📷.jpg", "9.41\u202fAM.png", "全角\u3000空白.jpg"])
def test_what_people_write_stays_as_it_is(text):
    assert printable(text) == text


def test_what_is_escaped():
    assert printable("a\x1b[2J\n\u202eb\udcff") == r"a\x1b[2J\n\u202eb\udcff"


def test_both_ends_of_long_text_are_kept():
    shown = printable("begin" + "x" * 10_000 + ".jpg")
    assert shown.startswith("begin")
    assert shown.endswith(".jpg")
