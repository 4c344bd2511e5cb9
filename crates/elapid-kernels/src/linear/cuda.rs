//! On a GPU, by cuBLASLt, or for few rows by a kernel that begins to read W while the launch before ends (`few_rows.cu`).
//! Matrices are read in place, whatever their stride, and sums are f32: bf16 products accumulate in f32, f32 products do not use
//! TF32.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result as lt, sys};

use crate::DType;
use crate::cuda::{Define, Error, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::{Check, product};

static SOURCE: Source = Source { name: "linear", text: include_str!("linear.cu") };
static FEW_ROWS: Source = Source { name: "linear_few_rows", text: include_str!("few_rows.cu") };
const ENTRIES: [&str; 2] = ["spread", "column_sums"];
const CHECK: Check = Check("linear");
/// Maximum workspace of a product in bytes: NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;

/// As [`super::forward`].
pub(crate) fn forward(x: Mat<'_>, w: Mat<'_>, bias: Option<Mat<'_>>, y: MatMut<'_>) -> Result<()> {
    if let Some(bias) = &bias {
        CHECK.len("bias", bias.len(), y.cols())?;
    }
    if few_rows(&x, &w, bias.as_ref(), &y)? {
        return Ok(());
    }
    let Some(bias) = bias else { return matmul((x, false), (w, true), y, 0.0) };
    spread(bias, &y.as_mat())?;
    matmul((x, false), (w, true), y, 1.0)
}

/// As [`super::backward_input`].
pub(crate) fn backward_input(dy: Mat<'_>, w: Mat<'_>, dx: MatMut<'_>, adds: bool) -> Result<()> {
    matmul((dy, false), (w, false), dx, if adds { 1.0 } else { 0.0 })
}

pub(super) fn backward_weight(dy: Mat<'_>, x: Mat<'_>, dw: MatMut<'_>) -> Result<()> {
    matmul((dy, true), (x, false), dw, 1.0)
}

pub(crate) fn backward_bias(dy: Mat<'_>, db: MatMut<'_>) -> Result<()> {
    if dy.is_empty() {
        return Ok(());
    }
    let gpu = dy.gpu();
    let parts = dy.rows().div_ceil(64).min(8 * gpu.multiprocessors());
    let partial = gpu.alloc(product(&[parts, dy.cols(), 4]))?;
    let partial = partial.mat_mut(parts, dy.cols(), DType::F32);
    let args = Args { y: dy.raw(), bias: 0, partial: partial.raw(), rows: dy.rows() as i64, cols: dy.cols() as i64 };
    let launch = Launch { grid: (dy.cols().div_ceil(128) as u32, parts as u32, 1), ..Launch::linear(1, 128) };
    // SAFETY: `Args` is laid out as in the source; `partial` was made for the width of dy and `parts` parts.
    unsafe { gpu.kernel(&SOURCE, "column_sums", &[Define::dtype("T", dy.dtype())])?.launch(launch, &args)? };
    elementwise::add_rows(&gpu, partial.as_mat(), db)
}

/// `Args` of `few_rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct FewRows {
    x: RawMat,
    w: RawMat,
    bias: u64,
    y: RawMat,
    rows: i32,
    n: i32,
    k: i32,
    each: i32,
}

/// Rows of x up to which W is read by our own kernel.
const FEW: usize = 4;
/// Its warps of a block, columns of W that they read at once, stages of shared memory in units of those columns, and most
/// rows of W of a block.
const WARPS: usize = 8;
const ACROSS: usize = WARPS * 256;
const STAGES: usize = 20;
const EACH: usize = 256;

fn few_rows_defines(y: DType, m: usize, loads: usize) -> Vec<Define> {
    let stages = STAGES / loads;
    vec![Define::dtype("Y", y), Define::new("M", m), Define::new("LOADS", loads), Define::new("DEPTH", stages)]
}

