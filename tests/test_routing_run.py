"""Forward passes with a changed router input: what changes nothing, what is measured, and that nothing stays behind."""

import pytest
import torch

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.quality import routing_run
from g4lab.quality.ulp_noise import Noise, Rounding
from g4lab.runners.models import load_model

K = spec("tiny-moe").top_k_experts


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-moe", "cpu", "bfloat16")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(6, 1024, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(model, ids):
    return routing_run.forward(model, ids)


def test_the_unchanged_run_is_the_model(model, ids, base):
    with torch.inference_mode():
        assert base.logits.equal(model(ids).logits.float())
    assert list(base.experts) == [f"model.layers.{i}.router" for i in range(6)]
    assert all(chosen.shape == (96, K) for chosen in base.experts.values())


@pytest.mark.parametrize("change", [Rounding("transformers"), Noise(0), Noise(3, share=0.0)])
def test_a_change_of_nothing_changes_no_bit(model, ids, base, change):
    run = routing_run.forward(model, ids, change.make())
    assert run.logits.equal(base.logits)
    assert routing_run.drift(base, run) == {"kl": 0, "mean_abs": 0, "max_abs": 0, "top_token_changed_pct": 0}


def test_holding_the_choice_holds_it_and_alone_changes_no_bit(model, ids, base):
    assert routing_run.forward(model, ids, hold=base.experts).logits.equal(base.logits)
    noise = Noise(64)
    free, held = (routing_run.forward(model, ids, noise.make(), hold=h) for h in (None, base.experts))
    assert all(held.experts[name].equal(base.experts[name]) for name in base.experts)
    assert 0 < routing_run.drift(base, held)["kl"] < routing_run.drift(base, free)["kl"]


def test_nothing_stays_behind(model, ids, base):
    def fail(hidden, scale, own):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        routing_run.forward(model, ids, fail)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not [m for m in model.modules() if any(getattr(m, kind) for kind in hooks)]
    assert routing_run.forward(model, ids).logits.equal(base.logits)


def test_flips_are_of_sets():
    a = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    b = torch.tensor([[1, 0], [2, 4], [4, 5], [7, 6]])
    assert routing_run.flipped(a, b) == 25.0


def test_drift_is_pytorchs_kl(base):
    other = routing_run.Run(base.logits + torch.randn(base.logits.shape), base.experts, base.hidden)
    p, q = base.logits.log_softmax(-1).flatten(0, 1), other.logits.log_softmax(-1).flatten(0, 1)
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert routing_run.drift(base, other)["kl"] == pytest.approx(expected.item(), rel=1e-4)


def test_study_tells_direct_from_passed_on(model, ids):
    changes = {"none": Noise(0), "small": Noise(1, seed=1), "large": Noise(16, seed=1)}
    frame = routing_run.study(model, ids, changes, hold=True).set_index(["change", "layer"])
    assert len(frame) == 18
    assert (frame.loc["none"] == 0).all(axis=None)
    first = frame.xs(0, level="layer")
    assert (first["direct_pct"] == first["seen_pct"]).all()  # nothing came before the first router
    mean = frame.groupby("change")[["direct_pct", "seen_pct", "kl", "held_kl"]].mean()
    assert (mean.loc["small"] < mean.loc["large"]).all()
    assert (mean["direct_pct"] <= mean["seen_pct"]).all()
    again = routing_run.study(model, ids, {"large": Noise(16, seed=1)})
    assert again["seen_pct"].tolist() == frame.loc["large", "seen_pct"].tolist()


def test_noise_study_has_a_row_a_size_and_seed(model, ids):
    frame = routing_run.noise_study(model, ids, [(0, 1.0), (8, 1.0)], seeds=[1])
    assert frame[["mean_ulps", "seed"]].to_numpy().tolist() == [[0, 1], [8, 1]]
    assert frame.loc[0, "kl"] == 0 < frame.loc[1, "kl"]
    alone = routing_run.study(model, ids, {"noise": Noise(8, seed=1)})
    assert frame.loc[1, "seen_pct"] == pytest.approx(alone["seen_pct"].mean())


def test_wide_router_counts_what_the_dtype_rounds():
    sizes = {"hidden_size": 256, "num_experts": 32, "top_k": 4, "tokens": 512}
    changes = {"same": Rounding("transformers"), "sglang": Rounding("sglang"), "noise": Noise(8)}
    bf16 = routing_run.wide_router(changes, **sizes).set_index("change")["flipped_pct"]
    fp32 = routing_run.wide_router(changes, **sizes, dtype=torch.float32).set_index("change")["flipped_pct"]
    assert bf16["same"] == 0 < bf16["sglang"] < bf16["noise"]
    assert fp32["sglang"] <= 1 < bf16["sglang"]  # 2**16 times finer: at most a tie or two of 512 tokens


def test_a_model_without_routers_is_named():
    dense = load_model("tiny-dense", "cpu", "float32")
    with pytest.raises(BadInput, match="Gemma4ForCausalLM"):
        routing_run.forward(dense, torch.tensor([[7]]))
