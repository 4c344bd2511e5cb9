use proptest::prelude::*;

use super::*;
use crate::testing::{
    Poisoned, Random, Terms, argument_of, bits, central_difference, err_ratio, err_ratio_of_terms, fault, with_threads,
};
use crate::{Float, Rows, RowsMut, Segments};

/// Forms of a.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Constant,
    Values,
    Logs,
    RgLru,
}

/// Every form, in the fields that it is for.
pub(super) const FORMS: [(Form, Field); 6] = [
    (Form::Constant, Field::Real),
    (Form::Values, Field::Real),
    (Form::Logs, Field::Real),
    (Form::RgLru, Field::Real),
    (Form::Constant, Field::Complex),
    (Form::Values, Field::Complex),
];

/// Optional arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) initial: bool,
    pub(super) lengths: bool,
    pub(super) resets: bool,
    pub(super) dlast: bool,
    pub(super) reverse: bool,
}

pub(super) const EVERYTHING: Options =
    Options { initial: true, lengths: true, resets: true, dlast: true, reverse: false };
pub(super) const WHOLE_ROWS: Options = Options { lengths: false, resets: false, ..EVERYTHING };
pub(super) const NOTHING: Options = Options { initial: false, dlast: false, ..WHOLE_ROWS };

impl Options {
    /// All combinations, by number.
    pub(super) fn number(i: usize) -> Self {
        let [initial, lengths, resets, dlast, reverse] = [0, 1, 2, 3, 4].map(|bit| i >> bit & 1 == 1);
        Self { initial, lengths, resets, dlast, reverse }
    }
}

/// Inputs of one call. `rows` is `[b l (x a recurrence input)]`, packed as projections are; a form reads some of it.
#[derive(Debug, Clone)]
pub(super) struct Case<T> {
    pub(super) dims: Dims,
    pub(super) form: Form,
    pub(super) field: Field,
    pub(super) reverse: bool,
    pub(super) rows: Vec<T>,
    pub(super) constant: Vec<T>,
    pub(super) lambda: Vec<T>,
    pub(super) initial: Option<Vec<T>>,
    pub(super) lengths: Option<Vec<u32>>,
    pub(super) resets: Option<Vec<u8>>,
    pub(super) dh: Vec<T>,
    pub(super) dlast: Option<Vec<T>>,
}

impl Case<f32> {
    pub(super) fn new((form, field): (Form, Field), dims: Dims, options: Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (Dims { b, l, d }, columns) = (dims, dims.d * field.parts());
        let mut factors = |count: usize| -> Vec<f32> {
            let sizes = random.uniform(count * d, 0.6, 1.0);
            let angles = random.uniform(count * d, -3.0, 3.0);
            let part = |f: fn(f32) -> f32, row: usize| {
                let at = row * d..(row + 1) * d;
                sizes[at.clone()].iter().zip(&angles[at]).map(|(size, angle)| size * f(*angle)).collect::<Vec<f32>>()
            };
            let real = |row: usize| sizes[row * d..][..d].to_vec();
            (0..count)
                .flat_map(|row| match (form, field) {
                    (Form::Logs, _) => real(row).iter().map(|a| a.ln() - 1e-3).collect(),
                    (_, Field::Real) => real(row),
                    (_, Field::Complex) => [part(f32::cos, row), part(f32::sin, row)].concat(),
                })
                .collect()
        };
        let (constant, varying) = (factors(1), factors(b * l));
        let (x, gates) = (random.normal(b * l * columns), random.normal(b * l * 2 * d));
        let row =
            |r: usize| [&x[r * columns..][..columns], &varying[r * columns..][..columns], &gates[r * 2 * d..][..2 * d]];
        Self {
            dims,
            form,
            field,
            reverse: options.reverse,
            rows: (0..b * l).flat_map(|r| row(r).concat()).collect(),
            constant,
            // a of Griffin's initialisation, to a of almost 1.
            lambda: random.uniform(d, -6.0, -1.0),
            initial: options.initial.then(|| random.normal(b * columns)),
            lengths: options.lengths.then(|| (0..b).map(|_| random.below(l + 1) as u32).collect()),
            resets: options.resets.then(|| (0..b * l).map(|_| u8::from(random.below(6) == 0)).collect()),
            dh: random.normal(b * l * columns),
            dlast: options.dlast.then(|| random.normal(b * columns)),
        }
    }

