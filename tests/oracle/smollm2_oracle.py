#!/usr/bin/env python3
"""Writes tests/fixtures/smollm2/expected.json: what SmolLM2-135M-Instruct must produce.

Reads the Q4_1 GGUF, dequantises it with the `gguf` package, undoes the rotary permutation, rounds
matrices to bf16 (norms stay float32) and runs `transformers` in float32. Prompts are tokenised with
a tokenizer built from the vocabulary inside the GGUF.

    python tests/oracle/smollm2_oracle.py SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/oracle/smollm2_oracle.py SmolLM2-135M-Instruct.Q4_1.gguf --check-llama-cpp 8
    python tests/oracle/smollm2_oracle.py SmolLM2-135M-Instruct.Q4_1.gguf --check-float64 8
"""

import argparse
import hashlib
import json
import pathlib

import gguf
import jinja2
import numpy as np
import torch
import transformers

import model_oracle as mo

OUTPUT = mo.FIXTURES / "smollm2" / "expected.json"
GREEDY_STEPS = 64
DETAILED = (0, 9, 21, 30, 41, 55)

# Continued as they are.
RAW_PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village at the edge of a dark forest, there lived a clockmaker who",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "1, 2, 3, 4, 5, 6, 7,",
    "Water boils at 100 degrees Celsius, which is 212 degrees Fahrenheit. It freezes at",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; ++i) {\n",
    "The three primary colors are:\n1. Red\n2.",
    "La capitale de l'Italie est Rome. La capitale de l'Espagne est",
    "Der schnelle braune Fuchs springt \u00fcber den faulen Hund.",
    "SELECT name, COUNT(*) FROM orders JOIN customers ON",
    "Q: What is 12 + 30?\nA: 42\nQ: What is 15 + 7?\nA:",
    "It was the best of times, it was the worst of times,",
    "El perro corre por el parque y el gato",
    "Photosynthesis is the process by which plants",
    "In 1969, Apollo 11 landed on the Moon. In 1970, Apollo 13",
    "{\"name\": \"Alice\", \"age\": 30, \"languages\": [\"Python\", \"C++\"], \"address\": {",
    "Dear hiring manager,\n\nI am writing to apply for the position of",
    "\u4f60\u597d\uff0c\u4eca\u5929\u5929\u6c14",
    "The mitochondria is the powerhouse of the cell. Its inner membrane",
    "import numpy as np\n\n# Solve a linear system A x = b\nA = np.array([[3.0, 1.0], [1.0, 2.0]])\n",
    "Roses are red, violets are blue,",
    "3.14159265358979 is the value of pi. The value of e is",
    "| Country | Capital |\n|---|---|\n| Japan | Tokyo |\n| Egypt | Cairo |\n| Brazil |",
    "\u041f\u0440\u0438\u0432\u0435\u0442! \u041c\u0435\u043d\u044f \u0437\u043e\u0432\u0443\u0442",
    "To make pancakes, you will need the following ingredients:\n-",
    "The weather report \u2600\ufe0f \U0001f327\ufe0f for tomorrow, 23 \u00b0C at noon:",
    "A",
    "Chapter 1\n\nThe train left the station at 6:45 in the morning. Rain was falling on the roofs of "
    "the small town, and the streets were empty except for a baker who was opening his shop. Nobody "
    "noticed the woman in the green coat who sat in the last carriage with a wooden box on her knees. "
    "She had been travelling for three days, and she had not slept. Inside the box there was a letter, "
    "a map, and a key that opened a door which, as far as anyone knew, did not exist. When the "
    "conductor asked for her ticket, she",
]

