#!/usr/bin/env python3
"""Makes random models of real shapes and what `transformers` computes with them on a GPU.

For tests/engine/cuda_transformers_test.cc (WEIR_CUDA_ORACLE=OUT_DIR). The models are too large to
be committed, and bf16 results depend on the GPU and on the library: to be made where the test runs.
A model is a Hugging Face directory (config.json, model.safetensors) with expected.json: the fields
of the fixtures (README.md), in bf16 with eager attention, and beside them the same logits in
float32, so that the error of `transformers` itself is known. OUT_DIR grows by 0.2 to 2 GB a model.

    python tests/oracle/cuda_oracle.py OUT_DIR [case ...] [--tiny] [--device cpu] [--list]

--tiny: the same models with small matrices and short prompts, to try the script.
"""

import argparse
import dataclasses
import gc
import json
import pathlib
import shutil
import time

import torch
import transformers
from safetensors.torch import save_file

from oracle_common import DROP, config, dump_json, llama, qwen2, rounded, top2, versions

PROMPT_LENGTHS = (1, 17, 100, 700, 1500)
TINY_LENGTHS = (1, 17, 100)
GREEDY_STEPS = 32
HIDDEN = 4096
MAX_POSITIONS = 8192

LLAMA3_ROPE = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 512, "rope_type": "llama3"}
YARN_ROPE = {"factor": 4.0, "original_max_position_embeddings": 512, "rope_type": "yarn"}


@dataclasses.dataclass
class Case:
    name: str
    seed: int
    config: dict


def shape(heads, kv_heads=8, head_dim=128, intermediate=6144, layers=2, vocab=8192, tied=False):
    """Positional arguments of the configurations in oracle_common, and head_dim."""
    return ((HIDDEN, intermediate, layers, heads, kv_heads, vocab, tied),
            {"head_dim": head_dim, "max_position_embeddings": MAX_POSITIONS})


def llama_case(name, seed, sizes, **extra):
    return Case(name, seed, llama(*sizes[0], **sizes[1], **{"rope_theta": 500000.0, **extra}))


def mistral_case(name, seed, sizes):
    return Case(name, seed, config(
        "mistral", "MistralForCausalLM", *sizes[0], **sizes[1], rope_theta=1000000.0,
        sliding_window=None, attention_dropout=0.0))


def qwen2_case(name, seed, sizes, **extra):
    return Case(name, seed, qwen2(*sizes[0], **sizes[1], **{"rope_theta": 1000000.0, **extra}))


def qwen3_case(name, seed, sizes):
    # As transformers 5 writes it.
    return Case(name, seed, config(
        "qwen3", "Qwen3ForCausalLM", *sizes[0], **sizes[1], attention_bias=False,
        attention_dropout=0.0, use_sliding_window=False, sliding_window=None,
        max_window_layers=sizes[0][2], rope_theta=DROP, rope_scaling=DROP, torch_dtype=DROP,
        rms_norm_eps=1e-6, dtype="bfloat16", layer_types=["full_attention"] * sizes[0][2],
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}))


CASES = [
    # The families at 8 KV heads of 128, four query heads each.
    llama_case("llama3_gqa4_hd128", 101, shape(32, intermediate=14336, layers=3, vocab=32000),
               rope_scaling=LLAMA3_ROPE),
    mistral_case("mistral_gqa4_hd128", 102, shape(32, intermediate=14336, vocab=32768)),
    qwen2_case("qwen2_gqa4_hd128", 103, shape(32)),
    qwen3_case("qwen3_gqa4_hd128", 104, shape(32, layers=4)),
    qwen2_case("qwen2_yarn_gqa4_hd128", 105, shape(32), rope_scaling=YARN_ROPE),
    # Other query heads for a KV head.
    llama_case("llama_gqa1_hd128", 106, shape(8)),
    qwen2_case("qwen2_gqa7_hd128", 107, shape(56)),
    qwen3_case("qwen3_gqa8_hd128", 108, shape(64)),
    # Other head sizes.
    llama_case("llama_gqa4_hd64_tied", 109, shape(32, head_dim=64, tied=True),
               rope_scaling=LLAMA3_ROPE),
    qwen2_case("qwen2_gqa7_hd64", 110, shape(56, head_dim=64)),
    llama_case("llama_gqa8_hd64", 111, shape(64, head_dim=64)),
    llama_case("llama_gqa4_hd96", 112, shape(32, head_dim=96)),
    mistral_case("mistral_gqa1_hd96", 113, shape(8, head_dim=96)),
    llama_case("llama_gqa4_hd256", 114, shape(32, head_dim=256)),
    qwen3_case("qwen3_gqa1_hd256", 115, shape(8, head_dim=256)),
    mistral_case("mistral_gqa7_hd256", 116, shape(56, head_dim=256)),
]


def tiny(case):
    small = dict(case.config, hidden_size=128, intermediate_size=192, vocab_size=1000)
    if small["num_key_value_heads"] == 8:
        small["num_attention_heads"] //= 4
        small["num_key_value_heads"] = 2
    return dataclasses.replace(case, config=small)


