//! A stack of layers, described by data: one schema for the `[model]` of a training config and for `config.json`.
//!
//! A model is a stack: a repeated pattern of layer names, with an optional feed-forward after each. A name has its settings
//! in `[model.layer.NAME]`: the layer's kind (by default the name itself), the settings of that kind, and its placement in
//! the stream.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::layer::{At, Layer, Layers};
use crate::layers::{KINDS, LayerConfig};
use crate::ops::NormKind;
use crate::params::ParamBuilder;
use crate::settings::{self, Auto, Count, Field, Problem, Settings, Size, commented, nearest, toml_value};
use crate::{Error, Result};

crate::settings! {
    /// `[model]`: the model.
    pub struct ModelSettings {
        /// Width of the residual stream.
        d_model: Size = Size::new(256),
        /// Number of layers. One Mamba block corresponds to about half a layer of a Transformer.
        n_layer: Size = Size::new(4),
        /// Names of the layers, repeated up to n_layer. Each has its settings in [model.layer.NAME].
        layers: Vec<String> = vec!["mamba1".into()],
        /// Names of the feed-forward layers after each layer, repeated in the same way; "none" is no feed-forward. [] is
        /// none at all.
        ffn: Vec<String> = Vec::new(),
        /// Norms: "rms", "rms1" (weight 1 + w), "layer", "layer-no-bias" or "none".
        norm: NormKind = NormKind::Rms,
        /// Added to the mean square or the variance in every norm.
        norm_eps: f32 = 1e-5,
        /// "serial", or "parallel": a layer and its feed-forward read the same stream, each with its own norm (GPT-NeoX).
        wiring: Wiring = Wiring::Serial,
        /// Factor of the embedding.
        embedding_scale: f32 = 1.0,
        /// Norm after the embedding.
        embedding_norm: NormKind = NormKind::None,
        /// Positions added to the embedding: "none", "learned" or "sinusoidal".
        positions: PositionKind = PositionKind::None,
        /// Rows of the table of learned positions.
        max_positions: Count = Count::new(0),
        /// Norm after the last layer; "auto" is the same as the others.
        norm_f: Auto<NormKind> = Auto::Auto,
        /// Its epsilon; "auto" is the same as norm_eps.
        norm_f_eps: Auto<f32> = Auto::Auto,
        /// Factor of the logits.
        logit_scale: f32 = 1.0,
        /// Soft cap c of the logits, which become c tanh(logits / c). 0 disables it.
        logit_softcap: f32 = 0.0,
        /// Whether the output layer is the embedding transposed.
        tie_embeddings: bool = true,
        /// The embedding has as many rows as the tokenizer's vocabulary, rounded up to a multiple of this.
        @init pad_vocab_multiple: Size = Size::new(8),
        /// Standard deviation of the embedding at initialisation.
        @init initializer_range: f32 = 0.02,
        /// Dropout: the share of elements that training sets to 0 in the output of every layer and feed-forward, before it is added
        /// to the stream, ...
        @init dropout: f32 = 0.0,
        /// ... and in the input of the first layer.
        @init embedding_dropout: f32 = 0.0,
        /// Stochastic depth (Huang et al. 2016): the probability that training leaves out the last layer for a row of the batch. It
        /// grows linearly with depth, from 0 for the first layer.
        @init drop_path: f32 = 0.0,
        /// Whether initialisation divides the projections into the stream by the square root of their number.
        @init rescale_prenorm_residual: bool = true,
    }
}

/// Where a sublayer's norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Before the layer: pre-norm.
    #[default]
    Before,
    /// On the sum: post-norm, the original Transformer.
    Sum,
    /// On the layer's output, before it is added.
    Output,
    /// Before the layer, and the layer's output is added to the normed stream.
    Both,
}

/// How the mixer and the feed-forward of one layer are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wiring {
    /// The feed-forward reads the stream after the mixer.
    #[default]
    Serial,
    /// Both read the same stream, each with its own norm, and both are added (GPT-NeoX).
    Parallel,
}

