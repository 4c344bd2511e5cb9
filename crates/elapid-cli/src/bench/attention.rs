//! `elapid bench attention`: softmax attention alone.

use anyhow::Result;
use elapid::DType;
use elapid::memory::Needs;
use elapid_kernels::attention::{self, Args, Attention, Batch, Grads, Mask, Outputs, Saved, Stretch, Together};
use elapid_kernels::cuda::{self, Buffer, Gpu};
use elapid_kernels::testing::Random;
use elapid_kernels::{Isa, Rows, RowsMut, View, ViewMut};
use serde_json::json;

use super::measure::{Timing, at_least_1, repetitions};
use crate::failure::wrong;
use crate::model::Place;
use crate::output::{Output, number, pairs, table, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid bench attention --b 1 --heads 12 --l 1024 --width 64
  elapid bench attention --b 8 --heads 16 --l 2048 --width 64 --device cuda --dtype bf16
  elapid bench attention --heads 32 --kv-heads 8 --l 8192 --width 128 --window 1024 --device cuda --dtype bf16

Operations are counted over the pairs of positions that see each other: 4 per pair and column forward, 10 backward.";

/// The attention to time.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1())]
    b: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = at_least_1())]
    heads: usize,
    /// Key and value heads [default: as many as query heads]
    #[arg(long, value_name = "N", value_parser = at_least_1())]
    kv_heads: Option<usize>,
    /// Positions per sequence
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_1())]
    l: usize,
    /// Columns per head
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_1())]
    width: usize,
    /// Positions that each sees, including itself; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    window: usize,
    /// Let each position see later ones too
    #[arg(long)]
    bidirectional: bool,
    /// Calls to time, after two warm-up calls
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = repetitions())]
    reps: usize,
    /// Random seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Matrices of the inputs and outputs: q, k, v, dy, y, dq, dk, dv.
const MATRICES: usize = 8;

impl Arguments {
    fn attention(&self) -> Result<Attention> {
        let (heads, kv_heads) = (self.heads, self.kv_heads.unwrap_or(self.heads));
        if !heads.is_multiple_of(kv_heads) {
            return Err(wrong(format!("--kv-heads {kv_heads} does not divide --heads {heads}")));
        }
        let mask = Mask { causal: !self.bidirectional, window: self.window, ..Mask::default() };
        let scale = (self.width as f32).powf(-0.5);
        Ok(Attention { heads, kv_heads, scale, mask, softcap: 0.0, alibi: false })
    }

    /// Columns of each matrix.
    fn cols(&self) -> [usize; MATRICES] {
        let of = |heads: usize| heads.saturating_mul(self.width);
        let (q, k) = (of(self.heads), of(self.kv_heads.unwrap_or(self.heads)));
        [q, k, k, q, q, q, k, k]
    }

    /// Pairs of positions of one head that see each other.
    fn pairs(&self) -> f64 {
        let window = if self.window == 0 { self.l } else { self.window.min(self.l) };
        let causal = (window * self.l - window * (window - 1) / 2) as f64;
        self.b as f64 * if self.bidirectional { 2.0 * causal - self.l as f64 } else { causal }
    }

    fn needs(&self, dtype: DType) -> Needs {
        let size = dtype.bytes() as u32;
        let elements = |cols: usize| (cols as u128).saturating_mul(self.b as u128).saturating_mul(self.l as u128);
        let all = self.cols().into_iter().map(elements).fold(0_u128, u128::saturating_add);
        Needs::default().and("inputs and outputs", all, size, "--b, --heads, --l or --width")
    }
}

/// The matrices, on the CPU or a GPU.
enum Matrices {
    Host(Vec<Vec<f32>>),
    Device(Vec<Buffer>, DType),
}

impl Matrices {
    fn new(arguments: &Arguments, place: Place) -> Result<Self> {
        /// Number of random values drawn; longer matrices repeat them.
        const DRAWN: usize = 1 << 20;
        let (rows, mut random) = (arguments.b * arguments.l, Random::new(arguments.seed));
        let mut drawn = |len: usize| -> Vec<f32> {
            let drawn = random.normal(DRAWN.min(len));
            drawn.iter().copied().cycle().take(len).collect()
        };
        let all: Vec<Vec<f32>> = arguments.cols().into_iter().map(|cols| drawn(rows * cols)).collect();
        let Some(gpu) = place.device.gpu() else { return Ok(Self::Host(all)) };
        let on = |(values, cols): (&Vec<f32>, usize)| -> Result<Buffer> {
            let (from, to) = (gpu.upload(values)?, gpu.alloc(values.len() * place.dtype.bytes())?);
            cuda::elementwise::convert(&gpu, from.mat(rows, cols, DType::F32), to.mat_mut(rows, cols, place.dtype))?;
            Ok(to)
        };
        Ok(Self::Device(all.iter().zip(arguments.cols()).map(on).collect::<Result<_>>()?, place.dtype))
    }

