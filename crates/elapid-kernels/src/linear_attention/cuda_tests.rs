//! Linear attention on a GPU, against the f64 oracle.

use super::tests::{ADDED, BASE, Case, KINDS, Kind, Options, naive};
use super::*;
use crate::DType;
use crate::cuda::{self, Buffer, Gpu};
use crate::testing::{OnDevice, bits, err_ratio, gpu, median, rounded};

/// A case with its activations rounded to a dtype; a decay of each key too, if it has that dtype.
fn of(dims: Dims, options: Options, seed: u64, dtype: DType, decays: DType) -> Case<f32> {
    let case = Case::new(dims, options, seed);
    let [q, k, v, dy] = [&case.q, &case.k, &case.v, &case.dy].map(|x| rounded(x, dtype));
    let decay = if options.decay == Kind::KeyVarying { rounded(&case.decay, decays) } else { case.decay.clone() };
    Case { q, k, v, dy, decay, ..case }
}

/// A case and its outputs on a GPU.
struct Device {
    dims: Dims,
    options: Options,
    scale: f32,
    eps: f32,
    q: OnDevice,
    k: OnDevice,
    v: OnDevice,
    decay: OnDevice,
    write: OnDevice,
    bonus: OnDevice,
    skip: OnDevice,
    initial: OnDevice,
    lengths: Buffer,
    resets: Buffer,
    dy: OnDevice,
    dlast: OnDevice,
    y: OnDevice,
    last: OnDevice,
    dq: OnDevice,
    dk: OnDevice,
    dv: OnDevice,
    ddecay: OnDevice,
    ddecay_constant: OnDevice,
    dwrite: OnDevice,
    dbonus: OnDevice,
    dskip: OnDevice,
    dinitial: OnDevice,
}

impl Device {
    /// `gap`: columns between rows.
    fn new(gpu: Gpu, case: &Case<f32>, dtype: DType, decays: DType, gap: usize) -> Self {
        let (dims, options) = (case.dims, case.options);
        let Dims { b, l, groups, heads, k, v } = dims;
        let states = dims.states(options.normaliser);
        let flat = |x: &[f32]| OnDevice::of(gpu, x, x.len(), 0, DType::F32);
        let base = |len: usize| flat(&vec![BASE; len]);
        let of = |x: &[f32], cols: usize| OnDevice::of(gpu, x, cols, gap, dtype);
        let out = |cols: usize| OnDevice::poisoned(gpu, b * l, cols, gap, dtype);
        let varying = match options.decay {
            Kind::KeyVarying => (heads * k, decays),
            _ => (heads, DType::F32),
        };
        let constant = matches!(options.decay, Kind::Head | Kind::Key);
        let decay = match constant {
            true => flat(&case.decay),
            false => OnDevice::of(gpu, &case.decay, varying.0, gap, varying.1),
        };
        Self {
            dims,
            options,
            scale: case.scale,
            eps: case.eps,
            q: of(&case.q, groups * k),
            k: of(&case.k, groups * k),
            v: of(&case.v, heads * v),
            decay,
            write: OnDevice::of(gpu, &case.write, heads, gap, DType::F32),
            bonus: flat(&case.bonus),
            skip: flat(&case.skip),
            initial: flat(&case.initial),
            lengths: gpu.upload(&case.lengths).unwrap(),
            resets: gpu.upload(&case.resets).unwrap(),
            dy: of(&case.dy, heads * v),
            dlast: flat(&case.dlast),
            y: out(heads * v),
            last: OnDevice::poisoned(gpu, 1, states, 0, DType::F32),
            dq: out(groups * k),
            dk: out(groups * k),
            dv: out(heads * v),
            ddecay: OnDevice::poisoned(gpu, b * l, varying.0, gap, varying.1),
            ddecay_constant: base(case.decay.len()),
            dwrite: OnDevice::poisoned(gpu, b * l, heads, gap, DType::F32),
            dbonus: base(case.bonus.len()),
            dskip: base(case.skip.len()),
            dinitial: OnDevice::poisoned(gpu, 1, states, 0, DType::F32),
        }
    }

