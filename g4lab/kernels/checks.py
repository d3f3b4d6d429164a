"""What the norm kernels ask of the tensors they are given."""

import torch

from g4lab.errors import bad

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}  # and their names in Triton


def check_alike(name: str, x, other: str, first) -> None:
    """Raises BadInput unless `x` has the dtype and the device of `first` (the argument `other`), a dtype that kernels
    take, and rows whose elements stand side by side."""
    if x.dtype not in DTYPES or x.dtype != first.dtype:
        raise bad(name, x.dtype, f"bfloat16, float16 or float32, the same as {other}")
    if x.device != first.device:
        raise bad(name, f"device {x.device}", f"{other}'s device {first.device}")
    if x.stride(1) != 1:
        raise bad(name, f"stride {x.stride(1)}", "stride 1 in the last dimension")


def check_vector(name: str, vector, size: int, other: str, first) -> None:
    """Raises BadInput unless `vector` is [size], on the device of `first` (the argument `other`), in one of DTYPES."""
    if tuple(vector.shape) != (size,):
        raise bad(name, tuple(vector.shape), f"shape ({size},)")
    if vector.dtype not in DTYPES:
        raise bad(name, vector.dtype, "bfloat16, float16 or float32")
    if vector.device != first.device:
        raise bad(name, f"device {vector.device}", f"{other}'s device {first.device}")
