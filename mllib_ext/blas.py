"""Threads of the linear algebra on the driver: one, as in the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limit = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS to one thread; fits that run side by side count together.

    The driver's products are small, and OpenBLAS's threads spin between them: beside Spark's own
    threads an eigendecomposition of 124 x 124 took 47 ms with two threads and 2 with one.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  (brings a BLAS of its own, which must be known by now)

    return ThreadpoolController()
