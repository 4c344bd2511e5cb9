use proptest::prelude::*;

use super::*;
use crate::testing::{Poisoned, Random, argument_of, bits, central_difference, err_ratio, fault, with_threads};
use crate::{Float, Rows, RowsMut, Segments};

/// Inputs of one call.
#[derive(Debug, Clone)]
pub(super) struct Case<T> {
    pub(super) dims: Dims,
    pub(super) kind: Kind,
    pub(super) x: Vec<T>,
    pub(super) recurrent: Vec<T>,
    pub(super) bias: Option<Vec<T>>,
    pub(super) initial: Option<Vec<T>>,
    pub(super) lengths: Option<Vec<u32>>,
    pub(super) resets: Option<Vec<u8>>,
    pub(super) dy: Vec<T>,
    pub(super) dlast: Option<Vec<T>>,
}

/// Optional arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) bias: bool,
    pub(super) initial: bool,
    pub(super) lengths: bool,
    pub(super) resets: bool,
    pub(super) dlast: bool,
}

pub(super) const EVERYTHING: Options = Options { bias: true, initial: true, lengths: true, resets: true, dlast: true };
pub(super) const WHOLE_ROWS: Options = Options { lengths: false, resets: false, ..EVERYTHING };
pub(super) const NOTHING: Options = Options { bias: false, initial: false, dlast: false, ..WHOLE_ROWS };

impl Case<f32> {
    pub(super) fn new(kind: Kind, dims: Dims, options: Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Dims { b, l, d, heads } = dims;
        let (gates, states, width) = (kind.gates() * d, dims.states(kind), d / heads);
        let bound = 1.0 / (width as f32).sqrt();
        let mut state = || {
            let mut state = random.normal(states);
            // n, which divides, is positive.
            if kind == Kind::Slstm {
                for row in state.chunks_exact_mut(4 * d) {
                    row[2 * d..3 * d].iter_mut().for_each(|n| *n = 0.5 + n.abs());
                }
            }
            state
        };
        let (initial, dlast) = (state(), state());
        Self {
            dims,
            kind,
            x: random.normal(b * l * gates),
            recurrent: random.uniform(gates * width, -bound, bound),
            bias: options.bias.then(|| random.normal(gates)),
            initial: options.initial.then_some(initial),
            lengths: options.lengths.then(|| (0..b).map(|_| random.below(l + 1) as u32).collect()),
            resets: options.resets.then(|| (0..b * l).map(|_| u8::from(random.below(6) == 0)).collect()),
            dy: random.normal(b * l * d),
            dlast: options.dlast.then_some(dlast),
        }
    }

    pub(super) fn wide(&self) -> Case<f64> {
        let wide = |x: &Vec<f32>| x.iter().map(|&x| f64::from(x)).collect();
        Case {
            dims: self.dims,
            kind: self.kind,
            x: wide(&self.x),
            recurrent: wide(&self.recurrent),
            bias: self.bias.as_ref().map(wide),
            initial: self.initial.as_ref().map(wide),
            lengths: self.lengths.clone(),
            resets: self.resets.clone(),
            dy: wide(&self.dy),
            dlast: self.dlast.as_ref().map(wide),
        }
    }
}

impl<T: Copy + std::fmt::Debug> Case<T> {
    pub(super) fn gates(&self) -> usize {
        self.kind.gates() * self.dims.d
    }

    fn args(&self) -> Args<Rows<'_, T>> {
        Args {
            kind: self.kind,
            x: Rows::new(&self.x, self.gates()),
            recurrent: Rows::new(&self.recurrent, self.dims.d / self.dims.heads),
            bias: self.bias.as_deref(),
            initial: self.initial.as_deref(),
            segments: Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() },
        }
    }

    /// The same with other rows: row `b`, positions `from..to`.
    fn part(&self, b: usize, from: usize, to: usize) -> Self {
        let (Dims { l, d, .. }, s) = (self.dims, self.kind.states());
        let rows = |x: &Vec<T>, cols: usize| x[(b * l + from) * cols..(b * l + to) * cols].to_vec();
        let state = |x: &Vec<T>| x[b * s * d..][..s * d].to_vec();
        Self {
            dims: Dims { b: 1, l: to - from, ..self.dims },
            x: rows(&self.x, self.gates()),
            initial: self.initial.as_ref().map(state),
            lengths: self.lengths.as_ref().map(|x| vec![x[b].clamp(from as u32, to as u32) - from as u32]),
            resets: self.resets.as_ref().map(|x| x[b * l + from..b * l + to].to_vec()),
            dy: rows(&self.dy, d),
            dlast: self.dlast.as_ref().map(state),
            ..self.clone()
        }
    }
}

