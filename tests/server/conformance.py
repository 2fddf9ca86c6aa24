#!/usr/bin/env python3
"""The official openai client, the request formats of vLLM's and SGLang's benchmarks, and every field
(conformance_fields.py) against a running `weir serve` with the default model. Needs the PyPI package
openai; conformance_test.py brings it and the server.

    weir serve -m "$(tools/get_model.sh)" --port 8123 &
    tests/server/conformance.py http://127.0.0.1:8123 [KEY]

Prints one line for each behaviour; the exit status is the number of failures.
"""
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import openai

import conformance_fields

BASE = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=BASE + "/v1", api_key=sys.argv[2] if len(sys.argv) > 2 else "none",
                       max_retries=0)
MODEL = client.models.list().data[0].id
USER = [{"role": "user", "content": "Name three colours."}]
tests = []


def test(function):
    tests.append(function)
    return function


def stream_lines(path, body):
    """The data lines of a stream, as a client that reads line by line sees them."""
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(),
                                     {"content-type": "application/json",
                                      "authorization": "Bearer " + client.api_key})
    lines = []
    with urllib.request.urlopen(request, timeout=120) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply:
            line = line.decode().rstrip("\r\n")
            if line:
                assert line.startswith("data: "), f"a line that is not data: {line!r}"
                lines.append(line[6:])
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(kind, **arguments):
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": USER, **arguments})
    except kind as error:
        body = error.body
        assert body["message"] and body["type"], body
        return
    raise AssertionError(f"accepted {arguments}")


@test
def a_model_is_listed_and_found_by_name():
    assert client.models.retrieve(MODEL).id == MODEL


@test
def a_chat_is_answered():
    r = client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=12,
                                       temperature=0)
    assert r.choices[0].message.role == "assistant" and r.choices[0].message.content
    assert r.choices[0].finish_reason in ("stop", "length")
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens


@test
def a_stream_has_the_text_of_the_whole_answer():
    whole = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=16, temperature=0)
    stream = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=16,
                                            temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    text, usage, ids = "", None, set()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
    assert text == whole.choices[0].message.content
    assert len(ids) == 1 and usage.completion_tokens == whole.usage.completion_tokens


@test
def content_may_be_a_list_of_text_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": USER[0]["content"]}]}]
    a = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=8, temperature=0)
    b = client.chat.completions.create(model=MODEL, messages=parts, max_tokens=8, temperature=0)
    assert a.choices[0].message.content == b.choices[0].message.content


@test
def several_choices_and_prompts_are_numbered():
    r = client.completions.create(model=MODEL, prompt=["One", "Two"], n=2, max_tokens=4, seed=1)
    assert sorted(c.index for c in r.choices) == [0, 1, 2, 3]


@test
def a_seed_repeats_the_answer():
    answers = {client.completions.create(model=MODEL, prompt="The sea", max_tokens=12, seed=7,
                                         temperature=1.0).choices[0].text for _ in range(3)}
    assert len(answers) == 1


@test
def token_ids_are_a_prompt():
    request = urllib.request.Request(BASE + "/tokenize",
                                     json.dumps({"model": MODEL, "prompt": "The sea"}).encode(),
                                     {"content-type": "application/json",
                                      "authorization": "Bearer " + client.api_key})
    ids = json.load(urllib.request.urlopen(request))["tokens"]
    a = client.completions.create(model=MODEL, prompt=ids, max_tokens=8, temperature=0)
    b = client.completions.create(model=MODEL, prompt="The sea", max_tokens=8, temperature=0)
    assert a.choices[0].text == b.choices[0].text


@test
def echo_puts_the_prompt_in_front():
    r = client.completions.create(model=MODEL, prompt="The sea", max_tokens=4, echo=True)
    assert r.choices[0].text.startswith("The sea")


@test
def a_stop_string_ends_the_text_and_is_not_in_it():
    r = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", max_tokens=64, temperature=0,
                                  stop=["7"])
    assert r.choices[0].finish_reason == "stop" and "7" not in r.choices[0].text


