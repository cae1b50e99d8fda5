"""Files on any Hadoop file system (``file:``, ``hdfs:``, ``s3a:``), written whole or not at all.

A directory is filled under a hidden temporary name beside its final one and renamed at the end:
readers see nothing or everything, and a failed or interrupted writer leaves nothing behind. On
object stores, where a rename is a copy, the copy is the one moment that is not atomic.

All functions run on the driver of the active Spark session (classic, not Spark Connect).
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # py4j sends bytes as one base64 line: a bounded one


def qualified(path: str) -> str:
    """The absolute path with its scheme, as the active session resolves it."""
    with _io_errors(path):
        fs, jpath = _open(path)
        return str(jpath.makeQualified(fs.getUri(), fs.getWorkingDirectory()).toString())


def exists(path: str) -> bool:
    """Whether there is a file or a directory at ``path``."""
    with _io_errors(path):
        fs, jpath = _open(path)
        return bool(fs.exists(jpath))


def matches(pattern: str) -> bool:
    """Whether there is anything at a path, which may hold Hadoop's wildcards."""
    with _io_errors(pattern):
        fs, jpath = _open(pattern)
        return bool(fs.globStatus(jpath))  # None: no wildcards and nothing there


def names(path: str) -> list[str] | None:
    """The sorted names in a directory; None where there is no directory."""
    with _io_errors(path):
        fs, jpath = _open(path)
        if not fs.exists(jpath) or not fs.getFileStatus(jpath).isDirectory():
            return None
        return sorted(str(status.getPath().getName()) for status in fs.listStatus(jpath))


def modified(path: str) -> int:
    """When a file was written, Unix milliseconds; FileNotFoundError where there is none."""
    with _io_errors(path):
        fs, jpath = _open(path)
        return int(fs.getFileStatus(jpath).getModificationTime())


def read_bytes(path: str) -> bytes:
    """What a file holds; FileNotFoundError where there is none."""
    with _io_errors(path):
        fs, jpath = _open(path)
        stream = fs.open(jpath)
        try:
            return bytes(stream.readAllBytes())
        finally:
            stream.close()


def read_text(path: str) -> str:
    """A UTF-8 file as text; FileNotFoundError where there is none."""
    return read_bytes(path).decode("utf-8")


def write_text(path: str, text: str) -> None:
    """Write a new UTF-8 file; FileExistsError where there is one.

    Not atomic by itself: write inside :func:`atomic_directory`.
    """
    _write(path, text.encode("utf-8"))


def _write(path: str, data: bytes) -> None:
    with _io_errors(path):
        fs, jpath = _open(path)
        stream = fs.create(jpath, False)
        try:
            for start in range(0, len(data), _CHUNK):
                stream.write(bytearray(data[start : start + _CHUNK]))
        finally:
            stream.close()


def put_text(path: str, text: str) -> None:
    """Write a new UTF-8 file that readers see whole or not at all; FileExistsError if it is there.

    Parents are made as needed.
    """
    put_bytes(path, text.encode("utf-8"))


def put_bytes(path: str, data: bytes) -> None:
    """As :func:`put_text`, for a file that is no text."""
    final = qualified(path)
    _refuse_existing(final, overwrite=False)
    beside = _beside(_open(final)[1]) + ".tmp"
    try:
        _write(beside, data)
        _rename(beside, final)
    except BaseException:
        delete(beside)
        raise


def make_directory(path: str) -> None:
    """Make a directory and its parents, unless it is there."""
    with _io_errors(path):
        fs, jpath = _open(path)
        if not fs.mkdirs(jpath):
            raise OSError(f"{path}: expected to make this directory, found that it is not allowed")


def delete(path: str) -> None:
    """Delete a file or a directory with all it holds, if it is there."""
    with _io_errors(path):
        fs, jpath = _open(path)
        if fs.exists(jpath) and not fs.delete(jpath, True):
            raise OSError(f"{path}: expected to delete it, found that the file system refused")


@contextmanager
def atomic_directory(path: str, *, overwrite: bool = False) -> Iterator[str]:
    """A temporary directory that becomes ``path`` when the block ends without an exception.

    Parameters
    ----------
    path : str
        The final directory, on any Hadoop file system.
    overwrite : bool
        Replace what is there, after the new directory is complete. A driver killed between the
        two renames leaves the old one beside it, as ``.NAME.*.old``.

    Yields
    ------
    str
        The temporary directory: empty, beside ``path``.

    Raises
    ------
    FileExistsError
        ``path`` exists and is not to be overwritten: before the block runs, or after it when
        somebody else wrote it in the meantime.
    OSError
        The file system refuses.

    Notes
    -----
    Local ``.crc`` files, which Hadoop's checksumming file system leaves beside each file, are
    removed before the rename.
    """
    final = qualified(path)
    _refuse_existing(final, overwrite)
    _, jpath = _open(final)
    if jpath.getParent() is None:
        raise OSError(f"{path}: expected a directory with a parent, found the root")
    beside = _beside(jpath)
    temporary = beside + ".tmp"
    made = _make(temporary)
    try:
        yield temporary
        with _uninterrupted():
            _remove_checksums(temporary)
            _refuse_existing(final, overwrite)
            _put(temporary, final, aside=beside + ".old")
    except BaseException:  # KeyboardInterrupt included
        with _uninterrupted():
            _clean(made)
        raise


