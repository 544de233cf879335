"""Strict YAML in, commented YAML out."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from vlacoach.errors import ConfigError
from vlacoach.runs.files import replace_text
from vlacoach.runs.indices import format_indices

if TYPE_CHECKING:
    from vlacoach.runs.config import TrainConfig

COMMENT_WIDTH = 100


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where plain YAML lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping with text keys.

    Raises:
        ConfigError: The file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"Config file {str(file)!r} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {str(file)!r} cannot be read: {error}.") from error
    tree = parse_yaml(text, str(file))
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{file}: the top level must be 'key: value' lines, not {type(tree).__name__}.")
    return tree


def parse_yaml(text: str, origin: str) -> Any:
    """Read one YAML value.

    Args:
        text: YAML.
        origin: Where the text is from, for the error message.

    Raises:
        ConfigError: The text is not YAML; the message has line and column.
    """
    try:
        return yaml.load(text, _StrictLoader)  # A subclass of SafeLoader: no Python objects are made.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"{origin}: not valid YAML{place}: {reason}.") from error


def read_settings(file: str | Path) -> dict[str, Any]:
    """Read a file of settings as it was written, by dotted key; keys that this version does not know are there too.

    Only sections are taken apart: what lies deeper are the free options of a scorer.

    Raises:
        ConfigError: The file cannot be read or is not a mapping.
    """
    flat: dict[str, Any] = {}
    for name, value in read_yaml(file).items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def dump_config(config: TrainConfig, comments: bool = True) -> str:
    """Write a configuration as YAML, each setting under the sentence that explains it.

    Args:
        config: What to write.
        comments: Whether to write the explanations.

    Returns:
        YAML text that reads back as an equal configuration.
    """
    lines: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            lines.append("")
            if comments:
                lines += _comment((type(value).__doc__ or "").strip(), "")
            lines.append(f"{name}:")
            for inner, inner_field in type(value).model_fields.items():
                if comments:
                    lines += _comment(inner_field.description or "", "  ")
                lines.append(f"  {inner}: {_scalar(getattr(value, inner))}")
        else:
            if comments:
                lines += _comment(field.description or "", "")
            lines.append(f"{name}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def write_config(config: TrainConfig, file: str | Path, comments: bool = True) -> None:
    """Write a configuration file, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    replace_text(Path(file), dump_config(config, comments))


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text, COMMENT_WIDTH, initial_indent=prefix, subsequent_indent=prefix)


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        # YAML 1.1 reads 1e-05 as text; with a dot it is a number for every reader.
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, tuple) and len(value) > 2 and all(isinstance(item, int) for item in value):
        short = format_indices(value)
        if tuple(sorted(value)) == value and "-" in short:
            return f'"{short}"'
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
