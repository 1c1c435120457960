"""The verbs models and info."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from mlx_depth.checkpoints.describe import PURPOSES, describe_checkpoint, describe_model, models_table
from mlx_depth.cli.terminal import aligned, lines, say
from mlx_depth.kinds import DepthKind
from mlx_depth.weights.choose import is_convertible

_COLUMNS = ("name", "alias", "parameters", "kind", "license", "commercial", "downloaded", "hub")


def add_verbs(verbs: Any) -> None:
    """Declare the verbs on what ``ArgumentParser.add_subparsers`` returned."""
    models = verbs.add_parser("models", help="list all models by what they are for, with their licenses")
    models.add_argument("--commercial", action="store_true", help="only those that may be used commercially")
    kind = models.add_mutually_exclusive_group()
    kind.add_argument("--kind", choices=[kind.value for kind in DepthKind], help="only those of this kind of depth")
    kind.add_argument("--metric", dest="kind", action="store_const", const=DepthKind.METRIC.value, help="--kind metric")
    models.add_argument("--json", action="store_true", help="one JSON array instead of tables")
    models.set_defaults(run=_run_models)

    info = verbs.add_parser("info", help="show what is known of a model")
    info.add_argument("model", help="name, alias, folder, file of weights, or a downloaded owner/name")
    info.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    info.set_defaults(run=_run_info)


def _run_models(options: argparse.Namespace) -> int:
    table = models_table(commercial=options.commercial, kind=options.kind and DepthKind(options.kind))
    if options.json:
        print(json.dumps(table, indent=2))
    elif not table:
        say("no model is like that: leave an option out.")
    else:
        print("\n".join(_grouped(table)))
    return 0


def _grouped(table: list[dict[str, Any]]) -> Iterator[str]:
    """One table a purpose, their columns in line."""
    shown = [{name: row[name] for name in _COLUMNS} for row in table]
    head, *cells = aligned(shown).splitlines()
    yield head
    for purpose, words in PURPOSES.items():
        own = [line for row, line in zip(table, cells, strict=True) if row["purpose"] == purpose]
        if own:
            yield from ("", f"{words}:", *own)


def _run_info(options: argparse.Namespace) -> int:
    facts = _described(options.model)
    print(json.dumps(facts, indent=2) if options.json else "\n".join(lines(facts)))
    return 0


def _described(model: str) -> dict[str, Any]:
    if not is_convertible(model):
        return describe_model(model)
    from mlx_depth_convert.opening import open_checkpoint

    with open_checkpoint(model) as (checkpoint, origin):
        return describe_checkpoint(checkpoint, origin.revision)
