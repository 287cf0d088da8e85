"""CLIP's loss in more than one piece, and SigLIP's.

The logits of B pictures against B captions are B² numbers, and automatic differentiation keeps
several copies: more than a gigabyte for B = 8192. With `rows` they are made some rows at a time and
thrown away: the memory grows with B. With several processes each has its own rows and all columns.

Embeddings of this process (b, E) and of all (B, E) in, a mean loss out. Read `contrastive.py`
before.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minimodal.blocks.contrastive import even_targets, unit


class Everyone(NamedTuple):
    """The pairs of all processes.

    image: (B, E) picture embeddings
    text: (B, E) caption embeddings
    captions: (B,) int64, equal where captions are equal
    """

    image: Tensor
    text: Tensor
    captions: Tensor


def column_sums(queries: Tensor, keys: Tensor, scale: Tensor, *, rows: int) -> Tensor:
    """log Σ_i exp(s qᵢ·kⱼ) for each key.

    queries: (b, E) unit vectors
    keys: (B, E) unit vectors
    scale: (1,) s
    returns: (B,)
    """
    sums = keys.new_full((len(keys),), float("-inf"))  # (B,)
    for part in (scale * queries).split(rows):
        sums = torch.logaddexp(sums, (part @ keys.T).logsumexp(dim=0))
    return sums


class _CrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients.

    With p the softmax of a row and t its target, dL/dlogits = (p - t) / b, which is known as soon
    as the row is. Left to automatic differentiation all rows would be kept until then.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor,
        own: Tensor, others: Tensor, rows: int, both: bool,
    ) -> Tensor:  # fmt: skip
        ways, wanted = 2 if both else 1, any(ctx.needs_input_grad[:3])
        loss = queries.new_zeros(())
        d_queries, d_keys = torch.empty_like(queries), torch.zeros_like(keys)
        if both:
            columns = column_sums(queries, keys, scale, rows=rows)  # (B,)
            loss += columns.sum()
        parts = (x.split(rows) for x in (scale * queries, own, d_queries))
        for q, numbers, d_q in zip(*parts, strict=True):  # (r, E), (r,), (r, E)
            logits = q @ keys.T  # (r, B)
            # A number that n of the columns have, n of the rows have: t is the same both ways.
            target = (numbers[:, None] == others).to(logits.dtype)
            target *= ways / target.sum(dim=1, keepdim=True)
            loss -= torch.dot(target.flatten(), logits.flatten())
            p = logits.softmax(dim=1)
            # log Σ_j exp lⱼ = max l - log max p
            loss += (logits.amax(dim=1) - p.amax(dim=1).log()).sum()
            if not wanted:
                continue
            if both:
                p.add_(logits.sub_(columns).exp_())
            p.sub_(target)
            torch.mm(p, keys, out=d_q)
            d_keys.addmm_(p.T, q)
        if wanted:
            d_scale = (d_queries * queries).sum().view_as(scale)
            ctx.save_for_backward(scale * d_queries, d_keys, d_scale)
            ctx.pairs = ways * len(queries)
        return loss / (ways * len(queries))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        grad = grad / ctx.pairs
        return *(grad * d for d in ctx.saved_tensors), None, None, None, None


def rows_cross_entropy(
    queries: Tensor, keys: Tensor, scale: Tensor,
    *, own: Tensor, others: Tensor, rows: int, both: bool = False,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of each query among all keys; `rows` rows of logits exist at a time.

        L = mean_i [ log Σ_j exp(s qᵢ·kⱼ) - s Σ_j tᵢⱼ qᵢ·kⱼ ]

    with tᵢⱼ even over the keys whose number is the query's. With `both` (then own and others are
    the same) the mean of that and of each key among all queries, for two thirds of the price of
    two calls.

    queries: (b, E) unit vectors
    keys: (B, E) unit vectors
    scale: (1,) s
    own: (b,) int64 the queries' numbers
    others: (B,) int64 the keys' numbers
    returns: ()
    """
    # Autocast would round the logits to bfloat16; a loss over thousands of them needs the digits.
    with torch.autocast(queries.device.type, enabled=False):
        return _CrossEntropy.apply(queries, keys, scale, own, others, rows, both)


def _sigmoid_sum(
    q: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, own: Tensor, others: Tensor
) -> Tensor:
    logits = scale * q @ keys.T + bias  # (r, B)
    return -F.logsigmoid(torch.where(own[:, None] == others, logits, -logits)).sum()


def rows_sigmoid(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor,
    *, own: Tensor, others: Tensor, rows: int,
) -> Tensor:  # fmt: skip
    """Each pair by itself, right or wrong (Zhai et al. 2023, SigLIP, algorithm 1).

        L = -1/b Σ_i Σ_j log σ( zᵢⱼ (s qᵢ·kⱼ + β) ),   zᵢⱼ = 1 for a pair and -1 otherwise

    No row needs the others, so a block's logits are simply computed again for its gradient.

    queries: (b, E) unit vectors
    keys: (B, E) unit vectors
    scale: (1,) s
    bias: (1,) β
    own: (b,) int64 the queries' numbers
    others: (B,) int64 the keys' numbers
    returns: ()
    """
    total = queries.new_zeros(())
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            inputs = (queries[part], keys, scale, bias, own[part], others)
            total = total + checkpoint(_sigmoid_sum, *inputs, use_reentrant=False)
    return total / len(queries)


def gathered_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None,
    *, captions: Tensor, everyone: Everyone, rows: int = 0,
) -> Tensor:  # fmt: skip
    """The loss of this process's pairs against everyone's: CLIP's (`clip.contrastive_loss`),

        L = ½ Σ_i [ CE(s uᵢ·V, tᵢ) + CE(s vᵢ·U, tᵢ) ] / b

    or with a bias SigLIP's. The mean over the processes is the loss of the global batch.

    image: (b, E) picture embeddings
    text: (b, E) caption embeddings
    scale: (1,) s
    bias: (1,) of all logits, for SigLIP
    captions: (b,) int64, equal where captions are equal
    everyone: the pairs of all processes; these pairs themselves, if there is one
    rows: so many rows of logits exist at a time; 0: all
    returns: ()
    """
    if bias is not None:
        queries, keys = F.normalize(image, dim=-1), F.normalize(everyone.text, dim=-1)
        numbers = {"own": captions, "others": everyone.captions, "rows": rows or len(keys)}
        return rows_sigmoid(queries, keys, scale, bias, **numbers)
    alone = everyone.image is image
    u, v = unit(image), unit(text)  # (b, E) each
    U, V = (u, v) if alone else (unit(everyone.image), unit(everyone.text))  # (B, E) each
    if rows:
        numbers = {"own": captions, "others": everyone.captions, "rows": rows}
        if alone:
            return rows_cross_entropy(u, V, scale, **numbers, both=True)
        by_image = rows_cross_entropy(u, V, scale, **numbers)  # ()
        return (by_image + rows_cross_entropy(v, U, scale, **numbers)) / 2
    t = even_targets(captions, everyone.captions)  # (b, B)
    by_text = F.cross_entropy(scale * v @ U.T, t)  # ()
    return (F.cross_entropy(scale * u @ V.T, t) + by_text) / 2
