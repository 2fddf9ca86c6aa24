"""Every field of every endpoint, against a running `weir serve` with the default model: what it does,
and that a value it does not accept is refused with its name. The fields are those that
/openapi.json lists; one without a test here is a failure, and so is a row of docs/api.md without a
field or a field without a row. Run by conformance.py."""
import json
import pathlib
import re
import urllib.error
import urllib.request

TEXT = "The sea was"
CHAT = [{"role": "user", "content": "Say hi."}]
PATHS = {"/v1/completions": {"prompt": TEXT, "max_tokens": 1},
         "/v1/chat/completions": {"messages": CHAT, "max_tokens": 1},
         "/tokenize": {"prompt": TEXT}, "/detokenize": {"tokens": [100]}}
PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/api.md"

tests = []
covered = {}  # field -> the names of its tests


def fields(*names):
    def register(function):
        tests.append(function)
        for name in names:
            covered.setdefault(name, []).append(function.__name__)
        return function
    return register


class Api:
    def __init__(self, url, key):
        self.url, self.key = url, key
        self.schema = self.get("/openapi.json")["paths"]

    def request(self, path, body=None):
        headers = {"authorization": "Bearer " + self.key, "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers),
                                      timeout=120)

    def get(self, path):
        with self.request(path) as reply:
            return json.load(reply)

    def post(self, path, **body):
        with self.request(path, body) as reply:
            return json.load(reply)

    def complete(self, prompt=TEXT, **body):
        """Greedy, unless |body| says otherwise."""
        return self.post("/v1/completions", **{"prompt": prompt, "temperature": 0, **body})

    def text(self, prompt=TEXT, **body):
        return self.complete(prompt, **body)["choices"][0]["text"]

    def ids(self, prompt=TEXT, **body):
        return self.complete(prompt, return_token_ids=True, **body)["choices"][0]["token_ids"]

    def chat(self, **body):
        return self.post("/v1/chat/completions", **{"messages": CHAT, "temperature": 0, **body})

    def refusal(self, path, **body):
        """Status and error of a request that must not be answered."""
        try:
            self.request(path, body).read()
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]
        raise AssertionError(f"accepted: {path} {body}")

    def properties(self, path):
        body = self.schema[path]["post"]["requestBody"]["content"]["application/json"]
        return body["schema"]["properties"]


def wrong_values(schema):
    """Values that |schema|, a property of /openapi.json, does not allow."""
    if "enum" in schema:
        return [{"no": "such value"}]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    wrong = [{"an": ["object"]}] if "object" not in kinds else [[1]]
    if "boolean" not in kinds:
        wrong.append(True)
    if "integer" in kinds:
        wrong.append(1.5)
    if "string" in kinds and schema.get("minLength"):
        wrong.append("")
    for bound, by in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
        if bound in schema:
            wrong.append(schema[bound] + by)
    return wrong


@fields()
def values_that_are_not_accepted_are_refused_with_the_fields_name(api):
    for path, least in PATHS.items():
        for name, schema in api.properties(path).items():
            for value in wrong_values(schema):
                status, error = api.refusal(path, **{**least, name: value})
                # A model that is not served is not found.
                assert status == (404 if name == "model" and isinstance(value, str) else 400), \
                    (path, name, value, status)
                assert error["param"].split("[")[0].split(".")[0] == name, (path, name, value, error)


@fields()
def null_is_as_if_the_field_were_not_there(api):
    for path, least in PATHS.items():
        api.post(path, **{**{name: None for name in api.properties(path)}, **least})


@fields()
def fields_without_a_meaning_here_take_their_neutral_value_only(api):
    for path, least in PATHS.items():
        for name, schema in api.properties(path).items():
            if not schema["description"].startswith("not supported"):
                continue
            covered.setdefault(name, []).append("neutral")
            for value in schema["enum"]:
                api.post(path, **{**least, name: value})


@fields()
def a_field_nobody_knows_is_ignored(api):
    api.complete(max_tokens=1, nobody_knows_this=[1, {"x": None}])


