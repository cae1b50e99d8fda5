"""PyTorch, imported when it is first needed."""

from __future__ import annotations

from typing import Any


def torch_package() -> Any:
    """The package ``torch``; ImportError with the extra that brings it, where it is missing."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "mllib_ext.torch needs PyTorch, which is not installed: pip install 'mllib_ext[torch]'"
        ) from error
    return torch
