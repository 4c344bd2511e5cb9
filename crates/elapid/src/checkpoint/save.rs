//! Writing a checkpoint so that a crash leaves the old one or the new one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use elapid_kernels::packed::{Line, Packed};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::card::{self, CARD, Card, GENERATION_CONFIG};
use super::error::{CheckpointError, Result};
use super::reader::{CONFIG, INDEX, SINGLE};
use crate::config::ModelConfig;
use crate::fault;
use crate::files::{self, FileError, Staged, Unnamed, remove_abandoned};
use crate::formats::Places;

/// The dtype written. Precise parameters (`A_log`, `D`) are always F32, because the recurrence needs their precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaveDtype {
    /// 32 bits: exactly the trained values.
    #[default]
    F32,
    /// 16 bits, 11 of them significant; at most 65504.
    F16,
    /// 16 bits, 8 of them significant, with the range of F32.
    BF16,
}

/// How a checkpoint is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveOptions {
    /// The dtype of the values.
    pub dtype: SaveDtype,
    /// Maximum bytes of tensors per file; a larger model is split into shards, and a larger tensor has a shard of its own.
    pub max_shard_bytes: u64,
    /// Ids that end a text, for `generation_config.json`: those of the tokenizer
    /// ([`Tokenizer::end_ids`](crate::tokenizer::Tokenizer::end_ids)); `None`: the configuration's.
    pub end_ids: Option<Vec<u32>>,
    /// The contents of the model card, `README.md`; `None`: none is written. A card that elapid did not write stays.
    pub card: Option<Card>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { dtype: SaveDtype::F32, max_shard_bytes: 5_000_000_000, end_ids: None, card: Some(Card::default()) }
    }
}

impl SaveDtype {
    fn stored(self) -> Dtype {
        match self {
            SaveDtype::F32 => Dtype::F32,
            SaveDtype::F16 => Dtype::F16,
            SaveDtype::BF16 => Dtype::BF16,
        }
    }

    /// Its name in `config.json`.
    fn torch_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "float32",
            SaveDtype::F16 => "float16",
            SaveDtype::BF16 => "bfloat16",
        }
    }

    fn size(self) -> u64 {
        match self {
            SaveDtype::F32 => 4,
            SaveDtype::F16 | SaveDtype::BF16 => 2,
        }
    }

    /// Whether a finite value stays finite.
    fn holds(self, x: f32) -> bool {
        match self {
            SaveDtype::F32 => x.is_finite(),
            SaveDtype::F16 => f16::from_f32(x).is_finite(),
            SaveDtype::BF16 => bf16::from_f32(x).is_finite(),
        }
    }

    fn write(self, data: &[f32], out: &mut impl Write) -> io::Result<()> {
        fn each<const N: usize>(data: &[f32], out: &mut impl Write, bytes: impl Fn(f32) -> [u8; N]) -> io::Result<()> {
            let mut buffer = Vec::with_capacity(4096 * N);
            for part in data.chunks(4096) {
                buffer.clear();
                buffer.extend(part.iter().flat_map(|&x| bytes(x)));
                out.write_all(&buffer)?;
            }
            Ok(())
        }
        match self {
            SaveDtype::F32 => each(data, out, f32::to_le_bytes),
            SaveDtype::F16 => each(data, out, |x| f16::from_f32(x).to_le_bytes()),
            SaveDtype::BF16 => each(data, out, |x| bf16::from_f32(x).to_le_bytes()),
        }
    }
}

/// A parameter to save.
#[derive(Debug, Clone)]
pub struct Named<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Values<'a>,
    /// Whether it is F32 regardless of the dtype option: see [`Role::Precise`](crate::params::Role::Precise).
    pub precise: bool,
}

/// The elements of a parameter to save.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Row after row.
    Numbers(&'a [f32]),
    /// In a stored form: written as bytes under elapid's own name, with the form after a dot (`NAME.int8`).
    Packed(&'a Packed),
}

/// A tensor to write.
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    data: Data<'a>,
}

