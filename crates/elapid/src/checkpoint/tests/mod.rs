mod saving;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::error::Result;
use super::reader::{Bytes, CONFIG, INDEX, SINGLE, Source};
use super::*;
use crate::LanguageModel;
use crate::config::ModelConfig;
use crate::formats::places::{EMBEDDING, HEAD};
use crate::formats::{Described, Places};

const TINY: &str = include_str!("../../../../../golden/mamba1-tiny/config.json");
const UNTIED: &str = include_str!("../../../../../golden/mamba1-untied/config.json");
static TINY_WEIGHTS: &[u8] = include_bytes!("../../../../../golden/mamba1-tiny/model.safetensors");
static UNTIED_WEIGHTS: &[u8] = include_bytes!("../../../../../golden/mamba1-untied/model.safetensors");

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn golden(which: usize) -> Checkpoint {
    let (config, weights) = [(TINY, TINY_WEIGHTS), (UNTIED, UNTIED_WEIGHTS)][which];
    Checkpoint::from_bytes(config, weights).unwrap()
}

fn all(checkpoint: &Checkpoint) -> Tensors {
    let one = |name: &str| {
        let shape = checkpoint.shape(name).unwrap().to_vec();
        let data = checkpoint.tensor(name, &shape).unwrap();
        (name.to_owned(), shape, data)
    };
    checkpoint.names().map(one).collect()
}

fn named(tensors: &Tensors) -> impl Iterator<Item = Named<'_>> {
    tensors.iter().map(|(name, shape, data)| Named {
        name: name.clone(),
        shape: shape.clone(),
        values: Values::Numbers(data),
        precise: name.ends_with(".A_log") || name.ends_with(".D"),
    })
}

fn write(dir: &Path, config: &ModelConfig, tensors: &Tensors, dtype: SaveDtype, max_shard_bytes: u64) -> Result<()> {
    save(dir, config, named(tensors), &SaveOptions { dtype, max_shard_bytes, ..SaveOptions::default() })
}

/// The files of a directory, except those beside a model.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != card::CARD && name != card::GENERATION_CONFIG);
    names.sort();
    names
}

/// A safetensors file with this header and this many zero bytes after it.
fn file(header: &str, data: usize) -> &'static [u8] {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes.leak()
}

fn error(result: Result<Checkpoint>) -> String {
    let error = result.unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("wanted ") && error.contains("got "), "{error}");
    error
}

#[test]
fn golden_models_open() {
    for which in 0..2 {
        let checkpoint = golden(which);
        let elements: u64 = all(&checkpoint).iter().map(|(_, _, data)| data.len() as u64).sum();
        assert_eq!(elements, LanguageModel::parameter_count(&checkpoint.config).unwrap());
        assert_eq!(checkpoint.dtype(EMBEDDING), Some(Dtype::F32));
        assert_eq!(checkpoint.contains(HEAD), which == 1);
        assert!(checkpoint.warnings().is_empty());
        checkpoint.check_complete(&LanguageModel::outline(&checkpoint.config).unwrap()).unwrap();
    }
}

#[test]
fn tensor_checks_name_and_shape() {
    let checkpoint = golden(0);
    assert_eq!(checkpoint.tensor("backbone.norm_f.weight", &[48]).unwrap().len(), 48);
    for (name, shape) in [("backbone.norm_f.weight", &[48, 1][..]), (EMBEDDING, &[48, 64]), ("no.such", &[1])] {
        let error = checkpoint.tensor(name, shape).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: tensor") && error.contains(name), "{error}");
    }
}

#[test]
fn check_complete_names_what_is_wrong() {
    let checkpoint = golden(0);
    let good = LanguageModel::outline(&checkpoint.config).unwrap();
    type Outline = Vec<(String, Vec<usize>)>;
    let refused = |change: &dyn Fn(&mut Outline), words: &[&str]| {
        let mut expected = good.clone();
        change(&mut expected);
        let error = checkpoint.check_complete(&expected).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "no `{word}` in {error}"));
    };
    refused(
        &|all| all[0].0 = "backbone.embedding.weights".into(),
        &["1 missing: `backbone.embedding.weights` (`backbone.embeddings.weight` is there)", "1 unexpected"],
    );
    refused(&|all| all.truncate(3), &["19 unexpected", "and 13 more"]);
    refused(&|all| all.push((HEAD.into(), vec![64, 48])), &["1 missing: `lm_head.weight`", "set tie_word_embeddings"]);
    refused(&|all| all[3].1.push(1), &[&format!("tensor `{}`: wanted shape", good[3].0)]);
}

