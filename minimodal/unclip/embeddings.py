"""CLIP's image embeddings as numbers that a network can work with.

CLIP's embeddings are unit vectors: each of their E numbers is small, and of different spread. A
network wants numbers of about 1. Both the prior, which makes embeddings, and the decoder, which
reads them, keep the statistics that they were trained with. (B, E) in and out.
"""

import torch
from torch import Tensor, nn

from minimodal.errors import check_choice


class EmbeddingSpace(nn.Module):
    """Unit vectors to numbers of mean 0 and deviation 1, dimension by dimension, and back.

    The statistics are buffers: they are saved with the weights and fixed in training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width))  # rows: principal directions, first first

    @torch.no_grad()
    def learn(self, embeddings: Tensor, scale: str) -> None:
        """Take the statistics of training's embeddings, or of a VQGAN's code vectors.

        embeddings: (N, E)
        scale: "standard", or "paper": all are multiplied by 17.2
        """
        check_choice("scale", scale, ("standard", "paper"))
        mean = embeddings.mean(0)
        self.centre.copy_(mean)
        centred = (embeddings - mean).double()
        vectors = torch.linalg.eigh(centred.mT @ centred).eigenvectors  # of rising eigenvalues
        self.basis.copy_(vectors.mT.flip(0))
        if scale == "paper":
            self.mean.zero_()
            self.deviation.fill_(1 / 17.2)
            return
        # differs from the paper: each dimension by its own mean and deviation, since captions that
        # differ in one word lie close together on the sphere.
        self.mean.copy_(mean)
        if len(embeddings) > 1:  # a single one has no deviation
            self.deviation.copy_(embeddings.std(0).clamp(min=1e-4))

    def standardize(self, vectors: Tensor) -> Tensor:
        """Vectors as a network sees them.

        vectors: (B, E, …)
        returns: (B, E, …)
        """
        mean, deviation = (side(s, vectors) for s in (self.mean, self.deviation))
        return (vectors - mean) / deviation

    def undo(self, standard: Tensor) -> Tensor:
        """The vectors that a network's numbers stand for.

        standard: (B, E, …)
        returns: (B, E, …)
        """
        mean, deviation = (side(s, standard) for s in (self.mean, self.deviation))
        return standard * deviation + mean

    def restore(self, standard: Tensor) -> Tensor:
        """What a network made as unit vectors.

        standard: (B, E)
        returns: (B, E)
        """
        return nn.functional.normalize(self.undo(standard), dim=-1)

    def components(self, embeddings: Tensor, dims: int) -> Tensor:
        """Embeddings along the first principal directions of training's.

        embeddings: (B, E) unit vectors
        returns: (B, dims)
        """
        return (embeddings - self.centre) @ self.basis[:dims].mT

    def composed(self, components: Tensor) -> Tensor:
        """The unit vectors of components, those that are not given left at their mean.

        components: (B, n)
        returns: (B, E) unit vectors
        """
        rows = self.basis[: components.shape[1]]  # (n, E)
        return nn.functional.normalize(components @ rows + self.centre, dim=-1)


def side(values: Tensor, like: Tensor) -> Tensor:
    """One number per dimension, shaped to go along the second side of a batch.

    values: (E,)
    like: (B, E, …)
    returns: (1, E, …)
    """
    return values.view(1, -1, *(1,) * (like.ndim - 2))
