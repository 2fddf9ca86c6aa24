#!/usr/bin/env python3
"""Writes tests/fixtures/models: tiny random models and what `transformers` computes with them.

Every model is stored the way a user would have it (a Hugging Face directory with bf16 weights, or
a GGUF file) and comes with the logits, the hidden states and the greedy continuation that the
`transformers` implementation produces from those stored weights in float32 with eager attention.
The output is a function of the seeds below and of the library versions in requirements.txt.

    python tests/oracle/model_oracle.py [case ...]
"""

import dataclasses
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from oracle_common import DROP, config, dump_json, llama, qwen2, rounded, top2, versions

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
PROMPT_LENGTHS = (1, 5, 17, 40, 70)
GREEDY_STEPS = 24
# A greedy step whose two best logits are closer than this could flip on another summation order.
MIN_GAP = 0.05
MIN_DISTINCT = 6


# ---------------------------------------------------------------------------------------------
# Expected results, shared with smollm2_oracle.py
# ---------------------------------------------------------------------------------------------


class Capture:
    """Output of every decoder layer and of the final norm at the last position of one forward."""

    def __init__(self, model):
        self.layers = [None] * len(model.model.layers)
        self.final_norm = None
        self._handles = [
            layer.register_forward_hook(self._layer_hook(i))
            for i, layer in enumerate(model.model.layers)
        ]
        self._handles.append(model.model.norm.register_forward_hook(self._norm_hook))

    def _layer_hook(self, index):
        def hook(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            self.layers[index] = hidden[0, -1].detach().clone()

        return hook

    def _norm_hook(self, _module, _args, output):
        self.final_norm = output[0, -1].detach().clone()

    def close(self):
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def forward_last(model, tokens):
    """Logits of the last position plus the captured hidden states."""
    capture = Capture(model)
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    capture.close()
    return logits, capture


@torch.no_grad()
def greedy(model, prompt, steps, use_cache):
    """Greedy tokens (end-of-sequence is not a stop) and the gap between the two best logits."""
    tokens, gaps, past = [], [], None
    pending = list(prompt)
    for _ in range(steps):
        out = model(torch.tensor([pending]), past_key_values=past, use_cache=use_cache)
        token, gap = top2(out.logits[0, -1])
        tokens.append(token)
        gaps.append(gap)
        if use_cache:
            past, pending = out.past_key_values, [token]
        else:
            pending = pending + [token]
    return tokens, gaps


def expected_results(name, model, weights_note, seed):
    """The header and prompts of one expected.json. `model` is float32."""
    vocab = model.config.vocab_size
    prompts, worst = [], 0.0
    model64 = type(model)(model.config).double().eval()
    model64.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    for length in PROMPT_LENGTHS:
        for attempt in range(2000):
            rng = np.random.default_rng([seed, length, attempt])
            tokens = rng.integers(3, vocab, size=length).tolist()
            continuation, gaps = greedy(model, tokens, GREEDY_STEPS, use_cache=False)
            if min(gaps) >= MIN_GAP and len(set(continuation)) >= MIN_DISTINCT:
                break
        else:
            raise RuntimeError(f"{name}: no prompt of length {length} is decisive")
        logits, capture = forward_last(model, tokens)
        worst = max(worst, float((forward_last(model64, tokens)[0] - logits).abs().max()))
        prompts.append({
            "tokens": tokens,
            "last_logits": rounded(logits),
            "greedy_tokens": continuation,
            "greedy_gaps": rounded(gaps),
            "layer_hidden": [rounded(h) for h in capture.layers],
            "final_norm_hidden": rounded(capture.final_norm),
        })
    header = {
        "format": 1,
        "model": name,
        "weights": weights_note,
        "arithmetic": "float32, eager attention",
        "versions": versions(),
        "vocab_size": vocab,
        "num_layers": len(model.model.layers),
        "hidden_size": model.config.hidden_size,
        "max_abs_logit": rounded([max(max(map(abs, p["last_logits"])) for p in prompts)])[0],
        "min_greedy_gap": rounded([min(min(p["greedy_gaps"]) for p in prompts)])[0],
        "float64_max_logit_diff": float(f"{worst:.3g}"),
    }
    return header, prompts


# ---------------------------------------------------------------------------------------------
# Random models
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """One fixture: the config.json as its publisher would write it."""

    name: str
    seed: int
    config: dict
    shards: int = 1


CASES = [
    Case("llama2_mha", 11, llama(64, 104, 2, 2, 2, 131, False)),
    Case("llama3_rope_gqa3", 12, llama(
        96, 88, 2, 3, 1, 257, True, head_dim=32, rope_theta=500000.0,
        rope_scaling={"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                      "original_max_position_embeddings": 32, "rope_type": "llama3"})),
    # "type" instead of "rope_type" is the spelling of older checkpoints.
    Case("llama_linear_rope", 13, llama(
        64, 80, 2, 4, 2, 101, False, head_dim=32, rope_scaling={"factor": 4.0, "type": "linear"})),
    Case("mistral_gqa7_hd80", 14, config(
        "mistral", "MistralForCausalLM", 64, 72, 2, 7, 1, 113, False, head_dim=80,
        rope_theta=1000000.0, sliding_window=None, attention_dropout=0.0), shards=3),
    Case("qwen2_gqa7", 15, qwen2(64, 88, 2, 7, 1, 173, True, head_dim=64, rope_theta=1000000.0)),
    Case("qwen2_yarn", 16, qwen2(
        64, 144, 2, 2, 1, 149, False, max_position_embeddings=128,
        rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32,
                      "rope_type": "yarn"}), shards=2),
    # Written by transformers 5: rope_parameters and dtype replace rope_theta and torch_dtype.
    Case("qwen3_hd128", 17, config(
        "qwen3", "Qwen3ForCausalLM", 64, 80, 2, 2, 1, 211, False, head_dim=128,
        attention_bias=False, attention_dropout=0.0, rms_norm_eps=1e-6, use_sliding_window=False,
        sliding_window=None, max_window_layers=2, rope_theta=DROP, rope_scaling=DROP,
        torch_dtype=DROP, dtype="bfloat16", layer_types=["full_attention"] * 2,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"})),
    Case("llama_biases", 18, llama(64, 88, 3, 2, 2, 97, False, attention_bias=True, mlp_bias=True)),
    Case("smollm2_gqa3", 19, llama(
        72, 64, 4, 3, 1, 320, True, head_dim=64, rope_theta=100000.0, rope_interleaved=False)),
    Case("llama_hd96", 20, llama(72, 64, 2, 2, 2, 127, False, head_dim=96)),
]


def random_state(model, seed):
    """float32 parameters whose logits are well spread: greedy decoding does not repeat a token."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if name.endswith("norm.weight"):
            state[name] = 1.0 + 0.2 * noise
        elif name.endswith(".bias"):
            state[name] = 0.1 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            state[name] = 0.3 * noise
        elif "q_proj" in name or "k_proj" in name:
            state[name] = 0.15 * noise
        else:
            state[name] = 0.2 * noise
    return state


def write_safetensors(directory, state, shards):
    """One file, or contiguous shards plus the index that maps every tensor to its file."""
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if shards == 1:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    bounds = [len(names) * i // shards for i in range(shards + 1)]
    weight_map, total = {}, 0
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[bounds[i]:bounds[i + 1]]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
        total += sum(t.numel() * t.element_size() for t in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def build(config_dict):
    """An uninitialised float32 model of the class that config.json names."""
    parsed = transformers.AutoConfig.for_model(**config_dict)
    parsed._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(parsed, dtype=torch.float32).eval()


def write_case(case):
    directory = FIXTURES / "models" / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    state = random_state(build(case.config), case.seed)
    write_safetensors(directory, {k: v.to(torch.bfloat16) for k, v in state.items()}, case.shards)
    for file in directory.glob("*.safetensors"):
        file.chmod(0o644)
    # Everything below comes from the files on disk, as it does for the engine.
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"{case.name}: {report}")
    for name, tensor in state.items():
        if not torch.equal(model.state_dict()[name], tensor.to(torch.bfloat16).float()):
            raise RuntimeError(f"{case.name}: {name} did not survive the round trip")
    header, prompts = expected_results(
        case.name, model.eval(), "bfloat16 from safetensors, widened to float32", case.seed)
    dump_json(directory / "expected.json", header, prompts)
    return header


# ---------------------------------------------------------------------------------------------
# GGUF
# ---------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ a", "i n", "e r", "o n", "Ġa n", "Ġan d", "in g", "l l",
          "a b", "ab c", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "' s", "à ¸", "Ã ©", "ð Ł"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}")
TOKENIZER_TEXTS = [
    "", " ", "a", "the then and", "abcabc  abc", "in 2024, 12345 things", "it's they'll\n\nend",
    "caf\u00e9 \u4f60\u597d \U0001f600", "\u0e01\u0e02 x\t\ty   \n z", "<|im_start|>user\nhi<|im_end|>",
    "x\u0000y\u007f\u00ff", "    indented = True\n        deeper", "\u0663\u0664 \u00bd \u2167",
]


def byte_vocab():
    """3 control tokens, 256 byte tokens in byte order, one token per merge."""
    pairs = bytes_to_unicode()
    return SPECIAL + [pairs[b] for b in range(256)] + [m.replace(" ", "") for m in MERGES]


def bytes_to_unicode():
    """The GPT-2 byte alphabet: printable Latin-1 stays, the rest moves to U+0100 and up."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, moved = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(0x100 + moved)
            moved += 1
    return table


def smollm_tokenizer(tokens, merges, special):
    """`tokenizer.ggml.pre = smollm`: single digits first, then the GPT-2 pattern, byte level."""
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tokenizer


GGUF_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
GGUF_LLAMA = llama(32, 64, 2, 4, 2, 3 + 256 + len(MERGES), True, head_dim=16, rope_theta=100000.0)
GGUF_QWEN2 = qwen2(64, 64, 2, 2, 1, 3 + 256 + len(MERGES), False)


def permute(weight, heads):
    """Rows of q or k from the half-split rotary order of HF to the adjacent pairs of GGUF llama."""
    rows = weight.shape[0]
    return (weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
            .transpose(1, 2).reshape(weight.shape))


def unpermute(weight, heads):
    rows = weight.shape[0]
    return (weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
            .transpose(1, 2).reshape(weight.shape))


def rotary_heads(name, cfg):
    """How many heads `permute` splits tensor `name` into; 0 for a tensor that is not permuted."""
    if cfg.model_type != "llama":
        return 0
    if "q_proj" in name:
        return cfg.num_attention_heads
    return cfg.num_key_value_heads if "k_proj" in name else 0


def tensor_names(cfg):
    """HF parameter name -> GGUF tensor name."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[cfg.model_type]
    table = gguf.get_tensor_name_map(arch, cfg.num_hidden_layers)
    return lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))


def write_gguf(path, kind, cfg, state):
    """`state` (float32, HF order) as a GGUF file. Vectors are F32; matrices have type `kind`.

    Q4_1 stores the embedding as Q8_0, as llama.cpp's quantiser does for tied embeddings.
    """
    arch, rename = cfg.model_type, tensor_names(cfg)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny {arch} {kind}")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    head_dim = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
    if head_dim * cfg.num_attention_heads != cfg.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(byte_vocab())
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) +
                           [gguf.TokenType.NORMAL] * (cfg.vocab_size - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in state.items():
        heads = rotary_heads(name, cfg)
        data = (permute(tensor, heads) if heads else tensor).numpy()
        qtype = GGUF_TYPES[kind] if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        if kind == "q4_1" and "embed_tokens" in name:
            qtype = gguf.GGMLQuantizationType.Q8_0
        if qtype == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(rename(name), data.astype(np.float16))
        else:
            writer.add_tensor(rename(name), gguf.quants.quantize(data, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path, cfg, parameter_names):
    """The weights the engine computes with: matrices rounded to bf16, vectors as stored."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    rename, state = tensor_names(cfg), {}
    for name in parameter_names:
        stored = tensors.pop(rename(name))
        shape = [int(d) for d in reversed(stored.shape)]
        data = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(shape)
        tensor = torch.from_numpy(np.array(data, dtype=np.float32))
        if tensor.ndim == 2:
            tensor = tensor.to(torch.bfloat16).float()
        heads = rotary_heads(name, cfg)
        state[name] = unpermute(tensor, heads) if heads else tensor
    if tensors:
        raise RuntimeError(f"{path}: unused tensors {sorted(tensors)}")
    return state


def load_exact(model, state):
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    report = model.load_state_dict(state, strict=False)
    if set(report.missing_keys) - tied or report.unexpected_keys:
        raise RuntimeError(str(report))
    model.tie_weights()
    return model.eval()


def write_gguf_family(name, config_dict, kinds, seed):
    directory = FIXTURES / "models" / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = build(config_dict)
    state = random_state(model, seed)
    headers = []
    for kind in kinds:
        path = directory / f"{kind}.gguf"
        write_gguf(path, kind, model.config, state)
        loaded = load_exact(build(config_dict), read_gguf(path, model.config, list(state)))
        header, prompts = expected_results(
            f"{name}/{kind}", loaded,
            "GGUF: matrices dequantised and rounded to bfloat16, vectors float32", seed)
        dump_json(directory / f"expected_{kind}.json", header, prompts)
        headers.append(header)
    tokenizer = smollm_tokenizer(byte_vocab(), MERGES, SPECIAL)
    cases = [{"text": t, "tokens": tokenizer.encode(t, add_special_tokens=False).ids}
             for t in TOKENIZER_TEXTS]
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (directory / "tokenizer_cases.json").write_text(f'{{"cases":[\n{lines}\n]}}\n')
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    return headers


GGUF_FAMILIES = {
    "gguf_llama": (GGUF_LLAMA, tuple(GGUF_TYPES), 31),
    "gguf_qwen2": (GGUF_QWEN2, ("q8_0",), 32),
}


def main(wanted):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    headers = [write_case(case) for case in CASES if not wanted or case.name in wanted]
    for name, args in GGUF_FAMILIES.items():
        if not wanted or name in wanted:
            headers += write_gguf_family(name, *args)
    for h in headers:
        print(f"{h['model']:22} gap >= {h['min_greedy_gap']:<9} |logit| <= {h['max_abs_logit']:<9}"
              f" float64 diff {h['float64_max_logit_diff']}")


if __name__ == "__main__":
    main(set(sys.argv[1:]))
