//! What models of flash-linear-attention share: a mixer of their own, softmax attention in some layers instead, and a gated MLP after
//! each. The keys that begin with `fuse_` choose kernels; one of them, tensors' names.

use std::any::Any;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::names::{Config, Module, PROJ, Result as Mapped, Tensors};
use super::transformer::{ffn, mixer, settings_of};
use super::values::{named, read_ends, real, with_ends};
use crate::config::{ConfigError, ModelConfig, ModelSettings, Named, Placement, StackConfig};
use crate::layers::mlp::{self, Activation};
use crate::layers::{LayerConfig, attention};
use crate::settings::{Auto, Count, Size};

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Keys from which tensors' names follow, and nothing else.
pub(super) const NAMING: &[&str] = &["fuse_norm"];

/// What settings are called in a file of the library.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("heads", "num_heads"),
    ("width", "intermediate_size"),
    ("key_dim", "expand_k"),
    ("value_dim", "expand_v"),
];

/// The norm of heads before a gate, which has another name where one kernel computes both.
pub(super) fn norm_name(config: &Config<'_>) -> &'static str {
    let fused = !is_false(config, "fuse_norm") && !is_false(config, "use_output_gate");
    if fused { "g_norm_swish_gate.weight" } else { "g_norm.weight" }
}

/// Whether a key is there and false.
pub(super) fn is_false(config: &Config<'_>, key: &str) -> bool {
    config.0.get(key).is_some_and(|value| *value == false)
}

/// The width of an MLP that says none: two thirds of `ratio` times the model's, in multiples of 256.
fn width(d_model: usize, ratio: usize) -> usize {
    (d_model.saturating_mul(2 * ratio) / 3).next_multiple_of(256).max(1)
}

/// Columns of all heads: `expand` times the width of the model.
pub(super) fn expanded(config: &Config<'_>, key: &str, default: f64) -> Mapped<usize> {
    let expand = config.0.get(key).and_then(Value::as_f64).unwrap_or(default);
    Ok((expand * config.size("hidden_size")? as f64).round() as usize)
}

/// Columns of one head of so many, which are `key` times the width of the model together.
pub(super) fn head_dim(
    fields: &mut Fields,
    key: &'static str,
    default: f64,
    d_model: Size,
    heads: Size,
) -> Result<Size> {
    let value = fields.get(key).cloned().unwrap_or_else(|| json!(default));
    let all = value.as_f64().map_or(0.0, |expand| expand * d_model.get() as f64);
    let (whole, heads) = (all.round(), heads.get());
    let dim = if (all - whole).abs() < 1e-6 * all { whole as usize / heads } else { 0 };
    let size = Size::checked(dim).filter(|_| (whole as usize).is_multiple_of(heads));
    let wanted = format!("a number that makes {heads} equal heads of hidden_size, {d_model}");
    size.ok_or_else(|| fields.error(key, &wanted, &value, "give the number that the weights have"))
}

/// The number that says so many columns of every head.
pub(super) fn expand(dim: Auto<Size>, heads: Size, config: &ModelConfig) -> Value {
    json!((dim.map_or(0, Size::get) * heads.get()) as f64 / config.d_model() as f64)
}

/// A key that must be false or absent, as elapid's layer does not have what it says.
pub(super) fn lacks(fields: &mut Fields, keys: &[&'static str]) -> Result<()> {
    for &key in keys {
        fields.never(key, "elapid does not have this variant of the layer")?;
    }
    Ok(())
}

/// A flag that must be true or absent.
pub(super) fn always(fields: &mut Fields, key: &'static str) -> Result<()> {
    match fields.flag(key, true)? {
        true => Ok(()),
        false => Err(fields.error(key, "true", &Value::Bool(false), "elapid does not have this variant of the layer")),
    }
}

/// A key that must be absent or null.
pub(super) fn nothing(fields: &mut Fields, key: &'static str) -> Result<()> {
    match fields.given(key) {
        None => Ok(()),
        Some(value) => Err(fields.error(key, "null", value, "elapid does not have this variant of the model")),
    }
}

/// Heads of keys and values: as many as of queries.
pub(super) fn heads(fields: &mut Fields, default: usize) -> Result<Size> {
    let heads: Size = fields.bounded("num_heads", Size::new(default))?;
    match fields.optional::<1>("num_kv_heads")? {
        Some(kv) if kv != heads => {
            let wanted = format!("null or num_heads, {heads}");
            Err(fields.error(
                "num_kv_heads",
                &wanted,
                &json!(kv),
                "elapid does not share keys and values of this layer",
            ))
        }
        _ => Ok(heads),
    }
}

/// Reads a configuration: `mixer` reads the keys of its mixer, from the width of the model.
pub(super) fn read(
    fields: &mut Fields,
    ratio: usize,
    mixer: impl FnOnce(&mut Fields, Size) -> Result<LayerConfig>,
) -> Result<ModelConfig> {
    fields.only("hidden_act", &["swish", "silu"], "elapid does not have this activation here")?;
    fields.get("attn_mode"); // Chooses a kernel.
    nothing(fields, "attnres_block_size")?;
    let (d_model, n_layer): (Size, Size) =
        (fields.bounded("hidden_size", Size::new(2048))?, fields.bounded("num_hidden_layers", Size::new(24))?);
    let ratio = match fields.get("hidden_ratio") {
        None => ratio,
        Some(Value::Null) => 4,
        Some(_) => fields.required::<1>("hidden_ratio")?.get(),
    };
    let said = fields.optional("intermediate_size")?;
    let mlp = mlp::Settings {
        width: Auto::Is(said.unwrap_or(Size::new(width(d_model.get(), ratio)))),
        activation: Activation::Silu,
        ..mlp::Settings::default()
    };
    let norm_eps = fields.real("norm_eps", 1e-6)?;
    let mixer = mixer(fields, d_model)?;
    let mut layers = vec![mixer.kind().to_owned(); n_layer.get()];
    let mut all = vec![named(mixer), named(LayerConfig::mlp(mlp))];
    for (i, (at, attention)) in specs(fields, n_layer.get())?.into_iter().enumerate() {
        let name = if i == 0 { "attention".to_owned() } else { format!("attention{}", i + 1) };
        at.iter().for_each(|&at| layers[at].clone_from(&name));
        all.push((name, Named { layer: LayerConfig::attention(attention), placement: Placement::default() }));
    }
    let model = ModelSettings {
        d_model,
        n_layer,
        layers,
        ffn: vec!["mlp".into()],
        norm_eps,
        tie_embeddings: fields.flag("tie_word_embeddings", false)?,
        pad_vocab_multiple: Size::new(1),
        initializer_range: fields.real("initializer_range", 0.02)?,
        rescale_prenorm_residual: false,
        ..ModelSettings::default()
    };
    let used = |name: &String| model.layers.iter().chain(&model.ffn).any(|one| one == name);
    let named = all.into_iter().filter(|(name, _)| used(name)).collect();
    read_ends(fields, 32000, StackConfig { model, named }, [Some(1), Some(2), None])
}

/// The softmax attention that `attn` says, each with the numbers of its layers.
fn specs(fields: &mut Fields, n_layer: usize) -> Result<Vec<(Vec<usize>, attention::Settings)>> {
    let Some(value) = fields.given("attn") else { return Ok(Vec::new()) };
    let list = match value {
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    };
    let mut all: Vec<(Vec<usize>, attention::Settings)> = Vec::new();
    for one in list {
        let Value::Object(map) = one else {
            return Err(fields.error("attn", "an object, or several", value, "correct it"));
        };
        let mut inner = Fields::new(fields.file, "attn.", map, &[])?;
        let heads: Size = inner.required("num_heads")?;
        let attention = attention::Settings {
            heads,
            kv_heads: Auto::Is(inner.optional("num_kv_heads")?.unwrap_or(heads)),
            window: inner.optional("window_size")?.unwrap_or(Count::new(0)),
            rope_base: inner.optional_real("rope_theta")?.unwrap_or(10000.0),
            qkv_bias: inner.flag("qkv_bias", false)?,
            ..attention::Settings::default()
        };
        let said = inner.get("layers").unwrap_or(&Value::Null);
        let taken: Vec<usize> = all.iter().flat_map(|(at, _)| at.clone()).collect();
        let index =
            |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|i| *i < n_layer && !taken.contains(i));
        let at = said.as_array().and_then(|list| list.iter().map(index).collect::<Option<Vec<_>>>());
        let wanted = format!("numbers below {n_layer}, each once");
        let at = at.ok_or_else(|| inner.error("layers", &wanted, said, "correct it"))?;
        inner.no_unknown("elapid does not know what it means; remove it if the default is right")?;
        all.push((at, attention));
    }
    Ok(all)
}

/// The keys of a model whose mixer has settings S, those of the mixer from `mixer`.
pub(super) fn write<S: Any + Clone>(
    config: &ModelConfig,
    [model_type, class]: [&str; 2],
    mixer_keys: impl FnOnce(&S) -> Value,
) -> Option<Map<String, Value>> {
    let settings: S = settings_of(config, |i| Some(config.stack.layer(i).0))?;
    let mlp: mlp::Settings = ffn(config)?;
    let mut specs: Vec<(attention::Settings, Vec<usize>)> = Vec::new();
    for i in 0..config.n_layer() {
        let Some(attention) = mixer(config, i) else { continue };
        match specs.iter_mut().find(|(other, _)| *other == attention) {
            Some((_, at)) => at.push(i),
            None => specs.push((attention, vec![i])),
        }
    }
    let spec = |(attention, at): &(attention::Settings, Vec<usize>)| {
        json!({
            "layers": at,
            "num_heads": attention.heads,
            "num_kv_heads": attention.kv_heads.or(attention.heads),
            "qkv_bias": attention.qkv_bias,
            "window_size": (attention.window.get() > 0).then_some(attention.window),
            "rope_theta": real(attention.rope_base),
        })
    };
    let mut map = with_ends(
        config,
        json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": config.padded_vocab_size(),
            "hidden_size": config.d_model(),
            "num_hidden_layers": config.n_layer(),
            "intermediate_size": mlp.width,
            "hidden_act": "swish",
            "norm_eps": real(config.stack.model.norm_eps),
            "initializer_range": real(config.stack.model.initializer_range),
            "attn": match specs.as_slice() {
                [] => Value::Null,
                [one] => spec(one),
                several => several.iter().map(spec).collect(),
            },
        }),
    )?;
    let Value::Object(keys) = mixer_keys(&settings) else { return None };
    map.extend(keys);
    Some(map)
}