    fn args(&self) -> Args<cuda::Mat<'_>> {
        let on = self.options;
        Args {
            q: self.q.mat(),
            k: self.k.mat(),
            v: self.v.mat(),
            scale: self.scale,
            decay: match on.decay {
                Kind::None => Decay::None,
                Kind::Head => Decay::Head(self.decay.mat()),
                Kind::HeadVarying => Decay::HeadVarying(self.decay.mat()),
                Kind::Key => Decay::Key(self.decay.mat()),
                Kind::KeyVarying => Decay::KeyVarying(self.decay.mat()),
            },
            write: on.write.then(|| self.write.mat()),
            bonus: on.bonus.then(|| self.bonus.mat()),
            skip: (on.skip || on.skip_channels).then(|| self.skip.mat()),
            normaliser: on.normaliser.then_some(self.eps),
            initial: on.initial.then(|| self.initial.mat()),
            segments: cuda::Segments {
                lengths: on.lengths.then_some(&self.lengths),
                resets: on.resets.then_some(&self.resets),
            },
        }
    }

    fn forward(&self, saved: Option<&mut Saved>) -> Result<()> {
        forward(self.dims, self.args(), self.y.mat_mut(), self.last.mat_mut(), saved)
    }

    fn backward(&self, saved: &Saved) -> Result<()> {
        let on = self.options;
        let varying = matches!(on.decay, Kind::HeadVarying | Kind::KeyVarying);
        let constant = matches!(on.decay, Kind::Head | Kind::Key);
        let grads = Grads {
            dq: self.dq.mat_mut(),
            dk: self.dk.mat_mut(),
            dv: self.dv.mat_mut(),
            ddecay: varying.then(|| self.ddecay.mat_mut()),
            ddecay_constant: constant.then(|| self.ddecay_constant.mat_mut()),
            dwrite: on.write.then(|| self.dwrite.mat_mut()),
            dbonus: on.bonus.then(|| self.dbonus.mat_mut()),
            dskip: (on.skip || on.skip_channels).then(|| self.dskip.mat_mut()),
            dinitial: Some(self.dinitial.mat_mut()),
        };
        let dlast = on.dlast.then(|| self.dlast.mat());
        backward(self.dims, self.args(), saved, Outputs { y: self.y.mat(), dy: self.dy.mat(), dlast }, grads)
    }

    fn both(&self) -> Result<()> {
        let mut saved = Saved::new();
        self.forward(Some(&mut saved))?;
        self.backward(&saved)
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let x = match name {
            "y" => &self.y,
            "last" => &self.last,
            "dq" => &self.dq,
            "dk" => &self.dk,
            "dv" => &self.dv,
            "ddecay" => &self.ddecay,
            "ddecay_constant" => &self.ddecay_constant,
            "dwrite" => &self.dwrite,
            "dbonus" => &self.dbonus,
            "dskip" => &self.dskip,
            _ => &self.dinitial,
        };
        x.values()
    }
}

/// The error of the gradient of a constant decay, over the magnitudes of what each position adds to it: of two heads it has two
/// elements, and their sums may be a twentieth of their terms. That is the gradient of a decay that varies, with the same values.
fn error_of_constant(case: &Case<f32>, want: &[f64], got: &[f32]) -> f64 {
    let mut varying = case.wide();
    varying.options.decay = if case.options.decay == Kind::Key { Kind::KeyVarying } else { Kind::HeadVarying };
    varying.decay = varying.decay.repeat(case.dims.b * case.dims.l);
    let written = naive(&varying);
    let all = &written.iter().find(|(name, _)| *name == "ddecay").expect("a decay that varies has a gradient").1;
    let size =
        |i: usize| -> f64 { f64::from(BASE) + all.iter().skip(i).step_by(want.len()).map(|x| x.abs()).sum::<f64>() };
    let square = |x: f64| x * x;
    let error: f64 = want.iter().zip(got).map(|(want, &got)| square(f64::from(got) - want)).sum();
    (error / (0..want.len()).map(|i| square(size(i))).sum::<f64>()).sqrt()
}

