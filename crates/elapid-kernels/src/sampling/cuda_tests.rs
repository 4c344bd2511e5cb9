//! On a GPU, against the processor.

use super::cuda::{Draw, Draws};
use super::*;
use crate::DType;
use crate::cuda::{Buffer, Gpu};
use crate::testing::{OnDevice, Random, gpu, median, rounded, wide};

#[test]
fn greedy_is_the_processors() {
    let Some(gpu) = gpu() else { return };
    for (i, (b, v)) in [(1, 1), (3, 31), (2, 1024), (5, 1025), (2, 50_280)].into_iter().enumerate() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut random = Random::new(i as u64);
            // Of few values, so that many are equal.
            let logits: Vec<f32> = (0..b * v).map(|_| random.below(40) as f32 - 20.0).collect();
            let logits = rounded(&logits, dtype);
            let on = OnDevice::of(gpu, &logits, v, 3, dtype);
            let ids = gpu.alloc(4 * b).unwrap();
            super::cuda::greedy(&gpu, on.mat(), &ids).unwrap();
            let want: Vec<u32> = logits.chunks(v).map(|row| greedy(row).unwrap()).collect();
            assert_eq!(want, gpu.download::<u32>(&ids, 0, b).unwrap());
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (on, ids) = (OnDevice::of(gpu, &[0.0, bad, 2.0], 3, 0, DType::F32), gpu.alloc(4).unwrap());
        super::cuda::greedy(&gpu, on.mat(), &ids).unwrap();
        assert_eq!(gpu.download::<u32>(&ids, 0, 1).unwrap(), [u32::MAX]);
    }
}

/// Rows that are sampled from several times, as decoding does but that the logits stay.
struct Case {
    name: String,
    params: Params,
    seed: u64,
    /// Tokens that were read.
    position: u64,
    v: usize,
    dtype: DType,
    logits: Vec<f32>,
    recent: Vec<Vec<u32>>,
}

impl Case {
    /// A row is the sample of its number; it has generated what it read last.
    fn draw(&self, row: usize) -> Draw<'_> {
        let (recent, sample) = (&self.recent[row][..], row as u64);
        Draw { params: self.params, seed: self.seed, sample, position: self.position, recent, generated: recent }
    }

    /// Ids of every launch, one after another.
    fn on(&self, gpu: Gpu, launches: usize) -> Vec<Vec<u32>> {
        let b = self.recent.len();
        let (on, ids) = (OnDevice::of(gpu, &self.logits, self.v, 3, self.dtype), gpu.alloc(4 * b).unwrap());
        let mut draws = Draws::new(gpu, b, self.v).unwrap();
        (0..b).for_each(|row| draws.set(row, &self.draw(row)).unwrap());
        let launch = |_| {
            super::cuda::sample(on.mat(), &draws, &ids).unwrap();
            gpu.download(&ids, 0, b).unwrap()
        };
        (0..launches).map(launch).collect()
    }

    /// The ids must be the processor's, but for a neighbour where the number is at the border between two tokens.
    fn check(&self, launches: &[Vec<u32>]) {
        let mut recent = self.recent.clone();
        for (launch, ids) in launches.iter().enumerate() {
            assert_eq!(ids.len(), recent.len());
            for (row, recent) in recent.iter_mut().enumerate() {
                let uniform = philox::uniform(self.seed, row as u64, self.position + launch as u64);
                let (logits, got) = (&self.logits[row * self.v..][..self.v], ids[row]);
                let seen = &recent[recent.len().saturating_sub(RECENT)..];
                let past = Past { recent: seen, counts: &super::cuda::counts(recent, self.v) };
                let want = sample(&self.params, logits, past, uniform, &mut Scratch::default()).unwrap();
                let near = || self.share_of(logits, past, got).is_some_and(|(from, to)| from < uniform && uniform < to);
                assert!(want == got || near(), "{}, row {row}: {got}, wanted {want} ({uniform})", self.name);
                recent.push(got);
            }
        }
    }

    /// Where numbers must lie that fall on `id`, widened by 1e-5.
    fn share_of(&self, logits: &[f32], past: Past<'_>, id: u32) -> Option<(f64, f64)> {
        let mut shares = naive::distribution(&self.params, &wide(logits), past);
        let Params { top_k, top_p, .. } = self.params;
        if top_p == 1.0 && (top_k == 0 || top_k >= self.v) {
            shares.sort_by_key(|share| share.0);
        }
        let at = shares.iter().position(|share| share.0 == id)?;
        let from: f64 = shares[..at].iter().map(|share| share.1).sum();
        Some((from - 1e-5, from + shares[at].1 + 1e-5))
    }
}

