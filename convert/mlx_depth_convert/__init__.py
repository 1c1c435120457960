"""The conversion tool of mlx-depth: any checkpoint to a proved, quantized MLX folder."""

from mlx_depth_convert.bench import bench
from mlx_depth_convert.convert import convert
from mlx_depth_convert.inspect_model import inspect_model
from mlx_depth_convert.verify import verify

__all__ = ["bench", "convert", "inspect_model", "verify"]