fn agrees(gpu: Gpu, case: &Case<f32>, dtype: DType, decays: DType, gap: usize) {
    let device = Device::new(gpu, case, dtype, decays, gap);
    device.both().unwrap();
    for (name, want) in naive(&case.wide()) {
        let got = device.get(name);
        // Sums for the few elements of a parameter may cancel.
        let error = match (dtype, name) {
            (DType::Bf16, "ddecay_constant") => error_of_constant(case, &want, &got),
            _ => err_ratio(&want, &got),
        };
        let bound = match (dtype, ADDED.contains(&name)) {
            (DType::F32, false) => 2e-5,
            (DType::F32, true) => 3e-4,
            // Of one position normalised by itself little of dq and dk is left, and y is rounded.
            (DType::Bf16, false) if case.options.normaliser && case.dims.l == 1 => 1e-1,
            (DType::Bf16, false) => 1.5e-2,
            (DType::Bf16, true) => 5e-2,
        };
        assert!(error <= bound, "{dtype} {name}: {error:e} for {:?} {:?}, gap {gap}", case.dims, case.options);
    }
    // Without what a backward needs the same; but of one position that is a step, which sums otherwise.
    if case.dims.l == 1 {
        return;
    }
    let alone = Device::new(gpu, case, dtype, decays, gap);
    alone.forward(None).unwrap();
    for name in ["y", "last"] {
        assert!(bits(&alone.get(name)) == bits(&device.get(name)), "{name} alone, {:?} {:?}", case.dims, case.options);
    }
}

#[test]
fn options_on_and_off() {
    let Some(gpu) = gpu() else { return };
    for bits in (0..2560).step_by(11) {
        let dims = Dims { b: 2, l: 59, groups: 1, heads: 2, k: 5, v: 7 };
        agrees(
            gpu,
            &of(dims, Options::some(bits), bits as u64, DType::F32, DType::F32),
            DType::F32,
            DType::F32,
            bits % 3,
        );
    }
}

#[test]
fn sizes_in_f32() {
    let Some(gpu) = gpu() else { return };
    let mut seed = 0;
    for l in [0, 1, 2, 19, 97, 530] {
        for (groups, heads, k, v) in [
            (1, 1, 1, 1),
            (1, 3, 3, 2),
            (2, 4, 16, 33),
            (3, 3, 20, 5),
            (1, 6, 33, 17),
            (1, 1, 288, 65),
            (1, 2, 40, 512),
        ] {
            seed += 1;
            let on = Options::everything(KINDS[seed % 5]);
            let options = [on, Options { normaliser: false, bonus: false, ..on }][seed / 5 % 2];
            let dims = Dims { b: 1 + seed % 2, l, groups, heads, k, v };
            agrees(gpu, &of(dims, options, seed as u64, DType::F32, DType::F32), DType::F32, DType::F32, seed % 4);
        }
    }
    let dims = Dims { b: 0, l: 3, groups: 1, heads: 2, k: 2, v: 2 };
    agrees(gpu, &of(dims, Options::everything(Kind::Head), 9, DType::F32, DType::F32), DType::F32, DType::F32, 0);
}

