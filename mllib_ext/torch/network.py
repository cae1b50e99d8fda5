r"""A PyTorch module as a loss by flat parameters, as :mod:`mllib_ext.stochastic` takes it.

The flat vector has the trainable parameters in the order of ``named_parameters()``, each one row by
row. In a process their tensors, and those of their gradients, are views of one tensor each.

Statistics that normalization layers keep of the rows (``running_mean`` and ``running_var`` of batch
normalization, Ioffe & Szegedy 2015) are no parameters: a step normalizes by its own rows, and what
it would remember is dropped. They are a function of the parameters, and computed wherever a loss
is measured or a model is made: a round of means over batches of :data:`ROWS` rows (Izmailov et al.
2018, section 3.2, for averaged weights). So no partition has a state of its own to average or lose.
"""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
from pyspark import TaskContext, cloudpickle

from mllib_ext.blockfile import Block
from mllib_ext.columns import Matrix
from mllib_ext.sampling import held_out, taken
from mllib_ext.stochastic import Stochastic
from mllib_ext.torch.needs import torch_package

# Rows that pass through a module together: the activations of a convolution take some 100 kB each.
ROWS = 256
TASKS = ("classification", "regression")

State = dict[str, np.ndarray]

# Threads of a driver share a process's modules and its random numbers.
_lock = threading.RLock()