# Sent as one user turn (or as the listed turns) through the model's own chat template.
CHAT_PROMPTS = [
    "What is the capital of Germany?",
    "Write a short story about a robot who learns to paint.",
    "Explain recursion to a ten-year-old.",
    "Write a Python function that checks whether a string is a palindrome.",
    "List five healthy breakfast ideas.",
    "What is 17 times 23? Show your work.",
    "Translate to French: \"I like to read books.\"",
    "Who painted the Mona Lisa, and when?",
    "Summarize the water cycle in two sentences.",
    "What are the pros and cons of working from home?",
    "Write a haiku about autumn.",
    "How do I reverse a linked list in C++?",
    "\u00bfCu\u00e1l es la capital de Argentina?",
    "Give me a JSON object with the keys name, color and price for an apple.",
    "Why is the sky blue?",
    "Sort these numbers in ascending order: 42, 7, 19, 3, 88, 56, 21.",
    "Write an email to my manager asking for a day off on 14 March 2025.",
    "What's the difference between TCP and UDP?",
    "\u4f60\u80fd\u7528\u4e2d\u6587\u4ecb\u7ecd\u4e00\u4e0b\u81ea\u5df1\u5417\uff1f",
    "Complete the pattern: A1, B2, C3, D4,",
    "Fix the bug:\n```python\nfor i in range(10)\n    print(i)\n```",
    "Tell me a joke about programmers.",
    "What year did World War II end, and what happened in the five years after it?",
    "Convert 98.6 degrees Fahrenheit to Celsius.",
    [("system", "You are a pirate. Answer every question like a pirate."),
     ("user", "Where can I find good food in this town?")],
    [("user", "My name is Maria and I live in Lisbon."),
     ("assistant", "Nice to meet you, Maria! How can I help you today?"),
     ("user", "Where do I live, and what is my name?")],
    [("system", "You reply with one word only."), ("user", "Is fire hot?")],
    [("user", "Name a fruit."), ("assistant", "Apple."), ("user", "Another one."),
     ("assistant", "Banana."), ("user", "And one more, please.")],
]


def field(reader, key):
    return reader.fields[key].contents()


def model_config(reader):
    arch = field(reader, "general.architecture")
    value = lambda key: field(reader, f"{arch}.{key}")
    return dict(
        model_type="llama",
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_theta=value("rope.freq_base"),
        tie_word_embeddings=True)


