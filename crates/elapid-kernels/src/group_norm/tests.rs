use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, bits, central_difference, error_of_terms, fault, terms, wide, with_threads};
use crate::{Float, Rows, RowsMut};

pub(super) const EPS: f32 = 1e-5;

/// Initial values of the accumulated outputs.
pub(super) const BASE: f32 = 0.5;

/// A parameter: of all channels, of those of a group, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    None,
    Group,
    Row,
}

impl Parameter {
    pub(super) const ALL: [Self; 3] = [Self::None, Self::Group, Self::Row];

    fn len(self, d: usize, groups: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Group => d / groups,
            Self::Row => d,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) gate: Option<Place>,
    pub(super) centred: bool,
    pub(super) weight: Parameter,
    pub(super) bias: Parameter,
}

impl Options {
    /// All combinations, by number.
    pub(super) fn number(i: usize) -> Self {
        Self {
            gate: [None, Some(Place::Before), Some(Place::After)][i % 3],
            centred: i / 3 % 2 == 1,
            weight: Parameter::ALL[i / 6 % 3],
            bias: Parameter::ALL[i / 18 % 3],
        }
    }
}

/// Random inputs of `m` rows of `d`; `zx` is `[m (z x)]`, packed as a projection is.
#[derive(Debug, Clone)]
pub(super) struct Case<T> {
    pub(super) m: usize,
    pub(super) d: usize,
    pub(super) groups: usize,
    pub(super) options: Options,
    pub(super) zx: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Vec<T>,
    pub(super) dy: Vec<T>,
}

impl Case<f32> {
    pub(super) fn new((m, d, groups): (usize, usize, usize), options: Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let [weight, bias] = [options.weight, options.bias].map(|of| random.normal(of.len(d, groups)));
        Self { m, d, groups, options, zx: random.normal(m * 2 * d), weight, bias, dy: random.normal(m * d) }
    }

    pub(super) fn converted<T>(&self, to: impl Fn(&[f32]) -> Vec<T>) -> Case<T> {
        let Self { m, d, groups, options, .. } = *self;
        let [zx, weight, bias, dy] = [&self.zx, &self.weight, &self.bias, &self.dy].map(|x| to(x));
        Case { m, d, groups, options, zx, weight, bias, dy }
    }
}

impl<T: Copy + std::fmt::Debug> Case<T> {
    fn args(&self) -> Args<Rows<'_, T>> {
        let (zx, Options { gate, centred, weight, bias }) = (Rows::new(&self.zx, 2 * self.d), self.options);
        Args {
            x: zx.columns(self.d, self.d),
            gate: gate.map(|place| Gate { z: zx.columns(0, self.d), place }),
            groups: self.groups,
            centred,
            weight: (weight != Parameter::None).then_some(&self.weight),
            bias: (bias != Parameter::None).then_some(&self.bias),
            eps: EPS,
        }
    }
}

/// y, dx, dz, dweight, dbias by the oracle.
pub(super) fn naive_of<T: Float>(case: &Case<T>) -> [Vec<T>; 5] {
    let [mut y, mut dx, mut dz] = [(); 3].map(|()| vec![T::zero(); case.m * case.d]);
    let [mut dweight, mut dbias] = [&case.weight, &case.bias].map(|p| vec![T::of(BASE.into()); p.len()]);
    naive::forward(&case.args(), RowsMut::new(&mut y, case.d));
    let grads = Grads {
        dx: RowsMut::new(&mut dx, case.d),
        dz: case.options.gate.map(|_| RowsMut::new(&mut dz, case.d)),
        dweight: (!dweight.is_empty()).then_some(&mut dweight[..]),
        dbias: (!dbias.is_empty()).then_some(&mut dbias[..]),
    };
    naive::backward(&case.args(), Rows::new(&case.dy, case.d), grads);
    [y, dx, dz, dweight, dbias]
}

/// The same by vectors.
fn fast(isa: Isa, case: &Case<f32>, gap: usize) -> [Vec<f32>; 5] {
    let (m, d) = (case.m, case.d);
    let [mut y, mut dx, mut dz] = [(); 3].map(|()| Poisoned::new(m, d, gap));
    let [mut dweight, mut dbias] = [&case.weight, &case.bias].map(|p| vec![BASE; p.len()]);
    cpu::forward(isa, &case.args(), y.rows_mut());
    if case.options.gate.is_none() {
        dz.rows_mut().fill(0.0);
    }
    let grads = Grads {
        dx: dx.rows_mut(),
        dz: case.options.gate.map(|_| dz.rows_mut()),
        dweight: (!dweight.is_empty()).then_some(&mut dweight[..]),
        dbias: (!dbias.is_empty()).then_some(&mut dbias[..]),
    };
    cpu::backward(isa, &case.args(), Rows::new(&case.dy, d), grads).unwrap();
    [y.values(), dx.values(), dz.values(), dweight, dbias]
}

pub(super) const NAMES: [&str; 5] = ["y", "dx", "dz", "dweight", "dbias"];

