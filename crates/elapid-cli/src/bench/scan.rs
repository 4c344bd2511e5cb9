//! `elapid bench scan`: the selective scan alone.

use anyhow::Result;
use clap::ValueEnum;
use elapid::DType;
use elapid::memory::Needs;
use elapid_kernels::os::machine;
use elapid_kernels::selective_scan::{self, Args, Dims, Discretisation, Grads, Saved, naive};
use elapid_kernels::testing::Random;
use elapid_kernels::{Isa, Rows, RowsMut, Segments, ceiling};
use serde_json::json;

use super::measure::{Timing, at_least_1, repetitions};
use super::scan_cuda;
use crate::model::Place;
use crate::output::{Output, bytes, number, pairs, percent, scaled, table, thousands};

const EXAMPLES: &str = "\
Examples:
  elapid bench scan --b 2 --l 2048 --d 1536 --n 16
      the shape of Mamba-130M's scan
  elapid bench scan --l 512 --d 256 --compare naive
      compared with the recurrence as a plain loop, in the same run
  elapid bench scan --b 1 --l 65536 --d 64 --rule zoh --json
  elapid bench scan --b 8 --l 2048 --d 1536 --device cuda --dtype bf16

An element is one channel at one position. Its forward takes n + 2 exponentials: one per state element, one for the \
softplus, one for the gate. The share is relative to the exponentials per second that this machine reaches.";

/// The scan to time.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_1())]
    b: usize,
    /// Positions per sequence
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = at_least_1())]
    l: usize,
    /// Channels
    #[arg(long, value_name = "N", default_value_t = 1536, value_parser = at_least_1())]
    d: usize,
    /// State elements per channel
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_1())]
    n: usize,
    /// How the continuous system becomes a recurrence: exp-euler, zoh or bilinear
    #[arg(long, value_name = "RULE", default_value = "exp-euler")]
    rule: Discretisation,
    /// Calls to time, after two warm-up calls
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = repetitions())]
    reps: usize,
    /// Time another implementation in the same run, and print the ratio
    #[arg(long, value_name = "WITH")]
    compare: Option<Compare>,
    /// Random seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compare {
    /// The sequential loop in f32 on one thread
    Naive,
}

/// Random inputs of a scan, in the ranges of a real model.
struct Inputs {
    u: Vec<f32>,
    delta: Vec<f32>,
    delta_bias: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    skip: Vec<f32>,
    z: Vec<f32>,
    initial: Vec<f32>,
    dy: Vec<f32>,
    dlast: Vec<f32>,
}

impl Inputs {
    fn new(dims: Dims, seed: u64) -> Self {
        let Dims { b, l, d, n } = dims;
        let mut random = Random::new(seed);
        Self {
            u: random.normal(b * l * d),
            delta: random.normal(b * l * d),
            // softplus of it: 0.001 to 0.1.
            delta_bias: random.uniform(d, -6.9, -2.25),
            a: (0..d * n).map(|i| -((i % n + 1) as f32) * (0.5 + random.unit() as f32)).collect(),
            b: random.normal(b * l * n),
            c: random.normal(b * l * n),
            skip: random.normal(d),
            z: random.normal(b * l * d),
            initial: random.normal(b * d * n),
            dy: random.normal(b * l * d),
            dlast: random.normal(b * d * n),
        }
    }

    fn args(&self, dims: Dims, rule: Discretisation) -> Args<Rows<'_>> {
        let Dims { d, n, .. } = dims;
        Args {
            u: Rows::new(&self.u, d),
            delta: Rows::new(&self.delta, d),
            delta_bias: Some(&self.delta_bias),
            softplus: true,
            a: &self.a,
            b: Rows::new(&self.b, n),
            c: Rows::new(&self.c, n),
            skip: Some(&self.skip),
            z: Some(Rows::new(&self.z, d)),
            initial: Some(&self.initial),
            segments: Segments::default(),
            rule,
        }
    }
}

/// Outputs, gradients included.
struct Outputs {
    y: Vec<f32>,
    last: Vec<f32>,
    du: Vec<f32>,
    ddelta: Vec<f32>,
    ddelta_bias: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
    dc: Vec<f32>,
    dskip: Vec<f32>,
    dz: Vec<f32>,
    dinitial: Vec<f32>,
}

