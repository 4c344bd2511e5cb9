//! Attention on a GPU, against the f64 oracle.

use super::*;
use crate::cuda::{self, Buffer, Gpu};
use crate::testing::{OnDevice, Random, argument_of, bits, err_ratio, gpu, median, rounded, wide};
use crate::{DType, Rows, RowsMut};

/// The error of rounding every output, and every probability between the products, to bf16, with f32 sums.
const BF16: f64 = 4e-3;
/// The same of dq and dk: in dp - Σ dy y, with y rounded, most cancels where few keys are seen.
const BF16_SCORES: f64 = 8e-3;

/// A batch in one packed matrix, as the layer has it.
#[derive(Clone)]
struct Case {
    attention: Attention,
    b: usize,
    l: usize,
    hk: usize,
    hv: usize,
    lengths: Option<Vec<u32>>,
    resets: Option<Vec<u8>>,
    /// `[heads]`.
    sinks: Option<Vec<f32>>,
    /// `[b l heads·hk + kv_heads·(hk + hv)]`.
    qkv: Vec<f32>,
    /// `[b l heads·hv]`.
    dy: Vec<f32>,
}

fn attention(heads: usize, kv_heads: usize, mask: Mask) -> Attention {
    Attention { heads, kv_heads, scale: 0.3, mask, softcap: 0.0, alibi: false }
}

impl Case {
    fn new(attention: Attention, (b, l): (usize, usize), (hk, hv): (usize, usize), seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Attention { heads, kv_heads, .. } = attention;
        let qkv = random.normal(b * l * (heads * hk + kv_heads * (hk + hv)));
        let dy = random.normal(b * l * heads * hv);
        Self { attention, b, l, hk, hv, lengths: None, resets: None, sinks: None, qkv, dy }
    }

    /// With documents that begin at random, and rows that end at different places.
    fn with_documents(self, seed: u64) -> Self {
        let (mut random, b, l) = (Random::new(seed), self.b, self.l);
        let resets = (0..b * l).map(|_| u8::from(random.below(40) == 0)).collect();
        let lengths = (0..b).map(|row| if row == 0 { l } else { random.below(l + 1) } as u32).collect();
        Self { resets: Some(resets), lengths: Some(lengths), ..self }
    }

    /// With a learned logit of each head, near the scores and far from them.
    fn with_sinks(self) -> Self {
        let sinks = (0..self.attention.heads).map(|h| [0.5, -1.0, 300.0, 2.5, -300.0, 4.0][h % 6]).collect();
        Self { sinks: Some(sinks), ..self }
    }

    /// Columns of q, k and v.
    fn cols(&self) -> [usize; 3] {
        let Attention { heads, kv_heads, .. } = self.attention;
        [heads * self.hk, kv_heads * self.hk, kv_heads * self.hv]
    }

    fn width(&self) -> usize {
        self.cols().iter().sum()
    }

    fn stretches(&self) -> Vec<Stretch> {
        let mut stretches = Vec::new();
        for row in 0..self.b {
            let len = self.lengths.as_ref().map_or(self.l, |lengths| lengths[row] as usize);
            let reset = |t: &usize| self.resets.as_ref().is_some_and(|resets| resets[row * self.l + t] != 0);
            let mut from = 0;
            for to in (1..len).filter(reset).chain([len]) {
                let rows = row * self.l + from..row * self.l + to;
                stretches.push(Stretch::whole(rows.clone(), rows, 0));
                from = to;
            }
        }
        stretches
    }

    /// y, dq, dk, dv, dsinks of the equation in f64.
    fn naive(&self) -> [Vec<f64>; 5] {
        let (packed, dy) = (wide(&self.qkv), wide(&self.dy));
        let (packed, [q, k, v]) = (Rows::new(&packed, self.width()), self.cols());
        let (stretches, sinks) = (self.stretches(), self.sinks.as_deref().map(wide));
        let args = Args {
            q: packed.columns(0, q),
            k: packed.columns(q, k),
            v: packed.columns(q + k, v),
            sink_logits: sinks.as_deref(),
            pages: &[],
            stretches: &stretches[..],
        };
        let (rows, heads) = (self.b * self.l, self.attention.heads * self.hv);
        let mut y = vec![f64::NAN; rows * heads];
        naive::forward(&self.attention, &args, RowsMut::new(&mut y, heads));
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|cols| vec![0.0; rows * cols]);
        let mut dsinks = vec![1.0; self.attention.heads];
        let grads = Grads {
            dq: RowsMut::new(&mut dq, q),
            dk: RowsMut::new(&mut dk, k),
            dv: RowsMut::new(&mut dv, v),
            dsink_logits: sinks.is_some().then_some(&mut dsinks[..]),
        };
        naive::backward(&self.attention, &args, Rows::new(&dy, heads), grads);
        [y, dq, dk, dv, dsinks]
    }
}

