//! On a GPU: a block for each mode.

use super::args::{Args, Form, GREATEST, Grads};
use crate::DType;
use crate::cuda::{Define, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::selective_scan::Discretisation;

static SOURCE: Source = Source { name: "discretise", text: include_str!("discretise.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];
/// `THREADS` of the source.
const THREADS: u32 = 128;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    params: [u64; 3],
    dparams: [u64; 3],
    a: u64,
    b: RawMat,
    db: RawMat,
    out: RawMat,
    n: i64,
    d: i64,
    rescale: f64,
    greatest: f64,
}

impl Raw {
    fn new(form: Form, args: &Args<Mat<'_>>, a: u64, out: RawMat) -> Self {
        let (rows, d) = args.b.shape();
        let (rescale, clip) = match form {
            Form::S5 { rescale, clip, .. } => (rescale, clip),
            Form::Lru => (1.0, false),
        };
        Self {
            params: args.params.map(|x| x.address()),
            dparams: [0; 3],
            a,
            b: args.b.raw(),
            db: RawMat::NULL,
            out,
            n: (rows / 2) as i64,
            d: d as i64,
            rescale: rescale.into(),
            greatest: if clip { GREATEST } else { f64::INFINITY },
        }
    }
}

pub(super) fn forward(form: Form, args: &Args<Mat<'_>>, a: MatMut<'_>, b: MatMut<'_>) -> Result<()> {
    launch("forward", form, args, b.dtype(), &Raw::new(form, args, a.as_mat().address(), b.raw()))
}

pub(super) fn backward(
    form: Form,
    args: &Args<Mat<'_>>,
    da: Mat<'_>,
    db: Mat<'_>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let dparams = grads.params.map(|d| d.as_mat().address());
    let raw = Raw { dparams, db: grads.db.raw(), ..Raw::new(form, args, da.address(), db.raw()) };
    launch("backward", form, args, db.dtype(), &raw)
}

fn launch(entry: &'static str, form: Form, args: &Args<Mat<'_>>, dtype: DType, raw: &Raw) -> Result<()> {
    let (gpu, n) = (args.b.gpu(), args.b.rows() / 2);
    if n == 0 {
        return Ok(());
    }
    let kernel = gpu.kernel(&SOURCE, entry, &defines(form, dtype))?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and dtypes, and vectors have no gaps.
    unsafe { kernel.launch(Launch::linear(n.min(64 * gpu.multiprocessors()), THREADS), raw) }
}

fn defines(form: Form, dtype: DType) -> Vec<Define> {
    let rule = match form {
        Form::S5 { rule: Discretisation::ExpEuler, .. } => 0,
        Form::S5 { rule: Discretisation::Zoh, .. } => 1,
        Form::S5 { rule: Discretisation::Bilinear, .. } => 2,
        Form::Lru => 3,
    };
    vec![Define::dtype("T", dtype), Define::new("RULE", rule)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let s5 = |rule| Form::S5 { rule, rescale: 1.0, clip: false };
    let forms = || Discretisation::ALL.map(s5).into_iter().chain([Form::Lru]);
    let of =
        |dtype| forms().map(move |form| Unit { source: &SOURCE, entries: &ENTRIES, defines: defines(form, dtype) });
    [DType::F32, DType::Bf16].into_iter().flat_map(of).collect()
}
