//! Sizes, and the kernel arguments of a model: addresses of weights and states.

use crate::cuda::{Held, Mat, Pod, Result};
use crate::error::Check;
use crate::resident;

pub(super) const CHECK: Check = Check("mamba1_step");

/// Shared memory for a layer's addresses.
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

pub(super) fn matrix(name: &'static str, m: Mat<'_>, shape: (usize, usize)) -> Result<()> {
    resident::matrix(CHECK, name, m, shape)
}

pub(super) fn vector(name: &'static str, m: Mat<'_>, len: usize) -> Result<()> {
    resident::vector(CHECK, name, m, len)
}
