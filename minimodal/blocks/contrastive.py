"""CLIP's loss in more than one piece, SigLIP's, and one on differences.

The logits of B pictures against B captions are B² numbers, and automatic differentiation keeps
several copies: more than a gigabyte for B = 8192. With `rows` they are made some rows at a time and
thrown away: the memory grows with B. With several processes each has its own rows and all columns.

Unit vectors in, a mean loss out: `both_ways` for logits that all exist, as in `minimodal/clip.py`,
which has the paper's equation (read it before); `gathered_loss` for all other cases of it;
`rows_sigmoid` for SigLIP.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, in float32; a vector of zeros stays one.

    x: (N, E)
    returns: (N, E)
    """
    x = x.float()
    # F.normalize in three quarters of its time, which is half of a small batch's loss.
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-24).rsqrt()


def even_targets(rows: Tensor, columns: Tensor) -> Tensor:
    """Where a row's probability should lie: even over the columns that have its caption.

    rows: (b,) int64 caption numbers
    columns: (B,) int64
    returns: (b, B) float32, each row adds up to 1
    """
    target = (rows[:, None] == columns).float()  # (b, B)
    target /= target.sum(dim=1, keepdim=True)
    return target


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


class _BothWays(torch.autograd.Function):
    """The loss and, in the same pass, its gradient.

    With p the softmax and t the target, dL/dlogits is the mean of (p - t) / B over both ways.
    Left to automatic differentiation, twice as many matrices of B x B would be filled and kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        t = target.flatten()  # (B*B,)
        # Not log_softmax(dim=0): on a CPU it adds up thousands of terms one by one, in float32.
        columns = logits - logits.amax(dim=0)
        total = torch.dot(t, columns.flatten())
        sums = columns.exp_().sum(dim=0)  # (B,)
        total -= sums.log().sum()
        rows = logits.log_softmax(dim=1)
        total += torch.dot(t, rows.flatten())
        ctx.save_for_backward(rows.exp_().addcdiv_(columns, sums).sub_(target, alpha=2))
        return total / (-2 * len(logits))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (error,) = ctx.saved_tensors
        return error * (grad / (2 * len(error))), None


def both_ways(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the rows and of the columns of a square matrix of logits.

        L = -½ Σ_ij tᵢⱼ [ log softmax_j(lᵢⱼ) + log softmax_i(lᵢⱼ) ] / B

    logits: (B, B)
    target: (B, B) float32, symmetric, each row adds up to 1
    returns: ()
    """
    return _BothWays.apply(logits.float(), target)  # autocast makes them in bfloat16


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


def gathered_loss(
    image: Tensor, text: Tensor, scale: Tensor,
    *, captions: Tensor, all_image: Tensor, all_text: Tensor, all_captions: Tensor, rows: int = 0,
) -> Tensor:  # fmt: skip
    """CLIP's loss (`clip.contrastive_loss`) of this process's pairs against those of all processes.

        L = ½ Σ_i [ CE(s uᵢ·V, tᵢ) + CE(s vᵢ·U, tᵢ) ] / b

    The mean over the processes is the loss of the global batch.

    image: (b, E) picture embeddings
    text: (b, E) caption embeddings
    scale: (1,) s
    captions: (b,) int64, equal where captions are equal
    all_image: (B, E) of all processes; image itself, if there is one
    all_text: (B, E) of all processes
    all_captions: (B,) of all processes
    rows: so many rows of logits exist at a time; 0: all
    returns: ()
    """
    alone = all_image is image
    u, v = unit(image), unit(text)  # (b, E) each
    U, V = (u, v) if alone else (unit(all_image), unit(all_text))  # (B, E) each
    if rows:
        numbers = {"own": captions, "others": all_captions, "rows": rows}
        if alone:
            return rows_cross_entropy(u, V, scale, **numbers, both=True)
        by_image = rows_cross_entropy(u, V, scale, **numbers)  # ()
        return (by_image + rows_cross_entropy(v, U, scale, **numbers)) / 2
    t = even_targets(captions, all_captions)  # (b, B)
    by_text = F.cross_entropy(scale * v @ U.T, t)  # ()
    return (F.cross_entropy(scale * u @ V.T, t) + by_text) / 2


def _sigmoid_sum(
    q: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, own: Tensor, others: Tensor
) -> Tensor:
    logits = scale * q @ keys.T + bias  # (r, B)
    return -F.logsigmoid(torch.where(own[:, None] == others, logits, -logits)).sum()


def rows_sigmoid(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor,
    *, own: Tensor, others: Tensor, rows: int,
) -> Tensor:  # fmt: skip
    """Each pair by itself, right or wrong (Zhai et al. 2023, SigLIP, equation 1).

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


def difference_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE between differences: what changes between two pictures is what changes in words.

        dᵤ(i, j) = (uᵢ - uⱼ) / |uᵢ - uⱼ|,   L = mean of ½ [CE(s dᵤ·Dᵥ) + CE(s dᵥ·Dᵤ)]

    over neighbours i, j in the batch at distance 1 and 2 within each four. It is not in the paper.
    Why it is here: who is left of whom is a faint part of both embeddings at first, and all the
    rest of them drowns its gradient, so that CLIP learns it late (benchmarks/RESULTS.md). In the
    difference of two pictures that share everything else only that part is left, at full size.
    For one pair of pictures it is the directional loss of Gal et al. 2021 (StyleGAN-NADA).

    image: (B, E) picture embeddings of the global batch, B a multiple of 4
    text: (B, E) caption embeddings of the global batch
    scale: (1,) inverse temperature
    returns: ()
    """
    image, text = unit(image), unit(text)
    rows = torch.arange(len(image), device=image.device)
    losses = []
    for distance in (1, 2):
        # Not by a mask: on CUDA its use as an index waits for the device, to learn a size.
        first = rows.view(-1, 2, distance)[:, 0].flatten()  # (B//2,)
        second = first ^ distance
        change = F.normalize(image[first] - image[second], dim=-1)  # (B//2, E)
        # Equal captions have no direction; the small number keeps their gradient finite.
        words = F.normalize(text[first] - text[second] + 1e-6, dim=-1)  # (B//2, E)
        logits, own = scale * change @ words.T, torch.arange(len(first), device=image.device)
        losses += [F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)]
    return torch.stack(losses).mean()
