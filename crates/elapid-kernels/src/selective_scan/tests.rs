use proptest::prelude::*;

use super::*;
use crate::testing::{
    Poisoned, Random, Terms, argument_of, bits, central_difference, err_ratio, err_ratio_of_terms, fault, with_threads,
};
use crate::{Float, Rows, RowsMut, Segments};

/// Inputs of one call. `xz` is `[b l (u z)]` and `dbc` is `[b l (delta b c)]`, packed as projections are.
#[derive(Debug, Clone)]
pub(super) struct Case<T> {
    pub(super) dims: Dims,
    pub(super) xz: Vec<T>,
    pub(super) dbc: Vec<T>,
    pub(super) a: Vec<T>,
    pub(super) delta_bias: Option<Vec<T>>,
    pub(super) skip: Option<Vec<T>>,
    pub(super) initial: Option<Vec<T>>,
    pub(super) gated: bool,
    pub(super) softplus: bool,
    pub(super) lengths: Option<Vec<u32>>,
    pub(super) resets: Option<Vec<u8>>,
    pub(super) rule: Discretisation,
    pub(super) dy: Vec<T>,
    pub(super) dlast: Option<Vec<T>>,
}

/// Optional arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) bias: bool,
    pub(super) skip: bool,
    pub(super) gated: bool,
    pub(super) softplus: bool,
    pub(super) initial: bool,
    pub(super) lengths: bool,
    pub(super) resets: bool,
    pub(super) dlast: bool,
}

pub(super) const EVERYTHING: Options = Options {
    bias: true,
    skip: true,
    gated: true,
    softplus: true,
    initial: true,
    lengths: true,
    resets: true,
    dlast: true,
};
pub(super) const WHOLE_ROWS: Options = Options { lengths: false, resets: false, ..EVERYTHING };

impl Case<f32> {
    pub(super) fn new(dims: Dims, rule: Discretisation, options: Options, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Dims { b, l, d, n } = dims;
        let mut dbc = random.normal(b * l * (d + 2 * n));
        for row in dbc.chunks_exact_mut(d + 2 * n) {
            // Around softplus^-1(0.15), or Δ itself.
            row[..d].iter_mut().for_each(|x| *x = if options.softplus { *x - 1.8 } else { 0.1 + 0.05 * *x });
        }
        let mut a: Vec<f32> = random.uniform(d * n, 0.5, 8.0).iter().map(|a| -a).collect();
        a.iter_mut().step_by(7).for_each(|a| *a *= 1e-3);
        a.iter_mut().step_by(11).for_each(|a| *a = 0.0);
        Self {
            dims,
            xz: random.normal(b * l * 2 * d),
            dbc,
            a,
            delta_bias: options.bias.then(|| random.uniform(d, -0.05, 0.05)),
            skip: options.skip.then(|| random.normal(d)),
            initial: options.initial.then(|| random.normal(b * d * n)),
            gated: options.gated,
            softplus: options.softplus,
            lengths: options.lengths.then(|| (0..b).map(|_| random.below(l + 1) as u32).collect()),
            resets: options.resets.then(|| (0..b * l).map(|_| u8::from(random.below(6) == 0)).collect()),
            rule,
            dy: random.normal(b * l * d),
            dlast: options.dlast.then(|| random.normal(b * d * n)),
        }
    }

    pub(super) fn wide(&self) -> Case<f64> {
        self.converted()
    }

    fn converted<T: From<f32>>(&self) -> Case<T> {
        let wide = |x: &Vec<f32>| x.iter().map(|&x| T::from(x)).collect();
        Case {
            dims: self.dims,
            xz: wide(&self.xz),
            dbc: wide(&self.dbc),
            a: wide(&self.a),
            delta_bias: self.delta_bias.as_ref().map(wide),
            skip: self.skip.as_ref().map(wide),
            initial: self.initial.as_ref().map(wide),
            gated: self.gated,
            softplus: self.softplus,
            lengths: self.lengths.clone(),
            resets: self.resets.clone(),
            rule: self.rule,
            dy: wide(&self.dy),
            dlast: self.dlast.as_ref().map(wide),
        }
    }
}

