//! States that are a matrix for each head: linear attention, retention, GLA, and Mamba-2.

use anyhow::{Result, bail, ensure};
use elapid::formats::stored::{Stored, file};
use elapid::layers::linear_attention::{FeatureMap, OutputNorm};
use elapid::layers::mamba2::GatedNorm;
use elapid::layers::{LayerConfig, gla, hgrn2, linear_attention, mamba2, retnet};
use elapid::settings::{Auto, Size};

use super::subject::{Class, Keys, Subject};

pub(super) const LINEAR_ATTENTION: Class =
    Class { matches: |source, _| source.contains("linear_attn.py LinearAttention"), subject: fla, also: None };
pub(super) const BASED: Class =
    Class { matches: |source, _| source.contains("linear_attention.py LinearAttention"), subject: based, also: None };
pub(super) const RETENTION: Class =
    Class { matches: |source, _| source.contains("MultiScaleRetention"), subject: retention, also: None };
pub(super) const GLA: Class =
    Class { matches: |source, _| source.contains("GatedLinearAttention"), subject: gated, also: None };
pub(super) const HGRN2: Class =
    Class { matches: |source, _| source.contains("HGRN2Attention"), subject: hgrn2_layer, also: None };
pub(super) const MAMBA2: Class = Class { matches: |source, _| source.contains("Mamba2"), subject: mamba2, also: None };

fn some<T>(x: T) -> Auto<T> {
    Auto::Is(x)
}

fn rows(parts: &[(&str, usize)]) -> Stored {
    Stored::Rows(parts.iter().map(|(name, rows)| (*rows, file(format!("{name}.weight")))).collect())
}

fn fla(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, heads) = (keys.size("d")?, keys.size("num_heads")?);
    let key = part(keys, "expand_k", d, heads)?;
    let value = part(keys, "expand_v", d, heads)?;
    let map = match keys.word("feature_map")?.as_str() {
        "elu" => FeatureMap::Elu,
        "relu" => FeatureMap::Relu,
        "identity" => FeatureMap::Identity,
        other => bail!("config: `feature_map`: elapid has no `{other}`"),
    };
    let norm = match keys.word("output_norm")?.as_str() {
        "identity" => OutputNorm::None,
        "rmsnorm" => OutputNorm::Rms,
        other => bail!("config: `output_norm`: elapid has no `{other}`"),
    };
    let settings = linear_attention::Settings {
        heads: Size::new(heads),
        key_dim: some(Size::new(key)),
        value_dim: some(Size::new(value)),
        feature_map: map,
        normalise: keys.optional("do_feature_map_norm").and_then(|x| x.as_bool()).unwrap_or(false),
        eps: 1e-10,
        output_norm: norm,
        norm_eps: some(keys.optional("norm_eps").and_then(|x| x.as_f64()).unwrap_or(1e-5) as f32),
        ..linear_attention::Settings::default()
    };
    let (key, value) = (heads * key, heads * value);
    let mut params = vec![
        ("qkv.weight", rows(&[("q_proj", key), ("k_proj", key), ("v_proj", value)])),
        ("out_proj.weight", file("o_proj.weight")),
    ];
    if norm == OutputNorm::Rms {
        params.push(("norm.weight", file("norm.weight")));
    }
    Ok(Subject { layer: LayerConfig::linear_attention(settings), d, params, start: 0, norm: None })
}

/// Columns of a head, of a width that is a factor of d, 1 if it is not there.
fn part(keys: &mut Keys, key: &str, d: usize, heads: usize) -> Result<usize> {
    let factor = keys.optional(key).and_then(|x| x.as_f64()).unwrap_or(1.0);
    let columns = (factor * d as f64) as usize;
    ensure!(columns.is_multiple_of(heads) && columns > 0, "config: `{key}`: {columns} columns of {heads} heads");
    Ok(columns / heads)
}

fn based(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, heads, key, value) =
        (keys.size("d")?, keys.size("heads")?, keys.size("feature_dim")?, keys.size("head_dim")?);
    let settings = linear_attention::Settings {
        heads: Size::new(heads),
        key_dim: some(Size::new(key)),
        value_dim: some(Size::new(value)),
        feature_map: FeatureMap::Taylor,
        eps: keys.real("eps")? as f32,
        ..linear_attention::Settings::default()
    };
    let (key, value) = (heads * key, heads * value);
    let params = vec![
        ("qkv.weight", rows(&[("proj_q", key), ("proj_k", key), ("proj_v", value)])),
        ("out_proj.weight", file("out_proj.weight")),
    ];
    Ok(Subject { layer: LayerConfig::linear_attention(settings), d, params, start: 0, norm: None })
}

