//! Guessed tokens change how many passes a text takes, and nothing else.

use elapid::generate::{Generator, Sampling, Suspended};
use elapid::state::State;
use elapid::{LanguageModel, embedded};
use elapid_kernels::packed::Form;
use elapid_kernels::testing::bits;

const PROMPT: &[u8] = b"ROMEO:\nI will not go, I will not go, I will not go,\nROMEO:\nI will not go, I will not go, I";

fn samplings() -> [Sampling; 3] {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    [
        greedy,
        Sampling { temperature: 0.6, top_p: 0.9, ..Sampling::default() },
        Sampling { temperature: 0.8, repetition_penalty: 1.3, presence_penalty: 0.2, ..Sampling::default() },
    ]
}

fn begun(model: &LanguageModel, sampling: Sampling, guesses: usize) -> Generator {
    let mut sequence = Generator::new(model, sampling, 5).unwrap().with_guesses(guesses);
    sequence.read(&PROMPT.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>()).unwrap();
    sequence
}

fn drawn(sequence: &mut Generator, count: usize) -> Vec<u32> {
    (0..count).map(|_| sequence.next_token().unwrap()).collect()
}

fn same(a: &State, b: &State) -> bool {
    let all = |state: &State| -> Vec<u32> { state.tensors().flat_map(|(_, x)| bits(&x.to_vec().unwrap())).collect() };
    all(a) == all(b) && a.position() == b.position()
}

#[test]
fn guessing_draws_the_same_tokens_in_fewer_passes() {
    let plain = embedded::model().unwrap();
    for model in [plain.clone(), plain.with_weights(Form::Int8).unwrap()] {
        for (i, sampling) in samplings().into_iter().enumerate() {
            let mut one = begun(&model, sampling, 0);
            let want = drawn(&mut one, 150);
            for guesses in [1, 4, 16] {
                let mut several = begun(&model, sampling, guesses);
                assert_eq!(drawn(&mut several, 150), want, "sampling {i}, {guesses} guesses");
                // A greedy text of so small a model soon repeats itself.
                let most = if i == 0 && guesses == 16 { 100 } else { 150 };
                assert!((1..=most).contains(&several.passes()), "sampling {i}: {} passes", several.passes());
            }
        }
    }
}

#[test]
fn a_sequence_can_be_laid_aside_and_forked_between_guesses() {
    let model = embedded::model().unwrap();
    let sampling = samplings()[0];
    let want = drawn(&mut begun(&model, sampling, 0), 90);
    for stop in [1, 2, 7, 30, 31, 32, 60] {
        let mut sequence = begun(&model, sampling, 8);
        assert_eq!(drawn(&mut sequence, stop), want[..stop]);
        let mut fork = sequence.fork(0).unwrap();
        assert_eq!(drawn(&mut fork, 90 - stop), want[stop..], "a fork after {stop}");
        let suspended: Suspended = sequence.suspend().unwrap();
        let mut plain = begun(&model, sampling, 0);
        drawn(&mut plain, stop);
        let other = plain.suspend().unwrap();
        assert!(same(&suspended.state, &other.state), "the state after {stop}");
        assert_eq!((suspended.pending, &suspended.recent), (other.pending, &other.recent));
        let mut resumed = Generator::resume(&model, suspended, sampling, 5).with_guesses(8);
        assert_eq!(drawn(&mut resumed, 90 - stop), want[stop..], "resumed after {stop}");
    }
}

#[test]
fn more_can_be_read_between_guesses() {
    let model = embedded::model().unwrap();
    let sampling = samplings()[1];
    let run = |guesses: usize| {
        let mut sequence = begun(&model, sampling, guesses);
        let mut all = drawn(&mut sequence, 20);
        sequence.read(&[10, 74, 85]).unwrap();
        all.extend(drawn(&mut sequence, 20));
        let logits = bits(sequence.logits().unwrap());
        (all, logits)
    };
    assert_eq!(run(6), run(0));
}
