//! `training.safetensors`: the optimiser's moments, the progress of the run, and checksums of all files of the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use elapid::LanguageModel;
use elapid::checkpoint::Checkpoint;
use elapid::files::{self, Elements, FileError, TensorFile, atomic_write, write_tensors};
use safetensors::Dtype;
use serde_json::json;

use super::saved::{Digest, Identity, Position, Saved};
use crate::{Error, Result, shell_word};

const FILE: &str = "training.safetensors";
/// The state of streams.
pub(super) const STATE: &str = "stream.state";
/// The seconds trained. They differ between equal runs, whose other files have the same bytes.
const TIME: &str = "time.json";
const FORMAT: &str = "elapid-training";
const VERSION: &str = "2";

/// Why a checkpoint cannot be resumed from.
pub(super) enum Problem {
    /// It is incomplete or damaged; an older one may work.
    Damaged(Error),
    /// It is complete, but from another run or program.
    Other(Error),
}

impl Problem {
    pub(super) fn damaged(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Damaged(Error::Resume { path: path.to_owned(), reason: format!("it is damaged: {reason}") })
    }

    pub(super) fn into_error(self) -> Error {
        let (Self::Damaged(error) | Self::Other(error)) = self;
        error
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The metadata of a checkpoint.
pub(super) struct Read {
    pub(super) position: Position,
    pub(super) identity: Identity,
    pub(super) has_state: bool,
}

/// Writes everything except the model and its tokenizer into a checkpoint's folder.
pub(super) fn write(dir: &Path, saved: &Saved<'_>) -> Result<()> {
    let (position, identity) = (&saved.position, saved.identity);
    let seconds = json!({ "seconds": position.seconds });
    atomic_write(&dir.join(TIME), |file| writeln!(file, "{seconds}"))?;
    let mut notes: BTreeMap<String, String> = [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("step", position.step.to_string()),
        ("tokens", position.tokens.to_string()),
        ("stale", position.stale.to_string()),
        ("accurate", position.accurate.to_string()),
        ("unlogged_loss", position.unlogged.0.to_string()),
        ("unlogged_steps", position.unlogged.1.to_string()),
        ("data", identity.data.clone()),
        ("measure", identity.measure.clone()),
        ("weights", Digest::of(saved.model.params())?),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    notes.extend(position.best.map(|best| ("best".to_owned(), best.to_string())));
    if let Some(state) = saved.carried {
        state.save(&dir.join(STATE), saved.model.fingerprint()?, &[])?;
        notes.insert("state".to_owned(), hash(&dir.join(STATE))?);
    }
    let tensors = moments(saved)?;
    let mut digest = Digest::default();
    notes.iter().for_each(|(key, value)| [key, value].into_iter().for_each(|text| digest.text(text)));
    tensors.iter().for_each(|tensor| digest.tensor(&tensor.name, &tensor.data));
    notes.insert("checksum".to_owned(), digest.finish());
    Ok(write_tensors(&dir.join(FILE), &notes, &tensors)?)
}

/// Both moments of every parameter, ordered by the parameters' names.
fn moments(saved: &Saved<'_>) -> Result<Vec<Elements>> {
    let names = saved.model.params().iter().map(|(_, param)| &param.name);
    let mut all: Vec<_> = names.zip(saved.optimiser.means()?).collect();
    all.sort_by(|a, b| a.0.cmp(b.0));
    let both = |(name, [m, v]): (&String, [Vec<f32>; 2])| {
        [("m", m), ("v", v)].map(|(prefix, data)| Elements {
            name: format!("{prefix}.{name}"),
            shape: vec![data.len()],
            data,
        })
    };
    Ok(all.into_iter().flat_map(both).collect())
}

/// Reads a checkpoint and verifies all checksums. `take` receives the moments of every parameter.
pub(super) fn read(dir: &Path, take: &mut dyn FnMut(&str, [Vec<f32>; 2])) -> Result<Read, Problem> {
    let path = dir.join(FILE);
    let damaged = |reason: String| Problem::damaged(&path, reason);
    let file = TensorFile::open(&path).map_err(|error| damaged(error.to_string()))?;
    let notes: BTreeMap<&str, &str> = file.notes().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let note = |key: &str| notes.get(key).copied().unwrap_or_default();
    check_version(dir, note("format"), note("version"))?;
    let checkpoint = Checkpoint::open(dir).map_err(|error| Problem::damaged(dir, error))?;
    let mut weights = Digest::default();
    let mut digest = Digest::default();
    let signed = notes.iter().filter(|(key, _)| **key != "checksum");
    signed.for_each(|(key, value)| [key, value].into_iter().for_each(|text| digest.text(text)));
    // By the names that elapid gives parameters, whatever the format of the weights.
    let outline = LanguageModel::outline(&checkpoint.config).map_err(|error| Problem::damaged(dir, error))?;
    let shapes: BTreeMap<String, Vec<usize>> = outline.into_iter().collect();
    let own = |name: &String| name.strip_prefix("m.").map(str::to_owned);
    let names: BTreeSet<String> = file.names().iter().filter_map(own).collect();
    if let Some(lacking) = shapes.keys().find(|name| !names.contains(*name)) {
        return Err(damaged(format!("tensor `m.{lacking}` is missing")));
    }
    for name in &names {
        let shape = shapes.get(name).map(Vec::as_slice).or_else(|| checkpoint.shape(name)).unwrap_or_default();
        let elements = checkpoint.tensor(name, shape).map_err(|error| Problem::damaged(dir, error))?;
        weights.tensor(name, &elements);
        let both = ["m", "v"].map(|prefix| moment(&file, &format!("{prefix}.{name}"), elements.len(), &mut digest));
        let [m, v] = both.map(|moment| moment.map_err(damaged));
        take(name, [m?, v?]);
    }
    if digest.finish() != note("checksum") {
        return Err(damaged("its checksum is wrong".into()));
    }
    if weights.finish() != note("weights") {
        return Err(Problem::damaged(dir, format!("its weights do not match {FILE}")));
    }
    let has_state = notes.contains_key("state");
    if has_state && hash(&dir.join(STATE)).map_err(|error| Problem::damaged(dir, error))? != note("state") {
        return Err(Problem::damaged(&dir.join(STATE), "its checksum is wrong"));
    }
    let position = position(dir, &notes).map_err(|field| {
        let path = dir.join(if field == "seconds" { TIME } else { FILE });
        Problem::damaged(&path, format!("`{field}` is missing or not a finite number"))
    })?;
    let identity = Identity { data: note("data").to_owned(), measure: note("measure").to_owned() };
    Ok(Read { position, identity, has_state })
}

/// Files of the first version had no `format`.
fn check_version(dir: &Path, format: &str, version: &str) -> Result<(), Problem> {
    let path = dir.join(FILE);
    match (format, version) {
        (FORMAT, VERSION) => Ok(()),
        (FORMAT, _) | ("", "1") => {
            let reason = format!(
                "another version of elapid wrote it (format `{version}`, this one reads {VERSION}); begin a new run from \
                 its weights by --from {}",
                shell_word(dir)
            );
            Err(Problem::Other(Error::Resume { path, reason }))
        }
        _ => Err(Problem::damaged(&path, "it has no description of its contents")),
    }
}

/// A moment of a parameter of `len` elements.
fn moment(file: &TensorFile, name: &str, len: usize, digest: &mut Digest) -> Result<Vec<f32>, String> {
    match file.shape(name) {
        Some((Dtype::F32, [n])) if *n == len => {}
        Some((dtype, shape)) => return Err(format!("tensor `{name}`: wanted F32 [{len}], got {dtype:?} {shape:?}")),
        None => return Err(format!("tensor `{name}` is missing")),
    }
    let moment = file.f32(name).map_err(|error| error.to_string())?;
    if let Some(at) = moment.iter().position(|x| !x.is_finite()) {
        return Err(format!("tensor `{name}`: element {at} is not finite"));
    }
    digest.tensor(name, &moment);
    Ok(moment)
}

fn position(dir: &Path, notes: &BTreeMap<&str, &str>) -> Result<Position, &'static str> {
    fn field<T: FromStr>(notes: &BTreeMap<&str, &str>, name: &'static str) -> Result<T, &'static str> {
        notes.get(name).and_then(|value| value.parse().ok()).ok_or(name)
    }
    let time = files::read_text(&dir.join(TIME), 1 << 10).ok();
    let time: Option<serde_json::Value> = time.and_then(|text| serde_json::from_str(&text).ok());
    let seconds = time.and_then(|time| time["seconds"].as_f64()).filter(|seconds| *seconds >= 0.0);
    // Earlier versions did not have it.
    let unlogged = match notes.contains_key("unlogged_steps") {
        true => (field(notes, "unlogged_loss")?, field(notes, "unlogged_steps")?),
        false => (0.0, 0),
    };
    let best: Option<f64> = notes.contains_key("best").then(|| field(notes, "best")).transpose()?;
    Ok(Position {
        step: field(notes, "step")?,
        tokens: field(notes, "tokens")?,
        seconds: seconds.ok_or("seconds")?,
        stale: field(notes, "stale")?,
        accurate: field(notes, "accurate")?,
        unlogged,
        best: best.map(|best| if best.is_finite() { Ok(best) } else { Err("best") }).transpose()?,
    })
}

fn hash(path: &Path) -> Result<String, FileError> {
    let bytes = files::RegularFile::open(path)?;
    let mut hasher = blake3::Hasher::new();
    bytes.windows(0..bytes.len(), |part| {
        hasher.update(part);
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}
