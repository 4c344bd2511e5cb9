//! Speed of the operations other than the scan, on random values: `cargo run --release --example ops_speed [name]`.
//!
//! Prints the median of repeated calls after a warm-up, as time and as GFLOP/s or GB/s of what must be read and written,
//! and the speed of the best call, which differs from the median on a busy machine.

use std::time::Instant;

use elapid_kernels::attention::{self, Attention, Mask, Stretch};
use elapid_kernels::testing::Random;
use elapid_kernels::{
    Isa, Rows, RowsMut, Segments, adamw, add_norm, causal_conv1d, ceiling, cross_entropy, embedding, linear,
};

/// Median and least seconds of a call.
fn measure(mut f: impl FnMut()) -> (f64, f64) {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.4 && times.len() < 2000) {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Prints a line; returns the best call's amount per second.
fn report(name: &str, amount: f64, unit: &str, f: impl FnMut()) -> f64 {
    let (median, least) = measure(f);
    let speed = |seconds| amount / seconds / 1e9;
    println!("{name:<44} {:>10.1} us {:>8.1} {unit}, best {:>8.1}", median * 1e6, speed(median), speed(least));
    amount / least
}

fn linears(random: &mut Random) {
    for (m, n, k) in [
        (2048, 1536, 768),
        (2048, 3072, 768),
        (2048, 768, 1536),
        (2048, 80, 1536),
        (2048, 1536, 48),
        (2048, 512, 256),
        (2048, 256, 512),
        (64, 1536, 768),
        (8, 3072, 768),
    ] {
        let (x, w, dy) = (random.normal(m * k), random.normal(n * k), random.normal(m * n));
        let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
        let (x, w, dy) = (Rows::new(&x, k), Rows::new(&w, k), Rows::new(&dy, n));
        let flops = 2.0 * (m * n * k) as f64;
        let name = |op: &str| format!("linear {op} {m}x{n}x{k}");
        report(&name("forward"), flops, "GFLOP/s", || linear::forward(x, w, None, RowsMut::new(&mut y, n)).unwrap());
        report(&name("forward_invariant"), flops, "GFLOP/s", || {
            linear::forward_invariant(x, w, None, RowsMut::new(&mut y, n)).unwrap();
        });
        report(&name("backward_input"), flops, "GFLOP/s", || {
            linear::backward_input(dy, w, RowsMut::new(&mut dx, k), false).unwrap();
        });
        report(&name("backward_weight"), flops, "GFLOP/s", || {
            linear::backward_weight(dy, x, RowsMut::new(&mut dw, k)).unwrap();
        });
    }
    for (n, k) in [(3072, 768), (768, 1536), (50280, 768), (80, 1536), (512, 256)] {
        let (x, w, mut y) = (random.normal(k), random.normal(n * k), vec![0.0; n]);
        let (x, w) = (Rows::new(&x, k), Rows::new(&w, k));
        let bytes = 4.0 * (n * k) as f64;
        report(&format!("linear forward_invariant 1x{n}x{k}"), bytes, "GB/s", || {
            linear::forward_invariant(x, w, None, RowsMut::new(&mut y, n)).unwrap();
        });
        report(&format!("linear forward 1x{n}x{k}"), bytes, "GB/s", || {
            linear::forward(x, w, None, RowsMut::new(&mut y, n)).unwrap();
        });
    }
}

fn convs(random: &mut Random) {
    for (b, l, d) in [(1, 2048, 1536), (8, 256, 512), (1, 1, 1536)] {
        let k = 4;
        let dims = causal_conv1d::Dims { b, l, d, k };
        let (x, dy, weight, bias) =
            (random.normal(b * l * d), random.normal(b * l * d), random.normal(d * k), random.normal(d));
        let (mut y, mut dx) = (vec![0.0; b * l * d], vec![0.0; b * l * d]);
        let mut last = vec![0.0; b * (k - 1) * d];
        let (mut dweight, mut dbias) = (vec![0.0; d * k], vec![0.0; d]);
        let args = causal_conv1d::Args {
            x: Rows::new(&x, d),
            weight: &weight,
            bias: Some(&bias),
            initial: None,
            segments: Segments::default(),
            silu: true,
        };
        let bytes = 4.0 * (b * l * d) as f64;
        report(&format!("causal_conv1d forward {b}x{l}x{d}"), 2.0 * bytes, "GB/s", || {
            causal_conv1d::forward(dims, args, RowsMut::new(&mut y, d), &mut last).unwrap();
        });
        report(&format!("causal_conv1d backward {b}x{l}x{d}"), 3.0 * bytes, "GB/s", || {
            let (dweight, dbias) = (&mut dweight[..], Some(&mut dbias[..]));
            let grads = causal_conv1d::Grads { dx: RowsMut::new(&mut dx, d), dweight, dbias, dinitial: None };
            causal_conv1d::backward(dims, args, Rows::new(&dy, d), None, grads).unwrap();
        });
        if l == 1 {
            report(&format!("causal_conv1d step {b}x{d}"), 8.0 * bytes, "GB/s", || {
                let (x, y) = (Rows::new(&x, d), RowsMut::new(&mut y, d));
                causal_conv1d::step(dims, x, &weight, Some(&bias), true, &mut last, y).unwrap();
            });
        }
    }
}

fn norms(random: &mut Random) {
    for (m, d) in [(2048, 768), (2048, 256), (1, 768)] {
        let (x, r, dy, weight) = (random.normal(m * d), random.normal(m * d), random.normal(m * d), random.normal(d));
        let (mut y, mut sum, mut rstd) = (vec![0.0; m * d], vec![0.0; m * d], vec![0.0; m]);
        let mut dweight = vec![0.0; d];
        let bytes = 4.0 * (m * d) as f64;
        report(&format!("add_norm forward {m}x{d}"), 4.0 * bytes, "GB/s", || {
            let (x, r) = (Rows::new(&x, d), Some(Rows::new(&r, d).into()));
            let (y, sum) = (RowsMut::new(&mut y, d), RowsMut::new(&mut sum, d));
            add_norm::forward(x, r, &weight, 1e-5, y, sum, &mut rstd).unwrap();
        });
        report(&format!("add_norm backward {m}x{d}"), 4.0 * bytes, "GB/s", || {
            let (sum, dy, dsum) = (Rows::new(&sum, d), Rows::new(&dy, d), Some(Rows::new(&r, d).into()));
            let dx = RowsMut::new(&mut y, d);
            add_norm::backward(sum, &weight, &rstd, dy, dsum, dx, None, &mut dweight).unwrap();
        });
    }
}

fn losses(random: &mut Random) {
    for (m, v, d) in [(2048, 256, 256), (512, 50280, 768)] {
        let (h, w) = (random.normal(m * d), random.normal(v * d));
        let targets: Vec<i32> = (0..m).map(|_| random.below(v) as i32).collect();
        let (mut nll, mut dh, mut dw) = (vec![0.0; m], vec![0.0; m * d], vec![0.0; v * d]);
        let mut mean = [0.0];
        let args = cross_entropy::Args {
            h: Rows::new(&h, d),
            w: Rows::new(&w, d),
            targets: &targets,
            smoothing: 0.0,
            softcap: 0.0,
        };
        let flops = 2.0 * (m * v * d) as f64;
        report(&format!("cross_entropy loss {m}x{v}x{d}"), flops, "GFLOP/s", || {
            cross_entropy::forward(args, &mut nll, &mut mean, None).unwrap();
        });
        report(&format!("cross_entropy loss+gradients {m}x{v}x{d}"), 3.0 * flops, "GFLOP/s", || {
            let (dh, dw) = (RowsMut::new(&mut dh, d), RowsMut::new(&mut dw, d));
            let grads = cross_entropy::Grads { dh, dw, scale: 1.0 };
            cross_entropy::forward(args, &mut nll, &mut mean, Some(grads.into())).unwrap();
        });
    }
}

fn optimisers(random: &mut Random) {
    let n = 1 << 24;
    let (mut p, g, mut m, mut v) = (random.normal(n), random.normal(n), vec![0.0; n], vec![0.0; n]);
    let hyper =
        adamw::Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 10, grad_scale: 1.0 };
    report("adamw step 16M", 28.0 * n as f64, "GB/s", || adamw::step(&hyper, &mut p, &g, &mut m, &mut v).unwrap());
    report("adamw norm_sq 16M", 4.0 * n as f64, "GB/s", || assert!(adamw::norm_sq(&g) > 0.0));
    report("adamw first_non_finite 16M", 4.0 * n as f64, "GB/s", || assert_eq!(adamw::first_non_finite(&g), None));
    let (rows, vocabulary, d) = (2048, 50280, 256);
    let ids: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
    let (mut table, mut y) = (random.normal(vocabulary * d), vec![0.0; rows * d]);
    report("embedding forward 2048x256", 8.0 * (rows * d) as f64, "GB/s", || {
        embedding::forward(&ids, Rows::new(&table, d), RowsMut::new(&mut y, d)).unwrap();
    });
    report("embedding backward 2048x256", 12.0 * (rows * d) as f64, "GB/s", || {
        embedding::backward(&ids, Rows::new(&y, d), RowsMut::new(&mut table, d)).unwrap();
    });
}

