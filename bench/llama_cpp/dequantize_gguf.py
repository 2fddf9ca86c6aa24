#!/usr/bin/env python3
"""Copies a quantised GGUF with every matrix dequantised to F16, BF16 or F32; metadata is kept.

    python bench/llama_cpp/dequantize_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2-f16.gguf

llama.cpp and weir then compute with weights of 16 bits each, so a comparison of the two measures
the engines and not the quantisation. F32 vectors stay F32.
"""

import argparse

import gguf
import numpy as np

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}


def copy_metadata(reader, writer, file_type):
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # written by GGUFWriter itself
        kind = entry.types[0]
        if name == "general.file_type":
            writer.add_uint32(name, FILE_TYPES[file_type])
        elif kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, entry.contents(), kind, sub_type=entry.types[-1])
        else:
            writer.add_key_value(name, entry.contents(), kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--type", choices=FILE_TYPES, default="F16")
    parser.add_argument("--round-to-bf16", action="store_true",
                        help="round matrices to bf16 first, as weir stores them")
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.source)
    writer = gguf.GGUFWriter(args.target, reader.fields["general.architecture"].contents())
    copy_metadata(reader, writer, args.type)
    target_type = gguf.GGMLQuantizationType[args.type]
    for tensor in reader.tensors:
        shape = [int(d) for d in reversed(tensor.shape)]
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        data = np.ascontiguousarray(data, dtype=np.float32)
        if len(shape) < 2:
            writer.add_tensor(tensor.name, data)
            continue
        if args.round_to_bf16:
            bits = gguf.quants.quantize(data, gguf.GGMLQuantizationType.BF16)
            data = gguf.quants.dequantize(bits, gguf.GGMLQuantizationType.BF16).reshape(shape)
        if target_type == gguf.GGMLQuantizationType.BF16:
            writer.add_tensor(tensor.name, gguf.quants.quantize(data, target_type),
                              raw_dtype=target_type)
        else:
            writer.add_tensor(tensor.name, data.astype(args.type.lower().replace("f", "float")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
