import base64
import json
import re
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from clouds import cloud_of
from scenes import BOXES, Rendered, boxes

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.colormaps import apply_colormap
from mlx_depth.io.scene import viewer
from mlx_depth.io.scene.viewer import write_viewer

SIZE = (120, 160)  # of the photos
WINDOW = (360, 640)  # of another shape than the photos
FACTS = {"kind": "metric", "unit": "m", "model": "depth-anything-3-base", "license": "Apache-2.0", "revision": "abc123"}
EVIL = '</script><script>document.title="caught"</script><!--<script> & "quoted" {{three}}'
BACKGROUND = (0x14, 0x17, 0x1C)


@cache
def scene_of() -> Rendered:
    return boxes(3, SIZE)


def depth_colors_of(cloud) -> np.ndarray:
    """By the distance from the world's origin."""
    distance = np.linalg.norm(cloud.points, axis=1)
    return apply_colormap(np.clip(distance * 25, 0, 255).astype(np.uint8), "turbo")


def write(path: Path, scene=None, **changes) -> Path:
    cloud = cloud_of(scene_of() if scene is None else scene)
    given = {
        "points": cloud.points,
        "colors": cloud.colors,
        "confidence": cloud.confidence,
        "depth_colors": depth_colors_of(cloud),
        "cameras": cloud.cameras,
        "facts": FACTS,
    }
    return write_viewer(path, **(given | changes))


def small(count: int = 4) -> dict:
    """A few points of one color."""
    points = np.random.RandomState(0).rand(count, 3).astype(np.float32)
    colors = np.full((count, 3), 200, np.uint8)
    given = {"points": points, "colors": colors, "depth_colors": colors, "cameras": []}
    return given | {"confidence": None}


