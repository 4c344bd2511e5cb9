"""Writes a golden folder from a model of float64: its weights, and what it computes with them (golden/README.md has the list)."""
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


def rms(x, weight, eps, groups=1):
    parts = x.unflatten(-1, (groups, -1))
    y = (parts * torch.rsqrt(parts.pow(2).mean(-1, keepdim=True) + eps)).flatten(-2)
    return y if weight is None else y * weight


def draw(model):
    """Weights large enough that every path matters, rounded to what float32 holds."""
    for name, param in model.named_parameters():
        value = torch.randn(param.shape, dtype=torch.float64)
        if name.endswith(("A_log", "dt_bias")):
            value = 0.5 * value - (2.0 if name.endswith("dt_bias") else 0.0)
        elif "norm" in name or name.endswith(".D"):
            value = 1 + 0.2 * value
        elif param.dim() == 1 or name.endswith(("embeddings.weight", "embedding.weight")):
            value = 0.5 * value
        elif not name.endswith("lower_bounds"):
            value = value * 1.2 / math.sqrt(param.shape[-1])
        param.data = value.to(torch.float32).double()


def record(folder, model, logits_of, vocab_size, metadata):
    """`logits_of` maps tokens [b l] to logits [b l v]."""
    draw(model.train())
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.to(torch.float32).clone() for key, value in model.state_dict().items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    def nll_of(tokens):
        logits = logits_of(tokens)
        return logits, F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")

    tokens = torch.randint(0, vocab_size, (2, 53))
    logits, nll = nll_of(tokens)
    nll.mean().backward()
    golden = {"tokens": tokens.int(), "logits": logits, "nll": nll, "loss": nll.mean()[None]}
    golden |= {f"grad.{key}": param.grad for key, param in model.named_parameters()}
    text, lead = tokens[:1, :8], math.inf
    golden["greedy.prompt"] = text.int()
    with torch.no_grad():
        for _ in range(32):
            best = logits_of(text)[0, -1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            text = torch.cat([text, best.indices[None, :1]], 1)
    golden["greedy.tokens"] = text[0, 8:].int()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(10):
        optimiser.zero_grad()
        loss = nll_of(tokens)[1].mean()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimiser.step()
    golden["train.loss"], golden["train.grad_norm"] = torch.tensor(losses), torch.tensor(norms)
    detached = {key: value.detach().contiguous() for key, value in golden.items()}
    detached = {key: value.to(torch.float32) if value.is_floating_point() else value for key, value in detached.items()}
    notes = {
        "note": "float64, kernels replaced by plain PyTorch; grad.* under the names of model.safetensors",
        "greedy": f"whole sequence anew for each token, least lead of the best logit {lead:.2g}",
        "train": "AdamW lr 1e-3 betas 0.9,0.95 eps 1e-8 weight_decay 0.1 on every parameter, clip_grad_norm 1.0, same batch ten "
        "times; train.loss and train.grad_norm are before the step",
    }
    save_file(detached, folder / "golden.safetensors", metadata=metadata | notes)
    print(folder.name, f"loss {golden['loss'].item():.4f}, least lead {lead:.2g}, last loss {losses[-1]:.4f}", flush=True)
