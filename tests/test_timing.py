"""The timing loop with a stand-in for CUDA: who is built, captured and replayed, not how long anything takes."""

import contextlib
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g4lab.bench import timing
from g4lab.bench.timing import Provider
from g4lab.errors import G4LabError


class Clock:
    """A made-up GPU: a call adds its microseconds, an event reads them."""

    us, broken = 0.0, False


class Event:
    def __init__(self, **_):
        self.at = None

    def record(self):
        self.at = Clock.us

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) / 1000


class Graph:
    """Remembers the calls made while it was the one being captured; a replay makes them again."""

    capturing = None

    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


@contextlib.contextmanager
def capture(graph):
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None


def work(us, log=None):
    """A provider's call that takes `us`."""

    def call():
        if Graph.capturing is not None:
            Graph.capturing.calls.append(call_again)
        else:
            call_again()

    def call_again():
        Clock.us += us
        if log is not None:
            log.append(us)

    return call


def synchronize():
    if Clock.broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    standins = {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda s: contextlib.nullcontext(),
        "CUDAGraph": Graph, "graph": capture, "Event": Event, "_sleep": lambda cycles: None,
        "synchronize": synchronize, "empty_cache": lambda: None,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=8),
    }  # fmt: skip
    for name, standin in standins.items():
        monkeypatch.setattr(torch.cuda, name, standin)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **options: empty(*size, **options))
    monkeypatch.setattr(timing, "require_gpu", lambda: None)
    monkeypatch.setattr(Clock, "us", 0.0)
    monkeypatch.setattr(Clock, "broken", False)


def test_samples_are_microseconds_per_call():
    timed = timing.time_providers(
        [Provider("a", lambda case: work(40)), Provider("b", lambda case: work(9))], None, rounds=12
    )
    for name, us in (("a", 40), ("b", 9)):
        for reading in timing.READINGS:
            np.testing.assert_allclose(timed[name].samples[reading], np.full(12, us))


def test_a_limit_of_seconds_cuts_rounds_and_calls():
    log = []
    providers = [Provider("long", lambda case: work(5000, log)), Provider("slow", lambda case: work(3e5))]
    timed = timing.time_providers(providers, None, rounds=200, seconds=0.3)
    assert "one call takes 300 ms" in timed["slow"].reason
    assert timed["long"].samples["warm"].size == timing.rounds_within(0.3, 3 * 5000 + 2 * timing.AROUND_US, 200) == 19
    np.testing.assert_allclose(timed["long"].samples["warm"], 5000)
    assert len(log) == 2 * timing.WARM_UP + 2 + 19 * 3  # a warm sample of a long call is one call, after one


def test_what_a_provider_raises_is_its_reason_alone():
    def build(case):
        raise TypeError("unexpected keyword argument 'page_table'")

    timed = timing.time_providers([Provider("peer", build), Provider("ours", lambda case: work(1))], None, rounds=3)
    assert timed["peer"].reason == "TypeError: unexpected keyword argument 'page_table'"
    assert timed["ours"].samples["cold"].size == 3


def test_a_broken_context_names_who_broke_it():
    def build(case):
        Clock.broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(G4LabError, match=r"^peer broke the CUDA context, .* an illegal memory access was encountered$"):
        timing.time_providers([Provider("ours", lambda case: work(1)), Provider("peer", build)], None, rounds=3)


def test_inputs_live_as_long_as_their_graph():
    """A graph replays on addresses: what a call closes over may not go back to the allocator before the last replay."""

    class Inputs:
        pass

    alive = []

    def build(case):
        inputs = Inputs()
        alive.append(weakref.ref(inputs))

        def call():
            assert inputs is not None
            if Graph.capturing is not None:
                Graph.capturing.calls.append(seen)

        return call

    def seen():
        Clock.us += 1
        assert all(inputs() is not None for inputs in alive)

    timed = timing.time_providers([Provider("a", build), Provider("b", build)], None, rounds=2)
    assert not any(each.reason for each in timed.values())