/// Positions that are added to the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionKind {
    /// None.
    #[default]
    None,
    /// A table of parameters, one row per position.
    Learned,
    /// Sines and cosines (Vaswani et al. 2017, section 3.5).
    Sinusoidal,
}

crate::settings! {
    /// The placement of a name in the stream r: `r <- keep r + scale f(norm(r))`.
    pub struct Placement {
        /// Place of the norm: "before" the layer, on the "sum", on the layer's "output", or "both" (before, and the output
        /// is added to the normed stream).
        place: Place = Place::Before,
        /// Factor of the layer's output.
        scale: f32 = 1.0,
        /// Factor of the stream that it is added to.
        keep: f32 = 1.0,
        /// Norm of this name; "auto" is the model's norm.
        norm: Auto<NormKind> = Auto::Auto,
        /// Whether all uses of this name share one set of parameters.
        share: bool = false,
    }
}

/// A layer that has a name in the pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Its kind and settings.
    pub layer: LayerConfig,
    /// Its place in the stream.
    pub placement: Placement,
}

/// A stack of layers, as in `[model]` of a training config.
#[derive(Debug, Clone, PartialEq)]
pub struct StackConfig {
    /// The settings of the model.
    pub model: ModelSettings,
    /// The names in use with their settings, by name.
    pub named: BTreeMap<String, Named>,
}

/// A kind of layer that does not exist, where it is asked for.
#[derive(Debug)]
struct UnknownKind {
    field: String,
    name: String,
    kind: String,
    span: Option<Range<usize>>,
}

/// The word for no feed-forward in a pattern.
const NONE: &str = "none";

/// Upper bound on the number of layers, so that a hostile file cannot exhaust memory.
const MAX_LAYERS: usize = 1 << 16;

/// Settings of Mamba-1 that were in `[model]` itself before layers had names, and are still read there.
const FLAT_KIND: &str = "mamba1";

impl Default for StackConfig {
    fn default() -> Self {
        let mut config = Self { model: ModelSettings::default(), named: BTreeMap::new() };
        // The default names are kinds.
        config.complete("model", &mut Vec::new());
        config
    }
}

impl StackConfig {
    /// Reads the table at `path`: keys of the model, of the layers under `layer`, and flat keys of Mamba-1.
    ///
    /// # Errors
    /// An unknown key, or a value of the wrong type, with its place. Kinds of layers that do not exist are reported last,
    /// all of them in one error, when everything else has been read and [checked](Self::check): nothing else is wrong then.
    /// Their settings cannot be checked.
    pub fn read(path: &str, value: Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        let span = value.span();
        let DeValue::Table(mut table) = value.into_inner() else {
            return Err(Problem { span: Some(span), ..Problem::value(path, "a table", "something else") });
        };
        let mut layers = match take(&mut table, "layer") {
            None => DeTable::new(),
            Some((_, value)) => into_table(&format!("{path}.layer"), value)?,
        };
        move_flat(path, &mut table, &mut layers)?;
        let model: ModelSettings = settings::read(path, Spanned::new(span, DeValue::Table(table)))?;
        let (mut named, mut unknown) = (BTreeMap::new(), Vec::new());
        for (name, value) in layers {
            let (name, at) = (name.get_ref().to_string(), format!("{path}.layer.{}", name.get_ref()));
            match Named::read(&name, &at, value)? {
                Ok(layer) => _ = named.insert(name, layer),
                Err(kind) => unknown.push(kind),
            }
        }
        let mut config = Self { model, named };
        config.complete(path, &mut unknown);
        if unknown.is_empty() {
            return Ok(config);
        }
        config.check(path)?;
        Err(unknown_kinds(path, &unknown))
    }

    /// Adds default settings for names in the pattern that have none; such names must be kinds, or are unknown.
    fn complete(&mut self, path: &str, unknown: &mut Vec<UnknownKind>) {
        let names: Vec<String> = self.names().map(str::to_owned).collect();
        for name in names {
            if self.named.contains_key(&name) || unknown.iter().any(|other| other.name == name) {
                continue;
            }
            match LayerConfig::of(&name) {
                Some(layer) => _ = self.named.insert(name, Named { layer, placement: Placement::default() }),
                None => {
                    let field = if self.model.layers.contains(&name) { "layers" } else { "ffn" };
                    unknown.push(UnknownKind {
                        field: format!("{path}.{field}"),
                        kind: name.clone(),
                        name,
                        span: None,
                    });
                }
            }
        }
    }

