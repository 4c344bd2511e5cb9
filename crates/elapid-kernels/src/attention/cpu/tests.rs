use std::ops::Range;

use proptest::prelude::*;

use super::sizes::*;
use super::*;
use crate::attention::{Args, Attention, Grads, Mask, PAGE, Page, Stretch, naive};
use crate::testing::{Poisoned, Random, bits, err_ratio, wide, with_threads};
use crate::{Isa, Rows, RowsMut};

/// Inputs of one call: `m` queries, `n` keys.
struct Case {
    attention: Attention,
    widths: Widths,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Option<Vec<f32>>,
    stretches: Vec<Stretch>,
}

/// What a backward writes.
const GRADS: [&str; 4] = ["dq", "dk", "dv", "dsinks"];

impl Case {
    fn new(attention: Attention, (c, dv): (usize, usize), (m, n): (usize, usize), stretches: Vec<Stretch>) -> Self {
        let mut random = Random::new((c * 1000 + dv + m) as u64);
        let (h, g) = (attention.heads, attention.kv_heads);
        let widths = Widths { group: h / g, c, dv };
        let (q, k, v) = (random.normal(m * h * c), random.normal(n * g * c), random.normal(n * g * dv));
        Self { attention, widths, q, k, v, sinks: None, stretches }
    }

    /// With a learned logit of each head, near the scores, far below and far above.
    fn with_sinks(self) -> Self {
        let sinks = (0..self.attention.heads).map(|h| [0.5, -1.0, 90.0, -300.0, 2.5, 300.0][h % 6]).collect();
        Self { sinks: Some(sinks), ..self }
    }

    fn kv_heads(&self) -> usize {
        self.attention.kv_heads
    }

    fn args(&self) -> Host<'_> {
        let (h, g, Widths { c, dv, .. }) = (self.attention.heads, self.kv_heads(), self.widths);
        let (q, k, v) = (Rows::new(&self.q, h * c), Rows::new(&self.k, g * c), Rows::new(&self.v, g * dv));
        Args { q, k, v, pages: &[], sink_logits: self.sinks.as_deref(), stretches: &self.stretches }
    }

    fn forward(&self, isa: Isa) -> Vec<f32> {
        let mut y = Poisoned::new(self.args().q.rows(), self.attention.heads * self.widths.dv, 3);
        forward(isa, &self.attention, &self.args(), y.rows_mut());
        y.values()
    }

    /// dq, then dk, dv and the gradients of the logits, added to 1.
    fn backward(&self, isa: Isa, dy: &[f32]) -> [Vec<f32>; 4] {
        let args = self.args();
        let mut dq = Poisoned::new(args.q.rows(), args.q.cols(), 2);
        let mut dk = Poisoned::with(&vec![1.0; self.k.len()], args.k.cols(), 1);
        let mut dv = Poisoned::with(&vec![1.0; self.v.len()], args.v.cols(), 5);
        let mut dsinks = vec![1.0; self.attention.heads];
        let dsink_logits = self.sinks.is_some().then_some(&mut dsinks[..]);
        let grads = Grads { dq: dq.rows_mut(), dk: dk.rows_mut(), dv: dv.rows_mut(), dsink_logits };
        backward(isa, &self.attention, &args, Rows::new(dy, self.attention.heads * self.widths.dv), grads);
        [dq.values(), dk.values(), dv.values(), dsinks]
    }

    /// y and the gradients in f64.
    fn oracle(&self, dy: &[f32]) -> [Vec<f64>; 5] {
        let (h, g, Widths { c, dv, .. }) = (self.attention.heads, self.kv_heads(), self.widths);
        let (q, k, v, dy) = (wide(&self.q), wide(&self.k), wide(&self.v), wide(dy));
        let sinks = self.sinks.as_deref().map(wide);
        let args = Args {
            q: Rows::new(&q, h * c),
            k: Rows::new(&k, g * c),
            v: Rows::new(&v, g * dv),
            sink_logits: sinks.as_deref(),
            pages: &[],
            stretches: &self.stretches,
        };
        let mut y = vec![f64::NAN; dy.len()];
        naive::forward(&self.attention, &args, RowsMut::new(&mut y, h * dv));
        let (mut dq, mut dk, mut dvalue) = (vec![f64::NAN; q.len()], vec![1.0; k.len()], vec![1.0; v.len()]);
        let mut dsinks = vec![1.0; h];
        let grads = Grads {
            dq: RowsMut::new(&mut dq, h * c),
            dk: RowsMut::new(&mut dk, g * c),
            dv: RowsMut::new(&mut dvalue, g * dv),
            dsink_logits: sinks.is_some().then_some(&mut dsinks[..]),
        };
        naive::backward(&self.attention, &args, Rows::new(&dy, h * dv), grads);
        [y, dq, dk, dvalue, dsinks]
    }

    fn check(&self, what: &str) {
        let dy = Random::new(9).normal(self.args().q.rows() * self.attention.heads * self.widths.dv);
        let want = self.oracle(&dy);
        for isa in Isa::available() {
            let got = [self.forward(isa)].into_iter().chain(self.backward(isa, &dy));
            for ((name, want), got) in ["y"].into_iter().chain(GRADS).zip(&want).zip(got) {
                let error = err_ratio(want, &got);
                assert!(error < 3e-6, "{} {what}: {name} {error:.1e}", isa.name());
            }
        }
    }
}

