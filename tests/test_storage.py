"""Writing whole or not at all, on the local file system (the one that needs no server)."""

import os
import signal

import pytest

from mllib_ext import storage

pytestmark = pytest.mark.usefixtures("spark")


def everything_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_directory_appears_under_its_name_only_when_it_is_complete(tmp_path):
    target = tmp_path / "out"
    with storage.atomic_directory(str(target)) as directory:
        storage.write_text(f"{directory}/a.txt", "a")
        assert not target.exists()
    assert everything_below(tmp_path) == ["out", "out/a.txt"]


def test_a_path_may_have_spaces_and_letters_of_any_language(tmp_path):
    target = tmp_path / "mit Leerzeichen" / "größer"
    with storage.atomic_directory(str(target)) as directory:
        storage.write_text(f"{directory}/ä ö.txt", "ü")
    assert storage.names(str(target)) == ["ä ö.txt"]
    assert storage.read_text(f"{target}/ä ö.txt") == "ü"


def test_what_spark_writes_leaves_no_checksum_files(spark, tmp_path):
    with storage.atomic_directory(str(tmp_path / "out")) as directory:
        spark.range(5).coalesce(1).write.parquet(f"{directory}/data")
    assert not list(tmp_path.rglob("*.crc"))
    assert spark.read.parquet(f"{tmp_path}/out/data").count() == 5


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_not_even_new_parents(tmp_path, error):
    def interrupted():
        with storage.atomic_directory(f"{tmp_path}/new/parents/out") as directory:
            storage.write_text(f"{directory}/a.txt", "a")
            raise error

    with pytest.raises(error):
        interrupted()
    assert everything_below(tmp_path) == []


def test_an_existing_path_is_refused_before_the_block_runs(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(FileExistsError, match=r"/out: expected no such path, found one"),
        storage.atomic_directory(str(tmp_path / "out")),
    ):
        pytest.fail("the block ran")
    assert everything_below(tmp_path) == ["out"]


def test_the_old_directory_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with storage.atomic_directory(str(target), overwrite=True) as directory:
        storage.write_text(f"{directory}/new.txt", "new")
        assert storage.names(str(target)) == ["old.txt"]
    assert everything_below(tmp_path) == ["out", "out/new.txt"]


def test_the_old_directory_survives_a_failure(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def fails():
        with storage.atomic_directory(str(target), overwrite=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert everything_below(tmp_path) == ["out", "out/old.txt"]


def test_the_old_directory_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    rename = storage._rename

    def refuses_the_new_one(source, to):
        if source.endswith(".tmp"):
            raise OSError("disk full")
        rename(source, to)

    monkeypatch.setattr(storage, "_rename", refuses_the_new_one)
    with (
        pytest.raises(OSError, match="disk full"),
        storage.atomic_directory(str(target), overwrite=True),
    ):
        pass
    assert everything_below(tmp_path) == ["out", "out/old.txt"]


def test_what_somebody_else_wrote_in_the_meantime_is_kept(tmp_path):
    target = tmp_path / "out"

    def somebody_is_faster():
        with storage.atomic_directory(str(target)):
            target.mkdir()
            (target / "theirs.txt").write_text("theirs")

    with pytest.raises(FileExistsError, match="/out: expected no such path"):
        somebody_is_faster()
    assert everything_below(tmp_path) == ["out", "out/theirs.txt"]


def test_a_rename_never_moves_a_directory_into_another(tmp_path):
    # Hadoop's rename does, where the target turned up after it was looked for
    (tmp_path / "mine.tmp").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs.txt").write_text("theirs")
    with pytest.raises(FileExistsError, match="/out: expected no such path"):
        storage._rename(f"{tmp_path}/mine.tmp", f"{tmp_path}/out")
    assert everything_below(tmp_path) == ["mine.tmp", "out", "out/theirs.txt"]


@pytest.fixture
def sigterm_raises():
    def raise_(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, raise_)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_waits_until_everything_is_cleaned_up(
    tmp_path, monkeypatch, sigterm_raises, number
):
    clean = storage._clean

    def interrupted_cleaning(made):
        os.kill(os.getpid(), number)
        clean(made)

    monkeypatch.setattr(storage, "_clean", interrupted_cleaning)

    def fails():
        with storage.atomic_directory(str(tmp_path / "out")) as directory:
            storage.write_text(f"{directory}/a.txt", "a")
            raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert everything_below(tmp_path) == []


def test_a_file_whose_writing_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    write = storage._write

    def interrupted(path, data):
        write(path, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.put_text(f"{tmp_path}/a.txt", "a")
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("new", [True, False])
def test_what_is_put_aside_comes_back_unless_it_is_replaced(tmp_path, new):
    storage.write_text(f"{tmp_path}/out/a.txt", "old")

    def fails():
        with storage.put_aside(f"{tmp_path}/out"):
            assert not storage.exists(f"{tmp_path}/out")
            if new:
                storage.write_text(f"{tmp_path}/out/b.txt", "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert everything_below(tmp_path) == ["out", "out/b.txt" if new else "out/a.txt"]


def test_a_long_text_comes_back(tmp_path):
    text = "äöü 0123456789\n" * 200_000  # more than one chunk
    storage.write_text(f"{tmp_path}/long.txt", text)
    assert storage.read_text(f"{tmp_path}/long.txt") == text


def test_a_text_is_not_written_over_another(tmp_path):
    storage.write_text(f"{tmp_path}/a.txt", "first")
    with pytest.raises(FileExistsError, match=r"a\.txt"):
        storage.write_text(f"{tmp_path}/a.txt", "second")
    assert storage.read_text(f"{tmp_path}/a.txt") == "first"


def test_matches_knows_wildcards(tmp_path):
    (tmp_path / "part-1.csv").write_text("")
    assert storage.matches(f"{tmp_path}/part-*.csv")
    assert storage.matches(f"{tmp_path}/part-1.csv")
    assert not storage.matches(f"{tmp_path}/part-*.json")
    assert not storage.matches(f"{tmp_path}/part-2.csv")


def test_names_of_what_is_no_directory_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert storage.names(str(tmp_path)) == ["file"]
    assert storage.names(f"{tmp_path}/file") is None
    assert storage.names(f"{tmp_path}/nothing") is None


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/no/such/file", FileNotFoundError, "/no/such/file: .*does not exist"),
        ("nowhere://bucket/file", OSError, "nowhere://bucket/file: No FileSystem for scheme"),
        ("a:b", OSError, "a:b: .*URI"),
        ("", OSError, "empty string"),
    ],
)
def test_errors_are_of_python_and_name_the_path(path, kind, message):
    with pytest.raises(kind, match=message):
        storage.read_text(path)


def test_a_place_that_cannot_be_written_is_refused_before_the_block_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"file/\.out"),
        storage.atomic_directory(f"{tmp_path}/file/out"),
    ):
        pytest.fail("the block ran")
