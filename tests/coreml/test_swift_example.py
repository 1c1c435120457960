"""The Swift example is Swift, and speaks of the package that its README exports."""

import re
import shlex
from pathlib import Path

import pytest
from coreml.tiny import tiny
from mlx_depth_convert.coreml import export_coreml
from mlx_depth_convert.coreml.evaluate import read_package
from support import require

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

EXAMPLE = Path(__file__).parents[2] / "examples/macos"
SOURCES = sorted([EXAMPLE / "Package.swift", *EXAMPLE.glob("Sources/*/*.swift")])
TEXT = {path.name: path.read_text() for path in SOURCES}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The README's export, of a tiny model."""
    readme = (EXAMPLE / "README.md").read_text()
    (command,) = re.findall(r"^ *mlx-depth coreml .*$", readme, re.MULTILINE)
    _, _, _, out, *options = shlex.split(command)
    assert options[0] == "--sizes"
    assert options[-2] == "--cmap"
    folder = tmp_path_factory.mktemp("swift")
    return export_coreml(tiny(), folder / out, sizes=options[1:-2], cmap=options[-1])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_is_swift(path):
    tree_sitter = require("test", "tree_sitter")
    swift = require("test", "tree_sitter_swift")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))
    nodes = _walk(parser.parse(path.read_bytes()).root_node)
    assert [node.start_point for node in nodes if node.is_error or node.is_missing] == []


def _walk(node):
    yield node
    for child in node.children:
        yield from _walk(child)


def test_model_name_is_the_package_s(package):
    name = package.stem
    assert set(re.findall(r"\bDepthModel\w*", "".join(TEXT.values()))) == {name}
    assert f'forResource: "{name}"' in TEXT["DepthEstimator.swift"]
    assert f"Resources/{name}.mlmodelc" in TEXT["Package.swift"]
    assert f"try {name}(contentsOf: url, configuration: configuration)" in TEXT["DepthEstimator.swift"]
    assert f"Sources/DepthKit/{name}.swift" in (EXAMPLE / ".gitignore").read_text()


def test_functions_are_the_package_s(package):
    (body,) = re.findall(
        r"enum Framing: String, CaseIterable \{(.*?)public init", TEXT["DepthEstimator.swift"], re.DOTALL
    )
    assert set(re.findall(r"case (\w+)", body)) == set(read_package(package).functions)
    assert "configuration.functionName = framing.rawValue" in TEXT["DepthEstimator.swift"]


def test_features_are_the_package_s(package):
    source = TEXT["DepthEstimator.swift"]
    for function in read_package(package).description.functions:
        inputs = {feature.name for feature in function.input}
        outputs = {feature.name for feature in function.output}
        assert set(re.findall(r'inputDescriptionsByName\["(\w+)"\]', source)) == inputs
        assert set(re.findall(r"\.prediction\((\w+):", source)) == inputs
        assert set(re.findall(r"\boutput\.(\w+)", source)) == outputs


def test_package_names_the_folders():
    targets = set(re.findall(r'arget\(\s*name: "([\w-]+)"', TEXT["Package.swift"]))
    assert targets == {path.name for path in (EXAMPLE / "Sources").iterdir()}
    assert (EXAMPLE / "Sources/DepthApp/Info.plist").is_file()
