"""Every figure says where its numbers come from."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

from g4lab.errors import BadInput
from g4lab.figures import KINDS, house_style, stamp


@pytest.mark.parametrize("kind", KINDS)
def test_stamp_is_on_the_figure(kind):
    house_style()
    fig, _ = plt.subplots()
    stamp(fig, kind, "SGLang PR #26588")
    assert fig.get_supxlabel() == f"{kind} · SGLang PR #26588"
    plt.close(fig)


@pytest.mark.parametrize(("kind", "source", "names"), [("measured", "here", "kind"), ("live", "", "source")])
def test_a_figure_without_provenance_is_refused(kind, source, names):
    fig, _ = plt.subplots()
    with pytest.raises(BadInput, match=names):
        stamp(fig, kind, source)
    plt.close(fig)