/// Outputs by name.
pub(super) type Written<T> = Vec<(&'static str, Vec<T>)>;

/// Initial values of the accumulated outputs.
pub(super) const BASE: f32 = 0.25;

pub(super) fn naive<T: Float>(case: &Case<T>) -> Written<T> {
    let (Dims { b, l, d, .. }, zero, base) = (case.dims, T::zero(), T::of(BASE.into()));
    let (args, states) = (case.args(), case.dims.states(case.kind));
    let (mut y, mut last) = (vec![zero; b * l * d], vec![zero; states]);
    naive::forward(case.dims, &args, RowsMut::new(&mut y, d), &mut last);
    let mut dx = vec![zero; case.x.len()];
    let [mut du, mut dbias] = [case.recurrent.len(), case.gates()].map(|len| vec![base; len]);
    let mut dinitial = vec![zero; states];
    let grads = Grads {
        dx: RowsMut::new(&mut dx, case.gates()),
        drecurrent: &mut du,
        dbias: Some(&mut dbias),
        dinitial: Some(&mut dinitial),
    };
    let outputs = Outputs { y: Rows::new(&y, d), dy: Rows::new(&case.dy, d), dlast: case.dlast.as_deref() };
    naive::backward(case.dims, &args, &outputs, grads);
    vec![("y", y), ("last", last), ("dx", dx), ("drecurrent", du), ("dbias", dbias), ("dinitial", dinitial)]
}

fn fast(isa: Isa, case: &Case<f32>) -> Written<f32> {
    let (Dims { b, l, d, .. }, states) = (case.dims, case.dims.states(case.kind));
    let args = case.args();
    let (mut y, mut last) = (Poisoned::new(b * l, d, 3), Poisoned::new(1, states, 5));
    let mut saved = cpu::Saved::default();
    cpu::forward(isa, case.dims, &args, y.rows_mut(), last.rows_mut().row(0), Some(&mut saved));
    assert!(saved.is_for(case.dims, case.kind));

    let mut dx = Poisoned::new(b * l, case.gates(), 3);
    let [mut du, mut dbias] = [case.recurrent.len(), case.gates()].map(|len| Poisoned::with(&vec![BASE; len], len, 4));
    let mut dinitial = Poisoned::new(1, states, 4);
    {
        let (mut du, mut dbias, mut dinitial) = (du.rows_mut(), dbias.rows_mut(), dinitial.rows_mut());
        let grads = Grads {
            dx: dx.rows_mut(),
            drecurrent: du.row(0),
            dbias: Some(dbias.row(0)),
            dinitial: Some(dinitial.row(0)),
        };
        let y = y.values();
        let outputs = Outputs { y: Rows::new(&y, d), dy: Rows::new(&case.dy, d), dlast: case.dlast.as_deref() };
        cpu::backward(isa, case.dims, &args, &saved, &outputs, grads);
    }
    let all = [("y", y), ("last", last), ("dx", dx), ("drecurrent", du), ("dbias", dbias), ("dinitial", dinitial)];
    all.into_iter().map(|(name, x)| (name, x.values())).collect()
}

fn get<T: Clone>(outputs: &Written<T>, name: &str) -> Vec<T> {
    outputs.iter().find(|(other, _)| *other == name).unwrap().1.clone()
}

/// Every instruction set against the oracle.
fn agrees(case: &Case<f32>) {
    let want = naive(&case.wide());
    for isa in Isa::available() {
        for ((name, want), (_, got)) in want.iter().zip(&fast(isa, case)) {
            let error = err_ratio(want, got);
            assert!(error <= 1e-5, "{} {name}: {error:e} for {:?} {:?}", isa.name(), case.kind, case.dims);
        }
    }
}

#[test]
fn naive_gradients_are_central_differences() {
    for kind in Kind::ALL {
        for (i, options) in [EVERYTHING, WHOLE_ROWS, NOTHING].into_iter().enumerate() {
            let dims = Dims { b: 2, l: 6, d: 4, heads: 1 + i % 2 };
            let mut case = Case::new(kind, dims, options, 140 + i as u64).wide();
            if let Some(lengths) = &mut case.lengths {
                lengths.copy_from_slice(&[6, 4]);
            }
            // m has kinks, which c, n and m follow but h does not: difference quotients of all four are taken once.
            if let Some(dlast) = case.dlast.as_mut().filter(|_| kind == Kind::Slstm && i > 0) {
                dlast.chunks_exact_mut(16).for_each(|row| row[4..].fill(0.0));
            }
            let loss = |case: &Case<f64>| {
                let out = naive(case);
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                dot(&case.dy, &out[0].1) + case.dlast.as_ref().map_or(0.0, |dlast| dot(dlast, &out[1].1))
            };
            let out = naive(&case);
            let check = |name: &str, at: &[f64], set: &dyn Fn(&mut Case<f64>, Vec<f64>)| {
                let f = |x: &[f64]| {
                    let mut other = case.clone();
                    set(&mut other, x.to_vec());
                    loss(&other)
                };
                let mut gradient = get(&out, name);
                if ["drecurrent", "dbias"].contains(&name) {
                    gradient.iter_mut().for_each(|x| *x -= f64::from(BASE));
                }
                let error = central_difference(f, at, &gradient);
                assert!(error < 1e-7, "{kind:?} {options:?}: {name}: {error:e}");
            };
            check("dx", &case.x, &|c, x| c.x = x);
            check("drecurrent", &case.recurrent, &|c, x| c.recurrent = x);
            check("dbias", &case.bias.clone().unwrap_or(vec![0.0; case.gates()]), &|c, x| c.bias = Some(x));
            // Zeros of an sLSTM are not a point with neighbours: where n is 0, m' is i.
            if let Some(initial) = &case.initial {
                check("dinitial", initial, &|c, x| c.initial = Some(x));
            }
        }
    }
}

/// What the state's scale means: h of an sLSTM does not depend on m while c and n follow it.
#[test]
fn an_slstm_does_not_depend_on_its_stabiliser() {
    let dims = Dims { b: 1, l: 9, d: 5, heads: 1 };
    let case = Case::new(Kind::Slstm, dims, WHOLE_ROWS, 3).wide();
    let mut moved = case.clone();
    for j in 0..5 {
        let state = moved.initial.as_mut().unwrap();
        state[5 + j] *= 2.5f64.exp();
        state[10 + j] *= 2.5f64.exp();
        state[15 + j] -= 2.5;
    }
    let error = crate::testing::err_ratio_f64(&naive(&case)[0].1, &naive(&moved)[0].1);
    assert!(error < 1e-13, "{error:e}");
}

/// A document after others is the document alone, and padding changes nothing.
#[test]
fn naive_keeps_documents_apart() {
    for kind in Kind::ALL {
        let dims = Dims { b: 1, l: 12, d: 4, heads: 2 };
        let case = Case::new(kind, dims, WHOLE_ROWS, 5).wide();
        let packed =
            Case { resets: Some((0..12).map(|t| u8::from(t == 5)).collect()), lengths: Some(vec![10]), ..case };
        let alone = Case { lengths: None, resets: None, initial: None, ..packed.part(0, 5, 10) };
        let (packed, alone) = (naive(&packed), naive(&alone));
        assert_eq!(packed[0].1[5 * 4..10 * 4], alone[0].1[..]);
        assert!(packed[0].1[10 * 4..].iter().all(|&y| y == 0.0));
        assert_eq!(packed[1].1, alone[1].1);
        assert_eq!(get(&packed, "dx")[5 * 4 * kind.gates()..10 * 4 * kind.gates()], get(&alone, "dx")[..]);
    }
}

#[test]
fn sizes() {
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        for (j, l) in [0, 1, 2, 19].into_iter().enumerate() {
            for (k, (d, heads)) in [(1, 1), (3, 3), (16, 1), (33, 1), (36, 2), (130, 1)].into_iter().enumerate() {
                let seed = (i * 100 + j * 10 + k) as u64;
                let options = if seed.is_multiple_of(2) { EVERYTHING } else { WHOLE_ROWS };
                agrees(&Case::new(kind, Dims { b: 1 + k % 3, l, d, heads }, options, seed));
            }
        }
        // Several tiles of the product, and groups of rows.
        agrees(&Case::new(kind, Dims { b: 27, l: 9, d: 24, heads: 1 + i % 2 }, EVERYTHING, i as u64));
        agrees(&Case::new(kind, Dims { b: 0, l: 3, d: 2, heads: 1 }, EVERYTHING, 9));
        agrees(&Case::new(kind, Dims { b: 2, l: 3, d: 5, heads: 1 }, NOTHING, 9));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_naive(
        (b, l, width, heads) in (1usize..16, 0usize..24, 1usize..24, 1usize..4),
        kind in 0usize..5,
        on in any::<[bool; 5]>(),
        seed in any::<u64>(),
    ) {
        let [bias, initial, lengths, resets, dlast] = on;
        let options = Options { bias, initial, lengths, resets, dlast };
        agrees(&Case::new(Kind::ALL[kind], Dims { b, l, d: width * heads, heads }, options, seed));
    }
}

#[test]
fn chunks_and_steps_are_the_whole_bit_for_bit() {
    for (seed, kind) in (0..).zip(Kind::ALL) {
        for isa in Isa::available() {
            let case = Case::new(kind, Dims { b: 1, l: 45, d: 38, heads: 2 }, EVERYTHING, seed);
            let case = Case { lengths: Some(vec![41]), ..case };
            let forward = |case: &Case<f32>, initial: Option<&[f32]>| {
                let (d, states) = (case.dims.d, case.dims.states(kind));
                let (mut y, mut last) = (vec![f32::NAN; case.dims.l * d], vec![f32::NAN; states]);
                let args = Args { initial, ..case.args() };
                cpu::forward(isa, case.dims, &args, RowsMut::new(&mut y, d), &mut last, None);
                (y, last)
            };
            let (y, last) = forward(&case, case.initial.as_deref());
            for pieces in [&[23, 22][..], &[1; 45], &[0, 5, 1, 39]] {
                let (mut state, mut parts, mut from) = (case.initial.clone().unwrap(), Vec::new(), 0);
                for &l in pieces {
                    let (part, next) = forward(&case.part(0, from, from + l), Some(&state));
                    parts.extend(part);
                    (state, from) = (next, from + l);
                }
                assert_eq!(bits(&parts), bits(&y), "{} {kind:?}", isa.name());
                assert_eq!(bits(&state), bits(&last), "{} {kind:?}", isa.name());
            }
        }
    }
}

#[test]
fn gradients_of_chunks_are_those_of_the_whole() {
    for (seed, kind) in (0..).zip(Kind::ALL) {
        let case =
            Case::new(kind, Dims { b: 1, l: 40, d: 20, heads: 2 }, Options { lengths: false, ..EVERYTHING }, seed);
        let isa = Isa::best();
        let whole = fast(isa, &case);
        let mut first = case.part(0, 0, 17);
        let middle = get(&fast(isa, &first), "last");
        let second = fast(isa, &Case { initial: Some(middle), ..case.part(0, 17, 40) });
        first.dlast = Some(get(&second, "dinitial"));
        let first = fast(isa, &first);
        for (name, want) in &whole {
            let (a, b) = (get(&first, name), get(&second, name));
            let got = match *name {
                "dinitial" => a,
                "last" => b,
                "drecurrent" | "dbias" => a.iter().zip(&b).map(|(a, b)| a + b - BASE).collect(),
                _ => [a, b].concat(),
            };
            let want: Vec<f64> = crate::testing::wide(want);
            let error = err_ratio(&want, &got);
            assert!(error <= 1e-5, "{kind:?} {name}: {error:e}");
        }
    }
}

#[test]
fn threads_and_batch_change_no_bit() {
    // Large enough that threads are woken: 29 rows are several groups, 3 rows share the rows of U.
    for (b, d) in [(29, 48), (3, 300)] {
        for (seed, kind) in (0..).zip(Kind::ALL) {
            let case = Case::new(kind, Dims { b, l: 7, d, heads: 1 }, EVERYTHING, seed);
            let isa = Isa::best();
            let all_bits = |out: Written<f32>| out.iter().map(|(_, x)| bits(x)).collect::<Vec<_>>();
            let one = with_threads(1, || fast(isa, &case));
            assert_eq!(all_bits(one.clone()), all_bits(with_threads(2, || fast(isa, &case))));
            assert_eq!(all_bits(one.clone()), all_bits(with_threads(3, || fast(isa, &case))));
            for row in [0, 1, b - 1] {
                let alone = fast(isa, &case.part(row, 0, 7));
                for ((name, all), (_, alone)) in one.iter().zip(&alone) {
                    if !["drecurrent", "dbias"].contains(name) {
                        let all = &all[row * alone.len()..][..alone.len()];
                        assert_eq!(bits(all), bits(alone), "{name} of row {row} {kind:?}");
                    }
                }
            }
        }
    }
}

/// Gates far outside what exp can take.
#[test]
fn extreme_inputs_stay_finite() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Relu) {
        let mut case = Case::new(kind, Dims { b: 2, l: 20, d: 9, heads: 1 }, WHOLE_ROWS, 1);
        case.x.iter_mut().for_each(|x| *x *= 300.0);
        for isa in Isa::available() {
            for (name, got) in fast(isa, &case) {
                assert!(got.iter().all(|x| x.is_finite()), "{} {kind:?} {name}", isa.name());
            }
        }
    }
}

