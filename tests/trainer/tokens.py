"""A tokenizer for tests: one token for each byte of the text, and three that are special."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s>{{ message.role[0] }}:{{ message.content }}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)
BEGIN, END = 256, 257


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Writes it into a folder. Plain text gets a <s> at its beginning."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    tokenizer.chat_template = template
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    return folder