/// The names of tensors are compared before any is read, and no memory is taken for what the configuration claims.
#[test]
fn a_model_that_the_configuration_does_not_describe() {
    let config =
        TINY.replace("\"hidden_size\": 48", "\"hidden_size\": 4800000").replace("\"intermediate_size\": 96,", "");
    let checkpoint = Checkpoint::from_bytes(&config, TINY_WEIGHTS).unwrap();
    let error = LanguageModel::load(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("wanted shape [64, 4800000], got [64, 48]"), "{error}");
    let config = TINY.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 6000");
    let checkpoint = Checkpoint::from_bytes(&config, TINY_WEIGHTS).unwrap();
    let error = LanguageModel::load(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("wanted the 60002 tensors") && error.contains("got 22 tensors"), "{error}");
}

/// Every way in which a writer may name the tensors gives the same model.
#[test]
fn names_of_other_writers() {
    let checkpoint = golden(0);
    let tensors = all(&checkpoint);
    let dir = tempfile::tempdir().unwrap();
    for (prefix, from, to) in [
        ("", "backbone.", ""),
        ("module.", "", ""),
        ("_orig_mod.", "", ""),
        ("module._orig_mod.", "", ""),
        ("_orig_mod.module.", "", ""),
        ("model.", "", ""),
        ("model._orig_mod.", "backbone.", ""),
        ("", "backbone.", "backbone._orig_mod."),
        ("module.", "embeddings", "embedding"),
    ] {
        let rename = |name: &str| format!("{prefix}{}", name.replacen(from, to, 1));
        let renamed: Tensors =
            tensors.iter().map(|(name, shape, data)| (rename(name), shape.clone(), data.clone())).collect();
        for max in [u64::MAX, 50_000] {
            write(dir.path(), &checkpoint.config, &renamed, SaveDtype::F32, max).unwrap();
            let again = Checkpoint::open(dir.path()).unwrap();
            assert!(all(&again) == tensors, "{prefix} {from} {to}");
            LanguageModel::load(&again).unwrap();
            assert!(!again.warnings().is_empty() && again.warnings()[0].contains("names of tensors"));
            if !prefix.is_empty() {
                assert!(again.warnings()[0].contains(&format!("`{prefix}`")), "{:?}", again.warnings());
            }
        }
    }
    // If one name lacks the prefix, nothing is removed, and the error shows both.
    let mut mixed = tensors.clone();
    mixed[1..].iter_mut().for_each(|(name, ..)| *name = format!("module.{name}"));
    write(dir.path(), &checkpoint.config, &mixed, SaveDtype::F32, u64::MAX).unwrap();
    let error = LanguageModel::open(dir.path()).unwrap_err().to_string();
    for word in ["21 missing", "21 unexpected", "`module.backbone.", "21 names fit without `module.`"] {
        assert!(error.contains(word), "no `{word}` in {error}");
    }
}

/// An index may list the head of a model whose head is its embedding, though no shard has it; and nothing else.
#[test]
fn an_index_that_lists_the_tied_head() {
    let checkpoint = golden(0);
    let tensors = all(&checkpoint);
    for prefix in ["", "module."] {
        let dir = tempfile::tempdir().unwrap();
        let renamed: Tensors = tensors
            .iter()
            .map(|(name, shape, data)| (format!("{prefix}{name}"), shape.clone(), data.clone()))
            .collect();
        write(dir.path(), &checkpoint.config, &renamed, SaveDtype::F32, 50_000).unwrap();
        let index = dir.path().join(INDEX);
        let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
        json["weight_map"][format!("{prefix}{HEAD}")] = json["weight_map"][format!("{prefix}{EMBEDDING}")].clone();
        fs::write(&index, json.to_string()).unwrap();
        let again = Checkpoint::open(dir.path()).unwrap();
        assert!(all(&again) == tensors && again.warnings()[0].contains(HEAD), "{:?}", again.warnings());
        let untied = TINY.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
        fs::write(dir.path().join(CONFIG), untied).unwrap();
        assert!(error(Checkpoint::open(dir.path())).contains("got no such tensor"));
    }
}

