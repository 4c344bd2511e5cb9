use proptest::prelude::*;

use super::*;
use crate::Float;
use crate::testing::{
    Poisoned, Random, Terms, argument_of, bits, central_difference, err_ratio, err_ratio_of_terms, fault, wide,
    with_threads,
};

/// Random arguments of one problem.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) dims: Dims,
    pub(super) x: Vec<f32>,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) initial: Vec<f32>,
    pub(super) dy: Vec<f32>,
    pub(super) dlast: Vec<f32>,
    pub(super) lengths: Vec<u32>,
    pub(super) resets: Vec<u8>,
    /// bias, initial, lengths, resets, SiLU, dlast.
    pub(super) with: [bool; 6],
}

impl Case {
    pub(super) fn new(dims: Dims, with: [bool; 6], resets_in: usize, seed: u64) -> Self {
        let Dims { b, l, d, k } = dims;
        let mut random = Random::new(seed);
        Self {
            dims,
            x: random.normal(b * l * d),
            weight: random.normal(d * k),
            bias: random.normal(d),
            initial: random.normal(b * (k - 1) * d),
            dy: random.normal(b * l * d),
            dlast: random.normal(b * (k - 1) * d),
            lengths: (0..b).map(|_| random.below(l + 1) as u32).collect(),
            resets: (0..b * l).map(|_| u8::from(random.below(resets_in) == 0)).collect(),
            with,
        }
    }

    fn segments(&self) -> Segments<'_> {
        let [_, _, lengths, resets, ..] = self.with;
        Segments { lengths: lengths.then_some(&self.lengths), resets: resets.then_some(&self.resets) }
    }

    fn args(&self) -> Args<Rows<'_>> {
        let [bias, initial, _, _, silu, _] = self.with;
        Args {
            x: Rows::new(&self.x, self.dims.d),
            weight: &self.weight,
            bias: bias.then_some(&self.bias),
            initial: initial.then_some(&self.initial),
            segments: self.segments(),
            silu,
        }
    }

    fn dlast(&self) -> Option<&[f32]> {
        self.with[5].then_some(&self.dlast)
    }
}

fn converted<T: From<f32>>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from(x)).collect()
}

/// The parameters and inputs of a case in f64, or as [`Terms`].
#[derive(Clone)]
pub(super) struct Wide<T = f64> {
    pub(super) x: Vec<T>,
    pub(super) weight: Vec<T>,
    pub(super) bias: Vec<T>,
    pub(super) initial: Vec<T>,
}

impl<T: Float + From<f32>> Wide<T> {
    pub(super) fn of(case: &Case) -> Self {
        let [x, weight, bias, initial] = [&case.x, &case.weight, &case.bias, &case.initial].map(|x| converted(x));
        Self { x, weight, bias, initial }
    }

    fn args<'a>(&'a self, case: &'a Case) -> Args<Rows<'a, T>> {
        let [bias, initial, _, _, silu, _] = case.with;
        Args {
            x: Rows::new(&self.x, case.dims.d),
            weight: &self.weight,
            bias: bias.then_some(&self.bias),
            initial: initial.then_some(&self.initial),
            segments: case.segments(),
            silu,
        }
    }

    pub(super) fn forward(&self, case: &Case) -> (Vec<T>, Vec<T>) {
        let (mut y, mut last) = (vec![T::zero(); case.x.len()], vec![T::zero(); case.initial.len()]);
        naive::forward(case.dims, &self.args(case), RowsMut::new(&mut y, case.dims.d), &mut last);
        (y, last)
    }

    /// dx, dweight, dbias, dinitial.
    pub(super) fn backward(&self, case: &Case) -> [Vec<T>; 4] {
        let [mut dx, mut dw, mut db, mut di] =
            [case.x.len(), case.weight.len(), case.bias.len(), case.initial.len()].map(|n| vec![T::zero(); n]);
        let grads = Grads {
            dx: RowsMut::new(&mut dx, case.dims.d),
            dweight: &mut dw,
            dbias: Some(&mut db),
            dinitial: Some(&mut di),
        };
        let (dy, dlast) = (converted(&case.dy), converted(&case.dlast));
        let dy = Rows::new(&dy, case.dims.d);
        naive::backward(case.dims, &self.args(case), dy, case.with[5].then_some(&dlast), grads);
        [dx, dw, db, di]
    }
}

