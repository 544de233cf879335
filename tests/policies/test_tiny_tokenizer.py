"""The small policy's tokenizer knows every LIBERO instruction, and its action ids end the vocabulary."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from vlacoach.policies import new_tiny_policy
from vlacoach.policies.tokenizer import build_word_tokenizer

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


def libero_instructions() -> list[str]:
    root = Path(find_spec("libero").submodule_search_locations[0]) / "libero" / "bddl_files"
    files = [path for suite in SUITES for path in sorted((root / suite).glob("*.bddl"))]
    return [re.search(r"\(:language\s+([^)]*)\)", path.read_text())[1].strip() for path in files]


def test_no_word_of_the_five_suites_is_unknown(policy):
    instructions = libero_instructions()
    assert len(instructions) == 130
    input_ids, mask = policy.tokenize(instructions)
    assert policy.tokenizer.unk_token_id not in input_ids
    assert (input_ids[:, 0] == policy.config.bos_id).all()
    assert policy.tokenizer.convert_tokens_to_ids("</s>") == policy.config.stop_id
    assert (input_ids[mask == 0] == policy.tokenizer.pad_token_id).all()
    words = [len(text.split()) for text in instructions]
    assert (mask.sum(1) - 1).tolist() == words


def test_different_instructions_have_different_prompts(policy):
    instructions = sorted({text.lower() for text in libero_instructions()})
    input_ids, _ = policy.tokenize(instructions)
    assert len({tuple(row) for row in input_ids.tolist()}) == len(instructions)


def test_action_ids_are_the_last_256(policy):
    size = len(policy.tokenizer)
    assert size == policy.config.language.vocab_size
    assert policy.config.first_action_id == size - 256
    assert policy.tokenizer.convert_tokens_to_ids("<action_0>") == size - 256
    assert policy.tokenizer.convert_tokens_to_ids("<action_255>") == size - 1


def test_case_does_not_matter_and_unknown_words_do_not_fail():
    policy = new_tiny_policy()
    upper, _ = policy.tokenize(["Turn ON the stove"])
    lower, _ = policy.tokenize(["turn on the stove "])
    assert upper.tolist() == lower.tolist()
    odd, _ = policy.tokenize(["turn on the zeppelin"])
    assert odd[0, -1] == policy.tokenizer.unk_token_id


def test_words_are_sorted_after_the_special_entries():
    tokenizer = build_word_tokenizer(["Push it, b", "a"])
    assert [tokenizer.id_to_token(index) for index in range(9)] == [
        *("<unk>", "<s>", "</s>", "<pad>"),
        *(",", "a", "b", "it", "push"),
    ]
    assert tokenizer.get_vocab_size() == 9 + 256
    assert tokenizer.encode("PUSH a").tokens == ["<s>", "push", "a"]
