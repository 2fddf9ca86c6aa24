"""What the oracles share: configurations, numbers and files. Needs torch and transformers only."""

import json

import torch
import transformers

DROP = object()


def rounded(values, digits=7):
    """Python floats with `digits` significant digits, the form in which fixtures store numbers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().flatten().tolist()
    return [float(f"{float(v):.{digits}g}") for v in values]


def top2(logits):
    values, indices = torch.topk(logits, 2)
    return int(indices[0]), float(values[0] - values[1])


def versions():
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}


def dump_json(path, header, prompts):
    """One line per header field and per prompt, so that a diff shows what changed."""
    compact = lambda v: json.dumps(v, separators=(",", ":"), ensure_ascii=False)
    lines = [f'"{key}":{compact(value)}' for key, value in header.items()]
    lines.append('"prompts":[\n' + ",\n".join(compact(p) for p in prompts) + "\n]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def config(model_type, architecture, hidden, intermediate, layers, heads, kv_heads, vocab, tied,
           **extra):
    out = {
        "architectures": [architecture],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 256,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab,
    }
    out.update(extra)
    return {key: value for key, value in out.items() if value is not DROP}


def llama(*args, **extra):
    return config("llama", "LlamaForCausalLM", *args,
                  **{"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, **extra})


def qwen2(*args, **extra):
    return config("qwen2", "Qwen2ForCausalLM", *args,
                  **{"rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 4096,
                     "max_window_layers": 2, "attention_dropout": 0.0, **extra})