/// Two products of `c` multiply-adds per key that a query sees; in the backward pass five.
// Long: every measurement is a few lines.
fn attentions(random: &mut Random) {
    let peak = ceiling::fma_ceiling() / 1e9;
    println!("multiply-adds in registers: {peak:.1} GFLOP/s");
    for (b, h, g, l, c, window) in [
        // A call that is shorter than a time slice of a busy machine.
        (1, 2, 2, 2048, 64, 0),
        (1, 12, 12, 2048, 64, 0),
        (8, 12, 12, 256, 64, 0),
        (1, 12, 2, 2048, 128, 0),
        (1, 12, 12, 4096, 64, 256),
        (2, 4, 4, 1024, 80, 0),
    ] {
        let m = b * l;
        let (q, k, v) = (random.normal(m * h * c), random.normal(m * g * c), random.normal(m * g * c));
        let (dy, mut y) = (random.normal(m * h * c), vec![0.0; m * h * c]);
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        let row = |r: usize| Stretch::whole(r * l..(r + 1) * l, r * l..(r + 1) * l, 0);
        let stretches: Vec<Stretch> = (0..b).map(row).collect();
        let args = attention::Args {
            q: Rows::new(&q, h * c),
            k: Rows::new(&k, g * c),
            v: Rows::new(&v, g * c),
            sink_logits: None,
            pages: &[],
            stretches: &stretches,
        };
        let mask = Mask { window, ..Mask::default() };
        let seen: usize = (0..l).map(|t| if window == 0 { t + 1 } else { window.min(t + 1) }).sum();
        let flops = 4.0 * (b * h * c) as f64 * seen as f64;
        let settings =
            Attention { heads: h, kv_heads: g, scale: (c as f32).powf(-0.5), mask, softcap: 0.0, alibi: false };
        let name = |pass: &str| format!("attention {pass} b{b} h{h}/{g} l{l} c{c} w{window}");
        if window == 0 && l == 2048 && h == 12 && h == g {
            let start = Instant::now();
            attention::naive::forward(&settings, &args, RowsMut::new(&mut y, h * c));
            println!("{} {:>8.1} GFLOP/s", name("naive"), flops / start.elapsed().as_secs_f64() / 1e9);
        }
        let forward = report(&name("forward"), flops, "GFLOP/s", || {
            attention::forward(&settings, args, RowsMut::new(&mut y, h * c), None).unwrap();
        });
        let backward = report(&name("backward"), 2.5 * flops, "GFLOP/s", || {
            let (dq, dk, dv) =
                (RowsMut::new(&mut dq, h * c), RowsMut::new(&mut dk, g * c), RowsMut::new(&mut dv, g * c));
            let grads = attention::Grads { dq, dk, dv, dsink_logits: None };
            // The CPU does not read y.
            let dy = Rows::new(&dy, h * c);
            let outputs = attention::Outputs { y: dy, dy };
            attention::backward(&settings, args, &attention::Saved::new(), outputs, grads).unwrap();
        });
        let share = |speed: f64| 100.0 * speed / 1e9 / peak;
        println!("    of multiply-adds in registers: {:.0} %, {:.0} %", share(forward), share(backward));
    }
    for (h, g, c, past) in [(12, 12, 64, 2048), (12, 12, 64, 512), (32, 8, 128, 2048)] {
        /// Caches that take turns, so that a call finds nothing of its own in the CPU's caches.
        const CACHES: usize = 12;
        let pages = past / attention::PAGE;
        let (q, k, v) = (random.normal(h * c), random.normal(g * c), random.normal(g * c));
        let mut page = || random.normal(attention::PAGE * g * c);
        let data: Vec<[Vec<f32>; 2]> = (0..CACHES * pages).map(|_| [page(), page()]).collect();
        let data: Vec<_> = data.iter().map(|[k, v]| attention::Page { k, v }).collect();
        let (mut y, mut at) = (vec![0.0; h * c], 0);
        let mask = Mask::default();
        let settings = Attention { heads: h, kv_heads: g, scale: 0.1, mask, softcap: 0.0, alibi: false };
        let name = format!("attention step h{h}/{g} c{c} past {past}");
        report(&name, 8.0 * ((past + 1) * g * c) as f64, "GB/s", || {
            at = (at + pages) % data.len();
            let stretches = [Stretch { pages: at..at + pages, paged: past, ..Stretch::whole(0..1, 0..1, past) }];
            let args = attention::Args {
                q: Rows::new(&q, h * c),
                k: Rows::new(&k, g * c),
                v: Rows::new(&v, g * c),
                pages: &data,
                sink_logits: None,
                stretches: &stretches,
            };
            attention::forward(&settings, args, RowsMut::new(&mut y, h * c), None).unwrap();
        });
    }
    println!("    memory read: {:.1} GB/s", ceiling::read_ceiling(usize::MAX) / 1e9);
}

fn main() {
    elapid_kernels::os::memory::keep_freed_memory();
    let wanted = std::env::args().nth(1).unwrap_or_default();
    println!("{}, {} threads", Isa::best().name(), std::thread::available_parallelism().map_or(1, usize::from));
    let mut random = Random::new(1);
    let mut run = |name: &str, group: fn(&mut Random)| {
        if name.starts_with(&wanted) {
            group(&mut random);
        }
    };
    run("attention", attentions);
    run("linear", linears);
    run("conv", convs);
    run("norm", norms);
    run("loss", losses);
    run("optimiser", optimisers);
}
