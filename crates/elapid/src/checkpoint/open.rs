//! Finding the files of a checkpoint and assembling them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use super::elsewhere;
use super::error::{CheckpointError, Result};
use super::header::{self, Described};
use super::names::Renaming;
use super::packed;
use super::reader::{Bytes, CONFIG, Checkpoint, Entry, INDEX, SINGLE, Source};
use crate::config::ConfigError;
use crate::content::{self, Content};
use crate::files::{RegularFile, limit};
use crate::formats::{self, Described as Configuration};
use crate::json;

const FETCH_AGAIN: &str = "fetch or save the checkpoint again";

/// The map from tensors to shards.
type WeightMap = BTreeMap<String, String>;

impl Checkpoint {
    /// Opens a directory: reads the configuration and the headers; tensors are read on demand.
    ///
    /// # Errors
    /// If a file is missing, truncated or inconsistent; the error names file and tensor.
    pub fn open(dir: &Path) -> Result<Self> {
        directory(dir)
    }

    /// A checkpoint in memory: the contents of `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(config_json: &str, safetensors: &'static [u8]) -> Result<Self> {
        let described = formats::describe(config_json, CONFIG)?;
        assemble(described, vec![Source { name: SINGLE.into(), bytes: Bytes::Static(safetensors) }])
    }
}

pub(super) fn directory(dir: &Path) -> Result<Checkpoint> {
    check_directory(dir)?;
    let shown = |name: &str| dir.join(name).display().to_string();
    let mut described = read_config(&shown(CONFIG), &read(dir, CONFIG)?)?;
    let (single, index) = (dir.join(SINGLE).exists(), dir.join(INDEX).exists());
    if single {
        if index {
            described.warnings.push(format!("{}: ignored, because there is {SINGLE}", shown(INDEX)));
        }
        return assemble(described, vec![source(dir, SINGLE)?]);
    }
    if index {
        let weight_map = read_index(&shown(INDEX), &read(dir, INDEX)?)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let sources = shards.iter().map(|shard| source(dir, shard)).collect::<Result<Vec<_>>>()?;
        return assemble_indexed(described, sources, &shards, &weight_map, &shown(INDEX));
    }
    if let Some(shards) = elsewhere::shards_without_index(dir)? {
        described.warnings.push(format!("{}: missing; all {} shards were read", shown(INDEX), shards.len()));
        let sources = shards.iter().map(|shard| source(dir, shard)).collect::<Result<Vec<_>>>()?;
        return assemble(described, sources);
    }
    Err(elsewhere::no_weights(dir))
}

/// If the path is not a directory, the error says what it is, before looking for files in it.
fn check_directory(dir: &Path) -> Result<()> {
    let wrong = |got: &str, fix: String| {
        Err(CheckpointError::format(&dir.display().to_string(), "the directory of a model", got, fix))
    };
    if dir.is_dir() {
        return Ok(());
    }
    if !dir.exists() {
        let fix = "check the path; a model on a hub is downloaded first, then given by its directory".to_owned();
        return wrong("nothing of this name", fix);
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if parent.join(CONFIG).is_file() {
        return wrong("a file", format!("give the directory it is in: {}", parent.display()));
    }
    wrong("a file", format!("give the directory that has {CONFIG} and {SINGLE}"))
}

fn open(dir: &Path, name: &str) -> Result<RegularFile> {
    let path = dir.join(name);
    if path.is_dir() {
        let fix = format!("put the file {name} there");
        return Err(CheckpointError::format(&path.display().to_string(), "a file", "a directory", fix));
    }
    Ok(RegularFile::open(&path)?)
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    Ok(open(dir, name)?.read_all(limit::CONFIG)?)
}

fn source(dir: &Path, name: &str) -> Result<Source> {
    Ok(Source { name: dir.join(name).display().to_string(), bytes: Bytes::File(open(dir, name)?) })
}

/// The error for a file that is something else.
fn other(file: &str, wanted: &str, found: Content) -> CheckpointError {
    CheckpointError::format(file, wanted, found.what, found.fix)
}

fn read_config(file: &str, bytes: &[u8]) -> Result<Configuration> {
    let recognised = |error| content::recognise(bytes).map_or(error, |found| other(file, "JSON", found));
    let text = std::str::from_utf8(bytes)
        .map_err(|e| recognised(CheckpointError::format(file, "text in UTF-8", e, FETCH_AGAIN)))?;
    formats::describe(text, file).map_err(|error| match error {
        ConfigError::Syntax { .. } => recognised(error.into()),
        _ => error.into(),
    })
}

/// Reads the index and checks that its shards are plain names, so that no file outside the directory is opened.
fn read_index(file: &str, bytes: &[u8]) -> Result<WeightMap> {
    let wrong = |wanted: &str, got: String| CheckpointError::format(file, wanted, got, FETCH_AGAIN);
    let json = json::parse(bytes).map_err(|error| {
        content::recognise(bytes).map_or_else(|| wrong("JSON", error.to_string()), |found| other(file, "JSON", found))
    })?;
    let wanted = "a `weight_map` from tensor names to file names";
    let entries = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong(wanted, "none".into()))?;
    let mut weight_map = WeightMap::new();
    for (tensor, shard) in entries {
        let plain = |name: &&str| {
            let mut parts = Path::new(name).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == *name)
                && name.ends_with(".safetensors")
                && !name.contains(['/', '\\', ':'])
        };
        let Some(name) = shard.as_str().filter(plain) else {
            let wanted = "the name of a .safetensors file in the same directory";
            return Err(CheckpointError::tensor(file, tensor, wanted, shard, FETCH_AGAIN));
        };
        weight_map.insert(tensor.clone(), name.to_owned());
    }
    if weight_map.is_empty() { Err(wrong(wanted, "an empty one".into())) } else { Ok(weight_map) }
}