impl<T: Copy + std::fmt::Debug> Case<T> {
    fn args(&self) -> Args<Rows<'_, T>> {
        let Dims { b, l, d, n } = self.dims;
        let (xz, dbc) = (Rows::new(&self.xz, 2 * d), Rows::new(&self.dbc, d + 2 * n));
        assert_eq!(xz.rows(), b * l);
        Args {
            u: xz.columns(0, d),
            delta: dbc.columns(0, d),
            delta_bias: self.delta_bias.as_deref(),
            softplus: self.softplus,
            a: &self.a,
            b: dbc.columns(d, n),
            c: dbc.columns(d + n, n),
            skip: self.skip.as_deref(),
            z: self.gated.then(|| xz.columns(d, d)),
            initial: self.initial.as_deref(),
            segments: Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() },
            rule: self.rule,
        }
    }

    /// The same with other rows: row `b`, positions `from..to`.
    fn part(&self, b: usize, from: usize, to: usize) -> Self {
        let Dims { l, d, n, .. } = self.dims;
        let rows = |x: &Vec<T>, cols: usize| x[(b * l + from) * cols..(b * l + to) * cols].to_vec();
        Self {
            dims: Dims { b: 1, l: to - from, ..self.dims },
            xz: rows(&self.xz, 2 * d),
            dbc: rows(&self.dbc, d + 2 * n),
            initial: self.initial.as_ref().map(|x| x[b * d * n..][..d * n].to_vec()),
            lengths: self.lengths.as_ref().map(|x| vec![x[b].clamp(from as u32, to as u32) - from as u32]),
            resets: self.resets.as_ref().map(|x| x[b * l + from..b * l + to].to_vec()),
            dy: rows(&self.dy, d),
            dlast: self.dlast.as_ref().map(|x| x[b * d * n..][..d * n].to_vec()),
            ..self.clone()
        }
    }
}

