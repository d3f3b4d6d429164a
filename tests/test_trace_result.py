"""Results: frames that know their origin, show themselves as tables and figures, and go to files and back."""

import pandas as pd
import pytest
from traces import trace

from g4lab.errors import BadInput
from g4lab.trace import Problem, breakdown, diff, kernel_table, launches_per_token, per_step, top
from g4lab.trace.export import page, save
from g4lab.trace.intervals import launch_gaps
from g4lab.trace.result import Result, table_html
from g4lab.trace.tables import by_phase, coverage

LONG = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float>>>(float*)"


@pytest.fixture
def served():
    kernels = {
        "name": ["_fwd_kernel", "fused_moe_kernel", LONG, "<script>alert(1)</script>"],
        "ts_us": [0.0, 40.0, 90.0, 95.0],
        "dur_us": [30.0, 20.0, 2.0, 1.5],
        "phase": ["prefill", "prefill", "decode", "decode"],
        "step": [0, 0, 1, 1],
    }
    steps = {
        "name": ["step[EXTEND bs=1 toks=8]", "step[DECODE bs=1]"],
        "phase": ["prefill", "decode"],
        "batch": [1, 1],
        "tokens": [8, 1],
        "ts_us": [0.0, 80.0],
        "dur_us": [70.0, 20.0],
        "capture": [0, 0],
    }
    return trace(kernels, steps=steps, source="/somewhere/served.json.gz")


def results(made) -> dict[str, Result]:
    return {
        "families": kernel_table(made),
        "names": kernel_table(made, by="name"),
        "top": top(made, 2),
        "phases": by_phase(made),
        "steps": per_step(made),
        "launches": launches_per_token(made),
        "gaps": launch_gaps(made),
        "breakdown": breakdown(made),
        "coverage": coverage(made),
        "diff": diff(made, made),
    }


def test_a_result_knows_where_it_is_from(served):
    for result in results(served).values():
        assert result.provenance[0] == "recorded"
        assert "served.json.gz" in result.provenance[1]
        assert "somewhere" not in result.provenance[1]
        assert result.title


def test_a_runner_may_say_that_its_numbers_are_live(served):
    served.meta["provenance"] = ("live", "this machine")
    assert kernel_table(served).provenance == ("live", "this machine")
    assert diff(served, served).provenance[0] == "live"


def test_provenance_can_be_set_and_is_of_three_kinds(served):
    result = kernel_table(served)
    result.provenance = ("published", "pyc96/sglang PR #4")
    assert "published · pyc96/sglang PR #4" in result._repr_html_()
    with pytest.raises(BadInput, match="provenance"):
        Result([1], provenance=("guessed", "somewhere"))


def test_what_is_computed_from_a_result_is_a_plain_frame(served):
    result = kernel_table(served)
    assert type(result.head(1)) is pd.DataFrame
    assert type(result[["calls"]]) is pd.DataFrame
    assert type(result) is Result


def test_html_shows_title_source_and_every_name_in_full_and_harmless(served):
    shown = kernel_table(served, by="name")._repr_html_()
    assert "Kernels by name" in shown
    assert "recorded · served.json.gz" in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert "at::native::MeanOps" in shown  # in the tooltip
    assert "reduce_kernel&lt;512, 1, ReduceOp&lt;float" in shown
    assert "56.1%" in shown


def test_html_of_a_long_table_says_what_it_leaves_out():
    frame = Result({"x": range(100)}, title="long")
    assert "60 more rows" in frame._repr_html_()
    assert table_html(frame).count("<tr>") == 101


@pytest.mark.parametrize("name", results(trace()))
def test_every_result_draws_itself_stamped(served, name):
    import matplotlib.pyplot as plt

    figure = results(served)[name].plot()
    words = [text.get_text() for text in figure.texts] + [figure.get_supxlabel()]
    assert any("served.json.gz" in word for word in words)
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("name", results(trace()))
def test_results_of_an_empty_trace_still_show(name):
    import matplotlib.pyplot as plt

    result = results(trace())[name]
    assert result.title in result._repr_html_().replace("&#x27;", "'")
    figure = result.plot()
    figure.canvas.draw()
    plt.close(figure)


def test_a_result_without_a_figure_says_so():
    with pytest.raises(BadInput, match="a result that has a figure"):
        Result([1], title="plain").plot()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_frames_go_to_files_unrounded(served, tmp_path, suffix):
    result = kernel_table(served, by="name")
    path = tmp_path / f"table{suffix}"
    save(result, path)
    again = pd.read_csv(path, index_col="name") if suffix == ".csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(again, pd.DataFrame(result), check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_another_suffix_is_refused(served, tmp_path):
    with pytest.raises(BadInput, match=r"a name that ends in \.csv or \.parquet"):
        save(kernel_table(served), tmp_path / "table.xlsx")


def test_a_page_holds_everything_by_itself(served, tmp_path):
    path = tmp_path / "page.html"
    shown = [kernel_table(served), breakdown(served)]
    served.problems.append(Problem("the file ends early", lost=12))
    page(path, "A trace & more", [served], shown)
    html = path.read_text()
    assert "A trace &amp; more" in html
    assert html.count("data:image/png;base64,") == len(shown)
    assert "repaired: the file ends early (12 events lost)" in html
    assert "http" not in html
    assert "<script" not in html
    assert "prefers-color-scheme: dark" in html
