//! Rows of a decoder come and go, and each is what it is alone.

use elapid::config::{ModelConfig, Named, Placement};
use elapid::decode::{Decoder, Draws, Next};
use elapid::generate::{Generator, Sampling};
use elapid::layers::LayerConfig;
use elapid::lm::Positions;
use elapid::{DType, Device, Error, LanguageModel, Layout, State, Tensor};
use elapid_kernels::sampling::{Past, Scratch, philox, sample};
use elapid_kernels::selective_scan::Discretisation;
use elapid_kernels::testing::gpu;

use crate::contract::numbers;
use crate::{ids, small_model};

const V: u32 = 37;

/// At lower temperatures models that were not trained repeat a token, whatever is drawn.
const HOT: f32 = 4.0;

/// Three ways to draw, each with a penalty of its own.
fn samplings() -> [Sampling; 3] {
    [
        Sampling { temperature: 2.0, top_p: 0.9, frequency_penalty: 0.3, ..Sampling::default() },
        Sampling { temperature: 0.0, repetition_penalty: 1.2, ..Sampling::default() },
        Sampling { temperature: 3.0, top_k: 12, presence_penalty: 0.5, ..Sampling::default() },
    ]
}

/// A model whose state has caches that grow, and no recurrence.
fn attention() -> LanguageModel {
    let mut config = ModelConfig { vocab_size: V as usize, ..ModelConfig::mamba1("16x2").unwrap() };
    let layer = LayerConfig::small().into_iter().find(|layer| layer.kind() == "attention").unwrap();
    config.stack.model.layers = vec!["it".into()];
    config.stack.named = [("it".to_owned(), Named { layer, placement: Placement::default() })].into();
    config.stack.model.initializer_range = 0.5;
    LanguageModel::new(config, 7).unwrap()
}

/// The logits `[1 v]` and the state after a prompt.
fn read(model: &LanguageModel, prompt: &[u32]) -> (Tensor, State) {
    let cx = model.inference(Layout::new(1, prompt.len()));
    let (logits, state) = model.logits(&cx, prompt, model.zero_state(1).unwrap(), Positions::Last).unwrap();
    (logits.value().clone(), state)
}

/// A sequence that takes part in the steps `from..to` of a decoder.
struct Visit {
    prompt: Vec<u32>,
    from: usize,
    to: usize,
    draws: Draws<'static>,
}

/// What a visit leaves: its tokens, and the numbers of its last state with the position.
#[derive(Debug, Clone, Default, PartialEq)]
struct Left {
    tokens: Vec<u32>,
    state: Vec<f32>,
    position: u64,
}

fn visits(model: &LanguageModel, rows: usize, visits: &[&Visit]) -> Vec<Left> {
    let mut decoder = Decoder::new(model, rows).unwrap();
    let (mut here, mut left) = (vec![None; visits.len()], vec![Left::default(); visits.len()]);
    let last = visits.iter().map(|visit| visit.to).max().unwrap();
    for step in 0..=last {
        for (i, visit) in visits.iter().enumerate().filter(|(_, visit)| visit.to == step) {
            let state = decoder.release(here[i].take().unwrap()).unwrap();
            (left[i].state, left[i].position) = (numbers(&state), state.position());
            assert_eq!(visit.to - visit.from, left[i].tokens.len());
        }
        for (i, visit) in visits.iter().enumerate().filter(|(_, visit)| visit.from == step) {
            let (&last, head) = visit.prompt.split_last().unwrap();
            let state = if head.is_empty() { model.zero_state(1).unwrap() } else { read(model, head).1 };
            let draws = Draws { recent: head, ..visit.draws };
            here[i] = Some(decoder.admit(&state, Next::Token(last), &draws).unwrap());
        }
        decoder.step().unwrap();
        for (row, id) in decoder.tokens().unwrap() {
            let i = here.iter().position(|&other| other == Some(row)).unwrap();
            left[i].tokens.push(id);
        }
    }
    left
}

