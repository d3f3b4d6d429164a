"""A Spec read back from a checkpoint's configuration."""

import pytest

from g4lab.errors import BadInput
from g4lab.gemma4 import NAMES, spec
from g4lab.gemma4.from_config import spec_of


@pytest.mark.parametrize("name", NAMES)
def test_spec_of_reads_what_hf_config_wrote(name):
    made = spec_of({"text_config": spec(name).hf_config().to_dict()}, name)
    assert made.layers == spec(name).layers
    assert made.sliding_window == spec(name).sliding_window
    assert (made.is_moe, made.has_ple) == (spec(name).is_moe, spec(name).has_ple)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "got 'llama', expected a Gemma-4 text model"),
        ({"layer_types": ["full_attention"] * 6}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 6}, "layer_types"),
        ({"layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"] * 2}, "layer_types"),
    ],
)
def test_spec_of_refuses_what_it_cannot_say(change, said):
    with pytest.raises(BadInput, match=said):
        spec_of(spec("tiny-moe").hf_config().to_dict() | change)