impl Outputs {
    fn new(Dims { b, l, d, n }: Dims) -> Self {
        let zeros = |count: usize| vec![0.0; count];
        Self {
            y: zeros(b * l * d),
            last: zeros(b * d * n),
            du: zeros(b * l * d),
            ddelta: zeros(b * l * d),
            ddelta_bias: zeros(d),
            da: zeros(d * n),
            db: zeros(b * l * n),
            dc: zeros(b * l * n),
            dskip: zeros(d),
            dz: zeros(b * l * d),
            dinitial: zeros(b * d * n),
        }
    }

    fn grads(&mut self, Dims { d, n, .. }: Dims) -> Grads<RowsMut<'_>> {
        Grads {
            du: RowsMut::new(&mut self.du, d),
            ddelta: RowsMut::new(&mut self.ddelta, d),
            ddelta_bias: Some(&mut self.ddelta_bias),
            da: &mut self.da,
            db: RowsMut::new(&mut self.db, n),
            dc: RowsMut::new(&mut self.dc, n),
            dskip: Some(&mut self.dskip),
            dz: Some(RowsMut::new(&mut self.dz, d)),
            dinitial: Some(&mut self.dinitial),
        }
    }
}

/// The times of one implementation.
struct Times {
    /// Without saving anything for the backward.
    forward: Timing,
    backward: Timing,
    /// Forward and backward timed together, as in a training step.
    both: Timing,
}

impl Times {
    fn object(&self) -> serde_json::Value {
        json!({
            "forward_ms": 1e3 * self.forward.median,
            "backward_ms": 1e3 * self.backward.median,
            "forward_backward_ms": 1e3 * self.both.median,
        })
    }
}

// Long: the benchmark in the order it runs: inputs, measurements, the table.
pub(crate) fn run(arguments: &Arguments, place: Place, output: Output) -> Result<()> {
    let Arguments { b, l, d, n, rule, reps, .. } = *arguments;
    let dims = Dims { b, l, d, n };
    needs(dims, place.dtype).check_on(place.device)?;
    if let Some(gpu) = place.device.gpu() {
        if arguments.compare.is_some() {
            output.note("--compare runs on the CPU: add --device cpu");
        }
        return scan_cuda::run(gpu, place.dtype, dims, rule, reps, arguments.seed, output);
    }
    let inputs = Inputs::new(dims, arguments.seed);
    let args = inputs.args(dims, rule);
    let mut outputs = Outputs::new(dims);
    let fast = fast(dims, &args, &inputs, &mut outputs, reps)?;
    let rss = machine::peak_memory();
    let naive = arguments.compare.map(|Compare::Naive| slow(dims, &args, &inputs, &mut outputs, reps)).transpose()?;

    let elements = (b * l * d) as f64;
    let limit = ceiling::exp_ceiling();
    let exps = elements * (n + 2) as f64;
    let speed = |timing: &Timing| elements / timing.median;
    let share = |timing: &Timing| exps / timing.median / limit;
    let mut object = json!({
        "bench": "scan",
        "b": b, "l": l, "d": d, "n": n, "rule": rule.name(),
        "forward_ms": 1e3 * fast.forward.median,
        "backward_ms": 1e3 * fast.backward.median,
        "forward_backward_ms": 1e3 * fast.both.median,
        "forward": fast.forward.milliseconds(),
        "backward": fast.backward.milliseconds(),
        "forward_backward": fast.both.milliseconds(),
        "elements_per_second": speed(&fast.forward),
        "backward_elements_per_second": speed(&fast.backward),
        "forward_backward_elements_per_second": speed(&fast.both),
        "exps_per_element": n + 2,
        "exp_ceiling_per_second": limit,
        "share_of_exp_ceiling": share(&fast.forward),
        "backward_share_of_exp_ceiling": share(&fast.backward),
        "peak_rss_bytes": rss,
        "threads": rayon::current_num_threads(),
        "isa": Isa::best().name(),
    });
    let ratio = |slow: &Timing, fast: &Timing| slow.median / fast.median;
    if let Some(naive) = &naive {
        object["naive"] = naive.object();
        object["forward_speedup"] = ratio(&naive.forward, &fast.forward).into();
        object["backward_speedup"] = ratio(&naive.backward, &fast.backward).into();
        object["forward_backward_speedup"] = ratio(&naive.both, &fast.both).into();
    }
    output.result(&object, || {
        let passes = [
            ("forward", fast.forward, naive.as_ref().map(|naive| naive.forward)),
            ("backward", fast.backward, naive.as_ref().map(|naive| naive.backward)),
            ("both", fast.both, naive.as_ref().map(|naive| naive.both)),
        ];
        let rows: Vec<Vec<String>> = passes
            .iter()
            .map(|(name, fast, naive)| {
                let share = if *name == "both" { String::new() } else { percent(share(fast)) };
                let mut row = vec![(*name).to_owned()];
                row.extend([fast.median, fast.min, fast.max].map(|seconds| number(1e3 * seconds)));
                row.extend([number(speed(fast) / 1e6), share]);
                let slow = naive.map_or([String::new(), String::new()], |naive| {
                    [number(1e3 * naive.median), format!("{}x", number(ratio(&naive, fast)))]
                });
                row.extend(slow);
                row
            })
            .collect();
        let shape = [b, l, d].map(|size| thousands(size as u64)).join(" x ");
        let head = pairs(&[
            ("scan", format!("b l d = {shape}, n = {n}, {rule}")),
            ("threads", format!("{}, {}", rayon::current_num_threads(), Isa::best().name())),
            ("exp ceiling", format!("{}; an element takes {}", scaled(limit, "exp/s"), n + 2)),
            ("peak memory", rss.map_or("unknown".into(), bytes)),
        ]);
        let heading =
            ["pass", ">ms (median)", ">min", ">max", ">M elements/s", ">of exp ceiling", ">naive ms", ">speed-up"];
        let shown = if naive.is_some() { heading.len() } else { heading.len() - 2 };
        let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row[..shown].to_vec()).collect();
        format!("{head}\n{}", table(&heading[..shown], &rows))
    })
}

