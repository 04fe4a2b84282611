"""Snapshots of one rank: they come back as they were written, and other programs read them."""

from __future__ import annotations

import warnings

import numpy as np
import openpmd_api
import pytest
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import MeshField
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.files.binned import Binned
from hpc_kjko.files.histograms import Histogram
from hpc_kjko.files.output import list_snapshots, read_snapshot, write_snapshot
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.species import ONLY, Species

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # regular expressions of the validator that newer Pythons dislike
    from openpmd_validator.check_h5 import check_file
    from openpmd_viewer import OpenPMDTimeSeries


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
