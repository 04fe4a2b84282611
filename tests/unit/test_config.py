"""Every mistake in a case ends in one sentence that names the key; a resolved case reads back equal."""

import re

import pytest
from conftest import SMALL_CASE
from hypothesis import assume, given
from hypothesis import strategies as st

from hpc_kjko.case.config import from_table, load, override
from hpc_kjko.case.sections import end_after
from hpc_kjko.errors import UserError
from hpc_kjko.schema import LARGEST, SMALLEST

TWO_STREAM = {"kind": "two_stream"}
CONTROLLED = {"problem": TWO_STREAM, "particles": {"control_variate": True}}


def case_with(**sections):
    return from_table({"problem": TWO_STREAM, **sections})


@pytest.mark.parametrize("kind", ["two_stream", "landau_damping", "gaussian", "confined", "periodic"])
def test_defaults_exist_for_all_but_the_kind_and_survive_a_round_trip(kind, tmp_path):
    case = from_table({"problem": {"kind": kind}})
    path = tmp_path / "case.toml"
    path.write_text(case.toml())
    assert load(path) == case


def test_the_contract_of_the_readme_case(tmp_path):
    path = tmp_path / "case.toml"
    path.write_text(
        """
        [problem]
        kind = "two_stream"
        length = 31.4159265
        beam_velocity = 2.4
        thermal_speed = 1.0
        amplitude = 0.005
        mode = 1
        velocity_dims = 1
        [physics]
        collision_strength = 0.01
        temperature = 1.0
        field = "poisson"
        [particles]
        count = 100000
        start = "quiet"
        seed = 0
        precision = "float64"
        [grid]
        cells = [128]
        shape_order = 1
        solver = "root"
        [time]
        step = 0.1
        end = 50.0
        integrator = "verlet"
        [method]
        collision = "jko"
        logdet = "exact"
        solver = "regression"
        iterations = 30
        first_iterations = 300
        learning_rate = 5e-3
        relaxation = 2.0
        order = 2
        held_out = true
        precision = "float32"
        hidden = [64, 64]
        activation = "tanh"
        chunk = 16384
        [output]
        every = 10
        particles_every = 100
        histogram_every = 10
        checkpoint_every = 100
        """
    )
    assert load(path) == from_table({"problem": TWO_STREAM})  # these are the defaults
    assert load(path).time.steps == 500