fn retention(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, heads, values) = (keys.size("d")?, keys.size("heads")?, keys.size("value_dim")?);
    // Of the reference's own form in chunks.
    keys.take("chunk")?;
    let start = keys.size("init_position")? as u64;
    let settings = retnet::Settings {
        heads: Size::new(heads),
        key_dim: some(Size::new(d / heads)),
        value_dim: some(Size::new(values / heads)),
        norm_eps: some(keys.real("layernorm_eps")? as f32),
        ..retnet::Settings::default()
    };
    let params = vec![
        ("qkvg.weight", rows(&[("q_proj", d), ("k_proj", d), ("v_proj", values), ("g_proj", values)])),
        ("decay", Stored::Absent),
        ("out_proj.weight", file("out_proj.weight")),
    ];
    Ok(Subject { layer: LayerConfig::retnet(settings), d, params, start, norm: None })
}

fn gated(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, heads) = (keys.size("d")?, keys.size("num_heads")?);
    let key = part(keys, "expand_k", d, heads)?;
    let value = part(keys, "expand_v", d, heads)?;
    let settings = gla::Settings {
        heads: Size::new(heads),
        key_dim: some(Size::new(key)),
        value_dim: some(Size::new(value)),
        decay_rank: Size::new(keys.size("gate_low_rank_dim")?),
        decay_divisor: keys.real("gate_logit_normalizer")? as f32,
        norm_eps: some(keys.optional("norm_eps").and_then(|x| x.as_f64()).unwrap_or(1e-5) as f32),
        ..gla::Settings::default()
    };
    let (key, value) = (heads * key, heads * value);
    let params = vec![
        ("qkvg.weight", rows(&[("q_proj", key), ("k_proj", key), ("v_proj", value), ("g_proj", value)])),
        ("decay.down.weight", file("gk_proj.0.weight")),
        ("decay.up.weight", file("gk_proj.1.weight")),
        ("decay.up.bias", file("gk_proj.1.bias")),
        ("norm.weight", file("g_norm_swish_gate.weight")),
        ("out_proj.weight", file("o_proj.weight")),
    ];
    Ok(Subject { layer: LayerConfig::gla(settings), d, params, start: 0, norm: None })
}

fn hgrn2_layer(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, key) = (keys.size("d")?, keys.size("expand_ratio")?);
    // The first layer has no bound.
    let bound = keys.size("layer_idx")? > 0;
    let settings = hgrn2::Settings {
        key_dim: Size::new(key),
        lower_bound: if bound { hgrn2::LowerBound::Layer } else { hgrn2::LowerBound::None },
        norm_eps: some(keys.optional("norm_eps").and_then(|x| x.as_f64()).unwrap_or(1e-5) as f32),
    };
    let mut params = vec![
        ("qfv.weight", rows(&[("q_proj", d), ("f_proj", d), ("i_proj", d)])),
        ("norm.weight", file("g_norm.weight")),
        ("out_proj.weight", file("o_proj.weight")),
    ];
    if bound {
        params.push(("lower_bound", file("lower_bound")));
    }
    Ok(Subject { layer: LayerConfig::hgrn2(settings), d, params, start: 0, norm: None })
}

