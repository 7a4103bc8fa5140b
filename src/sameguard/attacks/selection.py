"""Which unlabelled images an active learner asks about next: the most doubtful, the farthest apart, or the nearest to a boundary.

The three measures of ActiveThief (algorithms.md 3.5). Each sees the substitute and the thief's own pool alone.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import pairwise_distances_argmin_min
from torch import Tensor, nn

from sameguard.shapes import Probs, Queries, Scores

Points = Float[np.ndarray, "points axes"]
Centres = Float[np.ndarray, "centres axes"]
Rows = Int[np.ndarray, "chosen"]
OVERSHOOT = 0.02
RIVALS = 10  # DeepFool looks at the boundaries to the classes of the highest logits only
DEEPFOOL_BATCH = 256


def entropies(probs: Probs) -> Scores:
    """Entropy of each row in nats; 0 log 0 = 0."""
    return -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1.0)), 0.0).sum(axis=1)


def farthest_first(points: Points, centres: Centres, count: int) -> Rows:
    """Rows of the `count` points that greedy k-center adds to the centres: each the farthest from all centres before it, those added included.

    Ties go to the first row. count: at most the number of points; centres: at least one.
    """
    _, nearest = pairwise_distances_argmin_min(points, centres)
    nearest = nearest.astype(np.float64)
    chosen = np.empty(count, np.int64)
    for place in range(count):
        chosen[place] = nearest.argmax()
        added = points[chosen[place]].astype(np.float64)
        nearest = np.minimum(nearest, np.sqrt(((points - added) ** 2).sum(axis=1)))
        nearest[chosen[place]] = -1.0  # not again, even where every distance is 0
    return chosen


def deepfool_distances(network: nn.Module, inputs: Queries, steps: int = 20) -> Scores:
    """Length of the perturbation by which DeepFool takes each input over the network's nearest boundary (Moosavi-Dezfooli et al., CVPR 2016).

    For a linear network it is the distance to the boundary: the overshoot of 2 % that decides whether it is crossed is not counted. An
    input not across after `steps` has the length reached so far, one without gradient infinity. Bounds of the inputs are ignored.
    """
    network.eval()
    batches = [torch.from_numpy(inputs[start : start + DEEPFOOL_BATCH]) for start in range(0, len(inputs), DEEPFOOL_BATCH)]
    return torch.cat([_deepfool(network, batch, steps) for batch in batches]).double().numpy()


def _deepfool(network: nn.Module, inputs: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        logits = network(inputs)
    ranked = logits.topk(min(RIVALS, logits.shape[1]), dim=1).indices  # batch, ranks: the input's own class first
    moved = torch.zeros_like(inputs)
    distances = torch.zeros(len(inputs))
    active = torch.arange(len(inputs))
    for _ in range(steps):
        points = (inputs[active] + (1 + OVERSHOOT) * moved[active]).requires_grad_(True)
        logits = network(points)
        outputs = logits.gather(1, ranked[active])  # active, ranks
        gradients = torch.stack(
            [torch.autograd.grad(outputs[:, rank].sum(), points, retain_graph=True)[0] for rank in range(outputs.shape[1])], dim=1
        ).flatten(2)  # active, ranks, values
        crossed = logits.detach().argmax(1) != ranked[active, 0]
        step, stuck = _nearest_boundary(outputs.detach(), gradients)
        distances[active[stuck & ~crossed]] = torch.inf
        going = ~crossed & ~stuck
        active = active[going]
        if not len(active):
            break
        moved[active] += step[going].reshape(-1, *inputs.shape[1:])
        distances[active] = moved[active].flatten(1).norm(dim=1)
    return distances


def _nearest_boundary(outputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest step (active, values) to a linearised boundary of the first rank with another, and where no gradient leads to one."""
    slopes = gradients[:, 1:] - gradients[:, :1]  # active, rivals, values
    lengths = slopes.norm(dim=2)  # active, rivals
    gaps = (outputs[:, 1:] - outputs[:, :1]).abs()  # active, rivals
    ratios = torch.where(lengths > 0, gaps / lengths.clamp_min(torch.finfo(torch.float32).tiny), torch.inf)
    shortest, rival = ratios.min(dim=1)
    rows = torch.arange(len(outputs))
    stuck = ~torch.isfinite(shortest)
    scale = torch.where(stuck, 0.0, shortest / lengths[rows, rival].clamp_min(torch.finfo(torch.float32).tiny))
    return scale[:, None] * slopes[rows, rival], stuck
