"""Which keys of a `config.json` are understood. A key outside these tables may change what a model computes, and is
refused by name unless it is null.

`HARMLESS` says nothing about inference: bookkeeping, training, generation defaults, how attention is carried out.
`FIXED` may appear with the one meaning that is implemented. The loader reads the rest.
"""

from collections.abc import Mapping
from typing import Any

from hw.spec.errors import UserError

HARMLESS = frozenset((
    # What transformers writes into every configuration of any version.
    "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "_experts_implementation", "architectures",
    "attn_implementation", "auto_map", "dtype", "torch_dtype", "transformers_version", "transformers.js_config",
    "model_type", "problem_type", "return_dict", "return_dict_in_generate", "use_return_dict", "output_attentions",
    "output_hidden_states", "output_scores", "use_cache", "use_bfloat16", "torchscript", "finetuning_task",
    "id2label", "label2id", "num_labels", "task_specific_params", "tokenizer_class", "prefix", "pruned_heads",
    "tf_legacy_loss", "tie_encoder_decoder", "chunk_size_feed_forward", "gradient_checkpointing", "unsloth_fixed",
    "unsloth_version", "_flash_attn_2_enabled", "_vllm_config",
    # Generation defaults; the ends of a text are read where tokens are.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "do_sample",
    "temperature", "top_k", "top_p", "typical_p", "min_length", "max_length", "num_beams", "num_beam_groups",
    "num_return_sequences", "diversity_penalty", "early_stopping", "length_penalty", "repetition_penalty",
    "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "remove_invalid_values",
    # Training and losses.
    "attention_dropout", "dropout", "hidden_dropout", "initializer_range", "initializer_factor", "pretraining_tp",
    "logit_scale_init_value", "projection_dim", "ignore_index",
    # Of an image: what the processor's file or the other half of the model says.
    "image_seq_length", "quantization_config",
))

FIXED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, True), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "is_llama_config": (True, False), "rope_interleaved": (False,), "partial_rotary_factor": (1, 1.0),
    "logit_scale": (1, 1.0), "embedding_multiplier": (1, 1.0), "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0), "use_qk_norm": (False,), "qk_norm": (False,), "qk_layernorm": (False,),
    "attn_logit_softcapping": (), "final_logit_softcapping": (), "attention_out_bias": (False,),
    "use_mrope": (False,), "use_sliding_window": (False, True), "no_rope_layers": ([],), "num_experts": (0,),
    "num_local_experts": (0, 1), "spatial_merge_size": (1,), "use_image_newline_parameter": (True,),
}
TEXT_KEYS = frozenset((
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "sliding_window", "max_window_layers", "layer_types",
))
ROPE_KEYS = {
    "default": frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor")),
    "llama3": frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor",
                         "high_freq_factor", "original_max_position_embeddings")),
}
# CLIP's configurations have the vocabulary of the text half, too; a tower does not read it.
VISION_KEYS = frozenset((
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "image_size", "patch_size",
    "num_channels", "layer_norm_eps",
))
LLAVA_KEYS = frozenset((
    "vocab_size", "hidden_size", "text_config", "vision_config", "image_token_index", "image_token_id", "projector_hidden_act",
    "vision_feature_layer", "vision_feature_select_strategy", "multimodal_projector_bias", "tie_word_embeddings",
    "image_grid_pinpoints",
))


def refuse_unknown(values: Mapping[str, Any], read: frozenset[str], where: str = "config.json") -> None:
    """UserError for a key that nobody reads and that is not known to be harmless, with its value."""
    for key, value in values.items():
        if key in read or key in HARMLESS or value is None:
            continue
        if key not in FIXED:
            raise UserError(f"{where}: {key} is {shown(value)}, a setting that is not known here and may change what the "
                            "model computes: choose another model, or remove the key if it has no effect")
        if not any(_same(value, allowed) for allowed in FIXED[key]):
            choices = " or ".join(map(repr, FIXED[key])) or "null"
            raise UserError(f"{where}: {key} is {shown(value)}, supported is {choices}: choose another model")


def _same(value: Any, allowed: Any) -> bool:
    """Equal, and not only because Python counts True as 1."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def shown(value: Any) -> str:
    """A value in one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
