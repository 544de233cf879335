"""What a forward and backward pass of a policy's language model holds in memory, from its shapes alone.

The formulas follow transformers' Llama, peft's LoRA and autograd, tensor by tensor: what a block keeps for its backward
pass, and what is alive beside that at the moments when most is. They count bytes of tensors; what the allocator rounds
up and cuts to pieces comes on top. On a CPU they are held to measurements by ``tests/agents/test_plan.py``; the memory-
efficient attention kernel and the de-quantization of CUDA devices, which run on none, are read from the code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vlacoach.policies.configuration import LanguageConfig, VLAConfig
from vlacoach.policies.quantization import Quantization

SINGLE, HALF = 4, 2
"""Bytes of a float32, and of a bfloat16."""

_MLP = ("gate_proj", "up_proj", "down_proj")
_ALIGNMENT, _LOGSUMEXP_ALIGNMENT = 8, 32  # Of the efficient kernel, in keys and in queries.


@dataclass(frozen=True)
class Numerics:
    """How numbers are held while the language model computes.

    Attributes:
        compute: Bytes of a number in matrix products: 2 under bfloat16 autocast, else 4.
        weights: Bytes of a weight that is not quantized.
        quantization: Of the language model's linear layers.
        attention: ``"math"`` multiplies it out and keeps the probabilities, as policies compute on CPUs;
            ``"efficient"``, the memory-efficient kernel of CUDA devices, keeps their logarithmic sums. (The additive
            mask rules flash attention out.)
        own_inputs: Whether each trained layer keeps a copy of its input, rather than one for all that share it.
            Autocast copies what comes in another format, and peft hands a float32 LoRA its input in float32; only its
            quantized layers on CUDA devices leave the input alone.
        rank: Of the LoRA; None trains the language model's own weights.
        checkpointing: Whether the backward pass computes each block again.
    """

    compute: int
    weights: int
    quantization: Quantization = "none"
    attention: Literal["math", "efficient"] = "efficient"
    own_inputs: bool = False
    rank: int | None = 16
    checkpointing: bool = False


def numerics_of(
    device: Literal["cpu", "cuda"],
    precision: Literal["fp32", "bf16"],
    quantization: Quantization = "none",
    rank: int | None = 16,
    checkpointing: bool = False,
) -> Numerics:
    """How :func:`vlacoach.policies.load_policy` and :class:`VLAPolicy` hold numbers on a device.

    Args:
        device: Its kind.
        precision: See :class:`VLAPolicy`.
        quantization: Of the language model's linear layers.
        rank: Of the LoRA; None trains the language model's own weights.
        checkpointing: See :class:`Numerics`.
    """
    compute = SINGLE if precision == "fp32" else HALF
    weights = HALF if precision == "bf16" and (quantization != "none" or device == "cuda") else SINGLE
    if compute == SINGLE:
        own = False
    elif rank is None:
        own = weights == SINGLE
    else:
        own = quantization == "none" or device == "cpu"
    attention: Literal["math", "efficient"] = "math" if device == "cpu" else "efficient"
    return Numerics(compute, weights, quantization, attention, own, rank, checkpointing)


@dataclass(frozen=True)
class Activations:
    """Bytes that a micro-batch takes beside weights, gradients and optimizer states.

    Attributes:
        kept: What waits for the backward pass, by kind, when the forward pass is done.
        moments: What is alive at each moment that may be the peak.
    """

    kept: dict[str, int]
    moments: dict[str, int]

    @property
    def peak(self) -> int:
        """The most that is alive."""
        return max(self.moments.values())


def sequence_length(config: VLAConfig, prompt_tokens: int, deciding: bool = False) -> int:
    """Positions S of the language model's input.

    Args:
        config: The policy's.
        prompt_tokens: Of the prompt, BOS included.
        deciding: For head ``"openvla"``: as its first pass has it, before any token of the action.
    """
    prompt = prompt_tokens + config.num_visual_tokens + (config.proprio_dim is not None)
    if config.head == "openvla":
        return prompt if deciding else prompt + config.action_dim - 1
    return prompt + config.num_action_tokens + 1


def linear_shapes(language: LanguageConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of a block."""
    width, mlp = language.hidden_size, language.mlp_size
    key_width = width // language.num_heads * (language.num_key_value_heads or language.num_heads)
    return {
        "q_proj": (width, width),
        "k_proj": (width, key_width),
        "v_proj": (width, key_width),
        "o_proj": (width, width),
        "gate_proj": (width, mlp),
        "up_proj": (width, mlp),
        "down_proj": (mlp, width),
    }


