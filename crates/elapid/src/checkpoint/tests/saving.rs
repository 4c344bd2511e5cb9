//! What a save writes, and what it leaves.

use super::*;
use crate::layers::mamba1;

#[test]
fn save_and_open() {
    let dir = tempfile::tempdir().unwrap();
    for which in 0..2 {
        let checkpoint = golden(which);
        let tensors = all(&checkpoint);
        // Single, sharded, one tensor a shard, sharded, single again: each in the place of the last.
        for max in [u64::MAX, 50_000, 1, 50_000, u64::MAX] {
            write(dir.path(), &checkpoint.config, &tensors, SaveDtype::F32, max).unwrap();
            let again = Checkpoint::open(dir.path()).unwrap();
            assert_eq!((&again.config, all(&again) == tensors), (&checkpoint.config, true));
            assert!(again.warnings().is_empty(), "{:?}", again.warnings());
            let found = names(dir.path());
            match max {
                u64::MAX => assert_eq!(found, [CONFIG, SINGLE]),
                1 => assert_eq!(found.len(), tensors.len() + 2),
                _ => assert!(found.len() > 4 && found.len() < 12 && found.contains(&INDEX.to_owned()), "{found:?}"),
            }
            // The reference reader of the format agrees.
            for name in found.iter().filter(|name| name.ends_with(".safetensors")) {
                let bytes = fs::read(dir.path().join(name)).unwrap();
                let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
                assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
                for (name, view) in reference.iter() {
                    assert_eq!(view.shape(), again.shape(name).unwrap());
                    let entry = &again.tensors[name];
                    assert_eq!(view.data(), &*again.files[entry.file].bytes.range(entry.range.clone()).unwrap());
                }
            }
        }
    }
}