    pub(super) fn converted<T: From<f32>>(&self) -> Case<T> {
        let wide = |x: &Vec<f32>| x.iter().map(|&x| T::from(x)).collect();
        Case {
            dims: self.dims,
            form: self.form,
            field: self.field,
            reverse: self.reverse,
            rows: wide(&self.rows),
            constant: wide(&self.constant),
            lambda: wide(&self.lambda),
            initial: self.initial.as_ref().map(wide),
            lengths: self.lengths.clone(),
            resets: self.resets.clone(),
            dh: wide(&self.dh),
            dlast: self.dlast.as_ref().map(wide),
        }
    }
}

impl<T: Copy + std::fmt::Debug> Case<T> {
    /// Columns of x.
    pub(super) fn columns(&self) -> usize {
        self.dims.d * self.field.parts()
    }

    /// Columns of `rows`.
    pub(super) fn packed(&self) -> usize {
        2 * self.columns() + 2 * self.dims.d
    }

    fn args(&self) -> Args<Rows<'_, T>> {
        let (rows, columns, d) = (Rows::new(&self.rows, self.packed()), self.columns(), self.dims.d);
        let varying = rows.columns(columns, columns);
        Args {
            field: self.field,
            x: rows.columns(0, columns),
            decay: match self.form {
                Form::Constant => Decay::Constant(&self.constant[..]),
                Form::Values => Decay::Values(varying),
                Form::Logs => Decay::Logs(varying),
                Form::RgLru => Decay::RgLru(RgLru {
                    recurrence: rows.columns(2 * columns, d),
                    input: rows.columns(2 * columns + d, d),
                    lambda: &self.lambda,
                }),
            },
            initial: self.initial.as_deref(),
            segments: Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() },
            reverse: self.reverse,
        }
    }

    /// The same with other rows: row `b`, positions `from..to`.
    fn part(&self, b: usize, from: usize, to: usize) -> Self {
        let (l, columns) = (self.dims.l, self.columns());
        let rows = |x: &Vec<T>, cols: usize| x[(b * l + from) * cols..(b * l + to) * cols].to_vec();
        Self {
            dims: Dims { b: 1, l: to - from, ..self.dims },
            rows: rows(&self.rows, self.packed()),
            initial: self.initial.as_ref().map(|x| x[b * columns..][..columns].to_vec()),
            lengths: self.lengths.as_ref().map(|x| vec![x[b].clamp(from as u32, to as u32) - from as u32]),
            resets: self.resets.as_ref().map(|x| x[b * l + from..b * l + to].to_vec()),
            dh: rows(&self.dh, columns),
            dlast: self.dlast.as_ref().map(|x| x[b * columns..][..columns].to_vec()),
            ..self.clone()
        }
    }
}