/// safetensors keeps one of two names for shared memory, and that may be the head's.
#[test]
fn a_tied_head_alone_is_the_embedding() {
    let checkpoint = golden(0);
    let mut tensors = all(&checkpoint);
    tensors[0].0 = HEAD.into();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint.config, &tensors, SaveDtype::F32, u64::MAX).unwrap();
    assert!(all(&Checkpoint::open(dir.path()).unwrap()) == all(&checkpoint));
}

#[test]
fn shards_without_an_index() {
    let checkpoint = golden(0);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, 50_000).unwrap();
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    let again = Checkpoint::open(dir.path()).unwrap();
    assert!(all(&again) == all(&checkpoint) && again.warnings()[0].contains(INDEX), "{:?}", again.warnings());
    let shard = names(dir.path()).into_iter().find(|name| name.starts_with("model-00002-of-")).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::copy(at(&shard), at(&format!("{}-0.safetensors", &shard[..20]))).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("some with one number"));
    fs::copy(at(&shard), at("other-00001-of-00001.safetensors")).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("shards of 2"));
    names(dir.path()).iter().filter(|name| name.contains("other") || name.contains("-00002-of-")).for_each(|name| {
        fs::remove_file(at(name)).unwrap();
    });
    assert!(error(Checkpoint::open(dir.path())).contains("not number 2"));
}

/// Values that are not finite: which tensor, how many, where, and which other tensors, in every dtype.
#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    let header = r#"{"a": {"dtype": "DTYPE", "shape": [2, 3], "data_offsets": [0, SIZE]}}"#;
    let refused = |dtype: &str, data: Vec<u8>, words: &[&str]| {
        let header = header.replace("DTYPE", dtype).replace("SIZE", &data.len().to_string());
        let mut bytes = file(&header, 0).to_vec();
        bytes.extend(data);
        let checkpoint = Checkpoint::from_bytes(TINY, bytes.leak()).unwrap();
        let error = checkpoint.tensor("a", &[2, 3]).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "no `{word}` in {error}"));
    };
    let (nan, inf) = (f32::NAN, f32::NEG_INFINITY);
    let f32s = |x: [f32; 6]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    refused(
        "F32",
        f32s([0.0, 1.0, 2.0, 3.0, nan, 5.0]),
        &["tensor `a`: wanted finite values, got 1 NaN of 6 values", "[1, 1]"],
    );
    refused("F32", f32s([0.0, 1.0, inf, nan, inf, 5.0]), &["1 NaN and 2 infinite of 6", "the first at [0, 2]"]);
    let halves =
        |x: f32| [0.0, 1.0, 2.0, 3.0, 4.0, x].iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    refused("F16", halves(70_000.0), &["1 infinite of 6", "[1, 2]"]);
    let short =
        |x: f32| [0.0, x, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    refused("BF16", short(nan), &["1 NaN of 6", "[0, 1]"]);
    let doubles = [0.0, 1e300, 2.0, f64::INFINITY, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    refused("F64", doubles, &["1 infinite and 1 beyond the range of f32 of 6", "[0, 1]"]);
    // A tensor larger than a block, and the others named.
    let mut bytes = TINY_WEIGHTS.to_vec();
    let golden = golden(0);
    let names = [EMBEDDING, "backbone.norm_f.weight"];
    for name in names {
        let range = golden.tensors[name].range.clone();
        bytes[range.end - 4..range.end].copy_from_slice(&nan.to_le_bytes());
    }
    let checkpoint = Checkpoint::from_bytes(TINY, bytes.leak()).unwrap();
    let error = LanguageModel::load(&checkpoint).unwrap_err().to_string();
    for word in [&format!("tensor `{EMBEDDING}`"), "the first at [63, 47]", "also in `backbone.norm_f.weight`"] {
        assert!(error.contains(word), "no `{word}` in {error}");
    }
}

/// A file of another kind is recognised, whatever its name.
#[test]
fn other_files_are_recognised() {
    let checkpoint = golden(0);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 516576000\n";
    for (content, what) in [
        (&pointer[..], "LFS"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"", "an empty file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "gzip"),
        (b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0", "zip"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (&[0; 64], "zero bytes"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, 50_000).unwrap();
        let shard = names(dir.path()).into_iter().find(|name| name.starts_with("model-00002")).unwrap();
        for name in [&shard, INDEX, CONFIG] {
            fs::write(dir.path().join(name), content).unwrap();
            let error = error(Checkpoint::open(dir.path()));
            assert!(error.contains(what) && error.contains(name), "{name}: {error}");
        }
        fs::write(dir.path().join(CONFIG), TINY).unwrap();
        fs::write(dir.path().join(SINGLE), content).unwrap();
        let error = error(Checkpoint::open(dir.path()));
        assert!(error.contains(what) && error.contains(SINGLE), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, u64::MAX).unwrap();
    fs::write(dir.path().join(SINGLE), "Entry not found\n").unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("text that begins with `Entry not found`"));
    fs::write(dir.path().join(CONFIG), TINY_WEIGHTS).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("a safetensors file"));
    for name in [CONFIG, SINGLE] {
        fs::write(dir.path().join(CONFIG), TINY).unwrap();
        fs::remove_file(dir.path().join(name)).unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        assert!(error(Checkpoint::open(dir.path())).contains(&format!("{name}: wanted a file, got a directory")));
        fs::remove_dir(dir.path().join(name)).unwrap();
    }
}

#[test]
fn byte_order_marks_are_skipped() {
    let checkpoint = golden(0);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, 50_000).unwrap();
    for name in [CONFIG, INDEX] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name), format!("\u{feff}{text}")).unwrap();
    }
    assert!(all(&Checkpoint::open(dir.path()).unwrap()) == all(&checkpoint));
}