fn attention((heads, kv_heads): (usize, usize), mask: Mask) -> Attention {
    Attention { heads, kv_heads, scale: 0.3, mask, softcap: 0.0, alibi: false }
}

fn window(window: usize) -> Mask {
    Mask { window, ..Mask::default() }
}

fn masks() -> Vec<Mask> {
    vec![
        Mask::default(),
        window(1),
        window(100),
        window(300),
        Mask { dilation: 3, ..window(40) },
        Mask { strided: true, ..window(20) },
        Mask { sinks: 4, ..window(30) },
        Mask { globals: [0, 150].into(), ..window(10) },
        Mask { strided: true, dilation: 2, sinks: 130, globals: [200].into(), ..window(50) },
    ]
}

/// A document of 260 positions; one that continues at position 130 of 150; a single position; the rest is padding.
fn batch() -> (usize, usize, Vec<Stretch>) {
    let stretches = vec![
        Stretch::whole(282..283, 410..411, 0),
        Stretch::whole(1..261, 0..260, 0),
        Stretch::whole(261..281, 260..410, 130),
    ];
    (284, 412, stretches)
}

#[test]
fn every_mask_is_as_naive() {
    let (m, n, stretches) = batch();
    for mask in masks() {
        for causal in [true, false] {
            let plain = attention((4, 2), Mask { causal, ..mask.clone() });
            let bent = Attention { softcap: 2.0, alibi: true, ..plain.clone() };
            for attention in [plain, bent] {
                let what = format!("{attention:?}");
                Case::new(attention.clone(), (8, 8), (m, n), stretches.clone()).check(&what);
                Case::new(attention, (8, 8), (m, n), stretches.clone())
                    .with_sinks()
                    .check(&format!("{what} and sinks"));
            }
        }
    }
}

#[test]
fn every_width_is_as_naive() {
    let (m, n, stretches) = batch();
    for widths in [(1, 1), (3, 5), (17, 3), (64, 64), (80, 80), (96, 40), (33, 128)] {
        for heads in [(2, 2), (3, 1)] {
            let case = Case::new(attention(heads, Mask::default()), widths, (m, n), stretches.clone());
            case.check(&format!("{widths:?} {heads:?}"));
        }
    }
}

