"""The reduced vocabulary: a teacher's few probable tokens A_p(s) for each text s, and drawing from them.

Shapes: N rows of any kind, V vocabulary, K tokens kept.
"""

import torch

from data.cache import MASKED

SLACK = 1e-6        # probabilities are float32: .5 + .3 is taken to reach p = .8


def top_p_sets(logits, p, k_cap, temperature=1.0):
    """The smallest set of most probable tokens whose mass reaches p, for each row: A_p(s) of the paper.

    logits (N, V) float; 0 < p <= 1, where p - SLACK counts as p and p = 1 keeps every token of finite
    log-probability; k_cap: at most so many tokens are kept, even where they do not reach p.
    Returns ids (N, K) long, log_probs (N, K) float32, mask (N, K) bool, with K the largest set among the
    rows; in falling order of probability, the token that crosses p is in the set, one of probability 0 never
    is, no set is empty. Where mask is False: id 0 and log-probability MASKED. log_probs are log softmax(
    logits / temperature), not renormalised over the set: the mass that is missing is known. ValueError for p,
    k_cap or temperature out of range, and for a row whose softmax is NaN.
    """
    if not 0 < p <= 1 or k_cap < 1 or temperature <= 0:
        raise ValueError(f"p={p}, k_cap={k_cap}, temperature={temperature}; "
                         "expected 0 < p <= 1, k_cap >= 1, temperature > 0")
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)     # (N, V)
    values, ids = log_probs.topk(min(k_cap, logits.size(-1)))               # (N, k) sorted
    if torch.isnan(values).any():
        raise ValueError("the teacher's logits hold NaN or only infinities; check its checkpoint")
    probs = values.double().exp()
    before = probs.cumsum(-1) - probs                                       # mass of the tokens ranked above
    mask = (before < p - SLACK) if p < 1 else torch.ones_like(before, dtype=torch.bool)
    mask[:, 0] = True                                                       # also for p below SLACK
    mask &= values > -torch.inf
    width = int(mask.sum(-1).max()) if len(mask) else 0
    ids, values, mask = ids[:, :width], values[:, :width], mask[:, :width]  # (N, K)
    return ids.masked_fill(~mask, 0), values.masked_fill(~mask, MASKED), mask


def restrict_to_p(log_probs, mask, p):
    """What top_p_sets with a smaller p would keep of cached sets, as a new mask (..., K) bool. SLACK < p < 1.

    log_probs (..., K) float32 or float64, the most probable token first; mask (..., K) bool, False for the
    padding behind a set, whatever stands there."""
    probs = log_probs.double().exp() * mask
    return mask & (probs.cumsum(-1) - probs < p - SLACK)


def draw_with_sets(model, prompts, max_new, *, p, k_cap, temperature=1.0, stop=None, seed=None):
    """Continues every prompt with tokens drawn from their top-p sets -> (new, sets), two lists of lists.

    new: the new ids of each prompt; sets: (ids (K,), log_probs (K,)) for each, as CacheWriter.add takes them.
    Of a set that is cut at k_cap the tokens drawn are those that hold p of its own mass, as `sample` has it.
    """
    sets = [[] for _ in prompts]

    def keep_sets(rows, logits, drawn):
        ids, log_probs, mask = (x.cpu().numpy() for x in top_p_sets(logits, p, k_cap, temperature))
        for i, row in enumerate(rows.tolist()):
            sets[row].append((ids[i][mask[i]], log_probs[i][mask[i]]))

    # A little less than p: rounding must not let a token be drawn that the set above leaves out.
    new = model.generate(prompts, max_new, temperature=temperature, top_k=k_cap,
                         top_p=max(p - 2 * SLACK, SLACK), stop=stop, seed=seed, watch=keep_sets)
    return new, sets