/// Memory of inputs, outputs and the states that the forward saves.
fn needs(Dims { b, l, d, n }: Dims, dtype: DType) -> Needs {
    let product = |sizes: &[usize]| sizes.iter().fold(1_u128, |product, &size| product.saturating_mul(size as u128));
    let size = dtype.bytes() as u32;
    Needs::default()
        .and("inputs and outputs", product(&[8, b, l, d]), size, "--b, --l or --d")
        .and("B, C and their gradients", product(&[4, b, l, n]), size, "--b, --l or --n")
        .and("A and states", product(&[2, d, n]).saturating_add(product(&[4, b, d, n])), 4, "--b, --d or --n")
}

fn fast(dims: Dims, args: &Args<Rows<'_>>, inputs: &Inputs, outputs: &mut Outputs, reps: usize) -> Result<Times> {
    const WARMUP: usize = 2;
    let mut saved = Saved::new();
    let dy = Rows::new(&inputs.dy, dims.d);
    let forward = |outputs: &mut Outputs, saved: Option<&mut Saved>| {
        selective_scan::forward(dims, *args, RowsMut::new(&mut outputs.y, dims.d), &mut outputs.last, saved)
    };
    let backward = |outputs: &mut Outputs, saved: &Saved| {
        // Of y the CPU reads nothing.
        let written = selective_scan::Outputs { y: dy, dy, dlast: Some(&inputs.dlast[..]) };
        selective_scan::backward(dims, *args, saved, written, outputs.grads(dims))
    };
    Ok(Times {
        forward: Timing::of(WARMUP, reps, || Ok(forward(outputs, None)?))?,
        both: Timing::of(WARMUP, reps, || {
            forward(outputs, Some(&mut saved))?;
            Ok(backward(outputs, &saved)?)
        })?,
        backward: Timing::of(WARMUP, reps, || Ok(backward(outputs, &saved)?))?,
    })
}

/// The loop takes long enough for a few calls to tell.
fn slow(dims: Dims, args: &Args<Rows<'_>>, inputs: &Inputs, outputs: &mut Outputs, reps: usize) -> Result<Times> {
    let reps = reps.min(3);
    let dy = Rows::new(&inputs.dy, dims.d);
    let forward = |outputs: &mut Outputs| {
        naive::forward(dims, args, RowsMut::new(&mut outputs.y, dims.d), &mut outputs.last);
    };
    let backward = |outputs: &mut Outputs| naive::backward(dims, args, dy, Some(&inputs.dlast), outputs.grads(dims));
    Ok(Times {
        forward: Timing::of(1, reps, || {
            forward(outputs);
            Ok(())
        })?,
        backward: Timing::of(0, reps, || {
            backward(outputs);
            Ok(())
        })?,
        both: Timing::of(0, reps, || {
            forward(outputs);
            backward(outputs);
            Ok(())
        })?,
    })
}
