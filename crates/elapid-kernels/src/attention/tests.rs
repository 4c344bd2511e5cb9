use super::*;
use crate::testing::{Random, argument_of, bits, central_difference, err_ratio, wide};
use crate::{Rows, RowsMut};

fn attention(mask: Mask) -> Attention {
    Attention { heads: 4, kv_heads: 2, scale: 0.6, mask, softcap: 0.0, alibi: false }
}

fn window(window: usize) -> Mask {
    Mask { window, ..Mask::default() }
}

/// One of each kind, and all at once.
fn masks() -> Vec<Mask> {
    let globals = Mask { globals: [1, 4].into(), ..window(2) };
    let all = Mask { dilation: 2, strided: true, sinks: 1, globals: [3].into(), ..window(3) };
    let dilated = Mask { dilation: 2, ..window(2) };
    let strided = Mask { strided: true, ..window(2) };
    vec![Mask::default(), window(3), dilated, strided, Mask { sinks: 2, ..window(2) }, globals, all]
}

const DK: usize = 3;
const DV: usize = 2;

fn in_f64(
    attention: &Attention,
    [q, k, v]: [&[f64]; 3],
    sink_logits: Option<&[f64]>,
    stretches: &[Stretch],
) -> Vec<f64> {
    let (q, k, v) = (Rows::new(q, 4 * DK), Rows::new(k, 2 * DK), Rows::new(v, 2 * DV));
    let mut y = vec![f64::NAN; q.rows() * 4 * DV];
    naive::forward(attention, &Args { q, k, v, pages: &[], sink_logits, stretches }, RowsMut::new(&mut y, 4 * DV));
    y
}

