"""Reading the config.json of a transformers model strictly: every key is used, fixed, or known to have no effect."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.config_values import MAX_INTEGER
from mlx_depth.weights.rules import listed

# Attributes of transformers' PretrainedConfig: older files write them all out. None changes what a network computes.
_GENERAL = frozenset(
    [
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
    ]
)


def read_keys(
    where: str,
    data: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    no_effect: Iterable[str],
) -> dict[str, Any]:
    """Check every key of a transformers config and return the architecture's values.

    Args:
        where: What is read, for the messages.
        data: The JSON object.
        defaults: The keys that are used, with transformers' default for each.
        fixed: Keys for which only one value is supported.
        no_effect: Further keys that do not change inference.
    Raises:
        CheckpointError: On an unknown key, or on a value that is not supported.
    """
    known = {*defaults, *fixed, *no_effect, *_GENERAL}
    unknown = sorted(set(data) - known)
    if unknown:
        raise CheckpointError(
            f"{where} has keys that mlx-depth does not know: {listed(unknown)}. "
            f"Take the file of the original checkpoint, or update mlx-depth. Known keys: "
            f"{', '.join(sorted({*defaults, *fixed}))}."
        )
    for key, value in fixed.items():
        if key in data and data[key] != value:
            raise CheckpointError(
                f"{where}: {key} is {data[key]!r:.60}, and only {value!r} is supported: this is another architecture. "
                "Take the file of the original checkpoint, or another model."
            )
    return {**defaults, **{key: data[key] for key in defaults if key in data}}


def check_counts(where: str, values: Mapping[str, Any], lengths: Mapping[str, int]) -> None:
    """Check the types of sizes, so that a damaged file is no puzzle deep inside the network.

    Args:
        where: What is read, for the message.
        values: As ``read_keys`` returns them.
        lengths: The keys to check, each with the length of its list; 1: a plain number.
    Raises:
        CheckpointError: If a value is not made of that many whole numbers above 0.
    """
    for key, length in lengths.items():
        numbers = [values[key]] if length == 1 else values[key]
        fits = isinstance(numbers, (list, tuple)) and len(numbers) == length
        if not fits or not all(type(number) is int and 0 < number <= MAX_INTEGER for number in numbers):
            wanted = "a whole number" if length == 1 else f"a list of {length} whole numbers"
            raise CheckpointError(
                f"{where}: {key} is {values[key]!r:.40}, not {wanted} above 0: "
                "take the file of the original checkpoint."
            )
