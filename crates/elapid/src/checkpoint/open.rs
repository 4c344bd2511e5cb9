//! Finding the files of a checkpoint and putting them together.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::Value;

use super::{
    Bytes, CONFIG, Checkpoint, CheckpointError, EMBEDDING, EMBEDDING_ORIGINAL, Entry, HEAD, INDEX, Result, SINGLE,
    Source, header,
};
use crate::config::ModelConfig;
use crate::files::Map;

const FETCH_AGAIN: &str = "fetch or save the checkpoint again";

/// Which shard has which tensor.
type WeightMap = BTreeMap<String, String>;

pub(super) fn directory(dir: &Path) -> Result<Checkpoint> {
    let shown = |name: &str| dir.join(name).display().to_string();
    let text = |name: &str| -> Result<String> {
        let bytes = Map::open(&dir.join(name))?;
        let text = std::str::from_utf8(&bytes).map(str::to_owned);
        text.map_err(|e| CheckpointError::format(&shown(name), "text in UTF-8", e, FETCH_AGAIN))
    };
    let map = |name: &str| -> Result<Source> {
        Ok(Source { name: shown(name), bytes: Bytes::Mapped(Map::open(&dir.join(name))?) })
    };

    let (config, mut warnings) = ModelConfig::parse(&text(CONFIG)?, &shown(CONFIG))?;
    let (single, index) = (dir.join(SINGLE).exists(), dir.join(INDEX).exists());
    if single {
        if index {
            warnings.push(format!("{}: ignored, because there is {SINGLE}", shown(INDEX)));
        }
        return assemble(config, warnings, vec![map(SINGLE)?]);
    }
    if index {
        let weight_map = read_index(&shown(INDEX), &text(INDEX)?)?;
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let sources = shards.iter().map(|shard| map(shard)).collect::<Result<Vec<_>>>()?;
        return assemble_sharded(config, warnings, sources, &shards, &weight_map, &shown(INDEX));
    }
    for pickle in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if dir.join(pickle).exists() {
            let fix = "pickled files can run programs and are not read; convert it with Python: `import torch; from \
                       safetensors.torch import save_file; save_file({k: v.clone().contiguous() for k, v in \
                       torch.load(\"pytorch_model.bin\", map_location=\"cpu\", weights_only=True).items()}, \
                       \"model.safetensors\")`";
            return Err(CheckpointError::format(&shown(pickle), SINGLE, "only a pickled checkpoint", fix));
        }
    }
    let fix = "give the directory of a checkpoint";
    Err(CheckpointError::format(&dir.display().to_string(), format_args!("{SINGLE} or {INDEX}"), "neither", fix))
}

/// Reads the index and checks that its shards are plain names, so that no file outside the directory is opened.
fn read_index(file: &str, text: &str) -> Result<WeightMap> {
    let wrong = |wanted: &str, got: String| CheckpointError::format(file, wanted, got, FETCH_AGAIN);
    let json: Value = serde_json::from_str(text).map_err(|e| wrong("JSON", e.to_string()))?;
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

fn assemble_sharded(
    config: ModelConfig,
    warnings: Vec<String>,
    sources: Vec<Source>,
    shards: &[&str],
    weight_map: &WeightMap,
    index: &str,
) -> Result<Checkpoint> {
    let mut found = 0;
    for (source, &shard) in sources.iter().zip(shards) {
        for tensor in header::read(&source.name, &source.bytes)? {
            let listed = weight_map.get(&tensor.name).map_or("nowhere", String::as_str);
            if listed != shard {
                let wanted = format!("to be in {shard}, where it is");
                return Err(CheckpointError::tensor(index, &tensor.name, wanted, listed, FETCH_AGAIN));
            }
            found += 1;
        }
    }
    if found != weight_map.len() {
        // No shard has a tensor that is not listed for it, so some listed ones are in none.
        let missing = |source: &Source, shard: &str| -> Result<Option<String>> {
            let here = header::read(&source.name, &source.bytes)?;
            let mut listed = weight_map.iter().filter(|(_, file)| *file == shard).map(|(tensor, _)| tensor);
            Ok(listed.find(|name| here.iter().all(|tensor| tensor.name != **name)).cloned())
        };
        for (source, &shard) in sources.iter().zip(shards) {
            if let Some(name) = missing(source, shard)? {
                let wanted = format!("to find it, as {index} says");
                return Err(CheckpointError::tensor(&source.name, &name, wanted, "no such tensor", FETCH_AGAIN));
            }
        }
    }
    assemble(config, warnings, sources)
}

pub(super) fn assemble(config: ModelConfig, warnings: Vec<String>, files: Vec<Source>) -> Result<Checkpoint> {
    let mut tensors = BTreeMap::new();
    for (file, source) in files.iter().enumerate() {
        for tensor in header::read(&source.name, &source.bytes)? {
            let name = if tensor.name == EMBEDDING_ORIGINAL { EMBEDDING } else { &tensor.name };
            let entry = Entry { file, dtype: tensor.dtype, shape: tensor.shape, range: tensor.range };
            if tensors.insert(name.to_owned(), entry).is_some() {
                let fix = "remove one of the two";
                return Err(CheckpointError::tensor(&source.name, &tensor.name, "one such tensor", "two", fix));
            }
        }
    }
    let mut checkpoint = Checkpoint { config, warnings, files, tensors };
    check_tied(&mut checkpoint)?;
    Ok(checkpoint)
}

/// A model whose head is its embedding may store it twice, if both are the same; one is then enough.
fn check_tied(checkpoint: &mut Checkpoint) -> Result<()> {
    if !checkpoint.config.tie_embeddings {
        return Ok(());
    }
    let (Some(head), Some(embedding)) = (checkpoint.tensors.get(HEAD), checkpoint.tensors.get(EMBEDDING)) else {
        return Ok(());
    };
    let same = (head.dtype, &head.shape) == (embedding.dtype, &embedding.shape)
        && checkpoint.bytes(head) == checkpoint.bytes(embedding);
    if !same {
        return Err(CheckpointError::tensor(
            &checkpoint.files[head.file].name,
            HEAD,
            format_args!("the same numbers as `{EMBEDDING}`, since tie_embeddings is true"),
            "others",
            "set tie_word_embeddings (tie_embeddings in the original layout) to false in config.json to use both",
        ));
    }
    checkpoint.tensors.remove(HEAD);
    Ok(())
}
