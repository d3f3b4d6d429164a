"""What a kernel module says about itself so that it can be compiled for a GPU that is not here."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of a Triton kernel, as a launch on the GPU would request it.

    signature: argument -> type, for what is not a constant: "*bf16:16" (a pointer divisible by 16), "i32", "i32:16".
    constants: the constexpr arguments, and integers that the launch specialises (a stride of 1).
    options: num_warps, num_stages and the other launch options.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