#[test]
fn large_scores_are_as_naive() {
    let (m, n, stretches) = batch();
    let case = Case::new(Attention { scale: 20.0, ..attention((2, 1), Mask::default()) }, (16, 16), (m, n), stretches);
    let dy = Random::new(9).normal(m * 2 * 16);
    let want = case.oracle(&dy);
    for isa in Isa::available() {
        // Scores near 200 are exact to 1e-5, and so are probabilities.
        assert!(err_ratio(&want[0], &case.forward(isa)) < 3e-5, "{}", isa.name());
        for (want, got) in want[1..].iter().zip(case.backward(isa, &dy)) {
            assert!(err_ratio(want, &got) < 2e-4, "{} {}", isa.name(), err_ratio(want, &got));
        }
    }
}

/// Keys of stretches may overlap; queries may not.
#[test]
fn shared_keys_get_the_sum_of_gradients() {
    let stretches = vec![Stretch::whole(0..30, 0..30, 0), Stretch::whole(30..40, 0..40, 30)];
    Case::new(attention((4, 2), Mask::default()), (8, 8), (40, 40), stretches).check("shared keys");
}

#[test]
fn threads_change_no_bit() {
    let (m, n, stretches) = batch();
    let case = Case::new(attention((6, 2), window(90)), (24, 24), (m, n), stretches).with_sinks();
    let dy = Random::new(9).normal(m * 6 * 24);
    let run = |threads| {
        with_threads(threads, || {
            let grads = case.backward(Isa::best(), &dy).map(|x| bits(&x));
            (bits(&case.forward(Isa::best())), grads)
        })
    };
    assert_eq!(run(1), run(5));
}

/// A document as calls: the numbers of queries, and how many positions a cache keeps beyond what the mask sees.
#[derive(Debug, Clone)]
struct Cut {
    chunks: Vec<usize>,
    kept: usize,
    /// Whether positions of earlier calls are in pages, in place; else they are copied to rows.
    paged: bool,
}

/// Positions of x `[n g·dim]` in pages `[g 64 dim]`, the first at a multiple of 64; what is not filled is NaN.
fn in_pages(x: &[f32], g: usize, dim: usize, positions: Range<usize>) -> Vec<Vec<f32>> {
    let of = |page: usize| {
        let mut values = vec![f32::NAN; g * PAGE * dim];
        for at in page..positions.end.min(page + PAGE) {
            for head in 0..g {
                let from = &x[(at * g + head) * dim..][..dim];
                values[(head * PAGE + at % PAGE) * dim..][..dim].copy_from_slice(from);
            }
        }
        values
    };
    positions.clone().step_by(PAGE).map(of).collect()
}

/// Outputs of the document of `whole` in calls, from caches that drop what the mask does not see.
fn in_calls(whole: &Case, isa: Isa, cut: &Cut) -> Vec<f32> {
    let (mask, Widths { group, c, dv }) = (&whole.attention.mask, whole.widths);
    let (g, mut from, mut all) = (whole.kv_heads(), 0, Vec::new());
    for &count in &cut.chunks {
        let to = from + count;
        let mut first = mask.reach().map_or(0, |reach| (from + 1).saturating_sub(reach + cut.kept));
        let mut sinks = mask.reach().map_or(0, |_| (mask.sinks + cut.kept).min(first));
        if cut.paged {
            first -= first % PAGE;
            sinks = sinks.next_multiple_of(PAGE).min(first);
        }
        let paged = if cut.paged { sinks + from - first } else { 0 };
        let rows = |x: &[f32], cols: usize| match cut.paged {
            true => x[from * cols..to * cols].to_vec(),
            false => [&x[..sinks * cols], &x[first * cols..to * cols]].concat(),
        };
        let pages = |x: &[f32], dim: usize| match cut.paged {
            true => [in_pages(x, g, dim, 0..sinks), in_pages(x, g, dim, first..from)].concat(),
            false => Vec::new(),
        };
        let offset = sinks + from - first;
        let whole_rows = Stretch::whole(0..count, 0..offset + count - paged, offset);
        let (k_pages, v_pages) = (pages(&whole.k, c), pages(&whole.v, dv));
        let stretch = Stretch { pages: 0..k_pages.len(), paged, sinks, gap: first - sinks, ..whole_rows };
        let part = Case {
            attention: whole.attention.clone(),
            widths: whole.widths,
            q: whole.q[from * g * group * c..to * g * group * c].to_vec(),
            k: rows(&whole.k, g * c),
            v: rows(&whole.v, g * dv),
            sinks: whole.sinks.clone(),
            stretches: vec![stretch],
        };
        let pages: Vec<Page> = k_pages.iter().zip(&v_pages).map(|(k, v)| Page { k, v }).collect();
        let mut y = Poisoned::new(count, g * group * dv, 3);
        forward(isa, &part.attention, &Args { pages: &pages, ..part.args() }, y.rows_mut());
        all.extend(y.values());
        from = to;
    }
    all
}

