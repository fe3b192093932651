"""Muon for matrices and convolutions, AdamW for the rest, with one learning rate for both."""
import torch


@torch.no_grad()
def orthogonal(g, steps=5):
    """The nearest orthogonal matrix to each of a batch of matrices, by the Newton-Schulz iteration of Keller Jordan's Muon."""
    x = g.bfloat16(); tall = x.shape[-2] > x.shape[-1]
    if tall: x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    def __init__(self, named, lr, decay=.01, momentum=.95, betas=(.9, .99), muon=True):
        plain = lambda n, p: p.ndim < 2 or any(k in n for k in ("embedding.weight", "conv_in", "conv_out", "quant_conv"))
        self.decay, self.momentum = decay, momentum
        self.matrices = [p for n, p in named if muon and not plain(n, p)]
        self.adam = torch.optim.AdamW([p for n, p in named if not (muon and not plain(n, p))], lr, betas=betas, weight_decay=decay, fused=True)
        self.groups = {}
        for p in self.matrices: self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.speed = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr):
        for g in self.adam.param_groups: g["lr"] = lr
        self.adam.step()
        for (m, n), ps in self.groups.items():
            grad = torch.stack([p.grad.reshape(m, n) for p in ps]); v = self.speed[m, n]
            v.lerp_(grad, 1 - self.momentum)
            update = orthogonal(grad.lerp_(v, self.momentum)) * (.2 * max(m, n) ** .5)   # as large as AdamW's usual step
            for p, u in zip(ps, update): p.mul_(1 - lr * self.decay).add_(u.view(p.shape), alpha=-lr)

    def zero_grad(self):
        self.adam.zero_grad(set_to_none=True)
        for p in self.matrices: p.grad = None

    def state_dict(self):
        return dict(adam=self.adam.state_dict(), speed=self.speed)

    def load_state_dict(self, s):
        self.adam.load_state_dict(s["adam"]); [self.speed[k].copy_(v) for k, v in s["speed"].items()]
