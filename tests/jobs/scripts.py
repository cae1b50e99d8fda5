"""The scripts in ``jobs/`` as modules: no package holds them."""

import importlib.util
from pathlib import Path
from typing import Any

import mllib_ext

ROOT = Path(mllib_ext.__path__[0]).parent


def load_job(name):
    spec: Any = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