/// Widths that tensor cores take and widths that they do not, and all options. A thread each: most of the time kernels are compiled.
#[test]
fn sizes_in_bf16() {
    let Some(gpu) = gpu() else { return };
    let sizes = [
        (1, 1, 16, 16),
        (1, 3, 128, 64),
        (2, 4, 64, 64),
        (3, 3, 64, 128),
        (1, 6, 32, 48),
        (1, 2, 20, 36),
        (2, 2, 96, 256),
        (1, 2, 256, 128),
        (2, 2, 144, 192),
        (1, 2, 153, 64),
        (2, 2, 288, 32),
    ];
    std::thread::scope(|scope| {
        for (size, at) in sizes.into_iter().zip(0..) {
            for decay in KINDS {
                scope.spawn(move || some_lengths_in_bf16(gpu, size, decay, at));
            }
        }
    });
}

fn some_lengths_in_bf16(gpu: Gpu, (groups, heads, k, v): (usize, usize, usize, usize), decay: Kind, at: u64) {
    let on = Options::everything(decay);
    let variants = [
        Options { normaliser: false, bonus: false, ..on },
        Options { normaliser: false, ..on },
        Options::nothing(decay),
        Options { bonus: false, ..on },
    ];
    for (l, at) in [1, 63, 64, 65, 200, 333].into_iter().zip(at..) {
        let (mut options, decays) = (variants[at as usize % 4], [DType::F32, DType::Bf16][at as usize / 4 % 2]);
        // A single position that is normalised by itself has no gradient to compare, and a single element of dw may cancel.
        options.resets &= l > 1;
        let dims = Dims { b: if l == 1 { 4 } else { 1 + at as usize % 2 }, l, groups, heads, k, v };
        let case = of(dims, options, at, DType::Bf16, decays);
        agrees(gpu, &case, DType::Bf16, decays, [0, 8, 3][at as usize % 3]);
    }
}

/// Rows long enough, and heads few enough, that a row is walked in segments.
#[test]
fn long_rows_in_bf16() {
    let Some(gpu) = gpu() else { return };
    for (decay, seed) in [Kind::None, Kind::HeadVarying, Kind::KeyVarying].into_iter().zip(3..) {
        for l in [1024, 1900] {
            for all in [false, true] {
                let on = Options { normaliser: false, bonus: false, ..Options::everything(decay) };
                let options = if all { on } else { Options { initial: true, dlast: true, ..Options::nothing(decay) } };
                let mut case =
                    of(Dims { b: 2, l, groups: 1, heads: 2, k: 32, v: 32 }, options, seed, DType::Bf16, DType::F32);
                // Documents longer than a segment.
                case.resets.iter_mut().zip(0..).for_each(|(reset, t)| *reset = u8::from(t % 700 == 600));
                case.decay.iter_mut().for_each(|x| *x *= 0.02);
                agrees(gpu, &case, DType::Bf16, DType::F32, 0);
            }
        }
    }
}

/// Decays that leave nothing, and none at all.
#[test]
fn extreme_decays_are_as_naive() {
    let Some(gpu) = gpu() else { return };
    for (seed, decay) in (0..).zip([Kind::Head, Kind::HeadVarying, Kind::Key, Kind::KeyVarying]) {
        for (bonus, dtype) in [(false, DType::F32), (true, DType::F32), (false, DType::Bf16), (true, DType::Bf16)] {
            let options = Options { bonus, normaliser: false, resets: false, ..Options::everything(decay) };
            let mut case =
                of(Dims { b: 1, l: 300, groups: 1, heads: 2, k: 16, v: 16 }, options, seed, dtype, DType::F32);
            for (i, x) in case.decay.iter_mut().enumerate() {
                *x = [-300.0, -0.001, -20.0, -1e-6, 0.0][i % 5];
            }
            agrees(gpu, &case, dtype, DType::F32, 0);
        }
    }
}

