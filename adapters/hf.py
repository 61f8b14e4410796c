"""A causal language model of transformers as a teacher, and its tokenizer for a student (extra [hf]).

    teacher = HFTeacher("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="bfloat16", device="cuda")
    prompts = [teacher.tokenizer.prompt_ids("What is the capital of France?")]
    new, sets = teacher.draw(prompts, 128, p=0.8, k_cap=64, seed=1)       # as data.sets.draw_with_sets
    teacher.tokenizer.save("out/student")                                 # Tokenizer.load opens it again

Shapes: B prompts, T tokens of the longest prompt, V ids of the tokenizer, K tokens kept.
"""
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from adapters.instructions import ANSWER
from data.cli import brief
from data.files import hash_of, weights_hash, write_text
from data.sets import top_p_sets
from data.tokenizer import checked_ids

UNLIMITED = 1 << 20     # block_size where nothing says how much a model can read
NAMED = "bos_token", "eos_token", "unk_token", "pad_token"      # special tokens that a chat template may name


def library():
    """The module transformers; it reports errors alone."""
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def opened(where, read, **options):
    """read(where, ...) for a name, a folder or a .gguf file; ValueError of one line where it fails."""
    library()                       # where it is missing, run_command says what brings it
    place = Path(where)
    if not place.exists() and (place.is_absolute() or place.suffix == ".gguf" or str(where).count("/") > 1):
        raise ValueError(f"{place}: no such file or folder")
    if place.suffix == ".gguf":
        where, options = place.parent, {"gguf_file": place.name, **options}
    try:
        return read(str(where), **options)
    except Exception as error:      # of transformers, tokenizers, jinja2, the hub, its HTTP library, the disk
        raise ValueError(f"{place}: cannot be opened ({brief(error, 300)})") from None


def end_ids(where):
    """The end ids of a model's generation_config.json and config.json (each int, list or none) -> set."""
    hub, found = library().utils.hub, set()
    for name in ("generation_config.json", "config.json"):
        if hub.has_file(where, name):
            card = json.loads(Path(hub.cached_file(where, name)).read_bytes())
            for ids in (card.get("eos_token_id"), (card.get("text_config") or {}).get("eos_token_id")):
                found |= set(ids if isinstance(ids, list) else [ids]) - {None}
    return found