/// An independent form of the definition: documents are laid out with their zeros (or `initial`) in front of them.
fn definition(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let Dims { b, l, d, k } = case.dims;
    let (args, given) = (case.args(), Wide::<f64>::of(case));
    let mut y = vec![0.0; b * l * d];
    let mut last = Vec::new();
    for row in 0..b {
        let zeros = vec![vec![0.0; d]; k - 1];
        let mut line: Vec<Vec<f64>> = zeros.clone();
        if args.initial.is_some() {
            line = given.initial[row * (k - 1) * d..][..(k - 1) * d].chunks(d).map(<[f64]>::to_vec).collect();
        }
        for t in 0..args.segments.len(row, l) {
            if args.segments.reset(row, t, l) {
                line.extend(zeros.clone());
            }
            line.push(given.x[(row * l + t) * d..][..d].to_vec());
            for c in 0..d {
                let mut sum = if case.with[0] { given.bias[c] } else { 0.0 };
                for j in 0..k {
                    sum += given.weight[c * k + j] * line[line.len() - k + j][c];
                }
                y[(row * l + t) * d + c] = if args.silu { sum / (1.0 + (-sum).exp()) } else { sum };
            }
        }
        last.extend(line[line.len() - (k - 1)..].concat());
    }
    (y, last)
}

fn case() -> impl Strategy<Value = Case> {
    let dims = (1usize..4, 0usize..30, 1usize..40, 1usize..6).prop_map(|(b, l, d, k)| Dims { b, l, d, k });
    (dims, any::<[bool; 6]>(), 1usize..12, any::<u64>())
        .prop_map(|(dims, with, r, seed)| Case::new(dims, with, r, seed))
}

#[test]
fn naive_gradients_are_difference_quotients() {
    let dims = Dims { b: 2, l: 6, d: 2, k: 4 };
    let cases = (0..64u8).map(|i| (dims, std::array::from_fn(|bit| i >> bit & 1 == 1)));
    let short =
        [(Dims { l: 2, ..dims }, [true; 6]), (Dims { l: 0, ..dims }, [true; 6]), (Dims { k: 1, ..dims }, [true; 6])];
    for (seed, (dims, with)) in (0..).zip(cases.chain(short)) {
        let case = Case::new(dims, with, 4, seed);
        let at = Wide::<f64>::of(&case);
        let (dy, dlast) = (wide(&case.dy), if with[5] { wide(&case.dlast) } else { vec![0.0; case.dlast.len()] });
        let loss = |at: &Wide| -> f64 {
            let (y, last) = at.forward(&case);
            y.iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>()
                + last.iter().zip(&dlast).map(|(a, b)| a * b).sum::<f64>()
        };
        let [dx, dw, db, di] = at.backward(&case);
        let check = |error: f64| assert!(error < 1e-7, "{case:?}: {error}");
        check(central_difference(|x| loss(&Wide { x: x.to_vec(), ..at.clone() }), &at.x, &dx));
        check(central_difference(|w| loss(&Wide { weight: w.to_vec(), ..at.clone() }), &at.weight, &dw));
        if with[0] {
            check(central_difference(|b| loss(&Wide { bias: b.to_vec(), ..at.clone() }), &at.bias, &db));
        }
        if with[1] {
            check(central_difference(|i| loss(&Wide { initial: i.to_vec(), ..at.clone() }), &at.initial, &di));
        }
    }
}

