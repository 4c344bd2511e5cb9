//! On a GPU: activations in one dtype, parameters and their gradients in f32. A group of a row stays in the registers of some
//! threads of a warp, of a warp or of several, so that each value is read once.

use super::args::CHECK;
use super::{Args, Grads, Place};
use crate::DType;
use crate::cuda::{Define, Gpu, Kernel, Launch, Mat, MatMut, RawMat, Result, Source, Unit, elementwise};
use crate::error::product;

static SOURCE: Source = Source { name: "group_norm", text: include_str!("group_norm.cu") };
const ENTRIES: [&str; 2] = ["forward", "backward"];
const THREADS: usize = 256;
/// Blocks in y of a grid.
const MOST: usize = 65_535;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    x: RawMat,
    z: RawMat,
    weight: u64,
    bias: u64,
    y: RawMat,
    dy: RawMat,
    dx: RawMat,
    dz: RawMat,
    partial_weight: u64,
    partial_bias: u64,
    rows: i64,
    d: i32,
    width: i32,
    across: i32,
    weight_step: i32,
    bias_step: i32,
    centred: i32,
    eps: f32,
}

/// How a call is split over the device.
struct Plan {
    gpu: Gpu,
    rows: usize,
    d: usize,
    groups: usize,
    form: Form,
    /// Teams of a block along groups.
    across: usize,
    defines: Vec<Define>,
}

/// Threads that own a group of a row, and the number of vectors of eight values that each holds; (0, 0) if groups are too wide
/// or not aligned.
type Form = (usize, usize);

const FORMS: [Form; 9] = [(8, 1), (16, 1), (32, 1), (32, 2), (128, 1), (128, 2), (256, 2), (256, 3), (256, 4)];

impl Plan {
    fn new(args: &Args<Mat<'_>>, others: &[Option<&Mat<'_>>]) -> Result<Self> {
        let (x, z) = (&args.x, args.gate.as_ref().map(|gate| &gate.z));
        let ((rows, d), groups) = (x.shape(), args.groups);
        let width = d / groups;
        let inputs = [Some(x), z, args.weight.as_ref(), args.bias.as_ref()];
        let all = inputs.into_iter().chain(others.iter().copied()).flatten();
        let aligned = width.is_multiple_of(8) && all.into_iter().all(Mat::is_aligned);
        let fits = FORMS.into_iter().find(|(lanes, vectors)| aligned && width <= 8 * lanes * vectors);
        let form = fits.unwrap_or((0, 0));
        let teams = THREADS.checked_div(form.0).unwrap_or(1);
        let across = teams.min(1 << groups.trailing_zeros());
        let fit = groups / across <= MOST && i32::try_from(d).is_ok();
        CHECK.that(fit, "groups", || format!("at most {MOST} on a GPU"), || format!("{groups} of {d} channels"))?;
        let defines = defines(x.dtype(), form, args.gate.map(|gate| gate.place));
        Ok(Self { gpu: x.gpu(), rows, d, groups, form, across, defines })
    }

    fn width(&self) -> usize {
        self.d / self.groups
    }

    /// Rows that a block holds at once.
    fn rows_at_once(&self) -> usize {
        THREADS.checked_div(self.form.0).unwrap_or(1) / self.across
    }

    /// As many blocks as run at once take all rows between them: one more would run alone at the end.
    fn launch(&self, kernel: &Kernel, shared: u32) -> Result<Launch> {
        let down = self.groups / self.across;
        let resident = kernel.resident_blocks(THREADS as u32, shared)?.max(1) * self.gpu.multiprocessors();
        let along = self.rows.div_ceil(self.rows_at_once()).min((resident / down).max(1));
        let grid = (along as u32, down as u32, 1);
        Ok(Launch { grid, shared, ..Launch::linear(1, THREADS as u32) })
    }

    fn raw(&self, args: &Args<Mat<'_>>) -> Raw {
        let null = RawMat::NULL;
        let step =
            |m: Option<&Mat<'_>>| if m.is_some_and(|m| m.len() == self.width()) { 0 } else { self.width() as i32 };
        Raw {
            x: args.x.raw(),
            z: args.gate.map_or(null, |gate| gate.z.raw()),
            weight: args.weight.as_ref().map_or(0, Mat::address),
            bias: args.bias.as_ref().map_or(0, Mat::address),
            y: null,
            dy: null,
            dx: null,
            dz: null,
            partial_weight: 0,
            partial_bias: 0,
            rows: self.rows as i64,
            d: self.d as i32,
            width: self.width() as i32,
            across: self.across as i32,
            weight_step: step(args.weight.as_ref()),
            bias_step: step(args.bias.as_ref()),
            centred: i32::from(args.centred),
            eps: args.eps,
        }
    }
}