fn agrees(case: &Case<f32>, gap: usize) {
    let want = naive_of(&case.converted(terms));
    for isa in Isa::available() {
        for ((name, want), got) in NAMES.iter().zip(&want).zip(&fast(isa, case, gap)) {
            let error = error_of_terms(want, got);
            let Case { m, d, groups, options, .. } = case;
            assert!(error < 1e-5, "{} {name}: {error:e} for {m} x {d}, {groups} groups, {options:?}", isa.name());
        }
    }
}

#[test]
fn naive_gradients_are_difference_quotients() {
    for i in 0..54 {
        let case = Case::new((3, 12, 3), Options::number(i), i as u64).converted(wide);
        let [_, dx, dz, dweight, dbias] = naive_of(&case);
        let row = |dx: &[f64], r: usize| dx[r * case.d..][..case.d].to_vec();
        let dzx: Vec<f64> = (0..case.m).flat_map(|r| [row(&dz, r), row(&dx, r)].concat()).collect();
        let base = |x: &[f64]| x.iter().map(|x| x - f64::from(BASE)).collect::<Vec<f64>>();
        let check = |at: &[f64], gradient: &[f64], set: &dyn Fn(&mut Case<f64>, Vec<f64>)| {
            let loss = |x: &[f64]| {
                let mut case = case.clone();
                set(&mut case, x.to_vec());
                naive_of(&case)[0].iter().zip(&case.dy).map(|(y, dy)| y * dy).sum()
            };
            let error = central_difference(loss, at, gradient);
            assert!(error < 1e-7, "{error:e} of {} elements, {:?}", at.len(), case.options);
        };
        check(&case.zx, &dzx, &|case, zx| case.zx = zx);
        check(&case.weight, &base(&dweight), &|case, weight| case.weight = weight);
        check(&case.bias, &base(&dbias), &|case, bias| case.bias = bias);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn fast_is_naive(
        m in 0usize..70, width in 1usize..150, groups in 1usize..5, options in 0usize..54, gap in 0usize..3, seed: u64,
    ) {
        agrees(&Case::new((m, groups * width, groups), Options::number(options), seed), gap);
    }
}

#[test]
fn odd_widths() {
    for (i, (width, groups)) in [(1, 1), (1, 3), (3, 17), (17, 1), (64, 4), (515, 2)].into_iter().enumerate() {
        for options in 0..54 {
            agrees(&Case::new((5, width * groups, groups), Options::number(options), (100 * i + options) as u64), 1);
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_a_batch_and_threads_change_nothing() {
    let case = Case::new((700, 132, 4), Options::number(6 + 1), 3);
    for isa in Isa::available() {
        let run = |threads| with_threads(threads, || fast(isa, &case, 0).map(|x| bits(&x)));
        let all = run(1);
        assert_eq!(all, run(2));
        assert_eq!(all, run(3));
        for r in [0, 1, 350, 699] {
            let row = |x: &[f32], cols: usize| x[r * cols..][..cols].to_vec();
            let alone = Case { m: 1, zx: row(&case.zx, 264), dy: row(&case.dy, 132), ..case.clone() };
            let alone = fast(isa, &alone, 0);
            for (of, all) in alone.iter().zip(&all).take(3) {
                assert_eq!(bits(of), all[r * 132..][..132]);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new((2, 6, 2), Options::number(53), 1);
    let args = case.args();
    let run = |args: Args<Rows<'_>>, cols: usize| {
        let mut y = vec![0.0; 2 * cols];
        forward(args, RowsMut::new(&mut y, cols))
    };
    run(args, 6).unwrap();
    run(Args { weight: Some(&[1.0; 3]), ..args }, 6).unwrap();
    let refused = fault(run(Args { weight: Some(&[1.0; 2]), ..args }, 6));
    assert_eq!(refused.to_string(), "group_norm: argument `weight`: wanted 6 elements, or 3, got 2");
    assert_eq!(fault(run(Args { bias: Some(&[1.0; 5]), ..args }, 6)).argument, "bias");
    assert_eq!(fault(run(Args { groups: 4, ..args }, 6)).argument, "groups");
    assert_eq!(fault(run(Args { groups: 0, ..args }, 6)).argument, "groups");
    assert_eq!(fault(run(args, 5)).argument, "y");
    let narrow = Gate { z: args.x.columns(0, 5), place: Place::After };
    assert_eq!(fault(run(Args { gate: Some(narrow), ..args }, 6)).argument, "z");

    let back = |args: Args<Rows<'_>>, dz: bool, weight: usize, bias: usize| {
        let [mut dx, mut z] = [[0.0; 12]; 2];
        let [mut dweight, mut dbias] = [weight, bias].map(|len| vec![0.0; len]);
        let grads = Grads {
            dx: RowsMut::new(&mut dx, 6),
            dz: dz.then(|| RowsMut::new(&mut z, 6)),
            dweight: (weight > 0).then_some(&mut dweight[..]),
            dbias: (bias > 0).then_some(&mut dbias[..]),
        };
        backward(args, Rows::new(&case.dy, 6), grads)
    };
    back(args, true, 6, 6).unwrap();
    back(args, false, 0, 0).unwrap();
    assert_eq!(fault(back(args, true, 3, 0)).argument, "dweight");
    assert_eq!(fault(back(Args { bias: None, ..args }, true, 6, 6)).argument, "dbias");
    assert_eq!(fault(back(Args { gate: None, ..args }, true, 6, 6)).argument, "dz");
}
