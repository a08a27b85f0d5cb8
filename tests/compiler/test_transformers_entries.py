"""Language models that nobody here wrote, with transformers' own cache: prefill and decode in one program, unedited."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

import alula
from alula.module_source import read_source
from tests.compiler.test_transformers_layers import trained

WIDTH, HEADS, KV_HEADS = 64, 4, 2
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 176,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 16}
WINDOW = {"sliding_window": 16}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Arcee": HEAD, "Cohere": {}, "Cohere2": WINDOW, "Ernie4_5": HEAD, "Exaone4": WINDOW, "Gemma": HEAD,
    "Gemma2": HEAD | WINDOW | {"query_pre_attn_scalar": 16}, "Gemma3Text": HEAD | WINDOW, "Glm": HEAD, "Glm4": HEAD,
    "Granite": {}, "Helium": HEAD, "HunYuanDenseV1": HEAD, "Llama": HEAD, "Ministral": HEAD | WINDOW, "Mistral": WINDOW,
    "Nemotron": {}, "Olmo": {}, "Olmo2": {}, "Phi": {}, "Phi3": {}, "Qwen2": {}, "Qwen3": HEAD, "SeedOss": HEAD,
    "SmolLM3": HEAD, "StableLm": {}, "Starcoder2": {}, "VaultGemma": HEAD | WINDOW,
}  # fmt: skip
"""Name of a configuration -> what it takes besides `SIZES`."""
NAMED = {"n_embd": WIDTH, "n_head": HEADS, "vocab_size": 160, "n_positions": 256}
WITHOUT_GROUPS = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
EARLIER: dict[str, dict[str, Any]] = {
    "BioGpt": WITHOUT_GROUPS,
    "Bloom": {"hidden_size": WIDTH, "n_head": HEADS, "vocab_size": 160},
    "Falcon": WITHOUT_GROUPS | {"num_kv_heads": HEADS, "new_decoder_architecture": True},
    "GPT2": NAMED,
    "GPTJ": NAMED | {"rotary_dim": 8},
    "GPTNeoX": WITHOUT_GROUPS,
    "Mpt": {"d_model": WIDTH, "n_heads": HEADS, "vocab_size": 160},
    "OPT": WITHOUT_GROUPS | {"ffn_dim": 128, "word_embed_proj_dim": WIDTH},
    "Persimmon": WITHOUT_GROUPS,
}
"""Those whose heads all have keys of their own: name -> all that the configuration takes."""
QUICK = ("Cohere", "HunYuanDenseV1", "Mistral", "GPTJ", "Falcon", "Bloom")
"""A rotation of neighbours; norms of queries and keys behind it; a sliding window; a rotation of some channels of rows
whose heads come second; queries, keys and values that are places of one axis; a bias of its own for every head."""
DEEP_ERROR = 0.06
LLAVA = Path(__file__).parents[2] / "examples" / "transformers_llava.py"


class Cached(nn.Module):
    """x: float[seq, WIDTH]; caches "k0", "v0", .. float[heads, cache, 16] -> logits of the last row, the caches."""

    def __init__(self, name: str, layers: int) -> None:
        super().__init__()
        configuration = getattr(transformers, f"{name}Config")
        sizes = EARLIER.get(name) or SIZES | CONFIGURATIONS[name]
        depth = {"n_head": "n_layer", "n_heads": "n_layers"}
        sizes = sizes | {next((depth[key] for key in sizes if key in depth), "num_hidden_layers"): layers}
        self.model = transformers.AutoModelForCausalLM.from_config(configuration(**sizes))
        self.layers = layers

    def forward(self, x: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        past = DynamicCache()
        for n in range(self.layers):
            past.update(caches[f"k{n}"][None], caches[f"v{n}"][None], n)
        start = caches["k0"].shape[1]
        positions = torch.arange(start, start + x.shape[0])[None]
        out = self.model(inputs_embeds=x[None], past_key_values=past, position_ids=positions, logits_to_keep=1)
        held = [rows[0] for layer in out.past_key_values.layers for rows in (layer.keys, layer.values)]
        return out.logits[0], *held


def program(name: str, layers: int) -> "alula.Program":
    torch.manual_seed(2)
    model = trained(Cached(name, layers))

    def entry(seq: int, rows: int, dynamic: dict, lengths: dict) -> "alula.Entry":
        names = [f"{which}{n}" for n in range(layers) for which in "kv"]
        caches = {each: torch.randn(HEADS if name in EARLIER else KV_HEADS, rows, 16) for each in names}
        cached = {each: {1: "cache"} for each in names}
        return alula.Entry({"x": torch.randn(seq, WIDTH)} | caches, dynamic | cached, lengths)

    prefill = entry(5, 3, {"x": {0: "seq"}}, {"seq": (1, 40), "cache": (0, 40)})
    return alula.compile(model, entries={"prefill": prefill, "decode": entry(1, 9, {}, {"cache": (1, 80)})})


def is_exact(result: dict, error: float = 0.03) -> bool:
    """error: the largest of the logits; three layers and the head add theirs up."""
    return result["bit_exact"] and result["cycle_exact"] in (True, None) and result["float_error"] < error


@pytest.mark.parametrize("name", QUICK)
def test_one_layer_behind_its_cache(name):
    made = program(name, 1)
    assert is_exact(made.verify("cycle"))
    assert is_exact(made.verify("cycle", entry="prefill", seq=33, cache=20)), "longer than the window"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGURATIONS, *EARLIER])
def test_three_layers_in_rtl(name):
    made = program(name, 3)
    assert is_exact(made.verify("rtl"), DEEP_ERROR)
    assert is_exact(made.verify("rtl", entry="prefill", seq=33, cache=20), DEEP_ERROR)


def test_llava():
    """The picture's tower, the prompt around it and two tokens, in RTL, as one session."""
    source = read_source(f"{LLAVA}:Llava")
    made = alula.compile(trained(source.module), entries=source.entries)
    result = made.verify("rtl")
    assert is_exact(result, DEEP_ERROR)
    assert [case["entry"] for case in result["cases"]][-4:] == ["encode", "prefill", "decode", "decode"]
    assert len(LLAVA.read_text().splitlines()) <= 80


class FromIds(Cached):
    """As `Cached`, from token ids: whole numbers[seq]."""

    def forward(self, x: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        return super().forward(self.model.get_input_embeddings()(x), **caches)


def test_from_token_ids():
    """The host looks embeddings up; every layer is the machine's work."""
    torch.manual_seed(2)
    model, caches = trained(FromIds("Gemma", 1)), {name: torch.randn(KV_HEADS, 3, 16) for name in ("k0", "v0")}
    dynamic = {"x": {0: "seq"}} | {name: {1: "cache"} for name in caches}
    inputs = {"x": torch.randint(0, 160, (5,))} | caches
    result = alula.compile(model, inputs, dynamic, {"seq": (1, 40), "cache": (0, 40)}).verify("cycle")
    assert is_exact(result)
    assert [row["operator"] for row in result["operators"]].count("linear") >= 7
