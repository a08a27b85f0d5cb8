"""Keys of configuration files: those that are read, those that change no arithmetic, and all others, which are refused.

A key that nobody knows may change what the model computes (a multiplier, a window, a norm). Ignoring it would give a
wrong model without a word, so a key is either read by `hf_config`, listed here as harmless, or refused by its name.
Only values that switch a thing off (null, false, 0, empty) are let through whatever the key is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hw.spec.errors import UserError

SHOWN = 60
"""Characters of a value that a message quotes."""
ANYWHERE = frozenset({
    # Where the file comes from, and in which type weights are stored.
    "_name_or_path", "architectures", "auto_map", "transformers_version", "transformers.js_config", "torch_dtype",
    "dtype", "model_type", "unsloth_version", "unsloth_fixed", "license", "_commit_hash",
    # Token ids: the tokenizer and the generation read them.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class",
    # Training alone: drop-out does nothing in inference.
    "initializer_range", "initializer_factor", "attention_dropout", "dropout", "hidden_dropout", "embd_pdrop",
    "resid_pdrop", "gradient_checkpointing", "router_aux_loss_coef",
    # How a library runs it.
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "use_bfloat16",
    "_attn_implementation_autoset", "attn_implementation", "chunk_size_feed_forward", "is_decoder",
    "is_encoder_decoder", "tie_encoder_decoder", "pruned_heads", "prefix", "tf_legacy_loss",
    # Labels of a classifier that is not there.
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    # How text is drawn from logits; this project has options of its own.
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "generation_config",
})  # fmt: skip
TEXT = ANYWHERE | {
    "pretraining_tp",  # the same sums, split over processes
    "max_window_layers",  # which layers have a window; `hf_config` refuses or shortens by the window itself
}
VISION = ANYWHERE | {
    "projection_dim",  # of CLIP's own projection, which LLaVA does not use
    "vocab_size",  # of CLIP's text tower
}
LLAVA = ANYWHERE | {
    "ignore_index",  # of the loss
    "image_seq_length",  # follows from image and patch size
    "vocab_size",  # the text configuration's counts
    "use_image_newline_parameter",  # LLaVA-NeXT has the newline; `hf_config` goes by the pinpoints
}
PREPROCESSOR = frozenset(
    {
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "auto_map",
        "_valid_processor_keys",
        "patch_size",
        "num_additional_image_tokens",
        "vision_feature_select_strategy",
        "image_token",
        "image_seq_length",
        "input_data_format",
        "data_format",
        "return_tensors",
        "device",
        "disable_grouping",
        "default_to_square",
        "aspect_ratio_setting",
        "size_divisor",
    }
)
"""Of the image processor's file: what the processor tells the tokenizer, and how arrays are handed over."""


def refuse_unknown(values: Mapping[str, Any], read: Iterable[str], harmless: frozenset[str], file: str) -> None:
    """UserError for the first key that is neither read nor harmless and does not switch something off."""
    known = harmless | set(read)
    for key, value in values.items():
        if key not in known and value:
            shown = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
            raise UserError(
                f"{file}: {key} is {shown}, and what it does to the arithmetic is not known here: choose "
                "another model, or remove the key if it does nothing"
            )


__all__ = ["ANYWHERE", "LLAVA", "PREPROCESSOR", "TEXT", "VISION", "refuse_unknown"]
