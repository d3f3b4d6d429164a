"""The proofs of every suite without its timings: at full size on a GPU, at tiny size in Triton's interpreter, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from g4lab import env
from g4lab.bench.suite import Proof
from g4lab.errors import bad

SUITES = ("router", "norms", "extend", "moe")
BITS = ("bits", "bit-equality")
Prove = Callable[..., Iterable[Proof]]


class Proofs(NamedTuple):
    """prove(progress=...) gives the proofs; claim: what they claim, in a file's name and in words."""

    prove: Prove
    claim: tuple[str, str]


def of(suite: str, tiny: bool = False) -> Proofs:
    """What `g4lab bench SUITE` proves before it times; tiny: shapes for the interpreter, ours alone where peers differ.

    Raises BadInput for an unknown suite.
    """
    if suite not in SUITES:
        raise bad("suite", suite, "one of " + ", ".join(SUITES))
    return {"router": _router, "norms": _norms, "extend": _extend, "moe": _moe}[suite](tiny)


def _device() -> str:
    return "cuda" if env.has_gpu() and not env.interpreting() else "cpu"


def _router(tiny: bool) -> Proofs:
    from g4lab.bench import router

    small = partial(router.prove, 14, (7,), ("float32",), device=_device())
    return Proofs(small if tiny else router.prove, BITS)


def _norms(tiny: bool) -> Proofs:
    from g4lab.bench import norms_proof

    # Two of the five operations stand for their kinds: with all, the interpreter would take most of a minute.
    small = partial(norms_proof.prove, (1,), ("qkv_norm", "router_norm"), ("float32",))
    return Proofs(small if tiny else norms_proof.prove, BITS)


def _extend(tiny: bool) -> Proofs:
    from g4lab.bench import extend, extend_proof
    from g4lab.bench.timing import Provider
    from g4lab.tuning.extend_shapes import ExtendShape

    def small(progress=None):
        device = _device()
        providers = [Provider(extend.OURS, partial(extend.ours, device=device))]
        shape = ExtendShape("tiny", 2, 5, 20, 16, 4, 2, 32, "float16")
        yield from extend_proof.proofs_of(shape, providers, device)

    return Proofs(small if tiny else extend_proof.prove, extend_proof.CLAIM)


def _moe(tiny: bool) -> Proofs:
    from g4lab.bench import moe, moe_proof
    from g4lab.bench.timing import Provider
    from g4lab.tuning.moe_shapes import MoEShape

    def small(progress=None):
        device = _device()
        providers = [Provider(moe.OURS, partial(moe.ours, device=device))]
        yield from moe_proof.proofs_of(MoEShape(3, 64, 48, 8, 2, dtype="float16"), providers, device)

    def full(progress=None):
        yield from moe_proof.prove(moe.choose(), progress)

    return Proofs(small if tiny else full, moe_proof.CLAIM)
