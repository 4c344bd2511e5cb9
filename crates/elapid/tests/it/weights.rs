//! Models whose weights are stored as bf16, int8 or int4.

use std::fs;
use std::path::Path;

use elapid::autograd::Tape;
use elapid::checkpoint::{Checkpoint, SaveOptions};
use elapid::decode::{Decoder, Draws, Next};
use elapid::lm::Positions;
use elapid::{LanguageModel, Layout, embedded};
use elapid_kernels::packed::Form;
use elapid_kernels::selective_scan::Discretisation;
use elapid_kernels::testing::{bits, err_ratio, wide, with_threads};

use crate::{ids, small_model};

/// The logits of every position, bits.
fn logits(model: &LanguageModel, tokens: &[u32]) -> Vec<f32> {
    let cx = model.inference(Layout::new(1, tokens.len()));
    let (logits, _) = model.logits(&cx, tokens, model.zero_state(1).unwrap(), Positions::All).unwrap();
    logits.value().as_slice().to_vec()
}

#[test]
fn a_form_is_near_the_model_and_nearer_with_more_bits() {
    let model = small_model(Discretisation::ExpEuler);
    let tokens = ids(50, 37);
    let want = wide(&logits(&model, &tokens));
    let errors = [Form::F32, Form::Bf16, Form::Int8, Form::Int4]
        .map(|form| err_ratio(&want, &logits(&model.with_weights(form).unwrap(), &tokens)));
    let most = [1e-6, 2e-2, 3e-2, 0.4];
    assert!(errors.iter().zip(most).all(|(error, most)| *error < most), "{errors:?}");
    assert!(errors.is_sorted(), "{errors:?}");
}

#[test]
fn a_step_is_the_forward_pass_in_every_form_batch_and_number_of_threads() {
    let (model, tokens) = (embedded::model().unwrap(), ids(24, 256));
    let v = model.config().padded_vocab_size();
    for form in Form::ALL {
        let model = model.with_weights(form).unwrap();
        let whole = with_threads(3, || bits(&logits(&model, &tokens)));
        for threads in [1, 2] {
            with_threads(threads, || {
                let mut decoder = Decoder::new(&model, 3).unwrap();
                let start = model.zero_state(1).unwrap();
                let mut row = decoder.admit(&start, Next::Token(tokens[0]), &Draws::default()).unwrap();
                decoder.admit(&start, Next::Token(9), &Draws::default()).unwrap();
                for (i, &next) in tokens[1..].iter().enumerate() {
                    decoder.step().unwrap();
                    let got = decoder.logits(row).unwrap().unwrap();
                    assert!(bits(&got) == whole[i * v..][..v], "{form}, position {i}, {threads} threads");
                    // The row goes on with a token of ours instead of the one that was drawn.
                    let state = decoder.release(row).unwrap();
                    row = decoder.admit(&state, Next::Token(next), &Draws::default()).unwrap();
                }
            });
        }
    }
}

#[test]
fn a_stored_form_is_read_as_it_was_written() {
    let (model, tokens) = (small_model(Discretisation::ExpEuler), ids(30, 37));
    for form in [Form::Bf16, Form::Int8, Form::Int4] {
        let dir = tempfile::tempdir().unwrap();
        let packed = model.with_weights(form).unwrap();
        packed.save(dir.path(), &SaveOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.form(), Some(form));
        let want = bits(&logits(&packed, &tokens));
        let again = LanguageModel::load_as(&checkpoint, None).unwrap();
        assert!(again.form() == Some(form) && bits(&logits(&again, &tokens)) == want);
        assert_eq!(again.fingerprint().unwrap(), packed.fingerprint().unwrap());
        // In f32 it has the rounded values, and can be trained.
        let plain = LanguageModel::load(&checkpoint).unwrap();
        assert_eq!(plain.form(), None);
        assert!(plain.params().iter().zip(packed.params().iter()).all(|((_, plain), (_, packed))| {
            bits(&plain.value.to_vec().unwrap()) == bits(&packed.value.to_vec().unwrap())
        }));
        // Another form is made from these values.
        assert_eq!(LanguageModel::load_as(&checkpoint, Some(Form::Bf16)).unwrap().form(), Some(Form::Bf16));
    }
}

