#!/usr/bin/env python3
"""Writes the tokenizer inside a GGUF file of SmolLM2 as a Hugging Face hub cache, so that clients
which ask the hub for a tokenizer find it without a network: HF_HOME=FOLDER HF_HUB_OFFLINE=1, name
weir/smollm2. Needs the PyPI packages gguf, tokenizers and transformers.
Usage: hub_tokenizer.py MODEL.gguf FOLDER"""
import json
import pathlib
import sys

import gguf
import tokenizers
import transformers

REVISION = "0" * 40


def main():
    reader = gguf.GGUFReader(sys.argv[1])

    def field(name):
        return reader.fields["tokenizer." + name].contents()
    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    if field("ggml.pre") != "smollm":
        sys.exit("this knows SmolLM2's tokenizer only")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    # As tests/oracle/model_oracle.py: single digits first, then GPT-2's pattern on bytes.
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False)
                              for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL])
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=field("chat_template"),
        bos_token=tokens[field("ggml.bos_token_id")], eos_token=tokens[field("ggml.eos_token_id")])
    model = pathlib.Path(sys.argv[2]) / "hub/models--weir--smollm2"
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs/main").write_text(REVISION)
    whole.save_pretrained(snapshot)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama"}))


if __name__ == "__main__":
    main()
