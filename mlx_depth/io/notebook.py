"""A picture as notebooks show it."""

import base64
import io

import numpy as np
import numpy.typing as npt

_SIZE = (1024, 640)  # width, height at the most, in pixels


def figure(picture: npt.NDArray[np.uint8], caption: str) -> str:
    """HTML of a picture, made smaller where it is large, with words below.

    Args:
        picture: RGB, ``(H, W, 3)``.
        caption: Plain text.
    """
    import html

    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail(_SIZE)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data, words = base64.b64encode(stream.getvalue()).decode(), html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'