    /// The names in the pattern, one or several times.
    fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.model.layers.iter().chain(self.model.ffn.iter().filter(|name| *name != NONE));
        all.map(String::as_str)
    }

    /// The names of layer `i`: the mixer, and the feed-forward if there is one.
    pub fn layer(&self, i: usize) -> (&str, Option<&str>) {
        let at = |names: &'_ [String]| -> Option<usize> { (!names.is_empty()).then(|| i % names.len()) };
        let mixer = at(&self.model.layers).map_or("", |at| self.model.layers[at].as_str());
        let ffn = at(&self.model.ffn).map(|at| self.model.ffn[at].as_str()).filter(|name| *name != NONE);
        (mixer, ffn)
    }

    /// The settings of a name, if they are of this type: `settings_mut::<mamba1::Settings>("mamba1")`.
    pub fn settings_mut<S: Any>(&mut self, name: &str) -> Option<&mut S> {
        self.named.get_mut(name)?.layer.settings_mut()
    }

    /// The placement of a name in the stream.
    pub fn placement(&self, name: &str) -> Placement {
        self.named.get(name).map(|named| named.placement.clone()).unwrap_or_default()
    }

    /// Number of additions to the stream.
    pub fn additions(&self) -> usize {
        (0..self.model.n_layer.get()).map(|i| 1 + usize::from(self.layer(i).1.is_some())).sum()
    }

    /// Checks what types do not.
    ///
    /// # Errors
    /// The first setting with an impossible value.
    pub fn check(&self, path: &str) -> Result<(), Problem> {
        let model = &self.model;
        let (n_layer, limit) = (model.n_layer.get(), format!("at most {MAX_LAYERS}"));
        let fail = |field: &str, wanted: String, got: String| Problem::value(format!("{path}.{field}"), wanted, got);
        if n_layer > MAX_LAYERS {
            return Err(fail("n_layer", limit, n_layer.to_string()));
        }
        if model.layers.is_empty() || model.layers.len() > n_layer {
            return Err(fail("layers", format!("1 to {n_layer} names"), format!("{} names", model.layers.len())));
        }
        if model.ffn.len() > n_layer {
            return Err(fail("ffn", format!("at most {n_layer} names"), format!("{} names", model.ffn.len())));
        }
        let within = |problem: Problem| problem.within(path);
        for (field, x) in [("norm_eps", model.norm_eps), ("norm_f_eps", model.norm_f_eps.or(1.0))] {
            Problem::unless_positive(field, x).map_err(within)?;
        }
        for (field, x) in [("embedding_scale", model.embedding_scale), ("logit_scale", model.logit_scale)] {
            Problem::unless_positive(field, x).map_err(within)?;
        }
        for (field, x) in [("initializer_range", model.initializer_range), ("logit_softcap", model.logit_softcap)] {
            Problem::unless_not_negative(field, x).map_err(within)?;
        }
        for (field, rate) in model.rates() {
            if !(0.0..1.0).contains(&rate) {
                return Err(fail(field, "0 to less than 1".into(), rate.to_string()));
            }
        }
        if (model.positions == PositionKind::Learned) != (model.max_positions.get() > 0) {
            let wanted = if model.max_positions.get() > 0 {
                "0, as positions are not learned"
            } else {
                "1 or more, as positions are learned"
            };
            return Err(fail("max_positions", wanted.into(), model.max_positions.to_string()));
        }
        for (name, named) in &self.named {
            let problem = |problem: Problem| problem.within(&format!("{path}.layer.{name}"));
            for (field, x) in [("scale", named.placement.scale), ("keep", named.placement.keep)] {
                if !x.is_finite() {
                    return Err(problem(Problem::value(field, "a finite number", x)));
                }
            }
            if !self.names().any(|used| used == name) && named.placement != Placement::default() {
                let wanted = "no place in the stream, as it stands in neither layers nor ffn";
                return Err(problem(Problem::value("place", wanted, "words of a place")));
            }
            let beside = model.wiring == Wiring::Parallel && model.ffn.contains(name);
            if beside && named.placement.place != Place::Before {
                let wanted = "\"before\", as model.wiring is \"parallel\"";
                return Err(problem(Problem::value("place", wanted, toml_value(&named.placement.place))));
            }
            named.layer.check(&self.at(0)).map_err(problem)?;
        }
        Ok(())
    }

    /// The place of layer `index`.
    pub fn at(&self, index: usize) -> At<'_> {
        At {
            d_model: self.model.d_model.get(),
            index,
            n_layer: self.model.n_layer.get(),
            additions: self.additions(),
            norm_eps: self.model.norm_eps,
            rescale: self.model.rescale_prenorm_residual,
            layers: self,
            depth: 0,
        }
    }

    /// Whether both compute the same function of the same parameters outside of training: equal in every layer and setting but
    /// those that matter in training alone, whatever the layers are called, "auto" being what it stands for.
    pub fn computes_as(&self, other: &Self) -> bool {
        let layers = |config: &Self| -> Vec<Option<Vec<String>>> {
            let one = |(mixer, ffn): (&str, Option<&str>), i| {
                [Some(mixer), ffn].map(|name| name.and_then(|name| config.meaning(name, i)))
            };
            (0..config.model.n_layer.get()).flat_map(|i| one(config.layer(i), i)).collect()
        };
        let shared = |config: &Self| config.named.values().any(|named| named.placement.share);
        // Shared parameters have names of their own, after the layer's.
        let same_names = !(shared(self) || shared(other))
            || (&self.model.layers, &self.model.ffn) == (&other.model.layers, &other.model.ffn);
        // Layers inside wrappers are named there.
        let inside = |config: &Self| -> Vec<(String, Named)> {
            let used = |name: &String| config.names().any(|one| one == name);
            config
                .named
                .iter()
                .filter(|(name, _)| !used(name))
                .map(|(name, named)| (name.clone(), named.clone()))
                .collect()
        };
        same_names
            && inside(self) == inside(other)
            && self.model.meaning() == other.model.meaning()
            && layers(self) == layers(other)
    }

    /// What a layer's kind, settings and placement say, in text; none if there is no such layer.
    fn meaning(&self, name: &str, index: usize) -> Option<Vec<String>> {
        let Named { layer, placement } = self.named.get(name)?;
        let layer = layer.resolved(&self.at(index));
        let placement = Placement { norm: Auto::Is(placement.norm.or(self.model.norm)), ..placement.clone() };
        let mut all = vec![layer.kind().to_owned()];
        all.extend(lasting(layer.fields(), layer.values()));
        all.extend(lasting(Placement::FIELDS, placement.values()));
        Some(all)
    }

    /// The settings as TOML, each with its documentation as a comment; `path` is the name of the table.
    pub fn to_toml(&self, path: &str) -> String {
        let mut text = format!("[{path}]\n{}", commented(ModelSettings::FIELDS, &self.model.values()));
        for (name, named) in &self.named {
            text += &format!("\n[{path}.layer.{name}]\n{}", named.to_toml());
        }
        text
    }

    /// For all settings: the name after `path`, whether it matters in training alone, and the value.
    pub fn settings(&self) -> Vec<(String, bool, String)> {
        let listed = |prefix: &str, fields: &[Field], values: Vec<String>| -> Vec<(String, bool, String)> {
            let one = |(field, value): (&Field, String)| (format!("{prefix}{}", field.name), field.init, value);
            fields.iter().zip(values).map(one).collect()
        };
        let mut all = listed("", ModelSettings::FIELDS, self.model.values());
        for (name, Named { layer, placement }) in &self.named {
            let prefix = format!("layer.{name}.");
            all.push((format!("{prefix}kind"), false, format!("\"{}\"", layer.kind())));
            all.extend(listed(&prefix, Placement::FIELDS, placement.values()));
            all.extend(listed(&prefix, layer.fields(), layer.values()));
        }
        all
    }

    /// A summary of the layers, equal ones in one line: indices of layers, mixer, feed-forward.
    pub fn describe(&self) -> Vec<(String, String)> {
        let word = |name: &str| match self.named.get(name) {
            Some(named) if named.layer.kind() != name => format!("{name} ({})", named.layer.kind()),
            _ => name.to_owned(),
        };
        let mut lines: Vec<(usize, usize, String)> = Vec::new();
        for i in 0..self.model.n_layer.get() {
            let (mixer, ffn) = self.layer(i);
            let what = ffn.map_or_else(|| word(mixer), |ffn| format!("{}, {}", word(mixer), word(ffn)));
            match lines.last_mut() {
                Some((_, last, same)) if *same == what => *last = i,
                _ => lines.push((i, i, what)),
            }
        }
        let numbers =
            |first, last| if first == last { format!("layer {first}") } else { format!("layers {first}-{last}") };
        lines.into_iter().map(|(first, last, what)| (numbers(first, last), what)).collect()
    }
}

