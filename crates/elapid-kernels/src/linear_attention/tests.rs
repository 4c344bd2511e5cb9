use proptest::prelude::*;

use super::*;
use crate::testing::{
    Poisoned, Random, argument_of, bits, central_difference, err_ratio, err_ratio_f64, fault, with_threads,
};
use crate::{Float, Rows, RowsMut, Segments};

/// A [`Decay`] without its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Head,
    HeadVarying,
    Key,
    KeyVarying,
}

pub(super) const KINDS: [Kind; 5] = [Kind::None, Kind::Head, Kind::HeadVarying, Kind::Key, Kind::KeyVarying];

/// Optional arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) decay: Kind,
    pub(super) write: bool,
    pub(super) bonus: bool,
    /// Weights of the skip for each head.
    pub(super) skip: bool,
    /// Weights of the skip for each channel.
    pub(super) skip_channels: bool,
    pub(super) normaliser: bool,
    pub(super) initial: bool,
    pub(super) lengths: bool,
    pub(super) resets: bool,
    pub(super) dlast: bool,
}

impl Options {
    pub(super) fn everything(decay: Kind) -> Self {
        let [write, bonus, skip, skip_channels, normaliser] = [true; 5];
        let [initial, lengths, resets, dlast] = [true; 4];
        Self { decay, write, bonus, skip, skip_channels, normaliser, initial, lengths, resets, dlast }
    }

    pub(super) fn nothing(decay: Kind) -> Self {
        let [write, bonus, skip, skip_channels, normaliser] = [false; 5];
        let [initial, lengths, resets, dlast] = [false; 4];
        Self { decay, write, bonus, skip, skip_channels, normaliser, initial, lengths, resets, dlast }
    }

    /// Some of them, by the bits of a number; a normaliser in one of eight.
    pub(super) fn some(bits: usize) -> Self {
        let on = |i: usize| bits >> i & 1 == 1;
        Self {
            decay: KINDS[bits / 512 % 5],
            write: on(0),
            bonus: on(1),
            skip: on(2),
            skip_channels: on(3),
            normaliser: on(4) && on(5) && on(6),
            initial: on(5),
            lengths: on(6),
            resets: on(7),
            dlast: on(8),
        }
    }
}

/// Inputs of one call.
#[derive(Debug, Clone)]
pub(super) struct Case<T> {
    pub(super) dims: Dims,
    pub(super) options: Options,
    pub(super) scale: f32,
    pub(super) eps: f32,
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) decay: Vec<T>,
    pub(super) write: Vec<T>,
    pub(super) bonus: Vec<T>,
    pub(super) skip: Vec<T>,
    pub(super) initial: Vec<T>,
    pub(super) lengths: Vec<u32>,
    pub(super) resets: Vec<u8>,
    pub(super) dy: Vec<T>,
    pub(super) dlast: Vec<T>,
}

impl Case<f32> {
    pub(super) fn new(dims: Dims, options: Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Dims { b, l, groups, heads, k, v } = dims;
        let states = dims.states(options.normaliser);
        let decays = match options.decay {
            Kind::None => 0,
            Kind::Head => heads,
            Kind::HeadVarying => b * l * heads,
            Kind::Key => heads * k,
            Kind::KeyVarying => b * l * heads * k,
        };
        let mut case = Self {
            dims,
            options,
            scale: 1.0 / (k as f32).sqrt(),
            eps: 0.1,
            q: random.normal(b * l * groups * k),
            k: random.normal(b * l * groups * k),
            v: random.normal(b * l * heads * v),
            // From almost 0, where the state stays, to where little is left of it.
            decay: random.uniform(decays, 0.0, 1.0).iter().map(|x| -3.0 * x.powi(6) - 1e-3).collect(),
            write: random.uniform(b * l * heads, 0.1, 1.5),
            bonus: random.normal(heads * k),
            skip: random.normal(if options.skip_channels { heads * v } else { heads }),
            initial: random.normal(states),
            lengths: (0..b).map(|_| random.below(l + 1) as u32).collect(),
            resets: (0..b * l).map(|_| u8::from(random.below(20) == 0)).collect(),
            dy: random.normal(b * l * heads * v),
            dlast: random.normal(states),
        };
        if options.normaliser {
            // What divides is positive.
            for x in [&mut case.q, &mut case.k, &mut case.bonus] {
                x.iter_mut().for_each(|x| *x = x.abs() + 0.1);
            }
            case.initial.iter_mut().skip(v).step_by(v + 1).for_each(|z| *z = z.abs());
        }
        case
    }