/// When three rows come and go: in any order, one after another, several at once.
const SCHEDULES: [[(usize, usize); 3]; 4] =
    [[(0, 9), (3, 20), (5, 14)], [(6, 16), (0, 17), (0, 6)], [(4, 14), (2, 19), (0, 9)], [(0, 9), (9, 26), (0, 9)]];

/// The visits of a schedule; each stays as long as in every other.
fn scheduled(schedule: &[(usize, usize); 3], l: [usize; 3]) -> Vec<Visit> {
    let samplings = samplings();
    let visit = |i: usize| {
        let (from, stay) = (schedule[i].0, [9, 17, 9][i]);
        let draws = Draws { sampling: samplings[i], seed: i as u64, sample: 7, ..Draws::default() };
        Visit { prompt: ids(l[i], V), from, to: from + stay, draws }
    };
    (0..3).map(visit).collect()
}

#[test]
fn rows_that_come_and_go_are_the_rows_alone() {
    for model in [small_model(Discretisation::ExpEuler), attention()] {
        let alone: Vec<Left> =
            scheduled(&[(0, 0); 3], [5, 17, 1]).iter().map(|visit| visits(&model, 1, &[visit]).remove(0)).collect();
        for schedule in &SCHEDULES {
            let all = scheduled(schedule, [5, 17, 1]);
            // To the bit, the states too.
            assert!(visits(&model, 3, &all.iter().collect::<Vec<_>>()) == alone, "{schedule:?}");
            // In another order of admission.
            let mut reversed = visits(&model, 5, &all.iter().rev().collect::<Vec<_>>());
            reversed.reverse();
            assert!(reversed == alone, "{schedule:?} reversed");
        }
        // Each row counts its own positions.
        assert_eq!(alone.iter().map(|left| left.position).collect::<Vec<_>>(), [5 - 1 + 9, 17 - 1 + 17, 9]);
    }
}

#[test]
fn rows_that_come_and_go_on_a_gpu_are_the_rows_alone() {
    let Some(gpu) = gpu() else { return };
    let models = [
        small_model(Discretisation::ExpEuler).to(Device::Cuda(gpu), DType::F32).unwrap(),
        elapid::embedded::model().unwrap().to(Device::Cuda(gpu), DType::Bf16).unwrap(),
        attention().to(Device::Cuda(gpu), DType::F32).unwrap(),
    ];
    for model in models {
        let all = |schedule| scheduled(schedule, [5, 17, 2]);
        let tokens = |left: &[Left]| left.iter().map(|left| (left.position, left.tokens.clone())).collect::<Vec<_>>();
        // A step computes three places whoever is there, so that the others make no difference of rounding.
        let alone: Vec<Left> = all(&[(0, 0); 3]).iter().map(|visit| visits(&model, 3, &[visit]).remove(0)).collect();
        for schedule in &SCHEDULES {
            let got = visits(&model, 3, &all(schedule).iter().collect::<Vec<_>>());
            assert_eq!(tokens(&got), tokens(&alone), "{schedule:?}");
        }
    }
}

#[test]
fn a_draw_depends_on_seed_sample_and_position_alone() {
    let model = small_model(Discretisation::ExpEuler);
    let sampling = Sampling { temperature: HOT, ..Sampling::default() };
    let prompts = [ids(11, V), ids(4, V)];
    let states = [read(&model, &prompts[0][..10]).1, read(&model, &prompts[1][..3]).1];
    let mut decoder = Decoder::new(&model, 2).unwrap();
    for (state, prompt) in states.iter().zip(&prompts) {
        let draws = Draws { sampling, seed: 5, sample: 1 << 33, ..Draws::default() };
        decoder.admit(state, Next::Token(*prompt.last().unwrap()), &draws).unwrap();
    }
    let mut different = std::collections::HashSet::new();
    for step in 0..20u64 {
        decoder.step().unwrap();
        for ((row, id), prompt) in decoder.tokens().unwrap().into_iter().zip(&prompts) {
            let uniform = philox::uniform(5, 1 << 33, prompt.len() as u64 + step);
            let logits = decoder.logits(row).unwrap().unwrap();
            let want = sample(&sampling, &logits, Past::default(), uniform, &mut Scratch::default()).unwrap();
            assert_eq!(id, want, "row {row} after {step} steps");
            different.insert(id);
        }
    }
    assert!(different.len() > 8, "{different:?}");
}