/// Outputs by name; those that a form has not are empty.
pub(super) type Written<T> = Vec<(&'static str, Vec<T>)>;

/// Initial values of the accumulated outputs.
pub(super) const BASE: f32 = 0.25;

pub(super) fn naive<T: Float>(case: &Case<T>) -> Written<T> {
    let (Dims { b, l, d }, columns) = (case.dims, case.columns());
    let (args, zero, base) = (case.args(), T::zero(), T::of(BASE.into()));
    let [mut h, mut dx, mut da, mut dinput] = [(); 4].map(|()| vec![zero; b * l * columns]);
    let [mut last, mut dinitial] = [(); 2].map(|()| vec![zero; b * columns]);
    let mut sums = vec![base; if case.form == Form::RgLru { d } else { columns }];
    naive::forward(case.dims, &args, RowsMut::new(&mut h, columns), &mut last);
    let grads = Grads {
        dx: RowsMut::new(&mut dx, columns),
        decay: Some(match case.form {
            Form::Constant => DecayGrads::Constant(&mut sums[..]),
            Form::Values | Form::Logs => DecayGrads::Varying(RowsMut::new(&mut da, columns)),
            Form::RgLru => DecayGrads::RgLru {
                drecurrence: RowsMut::new(&mut da, columns),
                dinput: RowsMut::new(&mut dinput, columns),
                dlambda: &mut sums,
            },
        }),
        dinitial: Some(&mut dinitial),
    };
    let outputs = Outputs { h: Rows::new(&h, columns), dh: Rows::new(&case.dh, columns), dlast: case.dlast.as_deref() };
    naive::backward(case.dims, &args, &outputs, grads);
    named(case.form, [h, last, dx, dinitial, da, dinput, sums])
}

/// `[h last dx dinitial da dinput sums]` by name, those of the form.
pub(super) fn named<T>(form: Form, outputs: [Vec<T>; 7]) -> Written<T> {
    let names = ["h", "last", "dx", "dinitial", "da", "dinput", "sums"];
    let there = |name: &str| match name {
        "da" => form != Form::Constant,
        "dinput" => form == Form::RgLru,
        "sums" => matches!(form, Form::Constant | Form::RgLru),
        _ => true,
    };
    names.into_iter().zip(outputs).filter(|(name, _)| there(name)).collect()
}

fn fast(isa: Isa, case: &Case<f32>) -> Written<f32> {
    let (Dims { b, l, d }, columns) = (case.dims, case.columns());
    let args = case.args();
    let [mut h, mut dx, mut da, mut dinput] = [(); 4].map(|()| Poisoned::new(b * l, columns, 3));
    let [mut last, mut dinitial] = [(); 2].map(|()| Poisoned::new(1, b * columns, 4));
    let width = if case.form == Form::RgLru { d } else { columns };
    let mut sums = Poisoned::with(&vec![BASE; width], width, 2);
    cpu::forward(isa, case.dims, &args, h.rows_mut(), last.rows_mut().row(0));
    let written = h.values();
    {
        let (mut sums, mut dinitial) = (sums.rows_mut(), dinitial.rows_mut());
        let grads = Grads {
            dx: dx.rows_mut(),
            decay: Some(match case.form {
                Form::Constant => DecayGrads::Constant(sums.row(0)),
                Form::Values | Form::Logs => DecayGrads::Varying(da.rows_mut()),
                Form::RgLru => {
                    DecayGrads::RgLru { drecurrence: da.rows_mut(), dinput: dinput.rows_mut(), dlambda: sums.row(0) }
                }
            }),
            dinitial: Some(dinitial.row(0)),
        };
        let (h, dh) = (Rows::new(&written, columns), Rows::new(&case.dh, columns));
        cpu::backward(isa, case.dims, &args, &Outputs { h, dh, dlast: case.dlast.as_deref() }, grads);
    }
    let all = [last, dx, dinitial, da, dinput, sums].map(|x| x.values());
    let [last, dx, dinitial, da, dinput, sums] = all;
    named(case.form, [written, last, dx, dinitial, da, dinput, sums])
}

fn all_bits(outputs: &Written<f32>) -> Vec<Vec<u32>> {
    outputs.iter().map(|(_, x)| bits(x)).collect()
}

pub(super) fn get<'a, T>(outputs: &'a Written<T>, name: &str) -> &'a [T] {
    outputs.iter().find(|output| output.0 == name).map_or(&[], |output| &output.1)
}

/// Every instruction set against the oracle.
fn agrees(case: &Case<f32>) {
    let want = naive(&case.converted::<Terms>());
    for isa in Isa::available() {
        for ((name, want), (_, got)) in want.iter().zip(&fast(isa, case)) {
            let error = err_ratio_of_terms(want, got);
            assert!(error <= 1e-5, "{} {name}: {error:e} for {:?} {:?}", isa.name(), case.form, case.dims);
        }
    }
}