    pub(super) fn wide(&self) -> Case<f64> {
        let wide = |x: &Vec<f32>| x.iter().map(|&x| f64::from(x)).collect();
        Case {
            dims: self.dims,
            options: self.options,
            scale: self.scale,
            eps: self.eps,
            q: wide(&self.q),
            k: wide(&self.k),
            v: wide(&self.v),
            decay: wide(&self.decay),
            write: wide(&self.write),
            bonus: wide(&self.bonus),
            skip: wide(&self.skip),
            initial: wide(&self.initial),
            lengths: self.lengths.clone(),
            resets: self.resets.clone(),
            dy: wide(&self.dy),
            dlast: wide(&self.dlast),
        }
    }
}

impl<T: Copy + std::fmt::Debug> Case<T> {
    fn decay(&self) -> Decay<Rows<'_, T>> {
        let Dims { heads, k, .. } = self.dims;
        match self.options.decay {
            Kind::None => Decay::None,
            Kind::Head => Decay::Head(self.decay.as_slice()),
            Kind::HeadVarying => Decay::HeadVarying(Rows::new(&self.decay, heads)),
            Kind::Key => Decay::Key(self.decay.as_slice()),
            Kind::KeyVarying => Decay::KeyVarying(Rows::new(&self.decay, heads * k)),
        }
    }

    fn args(&self) -> Args<Rows<'_, T>> {
        let (Dims { groups, heads, k, v, .. }, on) = (self.dims, self.options);
        Args {
            q: Rows::new(&self.q, groups * k),
            k: Rows::new(&self.k, groups * k),
            v: Rows::new(&self.v, heads * v),
            scale: self.scale,
            decay: self.decay(),
            write: on.write.then(|| Rows::new(&self.write, heads)),
            bonus: on.bonus.then_some(&self.bonus),
            skip: (on.skip || on.skip_channels).then_some(&self.skip),
            normaliser: on.normaliser.then_some(self.eps),
            initial: on.initial.then_some(&self.initial),
            segments: Segments {
                lengths: on.lengths.then_some(&self.lengths),
                resets: on.resets.then_some(&self.resets),
            },
        }
    }

    fn dlast(&self) -> Option<&[T]> {
        self.options.dlast.then_some(&self.dlast)
    }

    /// Row `b`, positions `from..to`, of the same.
    pub(super) fn part(&self, b: usize, from: usize, to: usize) -> Self {
        let Dims { l, groups, heads, k, v, .. } = self.dims;
        let rows = |x: &Vec<T>, cols: usize| x[(b * l + from) * cols..(b * l + to) * cols].to_vec();
        let states = self.dims.states(self.options.normaliser) / self.dims.b;
        let state = |x: &Vec<T>| x[b * states..][..states].to_vec();
        Self {
            dims: Dims { b: 1, l: to - from, ..self.dims },
            q: rows(&self.q, groups * k),
            k: rows(&self.k, groups * k),
            v: rows(&self.v, heads * v),
            decay: match self.options.decay {
                Kind::HeadVarying => rows(&self.decay, heads),
                Kind::KeyVarying => rows(&self.decay, heads * k),
                _ => self.decay.clone(),
            },
            write: rows(&self.write, heads),
            initial: state(&self.initial),
            lengths: vec![self.lengths[b].clamp(from as u32, to as u32) - from as u32],
            resets: self.resets[b * l + from..b * l + to].to_vec(),
            dy: rows(&self.dy, heads * v),
            dlast: state(&self.dlast),
            ..self.clone()
        }
    }
}

