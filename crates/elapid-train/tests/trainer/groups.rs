//! `[[train.group]]`: parameters that are trained in a way of their own.

use elapid::LanguageModel;
use elapid_train::Start;

use super::{bytes, config, interrupted, train};

/// What is frozen lies between what is trained, in whose place nothing must be written on a GPU.
pub(super) const GROUPS: &str = concat!(
    "train.group=[{ parameters = [\"backbone.layers.0.*\", \"*.norm.weight\"], trained = false }, ",
    "{ parameters = [\"*.layers.1.*.in_proj.weight\"], lr = 0.1, decay = false }]"
);

/// Sum of how far the elements of each parameter are apart.
fn apart(one: &LanguageModel, other: &LanguageModel) -> Vec<(String, f32)> {
    let distance = |(a, b): (&f32, &f32)| (a - b).abs();
    one.params()
        .iter()
        .zip(other.params().iter())
        .map(|((_, one), (_, other))| {
            let pairs = one.value.as_slice().iter().zip(other.value.as_slice());
            (one.name.clone(), pairs.map(distance).sum())
        })
        .collect()
}

#[test]
fn groups_are_frozen_or_have_their_own_rate() {
    let [plain, grouped, begun] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    train(config(plain.path(), &["train.steps=8"]), Start::New).unwrap();
    train(config(grouped.path(), &["train.steps=8", GROUPS]), Start::New).unwrap();
    // So small a rate that the parameters are as they were drawn.
    train(config(begun.path(), &["train.lr=1e-30", "train.min_lr=0"]), Start::New).unwrap();
    let [plain, grouped, begun] = [&plain, &grouped, &begun].map(|dir| LanguageModel::open(dir.path()).unwrap());
    for ((name, whole), (_, moved)) in apart(&begun, &plain).into_iter().zip(apart(&begun, &grouped)) {
        let frozen = name.starts_with("backbone.layers.0.") || name.ends_with(".norm.weight");
        if frozen {
            assert!(moved < 1e-20, "{name}: {moved}");
        } else if name.contains("layers.1.") && name.ends_with("in_proj.weight") {
            assert!((0.05 * whole..0.2 * whole).contains(&moved), "{name}: {moved} of {whole}");
        } else {
            assert!(moved > 0.5 * whole, "{name}: {moved} of {whole}");
        }
    }
}

#[test]
fn a_resumed_run_with_groups_is_the_same_bits() {
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train(config(whole.path(), &[GROUPS]), Start::New).unwrap();
    interrupted(parts.path(), &[GROUPS], 7);
    for file in ["model.safetensors", "resume/step-00000012/model.safetensors"] {
        assert!(bytes(whole.path(), file) == bytes(parts.path(), file), "{file}");
    }
}

#[test]
fn a_pattern_that_fits_nothing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.group=[{ parameters = [\"*.norm.wieght\"], trained = false }]"];
    let error = train(config(dir.path(), &settings), Start::New).unwrap_err().to_string();
    assert!(error.contains("`*.norm.wieght`") && error.contains("backbone.embeddings.weight"), "{error}");
}
