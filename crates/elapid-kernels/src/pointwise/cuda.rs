//! On a GPU: every value is read once and written once, 16 bytes at a time where rows allow it.

use super::Map;
use crate::DType;
use crate::cuda::{Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};

static SOURCE: Source = Source { name: "pointwise", text: include_str!("pointwise.cu") };
const ENTRIES: [&str; 4] = ["forward", "backward", "glu_forward", "glu_backward"];
static SUM: Source = Source { name: "pointwise_sum", text: include_str!("sum.cu") };

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    z: RawMat,
    dy: RawMat,
    y: RawMat,
    dz: RawMat,
    rows: i64,
    cols: i64,
    function: i32,
    alpha: f32,
    beta: f32,
}

impl Raw {
    fn new(f: Map, x: &Mat<'_>, y: &Mat<'_>) -> Self {
        let null = RawMat::NULL;
        // The source lists functions in the order of the enum.
        let Map { f, alpha, beta } = f;
        Self { x: x.raw(), z: null, dy: null, y: y.raw(), dz: null, rows: 0, cols: 0, function: f as i32, alpha, beta }
    }
}

pub(super) fn forward(f: Map, x: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let y = y.as_mat();
    launch("forward", &[x, y], Raw::new(f, &x, &y))
}

pub(super) fn backward(f: Map, x: Mat<'_>, dy: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    let dx = dx.as_mat();
    launch("backward", &[x, dy, dx], Raw { dy: dy.raw(), ..Raw::new(f, &x, &dx) })
}

pub(super) fn glu_forward(f: Map, x: Mat<'_>, z: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let y = y.as_mat();
    launch("glu_forward", &[x, z, y], Raw { z: z.raw(), ..Raw::new(f, &x, &y) })
}

pub(super) fn glu_backward(f: Map, [x, z, dy]: [Mat<'_>; 3], dx: MatMut<'_>, dz: MatMut<'_>) -> Result<()> {
    let (dx, dz) = (dx.as_mat(), dz.as_mat());
    let args = Raw { z: z.raw(), dy: dy.raw(), dz: dz.raw(), ..Raw::new(f, &x, &dx) };
    launch("glu_backward", &[x, z, dy, dx, dz], args)
}

/// Over matrices `all` of one shape and format, those of `args`.
fn launch(entry: &'static str, all: &[Mat<'_>], args: Raw) -> Result<()> {
    let [first, ..] = all else { return Ok(()) };
    let Shape { rows, cols, vector } = Shape::of(all);
    if rows * cols == 0 {
        return Ok(());
    }
    let (gpu, defines) = (first.gpu(), [Define::dtype("T", first.dtype()), vector_define(vector)]);
    let args = Raw { rows: rows as i64, cols: cols as i64, ..args };
    // SAFETY: `Raw` is laid out as in the source; `super` has checked that all matrices have one shape and format.
    unsafe { gpu.kernel(&SOURCE, entry, &defines)?.launch(tiles(gpu, rows, cols, vector).overlapping(), &args) }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RawAny {
    mat: RawMat,
    narrow: i64,
}

impl RawAny {
    fn new(m: Option<&Mat<'_>>) -> Self {
        let narrow = m.is_some_and(|m| m.dtype() == DType::Bf16);
        Self { mat: m.map_or(RawMat::NULL, Mat::raw), narrow: narrow.into() }
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RawSum {
    a: RawAny,
    b: RawAny,
    y: RawAny,
    rows: i64,
    cols: i64,
    alpha: f32,
    beta: f32,
    gamma: f32,
}

pub(super) fn add_scaled(alpha: f32, a: Mat<'_>, b: Option<(f32, Mat<'_>)>, gamma: f32, y: MatMut<'_>) -> Result<()> {
    let (gpu, y) = (y.gpu(), y.as_mat());
    let (beta, b) = b.map_or((0.0, None), |(beta, b)| (beta, Some(b)));
    let all: Vec<Mat<'_>> = [a, y].into_iter().chain(b).collect();
    let Shape { rows, cols, vector } = Shape::of(&all);
    if rows * cols == 0 {
        return Ok(());
    }
    let args = RawSum {
        a: RawAny::new(Some(&a)),
        b: RawAny::new(b.as_ref()),
        y: RawAny::new(Some(&y)),
        rows: rows as i64,
        cols: cols as i64,
        alpha,
        beta,
        gamma,
    };
    let kernel = gpu.kernel(&SUM, "add_scaled", &[vector_define(vector)])?;
    // SAFETY: `RawSum` is laid out as in the source; `super` has checked that all matrices have one shape.
    unsafe { kernel.launch(tiles(gpu, rows, cols, vector), &args) }
}

/// The shape that a kernel sees: one row if nothing has gaps.
struct Shape {
    rows: usize,
    cols: usize,
    /// Whether eight elements of a row can be read at once.
    vector: bool,
}

impl Shape {
    fn of(all: &[Mat<'_>]) -> Self {
        let (rows, cols) = all.first().map_or((0, 0), Mat::shape);
        let flat = all.iter().all(Mat::is_contiguous);
        let (rows, cols) = if flat && rows > 0 { (1, rows * cols) } else { (rows, cols) };
        let aligned = |m: &Mat<'_>| if flat { m.flat().is_aligned() } else { m.is_aligned() };
        Self { rows, cols, vector: cols.is_multiple_of(8) && all.iter().all(aligned) }
    }
}

/// Blocks of 256 threads over rows and columns, wide rather than high, with few threads beyond the last column.
pub(crate) fn tiles(gpu: Gpu, rows: usize, cols: usize, vector: bool) -> Launch {
    let across = if vector { cols / 8 } else { cols };
    let padded = |wide: &usize| (across.div_ceil(*wide) * *wide, usize::MAX - *wide);
    let wide = [256, 128, 64, 32, 16, 8, 4, 2, 1].into_iter().min_by_key(padded).unwrap_or(256);
    let high = 256 / wide;
    let most = 16 * gpu.multiprocessors();
    let x = across.div_ceil(wide).min(most);
    let y = rows.div_ceil(high).min(most.div_ceil(x)).min(65_535);
    Launch { grid: (x as u32, y as u32, 1), block: (wide as u32, high as u32, 1), shared: 0, overlap: false }
}

pub(crate) fn vector_define(vector: bool) -> Define {
    Define::new("VECTOR", i32::from(vector))
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let maps = [DType::F32, DType::Bf16].into_iter().flat_map(|dtype| [false, true].map(|vector| (dtype, vector)));
    let map = |(dtype, vector)| Unit {
        source: &SOURCE,
        entries: &ENTRIES,
        defines: vec![Define::dtype("T", dtype), vector_define(vector)],
    };
    let sum = |vector| Unit { source: &SUM, entries: &["add_scaled"], defines: vec![vector_define(vector)] };
    maps.map(map).chain([false, true].map(sum)).collect()
}
