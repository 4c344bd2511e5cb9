//! Cells on a GPU, against the f64 oracle.

use super::tests::{BASE, Case, EVERYTHING, NOTHING, Options, WHOLE_ROWS, naive};
use super::*;
use crate::DType;
use crate::cuda::{self, Buffer, Gpu};
use crate::testing::{OnDevice, bits, err_ratio, gpu, median, rounded};

/// A case with its activations and matrix rounded to a dtype.
fn of(kind: Kind, dims: Dims, options: Options, seed: u64, dtype: DType) -> Case<f32> {
    let case = Case::new(kind, dims, options, seed);
    let [x, recurrent, dy] = [&case.x, &case.recurrent, &case.dy].map(|x| rounded(x, dtype));
    Case { x, recurrent, dy, ..case }
}

/// A case and its outputs on a GPU.
struct Device {
    dims: Dims,
    kind: Kind,
    x: OnDevice,
    recurrent: OnDevice,
    bias: Option<OnDevice>,
    initial: Option<OnDevice>,
    lengths: Option<Buffer>,
    resets: Option<Buffer>,
    dy: OnDevice,
    dlast: Option<OnDevice>,
    y: OnDevice,
    last: OnDevice,
    dx: OnDevice,
    du: OnDevice,
    dbias: OnDevice,
    dinitial: OnDevice,
}

impl Device {
    /// `gap`: columns between rows.
    fn new(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) -> Self {
        let (dims, kind) = (case.dims, case.kind);
        let (Dims { b, l, d, heads }, gates, states) = (dims, case.gates(), dims.states(kind));
        let flat = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
        let base = |len: usize| flat(&vec![BASE; len]);
        Self {
            dims,
            kind,
            x: OnDevice::of(gpu, &case.x, gates, gap, dtype),
            recurrent: OnDevice::of(gpu, &case.recurrent, d / heads, 0, dtype),
            bias: case.bias.as_deref().map(flat),
            initial: case.initial.as_deref().map(flat),
            lengths: case.lengths.as_ref().map(|x| gpu.upload(x).unwrap()),
            resets: case.resets.as_ref().map(|x| gpu.upload(x).unwrap()),
            dy: OnDevice::of(gpu, &case.dy, d, gap, dtype),
            dlast: case.dlast.as_deref().map(flat),
            y: OnDevice::poisoned(gpu, b * l, d, gap, dtype),
            last: OnDevice::poisoned(gpu, 1, states, 0, DType::F32),
            dx: OnDevice::poisoned(gpu, b * l, gates, gap, dtype),
            du: base(case.recurrent.len()),
            dbias: base(gates),
            dinitial: OnDevice::poisoned(gpu, 1, states, 0, DType::F32),
        }
    }

    fn args(&self) -> Args<cuda::Mat<'_>> {
        Args {
            kind: self.kind,
            x: self.x.mat(),
            recurrent: self.recurrent.mat(),
            bias: self.bias.as_ref().map(OnDevice::mat),
            initial: self.initial.as_ref().map(OnDevice::mat),
            segments: cuda::Segments { lengths: self.lengths.as_ref(), resets: self.resets.as_ref() },
        }
    }

    fn forward(&self, saved: Option<&mut Saved>) -> Result<()> {
        forward(self.dims, self.args(), self.y.mat_mut(), self.last.mat_mut(), saved)
    }

    fn backward(&self, saved: &Saved) -> Result<()> {
        let grads = Grads {
            dx: self.dx.mat_mut(),
            drecurrent: self.du.mat_mut(),
            dbias: Some(self.dbias.mat_mut()),
            dinitial: Some(self.dinitial.mat_mut()),
        };
        let outputs = Outputs { y: self.y.mat(), dy: self.dy.mat(), dlast: self.dlast.as_ref().map(OnDevice::mat) };
        backward(self.dims, self.args(), saved, outputs, grads)
    }

    fn both(&self) -> Result<()> {
        let mut saved = Saved::new();
        self.forward(Some(&mut saved))?;
        self.backward(&saved)
    }

    /// In the order of the oracle.
    fn values(&self) -> [Vec<f32>; 6] {
        [&self.y, &self.last, &self.dx, &self.du, &self.dbias, &self.dinitial].map(OnDevice::values)
    }
}

