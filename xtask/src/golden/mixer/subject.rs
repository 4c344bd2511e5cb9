//! What a class says of a file: the layer for it, and where its parameters are.

use anyhow::{Context, Result, bail};
use elapid::config::Place;
use elapid::formats::stored::Stored;
use elapid::layers::LayerConfig;
use serde_json::{Map, Value};

use crate::golden::record::{Golden, Report};

/// The `config` of a file, of which every key has to be read.
pub(super) struct Keys {
    pub(super) left: Map<String, Value>,
}

impl Keys {
    /// An error for a key that nobody has read.
    pub(super) fn all_read(&self) -> Result<()> {
        match self.left.iter().next() {
            None => Ok(()),
            Some((key, value)) => bail!("config: `{key}` = {value} is not understood"),
        }
    }

    /// The sizes of the batch, which the shape of x says too.
    pub(super) fn batch(&mut self) -> Result<()> {
        self.size("b")?;
        self.size("l").map(drop)
    }

    pub(super) fn take(&mut self, key: &str) -> Result<Value> {
        self.left.remove(key).with_context(|| format!("config: no key `{key}`"))
    }

    /// A key that may be absent.
    pub(super) fn optional(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    pub(super) fn size(&mut self, key: &str) -> Result<usize> {
        let value = self.take(key)?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.with_context(|| format!("config: `{key}`: wanted a size, got {value}"))
    }

    pub(super) fn sizes(&mut self, key: &str) -> Result<Vec<usize>> {
        let value = self.take(key)?;
        let size = |size: &Value| usize::try_from(size.as_u64()?).ok();
        let sizes = value.as_array().and_then(|list| list.iter().map(size).collect());
        sizes.with_context(|| format!("config: `{key}`: wanted sizes, got {value}"))
    }

    pub(super) fn real(&mut self, key: &str) -> Result<f64> {
        let value = self.take(key)?;
        value.as_f64().with_context(|| format!("config: `{key}`: wanted a number, got {value}"))
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool> {
        let value = self.take(key)?;
        value.as_bool().with_context(|| format!("config: `{key}`: wanted true or false, got {value}"))
    }

    pub(super) fn word(&mut self, key: &str) -> Result<String> {
        let value = self.take(key)?;
        value.as_str().map(str::to_owned).with_context(|| format!("config: `{key}`: wanted a word, got {value}"))
    }
}

/// A layer of elapid for a file, and where its parameters are there.
pub(super) struct Subject {
    pub(super) layer: LayerConfig,
    /// Width of the input.
    pub(super) d: usize,
    /// elapid's parameters as expressions over those of the file, without `param.`.
    pub(super) params: Vec<(&'static str, Stored)>,
    /// Positions of a document that the runs from a recorded state have behind them.
    pub(super) start: u64,
    /// A layer norm with this epsilon in this place of a residual stream around the layer; none: the layer alone.
    pub(super) norm: Option<(Place, f32)>,
}

/// A comparison before that of the layer; whether the layer is to be compared too.
pub(super) type Also = fn(&Golden<'_>, &Subject, &mut Report) -> Result<bool>;

/// A class that elapid has: whether a file is of it, and the layer for the file.
pub(super) struct Class {
    pub(super) matches: fn(source: &str, config: &Map<String, Value>) -> bool,
    pub(super) subject: fn(&mut Keys) -> Result<Subject>,
    /// What is compared besides.
    pub(super) also: Option<Also>,
}
