"""Asks a served model one question and prints its answer as it comes.

    python examples/chat.py http://solver.default.svc/v1 solver "2 + 3 ="

Needs nothing but Python's standard library, so that it runs in any pod.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator


def stream(url: str, model: str, prompt: str, max_tokens: int) -> Iterator[str]:
    """The pieces of the answer of an OpenAI-compatible server, as they arrive.

    Raises:
        urllib.error.URLError: the server cannot be reached or refuses.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url.rstrip('/')}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            text = line.decode().strip().removeprefix("data:").strip()
            if not text or text == "[DONE]":
                continue
            piece = json.loads(text)["choices"][0]["delta"].get("content")
            if piece:
                yield piece


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a served model one question.")
    parser.add_argument("url", help="base of the OpenAI API, ending in /v1")
    parser.add_argument("model", help="the name under which the model is served")
    parser.add_argument("prompt", help="the question")
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer (default 32)")
    options = parser.parse_args()
    began = time.monotonic()
    first = 0.0
    count = 0
    try:
        for piece in stream(options.url, options.model, options.prompt, options.max_tokens):
            count += 1
            first = first or time.monotonic() - began
            print(piece, end="", flush=True)
    except urllib.error.URLError as error:
        detail = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
        print(f"{options.url}: {error} {detail}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    pieces = "1 piece" if count == 1 else f"{count} pieces"
    print(
        f"\n\n{pieces} in {seconds:.2f} s, time to first token {first * 1000:.0f} ms",
        flush=True,
    )
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