#[test]
fn faults_are_named() {
    let case = Case::new(Kind::Lstm, Dims { b: 2, l: 3, d: 4, heads: 2 }, EVERYTHING, 1);
    let run = |dims: Dims, args: &Args<Rows<'_>>, last: usize| {
        let (mut y, mut last) = (vec![7.0; 24], vec![7.0; last]);
        let result = forward(dims, *args, RowsMut::new(&mut y, 4), &mut last, None);
        assert!(result.is_ok() || (y == [7.0; 24] && last.iter().all(|&x| x == 7.0)));
        argument_of(result).map_or(Ok(()), Err)
    };
    let args = case.args();
    assert_eq!(run(case.dims, &args, 16), Ok(()));
    assert_eq!(run(case.dims, &args, 15), Err("last"));
    assert_eq!(run(Dims { heads: 3, ..case.dims }, &args, 16), Err("heads"));
    assert_eq!(run(Dims { heads: 0, ..case.dims }, &args, 16), Err("heads"));
    assert_eq!(run(Dims { d: 0, ..case.dims }, &args, 16), Err("d"));
    assert_eq!(run(Dims { l: 2, ..case.dims }, &args, 16), Err("x"));
    assert_eq!(run(Dims { heads: 1, ..case.dims }, &args, 16), Err("recurrent"));
    assert_eq!(run(case.dims, &Args { kind: Kind::Gru, ..args }, 16), Err("x"));
    assert_eq!(run(case.dims, &Args { kind: Kind::Slstm, ..args }, 16), Err("initial"));
    assert_eq!(run(case.dims, &Args { bias: Some(&[0.0]), ..args }, 16), Err("bias"));
    let too_long = Segments { lengths: Some(&[3, 4]), resets: None };
    assert_eq!(run(case.dims, &Args { segments: too_long, ..args }, 16), Err("lengths"));
    // Sizes whose product wraps to that of no rows.
    let nothing = Args { x: Rows::new(&[], 16), initial: None, segments: Segments::default(), ..args };
    let wrapping = Dims { b: 1 << 32, l: 1 << 32, ..case.dims };
    assert_eq!(fault(forward(wrapping, nothing, &mut [0.0; 0], &mut [0.0; 0], None)).argument, "x");

    let mut saved = Saved::new();
    let (mut y, mut last) = (vec![0.0; 24], vec![0.0; 16]);
    forward(case.dims, args, RowsMut::new(&mut y, 4), &mut last, Some(&mut saved)).unwrap();
    assert_eq!(saved.bytes(), 4 * 6 * 4 * 5);
    let back = |args: Args<Rows<'_>>, saved: &Saved, dx: usize| {
        let outputs = Outputs { y: Rows::new(&y, 4), dy: Rows::new(&case.dy, 4), dlast: None };
        let (mut dx, mut du) = (vec![0.0; 6 * dx], vec![0.0; 32]);
        let cols = dx.len() / 6;
        let grads = Grads { dx: RowsMut::new(&mut dx, cols), drecurrent: &mut du[..], dbias: None, dinitial: None };
        argument_of(backward(case.dims, args, saved, outputs, grads))
    };
    assert_eq!(back(args, &saved, 16), None);
    assert_eq!(back(args, &saved, 12), Some("dx"));
    assert_eq!(back(args, &Saved::new(), 16), Some("saved"));
}