fn mamba2(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    // How the reference computes.
    keys.take("chunk_size")?;
    let (d, inner, h, p) = (keys.size("d")?, keys.size("d_inner")?, keys.size("nheads")?, keys.size("headdim")?);
    let flag = |keys: &mut Keys, key: &str, or: bool| keys.optional(key).and_then(|x| x.as_bool()).unwrap_or(or);
    let limits = keys.optional("dt_limit").and_then(|x| Some([x.get(0)?.as_f64()?, x.get(1)?.as_f64()?]));
    let simple = keys.left.contains_key("learnable_init_states");
    let (groups, bias) = (Size::new(keys.size("ngroups")?), flag(keys, "bias", false));
    let ssm = keys.optional("d_ssm").and_then(|x| x.as_u64()).map_or(inner, |x| x as usize);
    ensure!(ssm == h * p, "config: `d_ssm`: {ssm} channels are not {h} heads of {p}");
    let settings = mamba2::Settings {
        d_state: Size::new(keys.size("d_state")?),
        d_conv: Size::new(keys.optional("d_conv").and_then(|x| x.as_u64()).unwrap_or(4) as usize),
        d_inner: some(Size::new(inner)),
        d_ssm: some(Size::new(ssm)),
        head_dim: Size::new(p),
        groups,
        skip_per_channel: flag(keys, "D_has_hdim", false),
        gated_norm: match (flag(keys, "rmsnorm", true), flag(keys, "norm_before_gate", false)) {
            (false, _) => GatedNorm::None,
            (true, false) => GatedNorm::GateFirst,
            (true, true) => GatedNorm::NormFirst,
        },
        norm_groups: some(if simple { Size::new(1) } else { groups }),
        norm_eps: some(1e-5),
        dt_limit_min: limits.map_or(0.0, |x| x[0] as f32),
        dt_limit_max: limits.map_or(0.0, |x| x[1] as f32),
        in_bias: bias,
        out_bias: bias,
        learned_start: flag(keys, "learnable_init_states", false),
        ..mamba2::Settings::default()
    };
    let mut names = vec!["in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D", "out_proj.weight"];
    if settings.gated_norm != GatedNorm::None {
        names.push("norm.weight");
    }
    if settings.in_bias {
        names.extend(["in_proj.bias", "out_proj.bias"]);
    }
    let mut params: Vec<_> = names.into_iter().map(|name| (name, file(name))).collect();
    if settings.learned_start {
        params.push(("start", Stored::Transposed(Box::new(file("init_states")))));
    }
    Ok(Subject { layer: LayerConfig::mamba2(settings), d, params, start: 0, norm: None })
}

/// Theirs `[.. v k]` for ours `[.. k v]`.
pub(super) fn swapped(theirs: &[Vec<f32>], shape: &[usize]) -> Vec<f32> {
    let &[.., k, v] = shape else { return theirs[0].clone() };
    let each = theirs[0].chunks(k * v);
    each.flat_map(|head| (0..k * v).map(move |at| head[at % v * k + at / v])).collect()
}

/// Theirs `[b c k-1]` for ours `[b k-1 c]`.
pub(super) fn window(theirs: &[Vec<f32>], shape: &[usize]) -> Vec<f32> {
    swapped(theirs, shape)
}

/// Linear attention's: theirs `[b h k v]`, with a normaliser `[b h k]` beside it for ours `[b h k v+1]`; or that of Based.
pub(super) fn attention(theirs: &[Vec<f32>], shape: &[usize]) -> Vec<f32> {
    let [values, sums] = theirs else { return theirs[0].clone() };
    let v = shape.last().map_or(0, |columns| columns - 1);
    if sums.len() * (v + 1) != shape.iter().product::<usize>() {
        return taylor(values, sums, shape);
    }
    values.chunks(v).zip(sums).flat_map(|(row, sum)| row.iter().copied().chain([*sum])).collect()
}

/// Theirs `[b h v 1+f+f²]` and `[b h 1+f+f²]`, with both products of two columns, for ours `[b h 1+f+f(f+1)/2 v+1]` with one: the
/// part of it that the map sees, by an orthonormal projection, which serves gradients too.
fn taylor(values: &[f32], sums: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[.., features, columns] = shape else { return values.to_vec() };
    let v = columns - 1;
    let f = (0..).find(|f| 1 + f + f * (f + 1) / 2 >= features).unwrap_or(0);
    let all = 1 + f + f * f;
    let projected = |row: &[f32]| -> Vec<f32> {
        let square = |i: usize, j: usize| row[1 + f + i * f + j];
        let pairs = (0..f).flat_map(|i| (i..f).map(move |j| (i, j)));
        let products = pairs.map(|(i, j)| match i == j {
            true => square(i, i),
            false => (square(i, j) + square(j, i)) * std::f32::consts::FRAC_1_SQRT_2,
        });
        row[..=f].iter().copied().chain(products).collect()
    };
    let heads = values.chunks(v * all).zip(sums.chunks(all));
    let mut ours = Vec::with_capacity(heads.len() * features * columns);
    for (values, sum) in heads {
        let rows: Vec<Vec<f32>> = values.chunks(all).chain([sum]).map(projected).collect();
        ours.extend((0..features).flat_map(|i| rows.iter().map(move |row| row[i])));
    }
    ours
}