/// A product of few rows of bf16, if it is one, in one launch.
fn few_rows(x: &Mat<'_>, w: &Mat<'_>, bias: Option<&Mat<'_>>, y: &MatMut<'_>) -> Result<bool> {
    let (rows, k) = x.shape();
    let (n, loads, m) = (w.rows(), k.div_ceil(ACROSS), rows.next_power_of_two());
    let fits = (1..=FEW).contains(&rows) && k > 0 && loads * m <= 8 && loads <= 6 && i32::try_from(n).is_ok();
    let shapes = w.cols() == k && y.shape() == (rows, n) && n > 0;
    let bf16 = x.dtype() == DType::Bf16 && w.dtype() == DType::Bf16;
    let gpu = y.gpu();
    let here = x.gpu() == gpu && w.gpu() == gpu && bias.is_none_or(|bias| bias.gpu() == gpu);
    if !fits || !shapes || !bf16 || !here || !k.is_multiple_of(8) || !x.is_aligned() || !w.is_aligned() {
        return Ok(false);
    }
    let each = n.div_ceil(2 * gpu.multiprocessors()).min(EACH);
    let args = FewRows {
        x: x.raw(),
        w: w.raw(),
        bias: bias.map_or(0, Mat::address),
        y: y.raw(),
        rows: rows as i32,
        n: n as i32,
        k: k as i32,
        each: each as i32,
    };
    let shared = WARPS * (STAGES / loads * loads * 512 + each * m * 4);
    let kernel = gpu.kernel(&FEW_ROWS, "few_rows", &few_rows_defines(y.dtype(), m, loads))?;
    let launch = Launch { shared: shared as u32, ..Launch::linear(n.div_ceil(each), 256).overlapping() };
    // SAFETY: `FewRows` is laid out as in the source; all matrices have the sizes that it counts with, rows of x and W begin
    // at multiples of 16 bytes and have whole eights; there is an f32 of the bias for every column of y.
    unsafe { kernel.launch(launch, &args)? };
    Ok(true)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    y: RawMat,
    bias: u64,
    partial: RawMat,
    rows: i64,
    cols: i64,
}

/// Every row of y becomes the bias, which has an f32 for every column, without gaps.
fn spread(bias: Mat<'_>, y: &Mat<'_>) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let gpu = y.gpu();
    let (rows, cols) = (y.rows() as i64, y.cols() as i64);
    let args = Args { y: y.raw(), bias: bias.address(), partial: RawMat::NULL, rows, cols };
    let down = y.rows().min(8 * gpu.multiprocessors()) as u32;
    let launch = Launch { grid: (y.cols().div_ceil(128) as u32, down, 1), ..Launch::linear(1, 128) };
    // SAFETY: `Args` is laid out as in the source; there are as many f32 of the bias as columns of y.
    unsafe { gpu.kernel(&SOURCE, "spread", &[Define::dtype("T", y.dtype())])?.launch(launch, &args) }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |dtype| Unit { source: &SOURCE, entries: &ENTRIES, defines: vec![Define::dtype("T", dtype)] };
    let few = |(y, m, loads)| {
        let defines = few_rows_defines(y, m, loads);
        Unit { source: &FEW_ROWS, entries: &["few_rows"], defines }
    };
    let sizes =
        [(DType::Bf16, 1, 1), (DType::Bf16, 4, 2), (DType::Bf16, 2, 4), (DType::Bf16, 1, 6), (DType::F32, 4, 1)];
    [DType::F32, DType::Bf16].map(unit).into_iter().chain(sizes.map(few)).collect()
}

/// The key of a product for cuBLASLt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Problem {
    rows: usize,
    cols: usize,
    inner: usize,
    strides: [usize; 3],
    transposed: [bool; 2],
    formats: [DType; 2],
    alignments: [u32; 3],
    adds: bool,
}

/// The cached plan of a product: its descriptors and the algorithm.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Its workspace in bytes.
    workspace: usize,
}

// SAFETY: descriptors are not changed after they were made.
unsafe impl Send for Plan {}

#[derive(Default)]
struct Plans(HashMap<Problem, Plan>);

