"""A model behind an OpenAI-compatible server as a teacher: its `logprobs` are the sets (llama.cpp, vLLM).

    teacher = EndpointTeacher("http://localhost:8080/v1", "qwen3", "folder/of/its/tokenizer")
    new, sets = teacher.draw(prompts, 128, p=0.8, k_cap=64, seed=1)       # as data.sets.draw_with_sets

POST .../completions takes the prompt as ids and answers with the ids of the most probable tokens. vLLM gives
as many as its --max-logprobs allows, and draws from p of the k_cap tokens, not of all: fewer where a set is
cut. The temperature is 1: servers report log-probabilities without it.
"""
import json
import threading
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import torch

from adapters.endpoint import ERRORS, ask, endpoint_url, probe, secret_key
from adapters.hf import UNLIMITED, HFTokenizer
from data.cache import MASKED
from data.sets import SLACK, restrict_to_p

PROBE, PROBED = "The capital of France is", 8       # a first request: a text, and new tokens
TOKEN_BYTES = 200       # of JSON for one of the most probable tokens, at most; llama.cpp needs about 100


def token_id(name):
    """"token_id:17", as vLLM spells a token where return_tokens_as_token_ids is asked for -> 17."""
    _, number = name.split("token_id:")         # ValueError for the token "17" itself
    return int(number)


def read_completion(reply):
    """A completion (JSON) -> (tokens, text, finish_reason, the model's true name or None); tokens: [(id
    drawn, {id: log-probability} of the most probable tokens), ...]. ERRORS for another shape.

    llama.cpp has a list logprobs.content with an "id" in each token; vLLM has OpenAI's older lists
    logprobs.tokens and logprobs.top_logprobs, whose names hold the ids."""
    choice = reply["choices"][0]
    found = choice["logprobs"]
    if "content" in found:
        tokens = [(int(token["id"]), {int(one["id"]): float(one["logprob"]) for one in token["top_logprobs"]})
                  for token in found["content"]]
    else:
        tokens = [(token_id(name), {token_id(other): float(value) for other, value in top.items()})
                  for name, top in zip(found["tokens"], found["top_logprobs"], strict=True)]
    return tokens, " ".join(choice["text"].split()), choice.get("finish_reason"), reply.get("model")


class EndpointTeacher:
    """A model behind a server; tokenizer: HFTokenizer; n_vocab: its ids; block_size: not known, the server
    refuses what is too long. ValueError where no server answers, or its model has another tokenizer."""

    def __init__(self, url, model, tokenizer, *, parallel=4, timeout=300.0, retries=4):
        """url: as http://localhost:8080/v1; model: its name there; tokenizer: the model's folder, or its
        tokenizer.json in one; parallel: requests in flight; timeout: seconds for a request."""
        self.tokenizer, self.model, self.parallel = HFTokenizer.load(tokenizer), model, parallel
        self.n_vocab, self.block_size = self.tokenizer.n_vocab, UNLIMITED
        url = endpoint_url(url).removesuffix("/chat/completions") + "/completions"
        self.options = SimpleNamespace(url=url, secret=secret_key(), timeout=timeout, retries=0)
        probe(self.options)
        tokens, text, _, name = self.request(self.tokenizer.encode(PROBE), PROBED, p=1e-6, k_cap=1, seed=1)
        self.options.retries, self.name = retries, name or model
        ids = [token for token, _ in tokens if token not in self.tokenizer.specials.values()]
        if text != (own := " ".join(self.tokenizer.decode(ids).split())):
            raise ValueError(f"{url}: it answers {text!r:.60}, but its ids are {own!r:.60} by {tokenizer}; "
                             "expected the tokenizer of the model that is served")

    def about(self):
        """What the header of a cache says of the teacher: dict of "hash", "params" and "name"."""
        return {"hash": None, "params": None, "name": self.name}

    def request(self, prompt, max_new, p, k_cap, seed):
        """One completion of a prompt (ids) -> as read_completion; ValueError with what the server says, and
        where ids are missing or beyond the tokenizer."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_new, "logprobs": k_cap,
                "temperature": 1.0, "top_p": p, "top_k": k_cap, "min_p": 0.0, "seed": seed % 2 ** 31,
                "samplers": ["top_p", "top_k", "temperature"],          # llama.cpp: p of all, then the cap
                "repetition_penalty": 1.0, "repeat_penalty": 1.0,       # vLLM's, llama.cpp's: off
                "return_tokens_as_token_ids": True}
        most = (1 << 20) + TOKEN_BYTES * k_cap * max_new
        reply, why = ask(body, self.options, threading.Event(), [], parse=json.loads, most=most)
        if why:
            raise ValueError(f"{self.options.url}: {why}")
        try:
            found = read_completion(reply)
        except ERRORS:
            raise ValueError(f"{self.options.url}: no token ids in {json.dumps(reply):.100}...; expected "
                             "llama.cpp's logprobs.content, or vLLM's return_tokens_as_token_ids") from None
        largest = max((i for token, top in found[0] for i in (token, *top)), default=0)
        if largest >= self.n_vocab:
            raise ValueError(f"{self.options.url}: token {largest}, but the tokenizer has {self.n_vocab} "
                             "ids; expected the tokenizer of the model that is served")
        return found

    def draw_one(self, prompt, max_new, p, k_cap, seed):
        """One answer -> (new, sets). ValueError for a token outside its set, and an end that is not told."""
        # A little less than p: rounding must not let a token be drawn that the set below leaves out.
        tokens, _, finish, _ = self.request(prompt, max_new, max(p - 2 * SLACK, SLACK), k_cap, seed)
        new, sets = [], []
        for token, top in tokens:       # the one drawn is first among equals, of which bfloat16 makes many
            best = sorted((-value, i != token, i) for i, value in top.items() if value > MASKED)[:k_cap]
            values, ids = -torch.tensor([x for x, *_ in best]), np.array([i for *_, i in best], np.int64)
            mask = restrict_to_p(values, torch.ones(len(best), dtype=torch.bool), p).numpy()
            if token not in ids[mask]:
                raise ValueError(f"{self.options.url}: drew token {token}, which is not in its set of p={p}, "
                                 f"{k_cap} tokens at most; expected a server that applies top_p and top_k")
            new.append(token)
            sets.append((ids[mask], values.numpy()[mask].clip(max=0)))
            if token in self.tokenizer.ends:
                return new, sets
        if finish == "stop" and not set(new[-1:]) & set(self.tokenizer.specials.values()):
            raise ValueError(f"{self.options.url}: an answer stops behind {new[-1:]} without an end token; "
                             "expected it with its log-probabilities, as llama.cpp and vLLM report it")
        return new, sets

    def draw(self, prompts, max_new, *, p, k_cap, temperature=1.0, seed=0):
        """Continues every prompt (ids) with up to max_new tokens, drawn from their top-p sets -> (new, sets),
        as data.sets.draw_with_sets. A set ends at p, or where the server's list does."""
        if temperature != 1:
            raise ValueError(f"temperature={temperature}, but a server's log-probabilities are those of 1")
        with ThreadPool(self.parallel) as pool:         # of daemons: nothing is waited for after Ctrl-C
            answers = list(pool.imap(lambda i: self.draw_one(prompts[i], max_new, p, k_cap, seed + i),
                                     range(len(prompts))))
        return [new for new, _ in answers], [sets for _, sets in answers]