@fields("model")
def model_may_be_left_out_or_must_be_the_served_one(api):
    served = api.get("/v1/models")["data"][0]["id"]
    assert api.complete(max_tokens=1)["model"] == served
    assert api.complete(max_tokens=1, model=served)["model"] == served
    status, error = api.refusal("/v1/completions", prompt=TEXT, model="another")
    assert status == 404 and error["code"] == "model_not_found"


@fields("prompt")
def prompt_is_a_text_or_tokens_or_a_list_of_either(api):
    tokens = api.post("/tokenize", prompt=TEXT)["tokens"]
    whole = api.text(max_tokens=4)
    assert api.text(tokens, max_tokens=4) == whole
    for several in ([TEXT, "Two"], [tokens, tokens]):
        choices = api.complete(several, max_tokens=4)["choices"]
        assert [c["index"] for c in choices] == [0, 1] and choices[0]["text"] == whole


@fields("messages")
def messages_are_texts_or_text_parts_of_any_role_of_the_template(api):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "},
                                          {"type": "text", "text": "hi."}]}]
    a = api.chat(max_tokens=6)["choices"][0]["message"]
    b = api.chat(max_tokens=6, messages=parts)["choices"][0]["message"]
    assert a["role"] == "assistant" and a["content"] and b["content"]
    long = [{"role": "system", "content": "Be brief."}, *CHAT,
            {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye."}]
    assert api.chat(max_tokens=2, messages=long)["usage"]["prompt_tokens"] > \
        api.chat(max_tokens=2)["usage"]["prompt_tokens"]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert api.refusal("/v1/chat/completions", messages=image)[0] == 400


@fields("tokens")
def tokens_become_text_again(api):
    tokens = api.post("/tokenize", prompt=TEXT)["tokens"]
    assert api.post("/detokenize", tokens=tokens)["prompt"] == TEXT


@fields("max_tokens", "max_completion_tokens")
def the_number_of_tokens_is_the_one_asked_for(api):
    assert api.complete(max_tokens=5)["usage"]["completion_tokens"] == 5
    assert api.complete()["usage"]["completion_tokens"] == 16  # OpenAI's default
    assert api.complete(max_tokens=9, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    assert api.complete(max_tokens=5)["choices"][0]["finish_reason"] == "length"


@fields("min_tokens", "stop_token_ids")
def a_stop_token_ends_the_text_but_not_before_min_tokens(api):
    tokens = api.ids(max_tokens=12)
    stop = tokens[3]
    ended = api.complete(max_tokens=12, stop_token_ids=[stop], return_token_ids=True)["choices"][0]
    assert ended["finish_reason"] == "stop"
    assert len(ended["token_ids"]) <= tokens.index(stop) + 1
    longer = api.complete(max_tokens=12, stop_token_ids=[stop], min_tokens=8)
    assert longer["usage"]["completion_tokens"] >= 8


@fields("temperature", "seed")
def a_temperature_draws_and_a_seed_repeats(api):
    drawn = [api.text(temperature=1.5, seed=s, max_tokens=12) for s in (1, 2, 3, 1)]
    assert drawn[0] == drawn[3] and len(set(drawn)) > 1
    assert api.text(max_tokens=12) == api.text(temperature=0, seed=9, max_tokens=12)


@fields("top_p", "top_k", "min_p")
def each_of_top_p_top_k_and_min_p_can_leave_the_likeliest_token_only(api):
    greedy = api.text(max_tokens=12)
    for cut in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}):
        assert api.text(temperature=1.5, seed=5, max_tokens=12, **cut) == greedy, cut
    api.complete(max_tokens=1, top_k=-1)


@fields("temperature", "top_p", "min_p", "repetition_penalty")
def the_least_values_that_are_accepted_do_not_overflow(api):
    least = 5e-324
    for values in ({"temperature": least}, {"temperature": 1, "top_p": least},
                   {"temperature": 1, "min_p": least}, {"repetition_penalty": 0.01},
                   {"temperature": least, "repetition_penalty": 0.01, "presence_penalty": -2,
                    "frequency_penalty": -2, "logit_bias": {"100": 100}}):
        assert api.complete(max_tokens=4, **values)["usage"]["completion_tokens"] > 0, values


@fields("presence_penalty", "frequency_penalty", "repetition_penalty")
def penalties_end_a_repetition(api):
    prompt = "one two one two one two one two one"
    plain = api.text(prompt, max_tokens=24)
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert api.text(prompt, max_tokens=24, **{penalty: 2}) != plain, penalty


@fields("logit_bias")
def logit_bias_forces_and_forbids_tokens(api):
    first = api.ids(max_tokens=1)[0]
    assert api.ids(max_tokens=3, logit_bias={"1000": 100}) == [1000] * 3
    assert api.ids(max_tokens=1, logit_bias={str(first): -100})[0] != first
    too_many = {str(i): 1 for i in range(1025)}
    assert api.refusal("/v1/completions", prompt=TEXT, logit_bias=too_many)[0] == 400


@fields("stop", "include_stop_str_in_output")
def a_stop_string_ends_the_text_and_is_in_it_if_asked(api):
    count = "1, 2, 3, 4,"
    ended = api.complete(count, max_tokens=48, stop="7")["choices"][0]
    assert ended["finish_reason"] == "stop" and "7" not in ended["text"]
    assert api.text(count, max_tokens=48, stop=["never", "7"],
                    include_stop_str_in_output=True).endswith("7")
    assert api.refusal("/v1/completions", prompt=TEXT, stop=["x"] * 17)[0] == 400
    assert api.refusal("/v1/completions", prompt=TEXT, stop="x" * 257)[0] == 400


@fields("ignore_eos", "skip_special_tokens")
def ignore_eos_goes_on_and_special_tokens_show_if_asked(api):
    ended = api.chat(max_tokens=60)
    assert ended["choices"][0]["finish_reason"] == "stop"
    on = api.chat(max_tokens=60, ignore_eos=True, skip_special_tokens=False)
    assert on["usage"]["completion_tokens"] == 60
    assert "<|im_end|>" in on["choices"][0]["message"]["content"]
    assert "<|im_end|>" not in ended["choices"][0]["message"]["content"]


@fields("logprobs", "top_logprobs")
def log_probabilities_come_with_as_many_alternatives_as_asked(api):
    asked = api.complete(max_tokens=3, logprobs=2)["choices"][0]["logprobs"]
    assert len(asked["tokens"]) == len(asked["token_logprobs"]) == len(asked["text_offset"]) == 3
    assert all(lp <= 0 for lp in asked["token_logprobs"]) and len(asked["top_logprobs"][0]) == 2
    chat = api.chat(max_tokens=3, logprobs=True, top_logprobs=4)["choices"][0]["logprobs"]
    assert all(len(token["top_logprobs"]) == 4 for token in chat["content"])
    assert chat["content"][0]["token"] == chat["content"][0]["top_logprobs"][0]["token"]
    assert api.chat(max_tokens=1, top_logprobs=0)["choices"][0].get("logprobs") is None
    status, error = api.refusal("/v1/chat/completions", messages=CHAT, top_logprobs=2)
    assert status == 400 and error["param"] == "top_logprobs"


@fields("echo")
def echo_puts_the_prompt_in_front(api):
    assert api.text(max_tokens=3, echo=True) == TEXT + api.text(max_tokens=3)
    assert api.refusal("/v1/completions", prompt=TEXT, echo=True, logprobs=1)[0] == 400


@fields("n", "best_of")
def n_gives_as_many_choices_and_best_of_must_be_the_same(api):
    choices = api.complete(n=3, best_of=3, max_tokens=8, temperature=1.2, seed=4)["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2] and len({c["text"] for c in choices}) > 1
    assert api.refusal("/v1/completions", prompt=TEXT, n=1, best_of=2)[0] == 400
    assert api.refusal("/v1/completions", prompt=[TEXT] * 5, n=64)[0] == 400  # more than 256 in all


@fields("stream", "stream_options")
def a_stream_has_an_event_a_token_and_usage_if_asked(api):
    def events(**body):
        reply = api.request("/v1/completions", {"prompt": TEXT, "max_tokens": 4, "temperature": 0,
                                                "stream": True, **body})
        lines = [line[6:] for line in reply.read().decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]
    plain = events()
    assert len(plain) == 4 and all("usage" not in e and len(e["choices"]) == 1 for e in plain)
    assert "".join(e["choices"][0]["text"] for e in plain) == api.text(max_tokens=4)
    asked = events(stream_options={"include_usage": True})
    assert asked[-1]["choices"] == [] and asked[-1]["usage"]["completion_tokens"] == 4
    always = events(stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [e["usage"]["completion_tokens"] for e in always] == [1, 2, 3, 4, 4]
    status, error = api.refusal("/v1/completions", prompt=TEXT, stream_options={})
    assert status == 400 and error["param"] == "stream_options"


@fields("return_token_ids", "return_token_strs")
def tokens_are_returned_as_ids_and_as_the_vocabulary_writes_them(api):
    choice = api.complete(max_tokens=3, return_token_ids=True)["choices"][0]
    tokens = api.post("/tokenize", prompt=TEXT, return_token_strs=True)
    assert choice["prompt_token_ids"] == tokens["tokens"] and len(choice["token_ids"]) == 3
    assert len(tokens["token_strs"]) == tokens["count"] == len(tokens["tokens"])


@fields("add_special_tokens")
def add_special_tokens_is_taken_by_prompts_and_tokenize(api):
    # This model's tokenizer adds none; the tokenizer's own tests have those that do.
    for on in (True, False):
        assert api.post("/tokenize", prompt=TEXT, add_special_tokens=on)["count"] == 3
        api.complete(max_tokens=1, add_special_tokens=on)


@fields("add_generation_prompt", "chat_template_kwargs")
def the_assistants_turn_is_left_out_if_asked(api):
    whole = api.post("/tokenize", messages=CHAT)["count"]
    assert api.post("/tokenize", messages=CHAT, add_generation_prompt=False)["count"] < whole
    assert api.post("/tokenize", messages=CHAT, chat_template_kwargs={"unknown": 1})["count"] == whole
    assert api.chat(max_tokens=1, add_generation_prompt=False)["usage"]["prompt_tokens"] < \
        api.chat(max_tokens=1)["usage"]["prompt_tokens"]


@fields("cache_salt")
def a_salt_parts_the_prefix_cache(api):
    prompt = "A preface for the salt. " * 20

    def cached(**salt):
        usage = api.complete(prompt, max_tokens=1, **salt)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]
    cached()
    assert cached() > 0
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0


@fields("priority", "deadline_ms")
def a_deadline_ends_the_request_and_a_priority_is_taken(api):
    status, error = api.refusal("/v1/completions", prompt=TEXT, max_tokens=2000, ignore_eos=True,
                                deadline_ms=50)
    assert status == 504 and error["code"] == "deadline_exceeded"
    api.complete(max_tokens=1, priority=-5, deadline_ms=60000)


@fields()
def every_field_has_a_test_and_a_row_in_the_page(api):
    """Last: the tests above have said what they cover."""
    words = {"/v1/completions": "completions", "/v1/chat/completions": "chat",
             "/tokenize": "tokenize", "/detokenize": "detokenize"}
    listed = {(name, words[path]) for path in PATHS for name in api.properties(path)}
    rows = {(name, endpoint) for name, endpoints in
            re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", PAGE.read_text(), re.MULTILINE)
            for endpoint in endpoints.split(", ")}
    assert rows == listed, f"docs/api.md and /openapi.json differ: {rows ^ listed}"
    names = {name for name, _ in listed}
    assert set(covered) == names, f"without a test, or not a field: {set(covered) ^ names}"
