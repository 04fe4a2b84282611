"""MB/s of writing the rows of all ranks: one common file, and one file per rank with a master of virtual datasets.

    mpirun -n 2 python scripts/bench_files.py /scratch/somewhere
    PYTHONPATH=.venv-h5py-mpi mpirun -n 2 python scripts/bench_files.py /scratch/somewhere --only sharded   # MPI-IO
    python scripts/bench_files.py --quick

Both end with fsync. `ratio` is the speed relative to one file per rank. docs/benchmarks/2026-11-24-files.md has the
numbers, and the reasons for one common file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from benchmark import print_heading

from hpc_kjko.files.storage import ShardedFile
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Shard

COLUMNS = 7


def sharded(path: Path, columns: list[np.ndarray], shard: Shard, comm: Communicator) -> None:
    """Write one file: rank 0 gathers the rows, or all ranks write through MPI-IO if h5py has it."""
    with ShardedFile(path, comm) as file:
        for i, rows in enumerate(columns):
            file.rows(f"rows/{i}", rows, shard)


def file_a_rank(path: Path, columns: list[np.ndarray], shard: Shard, comm: Communicator) -> None:
    """Write the rows of each rank into its own file, then a master file in which they appear as single datasets."""
    names = [f"{path.stem}.rank{rank:05d}.h5" for rank in range(comm.size)]
    extents = comm.allgather((shard.start, shard.stop))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path.parent / names[comm.rank]) as file:
        for i, rows in enumerate(columns):
            file[f"rows/{i}"] = rows
    comm.barrier()
    if comm.is_root:
        with whole(path) as file:
            for i in range(COLUMNS):
                layout = h5py.VirtualLayout((shard.total,), np.float32)
                for name, (start, stop) in zip(names, extents, strict=True):
                    if stop > start:
                        layout[start:stop] = h5py.VirtualSource(name, f"rows/{i}", (stop - start,))
                file.create_virtual_dataset(f"rows/{i}", layout, fillvalue=np.nan)


class whole:
    """A file under a temporary name until it is complete on the disk."""

    def __init__(self, path: Path):
        self.path, self.partial = path, path.with_suffix(".partial")

    def __enter__(self) -> h5py.File:
        self.file = h5py.File(self.partial, "w", libver=("earliest", "v110"))
        return self.file

    def __exit__(self, *error: object) -> None:
        self.file.close()
        with open(self.partial, "rb+") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)


WAYS = {"sharded": sharded, "file_a_rank": file_a_rank}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()))
    parser.add_argument("--count", type=lambda text: int(float(text)), help="rows (default 10⁷)")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    options = parser.parse_args()
    options.count = options.count or (10**5 if options.quick else 10**7)
    options.rounds = options.rounds or (2 if options.quick else 5)
    comm = Communicator.world()
    shard = Shard.of(options.count, comm.rank, comm.size)
    columns = [np.random.default_rng((comm.rank, i)).random(len(shard), np.float32) for i in range(COLUMNS)]
    megabytes = options.count * COLUMNS * 4 / 1e6
    ways = {name: way for name, way in WAYS.items() if options.only in (None, name)}
    rates = {f"{name}, {action}": [] for name in ways for action in ("write", "read")}
    for _ in range(options.rounds):
        for name, way in ways.items():
            path = options.folder / f"bench_{name}" / "rows.h5"
            comm.barrier()
            start = time.perf_counter()
            way(path, columns, shard, comm)
            comm.barrier()
            rates[f"{name}, write"].append(megabytes / (time.perf_counter() - start))
            start = time.perf_counter()
            with h5py.File(path) as file:
                for i, rows in enumerate(columns):
                    assert np.array_equal(file[f"rows/{i}"][shard.start : shard.stop], rows)
            comm.barrier()
            rates[f"{name}, read"].append(megabytes / (time.perf_counter() - start))
            if comm.is_root:
                shutil.rmtree(path.parent)
                os.sync()
    if comm.is_root:
        print_heading("a file a rank under a master of virtual datasets", options.quick)
        print(f"# {comm.size} ranks, {ShardedFile.describe(comm)}, {megabytes:.0f} MB in {options.folder}")
        print("name, MB_per_s, slowest, fastest, ratio")
        for name, found in rates.items():
            peer = rates.get(f"file_a_rank, {name.partition(', ')[2]}", [float("nan")])
            median = np.median(found)
            print(
                f'"{name}", {median:.0f}, {min(found):.0f}, {max(found):.0f}, {median / np.median(peer):.2f}',
                flush=True,
            )


if __name__ == "__main__":
    main()