/// A case and its outputs on a GPU, the gradients packed as their inputs are.
struct Device {
    case: Case,
    qkv: OnDevice,
    dy: OnDevice,
    y: OnDevice,
    dqkv: OnDevice,
    sinks: Option<OnDevice>,
    /// Added to 1.
    dsinks: OnDevice,
    lengths: Option<Buffer>,
    resets: Option<Buffer>,
}

impl Device {
    /// `gap`: columns between rows.
    fn new(gpu: Gpu, case: &Case, dtype: DType, gap: usize) -> Self {
        let (width, heads, rows) = (case.width(), case.attention.heads * case.hv, case.b * case.l);
        Self {
            case: case.clone(),
            qkv: OnDevice::of(gpu, &case.qkv, width, gap, dtype),
            dy: OnDevice::of(gpu, &case.dy, heads, gap, dtype),
            y: OnDevice::poisoned(gpu, rows, heads, gap, dtype),
            dqkv: OnDevice::poisoned(gpu, rows, width, gap, dtype),
            sinks: case.sinks.as_ref().map(|sinks| OnDevice::of(gpu, sinks, sinks.len(), 0, DType::F32)),
            dsinks: OnDevice::of(gpu, &vec![1.0; case.attention.heads], case.attention.heads, 0, DType::F32),
            lengths: case.lengths.as_ref().map(|lengths| gpu.upload(lengths).unwrap()),
            resets: case.resets.as_ref().map(|resets| gpu.upload(resets).unwrap()),
        }
    }

    fn args(&self) -> Args<cuda::Mat<'_>> {
        let [q, k, v] = self.case.cols();
        let segments = cuda::Segments { lengths: self.lengths.as_ref(), resets: self.resets.as_ref() };
        Args {
            q: self.qkv.mat().columns(0, q),
            k: self.qkv.mat().columns(q, k),
            v: self.qkv.mat().columns(q + k, v),
            pages: (),
            sink_logits: self.sinks.as_ref().map(OnDevice::mat),
            stretches: Batch { b: self.case.b, l: self.case.l, past: 0, segments },
        }
    }

    fn forward(&self, saved: Option<&mut Saved>) -> Result<()> {
        forward(&self.case.attention, self.args(), self.y.mat_mut(), saved)
    }

    fn backward(&self, saved: &Saved) -> Result<()> {
        let [q, k, v] = self.case.cols();
        let grads = Grads {
            dq: self.dqkv.mat_mut().columns(0, q),
            dk: self.dqkv.mat_mut().columns(q, k),
            dv: self.dqkv.mat_mut().columns(q + k, v),
            dsink_logits: self.sinks.as_ref().map(|_| self.dsinks.mat_mut()),
        };
        let outputs = Outputs { y: self.y.mat(), dy: self.dy.mat() };
        backward(&self.case.attention, self.args(), saved, outputs, grads)
    }

    fn both(&self) -> Result<()> {
        let mut saved = Saved::new();
        self.forward(Some(&mut saved))?;
        self.backward(&saved)
    }

    /// y, dq, dk, dv, dsinks.
    fn values(&self) -> [Vec<f32>; 5] {
        let ([q, k, v], width, all) = (self.case.cols(), self.case.width(), self.dqkv.values());
        let part = |from: usize, cols: usize| -> Vec<f32> {
            all.chunks_exact(width).flat_map(|row| &row[from..from + cols]).copied().collect()
        };
        [self.y.values(), part(0, q), part(q, k), part(q + k, v), self.dsinks.values()]
    }
}

