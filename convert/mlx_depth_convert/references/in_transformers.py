"""What references in transformers have in common: how they are got, saved and loaded, and DINOv2's config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth_convert.references.base import Outputs

NAME = "transformers"
INSTALL = "pip install 'mlx-depth[reference]'"


def run(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    """``Reference.run`` of a network that gives depth alone."""
    return {"depth": network(pixel_values.permute(0, 3, 1, 2)).predicted_depth}


def save(network: Any, folder: Path) -> None:
    """``Reference.save``."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(folder)


def loader(architecture: str) -> Callable[[Any, Path, Any], Any]:
    """``Reference.load`` of the class of that name."""

    def load(_: Any, folder: Path, dtype: Any) -> Any:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        return getattr(transformers, architecture).from_pretrained(folder, dtype=dtype)

    return load


def dinov2_facts(backbone: DINOv2Config) -> dict[str, Any]:
    """Sizes of a DINOv2, by the keys of transformers' config."""
    return {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "mlp_ratio": backbone.mlp_ratio,
        "image_size": backbone.table_size * backbone.patch_size,
        "patch_size": backbone.patch_size,
        "use_swiglu_ffn": backbone.swiglu,
    }