#[test]
fn a_path_that_is_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    assert!(error(Checkpoint::open(&path)).contains("got nothing of this name"));
    fs::write(&path, "").unwrap();
    assert!(
        error(Checkpoint::open(&path))
            .contains("wanted the directory of a model, got a file; give the directory that has")
    );
    fs::write(dir.path().join(CONFIG), TINY).unwrap();
    let parent = format!("give the directory it is in: {}", dir.path().display());
    assert!(error(Checkpoint::open(&path)).contains(&parent));
}

#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden(1);
    write(dir.path(), &checkpoint.config, &all(&checkpoint), SaveDtype::F32, u64::MAX).unwrap();
    let opened = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join(SINGLE);
    let half = fs::metadata(&path).unwrap().len() / 2;
    fs::File::options().write(true).open(&path).unwrap().set_len(half).unwrap();
    let read = |name: &str| opened.tensor(name, opened.shape(name).unwrap());
    let errors: Vec<String> = opened.names().filter_map(|name| Some(read(name).err()?.to_string())).collect();
    assert!(!errors.is_empty() && errors.len() < opened.names().count(), "{errors:?}");
    assert!(errors.iter().all(|error| error.contains(SINGLE) && error.contains("became shorter")), "{errors:?}");
}

#[test]
fn original_names_and_tied_heads() {
    let checkpoint = golden(0);
    let mut tensors = all(&checkpoint);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(tensors[0].0, EMBEDDING);
    tensors[0].0 = "backbone.embedding.weight".into();
    let (shape, mut head) = (tensors[0].1.clone(), tensors[0].2.clone());
    tensors.push((HEAD.into(), shape.clone(), head.clone()));
    write(dir.path(), &checkpoint.config, &tensors, SaveDtype::F32, u64::MAX).unwrap();
    assert!(all(&Checkpoint::open(dir.path()).unwrap()) == all(&checkpoint));

    head[9] += 1e-3;
    tensors.pop();
    tensors.push((HEAD.into(), shape.clone(), head));
    write(dir.path(), &checkpoint.config, &tensors, SaveDtype::F32, u64::MAX).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("tie_embeddings is true"));

    tensors.pop();
    tensors.push((EMBEDDING.into(), shape, tensors[0].2.clone()));
    write(dir.path(), &checkpoint.config, &tensors, SaveDtype::F32, u64::MAX).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("one such tensor"));
}