def block_parameters(language: LanguageConfig) -> int:
    """Weights of the linear layers of a block."""
    return sum(inputs * outputs for inputs, outputs in linear_shapes(language).values())


def adapter_parameters(language: LanguageConfig, rank: int) -> int:
    """Weights of a LoRA of this rank on all blocks: r * (in + out) a layer."""
    return language.num_layers * sum(rank * (inputs + outputs) for inputs, outputs in linear_shapes(language).values())


@dataclass(frozen=True)
class _Shape:
    """A micro-batch of B rows of S positions, and the widths of the model it goes through."""

    language: LanguageConfig
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def width(self) -> int:
        return self.tokens * self.language.hidden_size

    @property
    def mlp(self) -> int:
        return self.tokens * self.language.mlp_size

    @property
    def probabilities(self) -> int:
        return self.tokens * self.length * self.language.num_heads


def _kept_by_block(shape: _Shape, numerics: Numerics) -> dict[str, int]:
    """Bytes that a block keeps for its backward pass, by kind."""
    number, language = numerics.compute, shape.language
    # RMSNorm computes in float32: its input as such, and a root for each position.
    norms = 2 * SINGLE * (shape.width + shape.tokens)
    if numerics.rank is None:  # The product with a weight that is trained keeps its other factor too.
        norms += 2 * number * shape.width
    inputs = number * (shape.mlp + (6 if numerics.own_inputs else 3) * shape.width)
    return {
        "norms": norms,
        "inputs of trained layers": inputs,
        "attention": _kept_by_attention(shape, numerics),
        "gated MLP": 3 * number * shape.mlp,  # Gate, its SiLU, and the other factor.
        "adapter": 7 * number * (numerics.rank or 0) * shape.tokens,
        "weights in the format of the products": _copied_weights(language, numerics, linear_shapes(language)),
    }


def _copied_weights(language: LanguageConfig, numerics: Numerics, layers: Iterable[str]) -> int:
    """Bytes of autocast's copies of the weights of some layers of a block."""
    if numerics.compute == SINGLE:
        return 0
    shapes = linear_shapes(language)
    copied = 0
    for inputs, outputs in map(shapes.__getitem__, layers):
        if numerics.quantization == "none" and numerics.weights == SINGLE:
            copied += inputs * outputs
        copied += (numerics.rank or 0) * (inputs + outputs)
    return numerics.compute * copied


