"""Run a notebook in a fresh kernel, and clean what it puts out.

As a script, run every notebook and keep its outputs, which are committed with it::

    MLLIB_EXT_EXTRAS=test ./spark-submit.sh --python tests/kernel.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbclient
import nbformat

import mllib_ext

ROOT = Path(mllib_ext.__path__[0]).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path: Path, directory: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom.

    Parameters
    ----------
    path : Path
    directory : Path
        The working directory of its kernel.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell failed: the message has the cell and the traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, resources={"metadata": {"path": str(directory)}}, record_timing=False
    )
    # The kernel finds this checkout, and chooses the backend of matplotlib that notebooks have.
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, known)]),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    env.pop("MPLBACKEND", None)
    client.execute(env=env)
    return notebook


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what tells of one machine and one moment: logs, widgets, the versions of the kernel."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.metadata.pop("execution", None)  # times, which Jupyter may add
            for output in cell.outputs:  # of no kernel: the picture beside it stands in
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}


def main() -> int:
    for path in NOTEBOOKS:
        notebook = run(path, path.parent)
        clean(notebook)
        nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