@pytest.mark.parametrize(
    ("table", "key", "advice"),
    [
        ({}, "problem.kind", "two_stream"),
        ({"problem": {"kind": "two_streams"}}, "problem.kind", "two_stream"),
        ({"problem": {"kind": ["two_stream"]}}, "problem.kind", "two_stream"),
        ({"problem": TWO_STREAM, "tiem": {}}, "tiem", "did you mean time?"),
        ({"problem": TWO_STREAM, "time": {"stpe": 0.1}}, "time.stpe", "did you mean step?"),
        ({"problem": {**TWO_STREAM, "lenght": 1.0}}, "problem.lenght", "did you mean length?"),
        ({"problem": TWO_STREAM, "time": 3}, "time", "[time]"),
        ({"problem": TWO_STREAM, "grid": {"clels": 3}}, "grid.clels", "did you mean cells?"),
        ({"problem": TWO_STREAM, "time": {"step": 1e-10}}, "time.end", "at most 1e9"),
        ({"problem": TWO_STREAM, "time": {"step": 1e-12, "end": 1e12}}, "time.end", "at most 1e9"),
        ({"problem": TWO_STREAM, "particles": {"count": 10**30}}, "particles.count", "at most"),
        ({"problem": TWO_STREAM, "grid": {"cells": 10**11}}, "grid.cells", "2^31"),
        ({"problem": {**TWO_STREAM, "space_dims": 3, "velocity_dims": 3}, "grid": {"cells": 1289}}, "cells", "2^31"),
        ({"problem": TWO_STREAM, "method": {"order": 3}}, "method.order", "at most 2"),
        ({"problem": {"kind": "gaussian", "space_dims": 10**9, "stiffness": 1.0}}, "problem.space_dims", "3"),
        ({"problem": {"kind": "gaussian", "stiffness": True}}, "problem.stiffness", "array"),
        ({"problem": {**TWO_STREAM, "length": []}}, "problem.length", "at least 1"),
        ({"problem": TWO_STREAM, "time": {"step": -0.1}}, "time.step", "greater than 0"),
        ({"problem": TWO_STREAM, "time": {"step": "0.1"}}, "time.step", "it should be a number"),
        ({"problem": TWO_STREAM, "time": {"step": float("nan")}}, "time.step", "finite"),
        ({"problem": TWO_STREAM, "time": {"end": 1.03}}, "time.end", "whole number"),
        ({"problem": TWO_STREAM, "particles": {"count": 0}}, "particles.count", "at least 1"),
        ({"problem": TWO_STREAM, "particles": {"start": "loud"}}, "particles.start", "'quiet', 'random' or 'grid'"),
        ({"problem": TWO_STREAM, "physics": {"temperature": 0.0}}, "physics.temperature", "greater than 0"),
        (
            {"problem": TWO_STREAM, "physics": {"collision_strength": -1.0}},
            "physics.collision_strength",
            "at least 0",
        ),
        ({**CONTROLLED, "problem": {"kind": "periodic"}}, "particles.control_variate", "physics.field"),
        ({**CONTROLLED, "problem": {"kind": "gaussian"}}, "particles.control_variate", "physics.field"),
        ({**CONTROLLED, "physics": {"collision_strength": 0.0}}, "particles.control_variate", "collision_strength > 0"),
        (
            {**CONTROLLED, "physics": {"field": "ampere"}, "time": {"energy_conserving": True}},
            "particles.control_variate",
            "time.energy_conserving",
        ),
        ({**CONTROLLED, "method": {"collision": "langevin"}}, "particles.control_variate", "method.collision"),
        ({**CONTROLLED, "method": {"collision": "none"}}, "particles.control_variate", "method.collision"),
        ({"problem": TWO_STREAM, "grid": {"cells": [32, 32]}}, "grid.cells", "problem.space_dims = 1"),
        ({"problem": TWO_STREAM, "grid": {"cells": []}}, "grid.cells", "at least 1"),
        ({"problem": TWO_STREAM, "grid": {"cells": 2}}, "grid.cells", "at least 4"),
        ({"problem": {**TWO_STREAM, "length": [1.0, 2.0]}}, "problem.length", "one number"),
        ({"problem": {**TWO_STREAM, "space_dims": 2}}, "problem.velocity_dims", "space direction"),
        ({"problem": {**TWO_STREAM, "amplitude": 1.5}}, "problem.amplitude", "less than 1"),
        ({"problem": TWO_STREAM, "method": {"hidden": [8, 8, 8]}}, "method.hidden", "at most two"),
        ({"problem": TWO_STREAM, "method": {"order": 2, "logdet": "linear"}}, "method.order", "exact"),
        ({"problem": {"kind": "gaussian"}, "physics": {"field": "poisson"}}, "physics.field", "external"),
        ({"problem": {"kind": "gaussian"}, "grid": {"cells": 8}}, "grid", "periodic"),
        ({"problem": {"kind": "gaussian", "mean": [0.0]}}, "problem.mean", "2"),
        ({"problem": {"kind": "gaussian", "stiffness": [[-1.0]]}}, "problem.stiffness", "positive definite"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(table, key, advice):
    with pytest.raises(UserError) as caught:
        from_table(table)
    sentences = str(caught.value).splitlines()
    assert len(sentences) == 1 or "space_dims" in key
    assert key in sentences[0] and advice in sentences[0]


SPECIES = {
    "problem": {"kind": "plasma"},
    "species": {name: {"charge": 1.0, "mass": 1.0, "count": 1024} for name in ("electrons", "ions")},
}


@pytest.mark.parametrize(
    ("table", "change", "sentence"),
    [
        # in the same section
        ({}, "physics.operator", "did you mean collision_operator?"),
        ({}, "output.histogram", "did you mean histogram_every?"),
        ({}, "physics.temperatur", "did you mean temperature?"),
        ({}, "time.end_time", "did you mean end?"),
        ({}, "problem.velocity", "did you mean velocity_dims or beam_velocity?"),
        # in another one
        ({}, "run.seed", "did you mean particles.seed?"),
        ({}, "run.seeds", "did you mean particles.seed?"),
        ({}, "time.wall_time", "did you mean run.wall_time?"),
        ({}, "physics.solver", "did you mean grid.solver or method.solver?"),
        ({}, "physics.log_lambda", "did you mean physics.landau.log_lambda?"),
        ({}, "grid.order", "did you mean shape_order or method.order?"),
        ({}, "run.output", "did you mean [output]?"),
        ({}, "landau.pairs", "landau is not a known key: did you mean physics.landau?"),
        ({}, "particles.mass", "did you mean species.NAME.mass?"),
        (SPECIES, "species.ions.seed", "did you mean particles.seed?"),
        (SPECIES, "species.ions.operator", "did you mean collision_operator?"),
        # of another kind
        ({}, "problem.bump_velocity", 'not a key of problem.kind = "two_stream": it is a key of "bump_on_tail"'),
        ({"problem": {"kind": "gaussian"}}, "problem.length", 'not a key of problem.kind = "gaussian": leave it out'),
        (SPECIES, "species.ions.beam_velocity", 'not a key of species.ions.initial = "maxwellian": it is a key of "be'),
        # of no kind
        ({}, "run.gpu", "it may be one of device, reproducible, wall_time"),
    ],
)
def test_advice_on_an_unknown_key_names_the_key_that_was_meant(table, change, sentence):
    with pytest.raises(UserError) as caught:
        from_table(override({"problem": TWO_STREAM} | table, {change: 1}))
    key = "" if change.startswith("landau") else f"{change} is not a"
    assert str(caught.value).startswith(key) and sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "value", "sentence"),
    [
        ("problem.length", "long", "problem.length = 'long': it should be a number"),
        ("problem.length", -1.0, "problem.length = -1.0: it should be greater than 0"),
        ("problem.length", [-1.0], "problem.length[0] = -1.0: it should be greater than 0"),
        ("problem.length", [1.0, 2.0], "problem.length has 2 entries: give one number"),
        ("problem.mode", "one", "problem.mode = 'one': it should be a whole number"),
        ("problem.mode", [1, 1], "problem.mode has 2 numbers for problem.space_dims = 1: give one number"),
        ("grid.cells", True, "grid.cells = true: it should be a whole number"),
        ("grid.cells", [32, 32], "grid.cells = [32, 32] does not fit problem.space_dims = 1: give one number"),
        ("physics.drive", {"amplitude": 1.0, "frequency": 1.0, "mode": 1.5}, "physics.drive.mode = 1.5: it should be"),
        ("physics.collision_operator", 3, "it should be 'bath', 'dougherty' or 'landau'"),
        ("physics.landau.pairs", [1], "physics.landau.pairs = [1]: it should be a table"),
        ("method.collision", 3, "method.collision = 3: it should be a text in quotes"),
        ("method.held_out", 1, "method.held_out = 1: it should be true or false"),
        ("output.every", -1, "output.every = -1: it should be at least 0"),
    ],
)
def test_advice_on_a_wrong_value_names_it_as_the_user_wrote_it(change, value, sentence):
    with pytest.raises(UserError) as caught:
        from_table(override({"problem": TWO_STREAM}, {change: value}))
    assert sentence in str(caught.value)
    assert not re.search(r"\[0\]", str(caught.value)) or isinstance(value, list)


def test_a_matrix_is_written_as_rows_and_a_plane_case_takes_a_number_for_each_axis():
    with pytest.raises(UserError, match=r"problem.covariance = -1.0: it should be an array of rows, as in \[\[1.0"):
        from_table({"problem": {"kind": "gaussian", "covariance": -1.0}})
    with pytest.raises(UserError, match="give one number, or one for each of the 2 space dimensions"):
        from_table({"problem": {**TWO_STREAM, "space_dims": 2, "velocity_dims": 2}, "grid": {"cells": [8, 8, 8]}})


def test_a_key_without_its_section_is_shown_with_it():
    with pytest.raises(UserError, match="--set count=3: .* for example --set particles.count=3"):
        override({}, ["count=3"])
    with pytest.raises(UserError, match="seed: write it as section.key, for example particles.seed"):
        override({}, {"seed": 3})


def test_a_scalar_broadcasts_over_dimensions():
    case = from_table(
        {"problem": {**TWO_STREAM, "space_dims": 3, "velocity_dims": 3, "length": 2.0}, "grid": {"cells": 8}}
    )
    assert case.problem.periods == (2.0, 2.0, 2.0)
    assert case.grid.cells == (8, 8, 8)
    assert case_with(grid={"cells": 64}).grid.cells == (64,)
    assert case_with(method={"hidden": []}).method.hidden == ()
    assert from_table({"problem": {"kind": "gaussian", "stiffness": 4}}).problem.stiffness == ((4.0,),)


def integers(table, *path):
    """The keys below a table that hold an integer, or a list of them, with their values."""
    for name, value in table.items():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(value, dict):
            yield from integers(value, *path, name)
        elif type(first) is int:
            yield ".".join((*path, name)), value


@pytest.mark.parametrize(
    "changes",
    [
        ["method.solver=adam", "method.iterations=7", "grid.cells=8", "problem.velocity_dims=3"],
        ["problem.kind=gaussian", "method.collision=velocity_matching"],
    ],
)
def test_every_whole_number_may_be_written_as_a_float_and_no_other_float_or_boolean_will_do(changes):
    case = from_table(override({"problem": TWO_STREAM if len(changes) == 4 else {}}, changes))
    keys = dict(integers(case.table()))
    solver = "velocity_matching" if "velocity_matching.iterations" in keys else "method"
    assert {"particles.count", "particles.seed", f"{solver}.iterations", "method.hidden", "output.every"} <= keys.keys()
    for key, value in keys.items():
        as_float, broken, boolean = (
            [kind(number) for number in value] if isinstance(value, list) else kind(value)
            for kind in (float, lambda number: number + 0.5, bool)
        )
        assert repr(from_table(override(case.table(), {key: as_float}))) == repr(case), key  # 2 == 2.0
        for wrong in (broken, boolean):
            with pytest.raises(UserError) as caught:
                from_table(override(case.table(), {key: wrong}))
            for sentence in str(caught.value).splitlines():
                assert sentence.startswith(key) and "whole number" in sentence
    assert from_table(override(case.table(), ["particles.count=1e6"])).particles.count == 1_000_000


def test_the_defaults_that_depend_on_a_number_do_not_depend_on_how_it_is_written():
    method = {"solver": "varpro"}
    few = [
        from_table({"problem": TWO_STREAM, "particles": {"count": count}, "method": method}) for count in (8192, 8192.0)
    ]
    assert few[0] == few[1] and few[0].method.learning_rate < case_with(method=method).method.learning_rate


def test_overrides_are_typed_like_toml():
    table = override({"problem": TWO_STREAM}, ["time.end=20", "method.hidden=[]", "particles.start=random"])
    case = from_table(table)
    assert (case.time.end, case.method.hidden, case.particles.start) == (20.0, (), "random")
    for wrong in ("time.end", "end=3", "=3", "time.=1"):
        with pytest.raises(UserError, match="section.key=value"):
            override({}, [wrong])


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.toml"):
        load(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for text in (b"[problem\nkind=", b"a = " + b"9" * 5000, b"a = " + b"[" * 20000):
        broken.write_bytes(text)
        with pytest.raises(UserError, match=r"broken.toml: not a TOML file"):
            load(broken)


@pytest.mark.parametrize(
    ("line", "advice"),
    [("kind = plasma # mine", 'put the text in quotes, as in kind = "plasma"$'), ("skip = True", "write skip = true$")],
)
def test_a_word_that_is_no_value_is_answered_with_what_to_write(line, advice, tmp_path):
    (tmp_path / "case.toml").write_text(f"[problem]\n{line}\n")
    with pytest.raises(UserError, match=advice):
        load(tmp_path / "case.toml")


def test_a_toml_error_shows_its_line(tmp_path):
    for line in ("length = 3 4", "length = 3 \t4", "length = [" + 200 * "1.0 "):
        (tmp_path / "case.toml").write_text(f'[problem]\nkind = "plasma"\n{line}\n')
        with pytest.raises(UserError, match=r"at line 3, column \d+\): ") as mistake:
            load(tmp_path / "case.toml")
        whole = line.replace("\t", " ")
        shown = whole if len(whole) < 80 else f"{whole[:80]}…"
        assert str(mistake.value).endswith(f': "{shown}"')


CASE_TEXT = '# κ\n[problem]\nkind = "two_stream"  # é\n'


@pytest.mark.parametrize("raw", [CASE_TEXT.encode("utf-8-sig"), CASE_TEXT.replace("\n", "\r\n").encode()])
def test_a_case_file_may_come_from_an_editor_of_another_system(raw, tmp_path):
    (tmp_path / "case.toml").write_bytes(raw)
    assert load(tmp_path / "case.toml") == from_table({"problem": {"kind": "two_stream"}})


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (CASE_TEXT.encode("utf-16"), "case.toml: is not UTF-8 text .it looks like UTF-16.: save the file as UTF-8"),
        (CASE_TEXT.encode("utf-16-le"), "it looks like UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\2\3" + bytes(range(256)), "is not a text file: give a case in TOML"),
        (CASE_TEXT.replace("κ", "k").encode("latin-1"), "case.toml: line 3 is not UTF-8 text: save the file as UTF-8"),
    ],
)
def test_a_case_file_in_another_encoding_is_named_as_such(raw, says, tmp_path):
    (tmp_path / "case.toml").write_bytes(raw)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "case.toml")