#[test]
fn naive_gradients_are_central_differences() {
    for (i, form) in FORMS.into_iter().enumerate() {
        for options in [0, 1, 9, 15, 25, 31].map(Options::number) {
            let mut case = Case::new(form, Dims { b: 2, l: 6, d: 3 }, options, 40 + i as u64).converted::<f64>();
            if let Some(lengths) = &mut case.lengths {
                lengths.copy_from_slice(&[6, 4]);
            }
            let out = naive(&case);
            let loss = |case: &Case<f64>| {
                let (out, dot) = (naive(case), |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>());
                dot(&case.dh, get(&out, "h")) + case.dlast.as_ref().map_or(0.0, |dlast| dot(dlast, get(&out, "last")))
            };
            let check = |name: &str, at: &[f64], gradient: &[f64], set: &dyn Fn(&mut Case<f64>, Vec<f64>)| {
                let f = |x: &[f64]| {
                    let mut other = case.clone();
                    set(&mut other, x.to_vec());
                    loss(&other)
                };
                let error = central_difference(f, at, gradient);
                assert!(error < 1e-7, "{form:?} {options:?}: d{name}: {error:e}");
            };
            let (columns, d) = (case.columns(), case.dims.d);
            let zeros = vec![0.0; 2 * columns];
            let row = |name, r: usize, columns| match get(&out, name) {
                [] => &zeros[..columns],
                x => &x[r * columns..][..columns],
            };
            let gated = case.form == Form::RgLru;
            let packed = |r: usize| match gated {
                false => [row("dx", r, columns), row("da", r, columns), &zeros[..2 * d]].concat(),
                true => [row("dx", r, d), &zeros[..d], row("da", r, d), row("dinput", r, d)].concat(),
            };
            let rows: Vec<f64> = (0..12).flat_map(packed).collect();
            check("rows", &case.rows, &rows, &|case, x| case.rows = x);
            let sums: Vec<f64> = get(&out, "sums").iter().map(|x| x - f64::from(BASE)).collect();
            match case.form {
                Form::Constant => check("a", &case.constant, &sums, &|case, x| case.constant = x),
                Form::RgLru => check("lambda", &case.lambda, &sums, &|case, x| case.lambda = x),
                _ => {}
            }
            if let Some(initial) = &case.initial {
                check("initial", initial, get(&out, "dinitial"), &|case, x| case.initial = Some(x));
            }
        }
    }
}

/// a of almost 1: the slope of the root would be above 1000.
#[test]
fn the_slope_of_the_root_is_limited() {
    let mut case = Case::new(FORMS[3], Dims { b: 1, l: 2, d: 1 }, Options { initial: true, ..NOTHING }, 1);
    (case.lambda, case.initial, case.dh) = (vec![-20.0], Some(vec![0.0]), vec![1.0, 0.0]);
    case.rows = [1.0, 0.0, 0.0, 0.0].repeat(2);
    let out = naive(&case.converted::<f64>());
    // d h / d log a = i x (-2 a²) 1000, and d log a / d recurrence = -8 softplus(Λ) / 4.
    let want = 0.5 * -2.0 * 1000.0 * -8.0 * (-20f64).softplus() * 0.25;
    assert!((get(&out, "da")[0] / want - 1.0).abs() < 1e-6, "{:?} {want:e}", get(&out, "da"));
    agrees(&case);
}

#[test]
fn complex_numbers_without_imaginary_parts_are_real() {
    let dims = Dims { b: 2, l: 9, d: 5 };
    let real = Case::new((Form::Values, Field::Real), dims, EVERYTHING, 2);
    let mut complex = Case::new((Form::Values, Field::Complex), dims, EVERYTHING, 2);
    let zeros = vec![0.0; dims.d];
    let with_zeros = |x: &[f32]| x.chunks_exact(dims.d).flat_map(|re| [re, &zeros].concat()).collect::<Vec<f32>>();
    let four = |row: &[f32]| [with_zeros(&row[..2 * dims.d]), row[2 * dims.d..].to_vec()].concat();
    complex.rows = real.rows.chunks_exact(real.packed()).flat_map(four).collect();
    complex.dh = with_zeros(&real.dh);
    complex.initial = real.initial.as_deref().map(with_zeros);
    complex.dlast = real.dlast.as_deref().map(with_zeros);
    (complex.lengths, complex.resets) = (real.lengths.clone(), real.resets.clone());
    for ((name, real), (_, complex)) in naive(&real.converted::<f64>()).iter().zip(&naive(&complex.converted::<f64>()))
    {
        let parts: Vec<f64> = complex.chunks_exact(2 * dims.d).flat_map(|row| row[..dims.d].to_vec()).collect();
        assert_eq!(real, &parts, "{name}");
    }
}

