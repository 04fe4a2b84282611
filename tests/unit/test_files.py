"""Files of one rank: they come back as they were written, or with an error that names them."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
import zlib
from contextlib import contextmanager

import h5py
import numpy as np
import openpmd_api
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import MeshField
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.files import checkpoint, series
from hpc_kjko.files.binned import Binned
from hpc_kjko.files.histograms import Histogram
from hpc_kjko.files.output import list_snapshots, read_snapshot, write_snapshot
from hpc_kjko.files.runfolder import git_revision
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.files.storage import ShardedFile
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, Shard, equal_weights
from hpc_kjko.species import ONLY, Species

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # regular expressions of the validator that newer Pythons dislike
    from openpmd_validator.check_h5 import check_file
    from openpmd_viewer import OpenPMDTimeSeries


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


# -- snapshots -----------------------------------------------------------------------------------------------


def state(dx: int, dv: int, dtype: torch.dtype = torch.float64) -> tuple[Particles, MeshField, list[Histogram]]:
    """Particles, fields and histograms with a different number in every place."""
    total, cells, lengths = 300, (4, 5, 6)[:dx], (2.0, 3.0, 4.0)[:dx]
    rng = np.random.default_rng(dx + 10 * dv)
    tensors = [torch.from_numpy(rng.random(shape)).to(dtype) for shape in ((total, dx), (total, dv), (total,))]
    shard = Shard(0, total, total)
    particles = Particles(*tensors, equal_weights(6.0, shard), shard, 6.0, lengths)
    field = MeshField(Grid(cells, lengths), *(rng.random(shape) for shape in ((1, *cells), cells, cells, (*cells, dx))))
    histograms = [Histogram(axis, rng.random((7, 8)), (0.0, lengths[axis]), (-4.0, 5.0)) for axis in range(dx)]
    return particles, field, histograms


def species_of(particles: Particles) -> Species:
    return Species(ONLY, 1.0, 1.0, particles)


def write(folder, alone, step=100, **parts):
    return write_snapshot(
        folder,
        alone,
        step=step,
        time=0.1 * step,
        time_step=0.1,
        run_attributes={"git": "abc", "ranks": 1},
        names=[ONLY],
        **parts,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dx", "dv"), [(1, 1), (1, 3), (3, 3)])
def test_a_snapshot_is_openpmd_and_comes_back(tmp_path, alone, dx, dv, dtype):
    particles, field, histograms = state(dx, dv, dtype)
    path = write(tmp_path, alone, species=[species_of(particles)], meshes=field, binned=[Binned(histograms, [])])
    assert path == tmp_path / "data00000100.h5"

    errors, warned = check_file(str(path))
    assert (errors, warned) == (0, 2)  # author and particlePatches are recommended, and mean nothing here

    found = read_snapshot(tmp_path, 100, particles=slice(10, None, 3))
    assert (found.step, found.time, found.attributes["git"], found.attributes["ranks"]) == (
        100,
        10.0,
        "abc",
        1,
    )
    np.testing.assert_array_equal(found.density, field.densities[0])
    for name in ("potential", "electric"):
        np.testing.assert_array_equal(getattr(found, name), getattr(field, name))
    np.testing.assert_array_equal(found.spacing, field.grid.spacing)
    for name, tensor in (("position", particles.x), ("velocity", particles.v), ("log_f", particles.log_f)):
        np.testing.assert_array_equal(getattr(found, name), tensor.numpy()[10::3])
        assert getattr(found, name).dtype == tensor.numpy().dtype
    assert found.weighting == 6.0 / 300
    assert len(found.histograms) == dx
    for histogram, expected in zip(found.histograms, histograms, strict=True):
        np.testing.assert_array_equal(histogram.values, expected.values)
        assert histogram.axis == expected.axis
        assert (*histogram.x_range, *histogram.v_range) == pytest.approx((*expected.x_range, *expected.v_range))


@pytest.mark.parametrize(("dx", "dv"), [(1, 1), (1, 3), (2, 2), (3, 3)])
def test_openpmd_viewer_shows_a_snapshot(tmp_path, alone, dx, dv):
    particles, field, histograms = state(dx, dv)
    write(tmp_path, alone, species=[species_of(particles)], meshes=field, binned=[Binned(histograms, [])])
    viewer = OpenPMDTimeSeries(str(tmp_path), backend="h5py")
    assert list(viewer.iterations) == [100] and viewer.t[0] == 10.0

    last = "xyz"[dv - 1]
    names = ["x", f"u{last}", "w", "log_f", "id"]
    x, u, w, log_f, number = viewer.get_particle(names, species=ONLY, iteration=100)
    np.testing.assert_array_equal(x, particles.x[:, 0])
    np.testing.assert_allclose(u * 299792458, particles.v[:, -1], rtol=1e-14)  # it divides momentum by m c
    np.testing.assert_array_equal(w, np.full(300, 6.0 / 300))
    np.testing.assert_array_equal(log_f, particles.log_f)
    np.testing.assert_array_equal(number, np.arange(300))

    assert set(viewer.avail_fields) == {"density", "potential", "E"}  # and no mesh of another space
    for axis, label in enumerate("xyz"[:dx]):
        electric, info = viewer.get_field("E", label, iteration=100)
        np.testing.assert_array_equal(electric, field.electric[..., axis])
        centres = (np.arange(field.grid.cells[axis]) + 0.5) * field.grid.spacing[axis]
        np.testing.assert_allclose(getattr(info, label), centres)
    density, info = viewer.get_field("density", iteration=100)
    np.testing.assert_array_equal(density, field.densities[0])
    assert [info.axes[axis] for axis in range(dx)] == list("xyz"[:dx])


@pytest.mark.parametrize(("dx", "dv"), [(1, 1), (1, 3), (2, 2), (3, 3)])
def test_openpmd_api_reads_meshes_particles_units_and_time(tmp_path, alone, dx, dv):
    """The library behind ParaView's reader, which is stricter than the viewer."""
    particles, field, histograms = state(dx, dv)
    for step in (0, 100):
        write(tmp_path, alone, step, species=[species_of(particles)], meshes=field, binned=[Binned(histograms, [])])
    series = openpmd_api.Series(f"{tmp_path}/data%08T.h5", openpmd_api.Access.read_only)
    assert series.openPMD == "1.1.0" and series.software == "hpc_kjko" and list(series.iterations) == [0, 100]
    iteration = series.iterations[100]
    assert (iteration.time, iteration.dt, iteration.time_unit_SI) == (10.0, 0.1, 1.0)

    axes = list("xyz"[:dx])
    electric = iteration.meshes["E"]
    assert electric.axis_labels == axes and list(electric) == axes and electric.data_order == "C"
    assert electric.grid_spacing == pytest.approx(field.grid.spacing) and electric.grid_global_offset == [0.0] * dx
    assert electric.unit_dimension == [1, 1, -3, -1, 0, 0, 0]  # V/m
    density = iteration.meshes["density"][openpmd_api.Mesh_Record_Component.SCALAR]
    assert set(iteration.meshes) == {"density", "potential", "E"}  # and no mesh of another space
    for _, mesh in iteration.meshes.items():
        assert mesh.axis_labels == axes and mesh.grid_global_offset == [0.0] * dx
    chunks = [electric[axis].load_chunk() for axis in axes] + [density.load_chunk()]

    markers = iteration.particles[ONLY]
    scalar = openpmd_api.Record_Component.SCALAR
    assert markers["momentum"].unit_dimension == [1, 1, -1, 0, 0, 0, 0]
    assert list(markers["momentum"]) == list("xyz"[:dv]) and list(markers["position"]) == axes
    assert markers["mass"][scalar].constant and markers["positionOffset"]["x"].constant
    found = [markers["position"]["x"].load_chunk([100], [50]), markers["momentum"]["xyz"[dv - 1]].load_chunk()]
    found += [markers[name][scalar].load_chunk() for name in ("log_f", "weighting", "id")]
    series.flush()

    for axis, values in enumerate(chunks[:dx]):
        np.testing.assert_array_equal(values, field.electric[..., axis])
    np.testing.assert_array_equal(chunks[-1], field.densities[0])
    assert density.unit_SI == 1.0 and density.position == [0.5] * dx
    np.testing.assert_array_equal(found[0], particles.x[100:150, 0])
    np.testing.assert_array_equal(found[1], particles.v[:, -1])
    np.testing.assert_array_equal(found[2], particles.log_f)
    np.testing.assert_array_equal(found[3], np.full(300, 6.0 / 300))
    np.testing.assert_array_equal(found[4], np.arange(300))
    assert found[4].dtype == np.uint64