@dataclass(frozen=True)
class TorchNetwork:
    """A module and its loss, as they travel: a model of :mod:`mllib_ext.stochastic`.

    Attributes
    ----------
    functions : bytes
        The function that makes the module, its keyword arguments and the loss, by cloudpickle.
    task : {"classification", "regression"}
        Whether labels are classes, or numbers.
    seed : int
        What the module is made under, the same in every process.
    """

    functions: bytes
    task: str
    seed: int

    @classmethod
    def of(
        cls,
        module: Callable[..., Any],
        arguments: dict[str, Any],
        loss: Callable[..., Any] | None,
        task: str,
        seed: int,
    ) -> TorchNetwork:
        """From functions; a loss with a ``reduction`` is told to leave the losses of rows apart."""
        if loss is not None and "reduction" in _parameters(loss):
            loss = partial(loss, reduction="none")
        return cls(cloudpickle.dumps((module, arguments, loss)), task, seed)

    def __call__(
        self, block: Block, v: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[float, np.ndarray]:
        with self._held() as held:
            return held.value_and_gradient(block, v, rng)

    def value(self, block: Block, v: np.ndarray) -> float:
        """The block's summed loss by the whole module; ``v`` goes on with the statistics."""
        with self._held() as held:
            return held.value(block, v)

    def statistics(self, block: Block, v: np.ndarray) -> tuple[np.ndarray, int]:
        """What normalization layers see of the rows, times the rows, and the rows."""
        with self._held() as held:
            return held.statistics(block, v)

    def outputs(self, X: Matrix, state: State) -> np.ndarray:
        """Outputs (n, k) of rows X (n, d), in double precision."""
        with self._held() as held:
            held.module.load_state_dict(_tensors(state))
            return held.outputs(X)

    def state(self, v: np.ndarray, statistics: np.ndarray) -> State:
        """All that a module's ``state_dict`` has, read-only."""
        with self._held() as held:
            held.load(np.concatenate([v, statistics]))
            held.forget()
            state = {name: t.numpy().copy() for name, t in held.module.state_dict().items()}
        for array in state.values():
            array.flags.writeable = False
        return state

    def start(self) -> np.ndarray:
        """The parameters (size,) that a module is made with."""
        with self._held() as held:
            return held.start.astype(np.float64)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the trainable parameters, in their order."""
        with self._held() as held:
            return held.shapes

    @property
    def n_statistics(self) -> int:
        """Numbers that normalization layers keep of the rows."""
        with self._held() as held:
            return sum(len(buffer) for buffer in held.buffers)

    def refuse(self, n_features: int) -> int:
        """The outputs of a row, tried on two rows of zeros on the driver.

        Raises
        ------
        ValueError
            Of params ``module`` and ``loss``: what does not fit the rows, or each other, or what
            training here can do.
        """
        with self._held() as held:
            return held.refuse(n_features)

    def over(self, blocks: Any) -> TorchObjective:
        """The mean loss over all rows, and by samples of them; the penalty is of the weights.

        Parameters of one axis (biases, scales of a normalization) are not penalised.
        """
        shapes = list(self.shapes.values())
        sizes = [int(np.prod(shape)) for shape in shapes]
        ridge = np.repeat([float(len(shape) > 1) for shape in shapes], sizes)
        places = [0, *np.cumsum(sizes).tolist()]
        matrices = tuple(
            (place, shape[0], size // shape[0])
            for place, shape, size in zip(places, shapes, sizes, strict=False)
            if len(shape) > 1
        )
        return TorchObjective(blocks, self, ridge, matrices=matrices)

    @contextmanager
    def _held(self) -> Iterator[_Held]:
        """The module of this process, for one thread at a time; on the driver on one core."""
        torch = torch_package()
        with _lock:
            threads = torch.get_num_threads()
            fewer = TaskContext.get() is None and threads > 1
            if fewer:
                torch.set_num_threads(1)
            try:
                yield _held(self)
            finally:
                if fewer:
                    torch.set_num_threads(threads)


@lru_cache(maxsize=2)  # a worker outlives a fit
def _held(network: TorchNetwork) -> _Held:
    return _Held(network)


class _Held:
    """A module in a process, its trainable parameters as one vector."""

    def __init__(self, network: TorchNetwork) -> None:
        torch = torch_package()
        if TaskContext.get() is not None:
            _spare_collector()
        make, arguments, self._loss = cloudpickle.loads(network.functions)
        self._classes = network.task == "classification"
        if isinstance(make, torch.nn.Module):
            kind = f"the {type(make).__name__} itself"
            raise _wrong("module", "a function that returns a torch.nn.Module", kind)
        with drawing(network.seed):
            try:
                self.module = make(**arguments)
            except Exception as error:
                raise _wrong("module", f"one that can be made of {arguments}", _told(error)) from (
                    error
                )
        if not isinstance(self.module, torch.nn.Module):
            kind = type(self.module).__name__
            raise _wrong("module", "a function that returns a torch.nn.Module", kind)
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        if not named:
            raise _wrong("module", "one with trainable parameters", "none")
        for name, parameter in named:
            if torch.nn.parameter.is_lazy(parameter):
                raise _wrong("module", "parameters that have a shape", f"{name}, which is lazy")
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                kind = f"{name} of {parameter.dtype} on {parameter.device}"
                raise _wrong("module", "parameters of torch.float32 on the CPU", kind)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in named}
        size = sum(parameter.numel() for _, parameter in named)
        self._v, self._g = torch.empty(size), torch.zeros(size)
        place = 0
        for _, parameter in named:
            here = slice(place, place + parameter.numel())
            self._v[here] = parameter.detach().reshape(-1)
            parameter.data = self._v[here].view(parameter.shape)
            parameter.grad = self._g[here].view(parameter.shape)
            place = here.stop
        self.start = self._v.numpy().copy()
        self._norms = [
            layer
            for layer in self.module.modules()
            if isinstance(layer, torch.nn.modules.batchnorm._NormBase)
            and layer.running_mean is not None
        ]

    @property
    def buffers(self) -> list[Any]:
        """The statistics of the normalization layers."""
        return [b for layer in self._norms for b in (layer.running_mean, layer.running_var)]

    def load(self, v: np.ndarray) -> None:
        """Take parameters and, where they go on with them, statistics."""
        size, whole = len(self._v), _tensor(v)
        self._v.copy_(whole[:size])
        if len(v) > size:
            for buffer, part in zip(
                self.buffers, whole[size:].split([len(b) for b in self.buffers]), strict=True
            ):
                buffer.copy_(part)

    def forget(self) -> None:
        """Begin to count batches anew: how many this process has seen is nothing of the model's."""
        for layer in self._norms:
            layer.num_batches_tracked.zero_()

    def value_and_gradient(
        self, block: Block, v: np.ndarray, rng: np.random.Generator | None
    ) -> tuple[float, np.ndarray]:
        self.load(v)
        self._g.zero_()
        value = 0.0
        # A row alone has no variance to be normalized by.
        if not (self._norms and block.n == 1):
            self.module.train()
            with nullcontext() if rng is None else drawing(int(rng.integers(1 << 63))):
                for rows in _tiles(block.n):
                    total = self._losses(block, rows) @ _tensor(block.w[rows])
                    total.backward()
                    value += float(total.detach())
        return value, self._g.numpy().copy()

    def value(self, block: Block, v: np.ndarray) -> float:
        torch = torch_package()
        self.load(v)
        self.module.eval()
        with torch.inference_mode():
            losses = [self._losses(block, rows).double().numpy() for rows in _tiles(block.n)]
        return float(np.concatenate(losses) @ block.w)

    def statistics(self, block: Block, v: np.ndarray) -> tuple[np.ndarray, int]:
        torch = torch_package()
        self.load(v)
        self.module.eval()  # without what other layers draw
        total, n = np.zeros(sum(len(buffer) for buffer in self.buffers)), 0
        before = [layer.momentum for layer in self._norms]
        try:
            for layer in self._norms:
                layer.train()
                layer.momentum = 1.0
            with torch.no_grad():
                for rows in _tiles(block.n) if block.n > 1 else ():
                    self.module(_rows(block.X[rows]))
                    seen = np.concatenate([buffer.numpy() for buffer in self.buffers])
                    total += (rows.stop - rows.start) * seen.astype(np.float64)
                    n += rows.stop - rows.start
        finally:
            for layer, momentum in zip(self._norms, before, strict=True):
                layer.momentum = momentum
        return total, n

    def outputs(self, X: Matrix) -> np.ndarray:
        torch = torch_package()
        self.module.eval()
        n = X.shape[0]
        with torch.inference_mode():
            parts = [self.module(_rows(X[rows])).double().numpy() for rows in _tiles(n)]
        return np.concatenate(parts).reshape(n, -1)

    def _losses(self, block: Block, rows: slice) -> Any:
        """Losses (m,) of some rows of a block."""
        outputs, y = self.module(_rows(block.X[rows])), block.y[rows]
        if self._classes:
            # A row of weight 0 may bear a label beyond the classes.
            return self._loss(outputs, _tensor(np.minimum(y, outputs.shape[1] - 1), np.int64))
        return self._loss(outputs.reshape(-1), _tensor(y))

    def refuse(self, n_features: int) -> int:
        torch = torch_package()
        self.load(self.start)
        fixed = {n: b.clone() for n, b in self.module.named_buffers()}
        rows = torch.zeros(2, n_features)
        self.module.train()
        with drawing(0):
            try:
                outputs = self.module(rows)
            except Exception as error:
                takes = f"one that takes rows of {n_features} features"
                raise _wrong("module", takes, _told(error)) from error
        k = self._refuse_outputs(outputs)
        labels = torch.zeros(2, dtype=torch.int64 if self._classes else torch.float32)
        try:
            losses = self._loss(outputs if self._classes else outputs.reshape(-1), labels)
        except Exception as error:
            takes = "a function of a module's outputs and labels"
            raise _wrong("loss", takes, _told(error)) from error
        if getattr(losses, "shape", None) != (2,):
            shape = getattr(losses, "shape", None)
            told = type(losses).__name__ if shape is None else f"shape {tuple(shape)}"
            each = "the loss of each row, shape (2,) of two rows (reduction='none')"
            raise _wrong("loss", each, told)
        try:
            losses.sum().backward()
        except RuntimeError as error:
            raise _wrong("loss", "one that has a gradient", _told(error)) from error
        known = {id(b) for layer in self._norms for b in layer.buffers()}
        for name, buffer in self.module.named_buffers():
            if id(buffer) not in known and not torch.equal(buffer, fixed[name]):
                raise _wrong(
                    "module",
                    "no buffer that training changes but those of batch normalization",
                    name,
                )
        return k

    def _refuse_outputs(self, outputs: Any) -> int:
        torch = torch_package()
        wanted = (
            "outputs of shape (n, k), a number for each of two classes or more"
            if self._classes
            else "one output for each row, shape (n,) or (n, 1)"
        )
        if not isinstance(outputs, torch.Tensor):
            raise _wrong("module", wanted, type(outputs).__name__)
        shape = tuple(outputs.shape)
        if self._classes:
            fits = len(shape) == 2 and shape[0] == 2 and shape[1] > 1
        else:
            fits = shape in ((2,), (2, 1))
        if not fits:
            raise _wrong("module", wanted, f"shape {shape} of two rows")
        return int(shape[-1]) if len(shape) > 1 else 1


@dataclass(frozen=True)
class TorchObjective(Stochastic):
    """The objective of a module: losses are measured with the statistics of the rows that train."""

    def evaluated(self, v: np.ndarray, fraction: float = 0.0, seed: int = 0) -> np.ndarray:
        return np.concatenate([v, self.statistics(v, fraction, seed)])

    def statistics(self, v: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """What normalization layers keep: one round, or none where there are no such layers."""
        network: Any = self.model
        if not network.n_statistics:
            return np.empty(0)
        total, n = self.blocks.sum(partial(statistics, network, fraction, seed), v)
        if not n:
            raise ValueError("expected two rows or more to normalize by, found fewer")
        return np.asarray(total / n)


def statistics(
    network: TorchNetwork, fraction: float, seed: int, block: Block, v: np.ndarray
) -> tuple[np.ndarray, int]:
    """Of the block's rows that train."""
    if fraction:
        block = taken(block, np.flatnonzero(~held_out(block.X, fraction, seed)))
    return network.statistics(block, v)


def refuse_state(network: TorchNetwork, state: State) -> None:
    """ValueError unless the module takes these weights."""
    with network._held() as held:
        try:
            held.module.load_state_dict(_tensors(state))
        except RuntimeError as error:
            raise _wrong("module", "one with the weights of this model", _told(error)) from error


@cache
def _spare_collector() -> None:
    """As :func:`mllib_ext.blockfile.spare_collector`, once a worker, with PyTorch imported."""
    gc.freeze()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """PyTorch's random numbers from a seed; afterwards they are the caller's again.

    ``torch.random.fork_rng`` does the same in 200 us, of which a step may have as few.
    """
    generator = torch_package().default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _tiles(n: int) -> list[slice]:
    """Rows in equal shares of :data:`ROWS` or fewer."""
    cuts = np.linspace(0, n, -(-n // ROWS) + 1).astype(int).tolist()
    return [slice(low, high) for low, high in pairwise(cuts)]


def _rows(X: Matrix) -> Any:
    """Rows (n, d) as a tensor of floats."""
    return _tensor(X if isinstance(X, np.ndarray) else X.toarray())


def _tensor(values: np.ndarray, dtype: Any = np.float32) -> Any:
    """Values as a tensor: they are copied unless it may write to them, of which it would warn."""
    return torch_package().from_numpy(np.require(values, dtype, ["C", "W"]))


def _tensors(state: State) -> dict[str, Any]:
    return {name: _tensor(array, array.dtype) for name, array in state.items()}


def _parameters(function: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return {}


def _wrong(param: str, expected: str, found: str) -> ValueError:
    return ValueError(f"param {param}: expected {expected}, found {found}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
