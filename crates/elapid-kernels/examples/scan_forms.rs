//! Compares the forms of the scan by length, to see where each pays.
//! `cargo run --release -p elapid-kernels --example scan_forms`.
//!
//! One recurrence h_t = a_t h_{t-1} + b_t of f32. The selective scan has b · d of them and fills its lanes and threads
//! with channels, so that its time is sequential; this shows what a single long recurrence would gain.

use std::time::Instant;

use elapid_kernels::scan::{Step, blelloch, chunked, hillis_steele, odd_even, sequential};
use elapid_kernels::testing::Random;

const REPETITIONS: usize = 7;

/// A form of the scan, in place.
type Form<'a> = &'a dyn Fn(&mut [Step<f32>]);

fn main() {
    println!("microseconds (median of {REPETITIONS}), {} threads", rayon::current_num_threads());
    println!(
        "{:>9}{:>12}{:>12}{:>12}{:>12}{:>14}",
        "length", "sequential", "chunked", "odd-even", "Blelloch", "Hillis-Steele"
    );
    for power in [6, 10, 14, 18, 20] {
        let l = 1usize << power;
        let mut random = Random::new(power);
        let (a, b) = (random.uniform(l, 0.5, 1.0), random.normal(l));
        let elements: Vec<Step<f32>> = a.into_iter().zip(b).map(|(a, b)| Step { a, b }).collect();
        let chunk = l.div_ceil(rayon::current_num_threads()).max(1);
        let forms: [Form<'_>; 5] = [&sequential, &|x| chunked(x, chunk), &odd_even, &blelloch, &hillis_steele];
        let times = forms.map(|form| {
            let mut times: Vec<f64> = (0..REPETITIONS)
                .map(|_| {
                    let mut x = elements.clone();
                    let start = Instant::now();
                    form(&mut x);
                    let time = start.elapsed().as_secs_f64() * 1e6;
                    std::hint::black_box(x);
                    time
                })
                .collect();
            times.sort_by(f64::total_cmp);
            times[REPETITIONS / 2]
        });
        let [s, c, o, b, h] = times;
        println!("{l:>9}{s:>12.1}{c:>12.1}{o:>12.1}{b:>12.1}{h:>14.1}");
    }
}