    /// q, k, v, dy and y to read, and y, dq, dk, dv to write. The CPU does not read y, and gets dy in its place.
    fn views(&mut self, rows: usize, cols: [usize; MATRICES]) -> ([View<'_>; 5], [ViewMut<'_>; 4]) {
        match self {
            Self::Host(all) => {
                let (inputs, outputs) = all.split_at_mut(4);
                let mut outputs = outputs.iter_mut().zip(&cols[4..]);
                let inputs = [0, 1, 2, 3, 3].map(|i| Rows::new(&inputs[i], cols[i]).into());
                let outputs = [(); 4].map(|()| match outputs.next() {
                    Some((values, &cols)) => RowsMut::new(values, cols).into(),
                    None => unreachable!("there are eight"),
                });
                (inputs, outputs)
            }
            Self::Device(all, dtype) => {
                let inputs = std::array::from_fn(|i| all[i].mat(rows, cols[i], *dtype).into());
                (inputs, std::array::from_fn(|i| all[i + 4].mat_mut(rows, cols[i + 4], *dtype).into()))
            }
        }
    }
}

fn time(gpu: Option<Gpu>, reps: usize, f: impl FnMut() -> Result<()>) -> Result<Timing> {
    match gpu {
        Some(gpu) => Timing::of_gpu(gpu, 2, reps, f),
        None => Timing::of(2, reps, f),
    }
}

// Long: the benchmark in the order it runs: inputs, measurements, the table.
pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    let &Arguments { b, l, width, reps, .. } = arguments;
    let (sizes, cols) = (arguments.attention()?, arguments.cols());
    arguments.needs(place.dtype).check_on(place.device)?;
    let mut matrices = Matrices::new(arguments, place)?;
    let whole: Vec<Stretch> =
        (0..b).map(|row| row * l..(row + 1) * l).map(|row| Stretch::whole(row.clone(), row, 0)).collect();
    let gpu = place.device.gpu();
    let stretches = match gpu {
        None => Together::Host(&whole),
        Some(_) => Together::Device(Batch { b, l, past: 0, segments: cuda::Segments::default() }),
    };
    let alone = time(gpu, reps, || {
        let ([q, k, v, ..], [y, ..]) = matrices.views(b * l, cols);
        Ok(attention::forward(&sizes, Args { q, k, v, pages: &[], sink_logits: None, stretches }, y, None)?)
    })?;
    let mut saved = Saved::new();
    let both = time(gpu, reps, || {
        let ([q, k, v, dy, written], [y, dq, dk, dv]) = matrices.views(b * l, cols);
        let args = Args { q, k, v, pages: &[], sink_logits: None, stretches };
        attention::forward(&sizes, args, y, Some(&mut saved))?;
        let outputs = Outputs { y: written, dy };
        Ok(attention::backward(&sizes, args, &saved, outputs, Grads { dq, dk, dv, dsink_logits: None })?)
    })?;
    let flops = 4.0 * arguments.pairs() * (sizes.heads * width) as f64;
    let passes = [("forward", alone, flops), ("both", both, 3.5 * flops)];
    let object = json!({
        "bench": "attention",
        "device": gpu.map_or_else(|| "cpu".to_owned(), |gpu| gpu.name().to_owned()), "dtype": place.dtype.to_string(),
        "b": b, "heads": sizes.heads, "kv_heads": sizes.kv_heads, "l": l, "width": width,
        "window": arguments.window, "causal": sizes.mask.causal,
        "forward_ms": 1e3 * alone.median,
        "forward_backward_ms": 1e3 * both.median,
        "forward": alone.milliseconds(),
        "forward_backward": both.milliseconds(),
        "tflops": flops / alone.median / 1e12,
        "forward_backward_tflops": 3.5 * flops / both.median / 1e12,
    });
    output.result(&object, || {
        let place = match gpu {
            Some(gpu) => format!("{}, {}", gpu.name(), place.dtype),
            None => format!("{} threads, {}", rayon::current_num_threads(), Isa::best().name()),
        };
        let seen = match (arguments.window, arguments.bidirectional) {
            (0, false) => "causal".to_owned(),
            (0, true) => "bidirectional".to_owned(),
            (window, causal) => {
                format!("window of {}{}", thousands(window as u64), if causal { ", bidirectional" } else { "" })
            }
        };
        let heads = format!("{} heads of {width}, {} of keys", sizes.heads, sizes.kv_heads);
        let shape = format!("{b} x {} positions, {heads}, {seen}", thousands(l as u64));
        let rows: Vec<Vec<String>> = passes
            .iter()
            .map(|(name, timing, flops)| {
                let mut row = vec![(*name).to_owned()];
                row.extend([timing.median, timing.min, timing.max].map(|seconds| number(1e3 * seconds)));
                row.push(number(flops / timing.median / 1e12));
                row
            })
            .collect();
        let head = pairs(&[("device", place), ("attention", shape)]);
        format!("{head}\n{}", table(&["pass", ">ms (median)", ">min", ">max", ">TFLOP/s"], &rows))
    })
}