proptest! {
    #[test]
    fn naive_is_the_definition(case in case()) {
        let ((y, last), (y2, last2)) = (definition(&case), Wide::<f64>::of(&case).forward(&case));
        prop_assert!(crate::testing::err_ratio_f64(&y, &y2) < 1e-12);
        prop_assert_eq!(last, last2);
    }

    #[test]
    fn fast_is_naive(case in case(), gap in 0usize..3) {
        let Dims { b, l, d, k } = case.dims;
        let given = Wide::<Terms>::of(&case);
        let ((want_y, want_last), want) = (given.forward(&case), given.backward(&case));
        for isa in Isa::available() {
            let (mut y, mut last) = (Poisoned::new(b * l, d, gap), Poisoned::new(1, b * (k - 1) * d, 1));
            cpu::forward(isa, case.dims, &case.args(), y.rows_mut(), last.rows_mut().row(0));
            prop_assert!(err_ratio_of_terms(&want_y, &y.values()) < 1e-5);
            prop_assert!(err_ratio_of_terms(&want_last, &last.values()) < 1e-7);

            let mut dx = Poisoned::new(b * l, d, gap);
            let (mut dw, mut db) = (Poisoned::with(&vec![1.0; d * k], d * k, 1), Poisoned::with(&vec![1.0; d], d, 1));
            let mut di = Poisoned::new(1, b * (k - 1) * d, 1);
            let (mut dw_rows, mut db_rows, mut di_rows) = (dw.rows_mut(), db.rows_mut(), di.rows_mut());
            let (dweight, dbias, dinitial) = (dw_rows.row(0), Some(db_rows.row(0)), Some(di_rows.row(0)));
            let grads = Grads { dx: dx.rows_mut(), dweight, dbias, dinitial };
            cpu::backward(isa, case.dims, &case.args(), Rows::new(&case.dy, d), case.dlast(), grads);
            let plus_one = |x: &[Terms]| x.iter().map(|&x| x + Terms::from(1.0)).collect::<Vec<_>>();
            prop_assert!(err_ratio_of_terms(&want[0], &dx.values()) < 1e-5);
            prop_assert!(err_ratio_of_terms(&plus_one(&want[1]), &dw.values()) < 1e-6);
            prop_assert!(err_ratio_of_terms(&plus_one(&want[2]), &db.values()) < 1e-6);
            prop_assert!(err_ratio_of_terms(&want[3], &di.values()) < 1e-5);
        }
    }

    /// The whole, its chunks and its steps: outputs and windows bit for bit.
    #[test]
    fn whole_is_chunks_is_steps(case in case(), cuts in proptest::collection::vec(0usize..30, 0..3)) {
        let mut case = case;
        // Chunks of padded rows have their own lengths; for steps, a reset is a zeroed state.
        case.with[2] = false;
        let Dims { b, l, d, k } = case.dims;
        let args = case.args();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(l)).chain([0, l]).collect();
        cuts.sort_unstable();
        for isa in Isa::available() {
            let (mut y, mut last) = (vec![0.0; b * l * d], vec![0.0; b * (k - 1) * d]);
            cpu::forward(isa, case.dims, &args, RowsMut::new(&mut y, d), &mut last);
            let start = if case.with[1] { case.initial.clone() } else { vec![0.0; b * (k - 1) * d] };
            let (mut state, mut joined) = (start.clone(), vec![f32::NAN; b * l * d]);
            for cut in cuts.windows(2) {
                let (from, n) = (cut[0], cut[1] - cut[0]);
                let pick = |x: &[f32]| (0..b).flat_map(|r| x[(r * l + from) * d..][..n * d].to_vec()).collect::<Vec<_>>();
                let resets: Vec<u8> = (0..b).flat_map(|r| case.resets[r * l + from..][..n].to_vec()).collect();
                let x = pick(&case.x);
                let segments = Segments { lengths: None, resets: case.with[3].then_some(&resets) };
                let part = Args { x: Rows::new(&x, d), initial: Some(&state), segments, ..case.args() };
                let (mut part_y, mut next) = (vec![f32::NAN; b * n * d], vec![f32::NAN; b * (k - 1) * d]);
                cpu::forward(isa, Dims { l: n, ..case.dims }, &part, RowsMut::new(&mut part_y, d), &mut next);
                for r in 0..b {
                    joined[(r * l + from) * d..][..n * d].copy_from_slice(&part_y[r * n * d..][..n * d]);
                }
                state = next;
            }
            prop_assert_eq!(bits(&joined), bits(&y));
            prop_assert_eq!(bits(&state), bits(&last));

            let mut state = start;
            for t in 0..l {
                for r in 0..b {
                    if args.segments.reset(r, t, l) {
                        state[r * (k - 1) * d..][..(k - 1) * d].fill(0.0);
                    }
                }
                let x: Vec<f32> = (0..b).flat_map(|r| case.x[(r * l + t) * d..][..d].to_vec()).collect();
                let mut now = vec![f32::NAN; b * d];
                cpu::step(isa, Dims { l: 1, ..case.dims }, Rows::new(&x, d), args.weight, args.bias, args.silu, &mut state, RowsMut::new(&mut now, d));
                for r in 0..b {
                    prop_assert_eq!(bits(&now[r * d..][..d]), bits(&y[(r * l + t) * d..][..d]));
                }
            }
            prop_assert_eq!(bits(&state), bits(&last));
        }
    }
}

