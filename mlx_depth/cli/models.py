"""The verbs models and info."""

import argparse
import json
from typing import Any

from mlx_depth.checkpoints.describe import describe_checkpoint, describe_model, models_table
from mlx_depth.cli.terminal import aligned, lines
from mlx_depth.weights.choose import is_convertible


def add_verbs(verbs: Any) -> None:
    """Declare the verbs on what ``ArgumentParser.add_subparsers`` returned."""
    models = verbs.add_parser("models", help="list all models, their license and whether they are downloaded")
    models.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    models.set_defaults(run=_run_models)

    info = verbs.add_parser("info", help="show what is known of a model")
    info.add_argument("model", help="name, alias, folder, file of weights, or a downloaded owner/name")
    info.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    info.set_defaults(run=_run_info)


def _run_models(options: argparse.Namespace) -> int:
    table = models_table()
    print(json.dumps(table, indent=2) if options.json else aligned(table))
    return 0


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