def load(path):
    reader = gguf.GGUFReader(path)
    with torch.device("meta"):
        skeleton = mo.build(model_config(reader))
    names = [name for name, _ in skeleton.named_parameters()]
    model = mo.build(model_config(reader))
    mo.load_exact(model, mo.read_gguf(path, model.config, names))
    tokens = field(reader, "tokenizer.ggml.tokens")
    kinds = field(reader, "tokenizer.ggml.token_type")
    special = [t for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
    tokenizer = mo.smollm_tokenizer(tokens, field(reader, "tokenizer.ggml.merges"), special)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return model, tokenizer, environment.from_string(field(reader, "tokenizer.chat_template"))


def prompt_list(template):
    """[(kind, messages or None, text)], raw and chat interleaved."""
    out = []
    for raw, chat in zip(RAW_PROMPTS, CHAT_PROMPTS, strict=True):
        turns = [("user", chat)] if isinstance(chat, str) else chat
        messages = [{"role": role, "content": content} for role, content in turns]
        out.append(("raw", None, raw))
        out.append(("chat", messages,
                    template.render(messages=messages, add_generation_prompt=True)))
    return out


def detail(model, tokens):
    logits, capture = mo.forward_last(model, tokens)
    order = torch.topk(logits, 20)
    norms = [float(h.double().norm()) for h in capture.layers]
    return {
        "layer_hidden_first16": [mo.rounded(h[:16]) for h in capture.layers],
        "layer_hidden_l2": mo.rounded(norms),
        "final_norm_first16": mo.rounded(capture.final_norm[:16]),
        "final_norm_l2": mo.rounded([float(capture.final_norm.double().norm())])[0],
        "top_tokens": order.indices.tolist(),
        "top_logits": mo.rounded(order.values),
    }


def write_expected(path, keep):
    model, tokenizer, template = load(path)
    present = json.loads(OUTPUT.read_text())["prompts"] if keep else []
    known = {(prompt["text"], "detail" in prompt): prompt for prompt in present}
    prompts = []
    for index, (kind, messages, text) in enumerate(prompt_list(template)):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.decode(tokens, skip_special_tokens=False) != text:
            raise RuntimeError(f"prompt {index} does not survive the tokenizer")
        kept = known.get((text, index in DETAILED))
        if kept and kept["tokens"] == tokens:
            prompts.append(kept)
            continue
        continuation, gaps = mo.greedy(model, tokens, GREEDY_STEPS, use_cache=True)
        entry = {"kind": kind, "text": text}
        if messages:
            entry["messages"] = messages
        entry.update({
            "tokens": tokens,
            "greedy_tokens": continuation,
            "greedy_text": tokenizer.decode(continuation, skip_special_tokens=False),
            "greedy_gaps": mo.rounded(gaps),
        })
        if index in DETAILED:
            entry["detail"] = detail(model, tokens)
        prompts.append(entry)
        print(f"{index:2} {len(tokens):3} tokens, gap >= {min(gaps):.4f}: "
              f"{entry['greedy_text'][:70]!r}", flush=True)
    gaps = sorted(gap for p in prompts for gap in p["greedy_gaps"])
    header = {
        "format": 1,
        "model": "SmolLM2-135M-Instruct",
        "gguf_sha256": hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(),
        "weights": "GGUF: matrices dequantised and rounded to bfloat16, vectors float32",
        "arithmetic": "float32, eager attention, float32 KV cache",
        "versions": mo.versions(),
        "num_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "greedy_steps": GREEDY_STEPS,
        "min_greedy_gap": gaps[0],
        "steps_with_gap_below_0_001": sum(gap < 1e-3 for gap in gaps),
        "steps_with_gap_below_0_01": sum(gap < 1e-2 for gap in gaps),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    mo.dump_json(OUTPUT, header, prompts)


def check_float64(path, count):
    """Are the committed tokens a property of the model rather than of float32 summation order?"""
    model, _, _ = load(path)
    model = model.double()
    for index, prompt in enumerate(json.loads(OUTPUT.read_text())["prompts"][:count]):
        tokens, gaps = mo.greedy(model, prompt["tokens"], GREEDY_STEPS, use_cache=True)
        pairs = list(zip(tokens, prompt["greedy_tokens"]))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        drift = max(abs(a - b) for a, b in zip(gaps[:same], prompt["greedy_gaps"][:same]))
        print(f"{index:2} {same}/{GREEDY_STEPS} tokens equal in float64, "
              f"gap changes by at most {drift:.2e}", flush=True)


def check_llama_cpp(path, count):
    """Sanity only: llama.cpp multiplies quantised blocks, so near ties may differ."""
    import llama_cpp
    threads = torch.get_num_threads()
    llm = llama_cpp.Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads,
                          type_k=0, type_v=0, flash_attn=False, verbose=False)
    for index, prompt in enumerate(json.loads(OUTPUT.read_text())["prompts"][:count]):
        ids = llm.tokenize(prompt["text"].encode(), add_bos=False, special=True)
        pending, tokens = prompt["tokens"], []
        llm.reset()
        for _ in range(GREEDY_STEPS):
            llm.eval(pending)
            logits = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),))
            pending = [int(logits.argmax())]
            tokens += pending
        pairs = list(zip(tokens, prompt["greedy_tokens"]))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        gap = prompt["greedy_gaps"][same] if same < GREEDY_STEPS else None
        print(f"{index:2} prompt ids equal: {ids == prompt['tokens']}; "
              f"{same}/{GREEDY_STEPS} tokens equal; gap at the first difference: {gap}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--check-llama-cpp", type=int, metavar="PROMPTS", default=0)
    parser.add_argument("--check-float64", type=int, metavar="PROMPTS", default=0)
    parser.add_argument("--keep", action="store_true",
                        help="keep present results whose prompt did not change")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.check_llama_cpp:
        check_llama_cpp(args.gguf, args.check_llama_cpp)
    elif args.check_float64:
        check_float64(args.gguf, args.check_float64)
    else:
        write_expected(args.gguf, args.keep)


if __name__ == "__main__":
    main()