enum Data<'a> {
    Numbers(Cow<'a, [f32]>, SaveDtype),
    Packed(&'a Packed),
}

impl Tensor<'_> {
    fn bytes(&self) -> u64 {
        match &self.data {
            Data::Numbers(data, dtype) => data.len() as u64 * dtype.size(),
            Data::Packed(packed) => packed.bytes().len() as u64,
        }
    }

    /// Numbers of the parameter.
    fn elements(&self) -> u64 {
        match &self.data {
            Data::Numbers(data, _) => data.len() as u64,
            Data::Packed(packed) => packed.shape().0 as u64 * packed.shape().1 as u64,
        }
    }

    /// Bytes that its place in the file is a multiple of.
    fn alignment(&self) -> u64 {
        match &self.data {
            Data::Numbers(_, dtype) => dtype.size(),
            Data::Packed(_) => Line::BYTES as u64,
        }
    }

    fn dtype(&self) -> Dtype {
        match &self.data {
            Data::Numbers(_, dtype) => dtype.stored(),
            Data::Packed(_) => Dtype::U8,
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match &self.data {
            Data::Numbers(data, dtype) => dtype.write(data, out),
            Data::Packed(packed) => out.write_all(packed.bytes()),
        }
    }
}

/// Writes a model's directory, creating it if necessary.
///
/// All files are first written to disk under temporary names; if that fails, the old checkpoint is unchanged. Then they are
/// renamed in this order: shards, which are named after their content and so never replace those of another checkpoint;
/// `model.safetensors` or the index, which replaces the old weights by the new ones in one step; `config.json`,
/// `generation_config.json` and the model card. Finally, files that the new checkpoint does not use are removed. While only
/// the weights change, as in training, a crash at any moment leaves the old checkpoint or the new one. If the configuration
/// changes too, a crash just before the last rename can leave new weights beside the old configuration; sizes that differ
/// are then detected on opening.
///
/// # Errors
/// If the configuration is impossible, a tensor's size does not match its shape, a value is not finite (in the dtype
/// written), or writing fails.
pub fn save<'a>(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl Iterator<Item = Named<'a>>,
    options: &SaveOptions,
) -> Result<()> {
    config.validate()?;
    let tensors = check(dir, tensors, &config.places(), options.dtype)?;
    fs::create_dir_all(dir).map_err(FileError::io("create", dir))?;
    remove_abandoned(dir);

    let (shards, names) = stage_weights(dir, &tensors, options)?;
    let mut json = config.to_hf_json();
    json["dtype"] = json!(options.dtype.torch_name());
    let generation = card::generation_config(config, options.end_ids.as_deref());
    let mut beside =
        vec![stage_json(&dir.join(CONFIG), &json)?, stage_json(&dir.join(GENERATION_CONFIG), &generation)?];
    if let Some(card) = options.card.as_ref().filter(|_| card::is_ours(dir)) {
        let parameters = tensors.iter().map(Tensor::elements).sum();
        let write = |file: &mut BufWriter<File>| card::write(card, config, parameters, file);
        beside.push(Staged::write(&dir.join(CARD), write)?);
    }

    let sharded = names.len() > 1;
    for file in shards {
        file.commit()?;
    }
    if sharded {
        // Readers prefer the single file if there is one.
        remove(&dir.join(SINGLE))?;
    }
    beside.into_iter().try_for_each(Staged::commit)?;
    remove_unused(dir, &names)
}

/// The tensors as the file has them, in its order: what is packed, 4-byte numbers, 2-byte ones, so that all are aligned; then
/// by name.
fn check<'a>(
    dir: &Path,
    tensors: impl Iterator<Item = Named<'a>>,
    places: &Places,
    dtype: SaveDtype,
) -> Result<Vec<Tensor<'a>>> {
    let file = dir.display().to_string();
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for Named { name, shape, values, precise } in tensors {
        let dtype = if precise { SaveDtype::F32 } else { dtype };
        if !seen.insert(name.clone()) {
            return Err(CheckpointError::tensor(&file, &name, "one such tensor", "two", "give each a name"));
        }
        let data = match values {
            Values::Numbers(data) => data,
            Values::Packed(packed) => {
                let (name, shape) = (format!("{name}.{}", packed.form()), vec![packed.bytes().len()]);
                all.push(Tensor { name, shape, data: Data::Packed(packed) });
                continue;
            }
        };
        let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if elements != Some(data.len()) {
            let wanted = format!("as many numbers as shape {shape:?} has");
            return Err(CheckpointError::tensor(&file, &name, wanted, data.len(), "give the tensor its own shape"));
        }
        if let Some((at, x)) = data.iter().copied().enumerate().find(|(_, x)| !dtype.holds(*x)) {
            let fix =
                if x.is_finite() { "save as BF16 or F32" } else { "the model has diverged: go back to an older one" };
            let wanted = format!("values that are finite in {:?}", dtype.stored());
            return Err(CheckpointError::tensor(&file, &name, wanted, format_args!("{x} at element {at}"), fix));
        }
        places.of(&name).write(&shape, data, &mut |name, shape, data| {
            all.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), data: Data::Numbers(data, dtype) });
            Ok::<_, CheckpointError>(())
        })?;
    }
    all.sort_by(|a, b| (b.alignment(), &a.name).cmp(&(a.alignment(), &b.name)));
    Ok(all)
}

