"""Proofs without timings: the same as each suite's own, tiny ones in the interpreter, and one that fails ends it."""

import pytest

from g4lab import cli, env
from g4lab.bench import proofs
from g4lab.bench.suite import Proof
from g4lab.errors import BadInput


@pytest.mark.parametrize("name", proofs.SUITES)
def test_tiny_proofs_hold_here(name):
    found = list(proofs.of(name, tiny=True).prove())
    assert found
    assert all(proof.holds for proof in found), [str(proof) for proof in found if not proof.holds]


def test_an_unknown_suite():
    with pytest.raises(BadInput, match="suite: got 'attention'"):
        proofs.of("attention")


@pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")
@pytest.mark.parametrize("name", ["router", "extend", "moe"])
def test_full_size_needs_a_gpu(capsys, name):
    assert cli.run(["bench", "proofs", name]) == 1
    assert "no kernel time here" in capsys.readouterr().err


def test_a_proof_that_does_not_hold_fails_the_command(capsys, monkeypatch):
    made = [Proof({"case": "a"}, {"unequal": 0}, True), Proof({"case": "b"}, {"unequal": 3}, False)]
    monkeypatch.setattr(proofs, "of", lambda name, tiny: proofs.Proofs(lambda progress: iter(made), proofs.BITS))
    assert cli.run(["bench", "proofs", "router", "--tiny"]) == 1
    said = capsys.readouterr()
    assert "router: bit-equality holds in 1 of 2 checks" in said.out
    assert said.err.strip().endswith("g4lab: no bit-equality: case=b")
