//! On a GPU: a kernel whose blocks are all resident and wait for each other between stages. One for some rows
//! (`mamba1_step.cu`), and one for one row, whose blocks wait half as often (`one_row.cu`).

use std::sync::Arc;

use crate::DType;
use crate::cuda::{Buffer, Gpu, Launch, Mat, Pod, Result, Unit};
use crate::error::Check;

mod one_row;
mod rows;

use one_row::OneRow;
use rows::Rows;

const CHECK: Check = Check("mamba1_step");
/// Warps that compute; two more fetch weights, and ask for what is small.
const WARPS: usize = 16;
const THREADS: u32 = 32 * (WARPS as u32 + 2);
/// Dynamic shared memory of a block on every device since sm_80; sm_90 has 64 KiB more.
const SHARED: usize = 163 << 10;
/// Of that, what says which pieces of weights have come, and where they are.
const BARRIERS: usize = 32 * (8 + 8 + 4 + 4);
/// And a layer's addresses.
const LAYER: usize = size_of::<RawLayer>();

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows, each with its own state.
    pub b: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Channels of a mixer.
    pub ed: usize,
    /// State numbers a channel.
    pub n: usize,
    /// Rank of Δ.
    pub r: usize,
    /// Taps of the convolution.
    pub k: usize,
    /// Vocabulary.
    pub v: usize,
}

/// Shared memory of a block, in bytes: as much as the device has, so that weights come far ahead.
fn room(gpu: &Gpu) -> usize {
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
    /// The last inputs of the convolution, `[b, k - 1, ed]`; moved on.
    pub conv_state: Mat<'a>,
    /// `[b, ed, n]`; moved on.
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

/// The step of a model, ready to be launched again and again.
///
/// It works on the memory that it was made with: the model's, the states' and the tokens'.
#[derive(Debug)]
pub struct Step {
    gpu: Gpu,
    form: Form,
    logits: Buffer,
    _ids: Arc<Buffer>,
}

#[derive(Debug)]
enum Form {
    Rows(Rows),
    OneRow(OneRow),
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RawLayer {
    norm: u64,
    in_proj: u64,
    conv: u64,
    conv_bias: u64,
    x_proj: u64,
    dt_proj: u64,
    dt_bias: u64,
    a_log: u64,
    skip: u64,
    out_proj: u64,
    conv_state: u64,
    ssm_state: u64,
}

/// Whether a model of these sizes can be stepped so: up to 32 rows that fit into shared memory, sizes that tensor cores
/// take without a rest.
pub fn suits(gpu: &Gpu, dims: Dims) -> bool {
    let Dims { b, d, ed, n, r, k, v } = dims;
    let whole = d.is_multiple_of(32) && ed.is_multiple_of(32) && r.is_multiple_of(8) && n.is_multiple_of(4);
    let some = [b, d, ed, n, r, k, v].iter().all(|&size| size > 0);
    let small = [2 * ed * d, v * d, v * b, b * ed * n, b * ed * k].iter().all(|&size| i32::try_from(size).is_ok());
    whole && some && small && rows::suits(gpu, dims)
}

impl Step {
    /// Prepares the step; `ids` `[b]` u32 holds the tokens that are read, then those that were chosen.
    ///
    /// # Errors
    /// If sizes do not suit (see [`suits`]), shapes or formats differ, or there is too little memory.
    pub fn new(gpu: Gpu, dims: Dims, model: &Model<'_>, ids: &Arc<Buffer>) -> Result<Self> {
        let Dims { b, d, v, .. } = dims;
        CHECK.that(
            suits(&gpu, dims),
            "sizes",
            || "sizes that one launch can work on".into(),
            || format!("{dims:?}"),
        )?;
        CHECK.that(ids.bytes() >= 4 * b, "ids", || format!("{b} ids"), || (ids.bytes() / 4).to_string())?;
        for (name, m) in [("embedding", model.embedding), ("head", model.head)] {
            matrix(name, m, (v, d))?;
        }
        vector("norm", model.norm, d)?;
        let layers = model.layers.iter().map(|layer| raw_layer(dims, layer)).collect::<Result<Vec<_>>>()?;
        let logits = gpu.alloc(b * v * 4)?;
        let form = if one_row::suits(&gpu, layers.len(), dims) {
            Form::OneRow(OneRow::new(gpu, dims, model, layers, ids.address(), logits.address())?)
        } else {
            Form::Rows(Rows::new(gpu, dims, model, &layers, ids.address(), logits.address())?)
        };
        Ok(Self { gpu, form, logits, _ids: ids.clone() })
    }

    /// Reads a token of every row, moves the states on and chooses the likeliest next tokens; does not wait. A row whose
    /// logits are no numbers gets the largest u32.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        let shared = u32::try_from(room(&self.gpu)).unwrap_or(u32::MAX);
        let launch = Launch { shared, ..Launch::linear(self.gpu.multiprocessors(), THREADS) };
        match &self.form {
            Form::Rows(rows) => rows.launch(&self.gpu, launch),
            Form::OneRow(row) => row.launch(&self.gpu, launch),
        }
    }

    /// Logits `[b v]` f32 of the last launch.
    pub fn logits(&self) -> &Buffer {
        &self.logits
    }
}

// SAFETY: addresses, without padding.
unsafe impl Pod for RawLayer {}

fn raw_layer(Dims { b, d, ed, n, r, k, .. }: Dims, layer: &Layer<'_>) -> Result<RawLayer> {
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
fn matrix(name: &'static str, m: Mat<'_>, shape: (usize, usize)) -> Result<()> {
    CHECK.shape(name, m.shape(), shape)?;
    let fits = m.dtype == DType::Bf16 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "bf16, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

fn vector(name: &'static str, m: Mat<'_>, len: usize) -> Result<()> {
    CHECK.len(name, m.len(), len)?;
    let fits = m.dtype == DType::F32 && m.is_contiguous() && m.address().is_multiple_of(16);
    CHECK.that(fits, name, || "f32, without gaps, 16-byte aligned".into(), || format!("{m:?}"))?;
    Ok(())
}

fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [rows::units(), one_row::units()].concat()
}