/// Outputs by name.
pub(super) type Written<T> = Vec<(&'static str, Vec<T>)>;

/// Initial values of the accumulated outputs.
pub(super) const BASE: f32 = 0.25;

pub(super) fn naive<T: Float>(case: &Case<T>) -> Written<T> {
    let Dims { b, l, d, n } = case.dims;
    let (args, zero, base) = (case.args(), T::zero(), T::of(BASE.into()));
    let (mut y, mut last) = (vec![zero; b * l * d], vec![zero; b * d * n]);
    naive::forward(case.dims, &args, RowsMut::new(&mut y, d), &mut last);
    let [mut du, mut ddelta, mut dz] = [(); 3].map(|()| vec![zero; b * l * d]);
    let [mut db, mut dc] = [(); 2].map(|()| vec![zero; b * l * n]);
    let [mut dbias, mut dskip] = [(); 2].map(|()| vec![base; d]);
    let (mut da, mut dinitial) = (vec![base; d * n], vec![zero; b * d * n]);
    let grads = Grads {
        du: RowsMut::new(&mut du, d),
        ddelta: RowsMut::new(&mut ddelta, d),
        ddelta_bias: Some(&mut dbias),
        da: &mut da,
        db: RowsMut::new(&mut db, n),
        dc: RowsMut::new(&mut dc, n),
        dskip: Some(&mut dskip),
        dz: case.gated.then(|| RowsMut::new(&mut dz, d)),
        dinitial: Some(&mut dinitial),
    };
    naive::backward(case.dims, &args, Rows::new(&case.dy, d), case.dlast.as_deref(), grads);
    vec![
        ("y", y),
        ("last", last),
        ("du", du),
        ("ddelta", ddelta),
        ("ddelta_bias", dbias),
        ("da", da),
        ("db", db),
        ("dc", dc),
        ("dskip", dskip),
        ("dz", dz),
        ("dinitial", dinitial),
    ]
}

fn fast(isa: Isa, case: &Case<f32>) -> Written<f32> {
    let Dims { b, l, d, n } = case.dims;
    let args = case.args();
    let (mut y, mut last) = (Poisoned::new(b * l, d, 3), Poisoned::new(1, b * d * n, 5));
    let mut saved = cpu::Saved::default();
    cpu::forward(isa, case.dims, &args, y.rows_mut(), last.rows_mut().row(0), Some(&mut saved));
    assert!(saved.is_for(case.dims, isa));

    let [mut du, mut ddelta, mut dz] = [(); 3].map(|()| Poisoned::new(b * l, d, 3));
    let [mut db, mut dc] = [(); 2].map(|()| Poisoned::new(b * l, n, 1));
    let [mut dbias, mut dskip] = [(); 2].map(|()| Poisoned::with(&vec![BASE; d], d, 4));
    let mut da = Poisoned::with(&vec![BASE; d * n], d * n, 4);
    let mut dinitial = Poisoned::new(1, b * d * n, 4);
    if !case.gated {
        dz.rows_mut().fill(0.0);
    }
    {
        let (mut da, mut dbias, mut dskip) = (da.rows_mut(), dbias.rows_mut(), dskip.rows_mut());
        let mut dinitial = dinitial.rows_mut();
        let grads = Grads {
            du: du.rows_mut(),
            ddelta: ddelta.rows_mut(),
            ddelta_bias: Some(dbias.row(0)),
            da: da.row(0),
            db: db.rows_mut(),
            dc: dc.rows_mut(),
            dskip: Some(dskip.row(0)),
            dz: case.gated.then(|| dz.rows_mut()),
            dinitial: Some(dinitial.row(0)),
        };
        cpu::backward(isa, case.dims, &args, &saved, Rows::new(&case.dy, d), case.dlast.as_deref(), grads);
    }
    vec![
        ("y", y.values()),
        ("last", last.values()),
        ("du", du.values()),
        ("ddelta", ddelta.values()),
        ("ddelta_bias", dbias.values()),
        ("da", da.values()),
        ("db", db.values()),
        ("dc", dc.values()),
        ("dskip", dskip.values()),
        ("dz", dz.values()),
        ("dinitial", dinitial.values()),
    ]
}

fn all_bits(outputs: &Written<f32>) -> Vec<Vec<u32>> {
    outputs.iter().map(|(_, x)| bits(x)).collect()
}

/// Every instruction set against the oracle.
fn agrees(case: &Case<f32>) {
    let want = naive(&case.converted::<Terms>());
    for isa in Isa::available() {
        for ((name, want), (_, got)) in want.iter().zip(&fast(isa, case)) {
            let error = err_ratio_of_terms(want, got);
            assert!(error <= 1e-5, "{} {name}: {error:e} for {:?} {}", isa.name(), case.dims, case.rule);
        }
    }
}

#[test]
fn naive_gradients_are_central_differences() {
    let off = Options { bias: false, skip: false, gated: false, softplus: false, ..EVERYTHING };
    for rule in Discretisation::ALL {
        for (i, options) in [EVERYTHING, off, WHOLE_ROWS].into_iter().enumerate() {
            let dims = Dims { b: 2, l: 7, d: 3, n: 2 };
            let mut case = Case::new(dims, rule, options, 40 + i as u64).wide();
            if let Some(lengths) = &mut case.lengths {
                lengths.copy_from_slice(&[7, 5]);
            }
            // The oracle's formula for A = 0 has no neighbours to difference with.
            case.a.iter_mut().for_each(|a| *a -= 0.3);
            let loss = |case: &Case<f64>| {
                let out = naive(case);
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                dot(&case.dy, &out[0].1) + case.dlast.as_ref().map_or(0.0, |dlast| dot(dlast, &out[1].1))
            };
            let out = naive(&case);
            let get = |name: &str| &out.iter().find(|o| o.0 == name).unwrap().1;
            // The packed inputs' gradients, packed alike.
            let pack = |parts: &[(&str, usize)]| {
                let rows = |r: usize| {
                    parts.iter().flat_map(move |&(name, cols)| get(name)[r * cols..][..cols].iter().copied())
                };
                (0..dims.b * dims.l).flat_map(rows).collect::<Vec<f64>>()
            };
            let check = |name: &str, at: &[f64], gradient: &[f64], set: &dyn Fn(&mut Case<f64>, Vec<f64>)| {
                let f = |x: &[f64]| {
                    let mut other = case.clone();
                    set(&mut other, x.to_vec());
                    loss(&other)
                };
                let error = central_difference(f, at, gradient);
                assert!(error < 1e-7, "{rule} {options:?}: d{name}: {error:e}");
            };
            let base = |x: &[f64]| x.iter().map(|x| x - f64::from(BASE)).collect::<Vec<f64>>();
            check("xz", &case.xz, &pack(&[("du", 3), ("dz", 3)]), &|c, x| c.xz = x);
            check("dbc", &case.dbc, &pack(&[("ddelta", 3), ("db", 2), ("dc", 2)]), &|c, x| c.dbc = x);
            check("a", &case.a, &base(get("da")), &|c, x| c.a = x);
            let zeros = |n: usize| vec![0.0; n];
            let bias = case.delta_bias.clone().unwrap_or(zeros(dims.d));
            check("delta_bias", &bias, &base(get("ddelta_bias")), &|c, x| c.delta_bias = Some(x));
            let skip = case.skip.clone().unwrap_or(zeros(dims.d));
            check("skip", &skip, &base(get("dskip")), &|c, x| c.skip = Some(x));
            check("initial", case.initial.as_ref().unwrap(), get("dinitial"), &|c, x| c.initial = Some(x));
        }
    }
}

#[test]
fn naive_zoh_is_continuous_at_zero() {
    let dims = Dims { b: 1, l: 4, d: 1, n: 2 };
    let mut case = Case::new(dims, Discretisation::Zoh, WHOLE_ROWS, 3).wide();
    case.a = vec![0.0, -1e-9];
    let at_zero = naive(&case);
    case.a = vec![-1e-9, 0.0];
    for ((name, a), (_, b)) in at_zero.iter().zip(&naive(&case)) {
        let error = crate::testing::err_ratio_f64(a, b);
        assert!(error < 1e-7, "{name}: {error:e}");
    }
}

#[test]
fn sizes() {
    for (i, l) in [0, 1, 2, 31, 32, 33, 77].into_iter().enumerate() {
        for (j, d) in [1, 3, 16, 17, 33, 130].into_iter().enumerate() {
            for (k, n) in [1, 3, 4, 16, 17].into_iter().enumerate() {
                let seed = (i * 100 + j * 10 + k) as u64;
                let options = if seed.is_multiple_of(2) { EVERYTHING } else { WHOLE_ROWS };
                let rule = Discretisation::ALL[seed as usize % 3];
                agrees(&Case::new(Dims { b: 1 + k % 3, l, d, n }, rule, options, seed));
            }
        }
    }
    agrees(&Case::new(Dims { b: 1, l: 70, d: 19, n: 64 }, Discretisation::ExpEuler, EVERYTHING, 9));
    agrees(&Case::new(Dims { b: 2, l: 40, d: 1043, n: 5 }, Discretisation::ExpEuler, EVERYTHING, 10));
    agrees(&Case::new(Dims { b: 0, l: 3, d: 2, n: 2 }, Discretisation::ExpEuler, EVERYTHING, 9));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_naive(
        (b, l, d, n) in (1usize..4, 0usize..70, 1usize..40, 1usize..20),
        rule in 0usize..3,
        on in any::<[bool; 8]>(),
        seed in any::<u64>(),
    ) {
        let [bias, skip, gated, softplus, initial, lengths, resets, dlast] = on;
        let options = Options { bias, skip, gated, softplus, initial, lengths, resets, dlast };
        agrees(&Case::new(Dims { b, l, d, n }, Discretisation::ALL[rule], options, seed));
    }
}

#[test]
fn chunks_and_steps_are_the_whole_bit_for_bit() {
    for (seed, rule) in (0..).zip(Discretisation::ALL) {
        for isa in Isa::available() {
            let case = Case::new(Dims { b: 1, l: 75, d: 37, n: 13 }, rule, EVERYTHING, seed);
            let Dims { l, d, n, .. } = case.dims;
            let case = Case { lengths: Some(vec![70]), ..case };
            let forward = |case: &Case<f32>, initial: Option<&[f32]>| {
                let (mut y, mut last) = (vec![f32::NAN; case.dims.l * d], vec![f32::NAN; d * n]);
                let args = Args { initial, ..case.args() };
                cpu::forward(isa, case.dims, &args, RowsMut::new(&mut y, d), &mut last, None);
                (y, last)
            };
            let (y, last) = forward(&case, case.initial.as_deref());

            let (first, state) = forward(&case.part(0, 0, 41), case.initial.as_deref());
            let (second, state) = forward(&case.part(0, 41, l), Some(&state));
            assert_eq!(bits(&[first, second].concat()), bits(&y), "{} {rule}", isa.name());
            assert_eq!(bits(&state), bits(&last));

            let mut state = case.initial.clone().unwrap();
            for t in 0..l {
                let part = case.part(0, t, t + 1);
                let mut out = vec![f32::NAN; d];
                let args = Args { initial: None, ..part.args() };
                cpu::step(isa, part.dims, &args, &mut state, RowsMut::new(&mut out, d));
                assert_eq!(bits(&out), bits(&y[t * d..][..d]), "{} {rule} step {t}", isa.name());
            }
            assert_eq!(bits(&state), bits(&last));
        }
    }
}

#[test]
fn gradients_through_two_chunks_are_those_of_the_whole() {
    let case = Case::new(Dims { b: 1, l: 75, d: 21, n: 8 }, Discretisation::ExpEuler, WHOLE_ROWS, 5);
    let whole = naive(&case.wide());
    let get = |out: &Written<f32>, name: &str| out.iter().find(|o| o.0 == name).unwrap().1.clone();
    for isa in Isa::available() {
        let mut first = case.part(0, 0, 40);
        let middle = get(&fast(isa, &first), "last");
        let second = fast(isa, &Case { initial: Some(middle), ..case.part(0, 40, 75) });
        first.dlast = Some(get(&second, "dinitial"));
        let first = fast(isa, &first);
        for (name, want) in &whole {
            let (a, b) = (get(&first, name), get(&second, name));
            let got = match *name {
                "dinitial" => a,
                "last" => b,
                "da" | "ddelta_bias" | "dskip" => a.iter().zip(&b).map(|(a, b)| a + b - BASE).collect(),
                _ => [a, b].concat(),
            };
            let error = err_ratio(want, &got);
            assert!(error <= 1e-5, "{} {name}: {error:e}", isa.name());
        }
    }
}

#[test]
fn threads_and_batch_change_no_bit() {
    // Large enough that threads are woken.
    for (seed, rule) in (0..).zip(Discretisation::ALL) {
        let case = Case::new(Dims { b: 3, l: 45, d: 150, n: 6 }, rule, EVERYTHING, seed);
        let isa = Isa::best();
        let one = with_threads(1, || fast(isa, &case));
        assert_eq!(all_bits(&one), all_bits(&with_threads(2, || fast(isa, &case))));
        assert_eq!(all_bits(&one), all_bits(&with_threads(3, || fast(isa, &case))));
        for b in 0..3 {
            let row = fast(isa, &case.part(b, 0, 45));
            for ((name, all), (_, row)) in one.iter().zip(&row) {
                if !["da", "ddelta_bias", "dskip"].contains(name) {
                    let all = &all[b * row.len()..][..row.len()];
                    assert_eq!(bits(all), bits(row), "{name} of row {b}");
                }
            }
        }
    }
}

#[test]
fn steps_of_a_large_batch() {
    let case = Case::new(Dims { b: 37, l: 1, d: 150, n: 16 }, Discretisation::ExpEuler, EVERYTHING, 1);
    let Dims { b, d, n, .. } = case.dims;
    for isa in Isa::available() {
        let (mut y, mut last) = (vec![f32::NAN; b * d], vec![f32::NAN; b * d * n]);
        cpu::forward(isa, case.dims, &case.args(), RowsMut::new(&mut y, d), &mut last, None);
        let (mut out, mut state) = (Poisoned::new(b, d, 2), case.initial.clone().unwrap());
        let args = Args { initial: None, ..case.args() };
        with_threads(2, || cpu::step(isa, case.dims, &args, &mut state, out.rows_mut()));
        assert_eq!((bits(&out.values()), bits(&state)), (bits(&y), bits(&last)));
    }
}

#[test]
fn growing_states_are_followed() {
    let mut case = Case::new(Dims { b: 1, l: 50, d: 18, n: 5 }, Discretisation::ExpEuler, WHOLE_ROWS, 2);
    case.a.iter_mut().for_each(|a| *a *= -0.1);
    agrees(&case);
}

#[test]
fn names_and_errors() {
    for rule in Discretisation::ALL {
        assert_eq!(rule.to_string().parse(), Ok(rule));
    }
    assert!("euler".parse::<Discretisation>().is_err());
    assert_eq!(Discretisation::default(), Discretisation::ExpEuler);

    let case = Case::new(Dims { b: 2, l: 3, d: 4, n: 2 }, Discretisation::ExpEuler, EVERYTHING, 1);
    let run = |dims: Dims, args: &Args<Rows<'_>>, last: usize| {
        let (mut y, mut last) = (vec![7.0; 24], vec![7.0; last]);
        let result = forward(dims, *args, RowsMut::new(&mut y, 4), &mut last, None);
        assert!(result.is_ok() || (y == [7.0; 24] && last.iter().all(|&x| x == 7.0)));
        argument_of(result).map_or(Ok(()), Err)
    };
    let args = case.args();
    assert_eq!(run(case.dims, &args, 16), Ok(()));
    assert_eq!(run(case.dims, &args, 15), Err("last"));
    assert_eq!(run(Dims { n: 3, ..case.dims }, &args, 16), Err("b"));
    assert_eq!(run(Dims { n: 0, ..case.dims }, &args, 16), Err("n"));
    assert_eq!(run(Dims { d: 0, ..case.dims }, &args, 16), Err("d"));
    assert_eq!(run(Dims { l: 2, ..case.dims }, &args, 16), Err("u"));
    assert_eq!(run(case.dims, &Args { b: args.u, ..args }, 16), Err("b"));
    assert_eq!(run(case.dims, &Args { skip: Some(&[0.0]), ..args }, 16), Err("skip"));
    assert_eq!(run(case.dims, &Args { initial: Some(&[0.0]), ..args }, 16), Err("initial"));
    let too_long = Segments { lengths: Some(&[3, 4]), resets: None };
    assert_eq!(run(case.dims, &Args { segments: too_long, ..args }, 16), Err("lengths"));
    let mut y = vec![0.0; 8];
    let (part, mut state) = (case.part(0, 0, 1), [0.0; 16]);
    assert_eq!(fault(step(case.dims, part.args(), &mut state, RowsMut::new(&mut y, 4))).argument, "u");
    // Sizes whose product wraps to that of no rows.
    let nothing = Args { u: Rows::new(&[], 4), delta: Rows::new(&[], 4), b: Rows::new(&[], 2), z: None, ..args };
    let nothing = Args { c: nothing.b, initial: None, segments: Segments::default(), ..nothing };
    let wrapping = Dims { b: 1 << 32, l: 1 << 32, ..case.dims };
    assert_eq!(fault(forward(wrapping, nothing, &mut [0.0; 0], &mut [0.0; 0], None)).argument, "u");
    let saved = Saved::new();
    let outputs = Outputs { y: args.u, dy: args.u, dlast: None };
    let [mut du, mut ddelta, mut da, mut db, mut dc] = [24, 24, 8, 12, 12].map(|len| vec![0.0; len]);
    let (du, ddelta) = (RowsMut::new(&mut du, 4), RowsMut::new(&mut ddelta, 4));
    let (db, dc) = (RowsMut::new(&mut db, 2), RowsMut::new(&mut dc, 2));
    let (ddelta_bias, dskip, dz, dinitial) = (None, None, None, None);
    let grads = Grads { du, ddelta, ddelta_bias, da: &mut da, db, dc, dskip, dz, dinitial };
    assert_eq!(fault(backward(case.dims, args, &saved, outputs, grads)).argument, "saved");
}