@test
def logprobs_come_in_both_forms():
    r = client.completions.create(model=MODEL, prompt="The sea", max_tokens=3, logprobs=2)
    l = r.choices[0].logprobs
    assert len(l.tokens) == len(l.token_logprobs) == len(l.top_logprobs) == 3
    c = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=3, logprobs=True,
                                       top_logprobs=2)
    assert len(c.choices[0].logprobs.content) == 3
    assert len(c.choices[0].logprobs.content[0].top_logprobs) == 2


@test
def a_repeated_prompt_comes_from_the_cache():
    prompt = "A long preface. " * 40
    client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    r = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    assert r.usage.prompt_tokens_details.cached_tokens > 0


@test
def what_is_wrong_is_refused_with_its_name():
    refused(openai.NotFoundError, model="no-such-model")
    for wrong in ({"temperature": -1}, {"top_p": 2}, {"n": 1000}, {"max_tokens": -5},
                  {"messages": []}, {"stop": ["x"] * 100}, {"top_logprobs": 50, "logprobs": True},
                  {"messages": [{"role": "user", "content": "word " * 20000}]}):
        refused(openai.BadRequestError, **wrong)


@test
def vllm_completions_format():
    chunks = stream_lines("/v1/completions", {
        "model": MODEL, "prompt": "The sea", "repetition_penalty": 1.0, "max_tokens": 8,
        "logprobs": None, "stream": True, "stream_options": {"include_usage": True},
        "ignore_eos": True, "temperature": 0.0})
    assert sum(1 for c in chunks if c["choices"]) == 8, "one chunk for each token"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8


@test
def vllm_chat_format():
    chunks = stream_lines("/v1/chat/completions", {
        "model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "max_completion_tokens": 8, "stream": True, "stream_options": {"include_usage": True},
        "ignore_eos": True, "temperature": 0.0})
    assert sum(1 for c in chunks if c["choices"]) == 8
    assert chunks[-1]["usage"]["completion_tokens"] == 8


@test
def sglang_format():
    chunks = stream_lines("/v1/completions", {
        "model": MODEL, "prompt": "The sea", "temperature": 0.0, "best_of": 1, "max_tokens": 8,
        "stream": True, "ignore_eos": True})
    assert all(c["choices"] for c in chunks), "no chunk without choices unless usage was asked for"


@test
def guidellm_format():
    chunks = stream_lines("/v1/chat/completions", {
        "model": MODEL, "messages": USER, "max_completion_tokens": 6, "stop": None, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "ignore_eos": True})
    assert [c["usage"]["completion_tokens"] for c in chunks if c["choices"]] == list(range(1, 7))


@test
def a_health_check_needs_no_key():
    assert urllib.request.urlopen(BASE + "/health").status == 200


@test
def promtool_finds_nothing_wrong_with_the_metrics():
    promtool = shutil.which("promtool")
    if promtool is None:
        print("        (no promtool on the PATH; weir_metrics_test checks its rules)")
        return
    request = urllib.request.Request(BASE + "/metrics",
                                     headers={"authorization": "Bearer " + client.api_key})
    lines = urllib.request.urlopen(request).read().decode().splitlines(keepends=True)
    # vLLM's names have colons, which promtool keeps for recording rules.
    own = "".join(line for line in lines if "vllm:" not in line)
    checked = subprocess.run([promtool, "check", "metrics"], input=own, text=True,
                             capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def main():
    api = conformance_fields.Api(BASE, client.api_key)
    cases = [(function.__name__, function) for function in tests]
    cases += [(function.__name__, lambda function=function: function(api))
              for function in conformance_fields.tests]
    failures = 0
    for name, run in cases:
        name = name.replace("_", " ")
        try:
            run()
            print("ok    ", name)
        except Exception as error:  # every failure is reported, whatever it is
            failures += 1
            print("FAILED", name, "-", type(error).__name__, str(error)[:300])
    print(f"{len(cases) - failures} of {len(cases)}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
