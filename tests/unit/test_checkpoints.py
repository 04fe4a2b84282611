"""Checkpoints of one rank: they come back as they were written, or with an error that names them."""

from __future__ import annotations

import hashlib
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_files import largest_file, names_in
from test_snapshots import state, write

from hpc_kjko.errors import UserError
from hpc_kjko.files import checkpoint
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Shard
from hpc_kjko.species import ONLY

ROWS = BLOCK + 76
PARTICLES = {
    "x": np.random.default_rng(0).random((ROWS, 2), np.float32),
    "log_f": np.random.default_rng(1).random(ROWS),
}
STATE = {
    "network/layers.0.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "network/layers.0.bias": np.empty((0,)),
    "optimiser/steps": np.array(7),
    "generator": np.frombuffer(b"\0\1\2\377", np.uint8),
    "flags": np.array([True, False]),
}
HEADER = {"time": 0.1, "case": "kind = 'gaussian'\nname = \"β\"", "nested": {"list": [1, None, 1e300]}}


def save(folder, alone, step=1):
    return checkpoint.save(
        folder, alone, {ONLY: checkpoint.Rows(Shard(0, ROWS, ROWS), PARTICLES)}, STATE, HEADER | {"step": step}
    )


def assert_whole(found: checkpoint.Checkpoint, step: int) -> None:
    assert found.header == HEADER | {"step": step}
    assert list(found.species) == [ONLY] and found.species[ONLY].shard == Shard(0, ROWS, ROWS)
    for arrays, expected in ((found.species[ONLY].arrays, PARTICLES), (found.state, STATE)):
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
            np.testing.assert_array_equal(array, expected[name])


def test_a_checkpoint_comes_back(tmp_path, alone):
    path = save(tmp_path / "checkpoints", alone)
    assert path == tmp_path / "checkpoints/step00000001.h5"
    assert_whole(checkpoint.load(path, alone), 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = save(tmp_path_factory.mktemp("damage"), Communicator())
    return path, path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_damaged_byte_is_found_or_does_not_matter(saved, position, mask):
    path, content = saved
    damaged = bytearray(content)
    damaged[int(position * len(content))] ^= mask
    path.write_bytes(damaged)
    try:
        assert_whole(checkpoint.load(path, Communicator()), 1)
    except UserError as error:
        assert str(path) in str(error) and "restart from another checkpoint" in str(error)


@settings(max_examples=50, deadline=None)
@given(length=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_found(saved, length):
    path, content = saved
    path.write_bytes(content[: int(length * len(content))])
    with pytest.raises(UserError, match=f"{path} is not a complete checkpoint"):
        checkpoint.load(path, Communicator())


def test_values_that_were_exchanged_are_found(tmp_path, alone):
    """HDF5 would not notice: the file is in order, its numbers are another run's."""

    def change_rows(file):
        file[f"particles/{ONLY}/x"][BLOCK] = 0.5

    def change_rows_and_their_checksum(file):
        file[f"particles/{ONLY}/x"][0] = 0.5
        file[f"block_crc32/{ONLY}/x"][0] = zlib.crc32(file[f"particles/{ONLY}/x"][:BLOCK])

    def change_type_of_rows(file):
        rows = file[f"particles/{ONLY}/x"][()].view(np.int32)
        del file[f"particles/{ONLY}/x"]
        file[f"particles/{ONLY}/x"] = rows

    def change_state(file):
        file["state/optimiser/steps"][()] = 8

    def change_checksums(file):
        file[f"block_crc32/{ONLY}/x"][0] = 8

    def change_header(file):
        text = file["manifest"][()]
        del file["manifest"]
        file["manifest"] = np.bytes_(text.replace(b'"time": 0.1', b'"time": 0.2'))
        file["manifest"].attrs["sha256"] = np.bytes_(b"0" * 64)

    def shorten(file):
        rows = file[f"particles/{ONLY}/log_f"][:-1]
        del file[f"particles/{ONLY}/log_f"]
        file[f"particles/{ONLY}/log_f"] = rows

    def change_type_of_state(file):
        values = file["state/flags"][()].astype(np.int8)
        del file["state/flags"]
        file["state/flags"] = values

    for change in (
        change_rows,
        change_checksums,
        change_rows_and_their_checksum,
        change_type_of_rows,
        shorten,
        change_state,
        change_type_of_state,
        change_header,
    ):
        path = save(tmp_path, alone)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(UserError, match=f"{path} is not a complete checkpoint"):
            checkpoint.load(path, alone)


def test_files_of_another_kind_are_refused(tmp_path, alone):
    snapshot, text, nothing = tmp_path / "snapshot.h5", tmp_path / "text.h5", tmp_path / "nothing.h5"
    write(tmp_path, alone, meshes=state(1, 1)[1]).rename(snapshot)
    text.write_text("not HDF5 at all\n" * 1000)
    for path in (snapshot, text, nothing, tmp_path):
        with pytest.raises(UserError, match=f"{path}.*restart from another"):
            checkpoint.load(path, alone)
        with pytest.raises(UserError, match=f"{path}.*series.h5 of a run"):
            read_series(path)
        with pytest.raises(UserError, match=str(path)):
            SeriesWriter.resume(path, 0)
    path = save(tmp_path, alone)
    with h5py.File(path, "r+") as file:  # written by another version
        manifest = file["manifest"][()].replace(b"checkpoint 2", b"checkpoint 1")
        file["manifest"][()] = np.bytes_(manifest)
        file["manifest"].attrs["sha256"] = np.bytes_(hashlib.sha256(manifest).hexdigest())
    with pytest.raises(UserError, match="format is 'hpc_kjko checkpoint 1'"):
        checkpoint.load(path, alone)


def test_the_last_two_checkpoints_stay(tmp_path, alone):
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}"):
        checkpoint.latest(tmp_path)
    for step in (9, 100, 20_000_000, 100_000_000):
        save(tmp_path, alone, step)
    assert names_in(tmp_path) == ["step100000000.h5", "step20000000.h5"]
    assert checkpoint.latest(tmp_path).name == "step100000000.h5"
    save(tmp_path, alone, 20_000_001)  # restarted from step 20000000: what came after it then is no more
    assert names_in(tmp_path) == ["step20000000.h5", "step20000001.h5"]


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(tmp_path, alone):
    for step in (1, 2):
        save(tmp_path, alone, step)
    for step in (2, 3):
        with pytest.raises(UserError, match=f"step0000000{step}.h5 .*free space"), largest_file(50_000):
            save(tmp_path, alone, step)
    assert names_in(tmp_path) == ["step00000001.h5", "step00000002.h5"]
    assert_whole(checkpoint.load_latest(tmp_path, alone), 2)


def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(tmp_path, alone, caplog):
    for step in (1, 2):
        path = save(tmp_path, alone, step)
    path.write_bytes(path.read_bytes()[:-100])
    assert_whole(checkpoint.load_latest(tmp_path, alone), 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(path) in caplog.text
    (tmp_path / "step00000001.h5").unlink()
    with pytest.raises(UserError, match=str(path)):
        checkpoint.load_latest(tmp_path, alone)