def random_state(config_dict, seed, device):
    """bf16 parameters much as training starts with them: products of normed rows are of order one.

    The bound of the test, 2e-2, has to hold between two correct computations in bf16, so the error
    of `transformers` itself should be half of it. It is twice that with every matrix at 0.02,
    because eager attention rounds scores to bf16: hence smaller scores. What attention then adds is
    a mean over more tokens and smaller, so its output matrix is larger. Embeddings are larger so
    that attention adds to the residual stream instead of replacing it; tied ones less so, or every
    token would predict itself.
    """
    parsed = transformers.AutoConfig.for_model(**config_dict)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(parsed)
    scale = 0.02 * (HIDDEN / config_dict["hidden_size"]) ** 0.5
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, param in skeleton.named_parameters():
        noise = torch.randn(param.shape, generator=generator, device=device)
        if name.endswith("norm.weight"):
            noise = 1.0 + 0.1 * noise
        elif name.endswith(".bias"):
            noise = 0.3 * noise
        elif "embed_tokens" in name:
            noise = (0.05 if config_dict["tie_word_embeddings"] else 0.5) * noise
        elif "q_proj" in name or "k_proj" in name:
            noise = 0.7 * scale * noise
        elif "o_proj" in name:
            noise = 2 * scale * noise
        else:
            noise = scale * noise
        state[name] = noise.to(torch.bfloat16).cpu().contiguous()
    return state


def load(directory, dtype, device):
    """Everything is computed from the files on disk, as it is by the engine."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"{directory}: {report}")
    return model.eval().to(device)


@torch.no_grad()
def forward(model, tokens, past=None, use_cache=False):
    """Logits of the last position in float32, and the cache."""
    out = model(torch.tensor([tokens], device=model.device), past_key_values=past,
                use_cache=use_cache, logits_to_keep=1)
    return out.logits[0, -1].float(), out.past_key_values


def greedy(model, prompt):
    """Logits after the prompt, tokens, gaps, and the logits that the last token was taken from."""
    first, past = forward(model, prompt, use_cache=True)
    logits, tokens, gaps = first, [], []
    while True:
        token, gap = top2(logits)
        tokens.append(token)
        gaps.append(gap)
        if len(tokens) == GREEDY_STEPS:
            return first, tokens, gaps, logits
        logits, past = forward(model, [token], past, use_cache=True)


@torch.no_grad()
def margins(model, prompt, continuation):
    """By how much each token of the continuation leads all others, fed what comes before it;
    negative where it does not."""
    tokens = torch.tensor([prompt + continuation[:-1]], device=model.device)
    logits = model(tokens, logits_to_keep=len(continuation)).logits[0].float()
    own = torch.tensor(continuation, device=model.device)[:, None]
    leads = logits.gather(1, own)[:, 0]
    return leads - logits.scatter(1, own, -torch.inf).max(dim=1).values


def relative_error(have, want):
    return rounded([(have - want).norm() / want.norm()], 3)[0]


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def expected_results(directory, case, lengths, device):
    vocab = case.config["vocab_size"]
    prompts = []
    model = load(directory, torch.bfloat16, device)
    for length in lengths:
        generator = torch.Generator().manual_seed(case.seed * 10000 + length)
        tokens = torch.randint(3, vocab, (length,), generator=generator).tolist()
        last, continuation, gaps, final = greedy(model, tokens)
        prompts.append({
            "tokens": tokens,
            "greedy_tokens": continuation,
            "greedy_gaps": rounded(gaps),
            "last_logits": last,
            "final_logits": final,
        })
    del model
    free(device)
    model = load(directory, torch.float32, device)
    for prompt in prompts:
        fed = prompt["tokens"] + prompt["greedy_tokens"][:-1]
        prompt["greedy_margins_f32"] = rounded(
            margins(model, prompt["tokens"], prompt["greedy_tokens"]))
        for field, tokens in (("last", prompt["tokens"]), ("final", fed)):
            logits = prompt[f"{field}_logits"]
            f32 = forward(model, tokens)[0]
            prompt[f"{field}_error"] = relative_error(logits, f32)
            prompt[f"{field}_logits_f32"] = rounded(f32)
            prompt[f"{field}_logits"] = rounded(logits)
    del model
    free(device)
    header = {
        "format": 1,
        "model": case.name,
        "weights": "bfloat16 from safetensors",
        "arithmetic": "bfloat16, eager attention; fields *_f32 in float32",
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "vocab_size": vocab,
        "num_layers": case.config["num_hidden_layers"],
        "hidden_size": case.config["hidden_size"],
        "max_abs_logit": max(max(map(abs, p["last_logits"])) for p in prompts),
        "min_greedy_gap": min(min(p["greedy_gaps"]) for p in prompts),
    }
    return header, prompts


def write_case(out, case, lengths, device):
    start = time.monotonic()
    directory = out / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    state = random_state(case.config, case.seed, device)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    del state
    free(device)
    # config.json makes the folder a case of the test: a run that fails leaves none.
    (directory / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    try:
        header, prompts = expected_results(directory, case, lengths, device)
    except BaseException:
        (directory / "config.json").unlink()
        raise
    dump_json(directory / "expected.json", header, prompts)
    ties = sum(gap < 1e-2 * header["max_abs_logit"] for p in prompts for gap in p["greedy_gaps"])
    print(f"{case.name:24} |logit| <= {header['max_abs_logit']:.3g}, bf16 error "
          f"{min(p['last_error'] for p in prompts):.2g} to "
          f"{max(p['last_error'] for p in prompts):.2g}, continued "
          f"{max(p['final_error'] for p in prompts):.2g}; {ties} ties in "
          f"{GREEDY_STEPS * len(prompts)} tokens, at least "
          f"{min(len(set(p['greedy_tokens'])) for p in prompts)} distinct, "
          f"{time.monotonic() - start:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("cases", nargs="*", metavar="case")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_intermixed_args()
    if args.list:
        print("\n".join(case.name for case in CASES))
        return
    unknown = set(args.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; --list names them")
    device = torch.device(args.device)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for case in CASES:
        if not args.cases or case.name in args.cases:
            case = tiny(case) if args.tiny else case
            write_case(args.out, case, TINY_LENGTHS if args.tiny else PROMPT_LENGTHS, device)


if __name__ == "__main__":
    main()
