//! Building blocks of the maps from elapid's names of tensors to those of a format.
//!
//! elapid's side: `backbone.embeddings.weight`, in layer i `backbone.layers.i.{norm,mixer,ffn_norm,ffn}.…`,
//! `backbone.norm_f.weight`, `lm_head.weight`. Projections that read the same input are one matrix: `mixer.qkv` has the
//! rows of q, then of k, then of v; `ffn.up` those of the gate, then of what it gates; experts are stacked.

use serde_json::{Map, Value};

use super::places::{EMBEDDING, HEAD};
use super::stored::{Stored, file};

/// A configuration of which a format's map reads sizes.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a>(pub &'a Map<String, Value>);

/// A key that a format's map needs and does not find.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: `{key}`: wanted {wanted}, got {got}")]
pub struct MissingKey {
    /// The key.
    pub key: String,
    /// What would do.
    pub wanted: &'static str,
    /// What is there.
    pub got: String,
}

/// The result of a format's map.
pub type Result<T, E = MissingKey> = std::result::Result<T, E>;

impl Config<'_> {
    fn wrong(&self, key: &str, wanted: &'static str) -> MissingKey {
        let got = self.0.get(key).map_or("nothing".into(), Value::to_string);
        MissingKey { key: key.into(), wanted, got }
    }

    /// A size.
    ///
    /// # Errors
    /// If it is not there or no whole number.
    pub fn size(&self, key: &str) -> Result<usize> {
        let size = self.0.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// A size, or another if it is absent or null.
    ///
    /// # Errors
    /// If it is no whole number.
    pub fn size_or(&self, key: &str, other: impl FnOnce() -> Result<usize>) -> Result<usize> {
        if self.0.get(key).is_none_or(Value::is_null) { other() } else { self.size(key) }
    }

    /// Whether a key is there and true.
    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A list of words.
    ///
    /// # Errors
    /// If it is not there or no list of strings.
    pub fn words(&self, key: &str) -> Result<Vec<&str>> {
        let list = self.0.get(key).and_then(Value::as_array);
        let words = list.and_then(|list| list.iter().map(Value::as_str).collect());
        words.ok_or_else(|| self.wrong(key, "a list of words"))
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// If it is not there or no such list.
    pub fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        let list = self.0.get(key).and_then(Value::as_array);
        let sizes = list.and_then(|list| list.iter().map(|size| usize::try_from(size.as_u64()?).ok()).collect());
        sizes.ok_or_else(|| self.wrong(key, "a list of whole numbers"))
    }

    /// Whether the head is the embedding, which is the default of `transformers`.
    pub fn tied(&self) -> bool {
        self.0.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true)
    }

    /// Rows of q, k and v of grouped-query attention.
    ///
    /// # Errors
    /// If a size is not there.
    pub fn qkv(&self) -> Result<[usize; 3]> {
        let heads = self.size("num_attention_heads")?;
        let kv = self.size_or("num_key_value_heads", || Ok(heads))?;
        let dim = self.size_or("head_dim", || Ok(self.size("hidden_size")?.checked_div(heads).unwrap_or_default()))?;
        Ok([heads * dim, kv * dim, kv * dim])
    }
}

/// elapid's tensors, each with its place in the file.
#[derive(Debug, Default)]
pub struct Tensors(pub Vec<(String, Stored)>);

/// A module in elapid and in the file.
#[derive(Debug, Clone)]
pub struct Module {
    ours: String,
    theirs: String,
}

impl Module {
    /// A module by its names on both sides.
    pub fn new(ours: impl Into<String>, theirs: impl Into<String>) -> Self {
        Self { ours: ours.into(), theirs: theirs.into() }
    }

    /// Layer i of files that call it `<theirs>.i`.
    pub fn layer(i: usize, theirs: &str) -> Self {
        Self::new(format!("backbone.layers.{i}"), format!("{theirs}.{i}"))
    }

    /// A module inside.
    pub fn sub(&self, ours: &str, theirs: &str) -> Self {
        Self::new(format!("{}.{ours}", self.ours), format!("{}.{theirs}", self.theirs))
    }

    /// The file's tensor of that name in this module.
    pub fn file(&self, name: &str) -> Stored {
        file(format!("{}.{name}", self.theirs))
    }

    /// Experts 0 to n of a list `list` in this module, each with the rows of these weights, stacked.
    pub fn experts(&self, n: usize, list: &str, rows: &[(usize, &str)]) -> Stored {
        let expert = |e: usize| match rows {
            [(_, one)] => self.file(&format!("{list}.{e}.{one}.weight")),
            _ => Stored::Rows(
                rows.iter().map(|(rows, name)| (*rows, self.file(&format!("{list}.{e}.{name}.weight")))).collect(),
            ),
        };
        Stored::Stack((0..n).map(expert).collect())
    }
}

