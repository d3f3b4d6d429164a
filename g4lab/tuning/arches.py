"""Per-SM limits that decide how many blocks run at once (CUDA C++ Programming Guide, compute capabilities table)."""

from dataclasses import dataclass

from g4lab.errors import bad

WARP = 32


@dataclass(frozen=True)
class Arch:
    """capability: compute capability times ten. shared in bytes, registers of 32 bits, tensor_memory in columns."""

    capability: int
    warps: int
    blocks: int
    shared: int
    registers: int = 65536
    shared_per_block_reserved: int = 1024
    tensor_memory: int = 0

    @property
    def shared_per_block(self) -> int:
        """The most shared memory of one block."""
        return self.shared - self.shared_per_block_reserved

    def blocks_per_sm(self, registers: int, num_warps: int, shared: int, tensor_memory: int = 0) -> int:
        """Blocks of `num_warps` warps, `registers` per thread and `shared` bytes that one SM holds at once.

        tensor_memory: columns of it that a block of tcgen05 code allocates.
        """
        per_warp = -(-registers * WARP // 256) * 256  # the register file is handed out in units of 256 per warp
        by_registers = self.registers // per_warp // num_warps if per_warp else self.blocks
        by_shared = self.shared // (shared + self.shared_per_block_reserved)
        by_tensor_memory = self.tensor_memory // tensor_memory if tensor_memory else self.blocks
        return min(self.blocks, self.warps // num_warps, by_registers, by_shared, by_tensor_memory)


ARCHES = {
    "sm_80": Arch(80, warps=64, blocks=32, shared=164 * 1024),
    "sm_89": Arch(89, warps=48, blocks=24, shared=100 * 1024),
    "sm_90": Arch(90, warps=64, blocks=32, shared=228 * 1024),
    "sm_100": Arch(100, warps=64, blocks=32, shared=228 * 1024, tensor_memory=512),
    "sm_120": Arch(120, warps=48, blocks=24, shared=100 * 1024),
}


def arch(name: str) -> Arch:
    """The limits of "sm_90" and the like. Raises BadInput for an architecture that is not in ARCHES."""
    if name not in ARCHES:
        raise bad("arch", name, "one of " + ", ".join(ARCHES))
    return ARCHES[name]