#[test]
fn sizes() {
    for (i, l) in [0, 1, 2, 31, 77].into_iter().enumerate() {
        for (j, d) in [1, 3, 16, 17, 130].into_iter().enumerate() {
            for (k, form) in FORMS.into_iter().enumerate() {
                let seed = i * 100 + j * 10 + k;
                agrees(&Case::new(form, Dims { b: 1 + k % 3, l, d }, Options::number(seed * 7 % 32), seed as u64));
            }
        }
    }
    agrees(&Case::new(FORMS[1], Dims { b: 0, l: 3, d: 2 }, EVERYTHING, 9));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_naive(
        (b, l, d) in (1usize..4, 0usize..70, 1usize..80), form in 0usize..6, options in 0usize..32, seed: u64,
    ) {
        agrees(&Case::new(FORMS[form], Dims { b, l, d }, Options::number(options), seed));
    }
}

#[test]
fn chunks_and_steps_are_the_whole_bit_for_bit() {
    for (isa, form) in Isa::available().into_iter().flat_map(|isa| FORMS.map(|form| (isa, form))) {
        for reverse in [false, true] {
            let mut case = Case::new(form, Dims { b: 1, l: 75, d: 37 }, Options { reverse, ..EVERYTHING }, 7);
            case.lengths = Some(vec![70]);
            // In reverse, a chunk does not know of a reset at the start of the one behind it.
            for at in [1, 42] {
                case.resets.iter_mut().for_each(|resets| resets[at] = u8::from(form.0 != Form::RgLru || !reverse));
            }
            let columns = case.columns();
            let forward = |case: &Case<f32>, initial: &[f32]| {
                let (mut h, mut last) = (vec![f32::NAN; case.dims.l * columns], vec![f32::NAN; columns]);
                let args = Args { initial: Some(initial), ..case.args() };
                cpu::forward(isa, case.dims, &args, RowsMut::new(&mut h, columns), &mut last);
                (h, last)
            };
            let initial = case.initial.clone().unwrap();
            let (h, last) = forward(&case, &initial);
            let (mut state, mut chunks) = (initial.clone(), Vec::new());
            let mut ranges = vec![(0, 1), (1, 42), (42, 75)];
            if reverse {
                ranges.reverse();
            }
            for (from, to) in ranges {
                let (chunk, next) = forward(&case.part(0, from, to), &state);
                (state, chunks) = (next, if reverse { [chunk, chunks].concat() } else { [chunks, chunk].concat() });
            }
            assert_eq!((bits(&chunks), bits(&state)), (bits(&h), bits(&last)), "{} {form:?} {reverse}", isa.name());
            if reverse {
                continue;
            }
            let mut state = initial;
            for t in 0..75 {
                let (part, mut out) = (case.part(0, t, t + 1), vec![f32::NAN; columns]);
                let args = Args { initial: None, ..part.args() };
                cpu::step(isa, part.dims, &args, &mut state, RowsMut::new(&mut out, columns));
                assert_eq!(bits(&out), bits(&h[t * columns..][..columns]), "{} {form:?} step {t}", isa.name());
            }
            assert_eq!(bits(&state), bits(&last));
        }
    }
}

#[test]
fn gradients_through_two_chunks_are_those_of_the_whole() {
    for (form, reverse) in FORMS.into_iter().flat_map(|form| [(form, false), (form, true)]) {
        let case = Case::new(form, Dims { b: 1, l: 75, d: 21 }, Options { reverse, ..EVERYTHING }, 5);
        let mut case = Case { lengths: None, ..case };
        // In reverse, a chunk does not know of a reset at the start of the one behind it.
        case.resets.iter_mut().for_each(|resets| resets[40] = 0);
        let whole = naive(&case.converted::<f64>());
        for isa in Isa::available() {
            let (mut first, second) = (case.part(0, 0, 40), case.part(0, 40, 75));
            let mut second = second;
            if reverse {
                std::mem::swap(&mut first, &mut second);
            }
            second.initial = Some(get(&fast(isa, &first), "last").to_vec());
            let second = fast(isa, &second);
            first.dlast = Some(get(&second, "dinitial").to_vec());
            let first = fast(isa, &first);
            for (name, want) in &whole {
                let (a, b) = (get(&first, name), get(&second, name));
                let got = match *name {
                    "dinitial" => a.to_vec(),
                    "last" => b.to_vec(),
                    "sums" => a.iter().zip(b).map(|(a, b)| a + b - BASE).collect(),
                    _ if reverse => [b, a].concat(),
                    _ => [a, b].concat(),
                };
                let error = err_ratio(want, &got);
                assert!(error <= 1e-5, "{} {form:?} {reverse} {name}: {error:e}", isa.name());
            }
        }
    }
}