/// A sequence in chunks and in single positions, in place.
#[test]
fn chunks_and_steps_are_the_whole() {
    let Some(gpu) = gpu() else { return };
    for (seed, decay) in (0..).zip(KINDS) {
        for (bonus, normaliser, dtype) in
            [(true, true, DType::F32), (false, false, DType::Bf16), (true, false, DType::Bf16)]
        {
            let options = Options { bonus, normaliser, lengths: false, resets: false, ..Options::everything(decay) };
            let (l, heads, k, v) = (125, 2, 16, 32);
            let case = of(Dims { b: 1, l, groups: 1, heads, k, v }, options, seed, dtype, DType::F32);
            let want = naive(&case.wide());
            for pieces in [&[60, 65][..], &[1; 125], &[50, 1, 74]] {
                let (mut state, mut parts, mut from) = (case.initial.clone(), Vec::new(), 0);
                for &l in pieces {
                    let part = Case { initial: state.clone(), ..case.part(0, from, from + l) };
                    let part = Device::new(gpu, &part, dtype, DType::F32, 0);
                    if l == 1 {
                        let args = Args { initial: None, ..part.args() };
                        step(part.dims, args, part.initial.mat_mut(), part.y.mat_mut()).unwrap();
                        state = part.initial.values();
                    } else {
                        part.forward(None).unwrap();
                        state = part.get("last");
                    }
                    parts.extend(part.get("y"));
                    from += l;
                }
                let bound = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
                let error = err_ratio(&want[0].1, &parts).max(err_ratio(&want[1].1, &state));
                assert!(error < bound, "{decay:?} {dtype} {error:e}");
            }
        }
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for (decay, dtype) in [(Kind::HeadVarying, DType::Bf16), (Kind::KeyVarying, DType::Bf16), (Kind::Key, DType::F32)] {
        let options = Options { normaliser: false, ..Options::everything(decay) };
        let case = of(Dims { b: 3, l: 300, groups: 1, heads: 4, k: 64, v: 64 }, options, 1, dtype, DType::F32);
        let run = || {
            let device = Device::new(gpu, &case, dtype, DType::F32, 0);
            device.both().unwrap();
            naive_names(&case).map(|name| bits(&device.get(name))).collect::<Vec<_>>()
        };
        assert!(run() == run(), "{decay:?} {dtype}");
    }
}

fn naive_names(case: &Case<f32>) -> impl Iterator<Item = &'static str> {
    let all = ["y", "last", "dq", "dk", "dv", "ddecay", "ddecay_constant", "dwrite", "dbonus", "dskip", "dinitial"];
    all.into_iter().filter(|name| case.writes(name))
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let ssd = Options { write: true, skip: true, ..Options::nothing(Kind::HeadVarying) };
    let gla = Options::nothing(Kind::KeyVarying);
    for (name, options, (b, l), (groups, heads, k, v)) in [
        ("SSD", ssd, (8, 2048), (1, 24, 128, 64)),
        ("linear attention", Options::nothing(Kind::None), (8, 2048), (16, 16, 64, 64)),
        ("retention", Options::nothing(Kind::Head), (8, 2048), (16, 16, 64, 64)),
        ("GLA", gla, (8, 2048), (16, 16, 64, 64)),
        ("HGRN2", gla, (8, 2048), (8, 8, 128, 128)),
        ("RWKV-6", Options { bonus: true, ..gla }, (8, 2048), (16, 16, 64, 64)),
        ("Based", Options { normaliser: true, ..Options::nothing(Kind::None) }, (8, 2048), (16, 16, 153, 64)),
        ("SSD", ssd, (8, 8192), (1, 32, 128, 64)),
        ("SSD", ssd, (1, 131_072), (1, 24, 128, 64)),
    ] {
        let case = of(Dims { b, l, groups, heads, k, v }, options, 1, DType::Bf16, DType::F32);
        let device = Device::new(gpu, &case, DType::Bf16, DType::F32, 0);
        device.both().unwrap();
        let forward = median(gpu.time(5, || device.forward(None)).unwrap());
        let both = median(gpu.time(5, || device.both()).unwrap());
        println!("{name} {b} x {l}, {heads} heads of {k} x {v}: forward {forward:.3} ms, and backward {both:.3}");
    }
}