@contextmanager
def put_aside(path: str) -> Iterator[None]:
    """What is at ``path`` stands aside while the block runs, as ``.NAME.*.old``.

    After the block it is deleted if there is something new at ``path``, and put back otherwise.
    """
    final = qualified(path)
    aside = _beside(_open(final)[1]) + ".old"
    _rename(final, aside)
    try:
        yield
    finally:
        with _uninterrupted():
            if exists(final):
                _let_go(aside)
            else:
                _rename(aside, final)


def _refuse_existing(path: str, overwrite: bool) -> None:
    if not overwrite and exists(path):
        raise FileExistsError(f"{path}: expected no such path, found one that exists")


def _beside(jpath: Any) -> str:
    """A hidden name of nobody else's in the same directory."""
    parent = str(jpath.getParent().toString()).rstrip("/")  # of the root: file:
    return f"{parent}/.{jpath.getName()}.{uuid.uuid4().hex[:8]}"


def _make(path: str) -> list[str]:
    """Make a directory. The directories that it took, deepest first: ``path`` and new parents."""
    with _io_errors(path):
        fs, jpath = _open(path)
        made = [path]
        parent = jpath.getParent()
        while parent is not None and not fs.exists(parent):
            made.append(str(parent.toString()))
            parent = parent.getParent()
        if not fs.mkdirs(jpath):
            raise OSError(f"{path}: expected to make this directory, found that it is not allowed")
        return made


def _clean(made: list[str]) -> None:
    """Undo :func:`_make`: parents only while they are empty. Never hides the first error."""
    try:
        delete(made[0])
        for parent in made[1:]:
            if names(parent) == []:
                delete(parent)
    except OSError as error:
        logger.warning("left behind: %s", error)


def _put(source: str, target: str, aside: str) -> None:
    """Move ``source`` to ``target``; what was there goes only once the new one stands."""
    replaced = exists(target)
    if replaced:
        _rename(target, aside)
    try:
        _rename(source, target)
    except BaseException:
        if replaced:
            _rename(aside, target)
        raise
    if replaced:
        _let_go(aside)


def _let_go(aside: str) -> None:
    """Delete what something new has replaced. The new one is not lost for a failure of that."""
    try:
        delete(aside)
    except OSError as error:
        logger.warning("the former output is left behind: %s", error)


def _rename(source: str, target: str) -> None:
    with _io_errors(target):
        fs, new = _open(target)
        _, old = _open(source)
        renamed = fs.rename(old, new)
        # Hadoop moves a directory *into* a target that exists: somebody was faster.
        inside = f"{target.rstrip('/')}/{old.getName()}"
        if exists(inside):
            fs.rename(_open(inside)[1], old)
            raise FileExistsError(f"{target}: expected no such path, found one that exists")
        if not renamed:
            raise OSError(f"{target}: expected to rename {source} to it, found that this failed")


def _remove_checksums(path: str) -> None:
    fs, jpath = _open(path)
    if fs.getUri().getScheme() != "file":
        return
    with _io_errors(path):
        files = fs.listFiles(jpath, True)
        found = []
        while files.hasNext():
            found.append(files.next().getPath())
        for file in found:
            name = str(file.getName())
            if name.startswith(".") and name.endswith(".crc"):
                fs.delete(file, False)


def _open(path: str) -> tuple[Any, Any]:
    """Hadoop's ``FileSystem`` and ``Path`` for a path."""
    spark: Any = SparkSession.active()
    hadoop = spark._jvm.org.apache.hadoop.fs
    conf = spark._jsparkSession.sessionState().newHadoopConf()
    jpath = hadoop.Path(path)
    fs = jpath.getFileSystem(conf)
    if fs.getUri().getScheme() == "file":
        # The raw local file system writes no .crc files and lists those that others wrote.
        fs = hadoop.FileSystem.getLocal(conf).getRawFileSystem()
    return fs, jpath


@contextmanager
def _io_errors(path: str) -> Iterator[None]:
    """Java's exceptions as the OSError of the same meaning, with the path in its message."""
    try:
        yield
    except Py4JJavaError as error:
        java: Any = error.java_exception
        name, message = str(java.getClass().getSimpleName()), str(java.getMessage())
        raise _kind(name, message)(f"{path}: {message} ({name})") from None
    except PySparkException as error:  # IllegalArgumentException: not a path, by Hadoop's rules
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from None


def _kind(name: str, message: str) -> type[OSError]:
    if "AlreadyExists" in name:
        return FileExistsError
    if name in ("FileNotFoundException", "NoSuchFileException"):
        return PermissionError if "Permission denied" in message else FileNotFoundError
    if "AccessControl" in name or "AccessDenied" in name or "Permission denied" in message:
        return PermissionError
    return OSError


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block: nothing must stop the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: waiting.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if waiting:
        signal.raise_signal(waiting[-1])