/// The tensors of a model, those of its mixer from `mixer`.
pub(super) fn tensors(
    config: &Config<'_>,
    ratio: usize,
    mixer: impl Fn(&Config<'_>, &Module, &mut Tensors) -> Mapped<()>,
) -> Mapped<Tensors> {
    let mut all = Tensors::default();
    all.ends(config, ["model.embeddings.weight", "model.norm.weight", "lm_head.weight"]);
    let d = config.size("hidden_size")?;
    let wide = config.size_or("intermediate_size", || Ok(width(d, config.size_or("hidden_ratio", || Ok(ratio))?)))?;
    for i in 0..config.size("num_hidden_layers")? {
        let layer = Module::layer(i, "model.layers");
        all.norms(&layer, "attn_norm", "mlp_norm");
        let attn = layer.sub("mixer", "attn");
        match spec_of(config, i) {
            Some(spec) => {
                let heads = spec.size("num_heads")?;
                let kv = d / heads.max(1) * spec.size_or("num_kv_heads", || Ok(heads))?;
                all.attention(&attn, [d, kv, kv], spec.flag("qkv_bias"), "o_proj", false);
            }
            None => mixer(config, &attn, &mut all)?,
        }
        all.gated_mlp(&layer.sub("ffn", "mlp"), wide, PROJ, false);
    }
    Ok(all)
}

/// The softmax attention of layer i, if it has that.
fn spec_of<'a>(config: &Config<'a>, i: usize) -> Option<Config<'a>> {
    let specs = match config.0.get("attn")? {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let at = |spec: &Config<'_>| spec.sizes("layers").is_ok_and(|at| at.contains(&i));
    specs.iter().filter_map(Value::as_object).map(Config).find(at)
}
