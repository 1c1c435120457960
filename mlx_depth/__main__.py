"""``python -m mlx_depth`` is the command ``mlx-depth``."""

import sys

from mlx_depth.cli import main

sys.exit(main())