class HFTokenizer:
    """A fast tokenizer of transformers as it is, in place of a data.tokenizer.Tokenizer.

    n_vocab: the largest id + 1; ends: frozenset of all ids that end an answer; end: the one behind an answer
    in the chat template, with which ours end; hash: 16 hex digits of tokenizer.json and the ends."""

    def __init__(self, text, card, ends):
        """text: tokenizer.json; card: dict, tokenizer_config.json; ends: ids. ValueError without an end."""
        import tokenizers
        self.text, self.card, self.ends = text, card, frozenset(ends)
        self.backend = tokenizers.Tokenizer.from_str(text)
        self.backend.encode_special_tokens = True               # a special token spelled in a text stays text
        self.n_vocab = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        added = self.backend.get_added_tokens_decoder().items()
        self.specials = {token.content: i for i, token in added if token.special}
        if not self.ends or not 0 <= min(self.ends) <= max(self.ends) < self.n_vocab:
            raise ValueError(f"end ids {sorted(self.ends)} of a tokenizer of {self.n_vocab} ids; expected "
                             "one or more in generation_config.json, config.json or as eos_token")
        named = {name: card[name] for name in (*NAMED, "chat_template") if card.get(name)}
        self.template = library().PreTrainedTokenizerFast(      # renders the chat, and knows no words
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **named)
        self.end = self.find_end()
        self.hash = hash_of(text, json.dumps([self.end, *sorted(self.ends)]))

    def __str__(self):
        names = ", ".join(self.backend.id_to_token(i) or str(i) for i in sorted(self.ends))
        return f"{self.n_vocab} tokens, end {self.end} of {names} ({self.hash})"

    @property
    def sep(self):
        raise ValueError(f"a tokenizer of transformers ({self}) has no separator of readings: a student "
                         "with it answers prompts (experiments.pair), and does not read sentences")

    def find_end(self):
        """The first end id behind an answer in the chat template, else eos_token, else the lowest of them."""
        ends = [self.backend.token_to_id(self.card.get("eos_token") or ""), min(self.ends)]
        if self.template.chat_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            ends = self.chat_ids(turns)[len(self.chat_ids(turns[:1])):] + ends
        return next(i for i in ends if i in self.ends)

    def chat_ids(self, turns):
        """[{"role", "content"}, ...] by the chat template -> ids; behind a user's turn an answer begins."""
        text = self.template.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=turns[-1]["role"] == "user")
        self.backend.encode_special_tokens = False              # those of the template are meant
        try:
            return self.encode(text)
        finally:
            self.backend.encode_special_tokens = True

    def prompt_ids(self, prompt):
        """A prompt (str) by the chat template, or, where there is none, with ANSWER behind it -> ids.
        ValueError for one that spells a special token: nothing would tell it from the template's."""
        if not self.template.chat_template:
            return self.encode(prompt + ANSWER, add_special_tokens=True)
        if spelled := next((name for name in self.specials if name in prompt), None):
            raise ValueError(f"the prompt {prompt[:40]!r}... spells {spelled}, a special token of the chat "
                             "template; change it or leave it out")
        return self.chat_ids([{"role": "user", "content": prompt}])

    def encode(self, text, add_special_tokens=False):
        """str -> list of int; half a character becomes U+FFFD. Special tokens are those around a text."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts):
        """Iterable of str -> list of lists of int."""
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        """Ids (list, array or 1-D tensor of int) -> str; half a character becomes U+FFFD, a special id its
        name. ValueError for an id outside the vocabulary."""
        return self.backend.decode(checked_ids(ids, self.n_vocab), skip_special_tokens=False)

    def save(self, folder):
        """Writes what AutoTokenizer reads, and the end ids where transformers looks for them."""
        cards = {"tokenizer_config": {**self.card, "nanoreader_hash": self.hash},
                 "generation_config": {"eos_token_id": sorted(self.ends)}}
        for name, card in cards.items():
            write_text(Path(folder) / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False))
        write_text(Path(folder) / "tokenizer.json", self.text)

    @classmethod
    def load(cls, where):
        """The tokenizer of a folder that `save` wrote, of a model's folder, a file in it, a .gguf file, or of
        a name to download. ValueError of one line for no fast tokenizer, no end id, or a damaged file."""
        path = Path(where)
        return opened(path.parent if path.is_file() and path.suffix != ".gguf" else where, cls.read)

    @classmethod
    def read(cls, where, **gguf):
        """`load` without its error. where: a folder or a name; gguf: gguf_file, the name of a file in it."""
        transformers, file = library(), Path(where) / "tokenizer_config.json"
        ends = set() if gguf else end_ids(where)
        saved = json.loads(file.read_bytes()) if file.is_file() and not gguf else {}
        if hashed := saved.pop("nanoreader_hash", None):
            tokenizer = cls(file.with_name("tokenizer.json").read_text(encoding="utf-8"), saved, ends)
            if tokenizer.hash != hashed:
                raise ValueError(f"tokenizer {tokenizer.hash}, but {hashed} was saved; restore "
                                 "tokenizer.json and generation_config.json")
            return tokenizer
        kind = transformers.AutoTokenizer       # may build the architecture's anew, despite tokenizer.json
        if not gguf and transformers.utils.hub.has_file(where, "tokenizer.json"):
            kind = transformers.PreTrainedTokenizerFast
        fast = kind.from_pretrained(where, **gguf)
        if not fast.is_fast:
            raise ValueError(f"{type(fast).__name__} is no fast tokenizer; expected a tokenizer.json")
        card = {name: getattr(fast, name) for name in NAMED if getattr(fast, name)}
        card |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if fast.chat_template:
            card["chat_template"] = fast.get_chat_template()
        fast.backend_tokenizer.no_truncation()
        fast.backend_tokenizer.no_padding()
        return cls(fast.backend_tokenizer.to_str(), card, ends | {fast.eos_token_id} - {None})


class HFTeacher:
    """A causal language model of transformers. hf: the module; tokenizer: HFTokenizer; n_vocab: ids of the
    tokenizer; block_size: tokens that it reads at most."""

    def __init__(self, where, dtype="auto", device="cpu"):
        """where: a name to download, a folder, or a .gguf file; dtype: "auto", "float32", "bfloat16".
        ValueError where the tokenizer has ordinary ids for which the model has no logits."""
        self.tokenizer, self.name, transformers = HFTokenizer.load(where), str(where), library()
        model = opened(where, transformers.AutoModelForCausalLM.from_pretrained, dtype=dtype)
        self.hf = model.to(device).eval()
        self.hf.generation_config = transformers.GenerationConfig()     # its penalties would change the sets
        self.n_vocab, head = self.tokenizer.n_vocab, self.hf.get_output_embeddings().weight.size(0)
        vocabulary = self.tokenizer.backend.get_vocab(with_added_tokens=True)
        lost = [name for name, i in vocabulary.items() if i >= head and name not in self.tokenizer.specials]
        if lost:
            raise ValueError(f"{where}: {head} logits, but the tokenizer has {self.n_vocab} ids, such as "
                             f"{lost[0]!r:.40}; expected a logit for each but special tokens")
        sizes = self.hf.config.get_text_config()
        self.block_size = getattr(sizes, "max_position_embeddings", None) or UNLIMITED

    def about(self):
        """What the header of a cache says of the teacher: dict of "hash", "params" and "name"."""
        return {"hash": weights_hash(self.hf), "params": self.hf.num_parameters(), "name": self.name}

    @torch.no_grad()
    def draw(self, prompts, max_new, *, p, k_cap, temperature=1.0, seed=None):
        """Continues every prompt (ids) with up to max_new tokens, drawn from their top-p sets -> (new, sets),
        as data.sets.draw_with_sets; an answer ends with the first of the tokenizer's ends."""
        limit, device = self.block_size - max_new, self.hf.device
        for i, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= limit:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; expected 1 to {limit}")
        sets, T, end = [[] for _ in prompts], max(map(len, prompts)), self.tokenizer.end
        ids = torch.tensor([[end] * (T - len(x)) + list(x) for x in prompts], device=device)       # (B, T)
        real = torch.tensor([[0] * (T - len(x)) + [1] * len(x) for x in prompts], device=device)   # (B, T)
        ends = torch.tensor(sorted(self.tokenizer.ends), device=device)

        def keep_sets(ids, logits):
            """logits (B, head) -> (B, V), -inf outside the sets; for rows that have ended none is kept."""
            logits = logits.float()[:, :self.n_vocab]           # a head may be padded, or lack specials
            logits = F.pad(logits, (0, self.n_vocab - logits.size(1)), value=-torch.inf)           # (B, V)
            kept = top_p_sets(logits, p, k_cap, temperature)                                       # (B, K)
            running = ~torch.isin(ids[:, T:], ends).any(-1)
            tokens, log_probs, mask = (x.cpu().numpy() for x in kept)
            for row in running.nonzero()[:, 0].tolist():
                sets[row].append((tokens[row][mask[row]], log_probs[row][mask[row]]))
            return torch.full_like(logits, -torch.inf).scatter_reduce(1, kept[0], kept[1], "amax") # (B, V)

        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            found = self.hf.generate(                                                         # (B, T + new)
                ids, attention_mask=real, max_new_tokens=max_new, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, eos_token_id=ends.tolist(), pad_token_id=end, use_cache=True,
                logits_processor=[keep_sets])
        return [row[:len(kept)] for row, kept in zip(found[:, T:].tolist(), sets)], sets