fn agrees(gpu: Gpu, case: &Case<f32>, dtype: DType, gap: usize) {
    let device = Device::new(gpu, case, dtype, gap);
    device.both().unwrap();
    let got = device.values();
    // In bf16 y, dx and the gradient of U h are rounded, and what is summed from them.
    let tolerance = match dtype {
        // Of one value the ratio is its own error, and a slope of 1 - h² has fewer digits than h.
        DType::F32 if case.dims.b * case.dims.l * case.dims.d == 1 => 1e-4,
        DType::F32 => 1e-5,
        DType::Bf16 => 1e-2,
    };
    for ((name, want), got) in naive(&case.wide()).iter().zip(&got) {
        let error = err_ratio(want, got);
        // Of few channels the rounded terms of a sum over all positions may cancel.
        let tolerance = if *name == "dbias" && dtype == DType::Bf16 { 3e-2 } else { tolerance };
        assert!(error <= tolerance, "{dtype} {name}: {error:e} for {:?} {:?}, gap {gap}", case.kind, case.dims);
    }
    // Without what a backward needs the same.
    let alone = Device::new(gpu, case, dtype, gap);
    alone.forward(None).unwrap();
    assert!(bits(&alone.y.values()) == bits(&got[0]) && bits(&alone.last.values()) == bits(&got[1]));
}

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        for (j, l) in [0, 1, 2, 19].into_iter().enumerate() {
            // Heads whose matrix stays on a multiprocessor, and the last two, where it does not.
            let widths = [(1, 1), (3, 3), (16, 1), (33, 1), (36, 2), (130, 1), (384, 3), (300, 1), (513, 1)];
            for (k, (d, heads)) in widths.into_iter().enumerate() {
                let seed = (i * 100 + j * 10 + k) as u64;
                let options = [EVERYTHING, WHOLE_ROWS, NOTHING][(j + k) % 3];
                let dtype = if seed.is_multiple_of(2) { DType::F32 } else { DType::Bf16 };
                let case = of(kind, Dims { b: 1 + k % 3, l, d, heads }, options, seed, dtype);
                agrees(gpu, &case, dtype, [0, 8, 3][k % 3]);
            }
        }
        agrees(gpu, &of(kind, Dims { b: 0, l: 3, d: 2, heads: 1 }, EVERYTHING, 9, DType::F32), DType::F32, 0);
    }
}

/// Several rows in a block, resident and not.
#[test]
fn many_rows() {
    let Some(gpu) = gpu() else { return };
    for kind in Kind::ALL {
        for dtype in [DType::F32, DType::Bf16] {
            for (b, d, heads) in [(300, 32, 1), (1200, 24, 2), (70, 520, 1), (1100, 16, 1)] {
                let case = of(kind, Dims { b, l: 7, d, heads }, EVERYTHING, 5, dtype);
                agrees(gpu, &case, dtype, 0);
            }
        }
    }
}

