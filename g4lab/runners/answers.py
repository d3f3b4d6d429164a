"""What a running server says to a prompt at every position: log-probabilities and experts; and a file to keep it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from g4lab import env
from g4lab.quality.bisection import Answer

if TYPE_CHECKING:
    from g4lab.runners.server import Server

ROUTING_ARGS = ("--enable-return-routed-experts",)  # of a server that is asked for experts; patch routed_experts
_WAIT_S = 1800.0


def ask(server: Server, prompt: Sequence[int], new_tokens: int, top: int, num_layers: int | None = None) -> Answer:
    """One prompt's answer, greedy and `new_tokens` long, with the `top` likeliest tokens at every position.

    num_layers: the model's, where it has experts and the server runs with ROUTING_ARGS; None asks for no experts.

    Raises:
        Unavailable: the server is dead or refuses.
    """
    body = {
        "input_ids": list(prompt),
        "sampling_params": {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top,
        "return_flat_raw_top_logprobs": True,
        "return_flat_raw_top_logprobs_b64": True,
        "return_routed_experts": num_layers is not None,
    }
    said = server.request("POST", "/generate", json=body, timeout=_WAIT_S).json()
    meta, rows = said["meta_info"], len(prompt) - 1 + new_tokens
    shape = meta["input_top_logprobs_shape"]  # the first token has none: nothing stands before it
    later = np.array([[pair[:2] for pair in row] for row in meta["output_top_logprobs"]], dtype=float)
    experts = None
    if num_layers is not None:
        experts = _array(meta["routed_experts"], np.int32).reshape(rows, num_layers, -1)
    return Answer(
        prompt_len=len(prompt),
        tokens=tuple(said["output_ids"]),
        ids=np.concatenate([_array(meta["input_top_logprobs_idx_flat_b64"], np.int32).reshape(shape),
                            later[..., 1].astype(np.int32)]),
        logp=np.concatenate([_array(meta["input_top_logprobs_val_flat_b64"], np.float32).reshape(shape),
                             later[..., 0].astype(np.float32)]),
        experts=experts,
        correct_drafts=meta.get("spec_num_correct_drafts") or 0,
        verifies=meta.get("spec_verify_ct") or 0,
    )  # fmt: skip


def keep(answers: Sequence[Answer], path: Path, **more: str) -> None:
    """Write answers, and texts to read back with them, to one .npz file, whole or not at all."""
    arrays: dict[str, np.ndarray] = {f"more_{name}": np.array(text) for name, text in more.items()}
    for i, answer in enumerate(answers):
        counts = (answer.prompt_len, answer.correct_drafts, answer.verifies)
        arrays |= {f"{i}_tokens": np.array(answer.tokens), f"{i}_counts": np.array(counts)}
        arrays |= {f"{i}_ids": answer.ids, f"{i}_logp": answer.logp}
        if answer.experts is not None:
            arrays[f"{i}_experts"] = answer.experts
    with env.atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def kept(path: Path) -> tuple[list[Answer], dict[str, str]]:
    """The answers and texts that `keep` wrote."""
    with np.load(path) as file:
        count = sum(name.endswith("_tokens") for name in file)
        answers = []
        for i in range(count):
            prompt_len, correct, verifies = file[f"{i}_counts"].tolist()
            experts = file.get(f"{i}_experts")
            tokens = tuple(file[f"{i}_tokens"].tolist())
            answers.append(Answer(prompt_len, tokens, file[f"{i}_ids"], file[f"{i}_logp"], experts, correct, verifies))
        return answers, {name[5:]: str(file[name]) for name in file if name.startswith("more_")}


def _array(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)
