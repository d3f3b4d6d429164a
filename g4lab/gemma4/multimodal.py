"""A tiny multimodal Gemma-4 checkpoint: a twin's text model, bit for bit, under small vision and audio towers.

The public checkpoints are of this kind (`Gemma4ForConditionalGeneration`): an engine that serves text from them has to
leave the towers out by itself. Text answers are those of the twin's text-only checkpoint with the same seed and dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.gemma4.checkpoint import DTYPE_BYTES
from g4lab.gemma4.folder import checkpoint_folder
from g4lab.gemma4.specs import TWINS, Spec
from g4lab.gemma4.tokenizer import BOS, EOS, PAD, make_tokenizer
from g4lab.gemma4.weights import random_weight

if TYPE_CHECKING:
    from transformers import Gemma4Config, PreTrainedTokenizerFast

TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")  # in the names of a checkpoint's weights
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "position_embedding_size": 64,
}
_AUDIO = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "output_proj_dims": 96,
    "subsampling_conv_channels": [16, 8],
}
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


def write_multimodal(spec: Spec, path: Path | str, seed: int = 0, dtype: str = "float32") -> Path:
    """Write a multimodal checkpoint of the tiny twin `spec`, with the processor's files, to the folder `path`.

    Raises:
        BadInput: `spec` is no twin, another dtype than float32, bfloat16 or float16, or a `path` that holds files g4lab
            did not write.
    """
    import torch
    from transformers import Gemma4ForConditionalGeneration

    if spec.name not in TWINS:
        raise bad("spec", spec.name, "a tiny twin: " + ", ".join(TWINS))
    if dtype not in DTYPE_BYTES:
        raise bad("dtype", dtype, "one of " + ", ".join(DTYPE_BYTES))
    with checkpoint_folder(path, {"multimodal": spec.name, "seed": seed, "dtype": dtype}) as folder:
        tokenizer = _tokenizer(spec.vocab_size)
        model = Gemma4ForConditionalGeneration(_config(spec, tokenizer))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                text_name = name.replace("model.language_model.", "model.")
                # The LM head is the embedding; the towers' norms, biases and clip bounds stay transformers'.
                if name != "lm_head.weight" and (weight.ndim > 1 or text_name != name):
                    weight.copy_(random_weight(text_name, tuple(weight.shape), seed))
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        _processor(tokenizer).save_pretrained(folder)
    return Path(path)


def _config(spec: Spec, tokenizer: PreTrainedTokenizerFast) -> Gemma4Config:
    from transformers import Gemma4Config

    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    return Gemma4Config(
        text_config=spec.hf_config().to_dict(),
        vision_config=_VISION,
        audio_config=_AUDIO,
        eoa_token_index=ids["eoa_token"],
        **{f"{name}_id": token_id for name, token_id in ids.items()},
    )


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


def _processor(tokenizer: PreTrainedTokenizerFast):
    from transformers.models.gemma4 import (
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(),
        chat_template=_CHAT_TEMPLATE,
    )
