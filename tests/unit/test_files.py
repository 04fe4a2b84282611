"""Files of one rank, and the series: whole or not at all, with an error that names them."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from hpc_kjko.errors import UserError
from hpc_kjko.files import series
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.files.storage import ShardedFile
from hpc_kjko.particles.state import Shard


@contextmanager
def largest_file(nbytes: int):
    """No file may grow beyond ``nbytes``: what a full disk or an exhausted quota does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# -- one file, whole or not at all ---------------------------------------------------------------------------


def test_a_block_that_fails_leaves_the_file_before_it(tmp_path, alone):
    path = tmp_path / "file.h5"
    with ShardedFile(path, alone) as file:
        file.array("version", 1)
    with pytest.raises(UserError, match="half way"), ShardedFile(path, alone) as file:
        file.array("version", 2)
        file.rows("rows", np.zeros((10, 2)), Shard(0, 10, 10))
        raise UserError("half way")
    assert names_in(tmp_path) == ["file.h5"]
    with h5py.File(path) as file:
        assert file["version"][()] == 1


@pytest.mark.parametrize("nbytes", [0, 1_000, 17_000, 40_000, 60_000, 100_000, 250_000])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_one_before_it(tmp_path, alone, nbytes):
    path = tmp_path / "file.h5"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=f"{path} .*free space"), largest_file(nbytes):
        with ShardedFile(path, alone) as file:
            file.attributes("/", {"text": "text" * 5000})
            file.array("array", np.zeros(5000))
            file.rows("rows", np.zeros(20_000), Shard(0, 20_000, 20_000))
    assert names_in(tmp_path) == ["file.h5"]
    assert path.read_bytes() == b"before"


def test_disk_space_that_was_not_needed_is_given_back(tmp_path, alone):
    with ShardedFile(tmp_path / "file.h5", alone) as file:
        for number in range(20):
            file.group(str(number))
    writer = SeriesWriter(tmp_path / "series.h5", ["t"], {"t": "1"})
    writer.close()
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 16_000


# -- time series ---------------------------------------------------------------------------------------------

COLUMNS = ["step", "time", "energy", "mass"]
UNITS = {"step": "1", "time": "1/ω_p", "energy": "1", "mass": "1"}


def row(number: int) -> dict[str, float]:
    return {"step": float(number), "time": 0.1 * number, "energy": float(number), "mass": 1.0}


def assert_rows(found: dict[str, np.ndarray], count: int) -> None:
    assert list(found) == COLUMNS
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], [row(number)[name] for number in range(count)])


def test_a_series_comes_back_in_its_columns(tmp_path):
    writer = SeriesWriter(tmp_path / "series.h5", COLUMNS, UNITS)
    for number in range(3000):
        writer.append(row(number))
    assert writer.rows == 3000
    writer.close()
    assert_rows(read_series(tmp_path / "series.h5"), 3000)
    with h5py.File(tmp_path / "series.h5") as file:
        assert file["time"].attrs["unit"].decode() == "1/ω_p"
    with pytest.raises(UserError, match="other columns.*mass"):
        writer.append({"time": 0.0, "energy": 0.0})
    with pytest.raises(UserError, match="other columns.*momentum"):
        writer.append(row(0) | {"momentum": 0.0})


def test_a_series_can_be_watched_while_it_grows(tmp_path, monkeypatch):
    writer = SeriesWriter(tmp_path / "series.h5", COLUMNS, UNITS)
    assert_rows(read_series(tmp_path / "series.h5"), 0)
    writer.append(row(0))  # at once: there is something to see
    assert_rows(read_series(tmp_path / "series.h5"), 1)
    writer.append(row(1))  # with others, a second later
    assert_rows(read_series(tmp_path / "series.h5"), 1)
    writer.flush()
    assert_rows(read_series(tmp_path / "series.h5"), 2)
    monkeypatch.setattr(series, "_FLUSH_SECONDS", 0.0)
    writer.append(row(2))
    assert_rows(read_series(tmp_path / "series.h5"), 3)
    writer.close()


def test_a_series_goes_on_after_the_rows_that_are_kept(tmp_path):
    path = tmp_path / "series.h5"
    writer = SeriesWriter(path, COLUMNS, UNITS)
    for number in range(2000):
        writer.append(row(number))
    writer.close()
    for keep in (1500, 0):
        writer, last = SeriesWriter.resume(path, keep - 1)
        assert last == keep - 1
        for number in range(keep, keep + 10):
            writer.append(row(number))
        writer.close()
        assert_rows(read_series(path), keep + 10)
    with h5py.File(path) as file:
        assert file["time"].attrs["unit"].decode() == "1/ω_p"
    writer, last = SeriesWriter.resume(path, 20)
    writer.close()
    assert last == 9 and names_in(tmp_path) == ["series.h5"]


WRITES_FOR_EVER = """
import itertools, sys
from hpc_kjko.files import series
series._FLUSH_SECONDS = 0.0
units = dict(step="1", time="1/ω_p", energy="1", mass="1")
writer = series.SeriesWriter(sys.argv[1], list(units), units)
for number in itertools.count():
    writer.append({"step": float(number), "time": 0.1 * number, "energy": float(number), "mass": 1.0})
    if number == 1500:
        print("writing", flush=True)
"""


def test_a_killed_run_leaves_a_series_that_can_go_on(tmp_path):
    path = tmp_path / "series.h5"
    process = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"writing\n"
        assert len(read_series(path)["time"]) > 1500
    finally:
        process.kill()
        process.communicate()
    count = len(read_series(path)["time"])
    assert count > 1500
    assert_rows(read_series(path), count)
    writer, _ = SeriesWriter.resume(path, count - 8)
    for number in range(count - 7, count + 7):
        writer.append(row(number))
    writer.close()
    assert_rows(read_series(path), count + 7)


def test_columns_have_equal_lengths_when_a_flush_was_cut_in_the_middle(tmp_path):
    path = tmp_path / "series.h5"
    SeriesWriter(path, COLUMNS, UNITS, {name: np.array([row(0)[name]]) for name in COLUMNS}).close()
    with h5py.File(path, "r+") as file:
        file["time"].resize((2,))
    assert_rows(read_series(path), 1)


def test_no_row_is_lost_to_a_disk_that_was_full_for_a_while(tmp_path):
    path = tmp_path / "series.h5"
    writer = SeriesWriter(path, COLUMNS, UNITS)
    for number in range(5000):
        writer.append(row(number))
    with pytest.raises(UserError, match=f"{path} .*free space"), largest_file(100_000):
        writer.flush()
    writer.append(row(5000))
    writer.close()
    assert_rows(read_series(path), 5001)
    with pytest.raises(UserError, match="other.h5 .*free space"), largest_file(10):
        SeriesWriter(tmp_path / "other.h5", COLUMNS, UNITS)
    with pytest.raises(UserError, match="there is no folder .*no folder: create it first"):
        SeriesWriter(tmp_path / "no folder/other.h5", COLUMNS, UNITS)
    assert names_in(tmp_path) == ["series.h5"]
