//! Sizes, and the kernel arguments of a model: addresses of weights and states.

use crate::DType;
use crate::cuda::{Held, Mat, Pod, Result};
use crate::error::{Check, product};
use crate::resident;

pub(super) const CHECK: Check = Check("mamba2_step");

/// Shared memory for a layer's addresses.
pub(super) const LAYER: usize = size_of::<RawLayer>();

/// Sizes, and what all layers have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dims {
    /// Rows, each with its own state.
    pub b: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Channels of a mixer.
    pub ed: usize,
    /// Heads.
    pub h: usize,
    /// Rows of a head's state.
    pub n: usize,
    /// Groups of heads with one B and C.
    pub g: usize,
    /// Taps of the convolution.
    pub k: usize,
    /// Vocabulary.
    pub v: usize,
    /// Whether D has a value for each channel.
    pub skip_per_channel: bool,
    /// Between the state space model and out_proj.
    pub gate: Gate,
    /// Added to the mean squares of the gated norm.
    pub gate_eps: f32,
    /// Of Δ, least and most.
    pub limits: (f32, f32),
    /// Of the states in memory: f32, or bf16 if they may be rounded after every step.
    pub state: DType,
}

/// Where the gate silu(z) is; the norm is over all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// There is no norm.
    Plain = 0,
    /// Before the norm.
    BeforeNorm = 1,
    /// After the norm.
    AfterNorm = 2,
}

impl Dims {
    /// Channels of the convolution: x, B and C.
    pub(super) fn conv(self) -> usize {
        self.ed + 2 * self.g * self.n
    }

    /// Rows of in_proj: z, x, B, C and Δ.
    pub(super) fn rows(self) -> usize {
        self.ed + self.conv() + self.h
    }

    pub(super) fn skips(self) -> usize {
        if self.skip_per_channel { self.ed } else { self.h }
    }

    /// Whether heads and groups divide the channels, vectors divide the rows, and 32 bits hold offsets.
    pub(super) fn is_whole(self) -> bool {
        let Self { b, d, ed, h, n, g, k, v, .. } = self;
        let some = [b, d, ed, h, n, g, k, v].iter().all(|&size| size > 0);
        let all = [&[self.rows(), d][..], &[v, d], &[v, b], &[b, ed, n], &[b, self.conv(), k]];
        let small = all.iter().all(|sizes| i32::try_from(product(sizes)).is_ok());
        some && small
            && ed.is_multiple_of(h)
            && (ed / h).is_multiple_of(4)
            && h.is_multiple_of(g)
            && d.is_multiple_of(8)
    }
}

/// The parameters and the state of one layer. Matrices of products are bf16, everything else f32, but for the states themselves.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Of the norm, `[d]`.
    pub norm: Mat<'a>,
    /// z, x, B, C, Δ: `[2 ed + 2 g n + h, d]`
    pub in_proj: Mat<'a>,
    /// `[(ed + 2 g n) k]`
    pub conv: Mat<'a>,
    /// `[ed + 2 g n]`
    pub conv_bias: Option<Mat<'a>>,
    /// `[h]`
    pub dt_bias: Mat<'a>,
    /// `[h]`
    pub a_log: Mat<'a>,
    /// D, `[h]` or `[ed]`.
    pub skip: Mat<'a>,
    /// Of the gated norm, `[ed]`.
    pub gated_norm: Option<Mat<'a>>,
    /// `[d, ed]`
    pub out_proj: Mat<'a>,
    /// The last inputs of the convolution, `[b, k - 1, ed + 2 g n]`; updated.
    pub conv_state: Mat<'a>,
    /// `[b, h, n, p]`, of the dtype in [`Dims`]; updated.
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
            let Layer { norm, in_proj, conv, conv_bias, dt_bias, a_log, skip, gated_norm, .. } = *layer;
            let Layer { out_proj, conv_state, ssm_state, .. } = *layer;
            let always = [norm, in_proj, conv, dt_bias, a_log, skip, out_proj, conv_state, ssm_state];
            always.into_iter().chain(conv_bias).chain(gated_norm)
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
    pub(super) dt_bias: u64,
    pub(super) a_log: u64,
    pub(super) skip: u64,
    pub(super) gated_norm: u64,
    pub(super) out_proj: u64,
    pub(super) conv_state: u64,
    pub(super) ssm_state: u64,
}

// SAFETY: addresses, without padding.
unsafe impl Pod for RawLayer {}

pub(super) fn raw_layer(dims: Dims, layer: &Layer<'_>) -> Result<RawLayer> {
    let Dims { b, d, ed, h, n, k, gate, .. } = dims;
    matrix("in_proj", layer.in_proj, (dims.rows(), d))?;
    matrix("out_proj", layer.out_proj, (d, ed))?;
    vector("norm", layer.norm, d)?;
    vector("conv", layer.conv, dims.conv() * k)?;
    for (name, m) in [("dt_bias", layer.dt_bias), ("A_log", layer.a_log)] {
        vector(name, m, h)?;
    }
    if let Some(bias) = layer.conv_bias {
        vector("conv_bias", bias, dims.conv())?;
    }
    vector("D", layer.skip, dims.skips())?;
    if let Some(weight) = layer.gated_norm {
        vector("gated_norm", weight, ed)?;
    }
    let normed = layer.gated_norm.is_some() == (gate != Gate::Plain);
    CHECK.that(normed, "gated_norm", || format!("{gate:?}"), || format!("{:?}", layer.gated_norm))?;
    vector("conv_state", layer.conv_state, b * (k - 1) * dims.conv())?;
    CHECK.len("ssm_state", layer.ssm_state.len(), b * ed * n)?;
    let fits = layer.ssm_state.dtype() == dims.state
        && layer.ssm_state.is_contiguous()
        && layer.ssm_state.address().is_multiple_of(16);
    let wanted = || format!("{}, without gaps, 16-byte aligned", dims.state);
    CHECK.that(fits, "ssm_state", wanted, || format!("{:?}", layer.ssm_state))?;
    let optional = |m: Option<Mat<'_>>| m.as_ref().map_or(0, Mat::address);
    Ok(RawLayer {
        norm: layer.norm.address(),
        in_proj: layer.in_proj.address(),
        conv: layer.conv.address(),
        conv_bias: optional(layer.conv_bias),
        dt_bias: layer.dt_bias.address(),
        a_log: layer.a_log.address(),
        skip: layer.skip.address(),
        gated_norm: optional(layer.gated_norm),
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