class Page(HTMLParser):
    """What a browser would find: the text of each element that has an id, and all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, str] = {}
        self._open = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = dict(attributes).get("id", tag)

    def handle_data(self, data):
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None

    def array(self, name: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(self.texts[name]), dtype).reshape(-1, 3)


# The file


def test_the_page_holds_the_points_in_the_axes_of_webgl(tmp_path):
    page = Page(write(tmp_path / "a.html", confidence=None))
    cloud = cloud_of(scene_of())
    np.testing.assert_array_equal(page.array("positions", "<f4"), cloud.points * [1, -1, -1])
    np.testing.assert_array_equal(page.array("photo-colors", "u1"), cloud.colors)
    np.testing.assert_array_equal(page.array("depth-colors", "u1"), depth_colors_of(cloud))
    assert page.array("camera-lines", "<f4").shape == page.array("camera-colors", "u1").shape == (3 * 16, 3)


def test_confidence_sorts_the_points_and_keeps_them_together(tmp_path):
    cloud = cloud_of(scene_of())
    page = Page(write(tmp_path / "a.html"))
    order = np.argsort(-cloud.confidence, kind="stable")
    np.testing.assert_array_equal(page.array("positions", "<f4"), cloud.points[order] * [1, -1, -1])
    np.testing.assert_array_equal(page.array("photo-colors", "u1"), cloud.colors[order])
    np.testing.assert_array_equal(page.array("depth-colors", "u1"), depth_colors_of(cloud)[order])
    slider = json.loads(page.texts["scene"])["confidence"]
    assert len(slider["thresholds"]) == len(slider["counts"]) == 100
    assert slider["counts"][0] == len(cloud.points)
    for step, (threshold, count) in enumerate(zip(slider["thresholds"], slider["counts"], strict=True)):
        assert (cloud.confidence >= np.float32(threshold)).sum() == count >= (100 - step) / 100 * len(cloud.points)


def test_points_of_one_confidence_are_shown_all_or_not_at_all(tmp_path):
    confidence = np.repeat(np.array([1, 5], np.float32), [60, 40])
    path = write_viewer(tmp_path / "a.html", **(small(100) | {"confidence": confidence}), facts={})
    slider = json.loads(Page(path).texts["scene"])["confidence"]
    assert slider["counts"] == [100] * 60 + [40] * 40


def test_the_facts_are_in_the_page(tmp_path):
    facts = FACTS | {"image": "Käse 日本 \udcff </script>", "title": EVIL}
    page = Page(write(tmp_path / "a.html", facts=facts))
    assert json.loads(page.texts["mlx_depth"]) == facts


def test_many_points_are_thinned_evenly_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_POINTS", 1000)
    cloud = cloud_of(scene_of())
    total = len(cloud.points)
    first, second = (write(tmp_path / name, confidence=None) for name in ("a.html", "b.html"))
    page = Page(first)
    points = page.array("positions", "<f4") * [1, -1, -1]
    assert len(points) == 1000
    rows = [np.flatnonzero((cloud.points == point).all(axis=1))[0] for point in points.astype(np.float32)]
    assert rows[0] == 0
    assert set(np.diff(rows)) <= {total // 1000, total // 1000 + 1}
    assert f"<dt>Points</dt><dd>1,000 of {total:,}, thinned evenly</dd>" in first.read_text("utf-8")
    assert first.read_text("utf-8").replace(">a<", ">b<") == second.read_text("utf-8")


def test_nothing_is_fetched_and_only_our_scripts_run(tmp_path):
    """By the page's own words; the browser's are below."""
    page = Page(write(tmp_path / "a.html", facts=FACTS | {"title": EVIL}))
    (policy,) = [tag["content"] for name, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not [tag for _, tag in page.tags if {"src", "href", "action", "background", "poster"} & set(tag)]
    assert not [tag for _, tag in page.tags if any(name.startswith("on") or name == "style" for name in tag)]
    scripts = [tag for name, tag in page.tags if name == "script"]
    assert [tag.get("type") for tag in scripts] == ["application/json"] * 2 + ["text/plain"] * 5 + [None] * 2


def test_what_is_vendored_cannot_end_its_element_and_has_its_license():
    page = files("mlx_depth.io.scene") / "viewer_page"
    for name in ("three.min.js", "viewer.js"):
        text = (page / name).read_text("utf-8")
        assert not re.search(r"</script|<!--|<script", text, re.IGNORECASE)
        assert "\r" not in text  # the digest in the policy is of what the parser hands over
    three = (page / "three.min.js").read_text("utf-8")
    assert three.startswith("/* three.js 0.170.0 with OrbitControls.")
    assert "MIT License" in (page / "LICENSE-three.txt").read_text("utf-8")


def test_every_control_has_a_label(tmp_path):
    page = Page(write(tmp_path / "a.html"))
    labels_for = {tag.get("for") for name, tag in page.tags if name == "label"}
    for number, (name, tag) in enumerate(page.tags):
        if name == "input":
            assert tag.get("id") in labels_for or page.tags[number - 1][0] == "label", tag
    (canvas,) = [tag for name, tag in page.tags if name == "canvas"]
    assert canvas["aria-label"].startswith("The scene as points.")


def test_the_title_is_the_file_where_facts_have_none(tmp_path):
    page = Page(write_viewer(tmp_path / "Küche & Bad.html", **small(), facts={}))
    assert page.texts["title"] == page.texts["summary"] == "Küche & Bad"
    assert not [name for name, _ in page.tags if name == "dt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.ones((0, 3), np.float32)}, "there are no points to draw"),
        (
            {"depth_colors": np.ones((3, 3), np.uint8)},
            "depth_colors are uint8 of shape (3, 3): give uint8 of shape (4,",
        ),
        (
            {"confidence": np.ones(3, np.float32)},
            "confidence is float32 of shape (3,): give floats of shape (4,), one a",
        ),
        ({"confidence": np.ones(4, int)}, "confidence is int64 of shape (4,): give floats"),
        ({"confidence": np.array([1, 2, 3, np.nan])}, "confidence holds numbers that are not finite: leave"),
        ({"cameras": [(np.zeros((3, 3)), np.eye(3, 4), (2, 2))]}, "intrinsics have no inverse"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    with pytest.raises(OptionError, match=re.escape(message)):
        write_viewer(tmp_path / "a.html", **(small() | changes), facts={})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_viewer(tmp_path / "a.html", **small(), facts={})
    with pytest.raises(SaveError, match=re.escape(f"{path} exists: pass overwrite=True")):
        write_viewer(path, **small(), facts={})
    write_viewer(path, **small(), facts={"model": "other"}, overwrite=True)
    assert "other" in path.read_text("utf-8")


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("page") / "boxes.html", facts=FACTS | {"title": "Boxes"})


def open_bare(browser, path, size=WINDOW):
    """The page without its panel and without cameras: points alone."""
    browser.open(path, size)
    browser.run("document.getElementById('panel').style.display = 'none'")
    browser.click("cameras")


def window_of(rows, columns, intrinsics, size, window) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of the photo lie in a window that shows all of it, as large as possible, in the middle."""
    height, width = size
    shape = (width / intrinsics[0, 0]) / (height / intrinsics[1, 1])  # pixels of the photo need not be square
    across, down = min(window[1], window[0] * shape), min(window[0], window[1] / shape)
    x = (window[1] - across) / 2 + (columns + 0.5) / width * across
    y = (window[0] - down) / 2 + (rows + 0.5) / height * down
    return np.floor(y).astype(int), np.floor(x).astype(int)