#[test]
fn threads_and_batch_change_no_bit() {
    for form in FORMS {
        // Large enough that threads are woken.
        let case = Case::new(form, Dims { b: 3, l: 90, d: 150 }, EVERYTHING, 4);
        let isa = Isa::best();
        let one = with_threads(1, || fast(isa, &case));
        assert_eq!(all_bits(&one), all_bits(&with_threads(2, || fast(isa, &case))));
        assert_eq!(all_bits(&one), all_bits(&with_threads(3, || fast(isa, &case))));
        for b in 0..3 {
            for ((name, all), (_, row)) in one.iter().zip(&fast(isa, &case.part(b, 0, 90))) {
                if *name != "sums" {
                    assert_eq!(bits(&all[b * row.len()..][..row.len()]), bits(row), "{name} of row {b}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(FORMS[1], Dims { b: 2, l: 3, d: 4 }, EVERYTHING, 1);
    let run = |dims: Dims, args: Args<Rows<'_>>, last: usize| {
        let (mut h, mut last) = (vec![7.0; 24], vec![7.0; last]);
        let result = forward(dims, args, RowsMut::new(&mut h, 4), &mut last);
        assert!(result.is_ok() || (h == [7.0; 24] && last.iter().all(|&x| x == 7.0)));
        argument_of(result)
    };
    let (args, dims) = (case.args(), case.dims);
    assert_eq!(run(dims, args, 8), None);
    assert_eq!(run(dims, args, 7), Some("last"));
    assert_eq!(run(Dims { d: 0, ..dims }, args, 8), Some("d"));
    assert_eq!(run(Dims { l: 2, ..dims }, args, 8), Some("x"));
    assert_eq!(run(dims, Args { decay: Decay::Constant(&[0.5; 3][..]), ..args }, 8), Some("a"));
    assert_eq!(run(dims, Args { decay: Decay::Values(args.x.columns(0, 3)), ..args }, 8), Some("a"));
    assert_eq!(run(dims, Args { initial: Some(&[0.0; 3]), ..args }, 8), Some("initial"));
    assert_eq!(run(dims, Args { field: Field::Complex, ..args }, 8), Some("x"));
    let gates = RgLru { recurrence: args.x, input: args.x, lambda: &[0.0; 3] };
    assert_eq!(run(dims, Args { decay: Decay::RgLru(gates), ..args }, 8), Some("lambda"));
    let segments = Segments { lengths: Some(&[3, 4]), resets: None };
    assert_eq!(run(dims, Args { segments, ..args }, 8), Some("lengths"));
    let complex = Args { field: Field::Complex, decay: Decay::Logs(args.x), ..args };
    let refused = fault(forward(Dims { d: 2, ..dims }, complex, RowsMut::new(&mut [0.0; 24], 4), &mut [0.0; 8]));
    assert_eq!(refused.to_string(), "diagonal_scan: argument `a`: wanted a real field, got a complex one");
    let (part, mut state, mut h) = (case.part(0, 0, 1), [0.0; 4], [0.0; 4]);
    assert_eq!(fault(step(part.dims, part.args(), &mut state, RowsMut::new(&mut h, 4))).argument, "initial");
    // Sizes whose product wraps to that of no rows.
    let nothing = Args { x: Rows::new(&[], 4), decay: Decay::Constant(&[0.5; 4][..]), initial: None, ..args };
    let nothing = Args { segments: Segments::default(), ..nothing };
    let wrapping = Dims { b: 1 << 32, l: 1 << 32, d: 4 };
    assert_eq!(fault(forward(wrapping, nothing, RowsMut::new(&mut [], 4), &mut [0.0; 0])).argument, "x");

    let outputs = Outputs { h: args.x, dh: args.x, dlast: None };
    let (mut dx, mut da) = ([0.0; 24], [0.0; 4]);
    let grads = Grads { dx: RowsMut::new(&mut dx, 4), decay: Some(DecayGrads::Constant(&mut da[..])), dinitial: None };
    assert_eq!(fault(backward(dims, args, outputs, grads)).argument, "decay");
    let grads = Grads { dx: RowsMut::new(&mut dx, 4), decay: None, dinitial: Some(&mut da[..]) };
    assert_eq!(fault(backward(dims, args, outputs, grads)).argument, "dinitial");
}
