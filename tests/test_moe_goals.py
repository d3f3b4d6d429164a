"""The expert layer's floors, from shapes and a data sheet, and the verdicts on its goals."""

import pandas as pd
import pytest

from g4lab import records
from g4lab.bench import moe
from g4lab.bench.ceilings import named
from g4lab.bench.moe_floors import floors, table
from g4lab.bench.moe_goals import GOALS, STREAMING, goals
from g4lab.bench.roofline import COPY, MATMUL
from g4lab.bench.suite import INCOMPLETE, MET, MISSED, NOT_MEASURED
from g4lab.bench.timing import READINGS
from g4lab.tuning.moe_shapes import SIZES, of


def test_floors_of_26b_a4b():
    one, many = of(sizes=[1, 8192])
    most = named("h200")
    found = floors(one, most).set_index("product")
    assert found.weights.to_dict() == pytest.approx(
        {"gate_up": 8 * 2 * 704 * 2816 * 2, "down": 8 * 704 * 2816 * 2, "layer": 8 * 3 * 704 * 2816 * 2}
    )
    assert set(found.binds) == {COPY}
    assert found.floor_us["layer"] == pytest.approx(found.bytes["layer"] / most.copy_gbps / 1e3)
    assert found.bytes["layer"] == pytest.approx(one.bytes)
    assert found.floor_us["layer"] < found.floor_us["gate_up"] + found.floor_us["down"]
    found = floors(many, most).set_index("product")
    assert set(found.binds) == {MATMUL}
    assert found.flops["layer"] == many.flops
    assert found.floor_us["gate_up"] == pytest.approx(2 * found.floor_us["down"])
    drawn = floors(one, most, touched=4).set_index("product")
    assert drawn.weights["layer"] == 4 * 3 * 704 * 2816 * 2


def test_the_table_of_floors_has_every_size_and_rises():
    frame = table(of(), named("h200"))
    assert list(frame.columns[:2]) == ["tokens", "hidden"]
    for _, rows in frame.groupby("product"):
        assert rows.tokens.tolist() == list(SIZES)
        assert rows.floor_us.is_monotonic_increasing
        assert (rows.binds == MATMUL).is_monotonic_increasing, "memory binds first, matrix work from some size on"
    assert frame[frame.tokens == 8192].touched.tolist() == pytest.approx([128] * 3)


# From here on figures are made up, to show how they are judged; none was measured.


def judged(provider, sizes=SIZES, **values):
    """A table as `measure` makes it, with made-up figures in every row of a provider."""
    values = {"speedup": 1.3, "aa_low": 0.99, "bandwidth_share": 0.85, "reason": ""} | values
    values.setdefault("speedup_high", values["speedup"] + 0.005)
    fixed = {"tp": 1, "routing": "uniform", "provider": provider} | values
    return pd.DataFrame({"tokens": size, "reading": reading} | fixed for size in sizes for reading in READINGS)


def verdicts(*frames):
    found = goals(pd.concat(frames))
    return found.groupby("goal", sort=False).verdict.agg(lambda v: "/".join(sorted(set(v)))).tolist()


def test_no_record_is_not_measured():
    for frame in (pd.DataFrame(), moe.availability(), records.to_frame([])):
        assert verdicts(frame) == [NOT_MEASURED] * len(GOALS)
        assert set(goals(frame).measured) == {f"0 of {len(SIZES)}", f"0 of {len(STREAMING)}"}
    assert STREAMING == (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    ("files", "kernel", "expected"),
    [
        ({}, {}, [MET] * 5),
        ({"speedup": 1.09}, {}, [MET, MISSED, MET, MET, MET]),
        ({"speedup": 1.12}, {"speedup": 1.12}, [MET, MET, MET, MISSED, MET]),
        ({"speedup": 0.98}, {}, [MISSED, MISSED, MET, MET, MET]),
        ({"speedup": 0.98, "aa_low": 0.97}, {}, [MET, MISSED, MET, MET, MET]),
        ({"speedup": float("nan")}, {}, [NOT_MEASURED, NOT_MEASURED, MET, MET, MET]),
        ({}, {"bandwidth_share": 0.79}, [MET, MET, MET, MET, MISSED]),
    ],
)
def test_goals_are_judged(files, kernel, expected):
    assert verdicts(judged(moe.FILES, **files), judged(moe.OURS, **kernel)) == expected


def test_a_mean_waits_for_all_sizes_and_other_cases_do_not_count():
    some = judged(moe.OURS, SIZES[:3], speedup=1.1)
    assert verdicts(some) == [NOT_MEASURED, NOT_MEASURED, INCOMPLETE, INCOMPLETE, INCOMPLETE]
    assert verdicts(some, judged(moe.OURS, SIZES[3:4], speedup=0.5)).count(MISSED) == 1
    for other in ({"tp": 2}, {"routing": "zipf"}):
        assert verdicts(judged(moe.OURS, **other)) == [NOT_MEASURED] * len(GOALS)
    late = pd.concat([judged(moe.OURS, bandwidth_share=0.5), judged(moe.OURS, SIZES[:1], bandwidth_share=0.7)])
    row = goals(late).iloc[-1]
    assert (row.verdict, row.value, row.worst) == (MISSED, 0.5, 2)
