#!/usr/bin/env python3
"""Does the official `openai` client work with `loraine serve`?

    python tests/openai_client.py BASE_URL MODEL [MODEL ...]

BASE_URL is that of a running server, such as http://127.0.0.1:8080/v1; each MODEL is the name of an adapter or the model.
The exit status is 0 only where every check holds. Where the package `openai` is not installed, the script says so and ends
with status 0.
"""
import sys
from concurrent.futures import ThreadPoolExecutor

try:
    import openai
except ImportError:
    print("skipped: the Python package openai is not installed")
    sys.exit(0)

QUESTION = [{"role": "user", "content": "What does a dog eat?"}]


def streamed(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=24, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks[-1].usage


def check_model(client, model):
    ask = dict(model=model, messages=QUESTION, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length")
    pieces, usage = streamed(client, model)
    assert pieces == text, (model, pieces, text)
    assert usage == whole.usage or usage.total_tokens == whole.usage.total_tokens
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == whole.usage.completion_tokens
    assert all(token.top_logprobs[0].logprob == token.logprob and len(token.top_logprobs) == 3 for token in tokens)
    sample = dict(ask, temperature=1.0, seed=11)
    first, second = (client.chat.completions.create(**sample).choices[0].message.content for _ in range(2))
    assert first == second, "a seed repeats an answer"
    continued = client.completions.create(model=model, prompt="One day", max_tokens=8, temperature=0, stop=["."])
    assert "." not in continued.choices[0].text
    return text


def check_errors(client):
    for error, call in [
        (openai.NotFoundError, lambda: client.chat.completions.create(model="nobody", messages=QUESTION)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model="base", messages=[])),
        (openai.BadRequestError, lambda: client.completions.create(model="base", prompt="a", temperature=-1)),
    ]:
        try:
            call()
        except error as refused:
            assert refused.body["message"], refused
        else:
            raise AssertionError(f"{error.__name__} was expected")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    models = sys.argv[2:]
    listed = [model.id for model in client.models.list()]
    assert set(models) <= set(listed), (models, listed)
    assert client.models.retrieve(models[0]).id == models[0]
    alone = [check_model(client, model) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        at_once = list(pool.map(lambda model: check_model(client, model), models))
    assert at_once == alone, (at_once, alone)
    check_errors(client)
    # A stream that is left early.
    stream = client.chat.completions.create(model=models[0], messages=QUESTION, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert streamed(client, models[0])[0] == alone[0]
    print(f"openai {openai.__version__}: every check holds for {', '.join(models)}")


if __name__ == "__main__":
    main()