#[test]
fn save_twice_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = golden(1);
    let mut tensors = all(&checkpoint);
    write(a.path(), &checkpoint.config, &tensors, SaveDtype::BF16, 40_000).unwrap();
    tensors.reverse();
    write(b.path(), &checkpoint.config, &tensors, SaveDtype::BF16, 40_000).unwrap();
    assert_eq!(names(a.path()), names(b.path()));
    for name in names(a.path()) {
        assert_eq!(fs::read(a.path().join(&name)).unwrap(), fs::read(b.path().join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn save_in_16_bits() {
    let checkpoint = golden(1);
    let tensors = all(&checkpoint);
    for (dtype, stored, tolerance) in
        [(SaveDtype::F16, Dtype::F16, 1.0 / 2048.0), (SaveDtype::BF16, Dtype::BF16, 1.0 / 256.0)]
    {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &checkpoint.config, &tensors, dtype, u64::MAX).unwrap();
        let again = Checkpoint::open(dir.path()).unwrap();
        for ((name, _, want), (_, _, got)) in tensors.iter().zip(all(&again)) {
            let precise = name.ends_with("A_log") || name.ends_with(".D");
            assert_eq!(again.dtype(name), Some(if precise { Dtype::F32 } else { stored }), "{name}");
            for (want, got) in want.iter().zip(&got) {
                let bound = if precise { 0.0 } else { tolerance * want.abs() + 1e-7 };
                assert!((want - got).abs() <= bound, "{name}: {want} {got}");
            }
        }
        let config: Value = serde_json::from_slice(&fs::read(dir.path().join(CONFIG)).unwrap()).unwrap();
        assert!(config["dtype"].as_str().unwrap().ends_with("float16"));
    }
}

#[test]
fn save_refuses_and_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden(0);
    let good = all(&checkpoint);
    write(dir.path(), &checkpoint.config, &good, SaveDtype::F32, u64::MAX).unwrap();
    let refused = |tensors: &Tensors, dtype, max, what: &str| {
        let error = write(dir.path(), &checkpoint.config, tensors, dtype, max).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(all(&Checkpoint::open(dir.path()).unwrap()) == good);
        assert_eq!(names(dir.path()), [CONFIG, SINGLE]);
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tensors = good.clone();
        tensors[3].2[5] = bad;
        refused(&tensors, SaveDtype::F32, 1000, &format!("`{}`", tensors[3].0));
    }
    let mut tensors = good.clone();
    tensors[0].2[7] = 70_000.0;
    refused(&tensors, SaveDtype::F16, u64::MAX, "save as BF16");
    tensors[0].2[7] = f32::MAX;
    refused(&tensors, SaveDtype::BF16, u64::MAX, "finite in BF16");
    let mut tensors = good.clone();
    tensors[1].1 = vec![usize::MAX, usize::MAX];
    refused(&tensors, SaveDtype::F32, u64::MAX, "as many numbers");
    let mut tensors = good.clone();
    tensors[1].0 = tensors[0].0.clone();
    refused(&tensors, SaveDtype::F32, u64::MAX, "one such tensor");
}

/// A crash between any two steps of a save leaves a directory that opens, with all old or all new weights.
#[test]
fn save_interrupted() {
    let checkpoint = golden(0);
    let old = all(&checkpoint);
    let mut new = old.clone();
    new.iter_mut().flat_map(|(_, _, data)| data).for_each(|x| *x += 1.0);
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(before.path(), &checkpoint.config, &old, SaveDtype::F32, 50_000).unwrap();
    write(after.path(), &checkpoint.config, &new, SaveDtype::F32, 50_000).unwrap();
    // Shards of the new one first, in any number, then its index, then its configuration.
    let mut order = names(after.path());
    order.sort_by_key(|name| (name == INDEX, name == CONFIG));
    order.sort_by_key(|name| [".safetensors", INDEX, CONFIG].iter().position(|end| name.ends_with(end)));
    for name in order {
        fs::copy(after.path().join(&name), before.path().join(&name)).unwrap();
        let now = all(&Checkpoint::open(before.path()).unwrap());
        assert!(now == if name.ends_with(".safetensors") { old.clone() } else { new.clone() }, "{name}");
    }
    write(before.path(), &checkpoint.config, &new, SaveDtype::F32, 50_000).unwrap();
    assert_eq!(names(before.path()), names(after.path()));
}

#[test]
fn save_removes_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let others = ["model-best.safetensors", "optimizer.safetensors", "tokenizer.json"];
    for name in others {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    // A checkpoint of shards that somebody downloaded, and a shard that `save` wrote.
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    fs::write(dir.path().join(INDEX), index).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for name in shards.iter().chain(&["model-00001-of-00002-0123abcd.safetensors"]) {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let checkpoint = golden(0);
    write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, u64::MAX).unwrap();
    let mut wanted = [&others[..], &shards, &[CONFIG, SINGLE, INDEX]].concat();
    wanted.sort_unstable();
    assert_eq!(names(dir.path()), wanted);
    assert_eq!(fs::read_to_string(dir.path().join(INDEX)).unwrap(), index);
}

#[test]
fn the_generation_config_has_the_ids_that_end_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden(0);
    let tensors = all(&checkpoint);
    let saved = |config: &ModelConfig, end_ids: Option<Vec<u32>>| -> Value {
        save(dir.path(), config, named(&tensors), &SaveOptions { end_ids, ..SaveOptions::default() }).unwrap();
        serde_json::from_slice(&fs::read(dir.path().join("generation_config.json")).unwrap()).unwrap()
    };
    let mut config = checkpoint.config.clone();
    (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (Some(1), Some(2), None);
    assert_eq!(saved(&config, None), json!({"bos_token_id": 1, "eos_token_id": 2}));
    assert_eq!(saved(&config, Some(vec![2, 5])), json!({"bos_token_id": 1, "eos_token_id": [2, 5]}));
    assert_eq!(crate::tokenizer::stated_end_ids(dir.path()).unwrap(), Some(vec![2, 5]));
    config.eos_token_id = None;
    assert_eq!(saved(&config, None), json!({"bos_token_id": 1}), "the old one is replaced");
    assert_eq!(crate::tokenizer::stated_end_ids(dir.path()).unwrap(), Some(vec![]));
}

#[test]
fn a_card_is_written_and_one_of_others_stays() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden(0);
    let tensors = all(&checkpoint);
    let path = dir.path().join("README.md");
    let saved = |config: &ModelConfig, card: Option<Card>| {
        save(dir.path(), config, named(&tensors), &SaveOptions { card, ..SaveOptions::default() }).unwrap();
        fs::read_to_string(&path).ok()
    };
    assert_eq!(saved(&checkpoint.config, None), None);
    let training = Some("2 steps on `a.txt`.".to_owned());
    let card = saved(&checkpoint.config, Some(Card { training, tokenizer: true })).unwrap();
    assert!(
        card.starts_with("---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- mamba\n"),
        "{card}"
    );
    for part in ["2 steps on `a.txt`.", "elapid generate --model . \"", "AutoTokenizer", "Layers: 2, width: 48"] {
        assert!(card.contains(part), "no `{part}` in {card}");
    }
    assert!(!card.contains("license"), "{card}");
    let mut config = checkpoint.config.clone();
    let mixer: &mut mamba1::Settings = config.stack.settings_mut("mamba1").unwrap();
    mixer.discretisation = mamba1::Rule(elapid_kernels::selective_scan::Discretisation::Zoh);
    let card = saved(&config, Some(Card::default())).unwrap();
    assert!(card.starts_with("---\nlibrary_name: elapid\ntags:\n"), "{card}");
    assert!(!card.contains("transformers") && card.contains("--prompt-tokens"), "{card}");
    fs::write(&path, "# Mine\n").unwrap();
    assert_eq!(saved(&checkpoint.config, Some(Card::default())).unwrap(), "# Mine\n");
}
