"""transformers' own LLaVA, not edited: a module around it that takes and returns tensors, and its three entries.

    alula verify examples/transformers_llava.py:Llava
    alula simulate examples/transformers_llava.py:Llava --entry decode --length cache=100

The model is a small one with random weights. `LlavaForConditionalGeneration.from_pretrained(...)` in its place makes a
real one; PATCHES, WIDTH and the numbers of `TEXT` then follow from its configuration.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicCache

PATCHES, WIDTH, LAYERS, HEADS, KV_HEADS = 16, 64, 3, 4, 2
VISION = CLIPVisionConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
)
TEXT = LlamaConfig(
    hidden_size=WIDTH,
    intermediate_size=176,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    vocab_size=160,
)


class Llava(nn.Module):
    """caches: of every layer "k0", "v0", "k1" and so on, float[KV_HEADS, cache, WIDTH / HEADS]."""

    def __init__(self) -> None:
        super().__init__()
        self.llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=VISION, text_config=TEXT)).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """float[3, 32, 32] -> visual tokens float[PATCHES, WIDTH]."""
        return self.llava.model.get_image_features(pixel_values=pixels[None]).pooler_output[0]

    def prefill(self, before: Tensor, visual: Tensor, behind: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of the text in front of the picture, visual tokens, and the text behind it."""
        return self.decode(torch.cat((before, visual, behind)), **caches)

    def decode(self, x: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        """Logits behind the last row, and the caches with all rows."""
        past = DynamicCache()
        for n in range(LAYERS):
            past.update(caches[f"k{n}"][None], caches[f"v{n}"][None], n)
        start = caches["k0"].shape[1]
        positions = torch.arange(start, start + x.shape[0])[None]
        out = self.llava.model.language_model(inputs_embeds=x[None], past_key_values=past, position_ids=positions)
        held = [rows[0] for layer in out.past_key_values.layers for rows in (layer.keys, layer.values)]
        return self.llava.lm_head(out.last_hidden_state[0, -1:]), *held


def caches(rows: int) -> dict[str, Tensor]:
    names = [f"{which}{n}" for n in range(LAYERS) for which in "kv"]
    return {name: 0.5 * torch.randn(KV_HEADS, rows, WIDTH // HEADS) for name in names}


def text(rows: int) -> Tensor:
    """Embeddings as the host would look them up."""
    return torch.randn(rows, WIDTH)


cached = {name: {1: "cache"} for name in caches(0)}
entries = {
    "encode": {"inputs": lambda: {"pixels": torch.randn(3, 32, 32)}},
    "prefill": {
        "inputs": lambda: {"before": text(4), "visual": torch.randn(PATCHES, WIDTH), "behind": text(7), **caches(3)},
        "dynamic": {"before": {0: "before"}, "behind": {0: "behind"}, **cached},
        "lengths": {"before": (1, 20), "behind": (1, 40), "cache": (0, 40)},
        "takes": {"visual": "encode"},
    },
    "decode": {"inputs": lambda: {"x": text(1), **caches(9)}, "dynamic": cached, "lengths": {"cache": (1, 115)}},
}
