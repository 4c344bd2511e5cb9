use super::*;
use crate::testing::{Random, central_difference, with_threads};

type Real = Step<f64>;
type Matrix = Step<Matrix2<f64>>;

const LENGTHS: [usize; 14] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 100];

trait Sample: Ring {
    fn sample(random: &mut Random) -> Self;
    fn size(self) -> f64;
    fn minus(self, other: Self) -> Self;
}

impl Sample for f64 {
    fn sample(random: &mut Random) -> Self {
        random.gauss() * 0.6
    }
    fn size(self) -> f64 {
        self.abs()
    }
    fn minus(self, other: Self) -> Self {
        self - other
    }
}

impl Sample for Complex<f64> {
    fn sample(random: &mut Random) -> Self {
        Self { re: f64::sample(random), im: f64::sample(random) }
    }
    fn size(self) -> f64 {
        self.re.hypot(self.im)
    }
    fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Sample for Matrix2<f64> {
    fn sample(random: &mut Random) -> Self {
        Self([[0; 2]; 2].map(|row| row.map(|_| f64::sample(random))))
    }
    fn size(self) -> f64 {
        self.0.as_flattened().iter().map(|x| x.abs()).fold(0.0, f64::max)
    }
    fn minus(self, other: Self) -> Self {
        Self([0, 1].map(|i| [0, 1].map(|j| self.0[i][j] - other.0[i][j])))
    }
}

fn steps<T: Sample>(l: usize, seed: u64) -> Vec<Step<T>> {
    let mut random = Random::new(seed);
    (0..l).map(|_| Step { a: T::sample(&mut random), b: T::sample(&mut random) }).collect()
}

fn close<T: Sample>(x: Step<T>, y: Step<T>) -> bool {
    let near = |x: T, y: T| x.minus(y).size() <= 1e-12 * (1.0 + x.size());
    near(x.a, y.a) && near(x.b, y.b)
}

fn assert_close<T: Sample>(name: &str, want: &[Step<T>], got: &[Step<T>]) {
    assert_eq!(want.len(), got.len());
    for (t, (&want, &got)) in want.iter().zip(got).enumerate() {
        assert!(close(want, got), "{name}, position {t}: wanted {want:?}, got {got:?}");
    }
}

type Algorithm<E> = (&'static str, Box<dyn Fn(&mut [E])>);

/// Every algorithm by name.
fn algorithms<E: Element>() -> Vec<Algorithm<E>> {
    vec![
        ("hillis_steele", Box::new(|x| hillis_steele(x))),
        ("blelloch", Box::new(|x| blelloch(x))),
        ("odd_even", Box::new(|x| odd_even(x))),
        ("chunked 1", Box::new(|x| chunked(x, 1))),
        ("chunked 7", Box::new(|x| chunked(x, 7))),
        ("chunked 1000", Box::new(|x| chunked(x, 1000))),
    ]
}

/// The states of the recurrence, without any composition.
fn states<T: Ring>(steps: &[Step<T>], mut h: T) -> Vec<T> {
    let step = |step: &Step<T>| {
        h = step.a.times(h).plus(step.b);
        h
    };
    steps.iter().map(step).collect()
}

fn algebra<T: Sample>() {
    for seed in 0..50 {
        let x = steps::<T>(3, seed);
        assert!(close(x[0].then(x[1]).then(x[2]), x[0].then(x[1].then(x[2]))), "not associative");
        assert!(close(x[0].then(Step::identity()), x[0]) && close(Step::identity().then(x[0]), x[0]));
        assert!(!close(x[0].then(x[1]), x[1].then(x[0])), "commutes");
    }
}

fn scans<T: Sample>() {
    for (seed, l) in (0..).zip(LENGTHS) {
        let x = steps::<T>(l, seed);
        let initial = T::sample(&mut Random::new(seed + 1000));
        let want = states(&x, initial);
        let mut reference = x.clone();
        from_state(&mut reference, initial);
        sequential(&mut reference);
        for (want, got) in want.iter().zip(&reference) {
            assert!(want.minus(got.b).size() <= 1e-12 * (1.0 + want.size()));
        }
        for (name, scan) in algorithms() {
            let mut got = x.clone();
            from_state(&mut got, initial);
            scan(&mut got);
            assert_close(name, &reference, &got);
        }
    }
}

#[test]
fn composition_is_associative_and_does_not_commute() {
    algebra::<f64>();
    algebra::<Complex<f64>>();
    algebra::<Matrix2<f64>>();
}

#[test]
fn every_algorithm_gives_the_states_of_the_recurrence() {
    scans::<f64>();
    scans::<Complex<f64>>();
    scans::<Matrix2<f64>>();
}

#[test]
fn a_swapped_operator_fails() {
    #[derive(Clone, Copy)]
    struct Swapped(Matrix);
    impl Element for Swapped {
        fn identity() -> Self {
            Self(Step::identity())
        }
        fn then(self, later: Self) -> Self {
            Self(later.0.then(self.0))
        }
        fn reset(self) -> Self {
            Self(self.0.reset())
        }
    }
    let x = steps::<Matrix2<f64>>(9, 3);
    let mut want = x.clone();
    sequential(&mut want);
    for (name, scan) in algorithms::<Swapped>() {
        let mut got: Vec<Swapped> = x.iter().map(|&x| Swapped(x)).collect();
        scan(&mut got);
        assert!(!close(want[8], got[8].0), "{name}");
    }
}

#[test]
fn exclusive_is_inclusive_shifted_by_one() {
    for (seed, l) in (0..).zip(LENGTHS) {
        let x: Vec<Matrix> = steps(l, seed);
        let (mut exclusive, mut inclusive) = (x.clone(), x);
        let whole = blelloch_exclusive(&mut exclusive);
        sequential(&mut inclusive);
        let first = Step::identity();
        let shifted: Vec<Matrix> = std::iter::once(first).chain(inclusive.iter().copied()).collect();
        assert_close("exclusive", &shifted[..l], &exclusive);
        assert!(close(*shifted.last().unwrap(), whole));
    }
}

#[test]
fn a_reset_forgets_what_came_before() {
    let x: Vec<Matrix> = steps(40, 5);
    let mut with_reset = x.clone();
    with_reset[17] = with_reset[17].reset();
    let mut after = x[17..].to_vec();
    sequential(&mut after);
    for (name, scan) in algorithms() {
        let mut got = with_reset.clone();
        from_state(&mut got, Matrix2([[3.0, 1.0], [-2.0, 5.0]]));
        scan(&mut got);
        for (want, got) in after.iter().zip(&got[17..]) {
            assert!(want.b.minus(got.b).size() < 1e-12, "{name}");
        }
    }
}

#[test]
fn reverse_is_a_scan_from_the_right() {
    let x: Vec<Matrix> = steps(13, 8);
    let mut want = x.clone();
    for t in (0..12).rev() {
        want[t] = want[t + 1].then(want[t]);
    }
    for (name, scan) in algorithms() {
        let mut got = x.clone();
        reverse(&mut got, scan);
        assert_close(name, &want, &got);
    }
}

#[test]
fn chunked_does_not_depend_on_threads() {
    let x: Vec<Real> = steps(1000, 1);
    let run = |threads| {
        with_threads(threads, || {
            let mut x = x.clone();
            chunked(&mut x, 64);
            x
        })
    };
    assert_eq!(run(1), run(3));
}

/// Numbers as a vector of reals, for differences.
trait Flat: Sample {
    const SIZE: usize;
    fn flat(self) -> Vec<f64>;
    fn of(x: &[f64]) -> Self;
}

impl Flat for f64 {
    const SIZE: usize = 1;
    fn flat(self) -> Vec<f64> {
        vec![self]
    }
    fn of(x: &[f64]) -> Self {
        x[0]
    }
}

impl Flat for Complex<f64> {
    const SIZE: usize = 2;
    fn flat(self) -> Vec<f64> {
        vec![self.re, self.im]
    }
    fn of(x: &[f64]) -> Self {
        Self { re: x[0], im: x[1] }
    }
}

impl Flat for Matrix2<f64> {
    const SIZE: usize = 4;
    fn flat(self) -> Vec<f64> {
        self.0.as_flattened().to_vec()
    }
    fn of(x: &[f64]) -> Self {
        Self([[x[0], x[1]], [x[2], x[3]]])
    }
}

/// Against differences of Σ ⟨dh_t, h_t⟩, the inner product over all real parts.
fn gradients<T: Flat>() {
    for l in [1, 2, 3, 8, 9] {
        let x = steps::<T>(l, 2);
        let mut random = Random::new(77);
        let initial = T::sample(&mut random);
        let dh: Vec<T> = (0..l).map(|_| T::sample(&mut random)).collect();
        let parameters: Vec<f64> =
            x.iter().flat_map(|x| [x.a.flat(), x.b.flat()].concat()).chain(initial.flat()).collect();
        let loss = |p: &[f64]| {
            let numbers: Vec<T> = p.chunks_exact(T::SIZE).map(T::of).collect();
            let x: Vec<Step<T>> = numbers.chunks_exact(2).map(|ab| Step { a: ab[0], b: ab[1] }).collect();
            let h = states(&x, numbers[2 * l]);
            let dot = |(x, y): (&T, &T)| x.flat().iter().zip(y.flat()).map(|(x, y)| x * y).sum::<f64>();
            h.iter().zip(&dh).map(dot).sum()
        };
        let h = states(&x, initial);
        for (name, scan) in algorithms() {
            let (grads, dinitial) = gradient(&x, &h, initial, &dh, scan);
            let flat: Vec<f64> =
                grads.iter().flat_map(|g| [g.a.flat(), g.b.flat()].concat()).chain(dinitial.flat()).collect();
            let error = central_difference(loss, &parameters, &flat);
            assert!(error < 1e-7, "{name}: {error:e}");
        }
    }
}

#[test]
fn gradient_is_the_central_difference() {
    gradients::<f64>();
    gradients::<Complex<f64>>();
    gradients::<Matrix2<f64>>();
}
