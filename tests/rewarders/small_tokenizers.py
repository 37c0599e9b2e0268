"""Small tokenizers with the traits of the real ones."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

#: As ChatML: what stands around a message is special tokens and line ends.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: As Llama 3: contents are trimmed, and the text begins with its BOS token.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}"
)


def byte_level_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """One token a byte, `\n\n` and ` Yes` beside them, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Y", "e"), ("Ye", "s"), ("Ġ", "Yes"), ("Ġ", "+"), ("Ġ", "-")]
    merges += [("ĊĊ", "ĊĊ"), ("ĊĊĊĊ", "Ċ"), ("Ġ", "ĊĊĊĊĊ")]
    words = [*special, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special, **named)


def sentencepiece_tokenizer(style: str = "prepend", **named: str) -> PreTrainedTokenizerFast:
    """As Mistral's: a space before the text, bytes where there is no token, `▁ки`, `▁+` and `▁-` one token each."""
    letters = [*map(chr, range(33, 127)), "к", "и", "▁"]
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("▁", "▁"), ("▁", "S"), ("▁S", "t")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **named
    )
