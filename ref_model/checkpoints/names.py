"""Canonical state names and shapes: the one list that loaders, synthetic weights and the compiler go by.

Only tensors that take part in inference are named: vision layers after the feature layer, the tower's post_layernorm
and rotary tables are not. Linear weights are [outputs, inputs], as in PyTorch.
"""

from ref_model.config import LlavaConfig, TextConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = "language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
NEWLINE = "image_newline"


def vision_layer_shapes(config: VisionConfig, index: int) -> Shapes:
    """Tensors of vision layer `index`, `vision_tower.encoder.layers.<index>.*`."""
    prefix, d = f"vision_tower.encoder.layers.{index}.", config.hidden
    shapes: Shapes = {}
    for leaf in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
        shapes |= {f"{prefix}{leaf}.weight": (d, d), f"{prefix}{leaf}.bias": (d,)}
    for leaf in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{prefix}{leaf}.weight": (d,), f"{prefix}{leaf}.bias": (d,)}
    shapes |= {f"{prefix}mlp.fc1.weight": (config.ffn, d), f"{prefix}mlp.fc1.bias": (config.ffn,)}
    shapes |= {f"{prefix}mlp.fc2.weight": (d, config.ffn), f"{prefix}mlp.fc2.bias": (d,)}
    return shapes


def text_layer_shapes(config: TextConfig, index: int) -> Shapes:
    """Tensors of decoder layer `index`, `language_model.layers.<index>.*`."""
    prefix, d = f"language_model.layers.{index}.", config.hidden
    widths = {"q": config.q_width, "k": config.kv_width, "v": config.kv_width}
    shapes: Shapes = {f"{prefix}self_attn.{p}_proj.weight": (width, d) for p, width in widths.items()}
    if config.qkv_bias:
        shapes |= {f"{prefix}self_attn.{p}_proj.bias": (width,) for p, width in widths.items()}
    return shapes | {
        f"{prefix}self_attn.o_proj.weight": (d, config.q_width),
        f"{prefix}mlp.gate_proj.weight": (config.ffn, d),
        f"{prefix}mlp.up_proj.weight": (config.ffn, d),
        f"{prefix}mlp.down_proj.weight": (d, config.ffn),
        f"{prefix}input_layernorm.weight": (d,),
        f"{prefix}post_attention_layernorm.weight": (d,),
    }


def _vision_shapes(config: VisionConfig) -> Shapes:
    d, p = config.hidden, config.patch_size
    shapes: Shapes = {
        "vision_tower.embeddings.class_embedding": (d,),
        "vision_tower.embeddings.patch_embedding.weight": (d, 3, p, p),
        "vision_tower.embeddings.position_embedding.weight": (config.n_positions, d),
    }
    if config.pre_norm:
        shapes |= {"vision_tower.pre_layrnorm.weight": (d,), "vision_tower.pre_layrnorm.bias": (d,)}
    for index in range(config.num_executed_vision_layers):
        shapes |= vision_layer_shapes(config, index)
    return shapes


def _projector_shapes(vision_hidden: int, text_hidden: int, bias: bool) -> Shapes:
    shapes: Shapes = {}
    for leaf, inputs in (("linear_1", vision_hidden), ("linear_2", text_hidden)):
        shapes[f"multi_modal_projector.{leaf}.weight"] = (text_hidden, inputs)
        if bias:
            shapes[f"multi_modal_projector.{leaf}.bias"] = (text_hidden,)
    return shapes


def state_shapes(config: LlavaConfig) -> Shapes:
    """Every tensor of the model by canonical name. `lm_head.weight` is listed even when it is tied to the embedding."""
    text = config.text
    shapes: Shapes = {}
    if config.vision is not None:
        shapes |= _vision_shapes(config.vision)
        shapes |= _projector_shapes(config.vision.hidden, text.hidden, config.projector_bias)
    if config.pinpoints:
        shapes[NEWLINE] = (text.hidden,)
    shapes[EMBEDDING] = (text.vocab, text.hidden)
    for index in range(text.layers):
        shapes |= text_layer_shapes(text, index)
    return shapes | {"language_model.norm.weight": (text.hidden,), HEAD: (text.vocab, text.hidden)}
