//! On a GPU: uses are sorted by counting (`rows.cu`), products read on the device where the rows of an expert begin
//! (`product.cu`), so that a captured graph serves any routing. No sum depends on the order in which blocks run.

use super::args::CHECK;
use crate::DType;
use crate::cuda::{Buffer, Define, Gpu, Launch, Mat, MatMut, RawMat, Result, Source, Unit};
use crate::error::product;

static ROWS: Source = Source { name: "experts_rows", text: include_str!("rows.cu") };
static PRODUCT: Source = Source { name: "experts_product", text: include_str!("product.cu") };
const ENTRIES: [&str; 7] = ["count", "scan", "place", "gather", "gather_backward", "combine", "combine_backward"];
/// Uses that a block sorts: `STRETCH` of the source.
const STRETCH: usize = 2048;
/// Rows of a tile of the output, on tensor cores and by plain sums.
const ROWS_OF_TILE: [usize; 2] = [128, 64];
/// Columns of a tile by plain sums, and on tensor cores: `BN` of the source; the wide ones need matrices that fill them.
const PLAIN: usize = 64;
const WIDTHS: [usize; 2] = [128, 256];
/// Buffers that are filled ahead, at each width.
const STAGES: [usize; 2] = [3, 4];

/// Uses in the order of their experts, on a GPU.
#[derive(Debug)]
pub(super) struct Order {
    /// `[e + 1]`.
    starts: Buffer,
    /// `[n]`: the use of each row, as far as rows have one.
    uses: Buffer,
    /// `[n]`.
    places: Buffer,
    n: usize,
    k: usize,
    experts: usize,
}

impl Order {
    pub(super) fn gpu(&self) -> Gpu {
        self.starts.gpu()
    }
}

/// `Args` of `rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rows {
    x: RawMat,
    xs: RawMat,
    d_xs: RawMat,
    weights: RawMat,
    dweights: RawMat,
    picked: u64,
    starts: u64,
    uses: u64,
    places: u64,
    counts: u64,
    m: i64,
    d: i64,
    n: u32,
    k: u32,
    experts: u32,
    stretches: u32,
    room: u32,
}

/// `super` has checked that sizes are below 2^31.
fn count(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

fn rows(order: &Order) -> Rows {
    let null = RawMat::NULL;
    Rows {
        x: null,
        xs: null,
        d_xs: null,
        weights: null,
        dweights: null,
        picked: 0,
        starts: order.starts.address(),
        uses: order.uses.address(),
        places: order.places.address(),
        counts: 0,
        m: (order.n / order.k) as i64,
        d: 0,
        n: count(order.n),
        k: count(order.k),
        experts: count(order.experts),
        stretches: count(order.n.div_ceil(STRETCH)),
        room: 0,
    }
}

pub(super) fn sort(picked: &Buffer, k: usize, experts: usize, room: usize) -> Result<Order> {
    let (gpu, n) = (picked.gpu(), picked.bytes() / 4);
    let [starts, uses, places] = [gpu.alloc(4 * (experts + 1))?, gpu.alloc(4 * n)?, gpu.alloc(4 * n)?];
    let stretches = n.div_ceil(STRETCH);
    let counts = gpu.alloc(product(&[experts, stretches, 4]))?;
    let order = Order { starts, uses, places, n, k, experts };
    let args = Rows { picked: picked.address(), counts: counts.address(), room: count(room), ..rows(&order) };
    let run = |entry, launch| {
        // SAFETY: `Args` is laid out as in the source; all buffers were made for these sizes, and the kernels compare picks with
        // `experts`.
        unsafe { gpu.kernel(&ROWS, entry, &moves(DType::F32, false))?.launch(launch, &args) }
    };
    run("count", Launch::linear(stretches, 256))?;
    run("scan", Launch::linear(1, 1024))?;
    run("place", Launch::linear(stretches, 256))?;
    Ok(order)
}

/// Launches an entry of `rows.cu` with a warp for each of `warps`.
fn move_rows(gpu: Gpu, entry: &'static str, warps: usize, all: &[&Mat<'_>], args: &Rows) -> Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    let wide = first.cols().is_multiple_of(8) && all.iter().all(|m| m.is_aligned());
    let kernel = gpu.kernel(&ROWS, entry, &moves(first.dtype(), wide))?;
    // SAFETY: `Args` is laid out as in the source; `super` has checked the shapes, and the order was sorted for them: its uses
    // are below n, its places below n or `NOWHERE`.
    unsafe { kernel.launch(Launch::linear(warps.div_ceil(8).min(1 << 20), 256), args) }
}

pub(super) fn gather(order: &Order, x: Mat<'_>, xs: MatMut<'_>) -> Result<()> {
    let args = Rows { x: x.raw(), xs: xs.raw(), d: x.cols() as i64, ..rows(order) };
    move_rows(x.gpu(), "gather", order.n, &[&x, &xs.as_mat()], &args)
}

pub(super) fn gather_backward(order: &Order, dxs: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    let args = Rows { x: dx.raw(), xs: dxs.raw(), d: dx.cols() as i64, ..rows(order) };
    move_rows(dxs.gpu(), "gather_backward", dx.rows(), &[&dxs, &dx.as_mat()], &args)
}

pub(super) fn combine(order: &Order, weights: Mat<'_>, o: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let args = Rows { x: y.raw(), xs: o.raw(), weights: weights.raw(), d: y.cols() as i64, ..rows(order) };
    move_rows(o.gpu(), "combine", y.rows(), &[&o, &y.as_mat()], &args)
}