const DEFAULT: Params = Params::DEFAULT;

const PARAMS: [Params; 20] = [
    DEFAULT,
    Params { temperature: 0.0, ..DEFAULT },
    Params { temperature: 0.0, repetition_penalty: 1.5, ..DEFAULT },
    Params { top_k: 1, repetition_penalty: 0.7, ..DEFAULT },
    Params { temperature: 0.7, min_p: 0.05, ..DEFAULT },
    Params { temperature: 1.3, repetition_penalty: 1.2, ..DEFAULT },
    Params { temperature: 1.3, top_k: 40, ..DEFAULT },
    Params { temperature: 0.01, top_k: 5, ..DEFAULT },
    Params { top_k: 3000, min_p: 0.001, ..DEFAULT },
    Params { temperature: 0.8, top_p: 0.95, ..DEFAULT },
    Params { top_p: 0.1, repetition_penalty: 1.1, ..DEFAULT },
    Params { top_p: 0.5, min_p: 0.02, ..DEFAULT },
    Params { top_p: 0.3, min_p: 1.0, ..DEFAULT },
    Params { temperature: 2.0, top_p: 0.999, repetition_penalty: 0.8, ..DEFAULT },
    Params { temperature: 50.0, top_k: 20_000, top_p: 0.9, ..DEFAULT },
    Params { temperature: 0.9, top_k: 200, top_p: 0.9, min_p: 0.01, repetition_penalty: 1.3, ..DEFAULT },
    Params { temperature: 0.0, presence_penalty: 1.5, ..DEFAULT },
    Params { frequency_penalty: 0.3, ..DEFAULT },
    Params { top_p: 0.9, presence_penalty: -0.5, frequency_penalty: 0.1, ..DEFAULT },
    Params { top_k: 40, repetition_penalty: 1.2, presence_penalty: 0.4, frequency_penalty: -0.2, ..DEFAULT },
];

/// A logit from a normal number and a place.
type Kind = fn(f64, usize) -> f64;

fn cases() -> Vec<Case> {
    let mut random = Random::new(17);
    let mut cases = Vec::new();
    for (b, v) in [(1, 1), (5, 31), (3, 1025), (2, 50_280)] {
        let kinds: [(&str, Kind); 6] = [
            ("spread", |x, _| 3.0 * x),
            ("ties", |x, _| (2.0 * x).round()),
            ("equal", |_, _| -1.5),
            ("one far above the rest", |x, j| if j % 1025 == 7 { 12.0 } else { 0.002 * x }),
            ("of all sizes", |x, j| 20.0 * x.signum() * 0.5f64.powi(j as i32 % 45)),
            ("zeros of both signs", |x, j| if j % 3 == 0 { 0.0 * x } else { x.abs().min(1.0) - 1.0 }),
        ];
        for (kind, of) in kinds {
            for (i, params) in PARAMS.into_iter().enumerate() {
                for dtype in [DType::F32, DType::Bf16] {
                    let logits: Vec<f32> = (0..b * v).map(|j| of(random.gauss(), j) as f32).collect();
                    let position = random.bits() >> [60, 20, 0][i % 3];
                    let recent =
                        (0..b).map(|row| (0..200 * row + 20).map(|_| random.below(v) as u32).collect()).collect();
                    cases.push(Case {
                        name: format!("{kind}, {b} {v} {dtype}, {params:?}"),
                        params,
                        seed: random.bits(),
                        position: position.min(u64::MAX - 10),
                        v,
                        dtype,
                        logits: rounded(&logits, dtype),
                        recent,
                    });
                }
            }
        }
    }
    cases
}