impl ModelSettings {
    /// The rates at which training drops something.
    fn rates(&self) -> [(&'static str, f32); 3] {
        let Self { dropout, embedding_dropout, drop_path, .. } = *self;
        [("dropout", dropout), ("embedding_dropout", embedding_dropout), ("drop_path", drop_path)]
    }

    /// The probability that training leaves out layer `index` for a row of the batch.
    pub fn drop_path_of(&self, index: usize) -> f32 {
        let last = self.n_layer.get().saturating_sub(1);
        if last == 0 { 0.0 } else { (f64::from(self.drop_path) * index as f64 / last as f64) as f32 }
    }

    /// Takes over those rates of `other` that are not the defaults.
    pub fn take_rates_of(&mut self, other: &Self) {
        for (to, from) in [
            (&mut self.dropout, other.dropout),
            (&mut self.embedding_dropout, other.embedding_dropout),
            (&mut self.drop_path, other.drop_path),
        ] {
            *to = if from == 0.0 { *to } else { from };
        }
    }

    /// What the settings say beside the layers' names, in text.
    fn meaning(&self) -> Vec<String> {
        let model = Self {
            layers: Vec::new(),
            ffn: Vec::new(),
            norm: self.norm_f.or(self.norm),
            norm_f: Auto::Is(self.norm_f.or(self.norm)),
            norm_f_eps: Auto::Is(self.norm_f_eps.or(self.norm_eps)),
            ..self.clone()
        };
        lasting(Self::FIELDS, model.values()).collect()
    }
}

/// The values that matter outside of training.
fn lasting(fields: &'static [Field], values: Vec<String>) -> impl Iterator<Item = String> {
    fields.iter().zip(values).filter(|(field, _)| !field.init).map(|(_, value)| value)
}

impl StackConfig {
    /// The settings of a layer that a wrapper names.
    fn inner(&self, name: &str) -> Option<Cow<'_, LayerConfig>> {
        let own = self.named.get(name).map(|named| Cow::Borrowed(&named.layer));
        own.or_else(|| LayerConfig::of(name).map(Cow::Owned))
    }
}

