"""What the tuner's model takes a GPU to be: rates per SM and clock cycle, one chip for each architecture.

Clocks are those at which the data sheet's dense bf16 rate (g4lab/bench/chips.csv has the sources) follows from the rate
per SM and cycle; a chip under load runs slower, which moves no ranking.
"""

from dataclasses import dataclass

from g4lab.errors import bad


@dataclass(frozen=True)
class Chip:
    """flops: bf16 FLOPs per SM and cycle by matrix unit. gbps: 10^9 bytes a second from memory, data sheet."""

    name: str
    sms: int
    ghz: float
    gbps: float
    flops: dict[str, float]

    @property
    def dram(self) -> float:
        """Bytes from memory per SM and cycle with all SMs reading."""
        return self.gbps / self.ghz / self.sms

    @property
    def l2(self) -> float:
        """Bytes from the L2 per SM and cycle with all SMs reading."""
        return L2_BYTES / self.sms

    def us(self, cycles: float) -> float:
        """Microseconds of that many cycles."""
        return cycles / self.ghz / 1e3


# mma.sync on Hopper: 62.9 % of the rate of wgmma (Luo et al., arXiv 2402.13499). On sm_100 it is assumed to run as fast
# per SM as on sm_80, which no source at hand says.
CHIPS = {
    "sm_80": Chip("A100 SXM 80GB", 108, 1.41, 2039, {"mma.sync": 2048}),
    "sm_90": Chip("H200 SXM", 132, 1.83, 4800, {"wgmma": 4096, "mma.sync": 2576}),
    "sm_100": Chip("B200", 148, 1.86, 8000, {"tcgen05": 8192, "mma.sync": 2048}),
    "sm_120": Chip("RTX PRO 6000 Blackwell", 188, 2.6, 1792, {"mma.sync": 1024}),
}
L2_BYTES = 5120  # a cycle for the whole chip: NVIDIA's A100 whitepaper, taken for the others as well
L1_BYTES = 128  # per SM and cycle: shared memory, spills
ISSUES = 4  # instructions of a warp per SM and cycle
LATENCY = 1000  # cycles of a gather that misses the L2, index first; about what pointer chases report


def chip(arch: str) -> Chip:
    """The chip that stands for an architecture. Raises BadInput where the model knows none."""
    if arch not in CHIPS:
        raise bad("arch", arch, "one of " + ", ".join(CHIPS))
    return CHIPS[arch]
