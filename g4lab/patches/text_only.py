"""Opt-in patch `text_only`: Gemma-4's multimodal checkpoints without their vision and audio towers.

SGLang 0.5.21 has what a server without towers needs, under --language-model-only: no image processor, no memory kept
free for images, a clear refusal of requests with any. But it admits three other models there, and Gemma-4 builds its
towers whatever the flags say: listing it among the models that are text-only by default, as pyc96/sglang#10 does,
leaves them allocated. This patch has Gemma-4 serve text only unless --enable-multimodal, or another flag that is about
images, asks for the towers. Neither their modules nor their weights are made then (the loader passes over their
tensors), and a step goes as in SGLang's text-only class: the prefill CUDA graphs that SGLang allows models without
images replay token ids, not embeddings that were made outside of the graph.

It refuses requests that SGLang would have answered, so "all" leaves it out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging

from g4lab.patches.counting import count, note
from g4lab.patches.registry import Hook, Patch

ARCHITECTURE = "Gemma4ForConditionalGeneration"
_MODEL = f"sglang.srt.models.gemma4_mm.{ARCHITECTURE}"
# SGLang's flags under which a server needs the towers, or is one half of a pair of which the other has them.
_FOR_TOWERS = (
    *("enable_multimodal", "encoder_only", "language_only", "enable_prefix_mm_cache"),
    *("enable_broadcast_mm_inputs_process", "mm_enable_dp_encoder"),
)
_TOWERS = ("Gemma4VisionEncoder", "Gemma4AudioEncoder", "Gemma4MultimodalEmbedder")
log = logging.getLogger("g4lab.patches")


def _resolved(original, server_args):
    """Around the first step of argument resolution that is about images, before memory is shared out."""
    from sglang.srt.arg_groups.model_override_base import model_config_of, resolving_view
    from sglang.srt.arg_groups.overrides import declare_resolution

    original(server_args)
    if ARCHITECTURE not in (model_config_of(server_args).hf_config.architectures or ()):
        return
    args = resolving_view(server_args)
    asks = [f"--{name.replace('_', '-')}" for name in _FOR_TOWERS if getattr(args, name)]
    if args.disaggregation_mode != "null":
        asks.append("--disaggregation-mode")
    if args.model_impl == "transformers":
        asks.append("--model-impl transformers")
    if asks and not args.language_model_only:
        log.info("patch text_only: the towers stay, %s asks for them", ", ".join(asks))
        return
    declare_resolution(server_args, "g4lab.text_only", language_model_only=True)
    server_args._model_config = None  # it was made with the towers; SGLang makes another where it is asked for
    allowed = type(server_args).LANGUAGE_MODEL_ONLY_ARCHITECTURES
    if ARCHITECTURE not in allowed:
        type(server_args).LANGUAGE_MODEL_ONLY_ARCHITECTURES = (*allowed, ARCHITECTURE)
    log.info("patch text_only: no vision and audio towers; --enable-multimodal brings them back")


def _built(original, model, config, *args, **kwargs):
    """Around the model's __init__: the towers are what they are on a later pipeline rank, absent."""
    if not getattr(config, "language_model_only", False):
        original(model, config, *args, **kwargs)
    else:
        with _no_towers():
            original(model, config, *args, **kwargs)
        model.audio_tower = model.embed_audio = None  # as there, so that the loader passes over the audio weights
    note("text_only", parameters(model))


def _stepped(original, model, *args, **kwargs):
    """Around the model's forward: without towers it has all that the text-only class's forward asks for."""
    if not getattr(model.config, "language_model_only", False):
        return original(model, *args, **kwargs)
    from sglang.srt.models.gemma4_causal import Gemma4ForCausalLM

    count("text_only")
    return Gemma4ForCausalLM.forward(model, *args, **kwargs)


@contextlib.contextmanager
def _no_towers():
    from sglang.srt.layers.utils import PPMissingLayer
    from sglang.srt.models import gemma4_mm

    kept = {name: getattr(gemma4_mm, name) for name in _TOWERS}
    try:
        for name in _TOWERS:
            setattr(gemma4_mm, name, lambda *args, **kwargs: PPMissingLayer())
        yield
    finally:
        for name, tower in kept.items():
            setattr(gemma4_mm, name, tower)


def parameters(model) -> dict[str, dict[str, int]]:
    """{child module: {"tensors", "bytes"}} of a model's parameters and buffers, a tied one counted once."""
    sizes: dict[str, dict[str, int]] = {}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        part = sizes.setdefault(name.split(".")[0], {"tensors": 0, "bytes": 0})
        part["tensors"] += 1
        part["bytes"] += tensor.nbytes
    return sizes


PATCH = Patch(
    name="text_only",
    effect="serves Gemma-4's multimodal checkpoints without building or loading vision and audio towers",
    source="pyc96/sglang#10, which left the towers' modules allocated",
    hooks=(
        Hook("sglang.srt.arg_groups.serving_hook.handle_multimodal", "around", _resolved),
        Hook(_MODEL + ".__init__", "around", _built),
        Hook(_MODEL + ".forward", "around", _stepped),
    ),
    requires="a newer SGLang than 0.5.17, which has no --language-model-only",
    counts="steps of a model without towers",
    opt_in=True,
)