#[test]
fn a_row_goes_on_in_another_decoder_as_it_would_have() {
    let model = small_model(Discretisation::ExpEuler);
    let sampling = Sampling {
        temperature: HOT,
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        ..Sampling::default()
    };
    let (prompt, draws) = (ids(9, V), Draws { sampling, seed: 3, sample: 2, ..Draws::default() });
    let (logits, state) = read(&model, &prompt);
    let run = |pause: usize| {
        let mut decoder = Decoder::new(&model, 1).unwrap();
        let mut row = decoder.admit(&state, Next::Logits(&logits), &Draws { recent: &prompt, ..draws }).unwrap();
        let mut drawn = vec![decoder.token(row).unwrap()];
        while drawn.len() < 40 {
            if drawn.len() == pause {
                let state = decoder.release(row).unwrap();
                let read: Vec<u32> = prompt.iter().chain(&drawn[..pause - 1]).copied().collect();
                decoder = Decoder::new(&model, 4).unwrap();
                let other = Draws { seed: 8, ..Draws::default() };
                decoder.admit(&model.zero_state(1).unwrap(), Next::Token(1), &other).unwrap();
                let draws = Draws { recent: &read, generated: &drawn, ..draws };
                row = decoder.admit(&state, Next::Token(drawn[pause - 1]), &draws).unwrap();
            }
            decoder.step().unwrap();
            drawn.push(decoder.token(row).unwrap());
        }
        drawn
    };
    let whole = run(0);
    for pause in [1, 2, 17, 39] {
        assert_eq!(whole, run(pause), "a pause after {pause}");
    }
    // Another sample or seed is another text.
    for (seed, sample) in [(3, 1), (4, 2)] {
        let mut sequence = Generator::new(&model, sampling, seed).unwrap().fork(sample).unwrap();
        sequence.read(&prompt).unwrap();
        assert_ne!(whole, (0..40).map(|_| sequence.next_token().unwrap()).collect::<Vec<_>>());
    }
}

#[test]
fn penalties_are_as_openai_defines_them() {
    let model = small_model(Discretisation::ExpEuler);
    let prompt = ids(30, V);
    let (logits, state) = read(&model, &prompt);
    for (presence, frequency) in [(1.5, 0.0), (0.0, 0.7), (0.9, -0.3), (2.0, 2.0)] {
        let sampling = Sampling {
            temperature: 0.0,
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..Sampling::default()
        };
        let mut decoder = Decoder::new(&model, 1).unwrap();
        // The prompt is not counted, whether a repetition penalty would look at it or not.
        let draws = Draws { sampling, recent: &prompt, ..Draws::default() };
        let row = decoder.admit(&state, Next::Logits(&logits), &draws).unwrap();
        let (mut logits, mut counts) = (logits.to_vec().unwrap(), [0u32; V as usize]);
        for step in 0..300 {
            // mu[j] -> mu[j] - c[j] * frequency - (c[j] > 0) * presence
            let mu = logits.iter().zip(&counts).map(|(&mu, &c)| {
                let present = if c > 0 { presence } else { 0.0 };
                mu - c as f32 * frequency - present
            });
            let (want, most) = mu.clone().enumerate().fold((0, f32::MIN), |a, b| if b.1 > a.1 { b } else { a });
            let got = decoder.token(row).unwrap() as usize;
            let near = mu.clone().nth(got).unwrap() >= most - 1e-4;
            assert!(got == want || near, "step {step}: {got}, wanted {want}");
            counts[got] += 1;
            decoder.step().unwrap();
            logits = decoder.logits(row).unwrap().unwrap();
        }
        assert_eq!(counts.iter().sum::<u32>(), 300);
        assert!(frequency <= 0.0 || counts.iter().filter(|&&count| count > 0).count() > 20, "{counts:?}");
    }
}