/// Lengths of parts, short ones as often as long ones.
fn parts(random: &mut Random, total: usize) -> Vec<usize> {
    let (mut left, mut parts) = (total, Vec::new());
    while left > 0 {
        let part = (1 << random.below(12)).min(left);
        let part = 1 + random.below(part);
        parts.push(part);
        left -= part;
    }
    parts
}

/// Every step of a document of 4,097 positions, in pages, has the bits of one pass.
#[test]
fn steps_over_pages_are_one_pass() {
    for (n, heads, widths) in [(4097, (2, 1), (16, 16)), (300, (4, 4), (64, 64)), (130, (8, 2), (24, 128))] {
        let whole = Case::new(attention(heads, Mask::default()), widths, (n, n), vec![Stretch::whole(0..n, 0..n, 0)]);
        let cut = Cut { chunks: [vec![n - 100], vec![1; 90], vec![7, 3]].concat(), kept: 0, paged: true };
        for isa in Isa::available() {
            assert_eq!(bits(&whole.forward(isa)), bits(&in_calls(&whole, isa, &cut)), "{} {n}", isa.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Decoding is a forward pass: the same bits for any cut, whatever a cache has dropped, alone or in a batch.
    #[test]
    fn any_cut_has_the_same_bits(seed in any::<u64>(), longest in 0..13_usize) {
        let mut random = Random::new(seed);
        let n = 1 + random.below(1 << longest).min(4096);
        let mut masks = masks();
        let mask = masks.swap_remove(random.below(masks.len()));
        let heads = [(1, 1), (2, 1), (4, 2), (5, 1)][random.below(4)];
        let (softcap, alibi) = ([0.0, 3.0][random.below(2)], random.below(2) == 1);
        let attention = Attention { softcap, alibi, ..attention(heads, mask) };
        let widths = [(1, 2), (8, 8), (5, 12), (20, 40)][random.below(4)];
        let whole = Case::new(attention, widths, (n, n), vec![Stretch::whole(0..n, 0..n, 0)]);
        let whole = if random.below(2) == 0 { whole } else { whole.with_sinks() };
        let chunks = if random.below(4) == 0 { vec![1; n] } else { parts(&mut random, n) };
        let cut = Cut { chunks, kept: random.below(70), paged: random.below(2) == 1 };
        for isa in Isa::available() {
            let want = whole.forward(isa);
            prop_assert_eq!(bits(&want), bits(&in_calls(&whole, isa, &cut)), "{} {:?}", isa.name(), cut);
            // The same document behind another one, of any length.
            let before = 1 + random.below(300);
            let mut batch = Case::new(whole.attention.clone(), widths, (before, before), Vec::new());
            batch.sinks.clone_from(&whole.sinks);
            batch.stretches = vec![Stretch::whole(0..before, 0..before, 0), Stretch::whole(before..before + n, before..before + n, 0)];
            for (all, more) in [(&mut batch.q, &whole.q), (&mut batch.k, &whole.k), (&mut batch.v, &whole.v)] {
                all.extend_from_slice(more);
            }
            let y = batch.forward(isa);
            prop_assert_eq!(bits(&want), bits(&y[y.len() - want.len()..]), "in a batch");
        }
    }
}
