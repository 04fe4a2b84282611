"""Files written and read by several ranks: same data, one error for all, any rank count."""

from __future__ import annotations

import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from openpmd_validator.check_h5 import check_file

from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import MeshField
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.files import checkpoint, storage
from hpc_kjko.files.output import read_snapshot, write_snapshot
from hpc_kjko.files.storage import ShardedFile
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, Shard, equal_weights
from hpc_kjko.species import ONLY, Species

BAD_DISK = "check the free space"


@pytest.fixture
def comm() -> Communicator:
    return Communicator.world()


@pytest.fixture
def folder(comm: Communicator, tmp_path: Path) -> Path:
    """Rank 0's temporary folder, on every rank."""
    return comm.bcast(tmp_path)


def everywhere(total: int) -> dict[str, np.ndarray]:
    """The rows of all ranks."""
    rng = np.random.default_rng(total)
    return {"x": rng.random((total, 3), np.float32), "log_f": rng.random(total)}


def mine(rows: np.ndarray, comm: Communicator) -> tuple[np.ndarray, Shard]:
    shard = Shard.of(len(rows), comm.rank, comm.size)
    return rows[shard.start : shard.stop], shard


def files_in(folder: Path, comm: Communicator) -> list[str]:
    """What is in the folder when every rank has come here and none has gone on."""
    comm.barrier()
    return comm.bcast(sorted(path.name for path in folder.iterdir()))


@pytest.mark.parallel([2, 3])
def test_rows_of_all_ranks_are_in_the_file_in_order(comm, folder, monkeypatch):
    monkeypatch.setattr(storage, "SLAB_BYTES", 10_000)
    # Rows for all ranks, for two ranks, for the last rank alone, in a last block that is not full.
    for total in (5 * BLOCK + 7, BLOCK + 1, 3):
        expected = everywhere(total)
        with ShardedFile(folder / "deeper" / "file.h5", comm) as file:
            file.group("group")
            file.attributes("group", {"name": "β", "names": ["a", "bc"], "number": 1.5, "count": np.uint32(4)})
            file.array("group/small", np.full(3, comm.rank))
            for name, rows in expected.items():
                file.rows(f"rows/{name}", *mine(rows, comm))
            file.rows("rows/single", *mine(expected["log_f"], comm), dtype=np.float32)
        with h5py.File(folder / "deeper" / "file.h5") as file:
            for name, rows in expected.items():
                assert file["rows"][name].dtype == rows.dtype
                np.testing.assert_array_equal(file["rows"][name], rows)
            np.testing.assert_array_equal(file["rows/single"], expected["log_f"].astype(np.float32))
            assert file["rows/single"].dtype == np.float32
            assert list(file["group/small"]) == [0, 0, 0]
            attributes = file["group"].attrs
            assert attributes["name"] == "β".encode() and list(attributes["names"]) == [b"a", b"bc"]
            assert attributes["number"] == 1.5 and attributes["count"].dtype == np.uint32
        assert files_in(folder / "deeper", comm) == ["file.h5"]


@pytest.mark.parallel(3)
def test_a_failure_on_one_rank_is_raised_by_all_and_leaves_the_file_before_it(comm, folder):
    path = folder / "file.h5"
    with ShardedFile(path, comm) as file:
        file.array("version", 1)
    rows, shard = mine(everywhere(3 * BLOCK)["x"], comm)

    def write(failing: int, place: str) -> None:
        def perhaps_fail(here: str) -> None:
            if comm.rank == failing and here == place:
                raise UserError(f"{here} on rank {failing}")

        with ShardedFile(path, comm) as file:
            perhaps_fail("at first")
            file.group("group")
            perhaps_fail("before an array")
            file.array("group/array", np.zeros(3))
            perhaps_fail("before rows")
            file.rows("x", rows, shard)
            perhaps_fail("at the end")

    for failing in range(comm.size):
        for place in ("at first", "before an array", "before rows", "at the end"):
            with pytest.raises(UserError, match=f"{place} on rank {failing}"):
                write(failing, place)
            assert files_in(folder, comm) == ["file.h5"]
    with pytest.raises(RuntimeError, match="ValueError"), ShardedFile(path, comm) as file:
        file.rows("x", np.zeros(len(shard)) if comm.rank else ["no", "numbers"], shard, dtype=np.float64)
    with pytest.raises(RuntimeError, match="exists"), ShardedFile(path, comm) as file:
        for _ in range(2):
            file.rows("x", rows, shard)
    assert files_in(folder, comm) == ["file.h5"]
    with h5py.File(path) as file:
        assert file["version"][()] == 1


