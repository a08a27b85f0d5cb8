"""Decoder layers: causal attention with a cache, then an MLP, in the arrangements of published language models."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .attention import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, Attention, AttentionOptions
from .case import Case, Inputs, past, rotary_tables, rows, trained
from .parts import ACTIVATIONS, NORMS, Experts, FusedGatedMlp, GatedMlp, Lora, PlainMlp, low_rank

FFN = 176
SECTIONS = (2, 3, 3)
"""M-RoPE: how many of a head's 8 pairs turn by time, by row and by column."""

LLAMA_ATTENTION = AttentionOptions()
LLAMA_MLP = partial(GatedMlp, HIDDEN, FFN)


@dataclass(frozen=True)
class DecoderOptions:
    """How a layer is arranged; the defaults are Llama's.

    norm: a name of `NORMS`. mlp: builds the MLP. arrangement: "pre" normalises what goes into attention and MLP, "post"
    what comes out of each sum, "sandwich" what goes in and what comes out; "parallel" feeds attention and MLP the same
    normalised rows. residual_scale: of what is added to the stream. scaled_by_alpha: writes that scale as torch's
    `add(alpha=...)`. stream_last: adds the stream to the result instead of the result to the stream.
    """

    attention: AttentionOptions = LLAMA_ATTENTION
    norm: str = "rms"
    mlp: Callable[[], nn.Module] = LLAMA_MLP
    arrangement: str = "pre"
    residual_scale: float = 1.0
    scaled_by_alpha: bool = False
    stream_last: bool = False