pub(super) fn combine_backward(
    order: &Order,
    (weights, o): (Mat<'_>, Mat<'_>),
    dy: Mat<'_>,
    (dweights, d_o): (MatMut<'_>, MatMut<'_>),
) -> Result<()> {
    let args = Rows {
        x: dy.raw(),
        xs: o.raw(),
        d_xs: d_o.raw(),
        weights: weights.raw(),
        dweights: dweights.raw(),
        d: dy.cols() as i64,
        ..rows(order)
    };
    move_rows(o.gpu(), "combine_backward", order.n, &[&dy, &o, &d_o.as_mat()], &args)
}

/// `Args` of `product.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Product {
    a: RawMat,
    b: RawMat,
    c: RawMat,
    sum: RawMat,
    starts: u64,
    depth: i64,
    cols: i64,
    m: i64,
    experts: u32,
    tiles: u32,
}

/// What a product is of: `FORM` of the source.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Forward,
    Input,
    Weight,
}

/// Launches one product; `cols` are those of the output, `m` its rows where they are an expert's.
fn multiply(order: &Order, form: Form, all: [&Mat<'_>; 3], args: Product) -> Result<()> {
    let (gpu, dtype) = (all[0].gpu(), all[0].dtype());
    let sizes = [args.depth, args.cols, args.m];
    let tensor = dtype == DType::Bf16 && sizes.iter().all(|size| size % 8 == 0) && all.iter().all(|m| m.is_aligned());
    let side = ROWS_OF_TILE[usize::from(!tensor)];
    let wide = usize::from(args.cols >= 512 && form != Form::Weight);
    let across = (args.cols as usize).div_ceil(if tensor { WIDTHS[wide] } else { PLAIN });
    let tiles = order.n / side + order.experts;
    let blocks = product(&[tiles, across]);
    CHECK.that(blocks < 1 << 31, "x", || "fewer rows or columns on a GPU".into(), || format!("{blocks} tiles"))?;
    let grid = match form {
        Form::Weight => (count(across), count((args.m as usize).div_ceil(side)), count(order.experts)),
        _ => (count(blocks), 1, 1),
    };
    let shared = if tensor { STAGES[wide] * (128 + WIDTHS[wide]) * 64 * 2 } else { 0 };
    let launch = Launch { grid, shared: count(shared), ..Launch::linear(1, 256) };
    let args = Product { starts: order.starts.address(), experts: count(order.experts), tiles: count(tiles), ..args };
    let kernel = gpu.kernel(&PRODUCT, "product", &products(dtype, form, tensor.then_some(wide)))?;
    // SAFETY: `Args` is laid out as in the source; `super` has checked the shapes; the order's rows are below n.
    unsafe { kernel.launch(launch, &args) }
}

fn sizes(depth: usize, cols: usize, m: usize) -> Product {
    let null = RawMat::NULL;
    let (depth, cols, m) = (depth as i64, cols as i64, m as i64);
    Product { a: null, b: null, c: null, sum: null, starts: 0, depth, cols, m, experts: 0, tiles: 0 }
}

pub(super) fn forward(order: &Order, x: Mat<'_>, w: Mat<'_>, y: MatMut<'_>) -> Result<()> {
    let args = Product { a: x.raw(), b: w.raw(), c: y.raw(), ..sizes(x.cols(), y.cols(), 0) };
    multiply(order, Form::Forward, [&x, &w, &y.as_mat()], args)
}

pub(super) fn backward_input(order: &Order, dy: Mat<'_>, w: Mat<'_>, dx: MatMut<'_>) -> Result<()> {
    let args = Product { a: dy.raw(), b: w.raw(), c: dx.raw(), ..sizes(dy.cols(), dx.cols(), 0) };
    multiply(order, Form::Input, [&dy, &w, &dx.as_mat()], args)
}

pub(super) fn backward_weight(order: &Order, dy: Mat<'_>, x: Mat<'_>, dw: MatMut<'_>) -> Result<()> {
    let args = Product { a: dy.raw(), b: x.raw(), sum: dw.raw(), ..sizes(0, x.cols(), dy.cols()) };
    multiply(order, Form::Weight, [&dy, &x, &dw.as_mat()], args)
}

fn moves(dtype: DType, wide: bool) -> Vec<Define> {
    vec![Define::dtype("T", dtype), Define::new("V", if wide { 8 } else { 1 })]
}

fn products(dtype: DType, form: Form, wide: Option<usize>) -> Vec<Define> {
    let mut defines = vec![
        Define::dtype("T", dtype),
        Define::new("FORM", form as u32),
        Define::new("TENSOR", u32::from(wide.is_some())),
    ];
    if let Some(wide) = wide {
        defines.extend([Define::new("STAGES", STAGES[wide]), Define::new("BN", WIDTHS[wide])]);
    }
    defines
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        units.extend([false, true].map(|wide| Unit { source: &ROWS, entries: &ENTRIES, defines: moves(dtype, wide) }));
        for form in [Form::Forward, Form::Input, Form::Weight] {
            for wide in [None, Some(0), Some(1)].into_iter().filter(|wide| wide.is_none() || dtype == DType::Bf16) {
                units.push(Unit { source: &PRODUCT, entries: &["product"], defines: products(dtype, form, wide) });
            }
        }
    }
    units
}