def insides(scene, view=0, margin=2) -> np.ndarray:
    """Pixels whose whole neighborhood has one color and is no sky: no matter how large points are."""
    image, height, width = scene.images[view], *scene.size
    inside = scene.surface[view] >= 0
    for down, right in np.ndindex(2 * margin + 1, 2 * margin + 1):
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
        inside &= (padded[down : down + height, right : right + width] == image).all(axis=-1)
    return inside


@pytest.mark.parametrize("window", [WINDOW, (500, 360)])
@pytest.mark.parametrize("first", [0, 1])
def test_the_first_view_is_the_first_photo(window, first, browser, tmp_path):
    scene = scene_of()
    cameras = cloud_of(scene).cameras
    path = write(tmp_path / "a.html", scene, cameras=[*cameras[first:], *cameras[:first]])
    open_bare(browser, path, window)
    picture = browser.picture()
    assert picture.shape == (*window, 3)
    rows, columns = np.nonzero(insides(scene, first))
    for color in [color for *_, color in BOXES]:
        assert (scene.images[first][rows, columns] == color).all(axis=1).sum() > 100
    shown = picture[window_of(rows, columns, scene.intrinsics[first], SIZE, window)].astype(int)
    wrong = np.abs(shown - scene.images[first][rows, columns]).max(axis=1) > 1
    assert wrong.mean() < 0.005
    sky_rows, sky_columns = np.nonzero(scene.surface[first][: SIZE[0] // 8] < 0)
    sky = picture[window_of(sky_rows, sky_columns, scene.intrinsics[first], SIZE, window)]
    assert (sky == BACKGROUND).all(axis=1).mean() > 0.99


def test_the_browser_fetches_nothing_and_complains_of_nothing(browser, page):
    browser.open(page, WINDOW)
    for element in ("cameras", "reset"):
        browser.click(element)
    browser.drag((600, 200), (500, 300))
    browser.wait()
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    # The policy holds: what a script in the page asks for is refused before it leaves.
    refused = browser.run(
        "new Promise(done => {"
        "document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));"
        "new Image().src = 'https://example.com/a.png'; })"
    )
    assert refused == "img-src"
    browser.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.caught = 1'}))")
    assert browser.run("window.caught") is None


def test_hostile_names_stay_text(browser, tmp_path):
    facts = FACTS | {"title": EVIL, "model": EVIL, "license": "<img src=x onerror=alert(1)>", "names": [EVIL, "\u2028"]}
    path = write(tmp_path / "a.html", facts=facts)
    browser.open(path, WINDOW)
    assert browser.run("document.title") == EVIL
    assert browser.run("document.querySelector('summary').textContent") == EVIL
    assert browser.run("[...document.querySelectorAll('dd')].map(row => row.textContent)") == [
        "metric, in m",
        EVIL,
        "abc123",
        "<img src=x onerror=alert(1)>",
        "3",
    ]
    assert browser.run("document.getElementById('count').textContent").endswith(" points shown")
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def text(browser, element: str) -> str:
    return browser.run(f"document.getElementById({element!r}).textContent")


def test_the_confidence_slider_hides_the_least_sure(browser, page):
    confidence = cloud_of(scene_of()).confidence
    open_bare(browser, page)
    browser.run("document.getElementById('panel').style.display = ''")
    assert text(browser, "count") == f"{len(confidence):,} points shown"
    assert text(browser, "confidence-shown") == "all points"
    all_points = browser.picture()
    browser.press("confidence", "ArrowRight", times=40)
    threshold = np.sort(confidence)[len(confidence) * 40 // 100]
    count = (confidence >= threshold).sum()
    assert text(browser, "count") == f"{count:,} points shown"
    assert text(browser, "confidence-shown") == f"at least {float(f'{threshold:.4g}'):g}: the surest 60 %"
    surest = browser.picture()
    drawn, left = ((picture[:, 300:] != BACKGROUND).any(axis=-1).sum() for picture in (all_points, surest))
    assert left < 0.9 * drawn
    browser.press("confidence", "Home")
    np.testing.assert_array_equal(browser.picture()[:, 300:], all_points[:, 300:])


def test_without_confidence_there_is_no_slider(browser, tmp_path, page):
    hidden = "document.getElementById('confidence').checkVisibility() === false"
    browser.open(page, WINDOW)
    assert browser.run(hidden) is False
    browser.open(write(tmp_path / "a.html", confidence=None), WINDOW)
    assert browser.run(hidden) is True
    assert browser.complaints() == []


def test_color_by_depth_and_back(browser, page):
    open_bare(browser, page)
    photo = browser.picture()
    browser.run("document.querySelector('input[value=depth]').click()")
    scene = scene_of()
    depth = browser.picture()
    rows, columns = np.nonzero(insides(scene))
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(scene.intrinsics[0]).T
    distance = np.linalg.norm(rays, axis=1) * scene.depth[0][rows, columns]  # the first camera is the world
    wanted = apply_colormap(np.clip(distance * 25, 0, 255).astype(np.uint8), "turbo").astype(int)
    shown = depth[window_of(rows, columns, scene.intrinsics[0], SIZE, WINDOW)]
    assert np.percentile(np.abs(shown - wanted).max(axis=1), 90) < 12  # a neighbor's color is near
    browser.run("document.querySelector('input[value=photo]').click()")
    np.testing.assert_array_equal(browser.picture(), photo)


def test_cameras_can_be_hidden(browser, page):
    """The first camera's pyramid frames the photo in red."""
    browser.open(page, WINDOW)
    browser.run("document.getElementById('panel').style.display = 'none'")
    reds = []
    for _ in range(2):
        picture = browser.picture()
        rows, columns = window_of(
            np.array([10, 20]), np.array([-0.5, SIZE[1] - 0.5]), scene_of().intrinsics[0], SIZE, WINDOW
        )
        near = [picture[row, column - 2 : column + 3].astype(int) for row, column in zip(rows, columns, strict=True)]
        reds.append(min(int((pixels[:, 0] - pixels[:, 2]).max()) for pixels in near))
        browser.click("cameras")
    assert reds[0] > 80
    assert reds[1] < 0  # the background is blue


def test_point_size(browser, page):
    open_bare(browser, page)
    covered = []
    for key in ("Home", "End"):
        browser.run("document.getElementById('panel').style.display = ''")
        browser.press("size", key)
        browser.run("document.getElementById('panel').style.display = 'none'")
        covered.append((browser.picture() != BACKGROUND).any(axis=-1).mean())
    assert covered[0] < 0.75 * covered[1], covered


def test_turn_move_and_reset(browser, page):
    open_bare(browser, page)
    first = browser.picture()
    browser.drag((450, 250), (500, 280))
    turned = browser.picture()
    assert (turned != first).any(axis=-1).mean() > 0.1
    browser.press("view", "ArrowRight", times=5)
    assert (browser.picture() != turned).any(axis=-1).mean() > 0.1
    browser.run("document.activeElement.blur()")  # its outline
    browser.click("reset")
    np.testing.assert_array_equal(browser.picture(), first)


def test_the_view_follows_the_window(browser, page):
    open_bare(browser, page)
    browser.resize((500, 360))
    scene = scene_of()
    rows, columns = np.nonzero(insides(scene))
    picture = browser.picture()
    assert picture.shape == (500, 360, 3)
    shown = picture[window_of(rows, columns, scene.intrinsics[0], SIZE, (500, 360))].astype(int)
    assert (np.abs(shown - scene.images[0][rows, columns]).max(axis=1) > 1).mean() < 0.005


def test_without_cameras_the_points_are_in_view(browser, tmp_path):
    browser.open(write(tmp_path / "a.html", cameras=[]), WINDOW)
    browser.run("document.getElementById('panel').style.display = 'none'")
    shown = (browser.picture() != BACKGROUND).any(axis=-1)
    assert shown.mean() > 0.1
    assert browser.run("document.getElementById('cameras').checkVisibility()") is False
    assert browser.complaints() == []


def test_on_a_narrow_screen_the_panel_is_closed(browser, page):
    is_open = "document.getElementById('panel').open"
    browser.open(page, (500, 360))
    assert browser.run(is_open) is False
    browser.open(page, WINDOW)
    assert browser.run(is_open) is True


def test_without_webgl_the_page_says_so(browser, page):
    source = "HTMLCanvasElement.prototype.getContext = () => null"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    browser.open(page, WINDOW)
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    assert text(browser, "message").startswith("The scene needs WebGL 2, which this browser does not offer")
    assert browser.run("document.getElementById('message').checkVisibility()") is True
    browser.open(page, WINDOW)
    assert browser.run("document.getElementById('message').checkVisibility()") is False
