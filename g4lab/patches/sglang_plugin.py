"""SGLang's plugin entry point: puts the patches that $G4LAB_PATCHES names into this process, and says so.

SGLang calls `register` in its command line, engine and scheduler processes (entry point group `sglang.srt.plugins`) and
then applies all hooks. SGLang logs and swallows what goes wrong while it applies them, so each hook is looked at after.
"""

from __future__ import annotations

import logging
import os

from g4lab import env
from g4lab.patches import counting
from g4lab.patches.catalogue import REGISTRY, parse
from g4lab.patches.registry import Device, Hook, Patch
from g4lab.patches.sglang_targets import place, resolve

log = logging.getLogger("g4lab.patches")


def register() -> None:
    """Hook the chosen patches in; one log line for each patch says on, off or why not.

    Raises BadInput for an unknown patch name. A patch that cannot work here, or whose target this SGLang does not have,
    is left out with a warning.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    _speak()
    device: Device = "cuda" if env.has_gpu() and os.environ.get("SGLANG_USE_CPU_ENGINE") != "1" else "cpu"
    chosen = parse(os.environ.get("G4LAB_PATCHES"))
    hooked: dict[str, dict[str, object]] = {}
    for patch in REGISTRY.values():
        if patch.name not in chosen:
            _report(patch, "off")
            continue
        places, why_not = _places(patch, device, HookRegistry)
        if why_not:
            _report(patch, why_not)
            continue
        for hook, (target, _) in places:
            HookRegistry.register(target, hook.call, HookType(hook.kind))
        hooked[patch.name] = dict(place for _, place in places)
    _check_once_applied(hooked, HookRegistry)


def _places(patch: Patch, device: Device, registry) -> tuple[list[tuple[Hook, tuple[str, object]]], str | None]:
    """Each hook with the name of its target and the object found there, and why the patch has to stay out, or None."""
    if why := patch.declines(device):
        return [], f"declined: {why}"
    places = []
    for hook in patch.hooks_on(device):
        try:
            target, original = place(hook)
        except LookupError as error:
            return [], f"skipped: SGLang {env.versions()['sglang']} has no {error}"
        others = registry._hooks.get(target, [])
        if hook.kind == "replace" and any(kind.value == "replace" for kind, *_ in others):
            return [], f"skipped: another plugin replaces {target}"
        places.append((hook, (target, original)))
    return places, None


def _check_once_applied(hooked: dict[str, dict[str, object]], registry) -> None:
    """After SGLang's next apply_hooks, report each hooked patch as on, or as failed where a target is still the old."""
    applied = registry.__dict__["apply_hooks"]

    def apply_hooks(cls):
        cls.apply_hooks = applied
        cls.apply_hooks()
        for name, originals in hooked.items():
            untouched = [target for target, original in originals.items() if resolve(target) is original]
            _report(REGISTRY[name], f"failed: no hook took on {', '.join(untouched)}" if untouched else "on")

    registry.apply_hooks = classmethod(apply_hooks)


def _speak() -> None:
    """SGLang sets its logging up after it has loaded plugins, so these lines bring their own handler."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[g4lab %(process)d] %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _report(patch: Patch, state: str) -> None:
    counting.set_state(patch.name, state)
    log.log(logging.INFO if state in ("on", "off") else logging.WARNING, "patch %s: %s", patch.name, state)