impl Layers for StackConfig {
    fn check(&self, name: &str, at: &At<'_>) -> Result<(), Problem> {
        self.inner(name).ok_or_else(|| unknown_kind("layers", name, name))?.check(at)
    }

    fn build(&self, name: &str, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>> {
        let layer = self.inner(name).ok_or_else(|| Error::Argument(format!("there is no layer `{name}`")))?;
        layer.build(at, p)
    }
}

impl Named {
    /// The settings as TOML, each with its documentation as a comment.
    pub fn to_toml(&self) -> String {
        let mut text = format!("# The kind of layer: {}.\nkind = \"{}\"\n", KINDS.join(", "), self.layer.kind());
        text += &commented(self.layer.fields(), &self.layer.values());
        text + &commented(Placement::FIELDS, &self.placement.values())
    }

    fn read(name: &str, path: &str, value: Spanned<DeValue<'_>>) -> Result<Result<Self, UnknownKind>, Problem> {
        let span = value.span();
        let mut table = into_table(path, value)?;
        let kind = match take(&mut table, "kind") {
            None => name.to_owned(),
            Some((_, value)) => match value.get_ref() {
                DeValue::String(kind) => kind.to_string(),
                _ => return Err(Problem { span: Some(value.span()), ..unknown_kind(path, name, "no text") }),
            },
        };
        let mut placement = DeTable::new();
        for field in Placement::FIELDS {
            if let Some((key, value)) = take(&mut table, field.name) {
                placement.insert(key, value);
            }
        }
        let placement = settings::read(path, Spanned::new(span.clone(), DeValue::Table(placement)))?;
        match LayerConfig::read(&kind, path, Spanned::new(span.clone(), DeValue::Table(table))) {
            Some(layer) => Ok(Ok(Self { layer: layer?, placement })),
            None => Ok(Err(UnknownKind { field: path.to_owned(), name: name.to_owned(), kind, span: Some(span) })),
        }
    }
}

/// Moves flat keys of Mamba-1 to `layer.mamba1`; checks and drops the older key `family`, which named the layers.
fn move_flat<'t>(path: &str, table: &mut DeTable<'t>, layers: &mut DeTable<'t>) -> Result<(), Problem> {
    let Some(flat) = LayerConfig::of(FLAT_KIND) else { return Ok(()) };
    if let Some((_, family)) = take(table, "family") {
        let known = family.get_ref().as_str() == Some(FLAT_KIND);
        if !known {
            let problem =
                unknown_kind(&format!("{path}.family"), "family", family.get_ref().as_str().unwrap_or("no text"));
            return Err(Problem { span: Some(family.span()), ..problem });
        }
    }
    for field in flat.fields() {
        let Some((key, value)) = take(table, field.name) else { continue };
        let span = value.span();
        let entry = layers.entry(Spanned::new(span.clone(), FLAT_KIND.into()));
        let inner = entry.or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        let DeValue::Table(inner) = inner.get_mut() else { continue };
        if inner.insert(key, value).is_some() {
            let field = format!("{path}.{}", field.name);
            let what = format!("it is set here and in {path}.layer.{FLAT_KIND}");
            return Err(Problem { field, span: Some(span), what, fix: "say it once".into() });
        }
    }
    Ok(())
}

