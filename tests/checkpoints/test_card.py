"""Model cards: what goes on to the result, and cards that say nothing without harm."""

import dataclasses
import os
import time

import pytest

from mlx_depth.checkpoints.card import Card, read_card
from mlx_depth.registry import MODELS

BASE = "depth-anything/Depth-Anything-V2-Small-hf"
CARDS = {
    "as the Hub writes it": (f"---\nlicense: mit\nbase_model: {BASE}\n---\n# rooms\n", Card("MIT", (BASE,))),
    "several bases": (f"---\nbase_model:\n- {BASE}\n- lab/rooms\n- {BASE}\n---\n", Card(None, (BASE, "lab/rooms"))),
    "no commerce": ("---\nlicense: cc-by-nc-4.0\n---\n", Card("CC-BY-NC-4.0")),
    "in a list": ("---\nlicense: [apache-2.0]\n---\n", Card("Apache-2.0")),
    "two in a list": ("---\nlicense: [apache-2.0, mit]\n---\n", Card()),
    "of their own": ("---\nlicense: other\nlicense_name: lab-research\n---\n", Card("lab-research")),
    "other": ("---\nlicense: other\n---\n", Card()),
    "Windows": ("\ufeff---\r\nlicense: mit\r\n---\r\ntext", Card("MIT")),
    "openrail": ("---\nlicense: openrail++\n---\n", Card("openrail++")),
    "no front matter": ("# license: mit\n", Card()),
    "not closed": ("---\nlicense: mit\n", Card()),
    "broken": ("---\nlicense: [mit\n---\n", Card()),
    "a list": ("---\n- license\n---\n", Card()),
    "a date that is none": ("---\nd: 2020-99-99\nlicense: mit\n---\n", Card()),
    "a number": ("---\nlicense: 3\nbase_model: 4\n---\n", Card()),
    "nested": ("---\nlicense: {a: b}\nbase_model: [[x]]\n---\n", Card()),
    "deep": ("---\nlicense: " + "[" * 5000 + "\n---\n", Card()),
    "an object": ("---\nlicense: !!python/object/apply:os.system [id]\n---\n", Card()),
    "lines and escapes": ('---\nlicense: "mit\\nbase: x"\nbase_model: "\\e[2Ja/b"\n---\n', Card()),
    "long": (f"---\nlicense: {'x' * 9999}\n---\n", Card()),
    "empty": ("", Card()),
}


@pytest.mark.parametrize("case", CARDS)
def test_cards(case, tmp_path):
    text, expected = CARDS[case]
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_card(tmp_path) == expected


def test_a_card_that_is_none(tmp_path):
    assert read_card(tmp_path) == Card()
    os.mkfifo(tmp_path / "README.md")
    assert read_card(tmp_path) == Card()


def test_aliases_that_would_grow_without_bound(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)), "license: mit"]
    (tmp_path / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    start = time.perf_counter()
    assert read_card(tmp_path).license == "MIT"
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("license", "commercial"),
    [("MIT", True), ("CC-BY-NC-SA-4.0", False), ("lab-research", False), ("sync-1.0", True), (None, False)],
)
def test_what_a_license_of_a_card_allows(license, commercial):
    assert dataclasses.replace(MODELS["mlx-depth-demo"], license=license).commercial is commercial
