"""What a patch is, and how a list of patches is written. Nothing here imports an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from g4lab.errors import G4LabError, bad

Kind = Literal["after", "around", "replace"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Hook:
    """One function put on one dotted SGLang name.

    call: `after` gets (result, *args, **kwargs) and returns a new result or None; `around` gets (original, *args,
    **kwargs); `replace` gets what the target got. device: where it is needed, None for everywhere. earlier: what SGLang
    versions before called the target; the first of `names` that is there is taken. needs: other dotted names that
    `call` relies on.
    """

    target: str
    kind: Kind
    call: Callable
    device: Device | None = None
    earlier: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The target's names, the newest SGLang's first."""
        return self.target, *self.earlier


@dataclass(frozen=True)
class Patch:
    """One change to an engine that can be switched on by name.

    effect: one line on what changes. source: the work it comes from. requires: what it needs, in words. declines: gives
    the reason why it cannot work in this process on that device, or None. kernel: the name its work carries in a
    trace. gone: what it replaces, by patterns of names in "kernels" and in CPU "operators". counts: what one step of
    its call counter (named as the patch) means; under CUDA graphs Python runs at capture only, so there a trace is the
    proof that it is alive. opt_in: not part of "all".
    """

    name: str
    effect: str
    source: str
    hooks: tuple[Hook, ...]
    counts: str
    requires: str = "nothing more"
    default_on: bool = False
    opt_in: bool = False
    kernel: str | None = None
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    declines: Callable[[Device], str | None] = lambda device: None

    def hooks_on(self, device: Device) -> tuple[Hook, ...]:
        """The hooks that this patch puts in a process which computes on `device`."""
        return tuple(hook for hook in self.hooks if hook.device in (None, device))


def build(patches: Iterable[Patch]) -> dict[str, Patch]:
    """name -> patch. Raises G4LabError where two patches share a name or replace the same target."""
    registry: dict[str, Patch] = {}
    replaced: dict[str, str] = {}
    for patch in patches:
        if patch.name in registry:
            raise G4LabError(f"two patches are named {patch.name}")
        registry[patch.name] = patch
        for name in (name for hook in patch.hooks if hook.kind == "replace" for name in hook.names):
            if name in replaced:
                raise G4LabError(f"patches {replaced[name]} and {patch.name} both replace {name}")
            replaced[name] = patch.name
    return registry


def choose(registry: dict[str, Patch], text: str | None) -> tuple[str, ...]:
    """The patches that `text` names, in registry order.

    Unset, empty or "default": the correctness fixes. "none": nothing. "all": every patch that is not opt-in. Otherwise
    names and -names, comma-separated, added to and taken out of the base in their order: "router,-router_scale"; the
    base is "default" unless one of the three words stands first: "none,router". Raises BadInput for an unknown name.
    """
    bases = {
        "default": {p.name for p in registry.values() if p.default_on},
        "none": set(),
        "all": {p.name for p in registry.values() if not p.opt_in},
    }
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    base = words.pop(0) if words and words[0] in bases else "default"
    chosen = set(bases[base])
    for word in words:
        name = word.removeprefix("-")
        if name not in registry:
            known = ", ".join(registry)
            raise bad("patches", word, f"a known patch ({known}), or default, none or all in the first place")
        (chosen.discard if word.startswith("-") else chosen.add)(name)
    return tuple(name for name in registry if name in chosen)