fn agrees(gpu: Gpu, case: &Case, dtype: DType, gap: usize) {
    let case = Case { qkv: rounded(&case.qkv, dtype), dy: rounded(&case.dy, dtype), ..case.clone() };
    let device = Device::new(gpu, &case, dtype, gap);
    device.both().unwrap();
    for ((name, want), got) in ["y", "dq", "dk", "dv", "dsinks"].into_iter().zip(case.naive()).zip(device.values()) {
        let tolerance = match (dtype, name) {
            (DType::F32, _) => 1e-5,
            // Of one or two keys, next to nothing may be left; f32 tells whether the gradients are right.
            (DType::Bf16, "dq" | "dk") if case.l < 16 => 0.2,
            (DType::Bf16, "dq" | "dk" | "dsinks") if case.attention.mask.window == 1 => 2.0 * BF16_SCORES,
            (DType::Bf16, "dq" | "dk" | "dsinks") => BF16_SCORES,
            (DType::Bf16, _) => BF16,
        };
        let error = err_ratio(&want, &got);
        let Case { attention, b, l, hk, hv, .. } = &case;
        assert!(error <= tolerance, "{dtype} {name}: {error:e} of {attention:?}, {b} {l} {hk} {hv}, gap {gap}");
    }
    // Without keeping anything for a backward the same.
    let alone = Device::new(gpu, &case, dtype, gap);
    alone.forward(None).unwrap();
    assert!(bits(&alone.y.values()) == bits(&device.y.values()));
}

const BOTH: [DType; 2] = [DType::F32, DType::Bf16];

#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (i, (hk, hv)) in
        [(8, 8), (64, 64), (80, 80), (96, 64), (128, 64), (128, 128), (256, 256), (16, 40), (7, 5)].iter().enumerate()
    {
        for (j, l) in [0, 1, 2, 17, 64, 65, 130, 200].into_iter().enumerate() {
            let (heads, kv_heads) = [(1, 1), (4, 2), (3, 1), (2, 2)][(i + j) % 4];
            let scale = (*hk as f32).powf(-0.5);
            let attention = Attention { scale, ..attention(heads, kv_heads, Mask::default()) };
            let case = Case::new(attention, (1 + j % 2, l), (*hk, *hv), 7 + j as u64);
            // Gaps that keep rows aligned to 16 bytes, or not.
            BOTH.into_iter().for_each(|dtype| agrees(gpu, &case, dtype, [0, 8, 3][j % 3]));
        }
    }
}

/// Masks of every kind.
fn masks() -> Vec<Mask> {
    let window = |window| Mask { window, ..Mask::default() };
    vec![
        Mask::default(),
        window(1),
        window(50),
        window(1000),
        Mask { sinks: 5, ..window(20) },
        Mask { sinks: 90, ..window(3) },
        Mask { dilation: 3, sinks: 2, ..window(9) },
        Mask { strided: true, ..window(16) },
        Mask { globals: [0, 3, 77, 5000].into(), ..window(8) },
        Mask { causal: false, ..Mask::default() },
        Mask { causal: false, ..window(30) },
        Mask { causal: false, sinks: 3, dilation: 2, globals: [9].into(), ..window(5) },
        Mask { causal: false, sinks: 70, ..window(4) },
    ]
}

/// Every mask, with and without documents, of bare scores and of others.
fn every_mask(width: usize) {
    let Some(gpu) = gpu() else { return };
    for (i, mask) in masks().into_iter().enumerate() {
        let plain = attention(4, 2, mask.clone());
        let scored = Attention { softcap: 3.0, alibi: true, ..plain.clone() };
        for (j, attention) in [plain, scored].into_iter().enumerate() {
            let case = Case::new(attention, (2, 110 + 41 * (i % 3)), (width, width), (2 * i + j) as u64);
            let dtype = if (i + j) % 4 == 0 { DType::F32 } else { DType::Bf16 };
            agrees(gpu, &case, dtype, 0);
            agrees(gpu, &case.clone().with_sinks(), dtype, 0);
            agrees(gpu, &case.with_documents(i as u64), dtype, 8);
        }
    }
}

#[test]
fn every_mask_at_width_64() {
    every_mask(64);
}

#[test]
fn every_mask_at_width_80() {
    every_mask(80);
}

#[test]
fn every_mask_at_width_128() {
    every_mask(128);
}

#[test]
fn every_mask_at_width_256() {
    every_mask(256);
}

