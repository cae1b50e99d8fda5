"""Modules that are ready to train: what a config can name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllib_ext.torch.needs import torch_package

if TYPE_CHECKING:
    import torch


def convolutional(
    channels: int = 1,
    height: int = 28,
    width: int = 28,
    classes: int = 10,
    filters: int = 32,
    hidden: int = 128,
    dropout: float = 0.25,
) -> torch.nn.Module:
    """A small convolutional network for images, in the manner of LeNet-5 (LeCun et al. 1998).

    Two convolutions of 3 x 3, each with ReLU and a maximum over 2 x 2, a hidden layer with ReLU and
    dropout, and a layer of outputs.

    Parameters
    ----------
    channels, height, width : int
        Of an image, whose features are its values in this order.
    classes : int
        Outputs.
    filters : int
        Of the first convolution; the second has twice as many.
    hidden : int
        Units of the hidden layer.
    dropout : float
        The share of them that a step leaves out.
    """
    nn = torch_package().nn
    return nn.Sequential(  # type: ignore[no-any-return]
        nn.Unflatten(1, (channels, height, width)),
        nn.Conv2d(channels, filters, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(filters, 2 * filters, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * filters * (height // 4) * (width // 4), hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )
