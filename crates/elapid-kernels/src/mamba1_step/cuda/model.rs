//! Sizes, and the kernel arguments of a model: addresses of weights and states.

use crate::DType;
use crate::cuda::{Gpu, Held, Mat, Pod, Result};
use crate::error::Check;

pub(super) const CHECK: Check = Check("mamba1_step");

/// Computing warps; two more copy weights and prefetch small parameters.
pub(super) const WARPS: usize = 16;

/// Dynamic shared memory of a block on every device since sm_80; sm_90 has 64 KiB more.
pub(super) const SHARED: usize = 163 << 10;

/// Part of it for tracking which pieces of weights have arrived, and where they are.
pub(super) const BARRIERS: usize = 32 * (8 + 8 + 4 + 4);

/// And a layer's addresses.
pub(super) const LAYER: usize = size_of::<RawLayer>();

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows, each with its own state.
    pub b: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Channels of a mixer.
    pub ed: usize,
    /// State elements per channel.
    pub n: usize,
    /// Rank of Δ.
    pub r: usize,
    /// Taps of the convolution.
    pub k: usize,
    /// Vocabulary.
    pub v: usize,
}

/// Shared memory of a block in bytes: as much as the device has, so that weights are copied far ahead.
pub(super) fn room(gpu: &Gpu) -> usize {
    if gpu.capability() >= (9, 0) { SHARED + (64 << 10) } else { SHARED }
}

/// The parameters and the state of one layer. Matrices of products are bf16, everything else f32.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Of the norm, `[d]`.
    pub norm: Mat<'a>,
    /// `[2 ed, d]`
    pub in_proj: Mat<'a>,
    /// `[ed k]`
    pub conv: Mat<'a>,
    /// `[ed]`
    pub conv_bias: Option<Mat<'a>>,
    /// `[r + 2 n, ed]`
    pub x_proj: Mat<'a>,
    /// `[ed, r]`
    pub dt_proj: Mat<'a>,
    /// `[ed]`
    pub dt_bias: Mat<'a>,
    /// `[ed n]`
    pub a_log: Mat<'a>,
    /// D, `[ed]`.
    pub skip: Mat<'a>,
    /// `[d, ed]`
    pub out_proj: Mat<'a>,
    /// The last inputs of the convolution, `[b, k - 1, ed]`; updated.
    pub conv_state: Mat<'a>,
    /// `[b, ed, n]`; updated.
    pub ssm_state: Mat<'a>,
}

/// A model.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// From first to last.
    pub layers: Vec<Layer<'a>>,
    /// `[v, d]`
    pub embedding: Mat<'a>,
    /// Of the last norm, `[d]`.
    pub norm: Mat<'a>,
    /// `[v, d]`
    pub head: Mat<'a>,
    /// Added to mean squares.
    pub eps: f32,
}

impl Model<'_> {
    /// What it lies in.
    pub(super) fn memory(&self) -> impl Iterator<Item = Held> {
        let layers = self.layers.iter().flat_map(|layer| {
            let Layer { norm, in_proj, conv, conv_bias, x_proj, dt_proj, dt_bias, a_log, skip, .. } = *layer;
            let Layer { out_proj, conv_state, ssm_state, .. } = *layer;
            let always = [norm, in_proj, conv, x_proj, dt_proj, dt_bias, a_log, skip, out_proj, conv_state, ssm_state];
            always.into_iter().chain(conv_bias)
        });
        layers.chain([self.embedding, self.norm, self.head]).map(|m| m.memory())
    }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct RawLayer {
    pub(super) norm: u64,
    pub(super) in_proj: u64,
    pub(super) conv: u64,
    pub(super) conv_bias: u64,
    pub(super) x_proj: u64,
    pub(super) dt_proj: u64,
    pub(super) dt_bias: u64,
    pub(super) a_log: u64,
    pub(super) skip: u64,
    pub(super) out_proj: u64,
    pub(super) conv_state: u64,
    pub(super) ssm_state: u64,
}

// SAFETY: addresses, without padding.
unsafe impl Pod for RawLayer {}

pub(super) fn raw_layer(Dims { b, d, ed, n, r, k, .. }: Dims, layer: &Layer<'_>) -> Result<RawLayer> {
    matrix("in_proj", layer.in_proj, (2 * ed, d))?;
    matrix("x_proj", layer.x_proj, (r + 2 * n, ed))?;
    matrix("dt_proj", layer.dt_proj, (ed, r))?;
    matrix("out_proj", layer.out_proj, (d, ed))?;
    vector("norm", layer.norm, d)?;
    vector("conv", layer.conv, ed * k)?;
    for (name, m) in [("dt_bias", layer.dt_bias), ("D", layer.skip)] {
        vector(name, m, ed)?;
    }
    if let Some(bias) = layer.conv_bias {
        vector("conv_bias", bias, ed)?;
    }
    vector("A_log", layer.a_log, ed * n)?;
    vector("conv_state", layer.conv_state, b * (k - 1) * ed)?;
    vector("ssm_state", layer.ssm_state, b * ed * n)?;
    Ok(RawLayer {
        norm: layer.norm.address(),
        in_proj: layer.in_proj.address(),
        conv: layer.conv.address(),
        conv_bias: layer.conv_bias.as_ref().map_or(0, Mat::address),
        x_proj: layer.x_proj.address(),
        dt_proj: layer.dt_proj.address(),
        dt_bias: layer.dt_bias.address(),
        a_log: layer.a_log.address(),
        skip: layer.skip.address(),
        out_proj: layer.out_proj.address(),
        conv_state: layer.conv_state.address(),
        ssm_state: layer.ssm_state.address(),
    })
}

/// A weight of a product: bf16 rows without gaps, aligned.
pub(super) fn matrix(name: &'static str, m: Mat<'_>, shape: (usize, usize)) -> Result<()> {
    CHECK.shape(name, m.shape(), shape)?;
    let fits = m.dtype() == DType::Bf16 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "bf16, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

pub(super) fn vector(name: &'static str, m: Mat<'_>, len: usize) -> Result<()> {
    CHECK.len(name, m.len(), len)?;
    let fits = m.dtype() == DType::F32 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "f32, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

pub(super) fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}
