use super::*;
use crate::selective_scan::Discretisation;
use crate::testing::{Random, central_difference, err_ratio, fault, wide};
use crate::{Rows, RowsMut};

/// Every form; S5 with λ beyond the clip in some modes.
pub(super) fn forms() -> Vec<Form> {
    let s5 = |rule| [(1.0, false), (0.5, true)].map(|(rescale, clip)| Form::S5 { rule, rescale, clip });
    Discretisation::ALL.into_iter().flat_map(s5).chain([Form::Lru]).collect()
}

/// Parameters of n modes: of S5 with one step so small that λΔ is near 0.
pub(super) fn params(form: Form, n: usize, random: &mut Random) -> [Vec<f32>; 3] {
    let mut uniform = |low, high| random.uniform(n, low, high);
    if form == Form::Lru {
        return [uniform(-4.0, 0.5), uniform(-3.0, 1.8), uniform(-2.0, 0.5)];
    }
    let mut all = [uniform(-1.5, -0.1), uniform(-9.0, 9.0), uniform(-4.0, -0.5)];
    all[2][0] = -8.0;
    if let (Form::S5 { clip: true, .. }, 2..) = (form, n) {
        all[0][1] = 0.3;
    }
    all
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn gradients_are_difference_quotients() {
    let (n, d) = (4, 3);
    for form in forms() {
        let mut random = Random::new(1);
        let params = params(form, n, &mut random).concat();
        let packed = [wide(&params), wide(&random.normal(2 * n * d))].concat();
        let (da, db) = (wide(&random.normal(2 * n)), wide(&random.normal(2 * n * d)));
        let args = |packed: &[f64]| -> [Vec<f64>; 4] {
            let (params, b) = packed.split_at(3 * n);
            [params[..n].to_vec(), params[n..2 * n].to_vec(), params[2 * n..].to_vec(), b.to_vec()]
        };
        let loss = |packed: &[f64]| {
            let [one, two, three, b] = args(packed);
            let args = Args { params: [&one[..], &two[..], &three[..]], b: Rows::new(&b, d) };
            let (mut a, mut b) = (vec![0.0; 2 * n], vec![0.0; 2 * n * d]);
            naive::forward(form, &args, &mut a, RowsMut::new(&mut b, d));
            dot(&a, &da) + dot(&b, &db)
        };
        let [one, two, three, b] = args(&packed);
        let args = Args { params: [&one[..], &two[..], &three[..]], b: Rows::new(&b, d) };
        let mut all = vec![0.0; packed.len()];
        let (of_params, of_b) = all.split_at_mut(3 * n);
        let (first, rest) = of_params.split_at_mut(n);
        let (second, third) = rest.split_at_mut(n);
        let grads = Grads { params: [first, second, third], db: RowsMut::new(of_b, d) };
        naive::backward(form, &args, &da, Rows::new(&db, d), grads);
        assert!(central_difference(loss, &packed, &all) < 1e-7, "{form:?}");
    }
}

/// (exp(z) - 1) / z and its derivative where the two branches meet, against the series of twice the length.
#[test]
fn zero_order_hold_does_not_cancel() {
    let rule = Discretisation::Zoh;
    let form = Form::S5 { rule, rescale: 1.0, clip: false };
    for z in [1e-12, 1e-5, 0.00999, 0.01001, 0.3] {
        // Δ = 1 and λ = -z: f = (1 - exp(-z)) / z = Σ (-z)ᵏ / (k+1)!.
        let (mut phi, mut dphi, mut term) = (0.0, 0.0, 1.0);
        for k in 0..24 {
            phi += term / f64::from(k + 1);
            dphi += term / f64::from(k + 2);
            term *= -z / f64::from(k + 1);
        }
        let mode = naive::mode(form, [-z, 0.0, 0.0]);
        assert!((mode.f.re - phi).abs() < 1e-15 && mode.f.im == 0.0, "{z}");
        assert!((mode.df[0].re - dphi).abs() < 3e-14, "{z}: {} {dphi}", mode.df[0].re);
    }
}

/// ā has absolute values below 1 for stable λ, and the bilinear rule agrees with zero-order hold to second order.
#[test]
fn rules_agree_for_small_steps() {
    for log_delta in [-6.0_f64, -8.0] {
        let of = |rule| naive::mode(Form::S5 { rule, rescale: 1.0, clip: false }, [-0.5, 7.0, log_delta]);
        let (hold, line) = (of(Discretisation::Zoh), of(Discretisation::Bilinear));
        let bound = (8.0 * log_delta.exp()).powi(3);
        assert!((hold.a.re - line.a.re).abs() < bound && (hold.a.im - line.a.im).abs() < bound);
        assert!(hold.a.dot(hold.a) < 1.0 && line.a.dot(line.a) < 1.0);
    }
}

#[test]
fn fast_is_naive() {
    for form in forms() {
        for (n, d) in [(1, 1), (3, 5), (8, 33), (17, 100)] {
            let mut random = Random::new((n + d) as u64);
            let params = params(form, n, &mut random);
            let (b, da, db) = (random.normal(2 * n * d), random.normal(2 * n), random.normal(2 * n * d));
            let args = Args { params: params.each_ref().map(|x| &x[..]), b: Rows::new(&b, d) };
            let (mut a, mut b_bar) = (vec![f32::NAN; 2 * n], vec![f32::NAN; 2 * n * d]);
            forward(form, args, &mut a, RowsMut::new(&mut b_bar, d)).unwrap();
            let mut sums = [n, n, n, 2 * n * d].map(|len| vec![0.5_f32; len]);
            let [one, two, three, of_b] = &mut sums;
            let grads = Grads { params: [&mut one[..], &mut two[..], &mut three[..]], db: RowsMut::new(of_b, d) };
            backward(form, args, &da, Rows::new(&db, d), grads).unwrap();

            let want = oracle(form, &params, (&b, d), &da, &db);
            let got = [&a, &b_bar, &sums[0], &sums[1], &sums[2], &sums[3]];
            for (i, (want, got)) in want.iter().zip(got).enumerate() {
                let error = err_ratio(want, got);
                assert!(error < 1e-6, "{form:?} {n} x {d}: {i}: {error:e}");
            }
        }
    }
}

/// ā, b̄ and all gradients, added to 0.5.
pub(super) fn oracle(
    form: Form,
    params: &[Vec<f32>; 3],
    (b, d): (&[f32], usize),
    da: &[f32],
    db: &[f32],
) -> [Vec<f64>; 6] {
    let n = params[0].len();
    let params = params.each_ref().map(|x| wide(x));
    let (b, da, db) = (wide(b), wide(da), wide(db));
    let args = Args { params: params.each_ref().map(|x| &x[..]), b: Rows::new(&b, d) };
    let mut all =
        [(2 * n, 0.0), (2 * n * d, 0.0), (n, 0.5), (n, 0.5), (n, 0.5), (2 * n * d, 0.5)].map(|(len, of)| vec![of; len]);
    let [a, b_bar, one, two, three, of_b] = &mut all;
    naive::forward(form, &args, a, RowsMut::new(b_bar, d));
    let grads = Grads { params: [&mut one[..], &mut two[..], &mut three[..]], db: RowsMut::new(of_b, d) };
    naive::backward(form, &args, &da, Rows::new(&db, d), grads);
    all
}

#[test]
fn shapes_are_checked() {
    let (params, b) = ([0.0_f32; 4], [0.5_f32; 18]);
    let (mut a, mut b_bar) = ([0.0_f32; 6], [0.0_f32; 18]);
    let mut run = |rows: usize, modes: usize, of_a: usize, cols: usize| {
        let args = Args { params: [&params[..3], &params[..modes], &params[..3]], b: Rows::new(&b[..rows * 3], 3) };
        forward(Form::Lru, args, &mut a[..of_a], RowsMut::new(&mut b_bar, cols))
    };
    assert_eq!(fault(run(5, 3, 6, 3)).argument, "B");
    assert_eq!(fault(run(6, 4, 6, 3)).argument, "params");
    assert_eq!(fault(run(6, 3, 5, 3)).argument, "a");
    assert_eq!(fault(run(6, 3, 6, 2)).argument, "b");
    run(6, 3, 6, 3).unwrap();
    let args = Args { params: [&params[..3]; 3], b: Rows::new(&b, 3) };
    let (mut d, mut of_b) = ([[0.0_f32; 3]; 3], [0.0_f32; 18]);
    let [one, two, three] = &mut d;
    let grads = Grads { params: [&mut one[..], &mut two[..2], &mut three[..]], db: RowsMut::new(&mut of_b, 3) };
    assert_eq!(fault(backward(Form::Lru, args, &[0.0; 6], Rows::new(&b, 3), grads)).argument, "dparams");
}
