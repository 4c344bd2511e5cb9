//! Causal attention, the reference written for the files.

use anyhow::{Result, bail};
use elapid::formats::stored::{Stored, file};
use elapid::layers::LayerConfig;
use elapid::layers::attention::{Rope, Settings, SinkPositions};
use elapid::settings::{Auto, Count, Size};

use super::subject::{Class, Keys, Subject};

pub(super) const CLASS: Class = Class { matches: |_, config| config.contains_key("mask"), subject, also: None };

/// StreamingLLM: sinks and a rolling cache, of which positions are counted.
pub(super) const ROLLING: Class =
    Class { matches: |source, _| source.contains("llama_pos_shift_attention_forward"), subject: rolling, also: None };

/// Zoology's, of one head, with biases.
pub(super) const SLIDING: Class =
    Class { matches: |source, _| source.contains("SlidingAttn"), subject: sliding, also: None };

/// Griffin's local attention.
pub(super) const GRIFFIN: Class =
    Class { matches: |source, _| source.contains("LocalAttentionBlock"), subject: griffin, also: None };

fn sliding(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, heads) = (keys.size("d")?, keys.size("heads")?);
    let settings = Settings {
        heads: Size::new(heads),
        // It shows one position more than it says.
        window: Count::new(keys.size("block_size")? + 1),
        rope: Rope::None,
        qkv_bias: true,
        out_bias: true,
        ..Settings::default()
    };
    let params = vec![
        ("qkv.weight", file("Wqkv.weight")),
        ("qkv.bias", file("Wqkv.bias")),
        ("out_proj.weight", file("out_proj.weight")),
        ("out_proj.bias", file("out_proj.bias")),
    ];
    Ok(Subject { layer: LayerConfig::attention(settings), d, params, start: 0, norm: None })
}

fn griffin(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    // `segment_pos` says the same.
    keys.take("resets")?;
    let (d, heads, kv_heads) = (keys.size("d")?, keys.size("heads")?, keys.size("kv_heads")?);
    let dim = d / heads;
    let settings = Settings {
        heads: Size::new(heads),
        kv_heads: Auto::Is(Size::new(kv_heads)),
        // It shows one position more than it says, and rotates the first half of a head.
        window: Count::new(keys.size("window_size")? + 1),
        rotary_dim: Auto::Is(Count::new(dim / 2)),
        out_bias: true,
        ..Settings::default()
    };
    let rows = |name: &str, rows: usize| (rows, file(format!("proj_{name}.weight")));
    let qkv = Stored::Rows(vec![rows("q", heads * dim), rows("k", kv_heads * dim), rows("v", kv_heads * dim)]);
    let params = vec![
        ("qkv.weight", qkv),
        ("out_proj.weight", file("proj_final.weight")),
        ("out_proj.bias", file("proj_final.bias")),
    ];
    Ok(Subject { layer: LayerConfig::attention(settings), d, params, start: 0, norm: None })
}

fn rolling(keys: &mut Keys) -> Result<Subject> {
    let (d, heads, kv_heads) = (keys.size("d")?, keys.size("heads")?, keys.size("kv_heads")?);
    keys.batch()?;
    let settings = Settings {
        heads: Size::new(heads),
        kv_heads: Auto::Is(Size::new(kv_heads)),
        // The recent ones and the position itself.
        window: Count::new(keys.size("recent")? + 1),
        sinks: Count::new(keys.size("sinks")?),
        sink_positions: SinkPositions::Cache,
        rope_base: keys.real("rope_base")? as f32,
        ..Settings::default()
    };
    Ok(Subject {
        layer: LayerConfig::attention(settings),
        d,
        params: params(heads, kv_heads, d / heads),
        start: 0,
        norm: None,
    })
}

fn subject(keys: &mut Keys) -> Result<Subject> {
    let (d, heads, kv_heads) = (keys.size("d")?, keys.size("heads")?, keys.size("kv_heads")?);
    // The shape of x says the same.
    keys.batch()?;
    let mask = keys.word("mask")?;
    let window = if mask == "full" { 0 } else { keys.size("window")? };
    let mut settings = Settings { window: Count::new(window), alibi: keys.flag("alibi")?, ..Settings::default() };
    match mask.as_str() {
        "full" | "window" => {}
        "dilated" => settings.dilation = Size::new(keys.size("dilation")?),
        "strided" => settings.strided = true,
        "sink" => settings.sinks = Count::new(keys.size("sinks")?),
        "global" => settings.globals = keys.sizes("globals")?.into_iter().map(|at| at as u32).collect(),
        other => bail!("config: `mask`: elapid has no `{other}` attention"),
    }
    let rope = match keys.word("position")?.as_str() {
        "half" => Rope::Halves,
        "pairs" => Rope::Pairs,
        "none" => Rope::None,
        other => bail!("config: `position`: elapid has no `{other}` positions yet"),
    };
    let dim = d / heads;
    let settings = Settings {
        heads: Size::new(heads),
        kv_heads: Auto::Is(Size::new(kv_heads)),
        rope,
        rope_base: keys.real("rope_base")? as f32,
        rotary_dim: Auto::Is(Count::new(keys.size("rotary_dim")?)),
        ..settings
    };
    let params = params(heads, kv_heads, dim);
    Ok(Subject { layer: LayerConfig::attention(settings), d, params, start: 0, norm: None })
}

fn params(heads: usize, kv_heads: usize, dim: usize) -> Vec<(&'static str, Stored)> {
    let rows = |name: &str, rows: usize| (rows, file(format!("{name}_proj.weight")));
    let qkv = Stored::Rows(vec![rows("q", heads * dim), rows("k", kv_heads * dim), rows("v", kv_heads * dim)]);
    vec![("qkv.weight", qkv), ("out_proj.weight", file("o_proj.weight"))]
}