pub(super) fn forward(args: &Args<Mat<'_>>, y: MatMut<'_>) -> Result<()> {
    let y = y.as_mat();
    if y.is_empty() {
        return Ok(());
    }
    let plan = Plan::new(args, &[Some(&y)])?;
    let kernel = plan.gpu.kernel(&SOURCE, "forward", &plan.defines)?;
    let launch = plan.launch(&kernel, 0)?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked shapes and formats.
    unsafe { kernel.launch(launch, &Raw { y: y.raw(), ..plan.raw(args) }) }
}

pub(super) fn backward(args: &Args<Mat<'_>>, dy: Mat<'_>, grads: Grads<MatMut<'_>>) -> Result<()> {
    let Grads { dx, dz, dweight, dbias } = grads;
    let (dx, dz) = (dx.as_mat(), dz.as_ref().map(MatMut::as_mat));
    if dy.is_empty() {
        return Ok(());
    }
    let plan = Plan::new(args, &[Some(&dy), Some(&dx), dz.as_ref()])?;
    let kernel = plan.gpu.kernel(&SOURCE, "backward", &plan.defines)?;
    let teams = THREADS.checked_div(plan.form.0).unwrap_or(0);
    let launch = plan.launch(&kernel, (teams * plan.width() * 4) as u32)?;
    let blocks = launch.grid.0 as usize;
    let room = |wanted: bool| wanted.then(|| plan.gpu.alloc(product(&[blocks, plan.d, 4]))).transpose();
    let (of_weight, of_bias) = (room(dweight.is_some())?, room(dbias.is_some())?);
    let raw = Raw {
        dy: dy.raw(),
        dx: dx.raw(),
        dz: dz.map_or(RawMat::NULL, |dz| dz.raw()),
        partial_weight: of_weight.as_ref().map_or(0, |partial| partial.address()),
        partial_bias: of_bias.as_ref().map_or(0, |partial| partial.address()),
        ..plan.raw(args)
    };
    // SAFETY: as in `forward`; the partial sums have a row of d for every block along rows.
    unsafe { kernel.launch(launch, &raw)? };
    for (partial, to) in [(of_weight, dweight), (of_bias, dbias)] {
        if let (Some(partial), Some(to)) = (partial, to) {
            // Where all groups share a parameter, a row of partial sums is one of each group.
            let cols = to.len();
            elementwise::add_rows(
                &plan.gpu,
                partial.mat(blocks * plan.d / cols, cols, DType::F32),
                to.reshaped(1, cols),
            )?;
        }
    }
    Ok(())
}

fn defines(dtype: DType, (lanes, vectors): Form, gate: Option<Place>) -> Vec<Define> {
    let gate = match gate {
        None => 0,
        Some(Place::Before) => 1,
        Some(Place::After) => 2,
    };
    let sizes = [("LANES", lanes), ("VECTORS", vectors), ("GATE", gate)];
    std::iter::once(Define::dtype("T", dtype)).chain(sizes.map(|(name, size)| Define::new(name, size))).collect()
}

/// Every form, and every gate in the form for all sizes.
pub(crate) fn units() -> Vec<Unit> {
    let gates = [None, Some(Place::Before), Some(Place::After)];
    let forms = FORMS.into_iter().map(|form| defines(DType::Bf16, form, Some(Place::After)));
    let any_size = gates.into_iter().flat_map(|gate| [DType::F32, DType::Bf16].map(|t| defines(t, (0, 0), gate)));
    let all = forms.chain(any_size).chain([defines(DType::F32, FORMS[0], Some(Place::Before))]);
    all.map(|defines| Unit { source: &SOURCE, entries: &ENTRIES, defines }).collect()
}