fn assemble_indexed(
    mut described: Configuration,
    sources: Vec<Source>,
    shards: &BTreeSet<&String>,
    weight_map: &WeightMap,
    index: &str,
) -> Result<Checkpoint> {
    let headers = headers(&sources)?;
    let mut unseen = weight_map.clone();
    for (header, &shard) in headers.iter().zip(shards) {
        for tensor in header {
            let listed = weight_map.get(&tensor.name).map_or("nowhere", String::as_str);
            if listed != shard {
                let wanted = format!("to be in {shard}, where it is");
                return Err(CheckpointError::tensor(index, &tensor.name, wanted, listed, FETCH_AGAIN));
            }
            unseen.remove(&tensor.name);
        }
    }
    let renaming = renaming(&described, &headers);
    for (name, shard) in unseen {
        // Some programs list a tied head in the index but store it only once.
        if described.config.stack.model.tie_embeddings && renaming.apply(&name) == described.places.ends()[1] {
            described.warnings.push(format!("{index}: `{name}` is in no shard; using the embedding, as {CONFIG} says"));
            continue;
        }
        let wanted = format!("to find it in {shard}, as {index} says");
        return Err(CheckpointError::tensor(&shard, &name, wanted, "no such tensor", FETCH_AGAIN));
    }
    put_together(described, sources, headers, &renaming)
}

pub(super) fn assemble(described: Configuration, files: Vec<Source>) -> Result<Checkpoint> {
    let headers = headers(&files)?;
    let renaming = renaming(&described, &headers);
    put_together(described, files, headers, &renaming)
}

/// The headers of all files. For a file that cannot be read, the error says what it is, if it can be recognised.
fn headers(files: &[Source]) -> Result<Vec<Vec<Described>>> {
    /// Enough of a file to recognise it by.
    const BEGINNING: usize = 1 << 16;
    let read = |source: &Source| {
        header::read(&source.name, &source.bytes).map_err(|error| {
            let beginning = source.bytes.range(0..source.bytes.len().min(BEGINNING));
            match beginning.ok().and_then(|bytes| content::recognise_binary(&bytes)) {
                Some(found) => other(&source.name, "a safetensors file", found),
                None => error,
            }
        })
    };
    files.iter().map(read).collect()
}

fn renaming(described: &Configuration, headers: &[Vec<Described>]) -> Renaming {
    let numbers = headers.iter().flatten().filter(|tensor| packed::split(tensor).is_none());
    Renaming::of(&described.places, numbers.map(|tensor| tensor.name.as_str()))
}

fn put_together(
    described: Configuration,
    files: Vec<Source>,
    headers: Vec<Vec<Described>>,
    renaming: &Renaming,
) -> Result<Checkpoint> {
    let Configuration { config, mut warnings, places } = described;
    let (mut tensors, mut stored_forms) = (BTreeMap::new(), BTreeMap::new());
    for (file, tensor) in
        headers.into_iter().enumerate().flat_map(|(file, all)| all.into_iter().map(move |t| (file, t)))
    {
        if let Some((name, form)) = packed::split(&tensor) {
            let (name, Described { name: stored, dtype, shape, range }) = (name.to_owned(), tensor.clone());
            let entry = Entry { file, stored, dtype, shape, range };
            if stored_forms.insert(name, (form, entry)).is_some() {
                let fix = "remove one of the two";
                return Err(CheckpointError::tensor(&files[file].name, &tensor.name, "one form", "another too", fix));
            }
            continue;
        }
        let name = renaming.apply(&tensor.name);
        if places.ignores(&name) {
            continue;
        }
        let Described { name: stored, dtype, shape, range } = tensor;
        let entry = Entry { file, stored: stored.clone(), dtype, shape, range };
        if let Some(Entry { stored: first, .. }) = tensors.insert(name, entry) {
            let got = format!("`{first}` too, which is the same tensor");
            let fix = "remove one of the two";
            return Err(CheckpointError::tensor(&files[file].name, &stored, "one such tensor", got, fix));
        }
    }
    let about = files.first().map_or(SINGLE, |file| file.name.as_str());
    warnings.extend(renaming.notices().into_iter().map(|notice| format!("{about}: {notice}")));
    let mut checkpoint = Checkpoint { config, warnings, places, files, tensors, packed: stored_forms };
    check_tied(&mut checkpoint)?;
    Ok(checkpoint)
}

/// A model with a tied head may store it twice, if both are equal; one of them is enough, under either name.
fn check_tied(checkpoint: &mut Checkpoint) -> Result<()> {
    if !checkpoint.config.stack.model.tie_embeddings {
        return Ok(());
    }
    let [embedding_name, head_name] = checkpoint.places.ends();
    let Some(head) = checkpoint.tensors.remove(&head_name) else { return Ok(()) };
    let Some(embedding) = checkpoint.tensors.get(&embedding_name) else {
        checkpoint.tensors.insert(embedding_name, head);
        return Ok(());
    };
    let same =
        (head.dtype, &head.shape) == (embedding.dtype, &embedding.shape) && checkpoint.same_bytes(&head, embedding)?;
    if same {
        return Ok(());
    }
    Err(CheckpointError::tensor(
        &checkpoint.files[head.file].name,
        &head.stored,
        format_args!("the same values as `{}`, since tie_embeddings is true", embedding.stored),
        "others",
        "set tie_word_embeddings (tie_embeddings in the original layout) to false in config.json to use both",
    ))
}