/// On every form of the kernels: plain ones, tensor cores, those of Hopper.
#[test]
fn learned_sinks() {
    let Some(gpu) = gpu() else { return };
    for width in [7, 64, 80, 128, 256] {
        for l in [1, 40, 333] {
            let case = Case::new(attention(6, 2, Mask::default()), (2, l), (width, width), l as u64).with_sinks();
            for dtype in BOTH {
                agrees(gpu, &case, dtype, 0);
                agrees(gpu, &case.clone().with_documents(l as u64), dtype, 8);
            }
        }
    }
}

#[test]
fn scores_beyond_scaled_products() {
    let Some(gpu) = gpu() else { return };
    let plain = attention(6, 2, Mask::default());
    let negative = Attention { scale: -0.2, ..plain.clone() };
    let capped = Attention { softcap: 1.5, ..plain.clone() };
    let sloped = Attention { alibi: true, ..plain.clone() };
    // Scores of hundreds: nothing overflows, and the largest decides.
    let large = Attention { scale: 30.0, ..plain };
    for attention in [negative, capped, sloped] {
        let case = Case::new(attention, (2, 210), (64, 64), 3);
        BOTH.into_iter().for_each(|dtype| agrees(gpu, &case, dtype, 0));
    }
    let case = Case::new(large, (1, 300), (64, 64), 4);
    let case = Case { qkv: rounded(&case.qkv, DType::Bf16), ..case };
    let device = Device::new(gpu, &case, DType::Bf16, 0);
    device.both().unwrap();
    let error = err_ratio(&case.naive()[0], &device.values()[0]);
    assert!(error < BF16, "{error:e}");
}

/// Long enough for heads in several groups, and for tiles that neither a window nor sinks touch.
#[test]
fn long_rows() {
    let Some(gpu) = gpu() else { return };
    for mask in [Mask::default(), Mask { window: 300, sinks: 4, ..Mask::default() }] {
        let case = Case::new(attention(2, 1, mask), (1, 3000), (64, 64), 5);
        agrees(gpu, &case, DType::Bf16, 0);
        agrees(gpu, &case.with_documents(6), DType::Bf16, 0);
    }
}

#[test]
fn twice_is_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for (width, dtype) in [(64, DType::Bf16), (128, DType::Bf16), (256, DType::Bf16), (64, DType::F32)] {
        let case = Case::new(attention(4, 2, Mask::default()), (3, 700), (width, width), 8).with_documents(9);
        let run = || {
            let device = Device::new(gpu, &case, dtype, 0);
            device.both().unwrap();
            device.values().map(|x| bits(&x))
        };
        let first = run();
        (0..3).for_each(|_| assert!(run() == first));
    }
}

