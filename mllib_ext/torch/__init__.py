"""Any PyTorch module as an estimator: the extra ``[torch]``, imported when it is first needed."""

from mllib_ext.torch.estimator import TorchEstimator, TorchModel
from mllib_ext.torch.networks import convolutional

__all__ = ["TorchEstimator", "TorchModel", "convolutional"]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
