//! What each parser of a file is given: the bytes of a file, by the entry point that a command uses.
//!
//! Every entry returns for all bytes; a panic, an abort or an endless loop is the fault that is looked for. The targets in
//! `fuzz_targets/` and the test `crates/elapid-train/tests/corpus.rs` both call them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use elapid::checkpoint::Checkpoint;
use elapid::config::ModelConfig;
use elapid::tokenizer::{Tokenizer, trial};
use elapid::{LanguageModel, embedded};
use elapid_train::config::TrainConfig;
use elapid_train::data::{Corpus, HeldOut, Options, Source};
use elapid_train::metrics;

/// What a parser is given.
type Entry = fn(&[u8]);

/// All entries by the names of their targets and corpora.
pub(crate) const ALL: [(&str, Entry); 9] = [
    ("config", config),
    ("safetensors", safetensors),
    ("index", index),
    ("tokenizer", tokenizer),
    ("state", state),
    ("settings", settings),
    ("token_cache", token_cache),
    ("metrics", metrics),
    ("jsonl", jsonl),
];

/// Where the entries of this process write.
fn root() -> PathBuf {
    std::env::temp_dir().join(format!("elapid-fuzz-{}", std::process::id()))
}

fn scratch(name: &str) -> PathBuf {
    let dir = root().join(name);
    fs::create_dir_all(&dir).expect("a temporary directory");
    dir
}

/// Removes what the entries wrote.
pub(crate) fn clear() {
    let _ = fs::remove_dir_all(root());
}

/// Writes the bytes where a command would find them.
fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

/// `config.json` of a model.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok((config, _)) = ModelConfig::parse(text, "config.json")
        && config.validate().is_ok()
    {
        let _ = LanguageModel::parameter_count(&config);
        let written = config.to_hf_json().to_string();
        ModelConfig::parse(&written, "config.json").expect("what is written is read");
    }
}

/// The header of `model.safetensors`, and its tensors as a model takes them.
pub(crate) fn safetensors(bytes: &[u8]) {
    let dir = scratch("safetensors");
    file(&dir, "config.json", include_bytes!("../golden/mamba1-tiny/config.json"));
    file(&dir, "model.safetensors", bytes);
    if let Ok(checkpoint) = Checkpoint::open(&dir) {
        let _ = LanguageModel::load(&checkpoint);
    }
}

/// `model.safetensors.index.json` beside one shard that is whole.
pub(crate) fn index(bytes: &[u8]) {
    let dir = scratch("index");
    file(&dir, "config.json", include_bytes!("../golden/mamba1-tiny/config.json"));
    let shard = include_bytes!("../golden/mamba1-tiny/model.safetensors");
    file(&dir, "model-00001-of-00001.safetensors", shard);
    file(&dir, "model.safetensors.index.json", bytes);
    if let Ok(checkpoint) = Checkpoint::open(&dir) {
        let _ = LanguageModel::load(&checkpoint);
    }
}

/// `tokenizer.json`, and texts by it.
pub(crate) fn tokenizer(bytes: &[u8]) {
    let _ = trial::run(&file(&scratch("tokenizer"), "tokenizer.json", bytes));
}

/// A state of `--save-state`, of the model inside elapid.
pub(crate) fn state(bytes: &[u8]) {
    static MODEL: LazyLock<LanguageModel> = LazyLock::new(|| embedded::model().expect("the model inside"));
    let _ = MODEL.load_state(&file(&scratch("state"), "state", bytes));
}

/// Settings of a training run.
pub(crate) fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = TrainConfig::parse(text, "config.toml")
        && config.validate("config.toml").is_ok()
    {
        let written = config.to_toml().expect("valid settings are written");
        TrainConfig::parse(&written, "config.toml").expect("what is written is read");
    }
}

/// A token cache: bytes 8 to 40 of its header (version, layout, counts) and what follows the header. The rest of the
/// header, which a parser compares and stops at, is made right.
pub(crate) fn token_cache(bytes: &[u8]) {
    const HEADER: usize = 144;
    const FIELDS: usize = 112;
    let dir = scratch("token_cache");
    let source = dir.join("text");
    if !source.exists() {
        fs::write(&source, "some text").expect("a temporary file");
    }
    let prepare = || {
        let options = Options { cache: Some(dir.join("cache")), ..Options::default() };
        Corpus::prepare(&[Source::Path(source.clone())], &HeldOut::Fraction(0.0), &Tokenizer::byte(), options)
            .expect("a damaged cache is made again")
    };
    prepare();
    let entries = fs::read_dir(dir.join("cache")).expect("the cache").filter_map(Result::ok);
    let cache = entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|kind| kind == "tokens"));
    let (Some(cache), Some((counts, payload))) = (cache, bytes.split_at_checked(32)) else { return };
    let mut header = fs::read(&cache).expect("the cache")[..HEADER].to_vec();
    header[8..40].copy_from_slice(counts);
    let checksum = *blake3::Hasher::new().update(payload).update(&header[..FIELDS]).finalize().as_bytes();
    header[FIELDS..].copy_from_slice(&checksum);
    fs::write(&cache, [&header, payload].concat()).expect("a temporary file");
    let corpus = prepare();
    let mut ids = vec![0; corpus.train.len() as usize];
    corpus.train.copy(0, &mut ids).expect("tokens of a cache that was read");
    let _ = corpus.train.documents(0..corpus.train.len()).count();
    let _ = corpus.train.text_bytes();
    fs::remove_file(&cache).expect("a temporary file");
}

/// `metrics.jsonl` of a run.
pub(crate) fn metrics(bytes: &[u8]) {
    let _ = metrics::read(&file(&scratch("metrics"), "metrics.jsonl", bytes));
}

/// Text in a `.jsonl` file, by the byte tokenizer.
pub(crate) fn jsonl(bytes: &[u8]) {
    let path = file(&scratch("jsonl"), "text.jsonl", bytes);
    let held_out = HeldOut::Fraction(0.0);
    let _ = Corpus::prepare(&[Source::Path(path)], &held_out, &Tokenizer::byte(), Options::default());
}