#[test]
fn a_sequence_forks_at_the_end_of_its_prompt() {
    let model = small_model(Discretisation::ExpEuler);
    let sampling = Sampling { temperature: HOT, repetition_penalty: 1.1, presence_penalty: 0.3, ..Sampling::default() };
    let prompt = ids(40, V);
    let draw = |sequence: &mut Generator| (0..25).map(|_| sequence.next_token().unwrap()).collect::<Vec<_>>();
    let mut first = Generator::new(&model, sampling, 9).unwrap();
    first.read(&prompt).unwrap();
    let mut forks: Vec<Generator> = (1..4).map(|sample| first.fork(sample).unwrap()).collect();
    let texts: Vec<_> = std::iter::once(&mut first).chain(&mut forks).map(draw).collect();
    assert!(texts.iter().enumerate().all(|(i, text)| !texts[..i].contains(text)), "each draws its own numbers");
    // The prompt is read once: rows of a decoder that go on from its state draw the same.
    let (logits, state) = read(&model, &prompt);
    let mut decoder = Decoder::new(&model, 4).unwrap();
    for sample in 0..4 {
        let draws = Draws { sampling, seed: 9, sample, recent: &prompt, generated: &[] };
        decoder.admit(&state, Next::Logits(&logits), &draws).unwrap();
    }
    let mut rows = vec![Vec::new(); 4];
    for _ in 0..25 {
        rows.iter_mut().zip(decoder.tokens().unwrap()).for_each(|(row, (_, id))| row.push(id));
        decoder.step().unwrap();
    }
    assert_eq!(texts, rows);
    // In the middle of a text, too, where a token is drawn and not read.
    let mut same = first.fork(0).unwrap();
    let mut again = Generator::resume(&model, first.fork(0).unwrap().suspend().unwrap(), sampling, 9);
    let want = draw(&mut first);
    assert_eq!(want, draw(&mut same));
    assert_eq!(want, draw(&mut again));
}

#[test]
fn decoders_and_sequences_own_their_model() {
    let (mut decoder, mut sequence) = {
        let model = small_model(Discretisation::ExpEuler);
        let mut decoder = Decoder::new(&model, 1).unwrap();
        decoder.admit(&model.zero_state(1).unwrap(), Next::Token(3), &Draws::default()).unwrap();
        (decoder, Generator::new(&model, Sampling::default(), 0).unwrap())
    };
    let thread = std::thread::spawn(move || {
        decoder.step().unwrap();
        decoder.tokens().unwrap()[0].1
    });
    sequence.read(&[3]).unwrap();
    assert_eq!(thread.join().unwrap(), sequence.next_token().unwrap());
}

#[test]
fn what_does_not_fit_is_not_admitted() {
    let model = small_model(Discretisation::ExpEuler);
    let (logits, state) = read(&model, &[1, 2, 3]);
    assert!(Decoder::new(&model, 0).is_err());
    let mut decoder = Decoder::new(&model, 1).unwrap();
    // Without rows a step does nothing.
    decoder.step().unwrap();
    let draws = Draws::default();
    let nan = Tensor::new(vec![f32::NAN; V as usize], &[1, V as usize]);
    let failures = [
        decoder.admit(&state, Next::Token(V), &draws),
        decoder.admit(&state, Next::Logits(&Tensor::new(vec![0.0; 3], &[3])), &draws),
        decoder.admit(&state, Next::Logits(&nan), &draws),
        decoder.admit(&model.zero_state(2).unwrap(), Next::Token(1), &draws),
        decoder.admit(&attention().zero_state(1).unwrap(), Next::Token(1), &draws),
        decoder.admit(&state, Next::Token(1), &Draws { recent: &[V], ..draws }),
        decoder.admit(&state, Next::Token(1), &Draws { generated: &[V], ..draws }),
        decoder.admit(
            &state,
            Next::Token(1),
            &Draws { sampling: Sampling { top_p: 0.0, ..Sampling::default() }, ..draws },
        ),
    ];
    assert!(failures.iter().all(Result::is_err), "{failures:?}");
    assert_eq!(decoder.rows().len(), 0);
    let row = decoder.admit(&state, Next::Logits(&logits), &draws).unwrap();
    assert!(decoder.logits(row).unwrap().is_none(), "it took part in no step");
    let full = decoder.admit(&state, Next::Token(1), &draws).unwrap_err().to_string();
    assert!(full.contains("taken"), "{full}");
    assert_eq!(decoder.release(row).unwrap().position(), 3);
    assert!(decoder.release(row).is_err() && decoder.token(row).is_err() && decoder.state(row).is_err());
    // A place that was given back has another name.
    assert_ne!(row, decoder.admit(&state, Next::Token(1), &draws).unwrap());
}