#[test]
fn gradients_go_through_a_chain_of_chunks() {
    let dims = Dims { b: 1, l: 23, d: 19, k: 4 };
    let Dims { l, d, k, .. } = dims;
    let case = Case::new(dims, [true, true, false, true, true, true], 9, 11);
    let want = Wide::<f64>::of(&case).backward(&case);
    for isa in Isa::available() {
        for cut in [0, 1, 2, 3, 11, 21, 22, 23] {
            let args = case.args();
            let segments =
                |from: usize, n: usize| Segments { lengths: None, resets: Some(&case.resets[from..from + n]) };
            let first = Args { x: args.x.slice(0, cut), segments: segments(0, cut), ..args };
            let (mut y, mut middle) = (vec![0.0; cut * d], vec![0.0; (k - 1) * d]);
            cpu::forward(isa, Dims { l: cut, ..dims }, &first, RowsMut::new(&mut y, d), &mut middle);
            let second = Args {
                x: args.x.slice(cut, l - cut),
                initial: Some(&middle),
                segments: segments(cut, l - cut),
                ..args
            };
            let [mut dx, mut dw, mut db, mut di] = [l * d, d * k, d, (k - 1) * d].map(|n| vec![0.0; n]);
            let mut dmiddle = vec![f32::NAN; (k - 1) * d];
            let (dx1, dx2) = RowsMut::new(&mut dx, d).split_rows(cut);
            let dy = Rows::new(&case.dy, d);
            let grads = Grads { dx: dx2, dweight: &mut dw, dbias: Some(&mut db), dinitial: Some(&mut dmiddle) };
            cpu::backward(isa, Dims { l: l - cut, ..dims }, &second, dy.slice(cut, l - cut), case.dlast(), grads);
            let grads = Grads { dx: dx1, dweight: &mut dw, dbias: Some(&mut db), dinitial: Some(&mut di) };
            cpu::backward(isa, Dims { l: cut, ..dims }, &first, dy.slice(0, cut), Some(&dmiddle), grads);
            for (want, got) in want.iter().zip([&dx, &dw, &db, &di]) {
                assert!(err_ratio(want, got) < 1e-5, "{} cut {cut}", isa.name());
            }
        }
    }
}