@pytest.mark.parallel(2)
def test_a_disk_that_refuses_is_everybodys_error(comm, folder):
    path = folder / "file.h5"
    rows, shard = mine(everywhere(20 * BLOCK)["x"], comm)

    def write() -> None:
        with ShardedFile(path, comm) as file:
            for name in "abc":
                file.attributes("/", {name: "text" * 1000})
                file.rows(name, rows, shard)

    write()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 3_000, 20_000, 100_000, 300_000, 700_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            with pytest.raises(UserError, match=f"{path} .*{BAD_DISK}"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert files_in(folder, comm) == ["file.h5"]
    with pytest.raises(UserError, match=BAD_DISK), ShardedFile(path / "beneath a file", comm):
        pass
    write()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["c"], everywhere(20 * BLOCK)["x"])


@pytest.mark.parallel(3)
def test_a_checkpoint_moves_between_rank_counts_and_damage_is_everybodys_error(comm, folder, caplog):
    groups = {size: Communicator(comm.mpi.Split(comm.rank < size, comm.rank)) for size in (1, 2)} | {3: comm}
    state = {"network/layers.0.weight": np.arange(6.0).reshape(2, 3)}

    for total in (BLOCK + 5, 7 * BLOCK + 1):  # the first leaves one rank of three without rows
        expected = everywhere(total)
        for saving in (1, 2, 3):
            path = folder / f"{total}" / f"step{saving:08d}.h5"
            if comm.rank < saving:
                local = {name: mine(rows, groups[saving])[0] for name, rows in expected.items()}
                shard = mine(expected["x"], groups[saving])[1]
                header = {"step": saving, "host": "a" * (1 + comm.rank)}
                species = {ONLY: checkpoint.Rows(shard, local)}
                assert checkpoint.save(path.parent, groups[saving], species, state, header) == path
            comm.barrier()
            for loading in (1, 2, 3):
                if comm.rank < loading:
                    found = checkpoint.load(path, groups[loading])
                    assert found.header == {"step": saving, "host": "a"}
                    np.testing.assert_array_equal(found.state["network/layers.0.weight"], np.arange(6.0).reshape(2, 3))
                    for name, rows in expected.items():
                        local, shard = mine(rows, groups[loading])
                        there = found.species[ONLY]
                        assert there.shard == shard and there.arrays[name].dtype == rows.dtype
                        np.testing.assert_array_equal(there.arrays[name], local)
            comm.barrier()

    if comm.is_root:  # a byte of the last block, which the last rank reads
        content = bytearray(path.read_bytes())
        content[content.index(expected["x"][-1].tobytes())] ^= 1
        path.write_bytes(content)
    comm.barrier()
    with pytest.raises(UserError, match=f"{path} .*from row {7 * BLOCK} on"):
        checkpoint.load(path, comm)
    assert checkpoint.load_latest(path.parent, comm).header["step"] == 2
    assert str(path) in caplog.text


@pytest.mark.parallel(2)
def test_a_snapshot_holds_the_particles_of_all_ranks(comm, folder):
    total = BLOCK + 9
    position, velocity = everywhere(total)["x"][:, :1], everywhere(total)["x"]
    shard = Shard.of(total, comm.rank, comm.size)
    here = slice(shard.start, shard.stop)
    tensors = [torch.from_numpy(rows[here].copy()) for rows in (position, velocity, velocity[:, 0])]
    potential = np.full(4, 1.0 - comm.rank)  # solved by rank 0 alone
    field = MeshField(Grid((4,), (2.0,)), np.ones((1, 4)), np.ones(4), potential, np.ones((4, 1)))
    path = write_snapshot(
        folder,
        comm,
        step=0,
        time=0.0,
        time_step=0.1,
        run_attributes={"host": "a" * (1 + comm.rank)},
        names=[ONLY],
        species=[Species(ONLY, 1.0, 1.0, Particles(*tensors, equal_weights(2.0, shard), shard, 2.0, (2.0,)))],
        meshes=field,
    )
    assert check_file(str(path))[0] == 0
    found = read_snapshot(folder, 0, particles=slice(None))
    np.testing.assert_array_equal(found.position, position)
    np.testing.assert_array_equal(found.velocity, velocity)
    np.testing.assert_array_equal(found.log_f, velocity[:, 0])
    np.testing.assert_array_equal(found.potential, np.ones(4))
    assert found.attributes["host"] == "a"