/// The problem of all kinds that do not exist.
fn unknown_kinds(path: &str, unknown: &[UnknownKind]) -> Problem {
    let span = unknown.iter().find_map(|one| one.span.clone());
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in unknown {
        kinds.entry(&one.kind).or_default().push(&one.name);
    }
    if let ([one, ..], 1) = (unknown, kinds.len()) {
        return Problem { span, ..unknown_kind(&one.field, &one.name, &one.kind) };
    }
    let word = |(kind, names): (&str, Vec<&str>)| match names.as_slice() {
        [name] if *name == kind => format!("`{kind}`"),
        _ => format!("`{kind}` ({})", names.join(", ")),
    };
    let all: Vec<String> = kinds.into_iter().map(word).collect();
    let what = format!("{} are no kinds of layers; there are {}", all.join(", "), KINDS.join(", "));
    let fix =
        format!("elapid does not have such layers yet, or a name of your own lacks its kind in [{path}.layer.NAME]");
    Problem { field: format!("{path}.layer"), span, what, fix }
}

fn unknown_kind(path: &str, name: &str, kind: &str) -> Problem {
    let kinds: Vec<String> = KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    let near = nearest(kind, &kinds).unwrap_or_default();
    let what = format!("`{kind}` is no kind of layer; there are {}", KINDS.join(", "));
    let fix = format!("did you mean `{near}`? A name of your own has its kind in [model.layer.{name}]");
    Problem { field: path.to_owned(), span: None, what, fix }
}

/// Removes a key with its value.
fn take<'t>(table: &mut DeTable<'t>, key: &str) -> Option<(Spanned<Cow<'t, str>>, Spanned<DeValue<'t>>)> {
    table.remove_entry(key)
}

fn into_table<'t>(path: &str, value: Spanned<DeValue<'t>>) -> Result<DeTable<'t>, Problem> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Ok(table),
        _ => Err(Problem { span: Some(span), ..Problem::value(path, "a table", "a value") }),
    }
}
