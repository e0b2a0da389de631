"""Read tokenizers and processors of a checkpoint from a copy of its files that contains only what is safe.

Libraries read more files than needed, and follow keys that name files or code. They get a temporary directory with
checked files only, so that they can neither read other files nor run code.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpgp.backbone import limits
from fedpgp.backbone.foreign_files import AGAIN, content_of, parse, read_json
from fedpgp.errors import CheckpointError, first_line

TOKENIZER_FILES = ("*token*.json", "vocab.*", "merges.txt", "*.model")
SETTINGS = "tokenizer_config.json"
CLASSES = {"Albert", "Bert", "CLIP", "DistilBert", "Gemma", "Llama", "MT5", "PreTrained", "Roberta", "Siglip", "T5"}
CLASSES |= {"XLMRoberta"}  # classes of transformers without "Tokenizer" and "TokenizerFast"
TOKENS = re.compile(r"[a-z]{2,12}_token")  # bos_token, and others
KEYS = {"added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "backend", "model_max_length"}
KEYS |= {"padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces", "legacy", "errors"}
KEYS |= {"split_special_tokens", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize"}
KEYS |= {"add_prefix_space", "trim_offsets", "add_bos_token", "add_eos_token", "extra_ids", "keep_accents"}
KEYS |= {"spaces_between_special_tokens", "add_dummy_prefix", "remove_space", "do_remove_punctuation"}
NEXT = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|\[[^]]*\]|[^\]\\])*\]", re.DOTALL)  # an escape or a set of characters
REFERENCE = re.compile(r"\\(?:[1-9]|[kg][<'])")
REPEATED_GROUP = re.compile(r"\)[*+{]")
UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")
REPEATED = re.compile(r"[*+{]|(?<!\()\?")


@contextmanager
def staged(directory: Path, **configs: Any) -> Iterator[Path]:
    """Yield a temporary directory with the checked tokenizer of a checkpoint, and the given configs.

    Parameters
    ----------
    directory
        The directory of the checkpoint.
    configs
        Content of further files of JSON, by their names without .json.

    Raises
    ------
    CheckpointError
        If a file is too large, does not belong to the checkpoint, or contains what a tokenizer does not need.
    """
    with TemporaryDirectory(prefix="fedpgp-") as made:
        target = Path(made)
        for file in {file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)}:
            content = content_of(file, limits.TOKENIZER)
            if file.name == "tokenizer.json":
                _check_tokenizer(content, file)
            elif file.name == SETTINGS:
                content = json.dumps(settings_of(read_json(file), file)).encode()
            elif file.name == "special_tokens_map.json":
                tokens = {key: value for key, value in read_json(file).items() if key in KEYS or TOKENS.fullmatch(key)}
                content = json.dumps(tokens).encode()
            elif file.suffix == ".json" and file.name not in ("vocab.json", "added_tokens.json"):
                continue
            (target / file.name).write_bytes(content)
        for name, values in configs.items():
            (target / f"{name}.json").write_text(json.dumps(values))
        yield target


def settings_of(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the settings of a tokenizer that do not name files or code.

    Raises
    ------
    CheckpointError
        If they name a class that no dual encoder uses.
    """
    kept = {key: value for key, value in content.items() if key in KEYS or TOKENS.fullmatch(key)}
    named = content.get("tokenizer_class")
    if named is None:
        return kept
    if named != "TokenizersBackend" and re.sub(r"Tokenizer(Fast)?$", "", str(named)) not in CLASSES:
        raise CheckpointError(
            where=f"tokenizer_class in {file}",
            allowed="the tokenizer of a dual encoder, such as CLIPTokenizer",
            got=named if isinstance(named, str) else type(named).__name__,
            remedy=AGAIN,
        )
    return {**kept, "tokenizer_class": named}


def _check_tokenizer(content: bytes, file: Path) -> None:
    """Raise CheckpointError if a tokenizer could take much time or memory for a short text, or gives random tokens."""
    try:
        parsed = parse(content)
    except ValueError as error:
        raise CheckpointError(f"cannot be read ({first_line(error)})", where=str(file), remedy=AGAIN) from error
    model = parsed.get("model") or {}
    tokens = max((len(model[key]) for key in ("vocab", "merges") if isinstance(model.get(key), dict | list)), default=0)
    if tokens > limits.VOCABULARY:
        _refuse("the vocabulary", f"of at most {limits.VOCABULARY:,} tokens", tokens, file)
    if model.get("dropout"):
        _refuse("model.dropout", "null, because tokens must not be random", model["dropout"], file)
    replacements = 0
    waiting: list[Any] = [value for key, value in parsed.items() if key not in ("model", "added_tokens")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
            text = value.get("content", "") if "pattern" in value else value.get("prepend", "")
            replacements += "pattern" in value or "prepend" in value or "precompiled_charsmap" in value
            if replacements > limits.REPLACEMENTS or (isinstance(text, str) and len(text) > limits.REPLACEMENTS):
                allowed = f"at most {limits.REPLACEMENTS} of at most {limits.REPLACEMENTS} characters each"
                _refuse("the replacements", allowed, "more", file)
            if isinstance(value.get("Regex"), str):
                check_expression(value["Regex"], file)
        elif isinstance(value, str) and len(value) > limits.CHARACTERS:
            _refuse("every text", f"at most {limits.CHARACTERS:,} characters long", f"{len(value):,}", file)
        elif isinstance(value, int) and value > limits.NUMBER:
            _refuse("every number", f"at most {limits.NUMBER:,}", value, file)


def _refuse(what: str, allowed: str, got: object, file: Path) -> None:
    raise CheckpointError(where=f"{what} in {file}", allowed=allowed, got=got, remedy=AGAIN)


def check_expression(expression: str, file: Path) -> None:
    """Check that a regular expression of a tokenizer takes little time for any short text.

    Raises
    ------
    CheckpointError
        If it is long, refers to a group or repeats one, or has many groups or repetitions in an alternative.
    """
    plain = NEXT.sub("x", expression)  # only groups, alternatives and repetitions keep their characters
    if (
        len(expression) > limits.EXPRESSION
        or REFERENCE.search(expression)
        or REPEATED_GROUP.search(plain)
        or any(
            part.count("(") > limits.GROUPS
            or len(UNBOUNDED.findall(part)) > limits.REPETITIONS
            or len(REPEATED.findall(part)) > 2 * limits.REPETITIONS
            for part in _alternatives(plain)
        )
    ):
        _refuse(
            "every regular expression",
            f"one of at most {limits.EXPRESSION} characters without a repeated group or a reference, and with at most"
            f" {limits.GROUPS} group and {limits.REPETITIONS} unbounded repetitions in an alternative",
            expression,
            file,
        )


def _alternatives(expression: str) -> list[str]:
    """Return the alternatives of an expression; those within its groups are not separated."""
    depth, parts = 0, [""]
    for letter in expression:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def largest_token(tokenizer: Any) -> int:
    """Return the largest id of a tokenizer's tokens; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1)