impl Tensors {
    /// A tensor by its whole names.
    pub fn one(&mut self, ours: &str, theirs: &str) {
        self.0.push((ours.into(), file(theirs)));
    }

    /// Tensors of a module that have one name on both sides.
    pub fn same(&mut self, module: &Module, names: &[&str]) {
        names.iter().for_each(|name| self.put(module, name, module.file(name)));
    }

    /// Tensors of a module: elapid's name and the file's.
    pub fn renamed(&mut self, module: &Module, names: &[(&str, &str)]) {
        names.iter().for_each(|(ours, theirs)| self.put(module, ours, module.file(theirs)));
    }

    /// Tensors of modules inside a module (elapid's name and the file's), by names that both sides share.
    pub fn same_in<const N: usize>(&mut self, module: &Module, inside: [(&str, &str); N], names: &[&str]) {
        inside.iter().for_each(|(ours, theirs)| self.same(&module.sub(ours, theirs), names));
    }

    /// A tensor of a module.
    pub fn put(&mut self, module: &Module, ours: &str, stored: Stored) {
        self.0.push((format!("{}.{ours}", module.ours), stored));
    }

    /// Rows of several tensors of the file as one, with a bias each if they have.
    pub fn rows(&mut self, module: &Module, ours: &str, parts: &[(usize, &str)], bias: bool) {
        for kind in if bias { &["weight", "bias"][..] } else { &["weight"] } {
            let part = |(rows, name): &(usize, &str)| (*rows, module.file(&format!("{name}.{kind}")));
            self.put(module, &format!("{ours}.{kind}"), Stored::Rows(parts.iter().map(part).collect()));
        }
    }

    /// The norms before a layer's mixer and before its feed-forward.
    pub fn norms(&mut self, layer: &Module, mixer: &str, ffn: &str) {
        let (mixer, ffn) = (format!("{mixer}.weight"), format!("{ffn}.weight"));
        self.renamed(layer, &[("norm.weight", &mixer), ("ffn_norm.weight", &ffn)]);
    }

    /// A Mamba-2 mixer, its projections with a bias if `mamba_proj_bias` says so.
    pub fn mamba2(&mut self, config: &Config<'_>, mixer: &Module) {
        self.same(mixer, MAMBA2);
        if config.flag("mamba_proj_bias") {
            self.same(mixer, &["in_proj.bias", "out_proj.bias"]);
        }
    }

    /// Attention with q, k and v apart in the file.
    pub fn attention(&mut self, module: &Module, [q, k, v]: [usize; 3], bias: bool, out: &str, out_bias: bool) {
        self.rows(module, "qkv", &[(q, "q_proj"), (k, "k_proj"), (v, "v_proj")], bias);
        self.renamed(module, &[("out_proj.weight", &format!("{out}.weight"))]);
        if out_bias {
            self.renamed(module, &[("out_proj.bias", &format!("{out}.bias"))]);
        }
    }

    /// A gated MLP of width f: gate, up and down as the file calls them.
    pub fn gated_mlp(&mut self, module: &Module, f: usize, [gate, up, down]: [&str; 3], bias: bool) {
        self.rows(module, "up", &[(f, gate), (f, up)], bias);
        self.renamed(module, &[("down.weight", &format!("{down}.weight"))]);
        if bias {
            self.renamed(module, &[("down.bias", &format!("{down}.bias"))]);
        }
    }

    /// Experts 0 to n of width f, in a list `experts`: gate and up of each as one matrix, and down, stacked.
    pub fn experts(&mut self, module: &Module, n: usize, f: usize, [gate, up, down]: [&str; 3]) {
        self.put(module, "experts.up", module.experts(n, "experts", &[(f, gate), (f, up)]));
        self.put(module, "experts.down", module.experts(n, "experts", &[(0, down)]));
    }

    /// Embedding, final norm, and the head unless it is the embedding.
    pub fn ends(&mut self, config: &Config<'_>, [embedding, norm_f, head]: [&str; 3]) {
        self.one(EMBEDDING, embedding);
        self.one("backbone.norm_f.weight", norm_f);
        if !config.tied() {
            self.one(HEAD, head);
        }
    }
}

/// Gate, up and down of most MLPs.
pub const PROJ: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// The same of Mixtral and its relatives.
pub const W: [&str; 3] = ["w1", "w3", "w2"];

/// The tensors of a Mamba-2 mixer, whose names the original code and all of `transformers` share.
pub const MAMBA2: &[&str] =
    &["A_log", "D", "conv1d.bias", "conv1d.weight", "dt_bias", "in_proj.weight", "norm.weight", "out_proj.weight"];

/// The tensors of a Mamba-1 mixer without biases of projections.
pub const MAMBA1: &[&str] = &[
    "A_log",
    "D",
    "conv1d.bias",
    "conv1d.weight",
    "dt_proj.bias",
    "dt_proj.weight",
    "in_proj.weight",
    "out_proj.weight",
    "x_proj.weight",
];
