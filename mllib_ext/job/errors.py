"""Errors as their reader needs them: one line for what is wrong with the input, no Java trace."""

from __future__ import annotations

import re
import traceback
from typing import Any

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import (
    AnalysisException,
    IllegalArgumentException,
    ParseException,
    PySparkRuntimeError,
)

from mllib_ext.job.problems import ConfigError
from mllib_ext.optimizers.loop import DivergenceError

# Lines of a Java stack trace.
JAVA_FRAME = re.compile(r"^\s+at [\w.$/<>]+\(.*\)\s*$|^\s*\.\.\. \d+ more\s*$|^Driver stacktrace:")


def first_line(error: Exception) -> str:
    """The first line of an error of Spark, without its codes."""
    text = str(error)
    if isinstance(error, Py4JJavaError):  # whose own text begins with the call that failed
        text = _about_input(error.java_exception) or str(error.java_exception.getMessage())
    line = next((line for line in text.splitlines() if line.strip()), "no reason given")
    return re.sub(r"^\[[A-Z_.0-9]+\] | SQLSTATE: \w+", "", line.strip())


def explanation(error: Exception) -> str | None:
    """What an expected error says, without a trace; None for one that nobody expected.

    A ValueError or TypeError is expected where it says what was expected and what was found, as
    all errors of this library about input do.
    """
    text = str(error).strip()
    match error:
        case ConfigError() | DivergenceError() | OSError():
            return text
        case AnalysisException() | ParseException() | IllegalArgumentException():
            return first_line(error)
        case Py4JJavaError():
            return _about_input(error.java_exception)
        case PySparkRuntimeError() if "JAVA_GATEWAY_EXITED" in text:
            return "Spark did not start: it needs Java 17 or later, which ./spark-submit.sh finds"
        case ValueError() | TypeError() if "expected" in text and "found" in text:
            return text
    return None


def _about_input(java: Any) -> str | None:
    """What Spark says of a file or a value of the input, inside a task; None for other failures.

    A header that is not the schema's, a label that an indexer has not seen, a null that an
    assembler meets: wrapped in errors about the task.
    """
    is_file = False
    while java.getCause() is not None:
        is_file = is_file or "FAILED_READ_FILE" in str(java.getMessage())
        java = java.getCause()
    frames = java.getStackTrace()
    is_stage = len(frames) and str(frames[0].getClassName()).startswith("org.apache.spark.ml.")
    return " ".join(str(java.getMessage()).split()) if is_file or is_stage else None


def backtrace(error: Exception) -> str:
    """The Python traceback of an error; of Java's part only what it says."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not JAVA_FRAME.match(line) and line.strip())