#[test]
fn tokens_are_the_processors() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        case.check(&case.on(gpu, 3));
    }
}

#[test]
fn extreme_logits_are_safe_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let case = |params, logits: &[f32]| Case {
        name: format!("{logits:?}, {params:?}"),
        params,
        seed: 3,
        position: 2,
        v: logits.len(),
        dtype: DType::F32,
        logits: logits.to_vec(),
        recent: vec![vec![0, 1]],
    };
    let far = [f32::MIN, f32::MAX, 0.0, 1e-40, f32::MAX];
    for temperature in [1e-45, 1.0, f32::MAX] {
        for (top_p, repetition_penalty) in [(1.0, 1.0), (0.6, 1.0), (0.6, 1e-30), (1.0, 1e30)] {
            for frequency_penalty in [0.0, f32::MAX, f32::MIN] {
                let case = case(Params { temperature, top_p, repetition_penalty, frequency_penalty, ..DEFAULT }, &far);
                case.check(&case.on(gpu, 3));
            }
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (temperature, repetition_penalty) in [(0.0, 2.0), (1.0, 1.0), (1.0, 2.0)] {
            let params = Params { temperature, repetition_penalty, top_p: 0.9, ..DEFAULT };
            assert_eq!(case(params, &[0.0, bad, 2.0]).on(gpu, 2), [[u32::MAX]; 2]);
        }
    }
}

#[test]
fn draws_have_the_naive_distribution() {
    let Some(gpu) = gpu() else { return };
    let (b, v, launches, mut random) = (400, 60, 50, Random::new(23));
    let row: Vec<f32> = random.normal(v).iter().map(|z| (4.0 * z).round() / 2.0).collect();
    for params in [DEFAULT, Params { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.01, ..DEFAULT }] {
        let case = Case {
            name: String::new(),
            params,
            seed: 29,
            position: 1,
            v,
            dtype: DType::F32,
            logits: row.repeat(b),
            recent: vec![Vec::new(); b],
        };
        let ids = case.on(gpu, launches).concat();
        assert_eq!(ids, case.on(gpu, launches).concat());
        assert_ne!(ids, Case { seed: 30, ..case }.on(gpu, launches).concat());
        let (want, draws) = (naive::distribution(&params, &wide(&row), Past::default()), ids.len() as f64);
        let count = |id| ids.iter().filter(|&&other| other == id).count() as f64;
        assert_eq!(draws, want.iter().map(|w| count(w.0)).sum());
        let chi: f64 = want.iter().map(|&(id, share)| (count(id) - draws * share).powi(2) / (draws * share)).sum();
        let freedom = (want.len() - 1) as f64;
        assert!(chi < freedom + 4.0 * (2.0 * freedom).sqrt(), "{chi} at {freedom} degrees of freedom");
    }
}

