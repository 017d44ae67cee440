"""The mixtures' own expectation maximisation beside that of scikit-learn."""

from __future__ import annotations

import pytest
import torch

from qgpo.exact import GaussianMixture, draw_problem
from qgpo.gaussians import FittedMixture

mixture = pytest.importorskip("sklearn.mixture", reason="needs scikit-learn (extra: images)")


@pytest.mark.parametrize(("dim", "components"), [(2, 8), (8, 8), (8, 16)])
def test_an_unweighted_fit_reaches_scikit_learn_s_likelihood(dim, components):
    q = draw_problem(50, dim).q
    x, unseen = (q.sample(4_000, torch.Generator().manual_seed(i))[0] for i in (0, 1))
    mean, std = x.mean(dim=0), x.std(dim=0)
    x, unseen = ((some - mean) / std for some in (x, unseen))
    own = FittedMixture(dim, components).double()
    own.fit(x, torch.Generator().manual_seed(0))
    covariances = own.axes @ torch.diag_embed(own.variances) @ own.axes.mT
    fitted = GaussianMixture(own.log_weights.exp(), own.means, covariances)
    one = torch.ones(len(unseen), dtype=torch.float64)
    found = float(fitted.log_density(unseen, one, torch.zeros_like(one)).mean())
    other = mixture.GaussianMixture(components, init_params="k-means++", random_state=0)
    assert found > other.fit(x.numpy()).score(unseen.numpy()) - 0.02