#[test]
fn missing_files() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("config.json") && missing.contains("check the path"), "{missing}");
    fs::write(dir.path().join(CONFIG), TINY).unwrap();
    error(Checkpoint::open(dir.path()));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("save_file"));
    fs::write(dir.path().join(CONFIG), [0xff]).unwrap();
    assert!(error(Checkpoint::open(dir.path())).contains("UTF-8"));
}

#[test]
fn hostile_headers() {
    let open = |bytes| error(Checkpoint::from_bytes(TINY, bytes));
    open(b"");
    open(b"1234567");
    open(&[255; 8]);
    open(&[255; 64]);
    open(file("", 0));
    open(file("[]", 0));
    open(file("\u{0}", 3));
    open(file(&"[".repeat(100_000), 0));
    let tensor = |dtype: &str, shape: &str, from: &str, to: &str| {
        format!(r#""t": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{from}, {to}]}}"#)
    };
    let one = |dtype, shape, from, to, data| {
        let text = open(file(&format!("{{{}}}", tensor(dtype, shape, from, to)), data));
        assert!(text.contains("model.safetensors: tensor `t`"), "{text}");
    };
    let max = "18446744073709551615";
    one("F32", "[1]", "0", "8", 8);
    one("F32", "[2]", "0", "8", 4);
    one("F32", "[2]", "4", "0", 8);
    one("F32", "[1]", "4", "8", 8);
    one("F32", "[1]", "-4", "0", 8);
    one("F32", "[4611686018427387904, 4]", "0", "0", 0);
    one("F32", "[18446744073709551615]", "0", max, 0);
    one("U8", "[18446744073709551615]", "0", max, 0);
    one("F4", "[3]", "0", "2", 2);
    one("F33", "[1]", "0", "4", 4);
    one("F32", "[1.5]", "0", "4", 4);
    one("F32", "{}", "0", "4", 4);
    open(file(&format!("{{{}}}", tensor("F32", "[1]", "0", "4")), 8));
    // A key twice, in the header and in a tensor.
    let twice = format!("{{{}, {}}}", tensor("F32", "[1]", "0", "4"), tensor("F32", "[1]", "4", "8"));
    assert!(open(file(&twice, 8)).contains("the key `t` twice"));
    let twice = format!("{{{}}}", tensor("F32", "[1]", "0", "4").replace("{", r#"{"dtype": "F16", "#));
    assert!(open(file(&twice, 4)).contains("the key `dtype` twice"));
    // Two tensors on the same bytes.
    let two =
        format!("{{{}, {}}}", tensor("F32", "[1]", "0", "4"), tensor("F32", "[1]", "0", "4").replace("\"t\"", "\"u\""));
    assert!(open(file(&two, 4)).contains("to begin at byte 4"));
    // Sizes whose sum passes 2^64.
    let eighth = 1_u64 << 61;
    let many: Vec<String> = (0..8_u64)
        .map(|i| {
            let end = (i + 1).saturating_mul(eighth);
            tensor("U8", &format!("[{}]", end - i * eighth), &(i * eighth).to_string(), &end.to_string())
                .replace("\"t\"", &format!("\"t{i}\""))
        })
        .collect();
    open(file(&format!("{{{}}}", many.join(", ")), 0));
    // A dtype that no weight has opens, and is refused when read.
    let checkpoint = Checkpoint::from_bytes(TINY, file(&format!("{{{}}}", tensor("I32", "[1]", "0", "4")), 4)).unwrap();
    let refused = checkpoint.tensor("t", &[1]).unwrap_err().to_string();
    assert!(refused.contains("got I32"), "{refused}");
    // An empty file and scalars are fine.
    Checkpoint::from_bytes(TINY, file("{}", 0)).unwrap();
    let scalar = Checkpoint::from_bytes(TINY, file(&format!("{{{}}}", tensor("F64", "[]", "0", "8")), 8)).unwrap();
    assert_eq!(scalar.tensor("t", &[]).unwrap(), [0.0]);
}

#[test]
fn every_cut_of_a_file_is_found() {
    let ends = (0..2000).chain((2000..TINY_WEIGHTS.len()).step_by(997));
    for end in ends {
        error(Checkpoint::from_bytes(TINY, &TINY_WEIGHTS[..end]));
    }
}

#[test]
fn hostile_indexes() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    let checkpoint = golden(0);
    write(&dir, &checkpoint.config, &all(&checkpoint), SaveDtype::F32, 50_000).unwrap();
    let good: Value = serde_json::from_slice(&fs::read(dir.join(INDEX)).unwrap()).unwrap();
    let refused = |index: &str| {
        fs::write(dir.join(INDEX), index).unwrap();
        let error = Checkpoint::open(&dir).unwrap_err().to_string();
        println!("{error}");
        error
    };
    for index in ["", "{}", "[]", r#"{"weight_map": []}"#, r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
        assert!(refused(index).contains(INDEX));
    }
    fs::write(outer.path().join("outside.safetensors"), "").unwrap();
    for name in [
        "../outside.safetensors",
        "/x.safetensors",
        "a/../x.safetensors",
        "..",
        "",
        "./x.safetensors",
        "x.bin",
        "..\\x.safetensors",
        "c:x.safetensors",
    ] {
        let mut index = good.clone();
        index["weight_map"][EMBEDDING] = json!(name);
        assert!(refused(&index.to_string()).contains("in the same directory"), "{name}");
    }
    let mut index = good.clone();
    index["weight_map"][EMBEDDING] = json!("missing.safetensors");
    assert!(refused(&index.to_string()).contains("missing.safetensors"));
    let mut index = good.clone();
    index["weight_map"]["extra"] = good["weight_map"][EMBEDDING].clone();
    assert!(refused(&index.to_string()).contains("tensor `extra`"));
    let mut index = good.clone();
    index["weight_map"].as_object_mut().unwrap().remove(EMBEDDING);
    assert!(refused(&index.to_string()).contains("got nowhere"));
    let mut index = good.clone();
    index["weight_map"][EMBEDDING] = good["weight_map"]["backbone.norm_f.weight"].clone();
    assert!(refused(&index.to_string()).contains(EMBEDDING));
    fs::write(dir.join(INDEX), good.to_string()).unwrap();
    Checkpoint::open(&dir).unwrap();
}

/// Short files, so that edits meet their headers: the norms of the golden models.
static SHORT: LazyLock<[(ModelConfig, Vec<u8>); 2]> = LazyLock::new(|| {
    [0, 1].map(|which| {
        let golden = golden(which);
        let dir = tempfile::tempdir().unwrap();
        let tensors: Tensors = all(&golden).into_iter().filter(|(name, ..)| name.contains("norm")).collect();
        write(dir.path(), &golden.config, &tensors, SaveDtype::BF16, u64::MAX).unwrap();
        (golden.config, fs::read(dir.path().join(SINGLE)).unwrap())
    })
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Bytes changed, removed or inserted, mostly in the header: an error or readable tensors, never a panic.
    #[test]
    fn mutations_do_not_panic(
        which in 0..2_usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..5_u8), 1..5),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let (config, mut bytes) = SHORT[which].clone();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes[at] = b'0' + byte % 10,
                3 => bytes[at % 8] = byte,
                _ => { bytes.remove(at); }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let source = Source { name: SINGLE.into(), bytes: Bytes::Static(bytes.leak()) };
        if let Ok(checkpoint) = open::assemble(Described { config, warnings: Vec::new(), places: Places::default() }, vec![source]) {
            for name in checkpoint.names() {
                let shape = checkpoint.shape(name).unwrap();
                if let Ok(data) = checkpoint.tensor(name, shape) {
                    prop_assert_eq!(data.len(), shape.iter().product::<usize>());
                }
            }
        }
    }
}