#[test]
fn a_graph_draws_a_new_number_at_every_launch() {
    let Some(gpu) = gpu() else { return };
    let (b, v) = (3, 1000);
    let logits = OnDevice::of(gpu, &Random::new(1).normal(b * v), v, 0, DType::F32);
    let ids: Buffer = gpu.alloc(4 * b).unwrap();
    let mut draws = Draws::new(gpu, b, v).unwrap();
    let params = Params { top_p: 0.9, repetition_penalty: 1.2, frequency_penalty: 0.5, ..DEFAULT };
    let begin = |draws: &mut Draws| {
        for row in 0..b {
            let draw = Draw { params, seed: 5, sample: row as u64, position: 0, recent: &[], generated: &[] };
            draws.set(row, &draw).unwrap();
        }
    };
    begin(&mut draws);
    let sample = |draws: &Draws| super::cuda::sample(logits.mat(), draws, &ids);
    let read = || gpu.download::<u32>(&ids, 0, b).unwrap();
    let want: Vec<Vec<u32>> = (0..6).map(|_| (sample(&draws).unwrap(), read()).1).collect();
    let (graph, ()) = gpu.capture(|| sample(&draws)).unwrap();
    // A captured launch reads what the rows say now.
    begin(&mut draws);
    let got: Vec<Vec<u32>> = (0..6).map(|_| (graph.launch().unwrap(), read()).1).collect();
    assert_eq!(want, got);
    assert!(want.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn rows_draw_each_by_itself() {
    let Some(gpu) = gpu() else { return };
    let (b, v) = (5, 700);
    let row = Random::new(2).normal(v);
    let (many, one) = (OnDevice::of(gpu, &row.repeat(b), v, 0, DType::F32), OnDevice::of(gpu, &row, v, 0, DType::F32));
    let draw = |i: usize| Draw {
        params: PARAMS[4 * i % PARAMS.len()],
        seed: 11 + i as u64 % 2,
        sample: 1 << (8 * i),
        position: 7 * i as u64,
        recent: &[1, 2, 3],
        generated: &[2, 2],
    };
    let ids = gpu.alloc(4 * b).unwrap();
    let mut alone = Vec::new();
    for i in 0..b {
        let mut draws = Draws::new(gpu, 1, v).unwrap();
        draws.set(0, &draw(i)).unwrap();
        super::cuda::sample(one.mat(), &draws, &ids).unwrap();
        alone.push(gpu.download::<u32>(&ids, 0, 1).unwrap()[0]);
    }
    // In another order, one of them nobody's, then that one by itself.
    let mut draws = Draws::new(gpu, b, v).unwrap();
    (1..b).for_each(|i| draws.set(b - 1 - i, &draw(i)).unwrap());
    super::cuda::sample(many.mat(), &draws, &ids).unwrap();
    let mut want: Vec<u32> = alone.iter().rev().copied().collect();
    want[b - 1] = 0;
    assert_eq!(want, gpu.download::<u32>(&ids, 0, b).unwrap());
    draws.set(b - 1, &draw(0)).unwrap();
    super::cuda::sample_row(one.mat(), &draws, b - 1, &ids).unwrap();
    want[b - 1] = alone[0];
    assert_eq!(want, gpu.download::<u32>(&ids, 0, b).unwrap());
    draws.clear(0).unwrap();
    super::cuda::sample(many.mat(), &draws, &ids).unwrap();
    assert_eq!(gpu.download::<u32>(&ids, 0, 1).unwrap(), [0]);
    assert!(draws.clear(b).is_err() && super::cuda::sample(one.mat(), &draws, &ids).is_err());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let v = 50_280;
    let greedy = Params { temperature: 0.0, ..DEFAULT };
    let usual = Params { temperature: 0.8, top_p: 0.95, ..DEFAULT };
    let all = Params { top_k: 200, min_p: 0.01, repetition_penalty: 1.1, ..usual };
    for b in [1, 32] {
        for dtype in [DType::F32, DType::Bf16] {
            let logits: Vec<f32> = Random::new(1).normal(b * v).iter().map(|z| 2.5 * z).collect();
            let logits = OnDevice::of(gpu, &logits, v, 0, dtype);
            let (ids, mut draws) = (gpu.alloc(4 * b).unwrap(), Draws::new(gpu, b, v).unwrap());
            for (name, params) in [("greedy", greedy), ("temperature", DEFAULT), ("top-p", usual), ("all", all)] {
                for row in 0..b {
                    let draw = Draw { params, seed: 1, sample: row as u64, position: 0, recent: &[], generated: &[] };
                    draws.set(row, &draw).unwrap();
                }
                let run = || super::cuda::sample(logits.mat(), &draws, &ids);
                run().unwrap();
                println!("sample {name}, {b} rows of {dtype}: {:.4} ms", median(gpu.time(20, run).unwrap()));
            }
        }
    }
}
