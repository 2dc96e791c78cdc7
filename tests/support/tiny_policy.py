"""Tiny Qwen3 policies with random weights, made in a second: for tests of the plumbing.

`make_tiny_policy` has the search tags and a chat template; `write_tiny_policy` numbers for words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["make_tiny_policy", "make_tiny_tokenizer", "write_tiny_policy"]

TAGS = tuple(
    f"<{slash}{word}>"
    for word in ("think", "search", "information", "answer")
    for slash in ("", "/")
)
END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY_SIZE = 512
_TEXT = (
    "Which city is the capital of the country whose highest point is Mount Example? ",
    "I need the country first. capital of Exampleland. The capital of Exampleland is Sampletown. ",
    "The answer is Sampletown. What is the currency of the neighbour of Exampleland? ",
)


def make_tiny_tokenizer() -> Any:
    """A byte-level BPE ``PreTrainedTokenizerFast``, the same at every call."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 16,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_TEXT * 4, trainer)
    words = (*TAGS, "<|user|>", "<|assistant|>")
    raw.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_tiny_policy(directory: Path, *, seed: int = 0, std: float = 0.2) -> Path:
    """Write the random model (fp32 safetensors) and its tokenizer; returns ``directory``.

    ``std`` is large on purpose: tokens then differ enough in probability for tests of
    log-probabilities to mean something.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=std,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).float().save_pretrained(directory)
    torch.random.set_rng_state(generator_state)
    tokenizer.save_pretrained(directory)
    return directory


def write_tiny_policy(
    directory: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    vocabulary: int = 64,
    seed: int = 0,
    intermediate: int = 64,
    head_dim: int = 16,
    heads: int = 4,
) -> Path:
    """Write a loadable Hugging Face directory and return it."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=head_dim,
        max_position_embeddings=1024,
        rope_theta=1e6,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0").save_pretrained(directory)
    return directory