/// A captured call reads the documents of each launch.
#[test]
fn graphs_see_new_documents() {
    let Some(gpu) = gpu() else { return };
    for dtype in BOTH {
        let case = Case::new(attention(4, 2, Mask::default()), (2, 300), (64, 64), 10).with_documents(11);
        let other = case.clone().with_documents(12);
        let device = Device::new(gpu, &case, dtype, 0);
        device.both().unwrap();
        let (graph, ()) = gpu.capture(|| device.both()).unwrap();
        for now in [&other, &case] {
            gpu.write(device.lengths.as_ref().unwrap(), 0, now.lengths.as_ref().unwrap()).unwrap();
            gpu.write(device.resets.as_ref().unwrap(), 0, now.resets.as_ref().unwrap()).unwrap();
            graph.launch().unwrap();
            let fresh = Device::new(gpu, now, dtype, 0);
            fresh.both().unwrap();
            assert!(device.values().map(|x| bits(&x)) == fresh.values().map(|x| bits(&x)), "{dtype}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let fault = |case: &Case| argument_of(Device::new(gpu, case, DType::Bf16, 0).both());
    let plain = attention(2, 1, Mask::default());
    assert_eq!(fault(&Case::new(plain.clone(), (1, 4), (264, 64), 1)), Some("q"));
    assert_eq!(fault(&Case::new(plain.clone(), (1, 4), (64, 264), 1)), Some("v"));
    let globals = Mask { window: 2, globals: (0..65).collect(), ..Mask::default() };
    assert_eq!(fault(&Case::new(attention(2, 1, globals.clone()), (1, 100), (8, 8), 1)), Some("globals"));
    assert_eq!(
        fault(&Case::new(attention(2, 1, globals), (1, 50), (8, 8), 1)),
        None,
        "those beyond the row do not count"
    );
    let device = Device::new(gpu, &Case::new(plain, (1, 4), (8, 8), 1), DType::Bf16, 0);
    assert_eq!(argument_of(device.backward(&Saved::new())), Some("saved"));
    let args = Args { stretches: Batch { b: 1, l: 5, past: 0, segments: cuda::Segments::default() }, ..device.args() };
    assert_eq!(argument_of(forward(&device.case.attention, args, device.y.mat_mut(), None)), Some("stretches"));
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    for (b, heads, l, width) in [(8, 16, 2048, 64), (4, 32, 2048, 128), (8, 16, 8192, 64)] {
        let case = Case::new(attention(heads, heads, Mask::default()), (b, l), (width, width), 1);
        let attention = Attention { scale: (width as f32).powf(-0.5), ..case.attention.clone() };
        let device = Device::new(gpu, &Case { attention, ..case }, DType::Bf16, 0);
        let mut saved = Saved::new();
        device.forward(Some(&mut saved)).unwrap();
        device.backward(&saved).unwrap();
        let forward = median(gpu.time(20, || device.forward(None)).unwrap());
        let both = median(gpu.time(20, || device.both()).unwrap());
        let flops = 4.0 * (b * heads * width * l * (l + 1) / 2) as f32;
        println!(
            "attention {b} {heads} {l} {width}: forward {forward:.4} ms, {:.0} TFLOP/s; and backward {both:.4} ms, {:.0}",
            flops / forward / 1e9,
            3.5 * flops / both / 1e9
        );
    }
}

/// Queries of a chunk after keys of earlier calls.
#[test]
fn a_chunk_sees_what_came_before() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(70);
    let near = Mask { window: 90, sinks: 3, ..Mask::default() };
    let strided = Mask { window: 50, strided: true, ..Mask::default() };
    for (past, l, mask) in [
        (1, 1, Mask::default()),
        (63, 70, Mask::default()),
        (128, 256, Mask::default()),
        (300, 1, Mask::default()),
        (257, 129, near.clone()),
        (500, 33, near),
        (200, 77, strided),
    ] {
        for (dtype, heads, kv_heads, hk, hv) in [
            (DType::F32, 4, 2, 7, 5),
            (DType::Bf16, 4, 2, 64, 64),
            (DType::Bf16, 2, 1, 128, 128),
            (DType::Bf16, 3, 3, 40, 24),
        ] {
            let attention = attention(heads, kv_heads, mask.clone());
            let mut values = |rows: usize, cols: usize| rounded(&random.normal(rows * cols), dtype);
            let (q, k, v) = (values(l, heads * hk), values(past + l, kv_heads * hk), values(past + l, kv_heads * hv));
            let [wide_q, wide_k, wide_v] = [&q, &k, &v].map(|x| wide(x));
            let stretches = [Stretch::whole(0..l, 0..past + l, past)];
            let args = Args {
                q: Rows::new(&wide_q, heads * hk),
                k: Rows::new(&wide_k, kv_heads * hk),
                v: Rows::new(&wide_v, kv_heads * hv),
                pages: &[],
                sink_logits: None,
                stretches: &stretches[..],
            };
            let mut want = vec![0.0; l * heads * hv];
            naive::forward(&attention, &args, RowsMut::new(&mut want, heads * hv));
            let on = |x: &[f32], cols: usize| OnDevice::of(gpu, x, cols, 8, dtype);
            let (q, k, v) = (on(&q, heads * hk), on(&k, kv_heads * hk), on(&v, kv_heads * hv));
            let y = OnDevice::poisoned(gpu, l, heads * hv, 8, dtype);
            let batch = Batch { b: 1, l, past, segments: cuda::Segments::default() };
            forward(
                &attention,
                Args { q: q.mat(), k: k.mat(), v: v.mat(), pages: (), sink_logits: None, stretches: batch },
                y.mat_mut(),
                None,
            )
            .unwrap();
            let error = err_ratio(&want, &y.values());
            let bound = if dtype == DType::F32 { 1e-5 } else { BF16 };
            assert!(error < bound, "{past} + {l} {dtype} {hk} {mask:?}: {error:e}");
        }
    }
}
