#!/usr/bin/env python3
"""The official `openai` package, unchanged, against `tidegate serve`.

    openai_client.py --bin target/debug/tidegate      # starts the gateways it needs
    openai_client.py URL KEY                          # against one that runs; the limits are not checked

One line per check, and `N passed, 0 failed` at the end.
"""

import argparse
import math
import os
import sys
import tempfile
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

import openai

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rig  # noqa: E402
from rig import Failed, expect  # noqa: E402

MESSAGES = [{"role": "user", "content": "Say hello to the tide."}]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Caller:
    def __init__(self, url, key):
        self.url, self.key = url.rstrip("/").removesuffix("/v1"), key
        self.client = self.with_key(key)
        self.model = self.client.models.list().data[0].id

    def with_key(self, key, **options):
        return openai.OpenAI(
            base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=30, **options
        )


def usage_adds_up(usage):
    expect(usage.prompt_tokens > 0 and usage.completion_tokens > 0, f"usage is {usage}")
    expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, f"usage is {usage}")


@check
def chat(gateway):
    answer = gateway.client.chat.completions.create(model=gateway.model, messages=MESSAGES)
    expect(answer.object == "chat.completion", answer.object)
    expect(answer.choices[0].message.role == "assistant", "the answer is not the assistant's")
    expect(answer.choices[0].message.content, "the answer is empty")
    expect(answer.choices[0].finish_reason in ("stop", "length"), answer.choices[0].finish_reason)
    usage_adds_up(answer.usage)


@check
def chat_headers(gateway):
    raw = gateway.client.chat.completions.with_raw_response.create(
        model=gateway.model, messages=MESSAGES
    )
    expect(raw.headers.get("x-request-id"), "x-request-id is missing")
    expect(raw.headers.get("x-tidegate-upstream"), "x-tidegate-upstream is missing")
    expect(raw.headers.get("x-tidegate-attempts") == "1", "x-tidegate-attempts is not 1")
    expect(raw.parse().choices, "the answer is empty")