sizes = st.floats(min_value=SMALLEST, max_value=LARGEST)


@given(step=sizes, ratio=st.floats(min_value=1e-3, max_value=9e8))
def test_an_end_that_is_advised_is_accepted(step, ratio):
    """For any step, by the check that gives the advice; and so is that of a restart, which doubles the steps."""
    end = step * ratio
    assume(SMALLEST <= end <= LARGEST)
    two_stream = {"problem": {"kind": "two_stream"}}
    try:
        case = from_table({**two_stream, "time": {"step": step, "end": end}})
    except UserError as mistake:
        (advised,) = re.findall(r"use time.end = (\S+)$", str(mistake))
        case = from_table(override({**two_stream, "time": {"step": step}}, [f"time.end={advised}"]))
    if 2 * case.time.end < LARGEST:
        advised = end_after(2 * case.time.steps, step)
        longer = from_table(override(case.table(), [f"time.end={advised}"]))
        assert longer.time.steps == min(2 * case.time.steps, 10**9 - 1)


def test_what_is_advised_for_the_first_iterations_is_accepted():
    method = {"first_iterations": 0, "iterations": 30}
    for solver, advised in (("varpro", {"iterations": 0}), ("adam", {"first_iterations": 1})):
        table = {"problem": {"kind": "two_stream"}, "method": {**method, "solver": solver}}
        with pytest.raises(UserError, match=f"{next(iter(advised))} = 0 too|at least 1"):
            from_table(table)
        from_table({**table, "method": {**method, "solver": solver, **advised}})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
sections = st.sampled_from(["problem", "physics", "particles", "grid", "time", "method", "output", "run", "else"])
keys = st.sampled_from(["kind", "length", "count", "cells", "step", "end", "hidden", "every", "mean", "stiffness", "x"])


@given(
    st.dictionaries(sections, values | st.dictionaries(keys, values, max_size=3), max_size=4),
    st.sampled_from(["two_stream", "gaussian"]),
)
def test_no_table_whatever_ends_in_anything_but_a_case_or_a_sentence(table, kind):
    if isinstance(table.get("problem"), dict):
        table["problem"].setdefault("kind", kind)
    try:
        from_table(table)
    except UserError as error:
        assert str(error).strip()


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), min_size=1, max_size=4))
def test_no_bytes_whatever_in_a_case_file_end_in_anything_but_a_case_or_a_sentence(tmp_path_factory, edits):
    path, content = tmp_path_factory.getbasetemp() / "fuzzed.toml", SMALL_CASE.encode()
    for place, replacement in edits:
        at = int(place * len(content))
        content = content[:at] + replacement + content[at + 1 :]
    path.write_bytes(content)
    try:
        load(path)
    except UserError as error:
        assert str(error).strip()
