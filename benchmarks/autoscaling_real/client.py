"""Runs in the client pod: sends requests of given lengths and notes what a user feels of each.

    python3 autoscaling_real_client.py FILE URL MODEL PATIENCE replay BEGIN LENGTHS
    python3 autoscaling_real_client.py FILE URL MODEL PATIENCE loop CLIENTS LENGTHS
    python3 autoscaling_real_client.py FILE URL MODEL PATIENCE rounds CLIENTS LENGTHS

`replay` sends each request at its time after BEGIN, in seconds since the epoch, whatever became of
those before. In a `loop` each client sends its next request when its last one is over, in `rounds`
when all of the round are. LENGTHS are AT:PROMPT:OUTPUT, in seconds and tokens, joined by commas.
FILE `-` is the standard output; with a real one, the process stays until it is ended.

A line of FILE is a request: its `number`, when it was due (`at`) and `sent`, when its `first` and
its `last` token came, in seconds since the epoch, its `tokens`, and the `error` that ended it. No
request is sent twice.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Lengths = tuple[float, int, int]
"""When a request comes, in seconds; prompt and answer in tokens."""
Numbered = Sequence[tuple[int, Lengths]]
Note = Callable[[Json], None]
DONE = "[DONE]"


@dataclass(frozen=True)
class Server:
    """Who is asked.

    Attributes:
        url: base of its OpenAI API, ending in /v1.
        model: the name of the model.
        patience: seconds of silence after which a request has failed.
        salt: makes other prompts.
    """

    url: str
    model: str
    patience: float
    salt: str = ""

    def pieces(self, prompt: str, output: int) -> Iterator[Json]:
        """The pieces of an answer of so many tokens, as they come."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        request = urllib.request.Request(
            f"{self.url}/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=self.patience) as answer:
            for line in answer:
                text = line.decode().strip().removeprefix("data:").strip()
                if text == DONE:
                    return
                if text:
                    yield json.loads(text)
        raise ValueError("the answer broke off")


def ask(server: Server, number: int, lengths: Lengths, due: float) -> Json:
    """One request, and what a user felt of it."""
    _, prompt, output = lengths
    text = digits(f"{server.salt} {number}", prompt)
    sent, first, last, tokens, error = time.time(), None, None, 0, None
    try:
        for piece in server.pieces(text, output):
            if "error" in piece:
                raise ValueError(piece["error"])
            for choice in piece.get("choices") or ():
                last = time.time()
                first = first or last
                # A piece may have several tokens.
                tokens = output if choice.get("finish_reason") == "length" else tokens + 1
            tokens = (piece.get("usage") or {}).get("completion_tokens") or tokens
        if tokens < output:
            raise ValueError(f"{tokens} tokens of {output}")
    except Exception as problem:
        error = repr(problem)
    return {
        "number": number,
        "at": due,
        "sent": sent,
        "first": first,
        "last": last,
        "tokens": tokens,
        "error": error,
    }


def digits(seed: str, tokens: int) -> str:
    """A prompt of so many tokens that no cache has: to the small model a digit is a token."""
    return "".join(random.Random(f"{seed} {tokens}").choices("0123456789", k=tokens))


def parsed(text: str) -> list[Lengths]:
    """LENGTHS, as the module describes it."""
    found = (entry.split(":") for entry in text.split(","))
    return [(float(at), int(prompt), int(output)) for at, prompt, output in found]


def written(requests: Sequence[Lengths]) -> str:
    """The other way around."""
    return ",".join(f"{at:.3f}:{prompt}:{output}" for at, prompt, output in requests)


def replay(server: Server, begin: float, requests: Numbered, note: Note) -> None:
    """Each at its time."""
    threads = []
    for number, lengths in requests:
        due = begin + lengths[0]
        time.sleep(max(0.0, due - time.time()))
        threads.append(_start(lambda *words: note(ask(server, *words)), number, lengths, due))
    for thread in threads:
        thread.join()


def loop(server: Server, clients: int, requests: Numbered, note: Note) -> None:
    """So many at a time."""
    left, lock = iter(requests), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                mine = next(left, None)
            if mine is None:
                return
            note(ask(server, *mine, time.time()))

    for thread in [_start(client) for _ in range(clients)]:
        thread.join()


def rounds(server: Server, clients: int, requests: Numbered, note: Note) -> None:
    """So many at once, and again when all are over."""
    for begin in range(0, len(requests), clients):
        loop(server, clients, requests[begin : begin + clients], note)


def _start(work: Callable[..., None], *words: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    return thread


def main() -> int:
    place, url, model, patience, mode, how, text = sys.argv[1:]
    server = Server(url, model, float(patience), f"{mode} {how}")
    requests, lock = list(enumerate(parsed(text))), threading.Lock()
    with open(1 if place == "-" else place, "w", buffering=1, closefd=place != "-") as file:

        def note(line: Json) -> None:
            with lock:
                print(json.dumps(line), file=file)

        if mode == "replay":
            replay(server, float(how), requests, note)
        else:
            {"loop": loop, "rounds": rounds}[mode](server, int(how), requests, note)
    if place != "-":
        time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
