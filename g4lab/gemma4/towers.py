"""The vision and audio towers of the public Gemma-4 checkpoints, as data, and what their weights take.

Dimensions: transformers' `convert_gemma4_weights.py`, which made those checkpoints; rules: transformers 5.12 `gemma4`.
The large models have a wide vision tower and no audio tower, the small ones a narrow one and audio. Nothing here
imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from g4lab.gemma4.specs import Spec
from g4lab.gemma4.specs import spec as spec_named

_PATCH_CHANNELS = 3


@dataclass(frozen=True)
class Vision:
    """The vision tower. Fields are named as in Hugging Face's Gemma4VisionConfig."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    standardize: bool = False  # two more vectors, of scales and shifts
    use_clipped_linears: bool = False
    patch_size: int = 16
    position_embedding_size: int = 10_240

    def config(self) -> dict:
        """What Gemma4Config takes as vision_config."""
        return {**asdict(self), "num_key_value_heads": self.num_attention_heads}

    def parameters(self, text_hidden_size: int) -> int:
        """Learned weights, the projection into the text model included."""
        h, wide = self.hidden_size, self.num_attention_heads * self.head_dim
        layer = 4 * h * wide + 3 * h * self.intermediate_size + 2 * self.head_dim + 4 * h
        patches = _PATCH_CHANNELS * self.patch_size**2 * h + 2 * self.position_embedding_size * h
        return patches + self.num_hidden_layers * layer + h * text_hidden_size


@dataclass(frozen=True)
class Audio:
    """The audio tower. Fields are named as in Hugging Face's Gemma4AudioConfig."""

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    output_proj_dims: int = 1536
    subsampling_conv_channels: tuple[int, int] = (128, 32)
    conv_kernel_size: int = 5

    def config(self) -> dict:
        """What Gemma4Config takes as audio_config."""
        return asdict(self) | {"subsampling_conv_channels": list(self.subsampling_conv_channels)}

    def parameters(self, text_hidden_size: int) -> int:
        """Learned weights, the projection into the text model included."""
        h, (first, second) = self.hidden_size, self.subsampling_conv_channels
        subsampling = 9 * first + first + 9 * first * second + second + first // 4 * second * h
        feed_forward = 2 * 4 * h * h + 2 * h
        attention = 5 * h * h + h // self.num_attention_heads  # q, k, v, out, relative positions; a scale per dimension
        convolution = 3 * h * h + self.conv_kernel_size * h + 2 * h
        layer = 2 * feed_forward + attention + convolution + 3 * h
        output = (h + 1) * self.output_proj_dims
        return subsampling + self.num_hidden_layers * layer + output + self.output_proj_dims * text_hidden_size


_WIDE = Vision(1152, 4304, 27, 16, 72, standardize=True)
_NARROW = Vision(768, 3072, 16, 12, 64, use_clipped_linears=True)
_OF_TWINS = (Vision(64, 128, 2, 2, 32, position_embedding_size=64), Audio(64, 2, 2, 96, (16, 8)))
_TOWERS: dict[str, tuple[Vision, Audio | None]] = {
    "26b-a4b": (_WIDE, None),
    "31b": (_WIDE, None),
    "e4b": (_NARROW, Audio()),
    "e2b": (_NARROW, Audio()),
}


def towers(spec: Spec | str) -> tuple[Vision, Audio | None]:
    """The towers of a model's public checkpoint; for a tiny twin those that g4lab.gemma4.multimodal writes.

    Raises:
        BadInput: no such model.
    """
    spec = spec_named(spec) if isinstance(spec, str) else spec
    return _TOWERS.get(spec.name, _OF_TWINS)


def tower_bytes(spec: Spec | str, dtype_bytes: float = 2) -> dict[str, int]:
    """{"vision", "audio"}: bytes of the learned weights of a checkpoint's towers on one GPU.

    Not what a server without towers gains: SGLang also keeps memory free for images, see g4lab.patches.text_only.

    Raises:
        BadInput: no such model.
    """
    spec = spec_named(spec) if isinstance(spec, str) else spec
    vision, audio = towers(spec)
    sizes = {"vision": vision.parameters(spec.hidden_size), "audio": audio.parameters(spec.hidden_size) if audio else 0}
    return {name: int(count * dtype_bytes) for name, count in sizes.items()}