/// A sequence in chunks and in single positions, and a row of a batch alone: the order of sums is one.
#[test]
fn chunks_steps_and_rows_are_the_whole_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    for kind in Kind::ALL {
        for (d, heads) in [(38, 2), (520, 1)] {
            let (b, l) = (3, 45);
            let options = Options { lengths: false, resets: false, ..EVERYTHING };
            let case = of(kind, Dims { b, l, d, heads }, options, 3, DType::F32);
            let whole = Device::new(gpu, &case, DType::F32, 0);
            whole.forward(None).unwrap();
            let (y, last, s) = (whole.y.values(), whole.last.values(), kind.states());
            for row in 0..b {
                for pieces in [&[23, 22][..], &[1; 45], &[0, 5, 1, 39]] {
                    let (mut state, mut from) = (case.initial.as_ref().unwrap()[row * s * d..][..s * d].to_vec(), 0);
                    let mut parts = Vec::new();
                    for &l in pieces {
                        let rows = |x: &[f32], cols: usize| x[(row * 45 + from) * cols..][..l * cols].to_vec();
                        let part = Case {
                            dims: Dims { b: 1, l, d, heads },
                            x: rows(&case.x, case.gates()),
                            dy: rows(&case.dy, d),
                            initial: Some(state),
                            dlast: None,
                            ..case.clone()
                        };
                        let part = Device::new(gpu, &part, DType::F32, 0);
                        part.forward(None).unwrap();
                        parts.extend(part.y.values());
                        (state, from) = (part.last.values(), from + l);
                    }
                    assert!(bits(&parts) == bits(&y[row * l * d..][..l * d]), "{kind:?} {d} {pieces:?}");
                    assert!(bits(&state) == bits(&last[row * s * d..][..s * d]), "{kind:?} {d} {pieces:?}");
                }
            }
        }
    }
}

/// The state may be written where it was read.
#[test]
fn the_last_state_in_place_of_the_first() {
    let Some(gpu) = gpu() else { return };
    for (kind, d) in Kind::ALL.into_iter().flat_map(|kind| [(kind, 24), (kind, 520)]) {
        let case = of(kind, Dims { b: 4, l: 1, d, heads: 1 }, Options { dlast: false, ..WHOLE_ROWS }, 1, DType::Bf16);
        let (apart, inside) = (Device::new(gpu, &case, DType::Bf16, 0), Device::new(gpu, &case, DType::Bf16, 0));
        apart.forward(None).unwrap();
        let state = inside.initial.as_ref().unwrap();
        forward(inside.dims, inside.args(), inside.y.mat_mut(), state.mat_mut(), None).unwrap();
        assert!(bits(&apart.last.values()) == bits(&state.values()), "{kind:?} {d}");
        assert!(bits(&apart.y.values()) == bits(&inside.y.values()), "{kind:?} {d}");
    }
}

#[test]
fn extreme_inputs_stay_finite() {
    let Some(gpu) = gpu() else { return };
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Relu) {
        let mut case = Case::new(kind, Dims { b: 2, l: 20, d: 9, heads: 1 }, WHOLE_ROWS, 1);
        case.x.iter_mut().for_each(|x| *x *= 300.0);
        let device = Device::new(gpu, &case, DType::F32, 0);
        device.both().unwrap();
        for (i, values) in device.values().iter().enumerate() {
            assert!(values.iter().all(|x| x.is_finite()), "{kind:?} {i}");
        }
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for (d, dtype) in [(64, DType::F32), (128, DType::Bf16), (520, DType::Bf16)] {
        let case = of(Kind::Lstm, Dims { b: 40, l: 50, d, heads: 1 }, EVERYTHING, 1, dtype);
        let run = || {
            let device = Device::new(gpu, &case, dtype, 0);
            device.both().unwrap();
            device.values().map(|x| bits(&x))
        };
        assert!(run() == run(), "{d} {dtype}");
    }
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (kind, b, l, d, heads) in [
        (Kind::Lstm, 32, 512, 64, 1),
        (Kind::Lstm, 32, 512, 512, 1),
        (Kind::Gru, 32, 512, 512, 1),
        (Kind::Slstm, 32, 512, 512, 4),
        (Kind::Lstm, 256, 512, 1024, 1),
    ] {
        let case = of(kind, Dims { b, l, d, heads }, WHOLE_ROWS, 1, DType::Bf16);
        let device = Device::new(gpu, &case, DType::Bf16, 0);
        device.both().unwrap();
        let forward = median(gpu.time(5, || device.forward(None)).unwrap());
        let both = median(gpu.time(5, || device.both()).unwrap());
        println!("{kind:?} {b} x {l}, {heads} heads of {}: forward {forward:.3} ms, and backward {both:.3}", d / heads);
    }
}
