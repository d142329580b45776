"""edgemed: labelled medical images in, one engine file out, with the evidence that it is right.

>>> import edgemed
>>> model = edgemed.load("bundle")        # no torch needed
>>> model("image.png").decision
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemed.infer import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that `import edgemed` stays light."""
    if name == "load":
        from edgemed.infer import load

        return load
    raise AttributeError(f"module 'edgemed' has no attribute {name!r}")
