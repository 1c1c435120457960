"""Core ML packages from our weights: written with coremltools, proved with numpy, no torch."""

from mlx_depth_convert.coreml.check import check_package
from mlx_depth_convert.coreml.package import export_coreml
from mlx_depth_convert.coreml.report import PackageReport

__all__ = ["PackageReport", "check_package", "export_coreml"]