@pytest.mark.parametrize(("dx", "dv"), [(1, 1), (1, 3), (2, 2), (3, 3)])
def test_yt_takes_the_domain_of_x_from_a_snapshot(tmp_path, alone, dx, dv):
    """It takes the domain from any mesh: there must be none of another space."""
    yt = pytest.importorskip("yt", reason="yt is heavy, and not among the packages of the tests")
    yt.set_log_level(50)
    particles, field, histograms = state(dx, dv)
    data = yt.load(
        write(tmp_path, alone, species=[species_of(particles)], meshes=field, binned=[Binned(histograms, [])])
    )
    assert data.dimensionality == dx and list(data.domain_dimensions[:dx]) == list(field.grid.cells)
    assert not data.domain_left_edge.d[:dx].any()
    np.testing.assert_allclose(data.domain_right_edge.d[:dx], field.grid.lengths)
    np.testing.assert_allclose(data.index.grids[0].dds.d[:dx], field.grid.spacing)
    fields = {"density": field.densities[0], **{f"E_{'xyz'[axis]}": field.electric[..., axis] for axis in range(dx)}}
    for name, values in fields.items():
        np.testing.assert_array_equal(data.index.grids[0]["openPMD", name].d.ravel(), values.ravel())


@pytest.mark.parametrize("part", ["particles", "meshes", "histograms"])
def test_a_snapshot_holds_only_what_was_due(tmp_path, alone, part):
    particles, field, histograms = state(1, 1)
    parts = {"particles": {"species": [species_of(particles)]}, "meshes": {"meshes": field}}
    parts["histograms"] = {"binned": [Binned(histograms, [])]}
    path = write(tmp_path, alone, **parts[part])
    assert check_file(str(path))[0] == 0
    found = read_snapshot(tmp_path, 100, particles=slice(None))
    assert (found.position is not None) == (part == "particles")
    assert (found.density is not None) == (part == "meshes")
    assert bool(found.histograms) == (part == "histograms")