/// Outputs by name.
pub(super) type Written<T> = Vec<(&'static str, Vec<T>)>;

/// Initial values of the accumulated outputs.
pub(super) const BASE: f32 = 0.25;

/// Gradients that are added to.
pub(super) const ADDED: [&str; 3] = ["ddecay_constant", "dbonus", "dskip"];

type Form<T> = fn(Dims, &Args<Rows<'_, T>>, RowsMut<'_, T>, &mut [T]);

fn naive_forward<T: Float>(case: &Case<T>, form: Form<T>) -> (Vec<T>, Vec<T>) {
    let mut y = vec![T::nan(); case.v.len()];
    let mut last = vec![T::nan(); case.dims.states(case.options.normaliser)];
    form(case.dims, &case.args(), RowsMut::new(&mut y, case.dims.heads * case.dims.v), &mut last);
    (y, last)
}

pub(super) fn naive<T: Float>(case: &Case<T>) -> Written<T> {
    let (Dims { groups, heads, k, v, .. }, on) = (case.dims, case.options);
    let (y, last) = naive_forward(case, naive::forward);
    let nan = |len: usize| vec![T::nan(); len];
    let base = |len: usize| vec![T::of(BASE.into()); len];
    let (mut dq, mut dk, mut dv) = (nan(case.q.len()), nan(case.k.len()), nan(case.v.len()));
    let (mut ddecay, mut ddecay_constant) = (nan(case.decay.len()), base(case.decay.len()));
    let (mut dwrite, mut dinitial) = (nan(case.write.len()), nan(last.len()));
    let (mut dbonus, mut dskip) = (base(case.bonus.len()), base(case.skip.len()));
    let varying = matches!(on.decay, Kind::HeadVarying | Kind::KeyVarying);
    let constant = matches!(on.decay, Kind::Head | Kind::Key);
    let decays = if on.decay == Kind::KeyVarying { heads * k } else { heads };
    let grads = Grads {
        dq: RowsMut::new(&mut dq, groups * k),
        dk: RowsMut::new(&mut dk, groups * k),
        dv: RowsMut::new(&mut dv, heads * v),
        ddecay: varying.then(|| RowsMut::new(&mut ddecay, decays)),
        ddecay_constant: constant.then_some(&mut ddecay_constant),
        dwrite: on.write.then(|| RowsMut::new(&mut dwrite, heads)),
        dbonus: on.bonus.then_some(&mut dbonus),
        dskip: (on.skip || on.skip_channels).then_some(&mut dskip),
        dinitial: Some(&mut dinitial),
    };
    let outputs = Outputs { y: Rows::new(&y, heads * v), dy: Rows::new(&case.dy, heads * v), dlast: case.dlast() };
    naive::backward(case.dims, &case.args(), &outputs, grads);
    let written = vec![
        ("y", y),
        ("last", last),
        ("dq", dq),
        ("dk", dk),
        ("dv", dv),
        ("ddecay", ddecay),
        ("ddecay_constant", ddecay_constant),
        ("dwrite", dwrite),
        ("dbonus", dbonus),
        ("dskip", dskip),
        ("dinitial", dinitial),
    ];
    written.into_iter().filter(|(name, _)| case.writes(name)).collect()
}

impl<T> Case<T> {
    /// Whether there is such an output.
    pub(super) fn writes(&self, name: &str) -> bool {
        let on = self.options;
        match name {
            "ddecay" => matches!(on.decay, Kind::HeadVarying | Kind::KeyVarying),
            "ddecay_constant" => matches!(on.decay, Kind::Head | Kind::Key),
            "dwrite" => on.write,
            "dbonus" => on.bonus,
            "dskip" => on.skip || on.skip_channels,
            _ => true,
        }
    }
}

fn fast(isa: Isa, case: &Case<f32>) -> Written<f32> {
    let (Dims { b, l, groups, heads, k, v }, normalised) = (case.dims, case.options.normaliser);
    let states = case.dims.states(normalised);
    let args = case.args();
    let (mut y, mut last) = (Poisoned::new(b * l, heads * v, 3), Poisoned::new(1, states, 5));
    let mut saved = cpu::Saved::default();
    cpu::forward(isa, case.dims, &args, y.rows_mut(), last.rows_mut().row(0), Some(&mut saved));
    assert!(saved.is_for(case.dims, normalised));

    let of_rows = |cols: usize| Poisoned::new(b * l, cols, 2);
    let base = |len: usize| Poisoned::with(&vec![BASE; len], len, 4);
    let (mut dq, mut dk, mut dv) = (of_rows(groups * k), of_rows(groups * k), of_rows(heads * v));
    let mut ddecay = of_rows(if case.options.decay == Kind::KeyVarying { heads * k } else { heads });
    let mut ddecay_constant = base(if case.options.decay == Kind::Key { heads * k } else { heads });
    let (mut dwrite, mut dbonus, mut dskip) = (of_rows(heads), base(heads * k), base(case.skip.len()));
    let mut dinitial = Poisoned::new(1, states, 4);
    {
        let (mut constant, mut bonus, mut skip) = (ddecay_constant.rows_mut(), dbonus.rows_mut(), dskip.rows_mut());
        let mut initial = dinitial.rows_mut();
        let grads = Grads {
            dq: dq.rows_mut(),
            dk: dk.rows_mut(),
            dv: dv.rows_mut(),
            ddecay: case.writes("ddecay").then(|| ddecay.rows_mut()),
            ddecay_constant: case.writes("ddecay_constant").then(|| constant.row(0)),
            dwrite: case.options.write.then(|| dwrite.rows_mut()),
            dbonus: case.options.bonus.then(|| bonus.row(0)),
            dskip: case.writes("dskip").then(|| skip.row(0)),
            dinitial: Some(initial.row(0)),
        };
        let y = y.values();
        let outputs = Outputs { y: Rows::new(&y, heads * v), dy: Rows::new(&case.dy, heads * v), dlast: case.dlast() };
        cpu::backward(isa, case.dims, &args, &saved, &outputs, grads);
    }
    let all = [
        ("y", y),
        ("last", last),
        ("dq", dq),
        ("dk", dk),
        ("dv", dv),
        ("ddecay", ddecay),
        ("ddecay_constant", ddecay_constant),
        ("dwrite", dwrite),
        ("dbonus", dbonus),
        ("dskip", dskip),
        ("dinitial", dinitial),
    ];
    all.into_iter().filter(|(name, _)| case.writes(name)).map(|(name, x)| (name, x.values())).collect()
}

fn get<T: Clone>(outputs: &Written<T>, name: &str) -> Vec<T> {
    outputs.iter().find(|(other, _)| *other == name).unwrap().1.clone()
}

/// Every instruction set against the oracle.
fn agrees(case: &Case<f32>) {
    let want = naive(&case.wide());
    for isa in Isa::available() {
        for ((name, want), (other, got)) in want.iter().zip(&fast(isa, case)) {
            assert_eq!(name, other);
            let error = err_ratio(want, got);
            // The few elements of a parameter are sums that may cancel.
            let bound = if ADDED.contains(name) { 2e-4 } else { 1e-5 };
            assert!(error <= bound, "{} {name}: {error:e} for {:?} {:?}", isa.name(), case.dims, case.options);
        }
    }
}

#[test]
fn naive_gradients_are_central_differences() {
    for (i, decay) in KINDS.into_iter().enumerate() {
        let all = Options::everything(decay);
        let variants = [
            all,
            Options { bonus: false, ..all },
            Options { normaliser: false, skip_channels: false, lengths: false, ..all },
            Options { bonus: false, normaliser: false, ..all },
            Options::nothing(decay),
        ];
        for (j, options) in variants.into_iter().enumerate() {
            let dims = Dims { b: 2, l: 5, groups: 1 + j % 2, heads: 2, k: 3, v: 2 };
            let mut case = Case::new(dims, options, (10 * i + j) as u64).wide();
            case.lengths = vec![5, 4];
            case.resets = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            let loss = |case: &Case<f64>| {
                let (y, last) = naive_forward(case, naive::forward);
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                dot(&case.dy, &y) + case.dlast().map_or(0.0, |dlast| dot(dlast, &last))
            };
            let out = naive(&case);
            let check = |name: &str, at: &[f64], set: &dyn Fn(&mut Case<f64>, Vec<f64>)| {
                if !case.writes(name) {
                    return;
                }
                let f = |x: &[f64]| {
                    let mut other = case.clone();
                    set(&mut other, x.to_vec());
                    loss(&other)
                };
                let mut gradient = get(&out, name);
                if ADDED.contains(&name) {
                    gradient.iter_mut().for_each(|x| *x -= f64::from(BASE));
                }
                let error = central_difference(f, at, &gradient);
                assert!(error < 1e-7, "{options:?}: {name}: {error:e}");
            };
            check("dq", &case.q, &|c, x| c.q = x);
            check("dk", &case.k, &|c, x| c.k = x);
            check("dv", &case.v, &|c, x| c.v = x);
            check("ddecay", &case.decay, &|c, x| c.decay = x);
            check("ddecay_constant", &case.decay, &|c, x| c.decay = x);
            check("dwrite", &case.write, &|c, x| c.write = x);
            check("dbonus", &case.bonus, &|c, x| c.bonus = x);
            check("dskip", &case.skip, &|c, x| c.skip = x);
            if options.initial {
                check("dinitial", &case.initial, &|c, x| c.initial = x);
            }
        }
    }
}

#[test]
fn the_three_naive_forms_are_one() {
    for bits in 0..2560 / 7 {
        let options = Options::some(bits * 7 + bits / 40);
        let dims = Dims { b: 2, l: 23, groups: 1, heads: 2, k: 3, v: 4 };
        let case = Case::new(dims, options, bits as u64).wide();
        let (y, last) = naive_forward(&case, naive::forward);
        let in_fives: Form<f64> = |dims, args, y, last| naive::chunked(dims, args, 5, y, last);
        for form in [naive::parallel, in_fives] {
            let (other_y, other_last) = naive_forward(&case, form);
            let error = err_ratio_f64(&y, &other_y).max(err_ratio_f64(&last, &other_last));
            assert!(error < 1e-12, "{error:e} {options:?}");
        }
    }
}

/// A document after others is the document alone, and padding changes nothing.
#[test]
fn naive_keeps_documents_apart() {
    for decay in KINDS {
        let options = Options::everything(decay);
        let dims = Dims { b: 1, l: 12, groups: 1, heads: 2, k: 3, v: 2 };
        let case = Case::new(dims, options, 5).wide();
        let packed = Case { resets: (0..12).map(|t| u8::from(t == 5)).collect(), lengths: vec![10], ..case };
        let mut alone = packed.part(0, 5, 10);
        alone.options = Options { lengths: false, resets: false, initial: false, ..options };
        let (packed, alone) = (naive(&packed), naive(&alone));
        assert_eq!(packed[0].1[5 * 4..10 * 4], alone[0].1[..]);
        assert!(packed[0].1[10 * 4..].iter().all(|&y| y == 0.0));
        assert_eq!(packed[1].1, alone[1].1);
        assert_eq!(get(&packed, "dq")[5 * 3..10 * 3], get(&alone, "dq")[..]);
        assert!(get(&packed, "dk")[10 * 3..].iter().all(|&dk| dk == 0.0));
    }
}

#[test]
fn options_on_and_off() {
    for bits in (0..2560).step_by(11) {
        let dims = Dims { b: 2, l: 59, groups: 1, heads: 2, k: 5, v: 7 };
        agrees(&Case::new(dims, Options::some(bits), bits as u64));
    }
    for (i, decay) in KINDS.into_iter().enumerate() {
        for (j, options) in [Options::everything(decay), Options::nothing(decay)].into_iter().enumerate() {
            agrees(&Case::new(Dims { b: 2, l: 120, groups: 2, heads: 4, k: 16, v: 16 }, options, (i + 10 * j) as u64));
        }
    }
}

#[test]
fn sizes() {
    let mut seed = 0;
    for l in [0, 1, 2, 19, 97, 203] {
        for (groups, heads, k, v) in
            [(1, 1, 1, 1), (1, 3, 3, 2), (2, 4, 16, 33), (3, 3, 20, 5), (1, 6, 33, 17), (1, 1, 130, 65)]
        {
            seed += 1;
            let on = Options::everything(KINDS[seed % 5]);
            let options = [on, Options { normaliser: false, bonus: false, ..on }][seed / 5 % 2];
            agrees(&Case::new(Dims { b: 1 + seed % 2, l, groups, heads, k, v }, options, seed as u64));
        }
    }
    agrees(&Case::new(Dims { b: 0, l: 3, groups: 1, heads: 2, k: 2, v: 2 }, Options::everything(Kind::Head), 9));
    agrees(&Case::new(Dims { b: 1, l: 30, groups: 1, heads: 1, k: 273, v: 64 }, Options::everything(Kind::None), 9));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_naive(
        (b, l, groups, heads, k, v) in (1usize..4, 0usize..120, 1usize..3, 1usize..6, 1usize..24, 1usize..40),
        options in 0usize..2560,
        seed in any::<u64>(),
    ) {
        agrees(&Case::new(Dims { b, l, groups, heads: groups * heads, k, v }, Options::some(options), seed));
    }
}

fn forward_of(isa: Isa, case: &Case<f32>) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut last) = (vec![f32::NAN; case.v.len()], vec![f32::NAN; case.initial.len()]);
    let rows = RowsMut::new(&mut y, case.dims.heads * case.dims.v);
    cpu::forward(isa, case.dims, &case.args(), rows, &mut last, None);
    (y, last)
}

