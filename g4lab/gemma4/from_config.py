"""A Spec from a checkpoint's configuration, for models that are not in the list of g4lab.gemma4.specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from g4lab.errors import bad
from g4lab.gemma4.specs import FULL, SLIDING, Spec

_DERIVED = ("name", "repo", "sliding_per_full")
_COPIED = tuple(field.name for field in dataclasses.fields(Spec) if field.name not in _DERIVED)


def spec_of(config: Mapping, name: str = "checkpoint") -> Spec:
    """The Spec of a config.json (multimodal or text-only) or of its `text_config`, under `name`.

    Raises:
        BadInput: no Gemma-4 text model, or layers that do not come in groups of sliding ones and then a full one.
    """
    text = config.get("text_config") or config
    if text.get("model_type") != "gemma4_text":
        raise bad("config", text.get("model_type"), 'a Gemma-4 text model (model_type "gemma4_text")')
    kinds = list(text["layer_types"])
    group = kinds.index(FULL) if FULL in kinds else -1
    given = {field: text[field] for field in _COPIED if text.get(field) is not None}
    made = Spec(name=name, repo=None, sliding_per_full=group, **given)
    if group < 1 or [layer.kind for layer in made.layers] != kinds:
        raise bad("layer_types", kinds, f"groups of {SLIDING} layers and then one {FULL} layer")
    return made
