//! On a GPU, over arrays that hold all parameters one after another: one launch per step, and the norm of all gradients
//! without a round trip to the host.

use crate::cuda::{Buffer, Gpu, Launch, Result, Source, Unit};
use crate::error::{Check, product};

static SOURCE: Source = Source { name: "adamw", text: include_str!("adamw.cu") };
const ENTRIES: [&str; 3] = ["squares", "join", "step"];
const CHECK: Check = Check("adamw");
const THREADS: u32 = 256;
/// Parameters start at multiples of this, and weight decay is a flag per chunk of this size.
pub const CHUNK: usize = 256;

/// Arrays of `count` values, a multiple of [`CHUNK`].
#[derive(Debug, Clone, Copy)]
pub struct Flat<'a> {
    /// Parameters, f32, updated.
    pub w: &'a Buffer,
    /// Gradients, f32.
    pub g: &'a Buffer,
    /// Means of gradients, f32, updated.
    pub m: &'a Buffer,
    /// Means of squared gradients, f32, updated.
    pub v: &'a Buffer,
    /// The parameters in bf16 (=).
    pub copy: Option<&'a Buffer>,
    /// One u8 per [`CHUNK`] values: whether they decay.
    pub decay: &'a Buffer,
    /// One f32 for [`CHUNK`] numbers: factors of the learning rate. None: all are 1.
    pub factors: Option<&'a Buffer>,
    /// How many numbers.
    pub count: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    w: u64,
    g: u64,
    m: u64,
    v: u64,
    copy: u64,
    decay: u64,
    factors: u64,
    hyper: u64,
    norm: u64,
    partial: u64,
    count: i64,
    blocks: i32,
}

/// The norm of `count` f32 gradients into `out`, f32 `[2]` (=): the norm, and 1 if it is finite, else 0.
///
/// # Errors
/// If a size is wrong, or there is too little memory.
pub fn norm(gpu: &Gpu, g: &Buffer, count: usize, out: &Buffer) -> Result<()> {
    check_count(count)?;
    check_bytes("g", g, product(&[4, count]))?;
    check_bytes("out", out, 8)?;
    let blocks = count.div_ceil(4 * THREADS as usize).min(1024);
    let partial = gpu.alloc(8 * blocks.max(1))?;
    let args = Args {
        g: g.address(),
        norm: out.address(),
        partial: partial.address(),
        count: count as i64,
        blocks: blocks as i32,
        ..EMPTY
    };
    // SAFETY: `Args` is laid out as in the source; all arrays lie inside their buffers.
    unsafe {
        gpu.kernel(&SOURCE, "squares", &[])?.launch(Launch::linear(blocks, THREADS), &args)?;
        gpu.kernel(&SOURCE, "join", &[])?.launch(Launch::linear(1, THREADS), &args)
    }
}

/// One step, as [`super::step`], with the gradients first clipped to the norm in `hyper`. `norm` is the result of [`norm`]:
/// if it is not finite, nothing is changed.
///
/// `hyper` f32 `[8]`: lr, β1, β2, ε, weight decay, largest norm (0: none), 1 - β1ᵗ, 1 - β2ᵗ.
///
/// # Errors
/// If a size is wrong.
pub fn step(gpu: &Gpu, flat: Flat<'_>, hyper: &Buffer, norm: &Buffer) -> Result<()> {
    let Flat { w, g, m, v, copy, decay, factors, count } = flat;
    check_count(count)?;
    for (name, buffer) in [("w", w), ("g", g), ("m", m), ("v", v)] {
        check_bytes(name, buffer, product(&[4, count]))?;
    }
    check_bytes("decay", decay, count / CHUNK)?;
    if let Some(factors) = factors {
        check_bytes("factors", factors, 4 * (count / CHUNK))?;
    }
    check_bytes("hyper", hyper, 32)?;
    check_bytes("norm", norm, 8)?;
    if let Some(copy) = copy {
        check_bytes("copy", copy, product(&[2, count]))?;
    }
    let args = Args {
        w: w.address(),
        g: g.address(),
        m: m.address(),
        v: v.address(),
        copy: copy.map_or(0, Buffer::address),
        decay: decay.address(),
        factors: factors.map_or(0, Buffer::address),
        hyper: hyper.address(),
        norm: norm.address(),
        count: count as i64,
        ..EMPTY
    };
    let blocks = count.div_ceil(4 * THREADS as usize).min(8 * gpu.multiprocessors());
    // SAFETY: `Args` is laid out as in the source; all arrays lie inside their buffers.
    unsafe { gpu.kernel(&SOURCE, "step", &[])?.launch(Launch::linear(blocks, THREADS), &args) }
}

const EMPTY: Args =
    Args { w: 0, g: 0, m: 0, v: 0, copy: 0, decay: 0, factors: 0, hyper: 0, norm: 0, partial: 0, count: 0, blocks: 0 };

fn check_count(count: usize) -> crate::Result<()> {
    let wanted = || format!("a multiple of {CHUNK}");
    CHECK.that(count.is_multiple_of(CHUNK), "count", wanted, || count.to_string())
}

fn check_bytes(name: &'static str, buffer: &Buffer, wanted: usize) -> crate::Result<()> {
    let got = || format!("{}", buffer.bytes());
    CHECK.that(buffer.bytes() >= wanted, name, || format!("{wanted} bytes at least"), got)
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    vec![Unit { source: &SOURCE, entries: &ENTRIES, defines: Vec::new() }]
}
