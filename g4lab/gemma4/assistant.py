"""A tiny multi-token-prediction (MTP) assistant for a tiny target, with drafts that are sometimes right.

A Gemma-4 assistant reads the target's KV, and turns the target's last hidden state and the newest token's embedding
into the next hidden state (SGLang: `--speculative-algorithm NEXTN`, model `Gemma4AssistantForCausalLM`). Ours is fitted
to its target by least squares over text that the target wrote itself, so that some drafts are accepted and some not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.gemma4.checkpoint import ensure, save_tokenizer
from g4lab.gemma4.folder import MARKER, checkpoint_folder
from g4lab.gemma4.specs import FULL, SLIDING, TWINS, Spec
from g4lab.gemma4.specs import spec as find
from g4lab.gemma4.tokenizer import SPECIAL_TOKENS
from g4lab.gemma4.weights import random_weight

if TYPE_CHECKING:
    import torch

# Text for the fit: prompts of random tokens, continued greedily. About two seconds on two cores.
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 96, 8, 48
_BRANCH_SCALE = 0.02  # of attention and MLP in a fitted assistant: they run, and hardly change the fit


def write_assistant(
    spec: Spec, target_dir: Path | str, path: Path | str, accepting: bool = True, seed: int = 1
) -> Path:
    """Write an MTP assistant for the checkpoint in `target_dir` to the folder `path`, in the target's dtype.

    Args:
        accepting: False leaves every weight random: almost no draft is right.

    Raises:
        BadInput: `spec` is no tiny twin, `target_dir` holds no checkpoint, or `path` files that g4lab did not write.
    """
    import torch

    if spec.name not in TWINS:
        raise bad("spec", spec.name, "a tiny twin: " + ", ".join(TWINS))
    target_dir = Path(target_dir)
    if not (target_dir / "model.safetensors").is_file():
        raise bad("target_dir", str(target_dir), "a folder with model.safetensors")
    dtype = json.loads((target_dir / "config.json").read_text())["dtype"]
    model = _model(spec)
    model.load_state_dict({k: random_weight(k, tuple(v.shape), seed) for k, v in model.state_dict().items()})
    if accepting:
        _fit(model, target_dir, seed)
    made_of = {"assistant of": spec.name, "seed": seed, "dtype": dtype, "accepting": accepting}
    with checkpoint_folder(path, made_of) as folder:
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        save_tokenizer(spec, folder)
    return Path(path)


def ensure_assistant(name: str, accepting: bool = True) -> Path:
    """The cached assistant of a tiny twin's fp32 checkpoint, made at the first call. Raises BadInput for no twin."""
    import filelock

    target = ensure(name)
    path = target.parent / f"{target.name}-assistant{'' if accepting else '-random'}"
    with filelock.FileLock(f"{path}.lock"):
        if not (path / MARKER).exists():
            write_assistant(find(name), target, path, accepting)
    return path


def _model(spec: Spec) -> torch.nn.Module:
    from transformers.models.gemma4_assistant import Gemma4AssistantConfig, Gemma4AssistantForCausalLM

    text = spec.hf_config().to_dict() | {
        "hidden_size": spec.hidden_size // 2,
        "intermediate_size": spec.intermediate_size // 2,
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 2,
        "layer_types": [SLIDING, FULL],
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    }
    return Gemma4AssistantForCausalLM(Gemma4AssistantConfig(text_config=text, backbone_hidden_size=spec.hidden_size))


def _fit(model: torch.nn.Module, target_dir: Path, seed: int) -> None:
    """Set the assistant's projections and LM head so that it predicts the target's next hidden state."""
    import torch

    inputs, outputs, embedding = _samples(target_dir, seed)
    # Ridge regression [token embedding, hidden state] -> next hidden state, then its main directions.
    gram = inputs.T @ inputs + 0.1 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ outputs)  # [2H, H]
    rank = model.hidden_size
    basis = torch.linalg.svd(inputs @ solution, full_matrices=False).Vh[:rank].T  # [H, rank]
    # The assistant's final norm sets the length; this restores the target's.
    length = (outputs @ basis).norm(dim=-1).mean() / rank**0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                weight.mul_(_BRANCH_SCALE)
        model.pre_projection.weight.copy_((solution @ basis).T)
        model.post_projection.weight.copy_(length * basis)
        model.lm_head.weight.copy_(length * embedding @ basis)  # tied to the embedding, which the assistant never reads
        model.model.norm.weight.fill_(1.0)


def _samples(target_dir: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp32 rows [embedding of token t+1, hidden state at t], hidden states at t+1, and the target's embedding."""
    import torch
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(target_dir, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    first, last = len(SPECIAL_TOKENS), target.config.vocab_size
    prompts = torch.randint(first, last, (_PROMPTS, _PROMPT_TOKENS), generator=generator)
    with torch.no_grad():
        text = target.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        hidden = target.model(text).last_hidden_state
        embedded = target.get_input_embeddings()(text)
    inputs = torch.cat([embedded[:, 1:], hidden[:, :-1]], dim=-1)[:, _PROMPT_TOKENS - 1 :]
    outputs = hidden[:, _PROMPT_TOKENS:]
    return inputs.flatten(0, 1), outputs.flatten(0, 1), target.get_input_embeddings().weight.detach()
