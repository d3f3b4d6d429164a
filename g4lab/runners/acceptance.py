"""Accepted drafts per verification step, from what SGLang says with every answer."""

from collections.abc import Iterable, Mapping
from typing import Any

from g4lab.quality.acceptance import Acceptance, total


def acceptance(meta_infos: Iterable[Mapping[str, Any]]) -> Acceptance:
    """The sums over answers' meta_info (SGLang 0.5.21); one without verification steps adds nothing.

    From Server.answer, an OpenAI answer's meta_info, or runners.finished for all requests of a benchmark.
    """
    names = ("spec_verify_ct", "spec_num_proposed_drafts", "spec_num_correct_drafts", "completion_tokens")
    return total([meta.get(name) or 0 for name in names] for meta in meta_infos if meta.get("spec_verify_ct"))
