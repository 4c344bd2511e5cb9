#!/usr/bin/env python3
"""Golden folders of flash-linear-attention's models: reference_fla.py OUT [NAME...].

Needs torch, triton, transformers and flash-linear-attention.

The classes are the library's own, from configuration to head; its Triton kernels, which need a GPU, are replaced by what they
compute: a recurrence over positions, RMSNorm, SwiGLU, rotary positions and softmax attention in plain PyTorch, in float64.
The recurrence is compared with the naive forms that the library has beside its kernels.
"""
import pathlib
import sys

import torch
import torch.nn.functional as F

import fla
import transformers
from fla.layers import attn, gla, hgrn2, linear_attn, mamba2, multiscale_retention
from fla.models.gla import GLAConfig, GLAForCausalLM
from fla.models.hgrn2 import HGRN2Config, HGRN2ForCausalLM
from fla.models.linear_attn import LinearAttentionConfig, LinearAttentionForCausalLM
from fla.models.mamba2 import Mamba2Config, Mamba2ForCausalLM
from fla.models.retnet import RetNetConfig, RetNetForCausalLM
from fla.modules import FusedRMSNormGated, RMSNorm, RotaryEmbedding
from fla.modules import mlp as fla_mlp
from fla.modules.layernorm_gated import RMSNormGated
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from golden_folder import record, rms


def norm(self, x, residual=None, prenorm=False, residual_in_fp32=False):
    x = x if residual is None else x + residual
    y = rms(x, self.weight, self.eps)
    return (y, x) if prenorm else y


def norm_then_gate(self, x, g, residual=None, prenorm=False, residual_in_fp32=False):
    return rms(x, self.weight, self.eps) * F.silu(g)


def gated_norm(self, x, z=None):
    groups = x.shape[-1] // self.group_size
    if self.norm_before_gate:
        return rms(x, self.weight, self.eps, groups) * F.silu(z)
    return rms(x * F.silu(z), self.weight, self.eps, groups)


def rotate(self, q, k, seqlen_offset=0, max_seqlen=None, cu_seqlens=None):
    assert seqlen_offset == 0 and not self.interleaved and self.scale is None
    frequencies = self.base ** -(torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
    angles = torch.outer(torch.arange(q.shape[1], dtype=torch.float64), frequencies)[None, :, None]

    def turned(x):
        a, b = x[..., : self.dim // 2], x[..., self.dim // 2 : self.dim]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    return turned(q), turned(k)


def attend(q, k, v, causal, window_size):
    l, (left, _) = q.shape[1], window_size
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    distance = torch.arange(l)[:, None] - torch.arange(l)
    seen = (distance >= 0) & ((distance <= left) | (left < 0))
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=seen).transpose(1, 2)


def recurrence(q, k, v, decay=None, scale=None):
    """S_t = exp(decay_t) S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t scale. [b l h k], [b l h k], [b l h v], [b l h k] -> [b l h v]"""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outputs, state = [], torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype)
    for t in range(q.shape[1]):
        if decay is not None:
            state = state * decay[:, t].exp()[..., None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((state * (q[:, t] * scale)[..., None]).sum(-2))
    return torch.stack(outputs, 1)


def by_key(q, k, v, gk=None, g=None, **_):
    return recurrence(q, k, v, gk if gk is not None else g), None


def retention(q, k, v, **_):
    heads = torch.arange(q.shape[2], dtype=torch.float64)
    return recurrence(q, k, v, (1 - 2.0 ** (-5 - heads)).log()[None, None, :, None].expand(q.shape)), None


def without_decay(q, k, v, normalize=False, **_):
    o = recurrence(q, k, v)
    if normalize:
        o = o / ((q * q.shape[-1] ** -0.5 * k.cumsum(1)).sum(-1, keepdim=True) + 1e-10)
    return o, None


def patch():
    RMSNorm.forward, FusedRMSNormGated.forward, RMSNormGated.forward = norm, norm_then_gate, gated_norm
    RotaryEmbedding.forward, attn.flash_attn_func = rotate, attend
    fla_mlp.swiglu_linear = lambda gate, y, weight, bias: F.linear(F.silu(gate) * y, weight, bias)
    hgrn2.swish, mamba2.ACT2FN = F.silu, {"silu": F.silu}
    torch.Tensor.float = torch.Tensor.double  # Mamba-2 has casts in its plain form.
    hgrn2.rms_norm_linear = lambda x, weight, bias, w, b: F.linear(rms(x, weight, 1e-6), w, b)
    for module in (gla, hgrn2):
        module.fused_recurrent_gla = module.chunk_gla = by_key
    multiscale_retention.fused_recurrent_retention = multiscale_retention.chunk_retention = retention
    linear_attn.fused_recurrent_linear_attn = linear_attn.chunk_linear_attn = without_decay


def check_recurrence():
    torch.manual_seed(1)
    q, k, v, decay = (torch.randn(2, 11, 3, 4) for _ in range(4))
    decay = F.logsigmoid(decay)
    want = naive_recurrent_gla(q, k, v, decay)[0]
    assert (recurrence(q, k, v, decay) - want).abs().max() < 1e-5
    for normalize in (False, True):
        q, k = q.abs(), k.abs()
        want = naive_recurrent_linear_attn(q, k, v, normalize=normalize)[0]
        assert (without_decay(q, k, v, normalize)[0] - want).abs().max() < 1e-5


SMALL = dict(hidden_size=32, num_hidden_layers=3, vocab_size=71, intermediate_size=40)
MODELS = {
    "gla": (
        GLAForCausalLM,
        GLAConfig(
            **SMALL, num_heads=2, attn=dict(layers=[1], num_heads=4, num_kv_heads=2, qkv_bias=True, window_size=16)
        ),
    ),
    "retnet": (RetNetForCausalLM, RetNetConfig(**SMALL, num_heads=2)),
    "hgrn2": (HGRN2ForCausalLM, HGRN2Config(**{**SMALL, "num_hidden_layers": 4}, expand_ratio=8)),
    "linear_attn": (
        LinearAttentionForCausalLM,
        LinearAttentionConfig(
            **SMALL, num_heads=2, attn=[dict(layers=[0], num_heads=2), dict(layers=[2], num_heads=4, rope_theta=5e3)]
        ),
    ),
    "fla-mamba2": (
        Mamba2ForCausalLM,
        # One group: with several its plain form pairs heads and groups otherwise than its step and its kernels.
        Mamba2Config(
            hidden_size=32, num_hidden_layers=2, vocab_size=71, head_dim=16, n_groups=1, state_size=16, D_has_hdim=True,
            norm_before_gate=True, use_bias=True, dt_limit=(0.02, 0.3), chunk_size=16,
        ),
    ),
}


def main():
    out = pathlib.Path(sys.argv[1])
    check_recurrence()
    patch()
    for seed, (name, (cls, config)) in enumerate(MODELS.items(), 20):
        if name in (sys.argv[2:] or MODELS):
            torch.manual_seed(seed)
            config.architectures = [cls.__name__]
            versions = [("flash-linear-attention", fla), ("transformers", transformers), ("torch", torch)]
            made_by = ", ".join(f"{library} {package.__version__}" for library, package in versions)
            model = cls(config).double()
            logits = lambda tokens, model=model: model(tokens, use_cache=False).logits
            metadata = {"class": cls.__name__, "made_by": made_by, "seed": str(seed)}
            record(out / name, model, logits, config.vocab_size, metadata)
            config.save_pretrained(out / name)


if __name__ == "__main__":
    main()
