"""OpenCV as a reference for 8-bit images: without Intel's IPP, and how far other machines may be off."""

import contextlib
import platform
from collections.abc import Iterator

from support import require

cv2 = require("reference", "cv2")

# Grey levels. On ARM OpenCV fuses products and sums, so that halves may fall to the other side.
LEVELS_OFF = 0 if platform.machine().lower() in ("x86_64", "amd64") else 1


@contextlib.contextmanager
def without_ipp() -> Iterator[None]:
    """OpenCV's own code in this thread: IPP's cubic has coordinates of its own, one level off in 5 % of the values."""
    uses_ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(uses_ipp)
