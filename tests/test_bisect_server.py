"""Bisection on real servers: it must point at the patch that was broken on purpose, from outside, by another plugin."""

import os

import pytest

from g4lab import env
from g4lab.errors import Unavailable
from g4lab.runners import bisect, bisection

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="breaks the CPU server's patch; a GPU's bisection stands in 30_serving"),
]

BREAKER = '''
def register():
    """Give each expert its neighbour's weight, wherever g4lab's router is called."""
    from g4lab.kernels import router

    sound = router.route

    def broken(*args, **kwargs):
        weights, ids = sound(*args, **kwargs)
        return weights.roll(1, -1), ids

    router.route = broken
'''


@pytest.fixture
def breaker(tmp_path, monkeypatch):
    """An installed SGLang plugin named `breaker`, for servers that are told to load it."""
    package = tmp_path / "site"
    about = package / "breaker-1.dist-info"
    about.mkdir(parents=True)
    (package / "breaker.py").write_text(BREAKER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: breaker\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[sglang.srt.plugins]\nbreaker = breaker:register\n")
    path = os.pathsep.join(part for part in (str(package), os.environ.get("PYTHONPATH")) if part)
    monkeypatch.setenv("PYTHONPATH", path)
    return {"SGLANG_PLUGINS": "g4lab,breaker"}


def test_it_points_at_the_patch_that_was_broken(breaker, tmp_path, monkeypatch):
    folder, lines = tmp_path / "run", []
    how = {
        "candidates": ["qkv_norm", "router"],
        "pairs": False,
        "prompt_lens": (8, 80),  # the window is 64
        "new_tokens": 4,
        "folder": folder,
        "server": {"device": "cpu", "env": breaker},
    }

    # A run that is ended loses what it was at, and nothing else.
    def end(line):
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bisect("tiny-moe", **how, progress=end)
    assert lines[0].startswith("1 of 4: none took")
    found = bisect("tiny-moe", **how, progress=lines.append)
    assert lines[1] == "1 of 4: none kept from before"
    assert [line.split(" took")[0] for line in lines[2:]] == ["2 of 4: none-2", "3 of 4: qkv_norm", "4 of 4: router"]

    noise, sound, broken = found.rows
    assert (noise.name, sound.name, broken.name) == ("none again", "qkv_norm", "router")
    assert found.verdict.startswith("likeliest culprit: patch router (KL ")
    assert {"drift", "KL", "routing"} <= set(broken.beyond)
    assert broken.kl_mean > 10 * max(sound.kl_mean, noise.kl_mean)
    assert broken.flips_by_layer[0] == 0  # the first router still chooses as before; what its experts give is wrong
    assert broken.first_flip_layer == 1
    assert len(broken.flips_by_layer) == 6
    assert sound.problem == broken.problem == ""  # both ran
    assert sound.positions == (7 + 4) + (79 + 4) or sound.greedy_lost_pct > 0
    assert broken.acceptance is None

    # All is kept: the same call again needs no server.
    def none_may_start(*args, **kwargs):
        raise Unavailable("a server was started")

    monkeypatch.setattr(bisection, "sglang_server", none_may_start)
    assert bisect("tiny-moe", **how).values() == found.values()