#[test]
fn threads_and_the_batch_change_nothing() {
    let dims = Dims { b: 3, l: 50, d: 300, k: 4 };
    let Dims { b, l, d, k } = dims;
    let case = Case::new(dims, [true, true, true, true, true, true], 20, 12);
    let run = |threads| {
        with_threads(threads, || {
            let (mut y, mut last) = (vec![0.0; b * l * d], vec![0.0; b * (k - 1) * d]);
            forward(dims, case.args(), RowsMut::new(&mut y, d), &mut last).unwrap();
            let [mut dx, mut dw, mut db, mut di] = [b * l * d, d * k, d, b * (k - 1) * d].map(|n| vec![0.0; n]);
            let dinitial = Some(&mut di[..]);
            let grads = Grads { dx: RowsMut::new(&mut dx, d), dweight: &mut dw, dbias: Some(&mut db), dinitial };
            backward(dims, case.args(), Rows::new(&case.dy, d), case.dlast().map(View::from), grads).unwrap();
            [y, last, dx, dw, db, di].map(|x| bits(&x))
        })
    };
    assert_eq!(run(1), run(2));
    let all = run(1);
    let alone = Dims { b: 1, ..dims };
    let args = Args {
        x: case.args().x.slice(l, l),
        initial: Some(&case.initial[(k - 1) * d..][..(k - 1) * d]),
        segments: Segments { lengths: Some(&case.lengths[1..2]), resets: Some(&case.resets[l..2 * l]) },
        ..case.args()
    };
    let (mut y, mut last) = (vec![0.0; l * d], vec![0.0; (k - 1) * d]);
    forward(alone, args, RowsMut::new(&mut y, d), &mut last).unwrap();
    assert_eq!(bits(&y), all[0][l * d..][..l * d]);
    assert_eq!(bits(&last), all[1][(k - 1) * d..][..(k - 1) * d]);
}

#[test]
fn wrong_shapes_are_errors() {
    let dims = Dims { b: 1, l: 3, d: 2, k: 4 };
    let case = Case::new(dims, [true; 6], 3, 1);
    let (mut y, mut last) = ([0.0; 6], [0.0; 6]);
    let mut argument = |dims, args: Args<Rows<'_>>, n: usize| {
        argument_of(forward(dims, args, RowsMut::new(&mut y, 2), &mut last[..n]))
    };
    let args = case.args();
    assert_eq!(argument(dims, args, 6), None);
    assert_eq!(argument(dims, args, 5), Some("last"));
    assert_eq!(argument(Dims { k: 0, ..dims }, args, 6), Some("k"));
    assert_eq!(argument(Dims { l: 2, ..dims }, args, 6), Some("x"));
    assert_eq!(argument(dims, Args { weight: &[0.0; 3], ..args }, 6), Some("weight"));
    assert_eq!(argument(dims, Args { bias: Some(&[0.0; 3]), ..args }, 6), Some("bias"));
    assert_eq!(argument(dims, Args { initial: Some(&[0.0; 3]), ..args }, 6), Some("initial"));
    let lengths = |lengths| Args { segments: Segments { lengths: Some(lengths), resets: None }, ..case.args() };
    assert_eq!(argument(dims, lengths(&[4]), 6), Some("lengths"));
    assert_eq!(argument(dims, lengths(&[1, 1]), 6), Some("lengths"));
    // Sizes whose products wrap to those of the arguments.
    let nothing = Args { x: Rows::new(&[], 2), weight: &[0.0; 2], bias: None, initial: None, silu: true, ..args };
    let nothing = Args { segments: Segments::default(), ..nothing };
    let wrapping = Dims { b: 1 << 32, l: 1 << 32, d: 2, k: 1 };
    assert_eq!(fault(forward(wrapping, nothing, &mut [0.0; 0], &mut [0.0; 0])).argument, "x");
    let (mut dx, mut dw) = ([0.0; 6], [0.0; 7]);
    let grads = Grads { dx: RowsMut::new(&mut dx, 2), dweight: &mut dw, dbias: None, dinitial: None };
    assert_eq!(fault(backward(dims, args, args.x, None, grads)).argument, "dweight");
    let x = Rows::new(&[0.0; 2], 2);
    assert!(step(dims, x, &[0.0; 8], None, true, &mut [0.0; 5], RowsMut::new(&mut dx[..2], 2)).is_err());
    assert!(step(dims, x, &[0.0; 8], None, true, &mut [0.0; 6], RowsMut::new(&mut dx[..2], 2)).is_ok());
}