#[test]
fn a_row_that_is_not_finite_fails_alone() {
    let mut config = ModelConfig { vocab_size: V as usize, ..ModelConfig::mamba1("16x2").unwrap() };
    config.stack.model.tie_embeddings = false;
    let mut model = LanguageModel::new(config, 7).unwrap();
    // Who reads token 5 has no logits.
    let id = model.params().find("backbone.embeddings.weight").unwrap();
    model.params_mut().get_mut(id).value.make_mut()[5 * 16..6 * 16].fill(f32::NAN);
    let zero = model.zero_state(1).unwrap();
    let mut decoder = Decoder::new(&model, 2).unwrap();
    let greedy = Draws { sampling: Sampling { temperature: 0.0, ..Sampling::default() }, ..Draws::default() };
    let bad = decoder.admit(&zero, Next::Token(5), &greedy).unwrap();
    let good = decoder.admit(&zero, Next::Token(1), &greedy).unwrap();
    for _ in 0..3 {
        decoder.step().unwrap();
        assert!(matches!(decoder.token(bad), Err(Error::NonFinite { .. })));
        assert!(decoder.tokens().is_err() && decoder.token(good).is_ok());
    }
    decoder.release(bad).unwrap();
    decoder.tokens().unwrap();
}

#[test]
fn draws_of_cpu_and_gpu_are_the_same() {
    let Some(gpu) = gpu() else { return };
    let model = elapid::embedded::model().unwrap();
    let models = [model.to(Device::Cuda(gpu), DType::F32).unwrap(), model];
    let prompt: Vec<u32> = b"First Citizen:\n".map(u32::from).to_vec();
    let mut decoders = models.each_ref().map(|model| Decoder::new(model, 3).unwrap());
    let mut rows = Vec::new();
    for (i, sampling) in samplings().into_iter().enumerate() {
        let draws = Draws { sampling, seed: 1 << 40, sample: i as u64, recent: &prompt, generated: &[] };
        rows.push(std::array::from_fn::<_, 2, _>(|device| {
            let (logits, state) = read(&models[device], &prompt);
            decoders[device].admit(&state, Next::Logits(&logits), &draws).unwrap()
        }));
    }
    let (mut drawn, mut others) = (vec![Vec::new(); 3], 0);
    for _ in 0..200 {
        for (i, row) in rows.iter_mut().enumerate() {
            let [on_gpu, on_cpu] = [0, 1].map(|device| decoders[device].token(row[device]).unwrap());
            drawn[i].push(on_gpu);
            if on_gpu == on_cpu {
                continue;
            }
            // A number can lie at the border between two tokens. Both go on with the GPU's.
            others += 1;
            let state = decoders[1].release(row[1]).unwrap();
            let recent: Vec<u32> = prompt.iter().chain(&drawn[i][..drawn[i].len() - 1]).copied().collect();
            let draws = Draws {
                sampling: samplings()[i],
                seed: 1 << 40,
                sample: i as u64,
                recent: &recent,
                generated: &drawn[i],
            };
            row[1] = decoders[1].admit(&state, Next::Token(on_gpu), &draws).unwrap();
        }
        decoders.iter_mut().for_each(|decoder| decoder.step().unwrap());
    }
    // Their logits agree to rounding.
    assert!(others <= 2, "{others} of 600 tokens");
}