#[test]
fn int4_can_be_rounded_for_a_text() {
    let model = embedded::model().unwrap();
    let text: Vec<u32> =
        b"ROMEO:\nBut soft, what light through yonder window breaks?\n".iter().map(|&b| b.into()).collect();
    let text = text.repeat(8);
    let want = wide(&logits(&model, &text));
    let error = |model: &LanguageModel| err_ratio(&want, &logits(model, &text));
    let (plain, rounded) =
        (model.with_weights(Form::Int4).unwrap(), model.with_weights_for(Form::Int4, &text, |_| ()).unwrap());
    assert!(error(&rounded) < error(&plain), "{} and {}", error(&rounded), error(&plain));
    // The other forms have one way to round.
    let (plain, rounded) =
        (model.with_weights(Form::Int8).unwrap(), model.with_weights_for(Form::Int8, &text, |_| ()).unwrap());
    assert_eq!(plain.fingerprint().unwrap(), rounded.fingerprint().unwrap());
}

#[test]
fn a_packed_model_is_not_trained() {
    let model = small_model(Discretisation::ExpEuler).with_weights(Form::Int8).unwrap();
    let tape = std::sync::Arc::new(Tape::new());
    let cx = model.training(&tape, Layout::new(1, 4));
    let error = model.loss(&cx, &[1, 2, 3, 4], &[2, 3, 4, 5], model.zero_state(1).unwrap(), false).unwrap_err();
    assert!(error.to_string().contains("a weight stored as int8 has no gradients; load the model as f32"), "{error}");
}

#[test]
fn the_loss_of_a_packed_head_is_that_of_its_logits() {
    let model = embedded::model().unwrap().with_weights(Form::Int8).unwrap();
    let tokens = ids(40, 256);
    let cx = model.inference(Layout::new(1, 39));
    let targets: Vec<i32> = tokens[1..].iter().map(|&id| id as i32).collect();
    let (loss, _) = model.loss(&cx, &tokens[..39], &targets, model.zero_state(1).unwrap(), false).unwrap();
    let all = logits(&model, &tokens[..39]);
    let v = model.config().padded_vocab_size();
    for (i, nll) in loss.nll.as_slice().iter().enumerate() {
        let row = &all[i * v..][..v];
        let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
        let want = sum.ln() - f64::from(row[targets[i] as usize]);
        assert!((f64::from(*nll) - want).abs() < 1e-5, "position {i}: {nll} and {want}");
    }
}

/// What loading says after a change to the file.
fn broken(change: impl FnOnce(&Path, Vec<u8>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let packed = small_model(Discretisation::ExpEuler).with_weights(Form::Int8).unwrap();
    packed.save(dir.path(), &SaveOptions::default()).unwrap();
    let file = dir.path().join("model.safetensors");
    change(&file, fs::read(&file).unwrap());
    let loaded = Checkpoint::open(dir.path()).map_err(elapid::Error::from);
    loaded.and_then(|checkpoint| LanguageModel::load_as(&checkpoint, None)).unwrap_err().to_string()
}

/// Replaces bytes of the header by as many others.
fn renamed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn damaged_files_are_errors_that_name_the_tensor() {
    let short = broken(|file, bytes| fs::write(file, &bytes[..bytes.len() - 64]).unwrap());
    assert!(short.contains("model.safetensors"), "{short}");
    let other = broken(|file, bytes| {
        fs::write(file, renamed(&bytes, "embeddings.weight.int8", "embeddings.weight.int4")).unwrap()
    });
    assert!(
        other.contains("`backbone.embeddings.weight.int4`: wanted as many bytes as [37, 20] takes as int4"),
        "{other}"
    );
    let strange = broken(|file, bytes| {
        fs::write(file, renamed(&bytes, "embeddings.weight.int8", "embeddings.height.int8")).unwrap()
    });
    assert!(strange.contains("embeddings"), "{strange}");
    let nan = broken(|file, mut bytes| {
        // The last line of the first tensor has scales.
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        bytes[header + 512..][..32].fill(0xff);
        fs::write(file, bytes).unwrap();
    });
    assert!(nan.contains("wanted finite values, got some that are not; convert the model again"), "{nan}");
}