def _kept_by_attention(shape: _Shape, numerics: Numerics) -> int:
    if numerics.attention == "math":
        # Multiplied out, in float32: scaled queries, scaled keys, values, and the probabilities.
        return SINGLE * (3 * shape.width + shape.probabilities)
    heads, number = shape.language.num_heads, numerics.compute
    kept = number * 3 * shape.width  # Queries, keys and values; the output is the input of the layer behind.
    if numerics.own_inputs:
        kept += number * shape.width
    kept += SINGLE * heads * shape.rows * _rounded(shape.length, _LOGSUMEXP_ALIGNMENT)
    if shape.length % _ALIGNMENT:  # The kernel takes a mask of aligned rows only, and each block aligns its own.
        kept += number * shape.tokens * _rounded(shape.length, _ALIGNMENT)
    return kept


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def update_activations(config: VLAConfig, rows: int, length: int, numerics: Numerics) -> Activations:
    """Bytes that the forward and backward pass of a micro-batch takes.

    Args:
        config: The policy's.
        rows: Looks in the micro-batch, B.
        length: Positions of each, S.
        numerics: How numbers are held.

    Returns:
        What is kept, and what is alive at the moments that may be the peak.
    """
    language = config.language
    shape, layers, number = _Shape(language, rows, length), language.num_layers, numerics.compute
    block = _kept_by_block(shape, numerics)
    norm_input = SINGLE * (shape.width + shape.tokens)
    shared = _shared_by_blocks(shape, number, with_mask=numerics.checkpointing)
    choices = SINGLE * rows * config.num_action_tokens * config.num_choices
    if numerics.checkpointing:
        kept = {"inputs of blocks": layers * number * shape.width}
        again = sum(block.values())
        if number == SINGLE:
            again -= SINGLE * shape.width  # The input of its first norm is the block's, which is counted above.
    else:
        kept = {kind: layers * size for kind, size in block.items()}
        if numerics.rank is not None:
            kept["norms"] -= norm_input  # Nothing in front of the first trained layer needs a gradient.
        again = 0
    kept["shared by blocks"] = shared
    if numerics.checkpointing and numerics.quantization == "int8":
        # bitsandbytes 0.50 holds the input of its 8-bit layers where checkpointing does not see it (MatMul8bitLt).
        kept["inputs that 8-bit layers hold"] = layers * number * (3 * shape.width + shape.mlp)
    waiting = sum(kept.values())
    # The rows of the output layer that are read, in the format of the products.
    read = number * config.num_choices * language.hidden_size if number < numerics.weights else 0
    moments = {
        "end of the forward pass": waiting + norm_input + read + 4 * choices,
        "last norm, backward": waiting + norm_input + 5 * SINGLE * shape.width,
        "last block, backward: MLP": waiting + again + number * shape.width + _mlp_working(shape, numerics),
        "last block, backward: attention": waiting
        + again
        - _freed_by_mlp(shape, block, numerics)
        + _attention_working(shape, numerics),
    }
    if numerics.checkpointing:
        moments["last block, computed again"] = waiting + again + _repeated_working(shape, numerics)
    if numerics.rank is None:
        moments |= _full_moments(shape, numerics, waiting, norm_input)
    kept["last norm and log-probabilities"] = norm_input + choices
    return Activations(kept, moments)


def _mlp_working(shape: _Shape, numerics: Numerics) -> int:
    """Gradients of the MLP's width beside all that the block keeps, or one of them and a layer's numbers."""
    gradient = numerics.compute * shape.mlp
    return gradient + max(gradient, dequantized_layer(shape.language, numerics))


def dequantized_layer(language: LanguageConfig, numerics: Numerics) -> int:
    """Bytes of the largest quantized layer as the products need it; 0 where none is quantized."""
    if numerics.quantization == "none":
        return 0
    return numerics.compute * max(inputs * outputs for inputs, outputs in linear_shapes(language).values())


