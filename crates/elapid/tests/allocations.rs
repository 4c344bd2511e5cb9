//! A decoding step on the CPU allocates nothing, on any thread.
//!
//! Two things grow with a sequence, and are not counted. A cache of keys or values needs a page every [`PAGE`] positions:
//! steps are counted that need none. A generator with a presence or frequency penalty keeps a list of what it generated.
//!
//! A binary of its own, since the allocator that counts is that of the whole process; one test, so that nothing else runs.

use elapid::LanguageModel;
use elapid::config::{ModelConfig, Named, Placement};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::{Generator, Sampling};
use elapid::layers::{LayerConfig, attention};
use elapid::settings::{Auto, Size};
use elapid::state::PAGE;
use elapid_kernels::packed::Form;
use elapid_kernels::testing::{CountingAllocator, allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Steps before those that count, those that count, and others up to the second next page.
const STEPS: [usize; 3] = [PAGE + 4, PAGE - 12, 8];

/// Two layers of a width whose products are split among threads.
fn model(mixer: &str, ffn: Option<&str>) -> LanguageModel {
    let mut config = ModelConfig { vocab_size: 512, ..ModelConfig::mamba1("128x2").unwrap() };
    let named = |name: &str| {
        (name.to_owned(), Named { layer: LayerConfig::of(name).unwrap(), placement: Placement::default() })
    };
    config.stack.model.layers = vec![mixer.to_owned()];
    config.stack.model.ffn = ffn.into_iter().map(str::to_owned).collect();
    config.stack.named = [mixer].into_iter().chain(ffn).map(named).collect();
    if let Some(attention) = config.stack.settings_mut::<attention::Settings>(mixer) {
        (attention.heads, attention.kv_heads) = (Size::new(4), Auto::Is(Size::new(2)));
    }
    LanguageModel::new(config, 1).unwrap()
}

/// How a row draws: each in another way.
fn sampling(row: usize) -> Sampling {
    match row % 4 {
        0 => Sampling::default(),
        1 => Sampling { temperature: 0.0, ..Sampling::default() },
        2 => Sampling { temperature: 2.0, top_p: 0.9, repetition_penalty: 1.2, ..Sampling::default() },
        _ => Sampling { temperature: 2.0, top_k: 12, frequency_penalty: 0.3, ..Sampling::default() },
    }
}

/// A decoder of rows that have begun.
fn decoder(model: &LanguageModel, rows: usize) -> Decoder {
    let (mut decoder, start) = (Decoder::new(model, rows).unwrap(), model.zero_state(1).unwrap());
    for row in 0..rows {
        let draws = Draws { sampling: sampling(row), seed: row as u64, ..Draws::default() };
        decoder.admit(&start, Next::Token(row as u32), &draws).unwrap();
    }
    decoder
}

/// Checks that some of the steps counted allocate nothing, at the latest in the eighth turn: a thread allocates when it helps
/// for the first time, which is when the system lets it, and the harness prints when a minute has passed.
fn check(what: &str, mut step: impl FnMut()) {
    let turn = |_| {
        let [before, counted, after] = STEPS;
        (0..before).for_each(|_| step());
        let count = allocations(|| (0..counted).for_each(|_| step()));
        (0..after).for_each(|_| step());
        count
    };
    let counts: Vec<u64> = (0..8).map(turn).take_while(|&count| count > 0).collect();
    assert!(counts.len() < 8, "{what}: {counts:?} allocations in {} steps", STEPS[1]);
}

#[test]
fn a_step_allocates_nothing() {
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) == 1, "the allocator counts");
    for threads in [1, 3] {
        // One pool for all, whose threads have begun.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.broadcast(|_| ());
        for (mixer, ffn) in [("mamba1", None), ("mamba2", None), ("attention", Some("mlp"))] {
            let plain = model(mixer, ffn);
            for form in Form::ALL {
                let (model, what) =
                    (plain.with_weights(form).unwrap(), format!("{mixer} in {form}, {threads} threads"));
                for rows in [1, 2, 16] {
                    let mut decoder = decoder(&model, rows);
                    pool.install(|| check(&format!("{what}, {rows} rows"), || decoder.step().unwrap()));
                }
                let mut generator = Generator::new(&model, sampling(2), 1).unwrap();
                generator.read(&[1, 2]).unwrap();
                pool.install(|| check(&format!("{what}, a generator"), || _ = generator.next_token().unwrap()));
            }
        }
    }
}