@check
def streamed_chat(gateway):
    plain = gateway.client.chat.completions.create(
        model=gateway.model, messages=MESSAGES, temperature=0, seed=7
    )
    stream = gateway.client.chat.completions.create(
        model=gateway.model,
        messages=MESSAGES,
        temperature=0,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, finish, usage, chunks = "", None, None, 0
    for chunk in stream:
        expect(chunk.object == "chat.completion.chunk", chunk.object)
        chunks += 1
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    expect(chunks > 2, f"only {chunks} chunks came")
    expect(text == plain.choices[0].message.content, f"streamed {text!r}, plain said otherwise")
    expect(finish in ("stop", "length"), finish)
    expect(usage is not None, "no usage came with include_usage")
    usage_adds_up(usage)


@check
def streamed_chat_without_usage(gateway):
    stream = gateway.client.chat.completions.create(
        model=gateway.model, messages=MESSAGES, stream=True
    )
    usages = [chunk.usage for chunk in stream if chunk.usage]
    expect(not usages, "usage came though nobody asked for it")


@check
def stream_helper(gateway):
    with gateway.client.chat.completions.stream(model=gateway.model, messages=MESSAGES) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    expect("content.delta" in kinds, f"events were {kinds}")
    expect(final.choices[0].message.content, "the final completion is empty")


@check
def hung_up_stream(gateway):
    for _ in range(3):
        stream = gateway.client.chat.completions.create(
            model=gateway.model, messages=MESSAGES, stream=True
        )
        next(iter(stream))
        stream.close()
    chat(gateway)


@check
def a_repeated_call_is_answered_alike(gateway):
    def ask(stream, text="Say hello to the tide."):
        create = gateway.client.with_options(max_retries=2).chat.completions.with_raw_response.create
        return create(
            model=gateway.model,
            messages=[{"role": "user", "content": text}],
            stream=stream,
            extra_headers={"Idempotency-Key": keys[stream]},
        )

    keys = {stream: str(uuid.uuid4()) for stream in (False, True)}
    # Sent twice at once: the client is told to come back, does, and gets the first one's answer.
    with ThreadPoolExecutor(2) as at_once:
        both = list(at_once.map(ask, [False, False]))
    replayed = [answer.headers.get("idempotency-replayed") for answer in both]
    expect(sorted(replayed, key=str) == [None, "true"], f"replayed: {replayed}")
    expect(both[0].text == both[1].text, "the repeat has another answer")
    first, again = (list(ask(True).parse()) for _ in range(2))
    expect(first and first == again, "the repeated stream has other events")
    fails(
        openai.UnprocessableEntityError,
        "idempotency_mismatch",
        lambda: ask(False, "Say something else."),
    )


@check
def unknown_fields_pass(gateway):
    answer = gateway.client.chat.completions.create(
        model=gateway.model, messages=MESSAGES, extra_body={"x_unknown": {"deep": [1, 2.50, "ü"]}}
    )
    expect(answer.choices[0].message.content, "the answer is empty")


@check
def completions(gateway):
    answer = gateway.client.completions.create(model=gateway.model, prompt="Once upon", max_tokens=8)
    expect(answer.object == "text_completion", answer.object)
    expect(answer.choices[0].text, "the text is empty")
    expect(answer.usage.completion_tokens <= 8, f"max_tokens was 8: {answer.usage}")
    usage_adds_up(answer.usage)


@check
def streamed_completions(gateway):
    stream = gateway.client.completions.create(
        model=gateway.model, prompt="Once upon", max_tokens=8, stream=True
    )
    text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    expect(text, "the streamed text is empty")


@check
def embeddings(gateway):
    answer = gateway.client.embeddings.create(model=gateway.model, input=["tide", "gate", "tide"])
    expect([item.index for item in answer.data] == [0, 1, 2], "the indices are wrong")
    first, second, third = (item.embedding for item in answer.data)
    expect(len(first) > 1 and all(map(math.isfinite, first)), "no vector came")
    expect(first == third and first != second, "equal texts have equal vectors, others not")
    expect(answer.usage.prompt_tokens > 0, f"usage is {answer.usage}")


@check
def embeddings_as_floats(gateway):
    def vector(encoding):
        answer = gateway.client.embeddings.create(
            model=gateway.model, input="tide", encoding_format=encoding
        )
        return answer.data[0].embedding

    floats = vector("float")
    expect(isinstance(floats, list) and len(floats) > 1, "no list of floats came")
    expect(isinstance(vector("base64"), str), "no base64 came")


@check
def responses(gateway):
    answer = gateway.client.responses.create(model=gateway.model, input="Say hello to the tide.")
    expect(answer.object == "response" and answer.status == "completed", answer.status)
    expect(answer.output_text, "the text is empty")
    expect(answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, f"{answer.usage}")


@check
def streamed_responses(gateway):
    stream = gateway.client.responses.create(
        model=gateway.model, input="Say hello to the tide.", stream=True
    )
    text, last = "", None
    for event in stream:
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    expect(text, "no text came")
    expect(last.type == "response.completed", f"the last event is {last.type}")
    expect(last.response.output_text == text, "the deltas are not the final text")


@check
def models(gateway):
    listed = gateway.client.models.list().data
    expect(listed and all(model.object == "model" for model in listed), f"{listed}")
    one = gateway.client.models.retrieve(gateway.model)
    expect(one.id == gateway.model and one.owned_by, f"{one}")


@check
def unknown_model_in_list(gateway):
    fails(openai.NotFoundError, "model_not_found", lambda: gateway.client.models.retrieve("nobody"))


@check
def bad_key(gateway):
    def ask(key):
        gateway.with_key(key).chat.completions.create(model=gateway.model, messages=MESSAGES)

    changed = gateway.key[:-1] + ("a" if gateway.key[-1] != "a" else "b")
    for key in ("nonsense", changed):
        error = fails(openai.AuthenticationError, "invalid_api_key", lambda key=key: ask(key))
        expect(error.response.headers.get("www-authenticate"), "WWW-Authenticate is missing")
        expect(key not in str(error), "the error repeats the key")


@check
def unknown_model(gateway):
    def ask(**options):
        gateway.client.chat.completions.create(model="no-such-model", messages=MESSAGES, **options)

    fails(openai.NotFoundError, "model_not_found", ask)
    fails(openai.NotFoundError, "model_not_found", lambda: ask(stream=True))


@check
def bad_request(gateway):
    def send(body):
        gateway.client.post("/chat/completions", body=body, cast_to=object)

    error = fails(openai.BadRequestError, None, lambda: send({"messages": MESSAGES}))
    expect(error.param == "model", f"param is {error.param!r}, not model")
    error = fails(openai.BadRequestError, None, lambda: send({"model": 7, "messages": MESSAGES}))
    expect(error.param == "model", f"param is {error.param!r}, not model")


@check
def broken_json(gateway):
    def ask():
        gateway.client.post(
            "/chat/completions",
            cast_to=object,
            content=b'{"model": "x", ',
            options={"headers": {"content-type": "application/json"}},
        )

    error = fails(openai.BadRequestError, "invalid_json", ask)
    expect("line 1" in str(error) and "column" in str(error), f"it does not say where: {error}")


@check
def unknown_path(gateway):
    fails(
        openai.NotFoundError, "not_found", lambda: gateway.client.post("/nothing", cast_to=object)
    )


def rate_limit(gateway):
    """The gateway's configuration allows four requests a minute."""
    for number in range(5):
        try:
            gateway.client.chat.completions.create(model=gateway.model, messages=MESSAGES)
        except openai.RateLimitError as error:
            expect(number > 0, "the first call is refused")
            expect(error.code == "rate_limit_exceeded", f"code is {error.code!r}")
            headers = error.response.headers
            expect(headers["x-ratelimit-limit-requests"] == "4", f"{dict(headers)}")
            expect(headers["x-ratelimit-remaining-requests"] == "0", f"{dict(headers)}")
            expect(headers.get("x-ratelimit-reset-requests"), f"{dict(headers)}")
            expect(1 <= int(headers["retry-after"]) <= 60, f"{dict(headers)}")
            expect(1 <= int(headers["retry-after-ms"]) <= 60_000, f"{dict(headers)}")
            return
    raise Failed("five calls passed where four may")


def fails(error_class, code, action):
    try:
        action()
    except openai.APIStatusError as error:
        expect(
            type(error) is error_class,
            f"{type(error).__name__} instead of {error_class.__name__}: {error}",
        )
        expect(code is None or error.code == code, f"code is {error.code!r}, not {code!r}")
        expect(error.body and error.body.get("message"), f"the error has no message: {error.body}")
        return error
    raise Failed(f"no {error_class.__name__} came")


LIMITED = """
[upstreams.built-in]
protocol = "sim"

[models.limited]
targets = [ { upstream = "built-in", model = "sim-small" } ]

[limits.default]
requests_per_minute = 4
"""


def run(name, function, gateway):
    try:
        function(gateway)
    except Exception as error:
        print(f"FAIL {name}: {error}")
        if not isinstance(error, (Failed, openai.OpenAIError)):
            traceback.print_exc()
        return 1
    print(f"ok   {name}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="base URL of a running gateway")
    parser.add_argument("key", nargs="?", help="a key of it")
    parser.add_argument("--bin", help="start gateways from this binary instead")
    options = parser.parse_args()
    if options.bin is None and options.key is None:
        parser.error("give URL and KEY, or --bin")

    failed, total = 0, len(CHECKS)
    if options.bin:
        binary = os.path.abspath(options.bin)
        with tempfile.TemporaryDirectory() as directory:
            with rig.Gateway(binary, directory) as server:
                gateway = Caller(server.url, server.key)
                failed += sum(run(function.__name__, function, gateway) for function in CHECKS)
        with tempfile.TemporaryDirectory() as directory:
            with rig.Gateway(binary, directory, LIMITED) as server:
                failed += run("rate_limit", rate_limit, Caller(server.url, server.key))
                total += 1
    else:
        gateway = Caller(options.url, options.key)
        failed += sum(run(function.__name__, function, gateway) for function in CHECKS)
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