def _shared_by_blocks(shape: _Shape, number: int, with_mask: bool = True) -> int:
    """Cosines and sines of the positions, and the mask, which blocks that run again are handed again."""
    angles = 2 * shape.tokens * (shape.language.hidden_size // shape.language.num_heads)
    return number * (angles + (shape.tokens * shape.length if with_mask else 0))


def _repeated_working(shape: _Shape, numerics: Numerics) -> int:
    """Beside what a block keeps, at the end of its second forward pass: gradients, last layer, residual stream."""
    number = numerics.compute
    # In single precision the residual stream is the second norm's input, which is kept.
    working = number * shape.width * (3 if number == SINGLE else 4)
    if numerics.own_inputs and numerics.rank is not None:
        # The last layer's input in three formats, of which one is kept; and the norm's output, with its own copies.
        working += (number + SINGLE) * shape.mlp + numerics.weights * shape.width
    return working


def _freed_by_mlp(shape: _Shape, block: dict[str, int], numerics: Numerics) -> int:
    """What a block no longer keeps when attention's backward pass begins."""
    inputs = 3 if numerics.own_inputs else 2  # Of gate and up projection, and of the output projection.
    weights = _copied_weights(shape.language, numerics, _MLP)
    return block["gated MLP"] + numerics.compute * (shape.mlp + inputs * shape.width) + block["norms"] // 2 + weights


def _attention_working(shape: _Shape, numerics: Numerics) -> int:
    """Gradients of the residual stream and of attention's parts."""
    if numerics.attention == "math":
        return numerics.compute * shape.width + 2 * SINGLE * shape.probabilities
    return numerics.compute * 4 * shape.width + SINGLE * shape.width


def _full_moments(shape: _Shape, numerics: Numerics, waiting: int, norm_input: int) -> dict[str, int]:
    """What training all weights adds: gradients of the large tables, and copies that autocast keeps."""
    number, language = numerics.compute, shape.language
    table = language.vocab_size * language.hidden_size
    copied = numerics.weights + (number if number < numerics.weights else 0)
    moments = {
        "output layer, backward": waiting + norm_input + copied * table,
        "embedding, backward": 3 * numerics.weights * table + number * shape.width,
    }
    if number < numerics.weights and numerics.checkpointing:
        copies = number * language.num_layers * block_parameters(language)
        moments["last block, forward"] = waiting + copies + 4 * number * shape.mlp + 4 * number * shape.width
    return moments


def deciding_activations(config: VLAConfig, rows: int, length: int, numerics: Numerics) -> dict[str, int]:
    """Bytes that the language model takes, without a gradient, while it decides in ``rows`` worlds.

    Returns:
        What it works with, and the keys and values that head ``"openvla"`` keeps from token to token.
    """
    language, number = config.language, numerics.compute
    shape = _Shape(language, rows, length)
    # The embeddings, which stay, the block's input, the residual stream, and the norm's output.
    around = 3 * number * shape.width + numerics.weights * shape.width
    gate = 4 * number * shape.mlp  # SiLU of the gate; and the up projection: its own, the adapter's, and the sum.
    if numerics.own_inputs:
        gate += SINGLE * shape.width
    products = _products(shape.width, shape.probabilities, number) - number * shape.width
    working = (
        around + (max(gate, products) if numerics.attention == "math" else gate) + _shared_by_blocks(shape, number)
    )
    if number < SINGLE and numerics.rank is not None:
        working += number * adapter_parameters(language, numerics.rank)  # Autocast's copies.
    cache = 0
    if config.head == "openvla":
        # Of the first pass; those of the tokens behind come when there is hardly anything beside them.
        cache = 2 * number * language.num_layers * shape.tokens * linear_shapes(language)["k_proj"][1]
    logits = (number + SINGLE) * rows * config.num_choices * config.num_action_tokens
    return {"activations": max(working, logits), "keys and values": cache}


def vision_activations(config: VLAConfig, rows: int, numerics: Numerics) -> int:
    """Bytes that the frozen towers take for ``rows`` looks: pictures, and the widest moment of a block."""
    images, siglip, dino = rows * config.num_images, config.vision, config.dino
    patches = siglip.grid**2
    pixels = SINGLE * images * (6 if dino else 3) * siglip.image_size**2
    working = _tower_working(images, patches, siglip.hidden_size, siglip.mlp_size, siglip.num_heads, numerics)
    if dino is not None:
        tokens = patches + 1 + dino.num_registers
        kept = numerics.weights * images * patches * siglip.hidden_size
        second = _tower_working(
            images, tokens, dino.hidden_size, dino.mlp_ratio * dino.hidden_size, dino.num_heads, numerics
        )
        working = max(working, kept + second)
    return pixels + working


def _tower_working(images: int, tokens: int, width: int, mlp: int, heads: int, numerics: Numerics) -> int:
    number, all_tokens = numerics.compute, images * tokens
    # The block's input, the residual stream and the norm's output, which autocast leaves in float32.
    around = all_tokens * width * (2 * numerics.weights + SINGLE)
    inner = 2 * number * all_tokens * mlp
    if numerics.attention == "math":
        products = _products(all_tokens * width, all_tokens * tokens * heads, number)
        inner = max(inner, products - numerics.weights * all_tokens * width)
    return around + inner


def _products(width: int, probabilities: int, number: int) -> int:
    """Attention multiplied out in float32: its three inputs, two scaled and two copied; or scores beside them."""
    products = SINGLE * max(7 * width + probabilities, 4 * width + 2 * probabilities)
    return products + (3 * number * width if number < SINGLE else 0)
