//! On a GPU: a thread for each column.

use crate::cuda::{Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "cumulative_softmax", text: include_str!("cumulative_softmax.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    p: RawMat,
    y: RawMat,
    dp: RawMat,
    row: i64,
    rows: i64,
    cols: i64,
}

pub(super) fn forward(i: usize, p: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    run("forward", i, p, y.as_mat(), None)
}

pub(super) fn backward(i: usize, p: Mat<'_>, dy: Mat<'_>, dp: MatMut<'_>) -> Result<()> {
    run("backward", i, p, dy, Some(dp.as_mat()))
}

fn run(entry: &'static str, i: usize, p: Mat<'_>, y: Mat<'_>, dp: Option<Mat<'_>>) -> Result<()> {
    if p.is_empty() {
        return Ok(());
    }
    let (rows, cols) = (p.rows(), p.cols());
    let raw = Raw {
        p: p.raw(),
        y: y.raw(),
        dp: dp.map_or(RawMat::NULL, |dp| dp.raw()),
        row: i as i64,
        rows: rows as i64,
        cols: cols as i64,
    };
    let kernel = p.gpu().kernel(&SOURCE, entry, &[])?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked that p and dp have `rows` rows of `cols` f32, and that y is `cols`
    // f32 without gaps.
    unsafe { kernel.launch(Launch::linear(cols.div_ceil(128), 128), &raw) }
}

/// The only specialisation.
pub(crate) fn units() -> Vec<Unit> {
    vec![Unit { source: &SOURCE, entries: &ENTRIES, defines: Vec::new() }]
}