/// Writes the weights under temporary names and returns them in the order of renaming, with the final names except the
/// index.
fn stage_weights(dir: &Path, tensors: &[Tensor], options: &SaveOptions) -> Result<(Vec<Staged>, Vec<String>)> {
    let shards = cut(tensors, options.max_shard_bytes);
    if let [all] = shards.as_slice() {
        let staged = Staged::write(&dir.join(SINGLE), |file| write_tensors(file, all))?;
        return Ok((vec![staged], vec![SINGLE.into()]));
    }
    let (mut files, mut names, mut weight_map) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (i, shard) in shards.iter().enumerate() {
        let mut hash = blake3::Hasher::new();
        let written = Unnamed::write(dir, |file| write_tensors(&mut Hashing { file, hash: &mut hash }, shard))?;
        let hash = hash.finalize().to_hex();
        let name = format!("model-{:05}-of-{:05}-{}.safetensors", i + 1, shards.len(), &hash[..8]);
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
        files.push(written.named(dir.join(&name)));
        names.push(name);
    }
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    files.push(stage_json(&dir.join(INDEX), &json!({"metadata": {"total_size": total}, "weight_map": weight_map}))?);
    Ok((files, names))
}

/// Splits the tensors into runs of at most this many bytes, or of one tensor.
fn cut<'t, 'a>(tensors: &'t [Tensor<'a>], max: u64) -> Vec<&'t [Tensor<'a>]> {
    let (mut shards, mut from, mut bytes) = (Vec::new(), 0, 0_u64);
    for (i, tensor) in tensors.iter().enumerate() {
        bytes += tensor.bytes();
        if bytes > max && i > from {
            shards.push(&tensors[from..i]);
            (from, bytes) = (i, tensor.bytes());
        }
    }
    shards.push(&tensors[from..]);
    shards
}

/// Writes a safetensors file.
fn write_tensors(out: &mut impl Write, tensors: &[Tensor]) -> io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut offset = 0_u64;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let info = json!({"dtype": tensor.dtype(), "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), info);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The tensors begin at a cache line.
    header.resize((header.len() + 8).next_multiple_of(Line::BYTES) - 8, b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|tensor| tensor.write(out))
}

/// A file that is hashed while it is written.
struct Hashing<'a> {
    file: &'a mut BufWriter<File>,
    hash: &'a mut blake3::Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn stage_json(path: &Path, json: &Value) -> Result<Staged> {
    Ok(Staged::write(path, |file| writeln!(file, "{json:#}"))?)
}

/// Removes files of an older checkpoint that the new one does not use, if `save` wrote them: shards whose names have a hash,
/// and an index of such shards. Files of other programs, such as a downloaded checkpoint, stay.
fn remove_unused(dir: &Path, used: &[String]) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(FileError::io("read", dir))?;
    let single = used.iter().any(|name| name == SINGLE);
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let stale_index = name == INDEX && single && is_own_index(&dir.join(&name));
        if stale_index || (is_own_shard(&name) && !used.contains(&name)) {
            remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Whether all shards of an index are ones that `save` wrote.
fn is_own_index(path: &Path) -> bool {
    let index = files::read(path, files::limit::CONFIG).ok();
    let index: Option<Value> = index.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let shards = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    shards.is_some_and(|shards| shards.values().all(|name| name.as_str().is_some_and(is_own_shard)))
}

/// Whether a name is one that `save` gives to a shard, with a hash: `model-00001-of-00002-0123abcd.safetensors`.
fn is_own_shard(name: &str) -> bool {
    let parts = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let parts: Vec<&str> = parts.map(|parts| parts.split('-').collect()).unwrap_or_default();
    let number = |part: &str| part.len() >= 5 && part.bytes().all(|b| b.is_ascii_digit());
    let hash = |part: &str| part.len() == 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(parts[..], [i, "of", n, content] if number(i) && number(n) && hash(content))
}

fn remove(path: &PathBuf) -> Result<()> {
    fault::operation();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path)(error).into()),
        _ => Ok(()),
    }
}
