//! Times the selective scan: forward, backward, one step and the naive form, compared with the limit set by exponentials.
//!
//! `cargo run --release -p elapid-kernels --example scan_speed -- [b l d n]`

use std::time::Instant;

use elapid_kernels::selective_scan::{
    Args, Dims, Discretisation, Grads, Outputs, Saved, backward, forward, naive, step,
};
use elapid_kernels::testing::Random;
use elapid_kernels::{Isa, Rows, RowsMut, Segments};

/// Median and best, in seconds.
fn time(runs: usize, mut f: impl FnMut()) -> (f64, f64) {
    f();
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[runs / 2], seconds[0])
}

// Long: a script: every measurement one after another.
fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().expect("sizes are numbers")).collect();
    let [b, l, d, n] = sizes.try_into().unwrap_or([2, 2048, 1536, 16]);
    let dims = Dims { b, l, d, n };
    let mut random = Random::new(1);
    let (u, z, dy) = (random.normal(b * l * d), random.normal(b * l * d), random.normal(b * l * d));
    let (delta, skip) = (random.normal(b * l * d), random.normal(d));
    let bias = random.uniform(d, -6.0, -2.0);
    let packed = random.normal(b * l * (48 + 2 * n)); // [b l (dt B C)]
    let packed = Rows::new(&packed, 48 + 2 * n);
    let a: Vec<f32> = (0..d * n).map(|i| -((i % n + 1) as f32)).collect();
    let ceiling = elapid_kernels::ceiling::exp_ceiling();
    println!("{dims:?}, {}, {} threads", Isa::best().name(), rayon::current_num_threads());
    println!(
        "exponentials: {:.2} G/s, so at best {:.2} ms a scan",
        ceiling / 1e9,
        (b * l * d * n) as f64 / ceiling * 1e3
    );

    let elements = (b * l * d) as f64;
    let report = |name: &str, (median, best): (f64, f64)| {
        let share = (b * l * d * n) as f64 / ceiling / median * 100.0;
        let rate = elements / median / 1e6;
        println!(
            "{name:22} median {:8.2} ms, best {:8.2} ms, {rate:7.1} M elements/s, {share:4.0} % of the exponentials' rate",
            median * 1e3,
            best * 1e3
        );
        median
    };
    let mut y = vec![0.0; b * l * d];
    let mut last = vec![0.0; b * d * n];
    let mut sums = [vec![0.0; d], vec![0.0; d]];
    let mut outs = [(); 3].map(|()| vec![0.0; b * l * d]);
    let (mut da, mut dbc) = (vec![0.0; d * n], vec![0.0; b * l * 2 * n]);
    let mut saved = Saved::new();
    for rule in Discretisation::ALL {
        let args = Args {
            u: Rows::new(&u, d),
            delta: Rows::new(&delta, d),
            delta_bias: Some(&bias),
            softplus: true,
            a: &a,
            b: packed.columns(48, n),
            c: packed.columns(48 + n, n),
            skip: Some(&skip),
            z: Some(Rows::new(&z, d)),
            initial: None,
            segments: Segments::default(),
            rule,
        };
        println!("{rule}");
        let median = report(
            "  forward",
            time(15, || {
                forward(dims, args, RowsMut::new(&mut y, d), &mut last, None).expect("shapes fit");
            }),
        );
        report(
            "  forward, saving",
            time(15, || {
                forward(dims, args, RowsMut::new(&mut y, d), &mut last, Some(&mut saved)).expect("shapes fit");
            }),
        );
        report(
            "  backward",
            time(15, || {
                let [du, ddelta, dz] = &mut outs;
                let [dbias, dskip] = &mut sums;
                let (db, dc) = RowsMut::new(&mut dbc, 2 * n).split_columns(n);
                let grads = Grads {
                    du: RowsMut::new(du, d),
                    ddelta: RowsMut::new(ddelta, d),
                    ddelta_bias: Some(dbias),
                    da: &mut da,
                    db,
                    dc,
                    dskip: Some(dskip),
                    dz: Some(RowsMut::new(dz, d)),
                    dinitial: None,
                };
                // Of y the CPU reads nothing.
                let dy = Rows::new(&dy, d);
                backward(dims, args, &saved, Outputs { y: dy, dy, dlast: None }, grads).expect("shapes fit");
            }),
        );
        println!("  states saved: {:.1} MB", saved.bytes() as f64 / 1e6);
        let first = |rows: Rows<'_>| rows.slice(0, 1).to_vec();
        let (u, delta, z) = (first(args.u), first(args.delta), first(args.z.expect("given above")));
        let one = Args {
            u: Rows::new(&u, d),
            delta: Rows::new(&delta, d),
            b: args.b.slice(0, 1),
            c: args.c.slice(0, 1),
            z: Some(Rows::new(&z, d)),
            ..args
        };
        let (median_step, _) = time(2000, || {
            let y = RowsMut::new(&mut y[..d], d);
            step(Dims { b: 1, ..dims }, one, &mut last[..d * n], y).expect("shapes fit");
        });
        println!("  one step of one row: {:.1} µs", median_step * 1e6);
        if rule == Discretisation::default() {
            // The plain loop runs channel after channel; an eighth of the channels is enough to time it.
            let part = d.div_ceil(8);
            let some = Dims { d: part, ..dims };
            let columns = |rows: Rows<'_>| rows.columns(0, part).to_vec();
            let (u, delta, z) = (columns(args.u), columns(args.delta), columns(args.z.expect("given above")));
            let args = Args {
                u: Rows::new(&u, part),
                delta: Rows::new(&delta, part),
                delta_bias: Some(&bias[..part]),
                a: &a[..part * n],
                skip: Some(&skip[..part]),
                z: Some(Rows::new(&z, part)),
                ..args
            };
            let (naive, _) = time(3, || {
                naive::forward(some, &args, RowsMut::new(&mut y[..b * l * part], part), &mut last[..b * part * n])
            });
            let naive = naive * d as f64 / part as f64;
            println!(
                "  naive forward, f32, one thread: {:.0} ms, {:.1} times the fast one",
                naive * 1e3,
                naive / median
            );
        }
    }
}