/// d = a b + beta d, each operand transposed if its flag is set; beta is 0 or 1.
///
/// # Errors
/// If shapes or dtypes differ, or cuBLASLt does not support it.
// Long: descriptors of cuBLASLt, which must live until the call and are destroyed after it.
pub(crate) fn matmul(
    (a, a_transposed): (Mat<'_>, bool),
    (b, b_transposed): (Mat<'_>, bool),
    d: MatMut<'_>,
    beta: f32,
) -> Result<()> {
    let shape = |m: &Mat<'_>, transposed: bool| if transposed { (m.cols(), m.rows()) } else { m.shape() };
    let ((rows, inner), (b_inner, cols)) = (shape(&a, a_transposed), shape(&b, b_transposed));
    CHECK.shape("b", (b_inner, cols), (inner, cols))?;
    CHECK.shape("d", d.shape(), (rows, cols))?;
    CHECK.that(a.dtype() == b.dtype(), "b", || a.dtype().to_string(), || b.dtype().to_string())?;
    let fits = d.dtype() == a.dtype() || d.dtype() == DType::F32;
    CHECK.that(fits, "d", || format!("{} or f32", a.dtype()), || d.dtype().to_string())?;
    let gpu = d.gpu();
    CHECK.that(a.gpu() == gpu && b.gpu() == gpu, "d", || format!("{:?}", a.gpu()), || format!("{gpu:?}"))?;
    if d.is_empty() {
        return Ok(());
    }
    if inner == 0 {
        return if beta == 0.0 { gpu.zero(d) } else { Ok(()) };
    }
    let alignment = |address: u64, stride: usize, dtype: DType| {
        let common = address | (stride * dtype.bytes()) as u64;
        1u32 << common.trailing_zeros().min(8)
    };
    let problem = Problem {
        rows,
        cols,
        inner,
        strides: [stride(&a), stride(&b), stride(&d.as_mat())],
        transposed: [a_transposed, b_transposed],
        formats: [a.dtype(), d.dtype()],
        alignments: [
            alignment(a.address(), stride(&a), a.dtype()),
            alignment(b.address(), stride(&b), b.dtype()),
            alignment(d.address(), stride(&d.as_mat()), d.dtype()),
        ],
        adds: beta != 0.0,
    };
    let (_bound, handle, stream) = gpu.blas()?;
    let mut plans = gpu.cache::<Plans>().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let plan = match plans.0.entry(problem) {
        std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
        std::collections::hash_map::Entry::Vacant(place) => {
            let plan = Plan::new(handle, &problem).map_err(|error| Error::Call {
                call: "cublasLtMatmulAlgoGetHeuristic",
                reason: format!("{error:?} for {problem:?}"),
            })?;
            place.insert(plan)
        }
    };
    // A separate workspace: a product may be several launches, and a graph of another thread can run in between.
    let workspace = gpu.alloc(plan.workspace)?;
    gpu.count_launch();
    let (alpha, address) = (1.0f32, |m: u64| m as usize as *const c_void);
    // SAFETY: descriptors match the layouts of the matrices, which are inside their buffers. cuBLASLt is column-major, so it
    // computes dᵀ = bᵀ aᵀ.
    let done = unsafe {
        lt::matmul(
            handle,
            plan.desc,
            std::ptr::from_ref(&alpha).cast(),
            std::ptr::from_ref(&beta).cast(),
            address(b.address()),
            plan.a,
            address(a.address()),
            plan.b,
            address(d.address()),
            plan.d,
            address(d.address()).cast_mut(),
            plan.d,
            &plan.algorithm,
            address(workspace.address()).cast_mut(),
            workspace.bytes(),
            stream.cast(),
        )
    };
    done.map_err(|error| Error::Call { call: "cublasLtMatmul", reason: format!("{error:?} for {problem:?}") })
}

/// A single row may have any stride; cuBLASLt requires one at least as long as the row.
fn stride(m: &Mat<'_>) -> usize {
    m.stride().max(m.cols()).max(1)
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, problem: &Problem) -> Result<Self, lt::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        use sys::cublasLtMatmulPreferenceAttributes_t as Prefer;
        let format = |dtype| match dtype {
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let Problem { rows, cols, inner, strides, transposed, formats, alignments, .. } = *problem;
        let desc =
            lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)?;
        // Our row-major matrices are the transposes of cuBLASLt's column-major ones, so the operands change places.
        for (attribute, transposed) in
            [(Desc::CUBLASLT_MATMUL_DESC_TRANSA, transposed[1]), (Desc::CUBLASLT_MATMUL_DESC_TRANSB, transposed[0])]
        {
            let operation = i32::from(transposed);
            // SAFETY: the attribute is an i32.
            unsafe {
                lt::set_matmul_desc_attribute(
                    desc,
                    attribute,
                    std::ptr::from_ref(&operation).cast(),
                    size_of::<i32>(),
                )?;
            }
        }
        let layout = |dtype, (rows, cols): (usize, usize), stride: usize| {
            lt::create_matrix_layout(format(dtype), rows as u64, cols as u64, stride as i64)
        };
        let stored = |shape: (usize, usize), transposed: bool| if transposed { (shape.1, shape.0) } else { shape };
        let a = layout(formats[0], stored((cols, inner), transposed[1]), strides[1])?;
        let b = layout(formats[0], stored((inner, rows), transposed[0]), strides[0])?;
        let d = layout(formats[1], (cols, rows), strides[2])?;
        let preference = lt::create_matmul_pref()?;
        // SAFETY: the attribute is a usize.
        unsafe {
            let size = std::ptr::from_ref(&WORKSPACE).cast();
            let attribute = Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference, attribute, size, size_of::<usize>())?;
        }
        for (attribute, alignment) in [
            (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[1]),
            (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[0]),
            (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]),
            (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[2]),
        ] {
            // SAFETY: the attribute is a u32.
            unsafe {
                let value = std::ptr::from_ref(&alignment).cast();
                lt::set_matmul_pref_attribute(preference, attribute, value, size_of::<u32>())?;
            }
        }
        // SAFETY: all descriptors were just made.
        let best = unsafe { lt::get_matmul_algo_heuristic(handle, desc, a, b, d, d, preference) };
        // SAFETY: it is destroyed once.
        unsafe { lt::destroy_matmul_pref(preference)? };
        let best = best?;
        Ok(Self { desc, a, b, d, algorithm: best.algo, workspace: best.workspaceSize })
    }
}
