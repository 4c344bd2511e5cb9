use std::fs;

use elapid::files::TensorFile;

use super::saved::Digest;
use super::*;
use crate::optim::Options;

fn saved(dir: &Path, step: u64) -> (LanguageModel, AdamW, Position, Identity) {
    let mut config = TrainConfig::default();
    for one in ["model.d_model=8", "model.n_layer=1", "model.d_state=2"] {
        config.apply_override(one).unwrap();
    }
    let model = LanguageModel::new(config.model.resolve_for(16).unwrap(), 1).unwrap();
    let mut optimiser = AdamW::new(model.params(), Options::default()).unwrap();
    for (i, (_, param)) in model.params().iter().enumerate() {
        let moment = |sign: f32| (0..param.value.len()).map(|at| sign * (i + at) as f32).collect();
        optimiser.set_means(i, [moment(-1.0), moment(1.0)]).unwrap();
    }
    let position = Position {
        step,
        tokens: 7,
        seconds: 1.5,
        best: Some(0.1 + 0.2),
        stale: 2,
        accurate: 1,
        unlogged: (2.0 / 3.0, 3),
    };
    let identity = Identity { data: "text".into(), measure: "tokens".into() };
    let whole =
        Saved { position, identity: &identity, model: &model, tokenizer: None, optimiser: &optimiser, carried: None };
    save(dir, &whole).unwrap();
    (model, optimiser, position, identity)
}

#[test]
fn what_is_saved_comes_back() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 5);
    let (model, optimiser, position, identity) = saved(run.path(), 9);
    assert_eq!(disk::names(&run.path().join("resume")), ["step-00000009"]);
    let mut config = TrainConfig::default();
    config.model = ModelConfig::of(model.config());
    let (again, chosen) = choose::<LanguageModel>(run.path(), &config, &identity).unwrap();
    assert_eq!((chosen.position, chosen.notices.len(), chosen.new_measure), (position, 0, false));
    let mut restored = AdamW::new(again.params(), Options::default()).unwrap();
    assert!(chosen.restore(&again, &mut restored, 4).unwrap().is_none());
    assert_eq!(restored.step, 9);
    assert!(restored.means().unwrap() == optimiser.means().unwrap());
    assert_eq!(Digest::of(again.params()).unwrap(), Digest::of(model.params()).unwrap());
}

/// Writes the file of moments again, with other contents and right checksums for all but what `change` did.
fn rewrite(
    dir: &Path,
    change: impl Fn(&mut std::collections::BTreeMap<String, String>, &mut Vec<elapid::files::Elements>),
) {
    let path = dir.join("training.safetensors");
    let (mut notes, mut tensors) = {
        let file = TensorFile::open(&path).unwrap();
        let mut tensors = Vec::new();
        for name in Checkpoint::open(dir).unwrap().names() {
            for name in [format!("m.{name}"), format!("v.{name}")] {
                let data = file.f32(&name).unwrap();
                tensors.push(elapid::files::Elements { name, shape: vec![data.len()], data });
            }
        }
        (file.notes().iter().map(|(key, value)| (key.clone(), value.clone())).collect(), tensors)
    };
    change(&mut notes, &mut tensors);
    elapid::files::write_tensors(&path, &notes, &tensors).unwrap();
}

#[test]
fn a_checkpoint_is_read_as_it_was_written_or_not_at_all() {
    let run = tempfile::tempdir().unwrap();
    let (.., identity) = saved(run.path(), 5);
    let dir = steps::path(run.path(), 5);
    let original = fs::read(dir.join("training.safetensors")).unwrap();
    rewrite(&dir, |_, _| ());
    assert!(fs::read(dir.join("training.safetensors")).unwrap() == original, "nothing was changed");
    type Change = fn(&mut std::collections::BTreeMap<String, String>, &mut Vec<elapid::files::Elements>);
    let changes: [(&str, Change); 9] = [
        ("is not finite", |_, tensors| tensors[3].data[1] = f32::NAN),
        ("is not finite", |_, tensors| tensors[0].data[0] = f32::NEG_INFINITY),
        ("checksum", |_, tensors| tensors[2].data[0] += 1.0),
        ("checksum", |notes, _| drop(notes.insert("tokens".into(), "8".into()))),
        ("checksum", |notes, _| drop(notes.remove("best"))),
        ("checksum", |notes, _| drop(notes.insert("measure".into(), "others".into()))),
        ("is missing", |_, tensors| drop(tensors.pop())),
        ("wanted F32 [", |_, tensors| {
            tensors[0] = elapid::files::Elements { shape: vec![1], data: vec![0.0], ..tensors[0].clone() }
        }),
        ("another version", |notes, _| drop(notes.insert("version".into(), "1".into()))),
    ];
    for (word, change) in changes {
        rewrite(&dir, change);
        let mut config = TrainConfig::default();
        config.model = ModelConfig::of(&Checkpoint::open(&dir).unwrap().config);
        let error = choose::<LanguageModel>(run.path(), &config, &identity).err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("training.safetensors"), "{word}: {error}");
        assert!(!is_whole(&dir), "{word}");
        fs::write(dir.join("training.safetensors"), &original).unwrap();
    }
    assert!(is_whole(&dir));
}

#[test]
fn names_of_steps_that_are_taken_are_replaced() {
    let run = tempfile::tempdir().unwrap();
    saved(run.path(), 5);
    let dir = steps::path(run.path(), 5);
    // Damaged, and then reached again from an older one.
    fs::write(dir.join("training.safetensors"), "x").unwrap();
    fs::create_dir(steps::partial(run.path(), 5)).unwrap();
    saved(run.path(), 5);
    assert!(is_whole(&dir));
    assert_eq!(disk::names(&run.path().join("resume")), ["step-00000005"]);
}
