"""The kernel that does nothing: what starting one costs, which no kernel can undercut."""

import triton
import triton.language as tl


@triton.jit
def _empty_kernel(pointer, BLOCK: tl.constexpr):
    pass


def launch_empty(tensor, blocks: int = 1) -> None:
    """Launch `blocks` blocks of one warp that return at once; `tensor` is a GPU tensor and stays as it is."""
    _empty_kernel[(blocks,)](tensor, BLOCK=1, num_warps=1)