/// Two documents: one that continues from 3 keys of earlier calls, and a new one; the last query is padding.
fn stretches() -> Vec<Stretch> {
    vec![Stretch::whole(0..4, 0..7, 3), Stretch::whole(4..6, 7..9, 0)]
}

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let mut draw = |n: usize| wide(&random.normal(n));
    let (q, k, v, dy) = (draw(7 * 4 * DK), draw(9 * 2 * DK), draw(9 * 2 * DV), draw(7 * 4 * DV));
    let sinks = draw(4);
    let stretches = stretches();
    let plain = masks().into_iter().map(attention);
    let capped = masks().into_iter().map(|mask| Attention { softcap: 1.5, alibi: true, ..attention(mask) });
    for attention in plain.chain(capped) {
        let loss = |q: &[f64], k: &[f64], v: &[f64], sinks: &[f64]| {
            let y = in_f64(&attention, [q, k, v], Some(sinks), &stretches);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (mut dq, mut dk, mut dv) = (vec![f64::NAN; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let mut dsinks = [0.0; 4];
        let args = Args {
            q: Rows::new(&q, 4 * DK),
            k: Rows::new(&k, 2 * DK),
            v: Rows::new(&v, 2 * DV),
            sink_logits: Some(&sinks[..]),
            pages: &[],
            stretches: &stretches,
        };
        let grads = Grads {
            dq: RowsMut::new(&mut dq, 4 * DK),
            dk: RowsMut::new(&mut dk, 2 * DK),
            dv: RowsMut::new(&mut dv, 2 * DV),
            dsink_logits: Some(&mut dsinks[..]),
        };
        naive::backward(&attention, &args, Rows::new(&dy, 4 * DV), grads);
        assert!(central_difference(|q| loss(q, &k, &v, &sinks), &q, &dq) < 1e-7);
        assert!(central_difference(|k| loss(&q, k, &v, &sinks), &k, &dk) < 1e-7);
        assert!(central_difference(|v| loss(&q, &k, v, &sinks), &v, &dv) < 1e-7);
        assert!(central_difference(|sinks| loss(&q, &k, &v, sinks), &sinks, &dsinks) < 1e-7);
    }
}

#[test]
fn splits_give_the_same_bits_and_padding_is_zero() {
    let mut random = Random::new(2);
    let (q, k, v) = (random.normal(9 * 4 * DK), random.normal(9 * 2 * DK), random.normal(9 * 2 * DV));
    let sinks = random.normal(4);
    let run = |attention: &Attention, stretches: &[Stretch]| {
        let (q, k, v) = (Rows::new(&q, 4 * DK), Rows::new(&k, 2 * DK), Rows::new(&v, 2 * DV));
        let args = Args { q, k, v, pages: &[], sink_logits: Some(&sinks[..]), stretches };
        let mut y = vec![f32::NAN; 9 * 4 * DV];
        forward(attention, args, RowsMut::new(&mut y, 4 * DV), None).unwrap();
        y
    };
    for mask in masks() {
        let attention = Attention { alibi: true, ..attention(mask) };
        let whole = run(&attention, &[Stretch::whole(0..8, 0..8, 0)]);
        let parts: Vec<Stretch> = (0..8).map(|i| Stretch::whole(i..i + 1, 0..i + 1, i)).collect();
        assert_eq!(bits(&whole), bits(&run(&attention, &parts)));
        assert!(whole[8 * 4 * DV..].iter().all(|y| *y == 0.0));
        let want = in_f64(&attention, [&wide(&q), &wide(&k), &wide(&v)], Some(&wide(&sinks)), &parts);
        assert!(err_ratio(&want, &whole) < 1e-6);
    }
}

#[test]
fn a_window_sees_its_last_keys() {
    let q = vec![0.0; 4 * DK];
    let (k, v) = (vec![0.0; 5 * 2 * DK], (0..5 * 2 * DV).map(|i| (i / (2 * DV)) as f64).collect::<Vec<_>>());
    let y = in_f64(&attention(window(2)), [&q, &k, &v], None, &[Stretch::whole(0..1, 0..5, 4)]);
    assert!(y.iter().all(|y| (y - 3.5).abs() < 1e-12), "the mean of keys 3 and 4: {y:?}");
}

/// With a logit of -∞ it is plain attention; with a large one nothing is left.
#[test]
fn a_sink_takes_its_share() {
    let (q, k, v) = (vec![0.0; 4 * DK], vec![0.0; 3 * 2 * DK], vec![1.0; 3 * 2 * DV]);
    let stretch = [Stretch::whole(0..1, 0..3, 2)];
    let y = in_f64(&attention(Mask::default()), [&q, &k, &v], Some(&[-1e9, 0.0, 3f64.ln(), 1e9]), &stretch);
    for (head, want) in [1.0, 0.75, 0.5, 0.0].into_iter().enumerate() {
        assert!(y[head * DV..][..DV].iter().all(|y| (y - want).abs() < 1e-12), "{head}: {y:?}");
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let x = [0.0; 48];
    let (q, k, v) = (Rows::new(&x, 12), Rows::new(&x, 6), Rows::new(&x, 4));
    let args = Args { q, k, v, pages: &[], sink_logits: None, stretches: &[] };
    let mut y = [0.0; 32];
    assert_eq!(argument_of(forward(&attention(Mask::default()), args, RowsMut::new(&mut y, 8), None)), Some("k"));
    let args = Args { k: Rows::new(&x[..24], 6), v: Rows::new(&x[..16], 4), ..args };
    let outside = [Stretch::whole(0..2, 0..2, 1)];
    assert!(forward(&attention(Mask::default()), args, RowsMut::new(&mut y, 8), None).is_ok());
    let few = Args { sink_logits: Some(&x[..3]), ..args };
    let refused = forward(&attention(Mask::default()), few, RowsMut::new(&mut y, 8), None);
    assert_eq!(argument_of(refused), Some("sink_logits"));
    let args = Args { stretches: &outside[..], ..args };
    assert_eq!(
        argument_of(forward(&attention(Mask::default()), args, RowsMut::new(&mut y, 8), None)),
        Some("stretches")
    );
    let odd = Attention { kv_heads: 3, ..attention(Mask::default()) };
    assert_eq!(argument_of(forward(&odd, args, RowsMut::new(&mut y, 8), None)), Some("kv_heads"));
}

/// Keys that a cache has dropped change nothing where the mask does not see them.
#[test]
fn keys_that_are_not_there_have_their_positions() {
    let mut random = Random::new(3);
    let (q, k, v) = (random.normal(4 * DK), random.normal(9 * 2 * DK), random.normal(9 * 2 * DV));
    for mask in [Mask { sinks: 2, ..window(3) }, Mask { dilation: 2, sinks: 1, ..window(2) }] {
        let attention = Attention { alibi: true, ..attention(mask) };
        let run = |k: &[f32], v: &[f32], stretch: Stretch| {
            let (q, k, v) = (Rows::new(&q, 4 * DK), Rows::new(k, 2 * DK), Rows::new(v, 2 * DV));
            let mut y = vec![f32::NAN; 4 * DV];
            let args = Args { q, k, v, pages: &[], sink_logits: None, stretches: &[stretch] };
            forward(&attention, args, RowsMut::new(&mut y, 4 * DV), None).unwrap();
            bits(&y)
        };
        // Positions 3 and 4 of 9 are gone.
        let without = |x: &[f32], cols: usize| [&x[..3 * cols], &x[5 * cols..]].concat();
        let (fewer_k, fewer_v) = (without(&k, 2 * DK), without(&v, 2 * DV));
        let cut = Stretch { sinks: 3, gap: 2, ..Stretch::whole(0..1, 0..7, 6) };
        assert_eq!(run(&k, &v, Stretch::whole(0..1, 0..9, 8)), run(&fewer_k, &fewer_v, cut));
    }
}

/// Keys in pages are those of rows, forward and backward, but get no gradient.
#[test]
// Long: rows and pages, forward and backward, in both float types.
fn pages_are_rows() {
    let (n, paged) = (PAGE + 9, PAGE + 3);
    let mut random = Random::new(4);
    let mut draw = |n: usize| wide(&random.normal(n));
    let (q, k, v, dy) = (draw(6 * 4 * DK), draw(n * 2 * DK), draw(n * 2 * DV), draw(6 * 4 * DV));
    let page = |x: &[f64], dim: usize, page: usize| {
        let mut values = vec![f64::NAN; 2 * PAGE * dim];
        for at in page * PAGE..paged.min((page + 1) * PAGE) {
            for head in 0..2 {
                let from = &x[(at * 2 + head) * dim..][..dim];
                values[(head * PAGE + at % PAGE) * dim..][..dim].copy_from_slice(from);
            }
        }
        values
    };
    let (k_pages, v_pages) = ([0, 1].map(|at| page(&k, DK, at)), [0, 1].map(|at| page(&v, DV, at)));
    let pages: Vec<Page<'_, f64>> = k_pages.iter().zip(&v_pages).map(|(k, v)| Page { k, v }).collect();
    let in_rows = [Stretch::whole(0..6, 0..n, paged)];
    let in_pages = [Stretch { pages: 0..2, paged, ..Stretch::whole(0..6, 0..6, paged) }];
    let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let f32_pages: Vec<[Vec<f32>; 2]> = pages.iter().map(|page| [narrow(page.k), narrow(page.v)]).collect();
    let f32_pages: Vec<Page> = f32_pages.iter().map(|[k, v]| Page { k, v }).collect();
    for attention in masks().into_iter().map(attention) {
        let run = |k: &[f64], v: &[f64], pages: &[Page<'_, f64>], stretches: &[Stretch]| {
            let args = Args {
                q: Rows::new(&q, 4 * DK),
                k: Rows::new(k, 2 * DK),
                v: Rows::new(v, 2 * DV),
                pages,
                sink_logits: None,
                stretches,
            };
            let (mut y, mut dq) = (vec![f64::NAN; 6 * 4 * DV], vec![f64::NAN; q.len()]);
            let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
            naive::forward(&attention, &args, RowsMut::new(&mut y, 4 * DV));
            let grads = Grads {
                dq: RowsMut::new(&mut dq, 4 * DK),
                dk: RowsMut::new(&mut dk, 2 * DK),
                dv: RowsMut::new(&mut dv, 2 * DV),
                dsink_logits: None,
            };
            naive::backward(&attention, &args, Rows::new(&dy, 4 * DV), grads);
            [y, dq, dk, dv]
        };
        let want = run(&k, &v, &[], &in_rows);
        let (own_k, own_v) = (&k[paged * 2 * DK..], &v[paged * 2 * DV..]);
        let got = run(own_k, own_v, &pages, &in_pages);
        for (want, got) in want.iter().zip(&got) {
            assert_eq!(want[want.len() - got.len()..], got[..]);
        }
        // The CPU's backward, of the same pages.
        let (q, k, v, dy) = (narrow(&q), narrow(own_k), narrow(own_v), narrow(&dy));
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let (q, k, v) = (Rows::new(&q, 4 * DK), Rows::new(&k, 2 * DK), Rows::new(&v, 2 * DV));
        let args = Args { q, k, v, pages: &f32_pages, sink_logits: None, stretches: &in_pages[..] };
        let dy = Rows::new(&dy, 4 * DV);
        let grads = Grads {
            dq: RowsMut::new(&mut dq, 4 * DK),
            dk: RowsMut::new(&mut dk, 2 * DK),
            dv: RowsMut::new(&mut dv, 2 * DV),
            dsink_logits: None,
        };
        backward(&attention, args, &Saved::new(), Outputs { y: dy, dy }, grads).unwrap();
        for (want, got) in got[1..].iter().zip([dq, dk, dv]) {
            assert!(err_ratio(want, &got) < 1e-6);
        }
    }
}

#[test]
fn wrong_pages_are_errors() {
    let x = [0.0; 2 * PAGE * DK];
    let (q, k, v) = (Rows::new(&x[..12], 12), Rows::new(&x[..6], 6), Rows::new(&x[..4], 4));
    let stretch = [Stretch { pages: 0..1, paged: 3, ..Stretch::whole(0..1, 0..1, 3) }];
    let run = |pages: &[Page<'_>], stretches: &[Stretch]| {
        let mut y = [0.0; 8];
        let args = Args { q, k, v, pages, sink_logits: None, stretches };
        forward(&attention(Mask::default()), args, RowsMut::new(&mut y, 8), None)
    };
    let page = Page { k: &x, v: &x[..2 * PAGE * DV] };
    assert!(run(&[page], &stretch).is_ok());
    assert_eq!(argument_of(run(&[Page { v: &x, ..page }], &stretch)), Some("pages"));
    assert_eq!(argument_of(run(&[], &stretch)), Some("stretches"));
    let long = [Stretch { paged: PAGE + 1, ..stretch[0].clone() }];
    assert_eq!(argument_of(run(&[page], &long)), Some("stretches"));
}