def test_snapshots_are_listed_by_step(tmp_path, alone):
    assert list_snapshots(tmp_path / "no folder") == []
    for step in (20, 3, 100_000_000):
        write(tmp_path, alone, step, meshes=state(1, 1)[1])
    (tmp_path / ".data00000004.h5.partial").touch()
    (tmp_path / "data5.h5").touch()
    assert list_snapshots(tmp_path) == [3, 20, 100_000_000]
    assert read_snapshot(tmp_path, 100_000_000).time == 1e7


def test_an_incomplete_snapshot_is_named(tmp_path, alone):
    path = write(tmp_path, alone, meshes=state(1, 1)[1])
    content = path.read_bytes()
    for length in (0, 10, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=f"{path} is not a complete snapshot"):
            read_snapshot(tmp_path, 100)
    with pytest.raises(UserError, match="there is no snapshot .*data00000101.h5"):
        read_snapshot(tmp_path, 101)


# -- checkpoints ---------------------------------------------------------------------------------------------

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


@pytest.mark.skipif(shutil.which("git") is None, reason="without git")
def test_the_git_revision_describes_the_code_that_runs(tmp_path, monkeypatch):
    """Not the documentation beside it, nor the folder and the environment of the command."""
    package, page = tmp_path / "checkout/package", tmp_path / "checkout/page.md"

    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=page.parent, check=True, capture_output=True)

    package.mkdir(parents=True)
    assert git_revision(package) == "no git checkout (installed package)"
    (package / "code.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    first = git_revision(package)
    assert re.fullmatch("[0-9a-f]{12}", first)
    page.write_text("changed")
    assert git_revision(package) == first
    git("add", ".")
    git("commit", "-m", "page")
    monkeypatch.setenv("GIT_DIR", os.devnull)
    monkeypatch.chdir(tmp_path)
    assert git_revision(package) == first
    monkeypatch.delenv("GIT_DIR")
    (package / "more.py").write_text("")
    assert git_revision(package) == f"{first}-dirty"
    git("add", ".")
    git("commit", "-m", "more")
    assert re.fullmatch("[0-9a-f]{12}", git_revision(package)) and git_revision(package) != first
    shutil.rmtree(page.parent / ".git")
    (page.parent / ".git").write_text("gitdir: nowhere")
    assert git_revision(package) == "git revision unknown"
