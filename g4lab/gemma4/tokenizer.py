"""A small byte-level BPE tokenizer for the twins, trained on text this file generates: same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
SPECIAL_TOKENS = (PAD, EOS, BOS, "<unk>", "<|turn>", "<turn|>")  # ids 0 to 5; 0, 1 and 2 as in Gemma-4
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n{{ message['content'] }}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)

_WHO = "The router|A kernel|One expert|Every layer|The scheduler|A query|The cache|An engine|This token|The window"
_DOES = "reads|writes|routes|shares|measures|repeats|scales|normalises|compares|forgets|fuses|launches"
_WHAT = (
    "the keys and values|eight experts of many|half of the pages|a long prompt|the last hidden state|its own projection"
    "|small batches|the slowest launch|several thousand tokens|a block of memory|another request|the same weights"
)
_HOW = (
    "while the batch grows|before the next step|without another copy|because memory is the limit|in one pass"
    "|when the context is long|as quickly as bandwidth allows|until the window moves on|for every head|with less noise"
)


def corpus() -> Iterator[str]:
    """The training text: every combination of four phrases, numbered."""
    phrases = (part.split("|") for part in (_WHO, _DOES, _WHAT, _HOW))
    for number, sentence in enumerate(itertools.product(*phrases)):
        yield f"{number}. {' '.join(sentence)}."


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens, the special ones first, and a chat template with Gemma-4's turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token="<unk>",
        extra_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
