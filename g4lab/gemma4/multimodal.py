"""Multimodal Gemma-4 checkpoints (`Gemma4ForConditionalGeneration`), as the public ones are: text under towers.

A twin gets small towers and the text weights of its text-only checkpoint, bit for bit, so that text answers are the
same. A large model gets its own towers' configuration and no weights, for an engine's dummy loading.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.gemma4.checkpoint import DTYPE_BYTES
from g4lab.gemma4.folder import checkpoint_folder
from g4lab.gemma4.specs import TWINS, Spec
from g4lab.gemma4.tokenizer import BOS, EOS, PAD, make_tokenizer
from g4lab.gemma4.towers import towers
from g4lab.gemma4.weights import random_weight

if TYPE_CHECKING:
    from transformers import Gemma4Config, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

# The processor's name for each -> the token; their ids are the vocabulary's last.
_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
}
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|{{ part['type'] }}|>{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def write_multimodal(spec: Spec, path: Path | str, seed: int = 0, dtype: str = "float32", weights: bool = True) -> Path:
    """Write a multimodal checkpoint of `spec`, with the processor's files, to the folder `path`.

    Args:
        weights: False leaves them out, as the large models' must be.

    Raises:
        BadInput: weights of a model that is no twin, another dtype than float32, bfloat16 or float16, or a `path` that
            holds files g4lab did not write.
    """
    if weights and spec.name not in TWINS:
        raise bad("weights", weights, f"False for {spec.name}; with weights: {', '.join(TWINS)}")
    if dtype not in DTYPE_BYTES:
        raise bad("dtype", dtype, "one of " + ", ".join(DTYPE_BYTES))
    made_of = {"multimodal": spec.name, "seed": seed, "dtype": dtype, "weights": weights}
    with checkpoint_folder(path, made_of) as folder:
        _processor(spec.vocab_size).save_pretrained(folder)
        config = multimodal_config(spec, dtype)
        if weights:
            _random_model(config, seed, dtype).save_pretrained(folder)
        else:
            config.save_pretrained(folder)
    return Path(path)


def _random_model(config: Gemma4Config, seed: int, dtype: str) -> PreTrainedModel:
    import torch
    from transformers import Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            text_name = name.replace("model.language_model.", "model.")
            # The LM head is the embedding; the towers' norms, biases and clip bounds stay transformers'.
            if name != "lm_head.weight" and (weight.ndim > 1 or text_name != name):
                weight.copy_(random_weight(text_name, tuple(weight.shape), seed))
    return model.to(getattr(torch, dtype))


def multimodal_config(spec: Spec, dtype: str = "float32") -> Gemma4Config:
    """The configuration of `spec` under its towers (`g4lab.gemma4.towers`)."""
    from transformers import Gemma4Config

    vision, audio = towers(spec)
    ids = {name: _tokenizer(spec.vocab_size).convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    return Gemma4Config(
        text_config=spec.hf_config().to_dict(),
        vision_config=vision.config(),
        audio_config=audio.config() if audio else None,
        eoa_token_index=ids["eoa_token"],
        architectures=["Gemma4ForConditionalGeneration"],
        dtype=dtype,
        **{f"{name}_id": token_id for name, token_id in ids.items()},
    )


@functools.cache
def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    text = make_tokenizer(vocab_size - len(_TOKENS))
    text.add_special_tokens({"additional_special_tokens": list(_TOKENS.values())})
    return PreTrainedTokenizerFast(
        tokenizer_object=text.backend_tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token="<unk>",
        extra_special_tokens=_TOKENS,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _processor(vocab_size: int) -> ProcessorMixin:
    from transformers.models.gemma4 import (
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(),
        tokenizer=_tokenizer(vocab_size),
        video_processor=Gemma4VideoProcessor(),
        chat_template=_CHAT_TEMPLATE,
    )