class Layer(nn.Module):
    """One decoder layer; the inputs are `Attention`'s."""

    def __init__(self, options: DecoderOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or DecoderOptions()
        norm = NORMS[options.norm]
        self.self_attn = Attention(options.attention)
        self.mlp = options.mlp()
        self.input_norm = norm(HIDDEN)
        if options.arrangement != "parallel":
            self.mlp_norm = norm(HIDDEN)
        if options.arrangement == "sandwich":
            self.attention_out_norm, self.mlp_out_norm = norm(HIDDEN), norm(HIDDEN)

    def run(self, x: Tensor, past_k: Tensor, past_v: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer with tables of cosines and sines, or without any."""
        if self.options.arrangement == "post":
            attention, k, v = self.self_attn(x, past_k, past_v, *tables)
            x = self.input_norm(self.added(x, attention))
            return self.mlp_norm(self.added(x, self.mlp(x))), k, v
        normalised = self.input_norm(x)
        attention, k, v = self.self_attn(normalised, past_k, past_v, *tables)
        if self.options.arrangement == "parallel":
            return x + attention + self.mlp(normalised), k, v
        if self.options.arrangement == "sandwich":
            x = self.added(x, self.attention_out_norm(attention))
            return self.added(x, self.mlp_out_norm(self.mlp(self.mlp_norm(x)))), k, v
        x = self.added(x, attention)
        return self.added(x, self.mlp(self.mlp_norm(x))), k, v

    def added(self, stream: Tensor, x: Tensor) -> Tensor:
        """The stream with a result added, float[seq, hidden]."""
        scale = self.options.residual_scale
        if self.options.scaled_by_alpha:
            return torch.add(stream, x, alpha=scale)
        if scale != 1.0:
            x = x * scale
        return x + stream if self.options.stream_last else stream + x


class Decoder(Layer):
    """A layer with rotary positions."""

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.run(x, past_k, past_v, cos, sin)


class PositionlessDecoder(Layer):
    """A layer without rotary positions: tables that it does not use are no inputs of it."""

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.run(x, past_k, past_v)


class SectionedDecoder(Layer):
    """A layer with M-RoPE: a token has a time, a row and a column, and each turns pairs of its own.

    cos, sin: float[3, seq, head_dim], the tables of the three positions.
    """

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.run(x, past_k, past_v, self.joined(cos), self.joined(sin))

    def joined(self, tables: Tensor) -> Tensor:
        """One table float[seq, head_dim] from three: both halves of a head take the sections in turn."""
        parts = tables.split(SECTIONS * 2, dim=-1)
        return torch.cat([part[index % 3] for index, part in enumerate(parts)], dim=-1)


class TwoDecoders(nn.Module):
    """Two Llama layers in one module, each with a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Decoder(), Decoder()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k0: Tensor, past_v0: Tensor, past_k1: Tensor, past_v1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, k0, v0 = self.first(x, cos, sin, past_k0, past_v0)
        x, k1, v1 = self.second(x, cos, sin, past_k1, past_v1)
        return x, k0, v0, k1, v1


def adapted(name: str, replacement: nn.Module) -> nn.Module:
    """A Llama layer, one of whose linear layers is replaced by another module: `name` is its path."""
    layer = Decoder()
    layer.set_submodule(name, replacement)
    return layer


def caches(cache: int, head_dim: int, names: tuple[str, ...] = ("past_k", "past_v")) -> dict[str, Tensor]:
    """Keys and values of the tokens so far, each float[kv_heads, cache, head_dim]."""
    return {name: past(name, KV_HEADS, cache, head_dim) for name in names}


def rotary_inputs(head_dim: int = HEAD_DIM, rotary_width: int = 0, layers: int = 1) -> Inputs:
    """Inputs of a `Decoder`, or of several of them in one module; 0 as `rotary_width` means the whole head."""
    names = ("past_k", "past_v") if layers == 1 else tuple(f"past_{kind}{i}" for i in range(layers) for kind in "kv")

    def inputs(seq: int = 5, cache: int = 3) -> dict[str, Tensor]:
        cos, sin = rotary_tables(torch.arange(cache, cache + seq), rotary_width or head_dim)
        return {"x": rows("x", seq, HIDDEN), "cos": cos, "sin": sin, **caches(cache, head_dim, names)}

    return inputs


def positionless_inputs(seq: int = 5, cache: int = 3) -> dict[str, Tensor]:
    """Inputs of a `PositionlessDecoder`."""
    return {"x": rows("x", seq, HIDDEN), **caches(cache, HEAD_DIM)}


def sectioned_inputs(seq: int = 5, cache: int = 3) -> dict[str, Tensor]:
    """Inputs of a `SectionedDecoder`: the tokens lie on a grid that is four columns wide."""
    places = torch.arange(seq)
    positions = torch.stack((torch.full_like(places, cache), cache + places // 4, cache + places % 4))
    cos, sin = rotary_tables(positions, HEAD_DIM)
    return {"x": rows("x", seq, HIDDEN), "cos": cos, "sin": sin, **caches(cache, HEAD_DIM)}


def dynamic(inputs: Inputs) -> dict[str, dict[int, str]]:
    """Which axis of every input grows: caches along their keys, tables and rows along the tokens."""
    return {
        name: {1: "cache"} if name.startswith("past") else {tensor.ndim - 2: "seq"} for name, tensor in inputs().items()
    }


def case(
    module: Callable[[], nn.Module], about: str, inputs: Inputs | None = None, router: bool = False, refused: str = ""
) -> Case:
    """A case of this family."""
    inputs = inputs or rotary_inputs()
    lengths = {"seq": (1, 64), "cache": (0, 64)}
    return Case(
        lambda: trained(module()), inputs, "decoders", about, dynamic(inputs), lengths, router=router, refused=refused
    )


def attention(about: str, **options) -> Case:
    """A Llama layer with other attention; options of `AttentionOptions`."""
    chosen = AttentionOptions(**options)
    return case(partial(Decoder, DecoderOptions(chosen)), about, rotary_inputs(chosen.head_dim, chosen.rotary_width))


def layer(about: str, **options) -> Case:
    """A Llama layer arranged otherwise; options of `DecoderOptions`."""
    return case(partial(Decoder, DecoderOptions(**options)), about)


def gated(activation: str, about: str, **options) -> Case:
    """A Llama layer whose MLP has another activation, a name of `ACTIVATIONS`."""
    return layer(about, mlp=partial(GatedMlp, HIDDEN, FFN, ACTIVATIONS[activation], **options))


def plain(activation: str, about: str) -> Case:
    """A Llama layer with an MLP without a gate."""
    return layer(about, mlp=partial(PlainMlp, HIDDEN, FFN, ACTIVATIONS[activation]))


def low_rank_case(path: str, about: str, make: Callable[[], nn.Module]) -> Case:
    """A Llama layer with one linear layer replaced."""
    return case(lambda: adapted(path, make()), about)


def experts(k: int, about: str) -> Case:
    """A Llama layer whose MLP is a mixture of four experts, `k` of which a token takes."""
    return case(partial(Decoder, DecoderOptions(mlp=partial(Experts, HIDDEN, FFN, 4, k))), about, rotary_inputs(), True)


Q_WIDTH = HEADS * HEAD_DIM

CASES = {
    "llama": case(Decoder, "The layer of Llama, Vicuna and LLaVA-1.5."),
    "query-key-value-bias": attention("Biases of queries, keys and values, as in Qwen2.", qkv_bias=True),
    "query-key-norm": attention("RMSNorm of every head's queries and keys, as in Qwen3.", qk_norm=True),
    "sliding-window": attention("A query sees only the newest keys, as in Mistral and Gemma 2.", window=4),
    "output-bias": attention("A bias behind attention, as in InternLM.", output_bias=True),
    "fused-qkv": attention("Queries, keys and values from one matrix, as in Phi-3 and InternLM2.", fused_qkv=True),
    "partial-rotary": attention(
        "Only half of a head's channels turn, as in Phi-2, StableLM and GLM-4.", rotary_width=8
    ),
    "interleaved-rotary": attention("Neighbouring channels turn together, as in GPT-J and GLM.", interleaved=True),
    "no-rotary": case(PositionlessDecoder, "No positions in attention, as in NoPE layers.", positionless_inputs),
    "table-factor": attention("Rotary tables times a factor, as YaRN has it in long-context Qwen.", table_factor=1.2),
    "rotary-sections": case(
        SectionedDecoder, "Pairs turn by time, row or column (M-RoPE), as in Qwen2-VL.", sectioned_inputs
    ),
    "attention-scale": attention("Another scale of scores than 1 / sqrt(head_dim), as in Granite.", scale=0.1),
    "attention-soft-cap": attention("Scores limited by a tanh, as in Gemma 2.", soft_cap=5.0),
    "prefix-mask": attention("The first keys are visible to every query, as in PaliGemma.", prefix=5),
    "linear-biases": attention(
        "A bias of every head that falls with distance (ALiBi), as in BLOOM and MPT.", slopes=True
    ),
    "head-gate": attention("A factor on every head, as pruning of heads (YOPO) needs it.", head_gate=True),
    "head-dim-72": attention("Heads of 72 channels, as in SigLIP So400m.", head_dim=72),
    "head-dim-80": attention("Heads of 80 channels, as in Phi-2.", head_dim=80),
    "head-dim-88": attention("Heads of 88 channels, as in EVA-g.", head_dim=88),
    "head-dim-96": attention("Heads of 96 channels, as in Phi-3-mini.", head_dim=96),
    "mlp-bias": gated("silu", "Biases in the gated MLP, as Llama's `mlp_bias` has them.", bias=True),
    "gelu-gated-mlp": gated("gelu", "An MLP gated by GELU (GeGLU), as in T5 and ModernBERT."),
    "gelu-tanh-gated-mlp": gated("gelu_tanh", "An MLP gated by the tanh formula of GELU, as in Gemma."),
    "relu-gated-mlp": gated("relu", "An MLP gated by ReLU (ReGLU), as in ReLULLaMA."),
    "gelu-mlp": plain("gelu", "An MLP of two matrices with GELU, as in GPT-NeoX."),
    "gelu-tanh-mlp": plain("gelu_tanh", "An MLP of two matrices with the tanh formula of GELU, as in Phi-2."),
    "relu-mlp": plain("relu", "An MLP of two matrices with ReLU, as in OPT."),
    "squared-relu-mlp": plain("squared_relu", "An MLP of two matrices with squared ReLU, as in Nemotron-4."),
    "fused-gate-up": layer(
        "Gate and up from one matrix, as in Phi-3 and GLM-4.", mlp=partial(FusedGatedMlp, HIDDEN, FFN)
    ),
    "parallel": layer(
        "Attention and MLP read the same normalised rows, as in GPT-J and Phi-2.",
        norm="layer",
        arrangement="parallel",
        mlp=partial(PlainMlp, HIDDEN, FFN, ACTIVATIONS["gelu"]),
    ),
    "post-norm": layer("The norm stands behind every sum, as in the first transformers.", arrangement="post"),
    "sandwich-norm": layer("Norms before and behind attention and MLP, as in Gemma 2.", arrangement="sandwich"),
    "offset-norm": layer("RMSNorm that multiplies by 1 + weight, as in Gemma.", norm="rms_offset"),
    "written-out-norm": layer("RMSNorm in single operations, as transformers writes it.", norm="rms_written_out"),
    "default-epsilon-norm": layer(
        "RMSNorm whose epsilon is left out, so that torch's own holds.", norm="rms_default_epsilon"
    ),
    "grouped-norm": layer("RMSNorm over groups of channels, as in Mamba 2.", norm="rms_grouped"),
    "layer-norm": layer("LayerNorm in a decoder, as in GPT-2 and Phi-2.", norm="layer"),
    "layer-norm-without-bias": layer("LayerNorm without a bias, as in MPT and DBRX.", norm="layer_without_bias"),
    "residual-scale": layer("What is added to the stream is scaled, as in Granite and MiniCPM.", residual_scale=0.22),
    "residual-alpha": layer(
        "The same scale, written as an argument of torch's add.", residual_scale=0.22, scaled_by_alpha=True
    ),
    "stream-last": layer("The sum is written as result plus stream, as some sources have it.", stream_last=True),
    "lora-on-down": low_rank_case(
        "mlp.down_proj", "A low-rank update of the last matrix, as LoRA leaves it.", partial(Lora, FFN, HIDDEN)
    ),
    "lora-on-query": low_rank_case(
        "self_attn.projections.q_proj", "A low-rank update of the queries (LoRA).", partial(Lora, HIDDEN, Q_WIDTH)
    ),
    "lora-on-output": low_rank_case(
        "self_attn.o_proj", "A low-rank update of the matrix behind attention (LoRA).", partial(Lora, Q_WIDTH, HIDDEN)
    ),
    "low-rank-linear": low_rank_case(
        "mlp.down_proj", "A matrix as the product of two, as SVD-LLM compresses it.", partial(low_rank, FFN, HIDDEN, 16)
    ),
    "top-2-experts": experts(2, "Two of four experts for every token, as in MoE-LLaVA and Mixtral."),
    "top-1-expert": experts(1, "One of four experts for every token, as in Switch and LLaVA-MoLE."),
    "two-layers": case(TwoDecoders, "Two layers in one module, as in any stack.", rotary_inputs(layers=2)),
}