#[test]
fn chunks_and_steps_are_the_whole() {
    for (seed, decay) in (0..).zip(KINDS) {
        for bonus in [false, true] {
            let options = Options { bonus, ..Options::everything(decay) };
            let mut case = Case::new(Dims { b: 1, l: 125, groups: 1, heads: 2, k: 12, v: 20 }, options, seed);
            case.lengths = vec![121];
            let want = naive_forward(&case.wide(), naive::forward);
            for isa in Isa::available() {
                for pieces in [&[60, 65][..], &[1; 125], &[0, 50, 1, 74]] {
                    let (mut state, mut parts, mut from) = (case.initial.clone(), Vec::new(), 0);
                    for &l in pieces {
                        let part = Case { initial: state.clone(), ..case.part(0, from, from + l) };
                        let mut y = vec![f32::NAN; part.v.len()];
                        if l == 1 {
                            let mut args = part.args();
                            args.initial = None;
                            cpu::step(isa, part.dims, &args, &mut state, RowsMut::new(&mut y, 40));
                        } else {
                            (y, state) = forward_of(isa, &part);
                        }
                        parts.extend(y);
                        from += l;
                    }
                    let error = err_ratio(&want.0, &parts).max(err_ratio(&want.1, &state));
                    assert!(error < 1e-5, "{} {decay:?} {error:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn gradients_of_chunks_are_those_of_the_whole() {
    for (seed, decay) in (0..).zip(KINDS) {
        let options = Options { lengths: false, ..Options::everything(decay) };
        let case = Case::new(Dims { b: 1, l: 140, groups: 1, heads: 2, k: 12, v: 20 }, options, seed);
        let isa = Isa::best();
        let whole = naive(&case.wide());
        let mut first = case.part(0, 0, 37);
        let middle = get(&fast(isa, &first), "last");
        let second = fast(isa, &Case { initial: middle, ..case.part(0, 37, 140) });
        first.dlast = get(&second, "dinitial");
        let first = fast(isa, &first);
        for (name, want) in &whole {
            let (a, b) = (get(&first, name), get(&second, name));
            let got = match *name {
                "dinitial" => a,
                "last" => b,
                name if ADDED.contains(&name) => a.iter().zip(&b).map(|(a, b)| a + b - BASE).collect(),
                _ => [a, b].concat(),
            };
            let error = err_ratio(want, &got);
            assert!(error <= 1e-5, "{decay:?} {name}: {error:e}");
        }
    }
}

#[test]
fn threads_change_no_bit_and_rows_are_alone() {
    for (seed, decay) in (0..).zip(KINDS) {
        let case =
            Case::new(Dims { b: 5, l: 130, groups: 2, heads: 6, k: 12, v: 20 }, Options::everything(decay), seed);
        let isa = Isa::best();
        let all_bits = |out: &Written<f32>| out.iter().map(|(_, x)| bits(x)).collect::<Vec<_>>();
        let one = with_threads(1, || fast(isa, &case));
        for threads in [2, 3] {
            assert_eq!(all_bits(&one), all_bits(&with_threads(threads, || fast(isa, &case))));
        }
        for row in [0, 1, 4] {
            let alone = fast(isa, &case.part(row, 0, 130));
            for ((name, all), (_, alone)) in one.iter().zip(&alone).filter(|((name, _), _)| !ADDED.contains(name)) {
                assert_eq!(
                    bits(&all[row * alone.len()..][..alone.len()]),
                    bits(alone),
                    "{name} of row {row} {decay:?}"
                );
            }
        }
    }
}

/// Decays that leave nothing, and long sequences without any.
#[test]
fn extreme_decays_are_as_naive() {
    for (seed, decay) in (0..).zip([Kind::Head, Kind::HeadVarying, Kind::Key, Kind::KeyVarying]) {
        for bonus in [false, true] {
            let options = Options { bonus, normaliser: false, resets: false, ..Options::everything(decay) };
            let mut case = Case::new(Dims { b: 1, l: 300, groups: 1, heads: 2, k: 6, v: 4 }, options, seed);
            for (i, x) in case.decay.iter_mut().enumerate() {
                *x = [-300.0, -0.001, -20.0, -1e-6, 0.0][i % 5];
            }
            agrees(&case);
        }
    }
}

// Long: one fault after another.
#[test]
fn faults_are_named() {
    let options = Options { lengths: false, resets: false, ..Options::everything(Kind::HeadVarying) };
    let case = Case::new(Dims { b: 2, l: 3, groups: 1, heads: 2, k: 3, v: 4 }, options, 1);
    let run = |dims: Dims, args: &Args<Rows<'_>>, last: usize| {
        let (mut y, mut last) = (vec![7.0; 48], vec![7.0; last]);
        let result = forward(dims, *args, RowsMut::new(&mut y, 8), &mut last, None);
        assert!(result.is_ok() || (y == [7.0; 48] && last.iter().all(|&x| x == 7.0)));
        argument_of(result).map_or(Ok(()), Err)
    };
    let (args, dims) = (case.args(), case.dims);
    assert_eq!(run(dims, &args, 60), Ok(()));
    assert_eq!(run(dims, &args, 59), Err("last"));
    assert_eq!(run(Dims { groups: 0, ..dims }, &args, 60), Err("groups"));
    assert_eq!(run(Dims { heads: 3, groups: 2, ..dims }, &args, 60), Err("groups"));
    assert_eq!(run(Dims { k: 0, ..dims }, &args, 60), Err("k"));
    assert_eq!(run(Dims { l: 2, ..dims }, &args, 60), Err("q"));
    assert_eq!(run(Dims { v: 3, ..dims }, &args, 60), Err("v"));
    assert_eq!(run(dims, &Args { decay: Decay::Head(&[0.0][..]), ..args }, 60), Err("decay"));
    assert_eq!(run(dims, &Args { decay: Decay::Key(&[0.0][..]), ..args }, 60), Err("decay"));
    assert_eq!(run(dims, &Args { decay: Decay::KeyVarying(Rows::new(&case.write, 2)), ..args }, 60), Err("decay"));
    assert_eq!(run(dims, &Args { write: Some(Rows::new(&case.write, 3)), ..args }, 60), Err("write"));
    assert_eq!(run(dims, &Args { bonus: Some(&[0.0]), ..args }, 60), Err("bonus"));
    assert_eq!(run(dims, &Args { skip: Some(&[0.0]), ..args }, 60), Err("skip"));
    assert_eq!(run(dims, &Args { normaliser: None, ..args }, 60), Err("initial"));
    let too_long = Segments { lengths: Some(&[3, 4]), resets: None };
    assert_eq!(run(dims, &Args { segments: too_long, ..args }, 60), Err("lengths"));
    // Sizes whose product wraps to that of no rows.
    let nothing = Args { q: Rows::new(&[], 3), initial: None, ..args };
    let wrapping = Dims { b: 1 << 32, l: 1 << 32, ..dims };
    assert_eq!(fault(forward(wrapping, nothing, &mut [0.0; 0], &mut [0.0; 0], None)).argument, "q");
    let (mut y, mut state) = (vec![0.0; 16], vec![0.0; 60]);
    let stepped = step(Dims { l: 1, ..dims }, case.part(0, 0, 1).args(), &mut state, RowsMut::new(&mut y, 8));
    assert!(argument_of(stepped).is_some());

    let mut saved = Saved::new();
    let (mut y, mut last) = (vec![0.0; 48], vec![0.0; 60]);
    forward(dims, args, RowsMut::new(&mut y, 8), &mut last, Some(&mut saved)).unwrap();
    let back = |args: Args<Rows<'_>>, saved: &Saved, change: &dyn Fn(&mut Grads<RowsMut<'static>>)| {
        let outputs = Outputs { y: Rows::new(&y, 8), dy: Rows::new(&case.dy, 8), dlast: None };
        let zeros = |cols: usize| RowsMut::new(vec![0.0; 6 * cols].leak(), cols);
        let mut grads = Grads {
            dq: zeros(3),
            dk: zeros(3),
            dv: zeros(8),
            ddecay: Some(zeros(2)),
            ddecay_constant: None,
            dwrite: None,
            dbonus: None,
            dskip: None,
            dinitial: None,
        };
        change(&mut grads);
        argument_of(backward(dims, args, saved, outputs, grads))
    };
    let flat = |len: usize| -> Option<&'static mut [f32]> { Some(vec![0.0; len].leak()) };
    assert_eq!(back(args, &saved, &|_| {}), None);
    assert_eq!(back(args, &saved, &|grads| grads.dbonus = flat(6)), None);
    assert_eq!(back(args, &saved, &|grads| grads.dbonus = flat(5)), Some("dbonus"));
    assert_eq!(back(args, &saved, &|grads| grads.ddecay_constant = flat(2)), Some("ddecay_constant"));
    assert_eq!(back(Args { decay: Decay::None, ..args }, &saved, &|_| {}), Some("ddecay"));
    assert_eq!(back(Args { bonus: None, ..args }, &saved, &|grads| grads.dbonus = flat(6)), Some("dbonus"));
    assert_eq!(back(args, &saved, &|grads| grads.dskip = flat(2)), Some("dskip"));
    assert_eq!(back(args, &Saved::new(), &|_| {}), Some("saved"));
    assert_eq!(back(Args { normaliser: None, initial: None, ..args }, &saved, &|_| {}), Some("saved"));
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let plain = Options::nothing(Kind::None);
    let ssd = Options { write: true, skip: true, ..Options::nothing(Kind::HeadVarying) };
    for (name, options, (b, l), (groups, heads, k, v)) in [
        ("SSD", ssd, (2, 2048), (1, 12, 128, 64)),
        ("none", plain, (2, 2048), (12, 12, 128, 64)),
        ("GLA", Options::nothing(Kind::KeyVarying), (2, 2048), (12, 12, 128, 64)),
        ("64 x 64", plain, (2, 2048), (16, 16, 64, 64)),
    ] {
        let dims = Dims { b, l, groups, heads, k, v };
        let case = Case::new(dims, options, 1);
        let (mut y, mut last) = (vec![0.0; case.v.len()], vec![0.0; case.initial.len()]);
        let flops = (4 * b * l * heads * k * v) as f64;
        let best = |f: &mut dyn FnMut()| {
            let time = |f: &mut dyn FnMut()| {
                let start = std::time::Instant::now();
                f();
                start.elapsed().as_secs_f64()
            };
            (0..7).map(|_| time(f)).fold(f64::INFINITY, f64::min)
        };
        let peak = with_threads(1, crate::ceiling::fma_ceiling);
        let forward = with_threads(1, || {
            best(&mut || {
                cpu::forward(Isa::best(), dims, &case.args(), RowsMut::new(&mut y, heads * v), &mut last, None)
            })
        });
        let both = with_threads(1, || best(&mut || drop(fast(Isa::best(), &case))));
        println!(
            "{name}: forward {:.2} ms, 4 b l h k v operations at {:.0} % of {:.0} GFLOP/s; with backward {:.2} ms",
            forward * 1e3,
            100.0 * flops / forward / peak,
            peak / 1e9,
            both * 1e3
        );
    }
}
